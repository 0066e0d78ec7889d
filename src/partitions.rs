//! Owns tables that are partitioned by day: their partitions, made ahead of time and dropped in the end.
//! Promises that making one holds no writer up, that dropping one holds writers up briefly or is put off, and that none
//! is dropped while something in it is still needed.
//! Called by the rooms that have such a table, by `migrate` and by every running role.
//!
//! A partition is created alone and then attached: `create table ... partition of` takes an exclusive lock on the
//! root, and behind one open reader every insert would hang. It is dropped in one READ COMMITTED transaction: a brief
//! exclusive lock on the root, **then** the guard as a statement of its own, then the drop. A guard that looks before
//! the lock is granted misses the row that commits while the drop waits. Writers queue behind the waiting lock, so the
//! wait is short; it is tried again later.

use std::convert::Infallible;
use std::fmt;
use std::ops::RangeInclusive;
use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, Days, NaiveDate, NaiveDateTime, NaiveTime, TimeDelta, Utc};
use sqlx::{AssertSqlSafe, PgConnection};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use uuid::Uuid;

use crate::db::Db;

mod deletion;

pub use deletion::{Deletion, delete_before};

/// How often a running role looks whether partitions are due.
const CHECK_EVERY: Duration = Duration::from_secs(3_600);

/// Pause after a failed attempt, for instance behind a long lock.
const RETRY_AFTER: Duration = Duration::from_secs(10);

/// Pause after a drop that did not get its lock. Each attempt may hold writers up for a moment.
const DROP_AGAIN_AFTER: Duration = Duration::from_secs(600);

/// A drop that does not get its lock for so long is worth an alarm.
const OVERDUE: Duration = Duration::from_secs(24 * 3_600);

/// How long a drop waits for its lock, and writers behind it. The look at the rows under the lock has half of it.
pub const LOCK_WAIT: Duration = Duration::from_millis(200);

/// A table that is partitioned by day, UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DailyTable {
    /// The name of the partitioned table.
    pub root: &'static str,
    pub by: By,
}

/// What a day is read from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    /// A `timestamp` in UTC.
    Timestamp,
    /// A `timestamptz`.
    Timestamptz,
    /// The time inside a UUIDv7.
    Id,
}

impl By {
    /// The partition bound at the start of a day.
    fn bound(self, day: NaiveDate) -> String {
        match self {
            Self::Timestamp => day.format("%Y-%m-%d 00:00:00").to_string(),
            Self::Timestamptz => day.format("%Y-%m-%d 00:00:00+00").to_string(),
            Self::Id => first_id_at(day.and_time(NaiveTime::MIN).and_utc()).to_string(),
        }
    }

    /// The moment that a bound in the catalogue stands for; `None` when it is not one of ours.
    fn moment(self, bound: &str) -> Option<NaiveDateTime> {
        match self {
            Self::Timestamp => NaiveDateTime::parse_from_str(bound, "%Y-%m-%d %H:%M:%S").ok(),
            Self::Timestamptz => NaiveDateTime::parse_from_str(bound, "%Y-%m-%d %H:%M:%S+00").ok(),
            Self::Id => {
                let id = bound.parse::<Uuid>().ok()?.as_u128();
                let at = DateTime::from_timestamp_millis(i64::try_from(id >> 80).ok()?)?;
                (id == first_id_at(at).as_u128()).then(|| at.naive_utc())
            }
        }
    }
}

/// The smallest UUIDv7-shaped id of a moment: its 48 bits of milliseconds, then zeros.
pub fn first_id_at(at: DateTime<Utc>) -> Uuid {
    let millis = u128::try_from(at.timestamp_millis()).unwrap_or_default();
    Uuid::from_u128(millis << 80)
}

/// A partition as the catalogue has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partition {
    /// Quoted where that is needed.
    pub name: String,
    pub from: NaiveDateTime,
    pub to: NaiveDateTime,
}

/// The partitions that may be dropped one day, oldest first: plain tables between two moments. A foreign table, a
/// default partition, one that is partitioned itself or is being detached is not ours to drop.
pub async fn attached(conn: &mut PgConnection, table: DailyTable) -> Result<Vec<Partition>, sqlx::Error> {
    let rows: Vec<(String, Vec<String>)> = sqlx::query_as(
        "select c.oid::regclass::text, regexp_match(pg_get_expr(c.relpartbound, c.oid), \
           '^FOR VALUES FROM \\(''([^'']+)''\\) TO \\(''([^'']+)''\\)$') \
         from pg_inherits i join pg_class c on c.oid = i.inhrelid \
         where i.inhparent = $1::text::regclass and c.relkind = 'r' and not i.inhdetachpending \
         and pg_get_expr(c.relpartbound, c.oid) like 'FOR VALUES FROM (''%'') TO (''%'')'",
    )
    .bind(table.root)
    .fetch_all(conn)
    .await?;
    let mut found: Vec<Partition> = rows
        .into_iter()
        .filter_map(|(name, bounds)| {
            let [from, to] = bounds.as_slice() else { return None };
            Some(Partition { name, from: table.by.moment(from)?, to: table.by.moment(to)? })
        })
        .collect();
    found.sort_by_key(|partition| partition.from);
    Ok(found)
}

/// Makes the partitions of these days that do not exist yet, counted from today by PostgreSQL's clock; returns how many.
pub async fn ensure(db: &Db, table: DailyTable, days: RangeInclusive<i64>) -> Result<usize, sqlx::Error> {
    let today: NaiveDate = {
        let mut tx = db.owner().await?;
        sqlx::query_scalar("select (now() at time zone 'UTC')::date").fetch_one(tx.conn()).await?
    };
    let mut made = 0;
    for day in days.filter_map(|n| today.checked_add_signed(TimeDelta::days(n))) {
        made += usize::from(ensure_partition(db, table, day).await?);
    }
    Ok(made)
}

async fn ensure_partition(db: &Db, table: DailyTable, day: NaiveDate) -> Result<bool, sqlx::Error> {
    let root = table.root;
    let name = format!("{root}_p{}", day.format("%Y%m%d"));
    let mut tx = db.owner().await?;
    if exists(tx.conn(), &name).await? {
        return Ok(false);
    }
    // Two roles that start at once: the second waits here and then finds the partition.
    sqlx::query(
        "select set_config('lock_timeout', '5000', true), pg_advisory_xact_lock(hashtextextended($1, 0))",
    )
    .bind(root)
    .execute(tx.conn())
    .await?;
    if exists(tx.conn(), &name).await? {
        return Ok(false);
    }
    let (from, to) = (table.by.bound(day), table.by.bound(day + Days::new(1)));
    // Row security is not inherited, and partitions carry no grants: everybody comes through the root.
    let statements = format!(
        "create table {name} (like {root} including defaults including constraints including indexes); \
         select hi_protect('{name}'); \
         set local lock_timeout = '200ms'; \
         alter table {root} attach partition {name} for values from ('{from}') to ('{to}')"
    );
    sqlx::raw_sql(AssertSqlSafe(statements)).execute(tx.conn()).await?;
    tx.commit().await?;
    Ok(true)
}

async fn exists(conn: &mut PgConnection, name: &str) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar("select to_regclass($1) is not null").bind(name).fetch_one(conn).await
}

/// What is still needed of a partition that is old enough to go.
#[async_trait]
pub trait Guard: Send + Sync {
    /// Why one is kept.
    type Why: fmt::Display + Send;

    /// Why this partition must be kept, if it must.
    async fn why_keep(
        &self,
        conn: &mut PgConnection,
        partition: &Partition,
    ) -> Result<Option<Self::Why>, sqlx::Error>;
}

/// Age alone decides.
pub struct Unguarded;

#[async_trait]
impl Guard for Unguarded {
    type Why = Infallible;

    async fn why_keep(&self, _: &mut PgConnection, _: &Partition) -> Result<Option<Self::Why>, sqlx::Error> {
        Ok(None)
    }
}

/// What became of a partition that is old enough to go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome<W> {
    Dropped,
    /// Something in it is still needed.
    Kept(W),
    /// Somebody holds a lock on the table: later again.
    Busy,
    /// Another role is at it, or was quicker.
    Elsewhere,
    /// A statement failed; it is in the log.
    Failed,
}

/// Drops the partitions that end before a moment, oldest first, and returns what became of each.
pub async fn drop_before<G: Guard>(
    db: &Db,
    table: DailyTable,
    before: NaiveDateTime,
    lock_wait: Duration,
    guard: &G,
    stopping: &CancellationToken,
) -> Result<Vec<(String, Outcome<G::Why>)>, sqlx::Error> {
    let partitions = attached(db.owner().await?.conn(), table).await?;
    let mut outcomes = Vec::new();
    for partition in partitions.into_iter().filter(|p| p.to <= before) {
        if stopping.is_cancelled() {
            break;
        }
        let name = partition.name.as_str();
        let outcome = match drop_one(db, table, &partition, lock_wait, guard).await {
            Ok(outcome) => outcome,
            Err(error) if is_busy(&error) => Outcome::Busy,
            Err(error) => {
                warn!(partition = name, %error, "an old partition could not be dropped");
                Outcome::Failed
            }
        };
        match &outcome {
            Outcome::Dropped => info!(partition = name, "dropped, older than its retention"),
            Outcome::Kept(why) => warn!(partition = name, "kept beyond its retention: {why}"),
            Outcome::Busy | Outcome::Elsewhere | Outcome::Failed => {}
        }
        let busy = matches!(outcome, Outcome::Busy);
        outcomes.push((partition.name, outcome));
        // Whoever is in the way of one is in the way of the next, and each attempt holds writers up.
        if busy {
            break;
        }
    }
    Ok(outcomes)
}

async fn drop_one<G: Guard>(
    db: &Db,
    table: DailyTable,
    partition: &Partition,
    lock_wait: Duration,
    guard: &G,
) -> Result<Outcome<G::Why>, sqlx::Error> {
    let mut tx = db.owner().await?;
    let outcome = drop_in(tx.conn(), table, partition, lock_wait, guard).await;
    match outcome {
        Ok(Outcome::Dropped) => tx.commit().await?,
        _ => tx.rollback().await?,
    }
    outcome
}

async fn drop_in<G: Guard>(
    conn: &mut PgConnection,
    table: DailyTable,
    partition: &Partition,
    lock_wait: Duration,
    guard: &G,
) -> Result<Outcome<G::Why>, sqlx::Error> {
    let root = table.root;
    let alone: bool =
        sqlx::query_scalar("select pg_try_advisory_xact_lock(hashtextextended($1 || ' retention', 0))")
            .bind(root)
            .fetch_one(&mut *conn)
            .await?;
    if !alone {
        return Ok(Outcome::Elsewhere);
    }
    // A first look without the lock: what must be kept anyway holds up nobody.
    if let Some(why) = guard.why_keep(conn, partition).await? {
        return Ok(Outcome::Kept(why));
    }
    limit(conn, lock_wait).await?;
    sqlx::raw_sql(AssertSqlSafe(format!("lock table {root} in access exclusive mode")))
        .execute(&mut *conn)
        .await?;
    limit(conn, lock_wait / 2).await?;
    if !attached(conn, table).await?.contains(partition) {
        return Ok(Outcome::Elsewhere);
    }
    if let Some(why) = guard.why_keep(conn, partition).await? {
        return Ok(Outcome::Kept(why));
    }
    sqlx::raw_sql(AssertSqlSafe(format!("drop table {}", partition.name))).execute(conn).await?;
    Ok(Outcome::Dropped)
}

/// Bounds the next statements: the wait for a lock, and the statement as a whole, which may wait for several.
async fn limit(conn: &mut PgConnection, time: Duration) -> Result<(), sqlx::Error> {
    sqlx::query("select set_config('lock_timeout', $1, true), set_config('statement_timeout', $1, true)")
        .bind(time.as_millis().to_string())
        .execute(conn)
        .await
        .map(drop)
}

/// A lock or statement time-out, or a deadlock with somebody else's lock.
fn is_busy(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|e| e.code());
    matches!(code.as_deref(), Some("55P03" | "57014" | "40P01"))
}

/// So many days before now, by PostgreSQL's clock.
pub async fn days_ago(db: &Db, days: u32) -> Result<NaiveDateTime, sqlx::Error> {
    let mut tx = db.owner().await?;
    let now: NaiveDateTime =
        sqlx::query_scalar("select now() at time zone 'UTC'").fetch_one(tx.conn()).await?;
    Ok(now - Days::new(u64::from(days)))
}

/// What a room does about its tables from time to time.
#[async_trait]
pub trait Upkeep: Send + Sync {
    /// Makes the partitions that are missing and returns how many.
    async fn make_ahead(&self, db: &Db) -> Result<usize, sqlx::Error>;

    /// Removes what is old. `true`: a lock was in the way.
    async fn remove_old(&self, db: &Db, stopping: &CancellationToken) -> Result<bool, sqlx::Error>;
}

/// Makes the partitions of every table that are missing; returns how many.
pub async fn make_ahead(db: &Db, all: &[Box<dyn Upkeep>]) -> Result<usize, sqlx::Error> {
    let mut made = 0;
    for upkeep in all {
        made += upkeep.make_ahead(db).await?;
    }
    Ok(made)
}

/// Keeps partitions ahead and removes what is old, until the stop.
pub async fn run(db: Db, all: Vec<Box<dyn Upkeep>>, stopping: CancellationToken) -> anyhow::Result<()> {
    let mut busy_since = None;
    while !stopping.is_cancelled() {
        let ahead = match make_ahead(&db, &all).await {
            Ok(0) => CHECK_EVERY,
            Ok(made) => {
                info!(made, "daily partitions made ahead");
                CHECK_EVERY
            }
            Err(error) => {
                warn!(%error, "daily partitions could not be made; trying again");
                RETRY_AFTER
            }
        };
        let (mut behind, mut busy) = (CHECK_EVERY, false);
        for upkeep in &all {
            match upkeep.remove_old(&db, &stopping).await {
                Ok(in_the_way) => busy |= in_the_way,
                Err(error) => {
                    warn!(%error, "retention failed; trying again");
                    behind = DROP_AGAIN_AFTER;
                }
            }
        }
        if overdue(&mut busy_since, busy, Instant::now()) {
            warn!(
                "for a day an old partition could not be dropped: somebody holds a lock on it at every attempt"
            );
        }
        if busy {
            behind = DROP_AGAIN_AFTER;
        }
        tokio::select! {
            () = stopping.cancelled() => {}
            () = tokio::time::sleep(ahead.min(behind)) => {}
        }
    }
    Ok(())
}

/// Remembers since when every attempt was in vain; `true` once that is long ago.
fn overdue(busy_since: &mut Option<Instant>, busy: bool, now: Instant) -> bool {
    if !busy {
        *busy_since = None;
        return false;
    }
    now.duration_since(*busy_since.get_or_insert(now)) >= OVERDUE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_of_a_day_lie_between_its_bounds() {
        let day = NaiveDate::from_ymd_opt(2026, 11, 22).expect("a date");
        let low: Uuid = By::Id.bound(day).parse().expect("uuid");
        let high: Uuid = By::Id.bound(day + Days::new(1)).parse().expect("uuid");
        let noon = day.and_hms_milli_opt(23, 59, 59, 999).expect("a time").and_utc();
        let id = Uuid::from_u128(first_id_at(noon).as_u128() | (7 << 76) | 0xffff);
        assert!(low < id && id < high);
        assert_eq!(By::Timestamp.bound(day), "2026-11-22 00:00:00");
    }

    #[test]
    fn only_bounds_of_ours_are_recognised() {
        let day = NaiveDate::from_ymd_opt(2026, 11, 22).expect("a date");
        for by in [By::Timestamp, By::Timestamptz, By::Id] {
            assert_eq!(by.moment(&by.bound(day)), Some(day.and_time(NaiveTime::MIN)));
        }
        for foreign in ["infinity", "0044-03-15 00:00:00 BC", "", "d2f1c2a0-0000-4000-8000-000000000001"] {
            assert_eq!(By::Timestamp.moment(foreign), None, "{foreign}");
            assert_eq!(By::Timestamptz.moment(foreign), None, "{foreign}");
            assert_eq!(By::Id.moment(foreign), None, "{foreign}");
        }
    }

    #[test]
    fn a_drop_in_vain_is_overdue_after_a_day() {
        let (mut since, start) = (None, Instant::now());
        assert!(!overdue(&mut since, true, start));
        assert!(!overdue(&mut since, true, start + OVERDUE - Duration::from_secs(1)));
        assert!(overdue(&mut since, true, start + OVERDUE));
        assert!(!overdue(&mut since, false, start + OVERDUE), "one that succeeds starts anew");
        assert!(!overdue(&mut since, true, start + OVERDUE * 2));
    }
}
