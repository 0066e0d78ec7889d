//! The tables of scheduled work. Every time in them is the database's.

use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::PgConnection;

use super::Schedule;
use crate::db::{Db, WorkerTx};
use crate::identifier::TenantId;

/// The longest error that is kept, characters.
const LONGEST_ERROR: usize = 1_000;
/// The pause before a tenant that failed is tried again, doubled with each failure up to the longest.
const TENANT_PAUSE_SECONDS: f64 = 60.0;
const LONGEST_TENANT_PAUSE_SECONDS: f64 = 3_600.0;

/// A job as the table has it.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct Entry {
    pub next_run_at: DateTime<Utc>,
    pub retry_at: Option<DateTime<Utc>>,
    /// Whether somebody runs it whose lease has not run out.
    pub running: bool,
    pub started_at: Option<DateTime<Utc>>,
    pub finished_at: Option<DateTime<Utc>>,
    pub tenants: i32,
    pub tenants_failed: i32,
    pub failures_in_a_row: i32,
    pub error: Option<String>,
    /// The database's time as this was read.
    pub now: DateTime<Utc>,
}

/// What the table says of a job; nothing before a process that runs it has started once.
pub async fn entry(conn: &mut PgConnection, job: &str) -> Result<Option<Entry>, sqlx::Error> {
    sqlx::query_as(
        "select next_run_at, retry_at, owner is not null and lease_until >= clock_timestamp() as running, started_at, \
         finished_at, tenants, tenants_failed, failures_in_a_row, error, clock_timestamp() as now \
         from scheduled_job where name = $1",
    )
    .bind(job)
    .fetch_optional(conn)
    .await
}

/// A job that is ours to run.
#[derive(Debug, sqlx::FromRow)]
pub(super) struct Claim {
    pub(super) epoch: i64,
    /// When it was due.
    pub(super) next_run_at: DateTime<Utc>,
    /// Whether it is due for everybody, or only for the tenants that failed.
    pub(super) for_all: bool,
}

/// Enters a job, or its new schedule.
pub(super) async fn register(
    conn: &mut PgConnection,
    job: &str,
    schedule: Schedule,
) -> Result<(), sqlx::Error> {
    let now: DateTime<Utc> = sqlx::query_scalar("select clock_timestamp()").fetch_one(&mut *conn).await?;
    sqlx::query(
        "insert into scheduled_job as j (name, schedule, next_run_at) values ($1, $2, $3) \
         on conflict (name) do update set schedule = excluded.schedule, next_run_at = excluded.next_run_at \
         where j.schedule <> excluded.schedule",
    )
    .bind(job)
    .bind(schedule.to_string())
    .bind(schedule.first(now))
    .execute(conn)
    .await
    .map(drop)
}

/// Takes a job that is due and that nobody runs. Of several that try, the row lets one through.
pub(super) async fn claim(
    conn: &mut PgConnection,
    job: &str,
    owner: &str,
    lease: Duration,
) -> Result<Option<Claim>, sqlx::Error> {
    sqlx::query_as(
        "update scheduled_job set epoch = epoch + 1, owner = $2, started_at = clock_timestamp(), \
           lease_until = clock_timestamp() + $3 * interval '1 ms', \
           error = case when owner is null then error else 'the last run was cut off in the middle' end \
         where name = $1 and least(next_run_at, retry_at) <= clock_timestamp() \
           and (owner is null or owner = $2 or lease_until < clock_timestamp()) \
         returning epoch, next_run_at, next_run_at <= clock_timestamp() as for_all",
    )
    .bind(job)
    .bind(owner)
    .bind(millis(lease))
    .fetch_optional(conn)
    .await
}

/// Keeps a claim for another lease; `false`: it is lost.
pub(super) async fn renew(
    conn: &mut PgConnection,
    job: &str,
    epoch: i64,
    lease: Duration,
) -> Result<bool, sqlx::Error> {
    let renewed = sqlx::query(
        "update scheduled_job set lease_until = clock_timestamp() + $3 * interval '1 ms' \
         where name = $1 and epoch = $2 and owner is not null",
    )
    .bind(job)
    .bind(epoch)
    .bind(millis(lease))
    .execute(conn)
    .await?;
    Ok(renewed.rows_affected() == 1)
}

/// Gives a claim back before the work is done: the job stays due.
pub(super) async fn release(conn: &mut PgConnection, job: &str, epoch: i64) -> Result<(), sqlx::Error> {
    sqlx::query("update scheduled_job set owner = null, lease_until = null where name = $1 and epoch = $2")
        .bind(job)
        .bind(epoch)
        .execute(conn)
        .await
        .map(drop)
}

/// How a run ended.
#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) tenants: usize,
    /// The last error.
    pub(super) error: Option<String>,
    /// The pause after a run that failed as a whole.
    pub(super) pause: Option<Duration>,
}

/// Ends a run; `false`: the claim was lost, and nothing is written.
pub(super) async fn finish(
    conn: &mut PgConnection,
    job: &str,
    schedule: Schedule,
    claim: &Claim,
    outcome: &Outcome,
    failing: &Failing,
) -> Result<bool, sqlx::Error> {
    let now: DateTime<Utc> = sqlx::query_scalar("select clock_timestamp()").fetch_one(&mut *conn).await?;
    let next = match outcome.pause {
        _ if !claim.for_all => claim.next_run_at,
        None => schedule.next(claim.next_run_at, now),
        Some(pause) => now + pause,
    };
    let retry_at = failing.first_retry.map(|at| outcome.pause.map_or(at, |pause| at.max(now + pause)));
    let finished = sqlx::query(
        "update scheduled_job set owner = null, lease_until = null, finished_at = $3, next_run_at = $4, retry_at = $5, \
           tenants = $6, tenants_failed = $7, \
           error = case when $7 = 0 then $8 else coalesce($8, error) end, \
           failures_in_a_row = case when $8::text is not null then failures_in_a_row + 1 \
             when $7 = 0 then 0 else failures_in_a_row end \
         where name = $1 and epoch = $2 and owner is not null",
    )
    .bind(job)
    .bind(claim.epoch)
    .bind(now)
    .bind(next)
    .bind(retry_at)
    .bind(i32::try_from(outcome.tenants).unwrap_or(i32::MAX))
    .bind(i32::try_from(failing.count).unwrap_or(i32::MAX))
    .bind(outcome.error.as_deref().map(shortened))
    .execute(conn)
    .await?;
    Ok(finished.rows_affected() == 1)
}

/// The tenants for which a job failed last; whether each still has to wait.
pub(super) async fn failing(db: &Db, job: &str) -> Result<Vec<(TenantId, bool)>, sqlx::Error> {
    let statement = "select tenant_id, retry_at > clock_timestamp() from scheduled_job_failure where job = $1 order by retry_at";
    db.across_tenants(statement, &[job]).await
}

/// The tenants that a job fails for.
#[derive(Debug, sqlx::FromRow)]
pub(super) struct Failing {
    pub(super) count: i64,
    /// When the first of them is tried again.
    first_retry: Option<DateTime<Utc>>,
}

/// How many tenants a job fails for.
pub(super) async fn count_failing(db: &Db, job: &str) -> Result<Failing, sqlx::Error> {
    let statement =
        "select count(*) as count, min(retry_at) as first_retry from scheduled_job_failure where job = $1";
    let counted = db.across_tenants(statement, &[job]).await?.pop();
    counted.ok_or(sqlx::Error::RowNotFound)
}

/// Writes down that a job failed for a tenant: not again before a pause that grows.
pub(super) async fn failed(
    tx: &mut WorkerTx,
    job: &str,
    tenant: &TenantId,
    error: &str,
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "insert into scheduled_job_failure as f (tenant_id, job, failures, retry_at, error) \
         values ($1, $2, 1, clock_timestamp() + $4 * interval '1 s', $3) \
         on conflict (tenant_id, job) do update set failures = f.failures + 1, error = excluded.error, \
           last_failed_at = clock_timestamp(), \
           retry_at = clock_timestamp() + least($4 * 2 ^ least(f.failures, 30), $5) * interval '1 s'",
    )
    .bind(tenant.as_str())
    .bind(job)
    .bind(shortened(error))
    .bind(TENANT_PAUSE_SECONDS)
    .bind(LONGEST_TENANT_PAUSE_SECONDS)
    .execute(tx.for_tenant(tenant).await?)
    .await
    .map(drop)
}

/// A tenant that failed does so no more.
pub(super) async fn recovered(tx: &mut WorkerTx, job: &str, tenant: &TenantId) -> Result<(), sqlx::Error> {
    sqlx::query("delete from scheduled_job_failure where tenant_id = $1 and job = $2")
        .bind(tenant.as_str())
        .bind(job)
        .execute(tx.for_tenant(tenant).await?)
        .await
        .map(drop)
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1_000.0
}

/// PostgreSQL takes no NUL in a text.
fn shortened(error: &str) -> String {
    error.chars().filter(|c| *c != '\0').take(LONGEST_ERROR).collect()
}
