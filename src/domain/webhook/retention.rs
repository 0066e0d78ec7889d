//! How long deliveries that ended are kept: 30 days.

use std::time::Duration;

use async_trait::async_trait;

use crate::db::TenantTx;
use crate::jobs::{Job, JobError, Progress, Run, Schedule};

/// How many go in one transaction.
const AT_ONCE: i64 = 1_000;

/// Deletes old deliveries of every tenant.
pub struct DeliveryRetention;

#[async_trait]
impl Job for DeliveryRetention {
    fn name(&self) -> &'static str {
        "webhook-retention"
    }

    fn schedule(&self) -> Schedule {
        Schedule::Every(Duration::from_secs(3_600))
    }

    fn tenants(&self) -> &'static str {
        "select distinct tenant_id from webhook_delivery \
         where state <> 'pending' and created_at < now() - interval '30 days'"
    }

    async fn run(&self, tx: &mut TenantTx, _: &Run) -> Result<Progress, JobError> {
        let deleted = sqlx::query(
            "delete from webhook_delivery where id in (select id from webhook_delivery \
             where state <> 'pending' and created_at < now() - interval '30 days' limit $1)",
        )
        .bind(AT_ONCE)
        .execute(tx.conn())
        .await?
        .rows_affected();
        Ok(if deleted >= AT_ONCE.unsigned_abs() { Progress::More } else { Progress::Done })
    }
}
