//! Owns the job that computes the schedules which batches of intel-group left to it.
//! Promises one schedule a transaction, and that its older copies are dropped from the cache.
//! Called by the runner of scheduled work.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use crate::cache::Cache;
use crate::consumer::copies;
use crate::db::TenantTx;
use crate::economics::Assumptions;
use crate::jobs::{Job, JobError, Progress, Run, Schedule};
use crate::projection::intelligence::schedule::compute_left;

/// Computes the schedules of every tenant that were left.
pub struct LeftSchedules {
    pub assumptions: Assumptions,
    pub cache: Arc<Cache>,
}

#[async_trait]
impl Job for LeftSchedules {
    fn name(&self) -> &'static str {
        "ops-schedules"
    }

    fn schedule(&self) -> Schedule {
        Schedule::Every(Duration::from_secs(5))
    }

    fn tenants(&self) -> &'static str {
        "select distinct tenant_id from ops_schedule_due"
    }

    async fn run(&self, tx: &mut TenantTx, _: &Run) -> Result<Progress, JobError> {
        let Some(dirty) = compute_left(tx, &self.assumptions).await? else { return Ok(Progress::Done) };
        // The commit comes after this: until then an older copy is not taken for a newer one, because of its version.
        self.cache.invalidate(&copies(&dirty)).await;
        Ok(Progress::More)
    }
}
