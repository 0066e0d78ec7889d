//! Owns the resource of webhooks: where a tenant has the CRM's events delivered.
//! Promises that a secret is in the answer that makes it, and in no other.
//! Called by the router.

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use secrecy::ExposeSecret;
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::Api;
use super::auth::{Allowed, CrmRead, CrmWrite, Scope};
use super::extract::{DEFAULT_LIMIT, JsonObject, Page, Params, PathId, Trace};
use super::problem::Problem;
use super::token::Principal;
use crate::domain::webhook::{self, DELIVERY_STATES, Delivery, Endpoint, Written};

/// The routes under /api/webhooks.
pub(super) fn routes() -> Router<Api> {
    Router::new()
        .route("/api/webhooks", get(list).post(add))
        .route("/api/webhooks/{id}", get(one).patch(update).delete(remove))
        .route("/api/webhooks/{id}/rotate", post(rotate))
        .route("/api/webhooks/{id}/deliveries", get(deliveries))
        .route("/api/webhooks/deliveries/{id}/redeliver", post(redeliver))
}

/// POST /api/webhooks {url, description}: 201 {success, webhook_id, event_id, secret}, Location.
async fn add(
    State(api): State<Api>,
    Allowed { who, .. }: Allowed<CrmWrite>,
    trace: Trace,
    JsonObject(body): JsonObject,
) -> Result<Response, Problem> {
    may_read(&who)?;
    let (caller, api, body) = (trace.caller(&who.user), &api, &body);
    let written = api
        .command(&who.tenant, |mut tx| async move {
            let rules = (api.vault.as_deref(), &*api.webhook_hosts);
            let written = webhook::add(&mut tx, caller, rules, body).await?;
            Ok((tx, written))
        })
        .await?;
    let location = format!("/api/webhooks/{}", written.webhook_id);
    Ok((StatusCode::CREATED, [(header::LOCATION, location)], Json(answer(written))).into_response())
}

/// GET /api/webhooks?limit=&cursor=: {data, next}.
async fn list(
    State(api): State<Api>,
    Allowed { who, .. }: Allowed<CrmRead>,
    params: Params,
) -> Result<Response, Problem> {
    let limit = params.limit(DEFAULT_LIMIT)?;
    let after: Option<Uuid> = params.cursor()?;
    let mut tx = api.db.tenant(&who.tenant).await?;
    let rows = webhook::list(&mut tx, after, limit as i64 + 1).await?;
    tx.commit().await?;
    Ok(Json(Page::new(rows, limit, |row: &Endpoint| row.webhook_id.to_string())).into_response())
}

/// GET /api/webhooks/{id}: {data}.
async fn one(
    State(api): State<Api>,
    Allowed { who, .. }: Allowed<CrmRead>,
    PathId(id): PathId,
) -> Result<Json<Value>, Problem> {
    let mut tx = api.db.tenant(&who.tenant).await?;
    let found = webhook::get(&mut tx, id).await?;
    tx.commit().await?;
    Ok(Json(json!({"data": found})))
}

/// PATCH /api/webhooks/{id} {url, description, enabled}: {success, webhook_id, event_id}; event_id is null when nothing
/// changed.
async fn update(
    State(api): State<Api>,
    Allowed { who, .. }: Allowed<CrmWrite>,
    PathId(id): PathId,
    trace: Trace,
    JsonObject(body): JsonObject,
) -> Result<Response, Problem> {
    may_read(&who)?;
    let (caller, hosts, body) = (trace.caller(&who.user), &*api.webhook_hosts, &body);
    let written = api
        .command(&who.tenant, |mut tx| async move {
            let written = webhook::update(&mut tx, caller, hosts, id, body).await?;
            Ok((tx, written))
        })
        .await?;
    Ok(Json(answer(written)).into_response())
}

/// DELETE /api/webhooks/{id}: {success, webhook_id, event_id}.
async fn remove(
    State(api): State<Api>,
    Allowed { who, .. }: Allowed<CrmWrite>,
    PathId(id): PathId,
    trace: Trace,
) -> Result<Response, Problem> {
    let caller = trace.caller(&who.user);
    let written = api
        .command(&who.tenant, |mut tx| async move {
            let written = webhook::remove(&mut tx, caller, id).await?;
            Ok((tx, written))
        })
        .await?;
    Ok(Json(answer(written)).into_response())
}

/// POST /api/webhooks/{id}/rotate {overlap_hours}: {success, webhook_id, event_id, secret}.
async fn rotate(
    State(api): State<Api>,
    Allowed { who, .. }: Allowed<CrmWrite>,
    PathId(id): PathId,
    trace: Trace,
    JsonObject(body): JsonObject,
) -> Result<Response, Problem> {
    may_read(&who)?;
    let (caller, vault, body) = (trace.caller(&who.user), api.vault.as_deref(), &body);
    let written = api
        .command(&who.tenant, |mut tx| async move {
            let written = webhook::rotate(&mut tx, caller, vault, id, body).await?;
            Ok((tx, written))
        })
        .await?;
    Ok(Json(answer(written)).into_response())
}

/// GET /api/webhooks/{id}/deliveries?state=&limit=&cursor=: {data, next}, those of the newest events first.
async fn deliveries(
    State(api): State<Api>,
    Allowed { who, .. }: Allowed<CrmRead>,
    PathId(id): PathId,
    params: Params,
) -> Result<Response, Problem> {
    let limit = params.limit(DEFAULT_LIMIT)?;
    let after: Option<Uuid> = params.cursor()?;
    let state = params.one_of("state", DELIVERY_STATES)?;
    let mut tx = api.db.tenant(&who.tenant).await?;
    webhook::get(&mut tx, id).await?;
    let rows = webhook::deliveries(&mut tx, id, state, after, limit as i64 + 1).await?;
    tx.commit().await?;
    Ok(Json(Page::new(rows, limit, |row: &Delivery| row.event_id.to_string())).into_response())
}

/// POST /api/webhooks/deliveries/{id}/redeliver: 202 {success, delivery_id, event_id of what is delivered}.
async fn redeliver(
    State(api): State<Api>,
    Allowed { who, .. }: Allowed<CrmWrite>,
    PathId(id): PathId,
    trace: Trace,
) -> Result<Response, Problem> {
    let caller = trace.caller(&who.user);
    let event_id = api
        .command(&who.tenant, |mut tx| async move {
            let event_id = webhook::redeliver(&mut tx, caller, id).await?;
            Ok((tx, event_id))
        })
        .await?;
    let answer = json!({"success": true, "delivery_id": id, "event_id": event_id});
    Ok((StatusCode::ACCEPTED, Json(answer)).into_response())
}

/// What is delivered is what the scope for reading shows: whoever says where it goes needs that one, too.
fn may_read(who: &Principal) -> Result<(), Problem> {
    if who.may(CrmRead::NAME) {
        return Ok(());
    }
    Err(Problem::forbidden(format!("the scope {} is required as well", CrmRead::NAME)))
}

fn answer(written: Written) -> Map<String, Value> {
    let mut answer = Map::new();
    answer.insert("success".to_owned(), json!(true));
    answer.insert("webhook_id".to_owned(), json!(written.webhook_id));
    answer.insert("event_id".to_owned(), json!(written.event_id));
    if let Some(secret) = written.secret {
        answer.insert("secret".to_owned(), json!(secret.text().expose_secret()));
    }
    answer
}
