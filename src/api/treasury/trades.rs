//! Owns the resource trades.
//! Promises that a trade is shown to its account, to whoever decides trades, and to an admin, and to nobody else.
//! Called by the router.

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, SecondsFormat, Utc};
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::MODEL;
use crate::api::Api;
use crate::api::auth::{Allowed, Scope, TreasuryApprove, TreasuryRead, TreasuryTrade, about};
use crate::api::csv::{Cell, Export, Format};
use crate::api::extract::{JsonObject, Page, Params, PathId, Trace};
use crate::api::problem::Problem;
use crate::api::token::Principal;
use crate::api::visible::After;
use crate::domain::machine::State as _;
use crate::domain::treasury::decision::{self, Decision};
use crate::domain::treasury::order;
use crate::domain::treasury::trade::{self, Filter, Trade, TradeState, TradeType};
use crate::identifier::UserId;

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

/// The `user_id` that names every user; no user is called so.
const EVERYBODY: &str = "*";

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
/// whole of it, up to 10,000 rows, with a `Link` to the rest. `user_id=*` are all users of the tenant.
pub(super) async fn list(
    State(api): State<Api>,
    Allowed { who, .. }: Allowed<TreasuryRead>,
    headers: HeaderMap,
    params: Params,
) -> Result<Response, Problem> {
    let user = whose(&who, &params)?;
    let format = Format::of(&params, &headers)?;
    let limit = format.limit(&params)?;
    let after_row: Option<Uuid> = params.cursor()?;
    let filter = Filter {
        state: params.one_of("state", TradeState::NAMES)?,
        trade_type: params.one_of("trade_type", TradeType::NAMES)?,
        from: params.time("from")?,
        to: params.time("to")?,
    };
    After::of(&params)?.wait(&api, &who.tenant, &MODEL).await?;
    let mut tx = api.db.tenant(&who.tenant).await?;
    let rows = trade::list(&mut tx, user.as_ref(), filter, after_row, limit as i64 + 1).await?;
    tx.commit().await?;
    let page = Page::new(rows, limit, |trade| trade.trade_id.to_string());
    let time =
        |time: Option<DateTime<Utc>>| time.map(|time| time.to_rfc3339_opts(SecondsFormat::AutoSi, true));
    let asked = [
        ("user_id", Some(user.map_or_else(|| EVERYBODY.to_owned(), |user| user.to_string()))),
        ("state", filter.state.map(str::to_owned)),
        ("trade_type", filter.trade_type.map(str::to_owned)),
        ("from", time(filter.from)),
        ("to", time(filter.to)),
    ];
    EXPORT.answer(format, page, "/api/treasury/trades", &asked)
}

/// The account whose trades are listed; none: all of them, for whoever decides.
fn whose(who: &Principal, params: &Params) -> Result<Option<UserId>, Problem> {
    let refusal = "another user's trades need the scope treasury:approve";
    if params.text("user_id")? == Some(EVERYBODY) {
        return if sees_all(who) { Ok(None) } else { Err(Problem::forbidden(refusal)) };
    }
    about(who, params.user("user_id")?, sees_all(who), refusal).map(Some)
}

const EXPORT: Export<Trade> = Export { file: "attachment; filename=\"trades.csv\"", columns: COLUMNS, cells };

const COLUMNS: &[&str] = &[
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
