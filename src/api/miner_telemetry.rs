//! Owns the resource telemetry of miners: what they report, and what was reported.
//! Promises that what it answers with success is committed, with its events.
//! Called by the router.

use std::str::FromStr;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, TimeDelta, Utc};
use serde_json::{Value, json};

use super::Api;
use super::auth::{Allowed, MinersRead, MinersWrite};
use super::extract::{DEFAULT_LIMIT, Page, Params, PathId, Trace, Upload};
use super::problem::Problem;
use crate::domain::Input;
use crate::domain::miner::telemetry::{self, MOST_POINTS};

/// What a read without `from` looks back.
const LOOK_BACK: TimeDelta = TimeDelta::days(1);

/// How fine a read is.
enum Resolution {
    Raw,
    Hour,
}

impl FromStr for Resolution {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "raw" => Ok(Self::Raw),
            "hour" => Ok(Self::Hour),
            _ => Err(()),
        }
    }
}

/// POST /api/miners/telemetry, {points: [{miner_id, at, hashrate_ths, power_w, temperature_c}], batch_id}: 201 {success,
/// batch_id, total_count, accepted_count, duplicate_count, failed_count, event_id, event_ids, errors}.
pub(super) async fn take(
    State(api): State<Api>,
    Allowed { who, .. }: Allowed<MinersWrite>,
    trace: Trace,
    upload: Upload,
) -> Result<Response, Problem> {
    let Upload::Json(body) = upload else {
        return Err(Problem::unsupported_body("The body must be JSON", "application/json"));
    };
    let mut input = Input::new(&body);
    let batch_id = input.identifier(&["batch_id"]).value();
    let items = body.get("points").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    if items.is_empty() {
        input.refuse("points", "must be an array of at least one object");
    }
    input.finish().map_err(Problem::invalid)?;
    if items.len() > MOST_POINTS {
        return Err(Problem::too_many_rows(MOST_POINTS));
    }
    let (caller, batch_id, late) = (trace.caller(&who.user), batch_id.as_ref(), api.telemetry_late);
    let taken = api
        .command(&who.tenant, |mut tx| async move {
            let done = telemetry::take(&mut tx, caller, batch_id, items, late).await?;
            Ok((tx, done))
        })
        .await?;
    let answer = json!({
        "success": true, "batch_id": taken.batch_id, "total_count": taken.total_count,
        "accepted_count": taken.accepted_count, "duplicate_count": taken.duplicate_count,
        "failed_count": taken.failed_count, "event_id": taken.event_ids.first(), "event_ids": taken.event_ids,
        "errors": taken.errors,
    });
    Ok((StatusCode::CREATED, Json(answer)).into_response())
}

/// GET /api/miners/{id}/telemetry?resolution=raw|hour&from=&to=&limit=&cursor=: {data, next}, newest first.
pub(super) async fn list(
    State(api): State<Api>,
    Allowed { who, .. }: Allowed<MinersRead>,
    PathId(id): PathId,
    params: Params,
) -> Result<Response, Problem> {
    let resolution = params.parsed("resolution", "must be raw or hour")?.unwrap_or(Resolution::Hour);
    let limit = params.limit(DEFAULT_LIMIT)?;
    let to = params.time("to")?.unwrap_or_else(|| api.db.now());
    let from = params.time("from")?.unwrap_or(to - LOOK_BACK);
    if from > to {
        return Err(Problem::parameter("from", "must not be later than to"));
    }
    // A page goes on before the last moment of the one before it.
    let to = params.time_cursor()?.map_or(to, |at| at.min(to));
    let mut tx = api.db.tenant(&who.tenant).await?;
    let (span, rows) = ((from, to), limit as i64 + 1);
    let page = match resolution {
        Resolution::Raw => {
            let points = telemetry::points(&mut tx, id, span, rows).await?;
            Json(Page::new(points, limit, |point| cursor(point.at))).into_response()
        }
        Resolution::Hour => {
            let hours = telemetry::hours(&mut tx, id, span, rows).await?;
            Json(Page::new(hours, limit, |hour| cursor(hour.hour))).into_response()
        }
    };
    tx.commit().await?;
    Ok(page)
}

fn cursor(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(chrono::SecondsFormat::Micros, true)
}
