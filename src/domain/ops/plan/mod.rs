//! Owns the curtailment plans: which power a user's site draws from when to when, and where the plan stands.
//! Promises that no plan beyond the cap of its site is made or approved, that a second person approves, and that rows of a
//! plan never change.
//! Called by the API; [`PlanClock`] by the runner of scheduled work.
//!
//! | file | content |
//! |---|---|
//! | `record` | what a plan is, and how it is read |
//! | `decision` | approved, stopped, cancelled by somebody |
//! | `clock` | begun, carried out and ended by the clock |
//! | `telling` | the events that say which machines are to be off |

use std::fmt;

use chrono::{DateTime, TimeDelta, Utc};
use rust_decimal::Decimal;
use serde_json::{Value, json};
use uuid::Uuid;

use super::settings::{self, Settings};
use crate::db::TenantTx;
use crate::domain::change::broken;
use crate::domain::machine::IllegalMove;
use crate::domain::{Caller, CommandError, FieldError, emit};
use crate::economics::curtailment::{MoveNotAllowed, PlanStatus};
use crate::event::kind;
use crate::identifier::UserId;

mod clock;
mod decision;
mod record;
mod telling;

pub use clock::{Advanced, PlanClock, advance};
pub use decision::decide;
pub use record::{Filter, Plan, PlanKind, PlanRow, Status, get, list, rows};

impl From<MoveNotAllowed> for CommandError {
    fn from(refused: MoveNotAllowed) -> Self {
        Self::Transition(IllegalMove {
            entity: "plan",
            from: refused.from.as_str(),
            to: refused.to.as_str(),
            allowed: refused.from.next().iter().map(|status| status.as_str()).collect(),
        })
    }
}

/// A plan to be stored.
#[derive(Debug, Clone)]
pub struct NewPlan {
    pub owner: UserId,
    pub kind: PlanKind,
    /// Whether it is a cut of everybody's machines.
    pub all_users: bool,
    /// Without gaps, in order; at least one.
    pub rows: Vec<PlanRow>,
    pub value_usd: Option<Decimal>,
    pub detail: Value,
}

/// What a command did.
#[derive(Debug, Clone, Copy)]
pub struct Changed {
    pub plan_id: Uuid,
    pub status: PlanStatus,
    pub event_id: Uuid,
}

/// Stores a plan, pending; emits `ops.plan_created`.
///
/// # Errors
/// [`CommandError::Rule`] `plan-is-empty` for one without rows, [`CommandError::Invalid`] if a row draws more than the site
/// may, or if the plan is over already.
pub async fn create(tx: &mut TenantTx, caller: Caller<'_>, new: &NewPlan) -> Result<Changed, CommandError> {
    let site = settings::get(tx, &new.owner).await?;
    let (Some(first), Some(last)) = (new.rows.first(), new.rows.last()) else {
        return Err(broken("plan-is-empty", "a plan has at least one row"));
    };
    let (starts_at, ends_at) = (first.starts_at, last.starts_at + TimeDelta::seconds(last.seconds.into()));
    if ends_at <= caller.now {
        let message = format!("must reach beyond now: the plan would have ended at {ends_at}");
        return Err(CommandError::Invalid(vec![FieldError::new(new.kind.field_of_its_end(), message)]));
    }
    let peak_kw = new.rows.iter().map(|row| row.kw).max().unwrap_or_default();
    if let Some(excess) = Excess::of(peak_kw, new.all_users, &site) {
        return Err(CommandError::Invalid(vec![excess.of_field(new.kind)]));
    }
    let plan_id = Uuid::now_v7();
    let tenant = tx.tenant().clone();
    sqlx::query(
        "insert into ops_plan (tenant_id, id, owner_id, kind, status, starts_at, ends_at, peak_kw, value_usd, detail, \
         created_by, created_at, updated_at, all_users) \
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $12, $13)",
    )
    .bind(tenant.as_str())
    .bind(plan_id)
    .bind(&new.owner)
    .bind(new.kind.as_str())
    .bind(PlanStatus::Pending.as_str())
    .bind(starts_at)
    .bind(ends_at)
    .bind(peak_kw)
    .bind(new.value_usd)
    .bind(&new.detail)
    .bind(caller.actor)
    .bind(caller.now)
    .bind(new.all_users)
    .execute(tx.conn())
    .await?;
    insert_rows(tx, plan_id, &new.rows).await?;
    let data = json!({
        "plan_id": plan_id, "user_id": new.owner, "kind": new.kind.as_str(), "all_users": new.all_users,
        "starts_at": starts_at, "ends_at": ends_at, "peak_kw": peak_kw, "value_usd": new.value_usd,
    });
    let event_id = emit(tx, caller, kind::OPS_PLAN_CREATED, &new.owner, plan_id.into(), data).await?;
    Ok(Changed { plan_id, status: PlanStatus::Pending, event_id })
}

async fn insert_rows(tx: &mut TenantTx, plan_id: Uuid, rows: &[PlanRow]) -> Result<(), sqlx::Error> {
    let tenant = tx.tenant().clone();
    fn column<T>(rows: &[PlanRow], of: impl Fn(&PlanRow) -> T) -> Vec<T> {
        rows.iter().map(of).collect()
    }
    sqlx::query(
        "insert into ops_plan_row (tenant_id, plan_id, starts_at, seconds, miners_online, miners_offline, kw, \
         price_usd_mwh, power_cost_usd, revenue_usd, start_cost_usd, is_peak) \
         select $1, $2, * from unnest($3::timestamptz[], $4::int[], $5::bigint[], $6::bigint[], $7::numeric[], \
         $8::numeric[], $9::numeric[], $10::numeric[], $11::numeric[], $12::boolean[])",
    )
    .bind(tenant.as_str())
    .bind(plan_id)
    .bind(column(rows, |r| r.starts_at))
    .bind(column(rows, |r| r.seconds))
    .bind(column(rows, |r| r.miners_online))
    .bind(column(rows, |r| r.miners_offline))
    .bind(column(rows, |r| r.kw))
    .bind(column(rows, |r| r.price_usd_mwh))
    .bind(column(rows, |r| r.power_cost_usd))
    .bind(column(rows, |r| r.revenue_usd))
    .bind(column(rows, |r| r.start_cost_usd))
    .bind(column(rows, |r| r.is_peak))
    .execute(tx.conn())
    .await
    .map(drop)
}

/// Where a plan is to go, and what goes with it.
struct Move<'a> {
    to: PlanStatus,
    reason: Option<&'a str>,
    approved_by: Option<&'a UserId>,
    stopped: bool,
    recovered_at: Option<DateTime<Utc>>,
}

impl<'a> Move<'a> {
    fn to(to: PlanStatus, reason: Option<&'a str>) -> Self {
        Self { to, reason, approved_by: None, stopped: false, recovered_at: None }
    }
}

/// Moves a plan whose row is locked, and tells of it.
async fn go(
    tx: &mut TenantTx,
    caller: Caller<'_>,
    plan: &Plan,
    to: Move<'_>,
) -> Result<Changed, CommandError> {
    let status = plan.status.0.move_to(to.to)?;
    sqlx::query(
        "update ops_plan set status = $2, status_reason = $3, approved_by = coalesce($4, approved_by), \
         stopped = stopped or $5, recovered_at = coalesce($6, recovered_at), curtailing = false, updated_at = $7 \
         where id = $1",
    )
    .bind(plan.plan_id)
    .bind(status.as_str())
    .bind(to.reason)
    .bind(to.approved_by)
    .bind(to.stopped)
    .bind(to.recovered_at)
    .bind(caller.now)
    .execute(tx.conn())
    .await?;
    let data = json!({
        "plan_id": plan.plan_id, "user_id": plan.owner_id, "kind": plan.kind, "all_users": plan.all_users,
        "from": plan.status, "to": status, "reason": to.reason, "starts_at": plan.starts_at, "ends_at": plan.ends_at,
    });
    let kind = match status {
        PlanStatus::Executing => kind::OPS_PLAN_APPLIED,
        _ => kind::OPS_PLAN_STATUS_CHANGED,
    };
    let event_id = emit(tx, caller, kind, &plan.owner_id, plan.plan_id.into(), data).await?;
    if plan.curtailing {
        telling::let_go(tx, caller, plan).await?;
    }
    Ok(Changed { plan_id: plan.plan_id, status, event_id })
}

/// What a plan draws beyond the cap of its site.
struct Excess {
    peak_kw: Decimal,
    cap_kw: Decimal,
}

impl Excess {
    /// What spans several users is measured by the cap of none.
    fn of(peak_kw: Decimal, all_users: bool, site: &Settings) -> Option<Self> {
        let cap_kw = site.cap_kw.filter(|cap_kw| !all_users && peak_kw > *cap_kw)?;
        Some(Self { peak_kw: peak_kw.normalize(), cap_kw: cap_kw.normalize() })
    }

    /// The field of a new plan that is at fault.
    fn of_field(&self, kind: PlanKind) -> FieldError {
        match kind {
            PlanKind::Optimum => {
                FieldError::new("cap_kw", format!("must be at most {}: {self}", self.cap_kw))
            }
            PlanKind::Cut => {
                let more = self.peak_kw - self.cap_kw;
                FieldError::new("target_kw", format!("must be at least {more} kW more: {self}"))
            }
        }
    }
}

impl fmt::Display for Excess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { peak_kw, cap_kw } = self;
        write!(f, "the plan draws up to {peak_kw} kW, the settings of the site allow {cap_kw} kW")
    }
}

fn recovered_at(now: DateTime<Utc>, site: &Settings) -> DateTime<Utc> {
    now + TimeDelta::minutes(site.recovery_minutes.into())
}
