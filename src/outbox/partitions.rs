//! Daily partitions, made ahead of time by `migrate` and by every running role.
//!
//! A partition is created alone and then attached: `create table ... partition of` takes an exclusive lock on the
//! root, and behind one open reader every insert would hang.

use std::time::Duration;

use chrono::{DateTime, Days, NaiveDate, NaiveTime, Utc};
use sqlx::{AssertSqlSafe, PgConnection};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use uuid::Uuid;

use crate::db::Db;

/// How often a running role looks whether partitions are due.
const CHECK_EVERY: Duration = Duration::from_secs(3_600);

/// Pause after a failed attempt, for instance behind a long lock.
const RETRY_AFTER: Duration = Duration::from_secs(10);

/// A table that is partitioned by day.
#[derive(Debug, Clone, Copy)]
enum Daily {
    /// By `occurred_at`.
    Outbox,
    /// By the time inside the event's UUIDv7.
    Inbox,
}

impl Daily {
    fn table(self) -> &'static str {
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
}

/// The smallest UUIDv7-shaped id of a moment: its 48 bits of milliseconds, then zeros.
fn first_id_at(at: DateTime<Utc>) -> Uuid {
    let millis = u128::try_from(at.timestamp_millis()).unwrap_or_default();
    Uuid::from_u128(millis << 80)
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

/// Keeps partitions ahead until the stop.
pub async fn run_partitions(db: Db, days_ahead: u32, stopping: CancellationToken) -> anyhow::Result<()> {
    loop {
        let pause = match ensure_partitions(&db, days_ahead).await {
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
        tokio::select! {
            () = stopping.cancelled() => return Ok(()),
            () = tokio::time::sleep(pause) => {}
        }
    }
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
}
