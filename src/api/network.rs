//! Owns the resource network snapshots: price, difficulty, height and fees as a tenant sees them.
//! Promises that what it answers with success is committed, with its event.
//! Called by the router.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::json;

use super::Api;
use super::auth::{Allowed, OpsPlan};
use super::extract::{JsonObject, Trace};
use super::problem::Problem;
use crate::domain::network;

/// POST /api/network/snapshots: 201 {snapshot_id, event_id}.
pub(super) async fn record(
    State(api): State<Api>,
    Allowed { who, .. }: Allowed<OpsPlan>,
    trace: Trace,
    JsonObject(body): JsonObject,
) -> Result<Response, Problem> {
    let (caller, body) = (trace.caller(&who.user), &body);
    let recorded = api
        .command(&who.tenant, |mut tx| async move {
            let done = network::record(&mut tx, caller, body).await?;
            Ok((tx, done))
        })
        .await?;
    let answer = json!({"success": true, "snapshot_id": recorded.snapshot_id, "event_id": recorded.event_id});
    Ok((StatusCode::CREATED, Json(answer)).into_response())
}
