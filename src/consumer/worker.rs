//! The worker of one partition: retry what is parked, fetch, apply.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::Context;
use super::apply::{Applied, Failure};
use super::offset::Claim;
use super::redelivery::Replays;
use crate::backoff::Backoff;
use crate::doorbell::Bell;
use crate::group::TopicPartition;
use crate::log::{FetchLimits, LogError, Record};
use crate::metrics;
use crate::projection::Dirty;

/// What one step did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// Events were applied, parked, or given up; there may be more.
    Worked,
    /// Nothing to do for as long as a fetch waits.
    Idle,
    /// Another member has the partition: nothing was committed.
    Fenced,
}

/// Why a step failed; it is repeated.
#[derive(Debug, thiserror::Error)]
pub(super) enum StepError {
    #[error("database: {0}")]
    Database(#[from] sqlx::Error),
    #[error(transparent)]
    Log(#[from] LogError),
    #[error("{0}")]
    Transient(String),
}

/// The worker of one partition.
pub(super) struct Worker {
    pub(super) context: Arc<Context>,
    pub(super) partition: TopicPartition,
    member_id: String,
    /// When the retry queue of this partition has something due; `None` while it is empty.
    pub(super) retry_at: Option<Instant>,
    pub(super) replays: Replays,
}

impl Worker {
    /// A worker that claims the partition when it runs.
    pub(super) fn new(context: Arc<Context>, partition: TopicPartition, member_id: String) -> Self {
        let replays = Replays::new(&context.bells);
        Self { context, partition, member_id, retry_at: None, replays }
    }

    /// Works until the stop, or until another member has the partition.
    pub(super) async fn run(mut self, stop: CancellationToken) {
        let mut backoff = Backoff::default();
        let mut claim = loop {
            match self.claim().await {
                Ok(claim) => break claim,
                Err(error) => {
                    warn!(topic = self.partition.topic, partition = self.partition.partition, %error,
                        "the partition cannot be claimed; trying again");
                    tokio::select! {
                        () = stop.cancelled() => return,
                        () = tokio::time::sleep(backoff.pause()) => {}
                    }
                }
            }
        };
        backoff.reset();
        info!(
            group = self.context.group.name,
            topic = self.partition.topic,
            partition = self.partition.partition,
            offset = claim.next_offset,
            "working on the partition"
        );
        while !stop.is_cancelled() {
            match self.step(&mut claim, &stop).await {
                Ok(Step::Worked | Step::Idle) => backoff.reset(),
                Ok(Step::Fenced) => {
                    metrics::fenced_commit(self.context.group.name);
                    info!(
                        topic = self.partition.topic,
                        partition = self.partition.partition,
                        "another member has the partition"
                    );
                    return;
                }
                Err(error) => {
                    warn!(topic = self.partition.topic, partition = self.partition.partition, %error,
                        "step failed; the same events are tried again");
                    tokio::select! {
                        () = stop.cancelled() => {}
                        () = tokio::time::sleep(backoff.pause()) => {}
                    }
                }
            }
        }
        if let Err(error) = claim.release(&self.context.db).await {
            warn!(%error, "the partition was not released; its next owner waits for the lease");
        }
    }

    async fn claim(&mut self) -> Result<Claim, sqlx::Error> {
        let claim =
            Claim::take(&self.context.db, self.context.group.name, &self.partition, &self.member_id).await?;
        self.look_at_queue().await?;
        Ok(claim)
    }

    /// One round: replays that were asked for, what is due in the retry queue, then one fetch and its batch.
    pub(super) async fn step(
        &mut self,
        claim: &mut Claim,
        stop: &CancellationToken,
    ) -> Result<Step, StepError> {
        if self.replays.due() && !self.pick_up(claim).await? {
            return Ok(Step::Fenced);
        }
        if self.retry_at.is_some_and(|due| due <= Instant::now()) {
            return self.retry_due(claim).await;
        }
        let settings = &self.context.settings;
        let longest = Duration::from_millis(settings.fetch_max_wait_ms);
        let until_retry = self.retry_at.map_or(longest, |due| due.saturating_duration_since(Instant::now()));
        let limits = FetchLimits {
            max_records: settings.batch_size as usize,
            max_bytes: settings.fetch_max_bytes,
            max_wait: longest.min(until_retry).max(Duration::from_millis(1)),
        };
        let fetched = tokio::select! {
            () = stop.cancelled() => return Ok(Step::Idle),
            () = self.replays.rung() => return Ok(Step::Idle),
            fetched = self.context.log.fetch(
                &self.partition.topic, self.partition.partition, claim.next_offset, limits) => fetched?,
        };
        if fetched.records.is_empty() {
            return Ok(Step::Idle);
        }
        self.apply_all(claim, &fetched.records).await
    }

    /// Applies records in one transaction; a batch that fails is halved until the event at fault stands alone.
    async fn apply_all(&mut self, claim: &mut Claim, records: &[(i64, Record)]) -> Result<Step, StepError> {
        let mut todo = vec![records];
        while let Some(batch) = todo.pop() {
            let Some((last, _)) = batch.last() else { continue };
            let end = last + 1;
            match self.apply(claim, batch, end).await {
                Ok(None) => return Ok(Step::Fenced),
                Ok(Some(applied)) => {
                    claim.next_offset = end;
                    self.after_commit(applied).await?;
                }
                Err(Failure::Transient(message)) => return Err(StepError::Transient(message)),
                Err(Failure::Batch(_)) if batch.len() > 1 => {
                    let (first, second) = batch.split_at(batch.len() / 2);
                    todo.push(second);
                    todo.push(first);
                }
                Err(Failure::Batch(cause)) => {
                    let (offset, record) = &batch[0];
                    if !self.park_failed(claim, *offset, record, &cause).await? {
                        return Ok(Step::Fenced);
                    }
                    claim.next_offset = end;
                }
            }
        }
        Ok(Step::Worked)
    }

    /// Tells the others: caches first, since a reader woken by the bell may look there.
    pub(super) async fn after_commit(&mut self, applied: Applied) -> Result<(), sqlx::Error> {
        self.context.invalidate(&applied.dirty).await;
        self.context.bells.ring(Bell::Applied);
        applied.count(self.context.group.name);
        if applied.parked {
            self.look_at_queue().await?;
        }
        Ok(())
    }
}

impl Context {
    async fn invalidate(&self, dirty: &[Dirty]) {
        let keys: Vec<_> = dirty
            .iter()
            .map(|d| (crate::cache::Key::portfolio(&d.tenant_id, &d.user_id), d.version))
            .collect();
        self.cache.invalidate(&keys).await;
    }
}
