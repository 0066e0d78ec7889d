//! The loop of one job: wait until it is due, take it, visit the tenants, write down how it went.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};
use uuid::Uuid;

use super::Job;
use super::ledger::{self, Claim, Outcome};
use super::visit::{Broken, Held};
use crate::backoff::{Backoff, jittered};
use crate::db::Db;
use crate::doorbell::Doorbells;
use crate::metrics;

/// The pause after a run that failed as a whole, doubled with each up to the longest.
const RUN_PAUSE: Duration = Duration::from_secs(10);
const LONGEST_RUN_PAUSE: Duration = Duration::from_secs(600);

/// What an operator may set.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// How often a job is looked at that another process may have finished or left.
    pub poll: Duration,
    /// A process that does not renew for so long has lost its job. Longer than PostgreSQL leaves a transaction alone
    /// whose process is frozen, so that nothing of it is left when another begins.
    pub lease: Duration,
}

/// Runs one job, in turn with the runners of other processes.
pub struct Runner {
    pub(super) db: Db,
    pub(super) bells: Doorbells,
    pub(super) job: Arc<dyn Job>,
    settings: Settings,
    owner: String,
}

/// What a step did.
#[derive(Debug)]
pub enum Step {
    /// The job is not due, or somebody runs it: look again after this.
    Waiting(Duration),
    /// A run came to its end.
    Ran(Ended),
    /// The process stops: the job was given back, and stays due.
    Stopped,
    /// Another process has taken the job since; what this one had open was rolled back.
    Lost,
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// Tenants that were visited.
    pub tenants: usize,
    pub tenants_failed: usize,
    /// The last error.
    pub error: Option<String>,
}

impl Runner {
    pub fn new(db: Db, bells: Doorbells, job: Arc<dyn Job>, settings: Settings) -> Self {
        Self { db, bells, job, settings, owner: Uuid::now_v7().to_string() }
    }

    /// Enters the job in the table, where it may stand already.
    pub async fn register(&self) -> Result<(), sqlx::Error> {
        let mut tx = self.db.worker().await?;
        ledger::register(tx.conn(), self.job.name(), self.job.schedule()).await?;
        tx.commit().await
    }

    /// Runs the job whenever it is due, until the stop.
    pub async fn run(self, stopping: CancellationToken) -> anyhow::Result<()> {
        let job = self.job.name();
        let mut backoff = Backoff::default();
        let mut registered = false;
        while !stopping.is_cancelled() {
            let step = async {
                if !registered {
                    self.register().await?;
                }
                self.step(&stopping).await
            };
            let pause = match step.await {
                Ok(step) => {
                    registered = true;
                    backoff.reset();
                    match step {
                        Step::Waiting(due) => due.min(jittered(self.settings.poll)),
                        Step::Ran(Ended { error: None, tenants, .. }) => {
                            // Some run every few seconds, mostly with nothing to do.
                            if tenants > 0 {
                                info!(job, tenants, "a job has run");
                            } else {
                                debug!(job, "a job has run with nothing to do");
                            }
                            Duration::ZERO
                        }
                        Step::Ran(Ended { error: Some(error), tenants, tenants_failed }) => {
                            warn!(job, tenants, tenants_failed, %error, "a job has run and failed, at least in part");
                            Duration::ZERO
                        }
                        Step::Stopped => break,
                        Step::Lost => {
                            warn!(
                                job,
                                "another process has taken the job; what was open here is rolled back"
                            );
                            jittered(self.settings.poll)
                        }
                    }
                }
                Err(error) => {
                    warn!(job, %error, "a job could not be looked at; trying again");
                    backoff.pause()
                }
            };
            tokio::select! {
                () = stopping.cancelled() => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
        Ok(())
    }

    /// Runs the job once if it is due and nobody else does.
    pub async fn step(&self, stopping: &CancellationToken) -> Result<Step, sqlx::Error> {
        let asked = Instant::now();
        let Some(claim) = self.claim().await? else {
            return self.until_due().await.map(Step::Waiting);
        };
        let lease = self.settings.lease;
        let held = Held { claim, renewed: Mutex::new(asked), lease };
        // A lease that is lost ends the work: another process may be at it.
        let visited = tokio::select! {
            visited = Box::pin(self.visit(&held, stopping)) => visited,
            () = Box::pin(self.keep(&held)) => Err(Broken::Lost),
        };
        let (ended, as_a_whole) = match visited {
            Ok(ended) => (ended, false),
            Err(Broken::Failed(error)) => {
                (Ended { tenants: 0, tenants_failed: 0, error: Some(error.to_string()) }, true)
            }
            Err(Broken::Stopped) => {
                let mut tx = self.db.worker().await?;
                ledger::release(tx.conn(), self.job.name(), held.claim.epoch).await?;
                tx.commit().await?;
                return Ok(Step::Stopped);
            }
            Err(Broken::Lost) => return Ok(Step::Lost),
        };
        self.finish(&held, ended, as_a_whole).await
    }

    async fn claim(&self) -> Result<Option<Claim>, sqlx::Error> {
        let mut tx = self.db.worker().await?;
        let claim = ledger::claim(tx.conn(), self.job.name(), &self.owner, self.settings.lease).await?;
        tx.commit().await?;
        Ok(claim)
    }

    /// How long nothing is due. Whoever runs it now may leave it at any moment, which the poll finds out.
    async fn until_due(&self) -> Result<Duration, sqlx::Error> {
        let mut tx = self.db.worker().await?;
        let entry = ledger::entry(tx.conn(), self.job.name()).await?;
        tx.commit().await?;
        let due = entry.map_or(self.settings.poll, |entry| {
            let next = entry.retry_at.map_or(entry.next_run_at, |retry| retry.min(entry.next_run_at));
            (next - entry.now).to_std().unwrap_or(self.settings.poll)
        });
        Ok(due)
    }

    async fn finish(&self, held: &Held, ended: Ended, as_a_whole: bool) -> Result<Step, sqlx::Error> {
        let job = self.job.name();
        let failing = ledger::count_failing(&self.db, job).await?;
        let mut tx = self.db.worker().await?;
        let before = ledger::entry(tx.conn(), job).await?.map_or(0, |entry| entry.failures_in_a_row);
        let schedule = self.job.schedule();
        let outcome = Outcome {
            tenants: ended.tenants,
            error: ended.error.clone(),
            pause: as_a_whole.then(|| pause_after(before).min(schedule.period())),
        };
        let ours = ledger::finish(tx.conn(), job, schedule, &held.claim, &outcome, &failing).await?;
        tx.commit().await?;
        if !ours {
            return Ok(Step::Lost);
        }
        metrics::job_run(job, if ended.error.is_none() { "ok" } else { "failed" });
        Ok(Step::Ran(ended))
    }
}

/// The pause after one more run in a row that failed as a whole.
fn pause_after(failures: i32) -> Duration {
    RUN_PAUSE.saturating_mul(1 << failures.clamp(0, 10)).min(LONGEST_RUN_PAUSE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_that_fail_as_a_whole_come_ever_later() {
        assert_eq!(pause_after(0), Duration::from_secs(10));
        assert_eq!(pause_after(3), Duration::from_secs(80));
        assert_eq!(pause_after(i32::MAX), LONGEST_RUN_PAUSE);
    }
}
