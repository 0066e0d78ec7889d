//! Owns the resource trades.
//! Promises that a trade is shown to its account, to whoever decides trades, and to an admin, and to nobody else.
//! Called by the router.

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, SecondsFormat, Utc};
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::MODEL;
use crate::api::Api;
use crate::api::auth::{Allowed, Scope, TreasuryApprove, TreasuryRead, TreasuryTrade, about};
use crate::api::csv::{self, Cell, Format};
use crate::api::extract::{DEFAULT_LIMIT, JsonObject, Page, Params, PathId, Trace};
use crate::api::problem::Problem;
use crate::api::token::Principal;
use crate::api::visible::After;
use crate::domain::machine::State as _;
use crate::domain::treasury::decision::{self, Decision};
use crate::domain::treasury::order;
use crate::domain::treasury::trade::{self, Filter, Trade, TradeState, TradeType};
use crate::identifier::UserId;

/// The most rows of an export.
const MOST_EXPORTED: usize = 10_000;

/// POST /api/treasury/execute: 202 {success, trade_id, status, event_id, message, estimated_execution_time}.
pub(super) async fn submit(
    State(api): State<Api>,
    Allowed { who, .. }: Allowed<TreasuryTrade>,
    trace: Trace,
    JsonObject(body): JsonObject,
) -> Result<Response, Problem> {
    let (caller, body) = (trace.caller(&who.user), &body);
    let done = api
        .command(&who.tenant, |mut tx| async move {
            let done = order::submit(&mut tx, caller, body).await?;
            Ok((tx, done))
        })
        .await?;
    let message = if done.trade.needs_approval {
        "the trade was submitted; it waits for the approval of a second person"
    } else {
        "the trade was submitted; it executes when the venue has a price for it"
    };
    let answer = json!({
        "success": true, "trade_id": done.trade.trade_id, "status": done.trade.state, "event_id": done.event_id,
        "message": message, "needs_approval": done.trade.needs_approval,
        "estimated_execution_time": done.estimated_execution_time,
    });
    let location = format!("/api/treasury/trades/{}", done.trade.trade_id);
    Ok((StatusCode::ACCEPTED, [(header::LOCATION, location)], Json(answer)).into_response())
}

/// POST /api/treasury/trades/{id}/approve {reason}: {success, trade_id, status, event_id}.
pub(super) async fn approve(
    State(api): State<Api>,
    Allowed { who, .. }: Allowed<TreasuryApprove>,
    PathId(id): PathId,
    trace: Trace,
    JsonObject(body): JsonObject,
) -> Result<Json<Value>, Problem> {
    decide(&api, &who, id, &trace, (Decision::Approve, &body)).await
}

/// POST /api/treasury/trades/{id}/cancel {reason}: {success, trade_id, status, event_id}.
pub(super) async fn cancel(
    State(api): State<Api>,
    Allowed { who, .. }: Allowed<TreasuryApprove>,
    PathId(id): PathId,
    trace: Trace,
    JsonObject(body): JsonObject,
) -> Result<Json<Value>, Problem> {
    decide(&api, &who, id, &trace, (Decision::Cancel, &body)).await
}

async fn decide(
    api: &Api,
    who: &Principal,
    id: Uuid,
    trace: &Trace,
    (decision, body): (Decision, &Map<String, Value>),
) -> Result<Json<Value>, Problem> {
    let caller = trace.caller(&who.user);
    let (trade, event_id) = api
        .command(&who.tenant, |mut tx| async move {
            let done = decision::decide(&mut tx, caller, id, decision, body).await?;
            Ok((tx, done))
        })
        .await?;
    Ok(Json(
        json!({"success": true, "trade_id": trade.trade_id, "status": trade.state, "event_id": event_id}),
    ))
}

/// Whether the caller may see another user's trades.
fn sees_all(who: &Principal) -> bool {
    who.may(TreasuryApprove::NAME)
}

/// GET /api/treasury/trades/{id}?after=&wait=: {data}.
pub(super) async fn one(
    State(api): State<Api>,
    Allowed { who, .. }: Allowed<TreasuryRead>,
    PathId(id): PathId,
    params: Params,
) -> Result<Json<Value>, Problem> {
    After::of(&params)?.wait(&api, &who.tenant, &MODEL).await?;
    let mut tx = api.db.tenant(&who.tenant).await?;
    let trade = trade::get(&mut tx, id).await?;
    tx.commit().await?;
    if trade.user_id != who.user && !sees_all(&who) {
        return Err(Problem::not_found());
    }
    Ok(Json(json!({"data": trade})))
}

/// GET /api/treasury/trades?user_id=&state=&trade_type=&from=&to=&limit=&cursor=&after=&wait=: {data, next}; as CSV the
/// whole of it, up to 10,000 rows, with a `Link` to the rest.
pub(super) async fn list(
    State(api): State<Api>,
    Allowed { who, .. }: Allowed<TreasuryRead>,
    headers: HeaderMap,
    params: Params,
) -> Result<Response, Problem> {
    let user = account_of(&who, &params)?;
    let format = Format::of(&params, &headers)?;
    let limit = match format {
        Format::Csv if params.text("limit")?.is_none() => MOST_EXPORTED,
        _ => params.limit(DEFAULT_LIMIT)?,
    };
    let after_row: Option<Uuid> = params.cursor()?;
    let time = "must be a time in RFC 3339";
    let filter = Filter {
        state: params.one_of("state", TradeState::NAMES)?,
        trade_type: params.one_of("trade_type", TradeType::NAMES)?,
        from: params.parsed::<DateTime<Utc>>("from", time)?,
        to: params.parsed::<DateTime<Utc>>("to", time)?,
    };
    After::of(&params)?.wait(&api, &who.tenant, &MODEL).await?;
    let mut tx = api.db.tenant(&who.tenant).await?;
    let mut rows = trade::list(&mut tx, &user, filter, after_row, limit as i64 + 1).await?;
    tx.commit().await?;
    if format == Format::Json {
        return Ok(Json(Page::new(rows, limit, |trade| trade.trade_id.to_string())).into_response());
    }
    let more = rows.len() > limit;
    rows.truncate(limit);
    let last = rows.last().filter(|_| more).map(|trade| trade.trade_id);
    let mut response = csv::table("attachment; filename=\"trades.csv\"", HEADER, rows.iter().map(cells))?;
    if let Some(link) = last.and_then(|last| HeaderValue::from_str(&rest(&user, filter, last)).ok()) {
        response.headers_mut().insert(header::LINK, link);
    }
    Ok(response)
}

/// Where the rows behind `last` are.
fn rest(user: &UserId, filter: Filter<'_>, last: Uuid) -> String {
    let mut query = format!("format=csv&user_id={user}&cursor={last}");
    let time =
        |time: Option<DateTime<Utc>>| time.map(|time| time.to_rfc3339_opts(SecondsFormat::AutoSi, true));
    for (name, value) in [
        ("state", filter.state.map(str::to_owned)),
        ("trade_type", filter.trade_type.map(str::to_owned)),
        ("from", time(filter.from)),
        ("to", time(filter.to)),
    ] {
        if let Some(value) = value {
            query.push_str(&format!("&{name}={value}"));
        }
    }
    format!("</api/treasury/trades?{query}>; rel=\"next\"")
}

fn account_of(who: &Principal, params: &Params) -> Result<UserId, Problem> {
    let refusal = "another user's trades need the scope treasury:approve";
    about(who, params.user("user_id")?, sees_all(who), refusal)
}

const HEADER: &[&str] = &[
    "trade_id",
    "user_id",
    "trade_type",
    "asset",
    "sat",
    "execution_strategy",
    "target_price_usd",
    "exchange",
    "strategy",
    "state",
    "state_reason",
    "value_usd",
    "decided_by",
    "filled_sat",
    "proceeds_usd",
    "fee_usd",
    "realised_gain_usd",
    "fills",
    "created_at",
    "filled_at",
    "notes",
];

fn cells(trade: &Trade) -> Vec<Cell> {
    vec![
        trade.trade_id.to_string().as_str().into(),
        trade.user_id.as_str().into(),
        trade.trade_type.as_str().into(),
        trade.asset.as_str().into(),
        trade.sat.into(),
        trade.execution_strategy.as_str().into(),
        trade.target_price_usd.into(),
        trade.exchange.as_str().into(),
        trade.strategy.as_deref().into(),
        trade.state.as_str().into(),
        trade.state_reason.as_deref().into(),
        trade.value_usd.into(),
        trade.decided_by.as_ref().map(UserId::as_str).into(),
        trade.filled_sat.into(),
        trade.proceeds_usd.into(),
        trade.fee_usd.into(),
        trade.realised_gain_usd.into(),
        i64::from(trade.fills).into(),
        trade.created_at.into(),
        trade.filled_at.into(),
        trade.notes.as_deref().into(),
    ]
}
