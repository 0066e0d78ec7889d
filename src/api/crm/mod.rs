//! Owns the resources of the CRM: one shape for leads, accounts, deals, contracts, invoices, payments, tickets, assets.
//! Promises that what it answers with success is committed, with its events.
//! Called by the router.

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, patch, post};
use axum::{Json, Router};
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::Api;
use super::auth::{Allowed, CrmRead, CrmWrite};
use super::extract::{DEFAULT_LIMIT, JsonObject, Page, Params, PathId, Trace};
use super::problem::Problem;
use super::token::Principal;
use crate::domain::crm::account::PORTFOLIO_USER;
use crate::domain::crm::{
    self, Account, Asset, Contract, Deal, Done, Entity, Filter, Invoice, Lead, Mutable, Payment, Stateful,
    Ticket,
};

mod account;

/// The routes under /api/crm/.
pub(super) fn routes() -> Router<Api> {
    Router::new()
        .merge(stateful::<Lead>())
        .merge(accounts())
        .merge(stateful::<Deal>())
        .merge(stateful::<Contract>())
        .merge(stateful::<Invoice>())
        .merge(fact::<Payment>())
        .merge(stateful::<Ticket>())
        .merge(stateful::<Asset>())
}

/// Made, listed and read.
fn fact<E: Entity>() -> Router<Api> {
    Router::new()
        .route(&path::<E>(), get(list::<E>).post(create::<E>))
        .route(&format!("{}/{{id}}", path::<E>()), get(one::<E>))
}

/// As [`mutable`], with the read model beside the record.
fn accounts() -> Router<Api> {
    Router::new()
        .route(&path::<Account>(), get(list::<Account>).post(create::<Account>))
        .route(&format!("{}/{{id}}", path::<Account>()), get(account::get).patch(update::<Account>))
}

/// And changed.
fn mutable<E: Mutable>() -> Router<Api> {
    fact::<E>().route(&format!("{}/{{id}}", path::<E>()), patch(update::<E>))
}

/// And moved from state to state.
fn stateful<E: Mutable + Stateful>() -> Router<Api> {
    mutable::<E>().route(&format!("{}/{{id}}/transitions", path::<E>()), post(transition::<E>))
}

fn path<E: Entity>() -> String {
    format!("/api/crm/{}", E::PATH)
}

/// POST /api/crm/{entity}: 201 {success, {entity}_id, event_id, events, ...}, Location.
async fn create<E: Entity>(
    State(api): State<Api>,
    Allowed { who, .. }: Allowed<CrmWrite>,
    trace: Trace,
    JsonObject(body): JsonObject,
) -> Result<Response, Problem> {
    may_name_user(&who, &body)?;
    let (caller, body) = (trace.caller(&who.user), &body);
    let done = api
        .command(&who.tenant, |mut tx| async move {
            let done = E::create(&mut tx, caller, body).await?;
            Ok((tx, done))
        })
        .await?;
    let location = format!("{}/{}", path::<E>(), done.id);
    Ok((StatusCode::CREATED, [(header::LOCATION, location)], Json(answer::<E>(done))).into_response())
}

/// GET /api/crm/{entity}?state=&account_id=&limit=&cursor=: {data, next}.
async fn list<E: Entity>(
    State(api): State<Api>,
    Allowed { who, .. }: Allowed<CrmRead>,
    params: Params,
) -> Result<Response, Problem> {
    let limit = params.limit(DEFAULT_LIMIT)?;
    let after: Option<Uuid> = params.cursor()?;
    let account_id = params.parsed("account_id", "must be the id of an account")?;
    let state = if E::STATES.is_empty() { None } else { params.one_of("state", E::STATES)? };
    let mut tx = api.db.tenant(&who.tenant).await?;
    let rows: Vec<E> = crm::list(&mut tx, Filter { state, account_id }, after, limit as i64 + 1).await?;
    tx.commit().await?;
    Ok(Json(Page::new(rows, limit, |row| row.id().to_string())).into_response())
}

/// GET /api/crm/{entity}/{id}: {data}.
async fn one<E: Entity>(
    State(api): State<Api>,
    Allowed { who, .. }: Allowed<CrmRead>,
    PathId(id): PathId,
) -> Result<Response, Problem> {
    let mut tx = api.db.tenant(&who.tenant).await?;
    let found: E = crm::get(&mut tx, id).await?;
    tx.commit().await?;
    Ok(Json(json!({"data": found})).into_response())
}

/// PATCH /api/crm/{entity}/{id}: {success, {entity}_id, event_id, events}; event_id is null when nothing changed.
async fn update<E: Mutable>(
    State(api): State<Api>,
    Allowed { who, .. }: Allowed<CrmWrite>,
    PathId(id): PathId,
    trace: Trace,
    JsonObject(body): JsonObject,
) -> Result<Response, Problem> {
    let (caller, body) = (trace.caller(&who.user), &body);
    let done = api
        .command(&who.tenant, |mut tx| async move {
            let done = E::update(&mut tx, caller, id, body).await?;
            Ok((tx, done))
        })
        .await?;
    Ok(Json(answer::<E>(done)).into_response())
}

/// POST /api/crm/{entity}/{id}/transitions {to, reason, ...}: {success, {entity}_id, event_id, events, ...}.
async fn transition<E: Stateful>(
    State(api): State<Api>,
    Allowed { who, .. }: Allowed<CrmWrite>,
    PathId(id): PathId,
    trace: Trace,
    JsonObject(body): JsonObject,
) -> Result<Response, Problem> {
    may_name_user(&who, &body)?;
    let (caller, body) = (trace.caller(&who.user), &body);
    let done = api
        .command(&who.tenant, |mut tx| async move {
            let done = E::transition(&mut tx, caller, id, body).await?;
            Ok((tx, done))
        })
        .await?;
    Ok(Json(answer::<E>(done)).into_response())
}

fn answer<E: Entity>(done: Done) -> Map<String, Value> {
    let event_id = done.event_id();
    let mut answer = done.more;
    answer.insert("success".to_owned(), json!(true));
    answer.insert(format!("{}_id", E::NAME), json!(done.id));
    answer.insert("event_id".to_owned(), json!(event_id));
    answer.insert("events".to_owned(), json!(done.events));
    answer
}

/// Whoever reads an account reads the portfolio behind it, and deploys machines into it: naming another user's needs
/// the role admin, as reading it does.
fn may_name_user(who: &Principal, body: &Map<String, Value>) -> Result<(), Problem> {
    match body.get(PORTFOLIO_USER) {
        None | Some(Value::Null) => Ok(()),
        Some(_) if who.is_admin() => Ok(()),
        Some(user) if user == who.user.as_str() => Ok(()),
        Some(_) => Err(Problem::forbidden("naming another user's portfolio needs the role admin")),
    }
}
