//! Owns the resource plans: made of an optimum or of a cut, read, approved, stopped, cancelled.
//! Promises that what it answers with success is committed, with its events.
//! Called by the router.

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::optimum;
use super::{Api, user_of};
use crate::api::auth::{Allowed, OpsPlan, OpsRead};
use crate::api::extract::{DEFAULT_LIMIT, JsonObject, Page, Params, PathId, Trace};
use crate::api::problem::Problem;
use crate::api::token::Principal;
use crate::domain::ops::cut::{self, Request};
use crate::domain::ops::plan::{self, Changed, Filter, NewPlan, PlanKind, PlanRow};
use crate::domain::ops::{Plan, USER};
use crate::domain::{CommandError, FieldError, Input};
use crate::economics::curtailment::PlanStatus;
use crate::identifier::UserId;
use crate::read_model::optimum::Optimum;

#[derive(Serialize)]
struct Shown {
    #[serde(flatten)]
    plan: Plan,
    rows: Vec<PlanRow>,
}

/// POST /api/ops/plans {kind: optimum | cut, ...}: 201 {success, plan_id, status, event_id, warnings}, Location.
pub(super) async fn create(
    State(api): State<Api>,
    Allowed { who, .. }: Allowed<OpsPlan>,
    trace: Trace,
    JsonObject(body): JsonObject,
) -> Result<Response, Problem> {
    let mut input = Input::new(&body);
    let kind = input.text(&["kind"], 20);
    let kind = input.required(&["kind"], kind);
    if kind.as_deref().is_some_and(|kind| kind != "optimum" && kind != "cut") {
        input.refuse("kind", "must be one of optimum, cut");
    }
    input.finish().map_err(Problem::invalid)?;
    let new = if kind.as_deref() == Some("cut") {
        of_cut(&api, &who, &trace, &body).await?
    } else {
        let (user, optimum) = optimum::of_request(&api, &who, &trace, &body).await?;
        of_optimum(user, optimum)?
    };
    let (caller, new) = (trace.caller(&who.user), &new);
    let done = api
        .command(&who.tenant, |mut tx| async move {
            let done = plan::create(&mut tx, caller, new).await?;
            Ok((tx, done))
        })
        .await?;
    let location = format!("/api/ops/plans/{}", done.plan_id);
    let Json(mut answer) = answer(done);
    answer["warnings"] = new.detail["warnings"].clone();
    Ok((StatusCode::CREATED, [(header::LOCATION, location)], Json(answer)).into_response())
}

/// An optimum as a plan; without rows it is none, and its warnings say why.
fn of_optimum(owner: UserId, optimum: Optimum) -> Result<NewPlan, Problem> {
    if optimum.rows.0.is_empty() {
        let detail = format!("there is no schedule: {}", optimum.warnings.0.join(", "));
        return Err(CommandError::Rule { rule: "no-schedule", detail }.into());
    }
    let count = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    let rows = optimum.rows.0.iter().map(|row| PlanRow {
        starts_at: row.start,
        seconds: i32::try_from(row.seconds).unwrap_or(i32::MAX),
        miners_online: count(row.miners_online),
        miners_offline: count(row.miners_offline),
        kw: row.kw,
        price_usd_mwh: Some(row.price_usd_mwh),
        power_cost_usd: Some(row.power_cost_usd),
        revenue_usd: Some(row.revenue_usd),
        start_cost_usd: Some(row.start_cost_usd),
        is_peak: Some(row.is_peak),
    });
    let (rows, value_usd) = (rows.collect(), optimum.value_usd);
    let mut detail = json!(optimum);
    // They are rows of their own.
    if let Some(detail) = detail.as_object_mut() {
        detail.remove("rows");
    }
    Ok(NewPlan { owner, kind: PlanKind::Optimum, all_users: false, rows, value_usd, detail })
}

/// A cut of one user's machines, or, for an admin with `all_users`, of everybody's.
async fn of_cut(
    api: &Api,
    who: &Principal,
    trace: &Trace,
    body: &Map<String, Value>,
) -> Result<NewPlan, Problem> {
    let mut input = Input::new(body);
    let user = input.identifier(USER).value();
    input.finish().map_err(Problem::invalid)?;
    let named = user.is_some();
    let user = user_of(who, user)?;
    let caller = trace.caller(&who.user);
    let request = Request::read(caller, body).map_err(Problem::invalid)?;
    if request.all_users() && !who.is_admin() {
        return Err(Problem::forbidden("the machines of other users need the role admin"));
    }
    if request.all_users() && named {
        let message = "must not be given with all_users: leave it out, or leave all_users out to cut one user's machines";
        return Err(Problem::invalid(vec![FieldError::new(USER[0], message)]));
    }
    let mut tx = api.db.tenant(&who.tenant).await?;
    let running = cut::running(&mut tx, &request, &user, caller.now).await?;
    tx.commit().await?;
    let pue = api.site_defaults.pue;
    Ok(api.compute(move || request.plan(user, &running, pue)).await??)
}

/// GET /api/ops/plans?user_id=&status=&limit=&cursor=: {data, next}; of the caller, for an admin of everybody. Without the
/// parts of their `detail` that can be large.
pub(super) async fn list(
    State(api): State<Api>,
    Allowed { who, .. }: Allowed<OpsRead>,
    params: Params,
) -> Result<Response, Problem> {
    let named = params.user("user_id")?;
    let owner = if named.is_none() && who.is_admin() { None } else { Some(user_of(&who, named)?) };
    let names = PlanStatus::ALL.map(PlanStatus::as_str).join(", ");
    let status: Option<PlanStatus> = params.parsed("status", &format!("must be one of {names}"))?;
    let limit = params.limit(DEFAULT_LIMIT)?;
    let after: Option<Uuid> = params.cursor()?;
    let mut tx = api.db.tenant(&who.tenant).await?;
    let filter = Filter { owner: owner.as_ref(), status, all_users: who.is_admin() };
    let plans = plan::list(&mut tx, filter, after, limit as i64 + 1).await?;
    tx.commit().await?;
    Ok(Json(Page::new(plans, limit, |plan| plan.plan_id.to_string())).into_response())
}

/// GET /api/ops/plans/{id}: {data}, with its rows.
pub(super) async fn one(
    State(api): State<Api>,
    Allowed { who, .. }: Allowed<OpsRead>,
    PathId(id): PathId,
) -> Result<Json<Value>, Problem> {
    let mut tx = api.db.tenant(&who.tenant).await?;
    let plan = plan::get(&mut tx, id).await?;
    if !plan.is_seen_by(&who.user) && !who.is_admin() {
        return Err(Problem::not_found());
    }
    let rows = plan::rows(&mut tx, id).await?;
    tx.commit().await?;
    Ok(Json(json!({"data": Shown { plan, rows }})))
}

/// POST /api/ops/plans/{id}/approve {reason}: {success, plan_id, status, event_id}.
pub(super) async fn approve(
    api: State<Api>,
    allowed: Allowed<OpsPlan>,
    id: PathId,
    trace: Trace,
    body: JsonObject,
) -> Result<Json<Value>, Problem> {
    decide(api, allowed, id, trace, body, PlanStatus::Approved).await
}

/// POST /api/ops/plans/{id}/stop {reason}: the miners of a plan that executes come back.
pub(super) async fn stop(
    api: State<Api>,
    allowed: Allowed<OpsPlan>,
    id: PathId,
    trace: Trace,
    body: JsonObject,
) -> Result<Json<Value>, Problem> {
    decide(api, allowed, id, trace, body, PlanStatus::RecoveryPending).await
}

/// POST /api/ops/plans/{id}/cancel {reason}.
pub(super) async fn cancel(
    api: State<Api>,
    allowed: Allowed<OpsPlan>,
    id: PathId,
    trace: Trace,
    body: JsonObject,
) -> Result<Json<Value>, Problem> {
    decide(api, allowed, id, trace, body, PlanStatus::Cancelled).await
}

async fn decide(
    State(api): State<Api>,
    Allowed { who, .. }: Allowed<OpsPlan>,
    PathId(id): PathId,
    trace: Trace,
    JsonObject(body): JsonObject,
    to: PlanStatus,
) -> Result<Json<Value>, Problem> {
    let of = (!who.is_admin()).then_some(&who.user);
    let (caller, body) = (trace.caller(&who.user), &body);
    let done = api
        .command(&who.tenant, |mut tx| async move {
            let done = plan::decide(&mut tx, caller, of, id, to, body).await?;
            Ok((tx, done))
        })
        .await?;
    Ok(answer(done))
}

fn answer(done: Changed) -> Json<Value> {
    let Changed { plan_id, status, event_id } = done;
    Json(json!({"success": true, "plan_id": plan_id, "status": status, "event_id": event_id}))
}
