//! What the projection reads and writes to keep the schedules.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use rust_decimal::Decimal;
use sqlx::PgConnection;
use uuid::Uuid;

use super::optimum::Optimum;
use crate::db::serial;
use crate::economics::Assumptions;
use crate::economics::curtailment::SiteTerms;
use crate::identifier::{TenantId, UserId};

/// What a user's site allows and costs, as the optimum takes it.
#[derive(Debug, Clone)]
pub struct Site {
    pub owner: UserId,
    pub market: Option<String>,
    pub step_seconds: u32,
    pub terms: SiteTerms,
}

#[derive(sqlx::FromRow)]
struct SiteRow {
    owner_id: UserId,
    market: Option<String>,
    step_seconds: i32,
    cap_kw: Option<Decimal>,
    ramp_kw: Option<Decimal>,
    min_online_share: Decimal,
    start_cost_usd: Decimal,
    min_up_steps: i32,
    min_down_steps: i32,
    pool_fee: Option<Decimal>,
    delivery_usd_mwh: Decimal,
}

impl SiteRow {
    fn site(self, assumptions: &Assumptions) -> Site {
        let count = |n: i32| u32::try_from(n).unwrap_or_default();
        Site {
            owner: self.owner_id,
            market: self.market,
            step_seconds: count(self.step_seconds),
            terms: SiteTerms {
                cap_kw: self.cap_kw,
                ramp_kw: self.ramp_kw,
                min_online_share: self.min_online_share,
                start_cost_usd: self.start_cost_usd,
                min_up_steps: count(self.min_up_steps),
                min_down_steps: count(self.min_down_steps),
                pool_fee: self.pool_fee.unwrap_or(assumptions.pool_fee),
                delivery_usd_mwh: self.delivery_usd_mwh,
                pue: assumptions.pue,
            },
        }
    }
}

/// Whose sites a batch is about.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    /// Everybody's.
    pub all: bool,
    pub owners: Vec<UserId>,
    pub markets: Vec<String>,
}

/// The users with settings among those wanted, in their order, and whose prices they pay.
pub async fn concerned(
    conn: &mut PgConnection,
    wanted: &Wanted,
) -> Result<Vec<(UserId, Option<String>)>, sqlx::Error> {
    sqlx::query_as(
        "select owner_id, market from ops_settings where $1 or owner_id = any($2) or market = any($3) order by owner_id",
    )
    .bind(wanted.all)
    .bind(&wanted.owners)
    .bind(&wanted.markets)
    .fetch_all(conn)
    .await
}

/// The users with settings, in order: those behind `after`, at most so many.
pub async fn owners(
    conn: &mut PgConnection,
    after: Option<&str>,
    limit: i64,
) -> Result<Vec<UserId>, sqlx::Error> {
    sqlx::query_scalar(
        "select owner_id from ops_settings where $1 is null or owner_id > $1 order by owner_id limit $2",
    )
    .bind(after)
    .bind(limit)
    .fetch_all(conn)
    .await
}

/// Waits until nobody else computes one of these schedules; held to the end of the transaction.
pub async fn lock(
    conn: &mut PgConnection,
    tenant: &TenantId,
    owners: impl Iterator<Item = &UserId>,
) -> Result<(), sqlx::Error> {
    serial::take_turns(conn, &format!("ops_schedule:{tenant}"), owners).await
}

/// The sites of these users.
pub async fn sites(
    conn: &mut PgConnection,
    owners: &[&UserId],
    assumptions: &Assumptions,
) -> Result<Vec<Site>, sqlx::Error> {
    let owners: Vec<&str> = owners.iter().map(|owner| owner.as_str()).collect();
    let rows: Vec<SiteRow> =
        sqlx::query_as("select * from ops_settings where owner_id = any($1) order by owner_id")
            .bind(owners)
            .fetch_all(conn)
            .await?;
    Ok(rows.into_iter().map(|row| row.site(assumptions)).collect())
}

/// Stores a schedule as the next version, which it returns.
pub async fn store(
    conn: &mut PgConnection,
    tenant: &TenantId,
    owner: &UserId,
    optimum: &Optimum,
    event_id: Option<Uuid>,
) -> Result<i64, sqlx::Error> {
    sqlx::query_scalar(
        "insert into ops_schedule as s (tenant_id, user_id, version, market, starts_at, ends_at, step_seconds, \
         value_usd, bound_usd, gap_percent, method, always_on_usd, greedy_usd, starts, classes, groups, rows, warnings, \
         prices_as_of, network_as_of, snapshot_id, event_id, computed_at) \
         values ($1, $2, case when $21::uuid is null then hi_version_anew() else 1 end, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, \
         clock_timestamp()) \
         on conflict (tenant_id, user_id) do update set version = s.version + 1, market = excluded.market, \
         starts_at = excluded.starts_at, ends_at = excluded.ends_at, step_seconds = excluded.step_seconds, \
         value_usd = excluded.value_usd, bound_usd = excluded.bound_usd, gap_percent = excluded.gap_percent, \
         method = excluded.method, always_on_usd = excluded.always_on_usd, greedy_usd = excluded.greedy_usd, \
         starts = excluded.starts, classes = excluded.classes, groups = excluded.groups, rows = excluded.rows, \
         warnings = excluded.warnings, prices_as_of = excluded.prices_as_of, \
         network_as_of = excluded.network_as_of, snapshot_id = excluded.snapshot_id, \
         event_id = coalesce(excluded.event_id, s.event_id), \
         computed_at = excluded.computed_at returning version",
    )
    .bind(tenant.as_str())
    .bind(owner)
    .bind(&optimum.market)
    .bind(optimum.starts_at)
    .bind(optimum.ends_at)
    .bind(optimum.step_seconds)
    .bind(optimum.value_usd)
    .bind(optimum.bound_usd)
    .bind(optimum.gap_percent)
    .bind(&optimum.method)
    .bind(optimum.always_on_usd)
    .bind(optimum.greedy_usd)
    .bind(optimum.starts)
    .bind(&optimum.classes)
    .bind(&optimum.groups)
    .bind(&optimum.rows)
    .bind(&optimum.warnings)
    .bind(optimum.prices_as_of)
    .bind(optimum.network_as_of)
    .bind(optimum.snapshot_id)
    .bind(event_id)
    .fetch_one(conn)
    .await
}

/// Leaves schedules to the job, each with the newest event that asks for it.
pub async fn leave(
    conn: &mut PgConnection,
    tenant: &TenantId,
    owners: &BTreeMap<UserId, Uuid>,
) -> Result<(), sqlx::Error> {
    // In one order everywhere: two batches that leave the same users cannot wait for each other.
    sqlx::query(
        "insert into ops_schedule_due (tenant_id, user_id, event_id, since) \
         select $1, user_id, event_id, clock_timestamp() from unnest($2::text[], $3::uuid[]) u (user_id, event_id) \
         order by user_id \
         on conflict (tenant_id, user_id) do update set event_id = excluded.event_id",
    )
    .bind(tenant.as_str())
    .bind(owners.keys().map(UserId::as_str).collect::<Vec<_>>())
    .bind(owners.values().copied().collect::<Vec<_>>())
    .execute(conn)
    .await
    .map(drop)
}

/// The moment, by the clock that dates what is left.
pub async fn moment(conn: &mut PgConnection) -> Result<DateTime<Utc>, sqlx::Error> {
    sqlx::query_scalar("select clock_timestamp()").fetch_one(conn).await
}

/// Whose schedule was left longest, of those left by a moment.
pub async fn left_longest(conn: &mut PgConnection, by: DateTime<Utc>) -> Result<Option<UserId>, sqlx::Error> {
    sqlx::query_scalar(
        "select user_id from ops_schedule_due where since <= $1 order by since, user_id limit 1",
    )
    .bind(by)
    .fetch_optional(conn)
    .await
}

/// The event that a schedule was left with.
pub async fn left_with(conn: &mut PgConnection, owner: &UserId) -> Result<Option<Uuid>, sqlx::Error> {
    sqlx::query_scalar("select event_id from ops_schedule_due where user_id = $1")
        .bind(owner)
        .fetch_optional(conn)
        .await
}

/// A schedule that was left is computed; if another event has asked for it meanwhile, it is left anew.
pub async fn caught_up(conn: &mut PgConnection, owner: &UserId, event_id: Uuid) -> Result<(), sqlx::Error> {
    let deleted = sqlx::query("delete from ops_schedule_due where user_id = $1 and event_id = $2")
        .bind(owner)
        .bind(event_id)
        .execute(&mut *conn)
        .await?;
    if deleted.rows_affected() == 0 {
        sqlx::query("update ops_schedule_due set since = clock_timestamp() where user_id = $1")
            .bind(owner)
            .execute(conn)
            .await?;
    }
    Ok(())
}
