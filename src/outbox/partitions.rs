//! Daily partitions: made ahead of time by `migrate` and by every running role, which also drops them in the end.
//!
//! A partition is created alone and then attached: `create table ... partition of` takes an exclusive lock on the
//! root, and behind one open reader every insert would hang.

use std::time::Duration;

use chrono::{DateTime, Days, NaiveDate, NaiveDateTime, NaiveTime, Utc};
use sqlx::{AssertSqlSafe, PgConnection};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use uuid::Uuid;

use super::retention::Retention;
use crate::db::Db;

/// How often a running role looks whether partitions are due.
const CHECK_EVERY: Duration = Duration::from_secs(3_600);

/// Pause after a failed attempt, for instance behind a long lock.
const RETRY_AFTER: Duration = Duration::from_secs(10);

/// Pause after a drop that did not get its lock. Each attempt may hold appends up for a moment.
const DROP_AGAIN_AFTER: Duration = Duration::from_secs(600);

/// A drop that does not get its lock for so long is worth an alarm.
const OVERDUE: Duration = Duration::from_secs(24 * 3_600);

/// A table that is partitioned by day.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Daily {
    /// By `occurred_at`.
    Outbox,
    /// By the time inside the event's UUIDv7.
    Inbox,
}

impl Daily {
    pub(super) fn table(self) -> &'static str {
        match self {
            Self::Outbox => "event_outbox",
            Self::Inbox => "event_inbox",
        }
    }

    /// The partition bound at the start of a day.
    fn bound(self, day: NaiveDate) -> String {
        let midnight = day.and_time(NaiveTime::MIN).and_utc();
        match self {
            Self::Outbox => day.format("%Y-%m-%d 00:00:00").to_string(),
            Self::Inbox => first_id_at(midnight).to_string(),
        }
    }

    /// The moment that a bound in the catalogue stands for; `None` when it is not one of ours.
    fn moment(self, bound: &str) -> Option<NaiveDateTime> {
        match self {
            Self::Outbox => NaiveDateTime::parse_from_str(bound, "%Y-%m-%d %H:%M:%S").ok(),
            Self::Inbox => {
                let id = bound.parse::<Uuid>().ok()?.as_u128();
                let at = DateTime::from_timestamp_millis(i64::try_from(id >> 80).ok()?)?;
                (id == first_id_at(at).as_u128()).then(|| at.naive_utc())
            }
        }
    }
}

/// The smallest UUIDv7-shaped id of a moment: its 48 bits of milliseconds, then zeros.
pub(super) fn first_id_at(at: DateTime<Utc>) -> Uuid {
    let millis = u128::try_from(at.timestamp_millis()).unwrap_or_default();
    Uuid::from_u128(millis << 80)
}

/// A partition as the catalogue has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Attached {
    /// Quoted where that is needed.
    pub(super) name: String,
    pub(super) from: NaiveDateTime,
    pub(super) to: NaiveDateTime,
}

/// The partitions that may be dropped one day, oldest first: plain tables between two moments. A foreign table, a
/// default partition, one that is partitioned itself or is being detached is not ours to drop.
pub(super) async fn attached(conn: &mut PgConnection, table: Daily) -> Result<Vec<Attached>, sqlx::Error> {
    let rows: Vec<(String, Vec<String>)> = sqlx::query_as(
        "select c.oid::regclass::text, regexp_match(pg_get_expr(c.relpartbound, c.oid), \
           '^FOR VALUES FROM \\(''([^'']+)''\\) TO \\(''([^'']+)''\\)$') \
         from pg_inherits i join pg_class c on c.oid = i.inhrelid \
         where i.inhparent = $1::text::regclass and c.relkind = 'r' and not i.inhdetachpending \
         and pg_get_expr(c.relpartbound, c.oid) like 'FOR VALUES FROM (''%'') TO (''%'')'",
    )
    .bind(table.table())
    .fetch_all(conn)
    .await?;
    let mut found: Vec<Attached> = rows
        .into_iter()
        .filter_map(|(name, bounds)| {
            let [from, to] = bounds.as_slice() else { return None };
            Some(Attached { name, from: table.moment(from)?, to: table.moment(to)? })
        })
        .collect();
    found.sort_by_key(|partition| partition.from);
    Ok(found)
}

/// Makes the partitions of today and of the days ahead that do not exist yet; returns how many it made.
pub async fn ensure_partitions(db: &Db, days_ahead: u32) -> Result<usize, sqlx::Error> {
    let mut made = 0;
    let today: NaiveDate = {
        let mut tx = db.owner().await?;
        sqlx::query_scalar("select (now() at time zone 'UTC')::date").fetch_one(tx.conn()).await?
    };
    for table in [Daily::Outbox, Daily::Inbox] {
        // One day more than asked for at the near end: a clock that is set back still finds its partition.
        let days = (0..=u64::from(days_ahead) + 1).filter_map(|n| Some(today.pred_opt()? + Days::new(n)));
        for day in days {
            made += usize::from(ensure_partition(db, table, day).await?);
        }
    }
    Ok(made)
}

async fn ensure_partition(db: &Db, table: Daily, day: NaiveDate) -> Result<bool, sqlx::Error> {
    let root = table.table();
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
    let (from, to) = (table.bound(day), table.bound(day + Days::new(1)));
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

/// Keeps partitions ahead and drops those behind, until the stop.
pub async fn run_partitions(
    db: Db,
    days_ahead: u32,
    retention: Retention,
    stopping: CancellationToken,
) -> anyhow::Result<()> {
    let mut busy_since = None;
    while !stopping.is_cancelled() {
        let ahead = match ensure_partitions(&db, days_ahead).await {
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
        let behind = match retention.pass(&db, &stopping).await {
            Ok(pass) => {
                if overdue(&mut busy_since, pass.busy(), Instant::now()) {
                    warn!(
                        "for a day an old partition could not be dropped: somebody holds a lock on it at every attempt"
                    );
                }
                if pass.busy() { DROP_AGAIN_AFTER } else { CHECK_EVERY }
            }
            Err(error) => {
                warn!(%error, "retention failed; trying again");
                DROP_AGAIN_AFTER
            }
        };
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
        let low: Uuid = Daily::Inbox.bound(day).parse().expect("uuid");
        let high: Uuid = Daily::Inbox.bound(day + Days::new(1)).parse().expect("uuid");
        let noon = day.and_hms_milli_opt(23, 59, 59, 999).expect("a time").and_utc();
        let id = Uuid::from_u128(first_id_at(noon).as_u128() | (7 << 76) | 0xffff);
        assert!(low < id && id < high);
        assert_eq!(Daily::Outbox.bound(day), "2026-11-22 00:00:00");
    }

    #[test]
    fn only_bounds_of_ours_are_recognised() {
        let day = NaiveDate::from_ymd_opt(2026, 11, 22).expect("a date");
        for table in [Daily::Outbox, Daily::Inbox] {
            assert_eq!(table.moment(&table.bound(day)), Some(day.and_time(NaiveTime::MIN)));
        }
        for foreign in ["infinity", "0044-03-15 00:00:00 BC", "", "d2f1c2a0-0000-4000-8000-000000000001"] {
            assert_eq!(Daily::Outbox.moment(foreign), None, "{foreign}");
            assert_eq!(Daily::Inbox.moment(foreign), None, "{foreign}");
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
