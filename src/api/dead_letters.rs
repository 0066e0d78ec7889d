//! Owns the resource dead letters: its paths, filters and answers.
//! Promises that a tenant sees and settles its own letters only; those without a tenant are for the command line.
//! Called by the router.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::Api;
use super::auth::{Allowed, DlqRead, DlqReplay};
use super::extract::{DEFAULT_LIMIT, JsonObject, Page, Params, PathId, Trace};
use super::problem::Problem;
use crate::dead_letter::{self, Action, Actor, Discarded, Filter, Listed, Shown, Stats, Verdict};
use crate::domain::{FieldError, Input};
use crate::doorbell::Bell;

/// As the command line's defaults.
const DEFAULT_HOURS: i64 = 24;
const DEFAULT_REPLAYS: i64 = 1_000;

const MOST_HOURS: i64 = 87_600;
/// One request is one transaction, and not a long one.
const MOST_REPLAYS: i64 = 1_000;
/// Letters whose reason to be skipped is told.
const MOST_REASONS: usize = 100;
const LONGEST_NAME: usize = 128;
const LONGEST_REASON: usize = 500;

const STATUSES: [&str; 4] = ["dead", "replaying", "resolved", "discarded"];

/// A page of letters beside the counts of all.
#[derive(Serialize)]
struct Letters {
    #[serde(flatten)]
    page: Page<Listed>,
    #[serde(flatten)]
    stats: Stats,
}

/// GET /api/dlq?consumer=&event_kind=&status=&hours=&limit=&cursor=: {data, next, open, groups}.
pub(super) async fn list(
    State(api): State<Api>,
    Allowed { who, .. }: Allowed<DlqRead>,
    params: Params,
) -> Result<Response, Problem> {
    let limit = params.limit(DEFAULT_LIMIT)?;
    let hours = params.parsed::<i32>("hours", &hours_allowed())?;
    if hours.is_some_and(|hours| !(1..=MOST_HOURS).contains(&i64::from(hours))) {
        return Err(Problem::parameter("hours", hours_allowed()));
    }
    let status = params.one_of("status", &STATUSES)?;
    let shown = Shown {
        group: name(&params, "consumer")?,
        kind: name(&params, "event_kind")?,
        status,
        hours,
        after: params.cursor()?,
    };
    let mut tx = api.db.tenant(&who.tenant).await?;
    let rows = dead_letter::page(tx.conn(), shown, limit as i64 + 1).await?;
    let stats = dead_letter::stats(tx.conn()).await?;
    tx.commit().await?;
    let page = Page::new(rows, limit, |letter| letter.id.to_string());
    Ok(Json(Letters { page, stats }).into_response())
}

fn hours_allowed() -> String {
    format!("must be an integer from 1 to {MOST_HOURS}")
}

/// A name to filter by. PostgreSQL takes no NUL.
fn name<'a>(params: &'a Params, name: &str) -> Result<Option<&'a str>, Problem> {
    let text = params.text(name)?;
    if text.is_some_and(|text| text.contains('\0') || text.len() > LONGEST_NAME) {
        return Err(Problem::parameter(
            name,
            format!("must be at most {LONGEST_NAME} characters, none of them NUL"),
        ));
    }
    Ok(text)
}

/// POST /api/dlq/replay {consumer, event_kind, hours, limit, dry_run}: {dry_run, matched, queued, skipped, reasons}.
pub(super) async fn replay(
    State(api): State<Api>,
    Allowed { who, .. }: Allowed<DlqReplay>,
    trace: Trace,
    JsonObject(body): JsonObject,
) -> Result<Response, Problem> {
    let wanted = Wanted::read(&body).map_err(Problem::invalid)?;
    let mut tx = api.db.tenant(&who.tenant).await?;
    let letters = dead_letter::matching(tx.conn(), wanted.filter()).await?;
    let ids: Vec<Uuid> = letters.iter().map(|letter| letter.id).collect();
    let (mut queued, mut reasons, mut skipped) = (Vec::new(), Vec::new(), 0);
    if !wanted.dry_run {
        for (id, verdict) in
            ids.iter().zip(dead_letter::ask_for_replay(tx.conn(), &ids, who.user.as_str()).await?)
        {
            let reason = match verdict {
                Verdict::Queued => {
                    queued.push(*id);
                    continue;
                }
                Verdict::Settled => "it is not dead any more".to_owned(),
                Verdict::Behind(older) => {
                    format!("{older} of the same key is older and dead: include it or discard it")
                }
            };
            skipped += 1;
            if reasons.len() < MOST_REASONS {
                reasons.push(json!({"id": id, "reason": reason}));
            }
        }
        let actor = Actor { name: who.user.as_str(), request_id: Some(trace.request_id()) };
        let tenant = who.tenant.as_str();
        dead_letter::audit(tx.conn(), tenant, actor, Action::Replay, &queued, &json!({})).await?;
    }
    tx.commit().await?;
    if !queued.is_empty() {
        api.bells.ring(Bell::Letters);
    }
    let answer = json!({
        "dry_run": wanted.dry_run, "matched": ids.len(), "queued": queued.len(), "skipped": skipped,
        "reasons": reasons,
    });
    Ok(Json(answer).into_response())
}

/// Which letters to replay.
struct Wanted {
    group: Option<String>,
    kind: Option<String>,
    hours: i64,
    limit: i64,
    dry_run: bool,
}

impl Wanted {
    fn read(body: &Map<String, Value>) -> Result<Self, Vec<FieldError>> {
        let mut input = Input::new(body);
        let wanted = Self {
            group: input.text(&["consumer", "consumer_name"], LONGEST_NAME).value(),
            kind: input.text(&["event_kind"], LONGEST_NAME).value(),
            hours: input.integer(&["hours"], 1..=MOST_HOURS).value().unwrap_or(DEFAULT_HOURS),
            limit: input.integer(&["limit"], 1..=MOST_REPLAYS).value().unwrap_or(DEFAULT_REPLAYS),
            dry_run: input.boolean(&["dry_run"]).value().unwrap_or(false),
        };
        input.finish().map(|()| wanted)
    }

    fn filter(&self) -> Filter<'_> {
        Filter {
            group: self.group.as_deref(),
            kind: self.kind.as_deref(),
            hours: i32::try_from(self.hours).unwrap_or(i32::MAX),
            limit: self.limit,
        }
    }
}

/// POST /api/dlq/{id}/discard {reason}: {success, id, status}.
pub(super) async fn discard(
    State(api): State<Api>,
    Allowed { who, .. }: Allowed<DlqReplay>,
    PathId(id): PathId,
    trace: Trace,
    JsonObject(body): JsonObject,
) -> Result<Response, Problem> {
    let mut input = Input::new(&body);
    let given = input.text(&["reason"], LONGEST_REASON);
    let reason = input.required(&["reason"], given).unwrap_or_default();
    input.finish().map_err(Problem::invalid)?;
    let mut tx = api.db.tenant(&who.tenant).await?;
    match dead_letter::discard(tx.conn(), id, &reason, who.user.as_str()).await? {
        Discarded::Done { .. } => {}
        Discarded::NotFound => return Err(Problem::not_found()),
        Discarded::Refused { status } => {
            return Err(Problem::new(
                StatusCode::CONFLICT,
                "not-dead",
                "The dead letter is not dead any more",
            )
            .detail(format!("it is {status}: only a dead one can be discarded")));
        }
    }
    let actor = Actor { name: who.user.as_str(), request_id: Some(trace.request_id()) };
    let (tenant, detail) = (who.tenant.as_str(), json!({"reason": reason}));
    dead_letter::audit(tx.conn(), tenant, actor, Action::Discard, &[id], &detail).await?;
    tx.commit().await?;
    api.bells.ring(Bell::Applied);
    Ok(Json(json!({"success": true, "id": id, "status": "discarded"})).into_response())
}
