//! Owns the job that computes the schedules which batches of intel-group left to it.
//! Promises one schedule a transaction, that its older copies are dropped from the cache, and that a run ends: what is left
//! while it goes on is the next one's.
//! Called by the runner of scheduled work.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, Utc};

use crate::cache::Cache;
use crate::consumer::copies;
use crate::db::TenantTx;
use crate::economics::Assumptions;
use crate::jobs::{Job, JobError, Progress, Run, Schedule};
use crate::projection::intelligence::schedule::compute_left;
use crate::read_model::schedule_write;

/// Computes the schedules of every tenant that were left.
pub struct LeftSchedules {
    assumptions: Assumptions,
    cache: Arc<Cache>,
    /// The run that goes on, and when it began.
    begun: Mutex<Option<(String, DateTime<Utc>)>>,
}

impl LeftSchedules {
    /// Copies of what it computes are dropped from `cache`.
    pub fn new(assumptions: Assumptions, cache: Arc<Cache>) -> Self {
        Self { assumptions, cache, begun: Mutex::new(None) }
    }

    /// When a run began: with the first of its transactions.
    async fn began(&self, tx: &mut TenantTx, run: &Run) -> Result<DateTime<Utc>, sqlx::Error> {
        let known = self.begun.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some((_, at)) = known.filter(|(id, _)| *id == run.id) {
            return Ok(at);
        }
        let at = schedule_write::moment(tx.conn()).await?;
        *self.begun.lock().unwrap_or_else(PoisonError::into_inner) = Some((run.id.clone(), at));
        Ok(at)
    }
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

    async fn run(&self, tx: &mut TenantTx, run: &Run) -> Result<Progress, JobError> {
        let by = self.began(tx, run).await?;
        let Some(dirty) = compute_left(tx, &self.assumptions, by).await? else { return Ok(Progress::Done) };
        // The commit comes after this: until then an older copy is not taken for a newer one, because of its version.
        self.cache.invalidate(&copies(&dirty)).await;
        Ok(Progress::More)
    }
}
