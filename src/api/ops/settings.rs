//! Owns the resource settings: what a user's site allows and costs, and where its automation stands.
//! Promises that what it answers with success is committed, with its event.
//! Called by the router.

use axum::Json;
use axum::extract::State;
use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::{Value, json};

use super::{Api, user_of};
use crate::api::auth::{Allowed, OpsPlan, OpsRead};
use crate::api::extract::{JsonObject, Params, Trace};
use crate::api::problem::Problem;
use crate::domain::Input;
use crate::domain::ops::strike::{self, Automation};
use crate::domain::ops::{Settings, USER, settings};
use crate::read_model::optimum;

#[derive(Serialize)]
struct Shown {
    #[serde(flatten)]
    settings: Settings,
    automation: Option<Observing>,
}

/// Where the automation stands, and how old what it knows is.
#[derive(Serialize)]
struct Observing {
    #[serde(flatten)]
    automation: Automation,
    as_of: DateTime<Utc>,
    warnings: Vec<String>,
}

impl Observing {
    fn at(now: DateTime<Utc>, automation: Automation) -> Self {
        let as_of = automation.as_of();
        Self { automation, as_of, warnings: optimum::stale(now, Some(as_of), None) }
    }
}

/// GET /api/ops/settings?user_id=: {data}.
pub(super) async fn get(
    State(api): State<Api>,
    Allowed { who, .. }: Allowed<OpsRead>,
    params: Params,
) -> Result<Json<Value>, Problem> {
    let user = user_of(&who, params.user("user_id")?)?;
    let mut tx = api.db.tenant(&who.tenant).await?;
    let settings = settings::get(&mut tx, &user).await?;
    let automation = match (&settings.market, settings.strike_rule()) {
        (Some(market), Some(_)) => strike::get(&mut tx, &user, market).await?,
        _ => None,
    };
    tx.commit().await?;
    let automation = automation.map(|automation| Observing::at(api.db.now(), automation));
    Ok(Json(json!({"data": Shown { settings, automation }})))
}

/// PUT /api/ops/settings {user_id, market, cap_kw, ...}: {success, data, event_id}; event_id is null when nothing changed.
pub(super) async fn put(
    State(api): State<Api>,
    Allowed { who, .. }: Allowed<OpsPlan>,
    trace: Trace,
    JsonObject(body): JsonObject,
) -> Result<Json<Value>, Problem> {
    let mut input = Input::new(&body);
    let user = input.identifier(USER).value();
    input.finish().map_err(Problem::invalid)?;
    let user = user_of(&who, user)?;
    if body.contains_key(settings::TIER[0]) && !who.is_admin() {
        return Err(Problem::forbidden("what a customer has been promised is for the role admin to say"));
    }
    let (caller, body, user) = (trace.caller(&who.user), &body, &user);
    let (settings, event_id) = api
        .command(&who.tenant, |mut tx| async move {
            let done = settings::put(&mut tx, caller, user, body).await?;
            Ok((tx, done))
        })
        .await?;
    Ok(Json(json!({"success": true, "data": settings, "event_id": event_id})))
}
