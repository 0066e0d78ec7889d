//! Owns what somebody decides about a plan: approved, stopped, cancelled.
//! Promises that of two approved plans for a user's machines no moment belongs to both, and that nobody approves a plan of
//! their own making; the database refuses that as well.
//! Called by the API.

use serde_json::{Map, Value};
use uuid::Uuid;

use super::record::brief;
use super::{Changed, Excess, Move, Plan, go, recovered_at};
use crate::db::{TenantTx, serial};
use crate::domain::change::broken;
use crate::domain::input::Names;
use crate::domain::ops::settings;
use crate::domain::{Caller, CommandError, Input};
use crate::economics::curtailment::PlanStatus;
use crate::identifier::UserId;

const REASON: Names = &["reason"];
const LONGEST_REASON: usize = 500;

/// Moves a plan to `to`: approved, `recovery_pending` (stopped) or cancelled; takes `reason`. With `of` the plan must be
/// that user's, and of that user's machines only.
///
/// # Errors
/// [`CommandError::Transition`] for a move that the table does not have; [`CommandError::Rule`] `second-person` for an
/// approval by whoever made the plan, `plan-is-over`, `over-site-cap` or `plan-overlaps` for a plan that can no longer be
/// approved.
pub async fn decide(
    tx: &mut TenantTx,
    caller: Caller<'_>,
    of: Option<&UserId>,
    id: Uuid,
    to: PlanStatus,
    object: &Map<String, Value>,
) -> Result<Changed, CommandError> {
    let plan: Option<Plan> =
        sqlx::query_as(concat!("select ", brief!(), " from ops_plan where id = $1 for no key update"))
            .bind(id)
            .fetch_optional(tx.conn())
            .await?;
    let may_see = |plan: &Plan| of.is_none_or(|user| plan.is_seen_by(user));
    let plan = plan.filter(may_see).ok_or(CommandError::NotFound)?;
    let mut input = Input::new(object);
    let reason = input.text(REASON, LONGEST_REASON).value();
    input.finish().map_err(CommandError::Invalid)?;
    plan.status.0.move_to(to)?;
    let mut step = Move::to(to, reason.as_deref());
    match to {
        PlanStatus::Approved => {
            may_be_approved(tx, caller, &plan).await?;
            step.approved_by = Some(caller.actor);
        }
        PlanStatus::RecoveryPending => {
            let site = settings::get(tx, &plan.owner_id).await?;
            (step.stopped, step.recovered_at) = (true, Some(recovered_at(caller.now, &site)));
        }
        PlanStatus::Pending | PlanStatus::Executing | PlanStatus::Completed | PlanStatus::Cancelled => {}
    }
    go(tx, caller, &plan, step).await
}

async fn may_be_approved(tx: &mut TenantTx, caller: Caller<'_>, plan: &Plan) -> Result<(), CommandError> {
    if plan.created_by == *caller.actor {
        let detail = "a second person approves: not the one who made the plan, but its user or an admin";
        return Err(broken("second-person", detail));
    }
    if plan.ends_at <= caller.now {
        return Err(broken("plan-is-over", format!("the plan ended at {}", plan.ends_at)));
    }
    // Two plans approved at once would not see each other. One key a tenant: a cut of everybody's machines concerns all.
    let key = format!("ops_plan:{}", tx.tenant());
    serial::take_turn(tx.conn(), &key).await?;
    let site = settings::get(tx, &plan.owner_id).await?;
    if let Some(excess) = Excess::of(plan.peak_kw, plan.all_users, &site) {
        return Err(broken("over-site-cap", excess.to_string()));
    }
    let other: Option<Uuid> = sqlx::query_scalar(
        "select id from ops_plan where (owner_id = $1 or all_users or $5) and id <> $2 \
         and status in ('approved', 'executing') and starts_at < $4 and ends_at > $3 limit 1",
    )
    .bind(&plan.owner_id)
    .bind(plan.plan_id)
    .bind(plan.starts_at)
    .bind(plan.ends_at)
    .bind(plan.all_users)
    .fetch_optional(tx.conn())
    .await?;
    match other {
        Some(other) => Err(broken("plan-overlaps", format!("the plan {other} has part of its time"))),
        None => Ok(()),
    }
}
