//! How long prices are kept: until their interval began 400 days ago, as far back as prices are taken in.

use std::time::Duration;

use async_trait::async_trait;

use crate::db::TenantTx;
use crate::jobs::{Job, JobError, Progress, Run, Schedule};

/// How many go in one transaction.
const AT_ONCE: i64 = 10_000;

/// Deletes old prices of every tenant, whole receptions or parts of them.
pub struct PriceRetention;

#[async_trait]
impl Job for PriceRetention {
    fn name(&self) -> &'static str {
        "ops-price-retention"
    }

    fn schedule(&self) -> Schedule {
        Schedule::Every(Duration::from_secs(3_600))
    }

    fn tenants(&self) -> &'static str {
        "select distinct tenant_id from power_price where starts_at < now() - interval '400 days'"
    }

    async fn run(&self, tx: &mut TenantTx, _: &Run) -> Result<Progress, JobError> {
        let deleted = sqlx::query(
            "delete from power_price where ctid = any(array(select ctid from power_price \
             where starts_at < now() - interval '400 days' limit $1))",
        )
        .bind(AT_ONCE)
        .execute(tx.conn())
        .await?
        .rows_affected();
        Ok(if deleted >= AT_ONCE.unsigned_abs() { Progress::More } else { Progress::Done })
    }
}
