//! Owns what the clock does to plans: begun, miners off and on again row by row, ended, recovered.
//! Promises that each happens once, however late or often it is called, that a plan whose time is over never begins, and that
//! what ends is told before what begins.
//! Called by the runner of scheduled work, in transactions of each tenant.

use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use sqlx::PgConnection;

use super::record::brief;
use super::{Move, Plan, PlanRow, go, recovered_at, telling};
use crate::db::TenantTx;
use crate::domain::ops::{CLOCK, settings};
use crate::domain::{Caller, CommandError};
use crate::economics::curtailment::PlanStatus;
use crate::identifier::UserId;
use crate::jobs::{Job, JobError, Progress, Run, Schedule};

/// How many of each are done in one transaction.
const AT_ONCE: i64 = 100;

const NOT_APPROVED: &str = "not approved in time";
const NOT_BEGUN: &str = "its time was over before it began";

/// What a call found due.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Advanced {
    /// Plans whose time passed before they began: cancelled.
    pub expired: usize,
    /// Plans that began.
    pub applied: usize,
    /// Plans of which other miners are off than before.
    pub switched: usize,
    /// Plans that ended; their miners are coming back.
    pub ended: usize,
    /// Plans whose miners are back: completed, or cancelled if they were stopped.
    pub recovered: usize,
    /// Whether the limit was met: call again.
    pub more: bool,
}

/// Carries out the plans of every tenant.
pub struct PlanClock;

#[async_trait]
impl Job for PlanClock {
    fn name(&self) -> &'static str {
        "ops-plans"
    }

    fn schedule(&self) -> Schedule {
        Schedule::Every(Duration::from_secs(60))
    }

    fn tenants(&self) -> &'static str {
        // A plan that executes may have miners to switch by any of its rows.
        "select distinct tenant_id from ops_plan where status in ('pending', 'approved', 'executing', \
         'recovery_pending') and case status when 'pending' then ends_at <= now() when 'approved' then \
         starts_at <= now() when 'recovery_pending' then recovered_at <= now() else true end"
    }

    async fn run(&self, tx: &mut TenantTx, run: &Run) -> Result<Progress, JobError> {
        let actor: UserId = CLOCK.parse()?;
        let caller = Caller { actor: &actor, request_id: &run.id, traceparent: "", now: tx.now() };
        let done = advance(tx, caller, AT_ONCE).await?;
        Ok(if done.more { Progress::More } else { Progress::Done })
    }
}

/// Does what is due in this tenant at `caller.now`, up to `limit` of each; call again while there may be more. A plan that
/// somebody holds is left for the next call.
///
/// # Errors
/// A statement that failed; the transaction must be rolled back.
pub async fn advance(tx: &mut TenantTx, caller: Caller<'_>, limit: i64) -> Result<Advanced, CommandError> {
    let mut advanced = Advanced::default();
    let ended = due(tx.conn(), ENDED, caller.now, limit).await?;
    for plan in &ended {
        let site = settings::get(tx, &plan.owner_id).await?;
        let mut step = Move::to(PlanStatus::RecoveryPending, None);
        step.recovered_at = Some(recovered_at(caller.now, &site));
        go(tx, caller, plan, step).await?;
        advanced.ended += 1;
    }
    let met = |plans: &[Plan]| i64::try_from(plans.len()).is_ok_and(|n| n >= limit);
    if met(&ended) {
        // Of two plans, one after the other, the last word is that of the one that begins.
        return Ok(Advanced { more: true, ..advanced });
    }
    let expired = due(tx.conn(), EXPIRED, caller.now, limit).await?;
    for plan in &expired {
        let pending = plan.status.0 == PlanStatus::Pending;
        let reason = if pending { NOT_APPROVED } else { NOT_BEGUN };
        go(tx, caller, plan, Move::to(PlanStatus::Cancelled, Some(reason))).await?;
        advanced.expired += 1;
    }
    let begun = due(tx.conn(), BEGUN, caller.now, limit).await?;
    for plan in &begun {
        go(tx, caller, plan, Move::to(PlanStatus::Executing, None)).await?;
        advanced.applied += 1;
    }
    let in_another_row = due(tx.conn(), IN_ANOTHER_ROW, caller.now, limit).await?;
    for plan in &in_another_row {
        advanced.switched += usize::from(switch(tx, caller, plan).await?);
    }
    let recovered = due(tx.conn(), RECOVERED, caller.now, limit).await?;
    for plan in &recovered {
        let to = if plan.stopped { PlanStatus::Cancelled } else { PlanStatus::Completed };
        go(tx, caller, plan, Move::to(to, plan.status_reason.as_deref())).await?;
        advanced.recovered += 1;
    }
    advanced.more = [&expired, &begun, &in_another_row, &recovered].into_iter().any(|plans| met(plans));
    Ok(advanced)
}

/// Plans at a moment $1, up to $2, each kept from others until the end of the transaction.
macro_rules! plans {
    ($what:literal) => {
        concat!(
            "select ",
            brief!(),
            " from ops_plan p where ",
            $what,
            " order by p.id limit $2 for no key update skip locked"
        )
    };
}

const EXPIRED: &str = plans!("p.status in ('pending', 'approved') and p.ends_at <= $1");
const BEGUN: &str = plans!("p.status = 'approved' and p.starts_at <= $1 and p.ends_at > $1");
const IN_ANOTHER_ROW: &str = plans!(
    "p.status = 'executing' and p.ends_at > $1 and exists (select from ops_plan_row r where r.tenant_id = p.tenant_id \
     and r.plan_id = p.id and r.starts_at <= $1 and r.starts_at + make_interval(secs => r.seconds) > $1 \
     and r.starts_at is distinct from p.told_row)"
);
const ENDED: &str = plans!("p.status = 'executing' and p.ends_at <= $1");
const RECOVERED: &str = plans!("p.status = 'recovery_pending' and p.recovered_at <= $1");

async fn due(
    conn: &mut PgConnection,
    which: &'static str,
    now: DateTime<Utc>,
    limit: i64,
) -> Result<Vec<Plan>, sqlx::Error> {
    sqlx::query_as(which).bind(now).bind(limit).fetch_all(conn).await
}

/// Tells what is off in the row that runs, unless that is what was told of an earlier one; whether there was anything to tell.
async fn switch(tx: &mut TenantTx, caller: Caller<'_>, plan: &Plan) -> Result<bool, CommandError> {
    let row: Option<PlanRow> = sqlx::query_as(
        "select * from ops_plan_row where plan_id = $1 and starts_at <= $2 order by starts_at desc limit 1",
    )
    .bind(plan.plan_id)
    .bind(caller.now)
    .fetch_optional(tx.conn())
    .await?;
    let Some(row) = row else { return Ok(false) };
    let off = row.miners_offline > 0;
    let told: Option<DateTime<Utc>> = sqlx::query_scalar("select told_row from ops_plan where id = $1")
        .bind(plan.plan_id)
        .fetch_one(tx.conn())
        .await?;
    let news = match told {
        // The same number may be other machines.
        Some(told) if off && plan.curtailing => telling::is_news(tx, plan.plan_id, told, &row).await?,
        _ => off != plan.curtailing,
    };
    sqlx::query(
        "update ops_plan set told_row = $2, curtailing = $3, \
         updated_at = case when $4 then $5 else updated_at end where id = $1",
    )
    .bind(plan.plan_id)
    .bind(row.starts_at)
    .bind(off)
    .bind(news)
    .bind(caller.now)
    .execute(tx.conn())
    .await?;
    match (news, off) {
        (true, true) => telling::off(tx, caller, plan, &row).await?,
        (true, false) => telling::let_go(tx, caller, plan).await?,
        (false, _) => {}
    }
    Ok(news)
}
