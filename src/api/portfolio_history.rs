//! Owns the resource portfolio history: a portfolio as it was at a moment, or hour by hour.
//! Promises figures that were shown then; what was not recalculated is not made up.
//! Called by the router.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use chrono::{SecondsFormat, TimeDelta};
use serde_json::json;

use super::Api;
use super::auth::{Allowed, PortfolioRead};
use super::cached::whose;
use super::extract::{DEFAULT_LIMIT, Page, Params};
use super::problem::Problem;
use crate::read_model::portfolio_history;

/// What a read without `from` looks back.
const LOOK_BACK: TimeDelta = TimeDelta::days(7);
/// How far a client's clock may be ahead.
const CLOCKS_DIFFER: TimeDelta = TimeDelta::minutes(1);

/// GET /api/portfolio/history?user_id=&at=: {data}, null where nothing is kept from before; or
/// ?user_id=&from=&to=&limit=&cursor=: {data: [{hour, ...}], next}, the newest first.
pub(super) async fn get(
    State(api): State<Api>,
    Allowed { who, .. }: Allowed<PortfolioRead>,
    params: Params,
) -> Result<Response, Problem> {
    let user = whose(&who, &params, "a portfolio")?;
    let limit = params.limit(DEFAULT_LIMIT)?;
    let (at, from, to) = (params.time("at")?, params.time("from")?, params.time("to")?);
    let cursor = params.time_cursor()?;
    let now = api.db.now();
    if let Some(at) = at {
        if from.is_some() || to.is_some() || cursor.is_some() {
            return Err(Problem::parameter("at", "cannot be given beside from, to and cursor"));
        }
        if at > now + CLOCKS_DIFFER {
            return Err(Problem::parameter("at", "must not be in the future"));
        }
        let mut tx = api.db.tenant(&who.tenant).await?;
        let figures = portfolio_history::as_of(&mut tx, &user, at).await?;
        tx.commit().await?;
        return Ok(Json(json!({"data": figures})).into_response());
    }
    let to = to.unwrap_or(now);
    let from = from.unwrap_or(to - LOOK_BACK);
    if from > to {
        return Err(Problem::parameter("from", "must not be later than to"));
    }
    // A page goes on before the last hour of the one before it.
    let to = cursor.map_or(to, |hour| hour.min(to));
    let mut tx = api.db.tenant(&who.tenant).await?;
    let hours = portfolio_history::hours(&mut tx, &user, (from, to), limit as i64 + 1).await?;
    tx.commit().await?;
    let page = Page::new(hours, limit, |row| row.hour.to_rfc3339_opts(SecondsFormat::AutoSi, true));
    Ok(Json(page).into_response())
}
