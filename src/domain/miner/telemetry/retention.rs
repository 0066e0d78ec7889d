//! How long telemetry is kept: points by whole days, hours in small batches.

use async_trait::async_trait;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::db::Db;
use crate::partitions::{
    self, By, DailyTable, LOCK_WAIT, Outcome, Unguarded, Upkeep, days_ago, delete_before, drop_before,
};

/// By `at`.
const POINTS: DailyTable = DailyTable { root: "miner_telemetry", by: By::Timestamptz };

/// What is kept of telemetry, and how far ahead and back it has partitions.
#[derive(Debug, Clone)]
pub struct Retention {
    pub points_days: u32,
    pub hours_days: u32,
    pub days_ahead: u32,
    /// A point may come that late.
    pub late_days: u32,
}

impl Retention {
    /// As configured.
    pub fn of(config: &Config) -> Self {
        let config = &config.miner_telemetry;
        Self {
            points_days: config.retention_days,
            hours_days: config.rollup_retention_days,
            days_ahead: config.partitions_ahead_days,
            late_days: config.late_days,
        }
    }
}

#[async_trait]
impl Upkeep for Retention {
    async fn make_ahead(&self, db: &Db) -> Result<usize, sqlx::Error> {
        // A point that is as late as it may be can be of the day before.
        partitions::ensure(db, POINTS, -i64::from(self.late_days) - 1..=i64::from(self.days_ahead)).await
    }

    async fn remove_old(&self, db: &Db, stopping: &CancellationToken) -> Result<bool, sqlx::Error> {
        // A day that lateness still reaches would be made again at once.
        let before = days_ago(db, self.points_days.max(self.late_days + 1)).await?;
        let dropped = drop_before(db, POINTS, before, LOCK_WAIT, &Unguarded, stopping).await?;
        let before = days_ago(db, self.hours_days).await?;
        let old = "delete from miner_telemetry_hourly where ctid = any (array( \
                   select ctid from miner_telemetry_hourly where hour < $1 limit $2))";
        delete_before(db, old, before.and_utc(), stopping).await?;
        Ok(dropped.iter().any(|(_, outcome)| *outcome == Outcome::Busy))
    }
}
