//! Owns the resource power prices: intervals of a market as they are received.
//! Promises that a bad row is named by its number and keeps no other out.
//! Called by the router.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::Api;
use crate::api::auth::{Allowed, OpsPlan};
use crate::api::extract::{JsonObject, Trace};
use crate::api::problem::Problem;
use crate::domain::ops::price::{self, MOST_ROWS};

/// POST /api/ops/prices, {market, prices: [{start, seconds, price_usd_mwh}]}: 201 {success, market, total_count,
/// accepted_count, failed_count, received_at, event_id, errors}.
pub(super) async fn receive(
    State(api): State<Api>,
    Allowed { who, .. }: Allowed<OpsPlan>,
    trace: Trace,
    JsonObject(body): JsonObject,
) -> Result<Response, Problem> {
    if body.get("prices").and_then(Value::as_array).is_some_and(|rows| rows.len() > MOST_ROWS) {
        return Err(Problem::too_many_rows(MOST_ROWS));
    }
    let (caller, body) = (trace.caller(&who.user), &body);
    let received = api
        .command(&who.tenant, |mut tx| async move {
            let done = price::receive(&mut tx, caller, body).await?;
            Ok((tx, done))
        })
        .await?;
    let answer = json!({
        "success": true, "market": received.market, "total_count": received.total_count,
        "accepted_count": received.accepted_count,
        "failed_count": received.total_count - received.accepted_count, "received_at": received.received_at,
        "event_id": received.event_id, "errors": received.errors,
    });
    Ok((StatusCode::CREATED, Json(answer)).into_response())
}
