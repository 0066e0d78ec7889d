//! Old rows that go one by one, in small batches: of tables that are too small for partitions, or of which only some rows go.

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use tokio_util::sync::CancellationToken;

use super::{Upkeep, days_ago};
use crate::db::Db;

/// Rows deleted in one transaction.
const DELETED_AT_ONCE: i64 = 10_000;

/// Deletes by a statement whose parameters are the time before which rows are old, and how many of them go at once; until
/// none is left.
pub async fn delete_before(
    db: &Db,
    statement: &'static str,
    before: DateTime<Utc>,
    stopping: &CancellationToken,
) -> Result<(), sqlx::Error> {
    while !stopping.is_cancelled() {
        let mut tx = db.owner().await?;
        let deleted = sqlx::query(statement).bind(before).bind(DELETED_AT_ONCE).execute(tx.conn()).await?;
        tx.commit().await?;
        if deleted.rows_affected() < DELETED_AT_ONCE.unsigned_abs() {
            break;
        }
    }
    Ok(())
}

/// Rows that go when they are so many days old.
#[derive(Debug, Clone)]
pub struct Deletion {
    /// As of [`delete_before`].
    pub statement: &'static str,
    pub days: u32,
}

#[async_trait]
impl Upkeep for Deletion {
    async fn make_ahead(&self, _: &Db) -> Result<usize, sqlx::Error> {
        Ok(0)
    }

    async fn remove_old(&self, db: &Db, stopping: &CancellationToken) -> Result<bool, sqlx::Error> {
        let before = days_ago(db, self.days).await?.and_utc();
        delete_before(db, self.statement, before, stopping).await?;
        Ok(false)
    }
}
