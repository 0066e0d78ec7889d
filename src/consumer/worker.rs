//! The worker of one partition: retry what is parked, fetch, apply.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::Context;
use super::apply::{Applied, Failure};
use super::fetcher::Fetcher;
use super::health::Health;
use super::offset::Claim;
use super::pause::Pause;
use super::redelivery::Replays;
use super::suspect::Suspicion;
use super::takeover::Takeover;
use super::transient::Patience;
use super::trouble::{Complaint, Trouble};
use crate::backoff::Backoff;
use crate::cache::Key;
use crate::doorbell::Bell;
use crate::group::TopicPartition;
use crate::log::{LogError, Record};
use crate::metrics;
use crate::projection::{Dirty, Row};

/// A worker that ran for so long before it panicked starts anew at once.
const STEADY: Duration = Duration::from_secs(60);

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
    /// How many events are in it.
    pub(super) parked: i64,
    pub(super) fetcher: Fetcher,
    pub(super) health: Health,
    pub(super) patience: Patience,
    pub(super) suspicion: Option<Suspicion>,
    /// While it stands still on purpose.
    pub(super) pause: Option<Pause>,
    pub(super) trouble: Option<Trouble>,
    complaint: Complaint,
    /// When to look whether the topic is still the one that the offset counts in.
    pub(super) look_at_topic: Instant,
    /// When to look through the outbox once more for what the log has lost.
    pub(super) look_again_at: Option<Instant>,
    /// Whether this worker had the partition before: what it finds unreleased is its own.
    had_it: bool,
}

impl Worker {
    /// A worker that claims the partition when it runs.
    pub(super) fn new(context: Arc<Context>, partition: TopicPartition, member_id: String) -> Self {
        let replays = Replays::new(&context.bells);
        Self {
            context,
            partition,
            member_id,
            retry_at: None,
            replays,
            parked: 0,
            fetcher: Fetcher::default(),
            health: Health::default(),
            patience: Patience::default(),
            suspicion: None,
            pause: None,
            trouble: None,
            complaint: Complaint::default(),
            look_at_topic: Instant::now(),
            look_again_at: None,
            had_it: false,
        }
    }

    /// Works until the stop, or until another member has the partition. A panic ends neither: it starts anew.
    pub(super) async fn run(mut self, stop: CancellationToken) {
        let mut backoff = Backoff::default();
        loop {
            let started = Instant::now();
            let working = Box::pin(AssertUnwindSafe(self.work(&stop)).catch_unwind());
            if working.await.is_ok() {
                return;
            }
            if started.elapsed() > STEADY {
                backoff.reset();
            }
            error!(
                group = self.context.group.name,
                topic = self.partition.topic,
                partition = self.partition.partition,
                "the worker panicked, see the message before this one; it starts anew"
            );
            metrics::retry(self.context.group.name, "panic");
            tokio::select! {
                () = stop.cancelled() => return,
                () = sleep(backoff.pause()) => {}
            }
        }
    }

    async fn work(&mut self, stop: &CancellationToken) {
        let mut backoff = Backoff::default();
        let Some(mut claim) = self.claim(stop).await else { return };
        info!(
            group = self.context.group.name,
            topic = self.partition.topic,
            partition = self.partition.partition,
            offset = claim.next_offset,
            "working on the partition"
        );
        while !stop.is_cancelled() {
            match self.step(&mut claim, stop).await {
                Ok(Step::Worked | Step::Idle) => {
                    backoff.reset();
                    self.complaint = Complaint::default();
                }
                Ok(Step::Fenced) => return self.fenced(),
                Err(error) => {
                    if let Err(error) = self.complain(&claim, &error).await {
                        warn!(%error, "what stands in the way was not written down");
                    }
                    tokio::select! {
                        () = stop.cancelled() => {}
                        () = sleep(backoff.pause()) => {}
                    }
                }
            }
        }
        metrics::consumer_lag(self.context.group.name, &self.partition.topic, self.partition.partition, None);
        if let Err(error) = claim.release(&self.context.db).await {
            warn!(%error, "the partition was not released; its next owner waits for the lease");
        }
    }

    /// Claims the partition, however long it takes. `None`: the stop came first.
    async fn claim(&mut self, stop: &CancellationToken) -> Option<Claim> {
        let (mut takeover, mut backoff) = (Takeover::default(), Backoff::default());
        loop {
            let context = &self.context;
            let taken =
                takeover.attempt(&context.db, context.group.name, &self.partition, &self.member_id).await;
            let error = match taken {
                Ok(claim) => match self.begin(&claim).await {
                    Ok(()) => return Some(claim),
                    Err(error) => error,
                },
                Err(error) => error,
            };
            if self.complaint.is_news(&error.to_string(), Instant::now()) {
                warn!(topic = self.partition.topic, partition = self.partition.partition, %error,
                    "the partition cannot be claimed; trying again");
            }
            tokio::select! {
                () = stop.cancelled() => return None,
                () = sleep(backoff.pause()) => {}
            }
        }
    }

    /// Starts at the claim with what its previous owner left behind.
    async fn begin(&mut self, claim: &Claim) -> Result<(), sqlx::Error> {
        self.fetcher = Fetcher::at(claim.next_offset);
        self.patience = Patience::default();
        self.pause = None;
        self.trouble = claim.before.trouble.clone().map(Trouble::Log);
        self.look_at_topic = Instant::now();
        self.suspicion = Suspicion::after(claim, self.context.settings.batch_size).filter(|_| !self.had_it);
        self.had_it = true;
        if self.suspects() {
            warn!(
                group = self.context.group.name,
                topic = self.partition.topic,
                partition = self.partition.partition,
                offset = claim.next_offset,
                "the previous owner did not let the partition go: its events are tried one by one"
            );
        }
        self.look_at_queue(claim).await
    }

    /// Goes on where the offset is stored, if that is elsewhere than we believe: an operator has moved it past what cannot
    /// be read, or the database has failed over to one that knows less, which whoever waits for records would never come
    /// to know. `Idle`: it is where we believe.
    pub(super) async fn follow_stored_offset(&mut self, claim: &mut Claim) -> Result<Step, StepError> {
        let mut tx = self.context.db.worker().await?;
        let stored = claim.stored_offset(tx.conn()).await?;
        tx.rollback().await?;
        match stored {
            None => Ok(Step::Fenced),
            Some(same) if same == claim.next_offset => Ok(Step::Idle),
            Some(moved) => {
                warn!(
                    group = self.context.group.name,
                    topic = self.partition.topic,
                    partition = self.partition.partition,
                    from = claim.next_offset,
                    to = moved,
                    "the offset was moved by somebody else, or the database has gone back"
                );
                claim.next_offset = moved;
                self.fetcher = Fetcher::at(moved);
                self.look_at_queue(claim).await?;
                Ok(Step::Worked)
            }
        }
    }

    /// Another member has the partition, or its offset was moved. If the membership still gives it to us after a pause, a
    /// new worker claims it.
    fn fenced(&self) {
        metrics::fenced_commit(self.context.group.name);
        metrics::consumer_lag(self.context.group.name, &self.partition.topic, self.partition.partition, None);
        info!(
            topic = self.partition.topic,
            partition = self.partition.partition,
            "another member has the partition, or its offset was moved"
        );
    }

    /// One round: replays that were asked for, what is due in the retry queue, or a batch of what was fetched, or a fetch.
    pub(super) async fn step(
        &mut self,
        claim: &mut Claim,
        stop: &CancellationToken,
    ) -> Result<Step, StepError> {
        if self.pause.is_some() {
            return self.probe(claim, stop).await;
        }
        if self.replays.due() && !self.pick_up(claim).await? {
            return Ok(Step::Fenced);
        }
        if self.retry_at.is_some_and(|due| due <= Instant::now()) {
            return self.retry_due(claim).await;
        }
        if self.fetcher.is_empty() {
            if self.look_at_topic <= Instant::now() && !self.check_topic(claim).await? {
                return Ok(Step::Fenced);
            }
            return self.fetch(claim, stop).await;
        }
        // The next fetch runs while this one is applied.
        self.fetcher.ahead(&self.context, &self.partition);
        let records = self.fetcher.take();
        let one_by_one = self.suspects() || self.patience.isolates(claim.next_offset);
        let count = if one_by_one { 1 } else { self.context.settings.batch_size as usize };
        let batch = &records[..count.min(records.len())];
        let applied = if self.suspects() {
            self.apply_suspect(claim, batch).await
        } else {
            self.apply_all(claim, batch).await
        };
        self.fetcher.keep(records, claim.next_offset);
        self.clear_suspicion(claim, false);
        self.show_lag(claim);
        applied
    }

    async fn fetch(&mut self, claim: &mut Claim, stop: &CancellationToken) -> Result<Step, StepError> {
        self.fetcher.ahead(&self.context, &self.partition);
        let retry_at = self.retry_at;
        let retry_is_due = async {
            match retry_at {
                Some(due) => sleep_until(due).await,
                None => std::future::pending().await,
            }
        };
        let arrived = tokio::select! {
            () = stop.cancelled() => return Ok(Step::Idle),
            () = self.replays.rung() => return Ok(Step::Idle),
            () = retry_is_due => return Ok(Step::Idle),
            arrived = self.fetcher.arrival() => arrived,
        };
        match arrived {
            Ok(()) => {}
            Err(LogError::OffsetOutOfRange { .. }) => {
                return Ok(if self.find_place(claim).await? { Step::Worked } else { Step::Fenced });
            }
            Err(error) => {
                // A topic that comes back after an error may be another one.
                self.look_at_topic = Instant::now();
                if !matches!(error, LogError::Unreadable { .. }) {
                    return Err(error.into());
                }
                return match self.follow_stored_offset(claim).await? {
                    Step::Idle => Err(error.into()),
                    followed => Ok(followed),
                };
            }
        }
        self.log_is_well(claim).await?;
        self.show_lag(claim);
        if !self.look_again(claim).await? {
            return Ok(Step::Fenced);
        }
        if self.fetcher.is_empty() {
            self.clear_suspicion(claim, true);
            return Ok(Step::Idle);
        }
        Ok(Step::Worked)
    }

    /// Applies records in one transaction; a batch that fails is halved until the event at fault stands alone.
    pub(super) async fn apply_all(
        &mut self,
        claim: &mut Claim,
        records: &[(i64, Record)],
    ) -> Result<Step, StepError> {
        let mut todo = vec![records];
        while let Some(batch) = todo.pop() {
            let Some((last, _)) = batch.last() else { continue };
            let end = last + 1;
            match self.apply(claim, batch, end).await {
                Ok(None) => return Ok(Step::Fenced),
                Ok(Some(applied)) => {
                    claim.next_offset = end;
                    self.patience.progress(end);
                    self.after_commit(claim, applied).await?;
                }
                Err(Failure::Transient(cause)) => {
                    metrics::retry(self.context.group.name, "transient");
                    self.patience.failed(claim.next_offset, end, self.tolerance(), Instant::now());
                    let [(offset, record)] = batch else {
                        return Err(StepError::Transient(cause.to_string()));
                    };
                    if !self.patience.gives_way(*offset, self.tolerance(), Instant::now()) {
                        return Err(StepError::Transient(cause.to_string()));
                    }
                    if !self.set_aside(claim, *offset, record, &cause).await? {
                        return Ok(Step::Fenced);
                    }
                    claim.next_offset = end;
                }
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
            if self.pause.is_some() {
                break;
            }
        }
        Ok(Step::Worked)
    }

    /// Tells the others: caches first, since a reader woken by the bell may look there.
    pub(super) async fn after_commit(&mut self, claim: &Claim, applied: Applied) -> Result<(), sqlx::Error> {
        self.context.invalidate(&applied.dirty).await;
        self.context.bells.ring(Bell::Applied);
        if applied.appended {
            self.context.bells.ring(Bell::Outbox);
        }
        applied.count(self.context.group.name, self.context.db.now());
        applied.keys.iter().for_each(|key| self.health.succeeded(key));
        if applied.parked {
            self.look_at_queue(claim).await?;
        }
        Ok(())
    }

    /// How long an event may keep failing for reasons called transient.
    pub(super) fn tolerance(&self) -> Duration {
        Duration::from_millis(self.context.settings.transient_patience_ms)
    }

    /// After that many failures an event becomes a dead letter.
    pub(super) fn attempts(&self) -> i32 {
        i32::try_from(self.context.settings.attempts).unwrap_or(i32::MAX)
    }

    fn show_lag(&self, claim: &Claim) {
        let lag = self.fetcher.end.map(|end| (end - claim.next_offset).max(0));
        metrics::consumer_lag(self.context.group.name, &self.partition.topic, self.partition.partition, lag);
    }

    /// Says what failed, unless it was said before.
    async fn complain(&mut self, claim: &Claim, error: &StepError) -> Result<(), sqlx::Error> {
        if let StepError::Log(error) = error
            && let Some(trouble) = Trouble::of_log(error, self.context.group.name)
        {
            return self.stand_still(claim, trouble).await;
        }
        if self.complaint.is_news(&error.to_string(), Instant::now()) {
            warn!(topic = self.partition.topic, partition = self.partition.partition, %error,
                "step failed; the same events are tried again");
        }
        Ok(())
    }
}

impl Context {
    async fn invalidate(&self, dirty: &[Dirty]) {
        self.cache.invalidate(&copies(dirty)).await;
    }
}

/// The copies of rows in the cache, and the versions that are newer.
pub fn copies(dirty: &[Dirty]) -> Vec<(Key, i64)> {
    let key = |dirty: &Dirty| match &dirty.row {
        Row::Portfolio(user) => Key::portfolio(&dirty.tenant_id, user),
        Row::Schedule(user) => Key::schedule(&dirty.tenant_id, user),
        Row::Forecast(date) => Key::forecast(&dirty.tenant_id, *date),
    };
    dirty.iter().map(|dirty| (key(dirty), dirty.version)).collect()
}
