//! Owns the resource miners: its paths, bodies and answers.
//! Promises that what it answers with success is committed, with its event.
//! Called by the router.

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;
use uuid::Uuid;

use super::Api;
use super::auth::{Allowed, MinersRead, MinersWrite};
use super::csv::{Cell, Export, Format};
use super::extract::{JsonObject, Page, Params, PathId, Trace};
use super::problem::Problem;
use crate::domain::miner::{self, Miner};

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

/// GET /api/miners?owner_id=&limit=&cursor=: {data, next}; as CSV the whole of it, up to 10,000 rows, with a `Link` to the
/// rest.
pub(super) async fn list(
    State(api): State<Api>,
    Allowed { who, .. }: Allowed<MinersRead>,
    headers: HeaderMap,
    params: Params,
) -> Result<Response, Problem> {
    let owner = params.user("owner_id")?;
    let format = Format::of(&params, &headers)?;
    let limit = format.limit(&params)?;
    let after: Option<Uuid> = params.cursor()?;
    let mut tx = api.db.tenant(&who.tenant).await?;
    let rows = miner::list(&mut tx, owner.as_ref(), after, limit as i64 + 1).await?;
    tx.commit().await?;
    let page = Page::new(rows, limit, |miner| miner.miner_id.to_string());
    let asked = [("owner_id", owner.map(|owner| owner.to_string()))];
    EXPORT.answer(format, page, "/api/miners", &asked)
}

const EXPORT: Export<Miner> = Export { file: "attachment; filename=\"miners.csv\"", columns: COLUMNS, cells };

/// Those that can be set have the names under which POST /api/miners/bulk takes them.
const COLUMNS: &[&str] = &[
    "miner_id",
    "owner_id",
    "model",
    "hashrate_ths",
    "power_w",
    "quantity",
    "location",
    "purchase_price_usd",
    "electricity_cost_usd_kwh",
    "status",
    "status_reason",
    "created_at",
    "updated_at",
];

fn cells(miner: &Miner) -> Vec<Cell> {
    vec![
        miner.miner_id.to_string().as_str().into(),
        miner.owner_id.as_str().into(),
        miner.model.as_str().into(),
        miner.hashrate_ths.into(),
        miner.power_w.into(),
        i64::from(miner.quantity).into(),
        miner.location.as_deref().into(),
        miner.purchase_price_usd.into(),
        miner.electricity_cost_usd_kwh.into(),
        miner.status.0.as_str().into(),
        miner.status_reason.as_deref().into(),
        miner.created_at.into(),
        miner.updated_at.into(),
    ]
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
