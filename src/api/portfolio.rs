//! Owns the resource portfolio: cached reads, and reads that wait for an event of one's own.
//! Promises that an answer to `after` holds the event, whatever the cache holds.
//! Called by the router.

use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use rust_decimal::Decimal;
use rust_decimal::prelude::ToPrimitive;
use tokio::time::Instant;
use uuid::Uuid;

use super::Api;
use super::auth::{Allowed, PortfolioRead};
use super::extract::Params;
use super::problem::Problem;
use crate::cache::{Entry, Key, Metadata, Origin};
use crate::db::Db;
use crate::identifier::{TenantId, UserId};
use crate::read_model::portfolio::{self, GROUP, KINDS};
use crate::read_model::visibility::{self, Visibility};

/// How long a reader waits for its event unless it says otherwise.
const DEFAULT_WAIT: Duration = Duration::from_secs(2);
const MAX_WAIT: Decimal = Decimal::TEN;

/// GET /api/portfolio?user_id=&after=&wait=: {data, metadata}.
pub(super) async fn get(
    State(api): State<Api>,
    Allowed { who, .. }: Allowed<PortfolioRead>,
    params: Params,
) -> Result<Response, Problem> {
    let user = params.user("user_id")?.unwrap_or_else(|| who.user.clone());
    let after: Option<Uuid> = params.parsed("after", "must be the event_id of a write")?;
    let wait = wait(&params)?;
    if user != who.user && !who.is_admin() {
        return Err(Problem::forbidden("reading another user's portfolio needs the role admin"));
    }
    let key = Key::portfolio(&who.tenant, &user);
    let row = Row { db: api.db.clone(), tenant: who.tenant, user };
    let Some(event_id) = after else {
        let (entry, metadata) = api.cache.read(&key, row).await?;
        return Ok(answer(&entry, metadata));
    };
    let deadline = Instant::now() + wait;
    match visibility::wait(&api.db, &row.tenant, GROUP, KINDS, event_id, deadline, &api.bells).await? {
        Visibility::Visible => {
            let entry = row.load().await?;
            api.cache.put(&key, &entry).await;
            Ok(answer(&entry, Metadata::LOADED))
        }
        not_visible => Err(refusal(not_visible)),
    }
}

fn wait(params: &Params) -> Result<Duration, Problem> {
    let allowed = "must be seconds from 0 to 10";
    match params.parsed::<Decimal>("wait", allowed)? {
        None => Ok(DEFAULT_WAIT),
        Some(seconds) if (Decimal::ZERO..=MAX_WAIT).contains(&seconds) => {
            Ok(Duration::from_secs_f64(seconds.to_f64().unwrap_or_default()))
        }
        Some(_) => Err(Problem::parameter("wait", allowed)),
    }
}

fn refusal(visibility: Visibility) -> Problem {
    match visibility {
        Visibility::Visible | Visibility::Pending | Visibility::Parked => {
            Problem::unavailable("not-yet-visible", "The event is not yet in this read model")
                .detail("ask again, or with a longer wait")
        }
        Visibility::Dead | Visibility::Discarded => {
            Problem::new(StatusCode::CONFLICT, "event-failed", "The event could not be applied")
                .detail("it is a dead letter and will not become visible unless it is replayed")
        }
        Visibility::NotConsumed(kind) => Problem::invalid(vec![crate::domain::FieldError::new(
            "after",
            format!("is an event of the kind {kind}, which does not change a portfolio"),
        )]),
        Visibility::Unknown => Problem::not_found().detail("no such event"),
    }
}

/// The cached text goes out as it is.
fn answer(entry: &Entry, metadata: Metadata) -> Response {
    let metadata = serde_json::to_string(&metadata).unwrap_or_default();
    let body = format!("{{\"data\":{},\"metadata\":{metadata}}}", entry.json);
    let mut response = Response::new(Body::from(body));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// A row of the read model, as the origin of a cached value.
struct Row {
    db: Db,
    tenant: TenantId,
    user: UserId,
}

impl Origin for Row {
    type Error = sqlx::Error;

    async fn load(&self) -> Result<Entry, sqlx::Error> {
        let mut tx = self.db.tenant(&self.tenant).await?;
        let view = portfolio::get(&mut tx, &self.user).await?;
        tx.commit().await?;
        let json = serde_json::to_string(&view).map_err(|e| sqlx::Error::Encode(Box::new(e)))?;
        Ok(Entry { json: json.into(), version: view.version })
    }

    async fn version(&self) -> Result<i64, sqlx::Error> {
        let mut tx = self.db.tenant(&self.tenant).await?;
        let version = portfolio::version(&mut tx, &self.user).await?;
        tx.commit().await?;
        Ok(version)
    }
}
