//! Owns the resource miners: its paths, bodies and answers.
//! Promises that what it answers with success is committed, with its event.
//! Called by the router.

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;
use uuid::Uuid;

use super::Api;
use super::auth::{Allowed, MinersRead, MinersWrite};
use super::extract::{DEFAULT_LIMIT, JsonObject, Page, Params, PathId, Trace};
use super::problem::Problem;
use crate::domain::miner;

/// POST /api/miners: 201 {success, miner_id, event_id, message}.
pub(super) async fn add(
    State(api): State<Api>,
    Allowed { who, .. }: Allowed<MinersWrite>,
    trace: Trace,
    JsonObject(body): JsonObject,
) -> Result<Response, Problem> {
    let (caller, body) = (trace.caller(&who.user), &body);
    let added = api
        .command(&who.tenant, |mut tx| async move {
            let done = miner::add(&mut tx, caller, body).await?;
            Ok((tx, done))
        })
        .await?;
    let answer = json!({
        "success": true, "miner_id": added.miner_id, "event_id": added.event_id,
        "message": "the miner was added; its owner's portfolio follows",
    });
    let location = format!("/api/miners/{}", added.miner_id);
    Ok((StatusCode::CREATED, [(header::LOCATION, location)], Json(answer)).into_response())
}

/// GET /api/miners?owner_id=&limit=&cursor=: {data, next}.
pub(super) async fn list(
    State(api): State<Api>,
    Allowed { who, .. }: Allowed<MinersRead>,
    params: Params,
) -> Result<Response, Problem> {
    let owner = params.user("owner_id")?;
    let limit = params.limit(DEFAULT_LIMIT)?;
    let after: Option<Uuid> = params.cursor()?;
    let mut tx = api.db.tenant(&who.tenant).await?;
    let rows = miner::list(&mut tx, owner.as_ref(), after, limit as i64 + 1).await?;
    tx.commit().await?;
    Ok(Json(Page::new(rows, limit, |miner| miner.miner_id.to_string())).into_response())
}

/// GET /api/miners/{id}: {data}.
pub(super) async fn get(
    State(api): State<Api>,
    Allowed { who, .. }: Allowed<MinersRead>,
    PathId(id): PathId,
) -> Result<Response, Problem> {
    let mut tx = api.db.tenant(&who.tenant).await?;
    let miner = miner::get(&mut tx, id).await?;
    tx.commit().await?;
    Ok(Json(json!({"data": miner})).into_response())
}

/// PATCH /api/miners/{id}: {success, miner_id, event_id}; event_id is null when nothing changed.
pub(super) async fn update(
    State(api): State<Api>,
    Allowed { who, .. }: Allowed<MinersWrite>,
    PathId(id): PathId,
    trace: Trace,
    JsonObject(body): JsonObject,
) -> Result<Response, Problem> {
    let (caller, body) = (trace.caller(&who.user), &body);
    let changed = api
        .command(&who.tenant, |mut tx| async move {
            let done = miner::update(&mut tx, caller, id, body).await?;
            Ok((tx, done))
        })
        .await?;
    Ok(Json(json!({"success": true, "miner_id": id, "event_id": changed.event_id})).into_response())
}

/// PATCH /api/miners/{id}/status: {success, miner_id, old_status, new_status, event_id}.
pub(super) async fn change_status(
    State(api): State<Api>,
    Allowed { who, .. }: Allowed<MinersWrite>,
    PathId(id): PathId,
    trace: Trace,
    JsonObject(body): JsonObject,
) -> Result<Response, Problem> {
    let (caller, body) = (trace.caller(&who.user), &body);
    let changed = api
        .command(&who.tenant, |mut tx| async move {
            let done = miner::change_status(&mut tx, caller, id, body).await?;
            Ok((tx, done))
        })
        .await?;
    let answer = json!({
        "success": true, "miner_id": id, "old_status": changed.old_status, "new_status": changed.new_status,
        "event_id": changed.event_id,
    });
    Ok(Json(answer).into_response())
}

/// DELETE /api/miners/{id}: {success, miner_id, event_id}; the miner is not found afterwards.
pub(super) async fn remove(
    State(api): State<Api>,
    Allowed { who, .. }: Allowed<MinersWrite>,
    PathId(id): PathId,
    trace: Trace,
) -> Result<Response, Problem> {
    let caller = trace.caller(&who.user);
    let removed = api
        .command(&who.tenant, |mut tx| async move {
            let done = miner::remove(&mut tx, caller, id).await?;
            Ok((tx, done))
        })
        .await?;
    Ok(Json(json!({"success": true, "miner_id": id, "event_id": removed.event_id})).into_response())
}

/// POST /api/miners/sync: 202 {success, user_id, event_id}.
pub(super) async fn sync(
    State(api): State<Api>,
    Allowed { who, .. }: Allowed<MinersWrite>,
    trace: Trace,
    JsonObject(body): JsonObject,
) -> Result<Response, Problem> {
    let caller = trace.caller(&who.user);
    let user = miner::sync_user(caller, &body)?;
    if user != who.user && !who.is_admin() {
        return Err(Problem::forbidden("syncing another user's portfolio needs the role admin"));
    }
    let user = &user;
    let event_id = api
        .command(&who.tenant, |mut tx| async move {
            let done = miner::request_sync(&mut tx, caller, user).await?;
            Ok((tx, done))
        })
        .await?;
    let answer = json!({"success": true, "user_id": user, "event_id": event_id});
    Ok((StatusCode::ACCEPTED, Json(answer)).into_response())
}
