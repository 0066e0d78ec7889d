//! Owns what a plan tells about machines: which are to be off from now on, and that it has let them go.
//! Promises one event for each user whose machines it has, with that user's figures.
//! Called by the files of this folder, after the state of the plan is stored.

use chrono::{DateTime, Utc};
use rust_decimal::Decimal;
use serde::Deserialize;
use serde_json::{Value, json};
use uuid::Uuid;

use super::{Plan, PlanKind, PlanRow};
use crate::db::TenantTx;
use crate::domain::ops::curtailment;
use crate::domain::{Caller, CommandError};
use crate::identifier::UserId;

/// Whether a group of the plan $1 runs at $2 and not at $3, or the other way round.
const GROUPS_DIFFER: &str = "select exists (select from ops_plan p, jsonb_array_elements(p.detail -> 'groups') g \
     where p.id = $1 and \
       exists (select from jsonb_array_elements(g -> 'runs') r \
         where (r ->> 'from')::timestamptz <= $2 and (r ->> 'to')::timestamptz > $2) <> \
       exists (select from jsonb_array_elements(g -> 'runs') r \
         where (r ->> 'from')::timestamptz <= $3 and (r ->> 'to')::timestamptz > $3))";

/// How many machines of each class are off at $2 by the plan $1.
const CLASSES_OFF: &str = "select coalesce(jsonb_agg(to_jsonb(o) order by o.class), '[]') from ( \
       select (g ->> 'class')::int as class, g ->> 'model' as model, sum((g ->> 'miners')::bigint)::bigint as miners \
       from ops_plan p, jsonb_array_elements(p.detail -> 'groups') g \
       where p.id = $1 and not exists (select from jsonb_array_elements(g -> 'runs') r \
         where (r ->> 'from')::timestamptz <= $2 and (r ->> 'to')::timestamptz > $2) \
       group by 1, 2) o";

/// A user's part of a cut, as the plan's detail has it.
#[derive(Deserialize)]
struct Part {
    customer: UserId,
    power_kw: Decimal,
    cut_kw: Decimal,
    /// Not told by plans of an earlier release.
    miners_offline: Option<i64>,
}

/// Whether other machines are off in a row than were in the row that was told.
pub(super) async fn is_news(
    tx: &mut TenantTx,
    plan: Uuid,
    told: DateTime<Utc>,
    row: &PlanRow,
) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar(GROUPS_DIFFER).bind(plan).bind(told).bind(row.starts_at).fetch_one(tx.conn()).await
}

/// Tells that the machines of a row are to be off from now on, and no others of the plan.
pub(super) async fn off(
    tx: &mut TenantTx,
    caller: Caller<'_>,
    plan: &Plan,
    row: &PlanRow,
) -> Result<(), CommandError> {
    if plan.all_users {
        for part in parts(plan)? {
            let mut data = data(plan, &part.customer);
            data["miners_offline"] = json!(part.miners_offline);
            data["kw"] = json!((part.power_kw - part.cut_kw).normalize());
            curtailment::started(tx, caller, &part.customer, plan.plan_id.into(), data).await?;
        }
        return Ok(());
    }
    let mut data = data(plan, &plan.owner_id);
    data["miners_offline"] = json!(row.miners_offline);
    data["kw"] = json!(row.kw);
    if plan.kind == PlanKind::Optimum.as_str() {
        let off = sqlx::query_scalar(CLASSES_OFF).bind(plan.plan_id).bind(row.starts_at);
        data["classes_off"] = off.fetch_one(tx.conn()).await?;
    }
    curtailment::started(tx, caller, &plan.owner_id, plan.plan_id.into(), data).await
}

/// Tells that the plan holds no machine any more.
pub(super) async fn let_go(tx: &mut TenantTx, caller: Caller<'_>, plan: &Plan) -> Result<(), CommandError> {
    let owners = if plan.all_users {
        parts(plan)?.into_iter().map(|part| part.customer).collect()
    } else {
        vec![plan.owner_id.clone()]
    };
    for owner in owners {
        curtailment::ended(tx, caller, &owner, plan.plan_id.into(), data(plan, &owner)).await?;
    }
    Ok(())
}

fn data(plan: &Plan, owner: &UserId) -> Value {
    json!({
        "source": "plan", "plan_id": plan.plan_id, "user_id": owner, "kind": plan.kind,
        "all_users": plan.all_users,
    })
}

/// The users of whom machines go off by a cut of everybody's.
fn parts(plan: &Plan) -> Result<Vec<Part>, sqlx::Error> {
    let parts = Vec::<Part>::deserialize(&plan.detail["by_customer"]);
    let mut parts = parts.map_err(|error| sqlx::Error::Decode(Box::new(error)))?;
    parts.retain(|part| part.cut_kw > Decimal::ZERO);
    Ok(parts)
}
