//! Owns the resources of the treasury: overview, signals, settings and lots of an account.
//! Promises that what it answers with success is committed, with its event, and that a figure says from when its price is.
//! Called by the router.
//!
//! | file | resources |
//! |---|---|
//! | `trades` | submitting, deciding, reading and exporting trades |
//! | `backtest` | strategies along daily prices |

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use chrono::{DateTime, Utc};
use rust_decimal::Decimal;
use serde::Serialize;
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::Api;
use super::auth::{Allowed, TreasuryRead, TreasuryTrade, about};
use super::extract::{DEFAULT_LIMIT, JsonObject, Page, Params, Trace};
use super::problem::Problem;
use super::token::Principal;
use super::visible::{After, ReadModel};
use crate::domain::treasury::account::{self, APPROVAL_LIMIT};
use crate::domain::treasury::venue::Blind;
use crate::domain::treasury::{Settings, lot};
use crate::economics::age::is_stale;
use crate::identifier::UserId;
use crate::read_model::treasury::{self as read_model, GROUP, KINDS, Overview};

mod backtest;
mod trades;

const MODEL: ReadModel = ReadModel { group: GROUP, kinds: KINDS, name: "a treasury" };

/// The routes under /api/treasury/.
pub(super) fn routes() -> Router<Api> {
    Router::new()
        .route("/api/treasury/execute", post(trades::submit))
        .route("/api/treasury/trades", get(trades::list))
        .route("/api/treasury/trades/{id}", get(trades::one))
        .route("/api/treasury/trades/{id}/approve", post(trades::approve))
        .route("/api/treasury/trades/{id}/cancel", post(trades::cancel))
        .route("/api/treasury/overview", get(overview))
        .route("/api/treasury/signals", get(signals))
        .route("/api/treasury/settings", get(settings).put(change_settings))
        .route("/api/treasury/lots", get(lots).post(add_lot))
        .route("/api/treasury/backtest", post(backtest::run))
}

/// The account a request is about: the caller's, or for an admin the one it names.
fn account_of(who: &Principal, params: &Params) -> Result<UserId, Problem> {
    let refusal = "another user's treasury needs the role admin";
    about(who, params.user("user_id")?, who.is_admin(), refusal)
}

/// What to know about figures at a price of this time, beside what is stored with them.
fn warnings(stored: &[String], as_of: Option<DateTime<Utc>>, now: DateTime<Utc>) -> Vec<String> {
    let of_price = match as_of {
        None => Some(Blind::NoPrice),
        Some(at) if is_stale(at, now) => Some(Blind::StalePrice),
        Some(_) => None,
    };
    let of_price = of_price.map(|blind| blind.as_str().to_owned());
    stored.iter().cloned().chain(of_price).collect()
}

#[derive(Serialize)]
struct ShownOverview {
    #[serde(flatten)]
    overview: Overview,
    warnings: Vec<String>,
}

/// GET /api/treasury/overview?user_id=&after=&wait=: {data}.
async fn overview(
    State(api): State<Api>,
    Allowed { who, .. }: Allowed<TreasuryRead>,
    params: Params,
) -> Result<Response, Problem> {
    let user = account_of(&who, &params)?;
    After::of(&params)?.wait(&api, &who.tenant, &MODEL).await?;
    let mut tx = api.db.tenant(&who.tenant).await?;
    let overview = read_model::overview(&mut tx, &user).await?;
    let warnings = warnings(&overview.warnings, overview.as_of, tx.now());
    tx.commit().await?;
    Ok(Json(json!({"data": ShownOverview { overview, warnings }})).into_response())
}

/// GET /api/treasury/signals?user_id=&after=&wait=: {data, as_of, warnings}.
async fn signals(
    State(api): State<Api>,
    Allowed { who, .. }: Allowed<TreasuryRead>,
    params: Params,
) -> Result<Response, Problem> {
    let user = account_of(&who, &params)?;
    After::of(&params)?.wait(&api, &who.tenant, &MODEL).await?;
    let mut tx = api.db.tenant(&who.tenant).await?;
    let overview = read_model::overview(&mut tx, &user).await?;
    let signals = read_model::signals(&mut tx, &user).await?;
    let warnings = warnings(&overview.warnings, overview.as_of, tx.now());
    tx.commit().await?;
    let answer = json!({
        "data": signals, "unevaluated": overview.unevaluated, "as_of": overview.as_of, "warnings": warnings,
        "version": overview.version,
    });
    Ok(Json(answer).into_response())
}

#[derive(Serialize)]
struct ShownSettings {
    #[serde(flatten)]
    settings: Settings,
    /// The cash with the fills since it was set.
    cash_now_usd: Decimal,
}

/// GET /api/treasury/settings?user_id=: {data}; null before anything was set, added or traded.
async fn settings(
    State(api): State<Api>,
    Allowed { who, .. }: Allowed<TreasuryRead>,
    params: Params,
) -> Result<Response, Problem> {
    let user = account_of(&who, &params)?;
    let mut tx = api.db.tenant(&who.tenant).await?;
    let settings = account::settings_of(tx.conn(), &[user.as_str()]).await?.pop();
    let cash = account::cash_of(tx.conn(), &[user.as_str()]).await?;
    tx.commit().await?;
    let cash_now_usd = cash.get(&user).copied().unwrap_or_default();
    let shown = settings.map(|settings| ShownSettings { settings, cash_now_usd });
    Ok(Json(json!({"data": shown})).into_response())
}

/// PUT /api/treasury/settings?user_id=: {success, user_id, event_id}; what is not given stays. event_id is null when
/// nothing changed.
async fn change_settings(
    State(api): State<Api>,
    Allowed { who, .. }: Allowed<TreasuryTrade>,
    params: Params,
    trace: Trace,
    JsonObject(body): JsonObject,
) -> Result<Response, Problem> {
    let user = &account_of(&who, &params)?;
    may_set_limit(&who, &body)?;
    let (caller, body) = (trace.caller(&who.user), &body);
    let event_id = api
        .command(&who.tenant, |mut tx| async move {
            let (_, event_id) = account::change(&mut tx, caller, user, body).await?;
            Ok((tx, event_id))
        })
        .await?;
    Ok(Json(json!({"success": true, "user_id": user, "event_id": event_id})).into_response())
}

/// Whoever may trade could lift the limit first, and would need no second person.
fn may_set_limit(who: &Principal, body: &Map<String, Value>) -> Result<(), Problem> {
    match body.get(APPROVAL_LIMIT) {
        Some(_) if !who.is_admin() => {
            Err(Problem::forbidden("setting the approval limit needs the role admin"))
        }
        _ => Ok(()),
    }
}

/// GET /api/treasury/lots?user_id=&limit=&cursor=: {data, next}.
async fn lots(
    State(api): State<Api>,
    Allowed { who, .. }: Allowed<TreasuryRead>,
    params: Params,
) -> Result<Response, Problem> {
    let user = account_of(&who, &params)?;
    let limit = params.limit(DEFAULT_LIMIT)?;
    let after: Option<Uuid> = params.cursor()?;
    let mut tx = api.db.tenant(&who.tenant).await?;
    let rows = lot::list(&mut tx, &user, after, limit as i64 + 1).await?;
    tx.commit().await?;
    Ok(Json(Page::new(rows, limit, |lot| lot.lot_id.to_string())).into_response())
}

/// POST /api/treasury/lots?user_id=: 201 {success, lot_id, event_id}.
async fn add_lot(
    State(api): State<Api>,
    Allowed { who, .. }: Allowed<TreasuryTrade>,
    params: Params,
    trace: Trace,
    JsonObject(body): JsonObject,
) -> Result<Response, Problem> {
    let user = &account_of(&who, &params)?;
    let (caller, body) = (trace.caller(&who.user), &body);
    let (lot_id, event_id) = api
        .command(&who.tenant, |mut tx| async move {
            let done = lot::add(&mut tx, caller, user, body).await?;
            Ok((tx, done))
        })
        .await?;
    let answer = json!({"success": true, "lot_id": lot_id, "event_id": event_id});
    Ok((StatusCode::CREATED, [(header::LOCATION, "/api/treasury/lots")], Json(answer)).into_response())
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;

    use super::*;

    #[test]
    fn a_price_older_than_thirty_minutes_is_warned_of() {
        let now = DateTime::UNIX_EPOCH + TimeDelta::days(1);
        assert_eq!(warnings(&[], None, now), ["no-price"]);
        let old = now - TimeDelta::minutes(30);
        assert!(warnings(&[], Some(old), now).is_empty());
        assert_eq!(warnings(&[], Some(old - TimeDelta::milliseconds(1)), now), ["stale-price"]);
        let stored = ["out-of-range".to_owned()];
        assert_eq!(warnings(&stored, None, now), ["out-of-range", "no-price"]);
    }
}
