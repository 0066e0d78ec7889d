//! One run: the lease that is kept meanwhile, and the tenants, each in transactions of its own.

use std::collections::{HashSet, VecDeque};
use std::panic::AssertUnwindSafe;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::ledger::{self, Claim};
use super::runner::{Ended, Runner};
use super::{JobError, Progress, Run};
use crate::db::{SqlFailure, classify};
use crate::doorbell::Bell;
use crate::identifier::TenantId;
use crate::metrics;

/// Why a visit to the tenants was given up.
pub(super) enum Broken {
    /// The process stops.
    Stopped,
    /// The lease ran out.
    Lost,
    /// The database does not answer, or the statement that lists the tenants fails.
    Failed(sqlx::Error),
}

impl From<sqlx::Error> for Broken {
    fn from(error: sqlx::Error) -> Self {
        Self::Failed(error)
    }
}

/// Why a tenant's work was not done.
enum TenantFailure {
    Broken(Broken),
    /// The job fails for this tenant.
    Job(String),
}

/// A claim, and when it was renewed last by a clock that only runs, taken before the renewal was sent.
pub(super) struct Held {
    pub(super) claim: Claim,
    pub(super) renewed: Mutex<Instant>,
    pub(super) lease: Duration,
}

impl Held {
    fn renewed_at(&self) -> Instant {
        *self.renewed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn renew(&self, at: Instant) {
        *self.renewed.lock().unwrap_or_else(PoisonError::into_inner) = at;
    }

    fn has_run_out(&self) -> bool {
        self.renewed_at().elapsed() >= self.lease
    }
}

impl Runner {
    /// Renews the claim; returns when it is lost.
    pub(super) async fn keep(&self, held: &Held) {
        loop {
            tokio::time::sleep(held.lease / 4).await;
            let asked = Instant::now();
            let renewed = async {
                let mut tx = self.db.worker().await?;
                let renewed = ledger::renew(tx.conn(), self.job.name(), held.claim.epoch, held.lease).await?;
                tx.commit().await?;
                Ok::<_, sqlx::Error>(renewed)
            };
            match renewed.await {
                Ok(true) => held.renew(asked),
                Ok(false) => return,
                Err(_) if held.has_run_out() => return,
                Err(error) => warn!(job = self.job.name(), %error, "a job's lease could not be renewed yet"),
            }
        }
    }

    /// Visits every tenant that has something to do and does not have to wait.
    pub(super) async fn visit(&self, held: &Held, stopping: &CancellationToken) -> Result<Ended, Broken> {
        let job = self.job.name();
        let failing = ledger::failing(&self.db, job).await?;
        let waiting: HashSet<&TenantId> =
            failing.iter().filter(|(_, waits)| *waits).map(|(tenant, _)| tenant).collect();
        let listed: Vec<TenantId> = if held.claim.for_all {
            let listed: Vec<(TenantId,)> = self.db.across_tenants(self.job.tenants(), &[]).await?;
            listed.into_iter().map(|(tenant,)| tenant).collect()
        } else {
            failing.iter().map(|(tenant, _)| tenant.clone()).collect()
        };
        let run = Run { id: format!("job:{job}:{}", held.claim.epoch) };
        let mut queue: VecDeque<&TenantId> =
            listed.iter().filter(|tenant| !waiting.contains(tenant)).collect();
        let mut ended = Ended { tenants: queue.len(), tenants_failed: 0, error: None };
        while let Some(tenant) = queue.pop_front() {
            let failed_before = failing.iter().any(|(failed, _)| failed == tenant);
            match self.work(held, tenant, &run, stopping).await {
                // Whoever has much to do goes behind those that have not had a turn.
                Ok(Progress::More) => queue.push_back(tenant),
                Ok(Progress::Done) if failed_before => {
                    let mut tx = self.db.worker().await?;
                    ledger::recovered(&mut tx, job, tenant).await?;
                    tx.commit().await?;
                }
                Ok(Progress::Done) => {}
                Err(TenantFailure::Broken(broken)) => return Err(broken),
                Err(TenantFailure::Job(error)) => {
                    warn!(job, %tenant, error, "a job failed for a tenant; it is tried again later");
                    metrics::job_tenant_failed(job);
                    let mut tx = self.db.worker().await?;
                    ledger::failed(&mut tx, job, tenant, &error).await?;
                    tx.commit().await?;
                    ended.tenants_failed += 1;
                    ended.error = Some(error);
                }
            }
        }
        Ok(ended)
    }

    /// Does a part of a tenant's work, in one transaction.
    async fn work(
        &self,
        held: &Held,
        tenant: &TenantId,
        run: &Run,
        stopping: &CancellationToken,
    ) -> Result<Progress, TenantFailure> {
        let broken = |error: sqlx::Error| match classify(&error) {
            // Nothing of the tenant's: the others would fare alike.
            SqlFailure::Transient => TenantFailure::Broken(Broken::Failed(error)),
            SqlFailure::Permanent => TenantFailure::Job(error.to_string()),
        };
        if stopping.is_cancelled() {
            return Err(TenantFailure::Broken(Broken::Stopped));
        }
        // A process that was frozen for longer begins nothing more.
        if held.has_run_out() {
            return Err(TenantFailure::Broken(Broken::Lost));
        }
        let mut tx = self.db.tenant(tenant).await.map_err(broken)?;
        let progress = AssertUnwindSafe(self.job.run(&mut tx, run)).catch_unwind().await;
        fail::fail_point!("jobs.before_commit");
        match progress {
            Ok(Ok(progress)) => {
                tx.commit().await.map_err(broken)?;
                self.bells.ring(Bell::Outbox);
                Ok(progress)
            }
            Ok(Err(error)) => Err(TenantFailure::Job(in_one_line(&error))),
            // Its message is in the log.
            Err(_) => Err(TenantFailure::Job("the job panicked".to_owned())),
        }
    }
}

/// An error with its causes.
fn in_one_line(error: &JobError) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        line = format!("{line}: {error}");
        cause = error.source();
    }
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}
