//! Owns the lag: how far each group is behind the log, per partition, in records and seconds.
//! Promises that what is not known is null, never zero.
//! Called by `hashinsight lag` and `topics alter`.

use std::collections::BTreeMap;
use std::time::Duration;

use chrono::{DateTime, Utc};
use futures_util::stream::{self, StreamExt as _};
use serde::Serialize;

use crate::db::Db;
use crate::group::living;
use crate::log::{EventLog, FetchLimits};

mod unapplied;

pub use unapplied::{Unapplied, UnappliedError, unapplied};

/// Partitions that are looked at together: each may wait for a broker that does not answer.
const AT_ONCE: usize = 8;

/// More records behind than this: warning.
const WARNING: i64 = 1_000;

/// More records behind than this: critical.
const CRITICAL: i64 = 10_000;

/// The lag of every group.
#[derive(Debug, Serialize)]
pub struct LagReport {
    pub groups: Vec<GroupLag>,
}

/// The lag of one group.
#[derive(Debug, Serialize)]
pub struct GroupLag {
    pub group: String,
    /// healthy, warning, critical (far behind, or a partition stands still), or unknown.
    pub status: &'static str,
    /// Records behind; null if any partition's is not known.
    pub lag: Option<i64>,
    pub partitions: Vec<PartitionLag>,
}

/// The lag of one partition.
#[derive(Debug, Serialize)]
pub struct PartitionLag {
    pub topic: String,
    pub partition: i32,
    /// The next offset the group will apply.
    pub committed: i64,
    /// The offset of the next record to be appended.
    pub end: Option<i64>,
    pub lag: Option<i64>,
    /// Age of the oldest record not yet applied; 0 when there is none.
    pub lag_seconds: Option<f64>,
    /// The member that works on it; null if none that lives does.
    pub owner: Option<String>,
    /// Why it stands still; null while it does not.
    pub trouble: Option<String>,
}

#[derive(sqlx::FromRow)]
struct OffsetRow {
    consumer_name: String,
    topic: String,
    partition: i32,
    next_offset: i64,
    owner_id: Option<String>,
    trouble: Option<String>,
}

/// Measures the lag of all groups, or of one.
pub async fn measure(db: &Db, log: &dyn EventLog, group: Option<&str>) -> Result<LagReport, sqlx::Error> {
    measure_with(db, Some(log), group).await
}

/// As [`measure`], while the log is away: what the database knows of all groups, or of one.
pub async fn without_log(db: &Db, group: Option<&str>) -> Result<LagReport, sqlx::Error> {
    measure_with(db, None, group).await
}

async fn measure_with(
    db: &Db,
    log: Option<&dyn EventLog>,
    group: Option<&str>,
) -> Result<LagReport, sqlx::Error> {
    let mut tx = db.worker().await?;
    let rows: Vec<OffsetRow> = sqlx::query_as(
        "select consumer_name, topic, partition, next_offset, owner_id, trouble from consumer_offset \
         where $1::text is null or consumer_name = $1 order by consumer_name, topic, partition",
    )
    .bind(group)
    .fetch_all(tx.conn())
    .await?;
    let living = living(tx.conn()).await?;
    tx.rollback().await?;
    let measured = rows.into_iter().map(|mut row| {
        row.owner_id = row.owner_id.filter(|owner| living.contains(owner));
        let now = db.now();
        async move { (row.consumer_name.clone(), partition_lag(log, row, now).await) }
    });
    let mut measured = stream::iter(measured).buffered(AT_ONCE);
    let mut groups: BTreeMap<String, Vec<PartitionLag>> = BTreeMap::new();
    while let Some((group, partition)) = measured.next().await {
        groups.entry(group).or_default().push(partition);
    }
    let groups = groups.into_iter().map(|(group, partitions)| {
        let lag = partitions.iter().map(|p| p.lag).sum();
        let stands_still = partitions.iter().any(|p| p.trouble.is_some());
        let status = if stands_still { "critical" } else { status(lag) };
        GroupLag { group, status, lag, partitions }
    });
    Ok(LagReport { groups: groups.collect() })
}

async fn partition_lag(log: Option<&dyn EventLog>, row: OffsetRow, now: DateTime<Utc>) -> PartitionLag {
    let end = match log {
        Some(log) => log.bounds(&row.topic, row.partition).await.ok().map(|b| b.end),
        None => None,
    };
    let lag = end.map(|end| (end - row.next_offset).max(0));
    let lag_seconds = match (lag, log) {
        (Some(0), _) => Some(0.0),
        (Some(_), Some(log)) => oldest_age(log, &row, now).await,
        _ => None,
    };
    PartitionLag {
        topic: row.topic,
        partition: row.partition,
        committed: row.next_offset,
        end,
        lag,
        lag_seconds,
        owner: row.owner_id,
        trouble: row.trouble,
    }
}

/// By the database's clock, which dated the event.
async fn oldest_age(log: &dyn EventLog, row: &OffsetRow, now: DateTime<Utc>) -> Option<f64> {
    let limits = FetchLimits { max_records: 1, max_bytes: 1, max_wait: Duration::from_millis(1) };
    let fetched = log.fetch(&row.topic, row.partition, row.next_offset, limits).await.ok()?;
    let (_, record) = fetched.records.first()?;
    Some((now - record.timestamp).as_seconds_f64().max(0.0))
}

fn status(lag: Option<i64>) -> &'static str {
    match lag {
        None => "unknown",
        Some(n) if n > CRITICAL => "critical",
        Some(n) if n > WARNING => "warning",
        Some(_) => "healthy",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_says_how_far_behind() {
        for (lag, says) in [
            (Some(0), "healthy"),
            (Some(1_000), "healthy"),
            (Some(1_001), "warning"),
            (Some(10_000), "warning"),
            (Some(10_001), "critical"),
            (None, "unknown"),
        ] {
            assert_eq!(status(lag), says, "{lag:?}");
        }
    }
}
