//! Owns what the clock does to plans: begun, miners off and on again row by row, ended, recovered.
//! Promises that each happens once, however late or often it is called, and that a plan whose time is over never begins.
//! Called by the runner of scheduled work, in transactions of each tenant.

use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use sqlx::PgConnection;

use super::{Move, Plan, PlanRow, curtailed, go, recovered_at};
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
    /// Plans whose miners went off or on.
    pub switched: usize,
    /// Plans that ended; their miners are coming back.
    pub ended: usize,
    /// Plans whose miners are back: completed, or cancelled if they were stopped.
    pub recovered: usize,
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
        let most = [done.expired, done.applied, done.switched, done.ended, done.recovered].into_iter().max();
        Ok(if most >= usize::try_from(AT_ONCE).ok() { Progress::More } else { Progress::Done })
    }
}

/// Does what is due in this tenant at `caller.now`, up to `limit` of each; call again while one of them is the limit. A
/// plan that somebody holds is left for the next call.
///
/// # Errors
/// A statement that failed; the transaction must be rolled back.
pub async fn advance(tx: &mut TenantTx, caller: Caller<'_>, limit: i64) -> Result<Advanced, CommandError> {
    let mut advanced = Advanced::default();
    for plan in due(tx.conn(), EXPIRED, caller.now, limit).await? {
        let pending = plan.status.0 == PlanStatus::Pending;
        let reason = if pending { NOT_APPROVED } else { NOT_BEGUN };
        go(tx, caller, &plan, Move::to(PlanStatus::Cancelled, Some(reason))).await?;
        advanced.expired += 1;
    }
    for plan in due(tx.conn(), BEGUN, caller.now, limit).await? {
        go(tx, caller, &plan, Move::to(PlanStatus::Executing, None)).await?;
        advanced.applied += 1;
    }
    for plan in due(tx.conn(), SWITCHED, caller.now, limit).await? {
        switch(tx, caller, &plan).await?;
        advanced.switched += 1;
    }
    for plan in due(tx.conn(), ENDED, caller.now, limit).await? {
        let site = settings::get(tx, &plan.owner_id).await?;
        let mut step = Move::to(PlanStatus::RecoveryPending, None);
        step.recovered_at = Some(recovered_at(caller.now, &site));
        go(tx, caller, &plan, step).await?;
        advanced.ended += 1;
    }
    for plan in due(tx.conn(), RECOVERED, caller.now, limit).await? {
        let to = if plan.stopped { PlanStatus::Cancelled } else { PlanStatus::Completed };
        go(tx, caller, &plan, Move::to(to, plan.status_reason.as_deref())).await?;
        advanced.recovered += 1;
    }
    Ok(advanced)
}

/// Plans at a moment $1, up to $2, each kept from others until the end of the transaction.
macro_rules! plans {
    ($what:literal) => {
        concat!(
            "select p.* from ops_plan p where ",
            $what,
            " order by p.id limit $2 for no key update skip locked"
        )
    };
}

const EXPIRED: &str = plans!("p.status in ('pending', 'approved') and p.ends_at <= $1");
const BEGUN: &str = plans!("p.status = 'approved' and p.starts_at <= $1 and p.ends_at > $1");
const SWITCHED: &str = plans!(
    "p.status = 'executing' and p.curtailing <> exists (select from ops_plan_row r where r.tenant_id = p.tenant_id \
     and r.plan_id = p.id and r.starts_at <= $1 and r.starts_at + make_interval(secs => r.seconds) > $1 \
     and r.miners_offline > 0) and p.ends_at > $1"
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

/// Turns the miners of a plan off or on, whichever they are not.
async fn switch(tx: &mut TenantTx, caller: Caller<'_>, plan: &Plan) -> Result<(), CommandError> {
    let off = !plan.curtailing;
    let row: Option<PlanRow> = sqlx::query_as(
        "select * from ops_plan_row where plan_id = $1 and starts_at <= $2 order by starts_at desc limit 1",
    )
    .bind(plan.plan_id)
    .bind(caller.now)
    .fetch_optional(tx.conn())
    .await?;
    sqlx::query("update ops_plan set curtailing = $2, updated_at = $3 where id = $1")
        .bind(plan.plan_id)
        .bind(off)
        .bind(caller.now)
        .execute(tx.conn())
        .await?;
    curtailed(tx, caller, plan, off, row.as_ref()).await
}
