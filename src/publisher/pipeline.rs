//! Moves rows from a source to their lanes, and keeps how far all of them are settled.
//!
//! One task drives everything: reading ahead, an append in flight for each lane (a large one encodes itself beside it), the
//! rows kept back, and the mark of the last batch that is settled with all before it. What is in memory is bounded; beyond, the source waits.

use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{BoxFuture, Either, FutureExt as _};
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use tokio::time::{Instant, MissedTickBehavior, sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::lanes::{Entry, LaneId, Lanes, Work};
use super::source::{Batch, Keeper, Source};
use super::{BEAT, PublishError, Publisher, beat, record};
use crate::log::{LogError, Record, Topic, partition_of};
use crate::outbox::stuck::{self, RowPlace};
use crate::outbox::{Leadership, OutboxRow};

/// In memory at most, unless a single batch is larger.
const MOST_BYTES: usize = 6 << 20;

/// What a row takes beside its payload: key, headers and what holds them together.
const ROW_BYTES: usize = 1_024;

/// Between two stores of the mark: each leaves a dead row behind, and a transaction held open elsewhere makes the dead
/// rows pile up and each store slower. So at most fifty a second, and never more than a twentieth of the time.
const KEEP_PAUSE: Duration = Duration::from_millis(20);
const KEEP_SHARE: u32 = 20;

/// Rows of a stuck lane that are handed over at once.
const DRAIN_ROWS: i64 = 500;

/// One run of the publisher from one source.
pub(super) struct Pipeline<'a, M> {
    publisher: &'a Publisher,
    leadership: &'a Leadership,
    lanes: Lanes,
    /// Batches that are not settled, or not before one that is not.
    batches: VecDeque<Outstanding<M>>,
    /// The number of the first of them.
    first: u64,
    bytes: usize,
    running: FuturesUnordered<BoxFuture<'a, Done>>,
    /// Set when nothing new is begun: pauses end.
    halt: CancellationToken,
}

struct Outstanding<M> {
    mark: M,
    records: usize,
    bytes: usize,
}

/// What has ended.
enum Done {
    Appended { lane: LaneId, entries: Vec<Entry>, settled: usize, failed: Option<PublishError> },
    Resolved { lane: LaneId, topic: Result<Topic, LogError> },
    Looked { name: String, topic: Result<Topic, LogError> },
    Kept { lane: LaneId, entries: Vec<Entry>, result: Result<(), sqlx::Error> },
    Drained { lane: LaneId, result: Result<bool, PublishError> },
    Beaten(Result<(), PublishError>),
}

impl<'a, M: Send> Pipeline<'a, M> {
    /// Begins with the lanes that an earlier leader left stuck.
    pub(super) async fn new(
        publisher: &'a Publisher,
        leadership: &'a Leadership,
    ) -> Result<Self, PublishError> {
        let mut lanes = Lanes::default();
        for lane in stuck::lanes(&mut *leadership.session().await).await? {
            warn!(topic = lane.0, partition = lane.1, "rows were kept back from this lane: they go first");
            lanes.restore_stuck(lane);
        }
        Ok(Self {
            publisher,
            leadership,
            lanes,
            batches: VecDeque::new(),
            first: 0,
            bytes: 0,
            running: FuturesUnordered::new(),
            halt: CancellationToken::new(),
        })
    }

    /// Publishes until `until`, an error, or the end of the source and of all it gave. What is in flight then is
    /// waited for, and kept; what was read and is not in flight is read again by the next run.
    pub(super) async fn run<S, K>(
        mut self,
        source: S,
        keeper: K,
        until: impl Future<Output = ()> + Send,
    ) -> Result<(), PublishError>
    where
        S: Source<Mark = M>,
        K: Keeper<Mark = M>,
    {
        let mut until = pin!(until);
        let (mut source, mut reading) = (Some(source), None);
        let mut keeping = None;
        let mut keep_at = Instant::now();
        let mut settled: Option<M> = None;
        let mut halted: Option<Result<(), PublishError>> = None;
        let mut beats = tokio::time::interval(BEAT);
        beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            settled = self.settled().or(settled);
            self.lanes.now = self.publisher.db.now();
            if halted.is_none() {
                self.begin_work();
                if self.bytes < MOST_BYTES
                    && let Some(source) = source.take()
                {
                    reading = Some(read(source).boxed());
                }
                if source.is_none() && reading.is_none() && self.batches.is_empty() && settled.is_none() {
                    halted = Some(Ok(()));
                }
            }
            if keeping.is_none()
                && (halted.is_some() || Instant::now() >= keep_at)
                && let Some(mark) = settled.take()
            {
                keeping = Some(keep(&keeper, mark).boxed());
            }
            if halted.is_some() {
                self.halt.cancel();
                reading = None;
                if self.running.is_empty() && keeping.is_none() {
                    return halted.unwrap_or(Ok(()));
                }
            }
            let keep_next = settled.as_ref().filter(|_| keeping.is_none()).map(|_| keep_at);
            let wake_up = match keep_next.into_iter().chain(self.lanes.next_gathered()).min() {
                Some(at) => Either::Left(sleep_until(at)),
                None => Either::Right(std::future::pending()),
            };
            tokio::select! {
                // Reading first: the database works on the next page while we encode this one.
                biased;
                () = &mut until, if halted.is_none() => halted = Some(Ok(())),
                (idle, batch) = running(&mut reading) => {
                    reading = None;
                    match batch {
                        Ok(Some(batch)) => {
                            source = Some(idle);
                            self.accept(batch);
                        }
                        Ok(None) => {}
                        Err(error) => halted = Some(Err(error)),
                    }
                }
                kept = running(&mut keeping) => {
                    keeping = None;
                    // Without the lead, or without the database, it is of no use to wait for the rest.
                    keep_at = Instant::now() + KEEP_PAUSE.max(kept? * KEEP_SHARE);
                }
                _ = beats.tick(), if halted.is_none() => self.begin_maintenance(),
                Some(done) = self.running.next() => {
                    if let Err(error) = self.handle(done) {
                        halted.get_or_insert(Err(error));
                    }
                }
                () = wake_up => {}
            }
        }
    }

    /// Takes a batch into memory.
    fn accept(&mut self, batch: Batch<M>) {
        let number = self.first + self.batches.len() as u64;
        let bytes = batch.rows.iter().map(|row| ROW_BYTES + row.payload.len()).sum();
        self.batches.push_back(Outstanding { mark: batch.mark, records: batch.rows.len(), bytes });
        self.bytes += bytes;
        for row in batch.rows {
            let topic = self.publisher.topic_of(&row.aggregate_type);
            let place = RowPlace { position: row.position, occurred_at: row.occurred_at };
            self.lanes.push(&topic, Entry { batch: number, place, record: record::of_row(row) });
        }
    }

    /// The mark of the last batch that is settled with all before it, if there is a new one.
    fn settled(&mut self) -> Option<M> {
        let mut mark = None;
        while let Some(batch) = self.batches.pop_front_if(|batch| batch.records == 0) {
            self.first += 1;
            self.bytes -= batch.bytes;
            mark = Some(batch.mark);
        }
        mark
    }

    fn settle(&mut self, entries: &[Entry]) {
        for entry in entries {
            let batch = entry.batch.checked_sub(self.first).and_then(|n| usize::try_from(n).ok());
            if let Some(batch) = batch.and_then(|n| self.batches.get_mut(n)) {
                batch.records -= 1;
            }
        }
    }

    fn begin_work(&mut self) {
        for (lane, pause, work) in self.lanes.next_work() {
            let (publisher, leadership, halt) = (self.publisher, self.leadership, self.halt.clone());
            let work = async move {
                if let Some(pause) = pause {
                    tokio::select! {
                        () = sleep(pause) => {}
                        () = halt.cancelled() => {}
                    }
                }
                match work {
                    Work::Append(entries) => append(publisher, leadership, lane, entries).await,
                    Work::Resolve => Done::Resolved { topic: publisher.log.topic(&lane.0).await, lane },
                    Work::Keep(entries) => keep_back(leadership, lane, entries).await,
                    Work::Drain => Done::Drained { result: publisher.drain(leadership, &lane).await, lane },
                }
            };
            self.running.push(work.boxed());
        }
    }

    /// What the leader does each second beside publishing.
    fn begin_maintenance(&mut self) {
        self.running.push(beat(self.leadership).map(Done::Beaten).boxed());
        let publisher = self.publisher;
        for name in self.lanes.due_for_a_look(Instant::now()) {
            let look = async move { Done::Looked { topic: publisher.log.topic(&name).await, name } };
            self.running.push(look.boxed());
        }
    }

    /// Takes the end of something into account. An error ends the run.
    fn handle(&mut self, done: Done) -> Result<(), PublishError> {
        match done {
            Done::Appended { lane, mut entries, settled, failed } => {
                let rest = entries.split_off(settled);
                self.settle(&entries);
                if settled > 0 || failed.is_none() {
                    self.lanes.appended(&lane);
                }
                match failed {
                    None => {}
                    Some(PublishError::Log(error)) => {
                        self.lanes.failed(&lane, rest);
                        if matches!(error, LogError::UnknownTopic { .. }) {
                            self.lanes.dissolve(&lane.0);
                        }
                        self.failed(&lane, &error);
                    }
                    Some(error) => return Err(error),
                }
            }
            Done::Resolved { lane, topic: Ok(topic) } => self.lanes.resolved(&lane.0, topic),
            Done::Resolved { lane, topic: Err(error) } => {
                self.lanes.failed(&lane, Vec::new());
                self.failed(&lane, &error);
            }
            Done::Looked { name, topic: Ok(topic) } => self.lanes.looked_at(&name, topic),
            // One that is gone is noticed when something is appended to it.
            Done::Looked { name, topic: Err(error) } => {
                debug!(topic = name, %error, "a topic cannot be looked at")
            }
            Done::Kept { lane, entries, result } => {
                result?;
                self.settle(&entries);
                self.lanes.kept(&lane);
            }
            Done::Drained { lane, result: Ok(empty) } => self.lanes.drained(&lane, empty),
            Done::Drained { lane, result: Err(PublishError::Log(error)) } => {
                warn!(topic = lane.0, partition = lane.1, %error, "the lane is still stuck");
                self.lanes.drain_failed(&lane);
            }
            Done::Drained { result: Err(error), .. } => return Err(error),
            Done::Beaten(result) => result?,
        }
        Ok(())
    }

    fn failed(&mut self, lane: &LaneId, error: &LogError) {
        let (topic, partition) = (&lane.0, lane.1);
        warn!(topic, partition, %error, "publishing failed; the same events are tried again");
        if self.lanes.give_up(lane, self.publisher.lane_patience) {
            warn!(
                topic,
                partition, "the lane is stuck: its events are kept in outbox_stuck, the others flow"
            );
        }
    }
}

/// Reads once and gives the source back.
async fn read<S: Source>(mut source: S) -> (S, Result<Option<Batch<S::Mark>>, PublishError>) {
    let batch = source.next().await;
    (source, batch)
}

/// Keeps a mark and says how long it took.
async fn keep<K: Keeper>(keeper: &K, mark: K::Mark) -> Result<Duration, PublishError> {
    let started = Instant::now();
    keeper.keep(mark).await?;
    Ok(started.elapsed())
}

/// Waits for a future, if there is one.
async fn running<F: Future + Unpin>(future: &mut Option<F>) -> F::Output {
    match future {
        Some(future) => future.await,
        None => std::future::pending().await,
    }
}

async fn append(
    publisher: &Publisher,
    leadership: &Leadership,
    lane: LaneId,
    mut entries: Vec<Entry>,
) -> Done {
    let records = entries.iter_mut().map(|entry| std::mem::take(&mut entry.record)).collect();
    let records: Arc<Vec<Record>> = Arc::new(records);
    let handed_over = publisher.hand_over(leadership, &lane.0, lane.1, &records).await;
    let rest = handed_over.settled;
    for (entry, record) in entries.iter_mut().zip(Arc::unwrap_or_clone(records)).skip(rest) {
        entry.record = record;
    }
    Done::Appended { lane, entries, settled: rest, failed: handed_over.failed }
}

async fn keep_back(leadership: &Leadership, lane: LaneId, entries: Vec<Entry>) -> Done {
    let places: Vec<RowPlace> = entries.iter().map(|entry| entry.place).collect();
    let result = stuck::keep(&mut *leadership.session().await, &lane.0, lane.1, &places).await;
    Done::Kept { lane, entries, result }
}

impl Publisher {
    /// Hands over the first rows of a stuck lane. `true`: there were none.
    async fn drain(&self, leadership: &Leadership, lane: &LaneId) -> Result<bool, PublishError> {
        let (topic, partition) = (lane.0.as_str(), lane.1);
        let known = self.log.topic(topic).await?;
        let rows = stuck::first(&mut *leadership.session().await, topic, partition, DRAIN_ROWS).await?;
        let empty = rows.is_empty();
        // Among the partitions of today: the topic may have been made anew.
        for (partition, rows) in by_partition(rows, known.partitions) {
            let positions: Vec<i64> = rows.iter().map(|row| row.position).collect();
            let mut records: Vec<Record> = rows.into_iter().map(record::of_row).collect();
            for record in &mut records {
                record::keep_alive(record, known.retention, self.db.now());
            }
            let handed_over = self.hand_over(leadership, topic, partition, &Arc::new(records)).await;
            stuck::forget(&mut *leadership.session().await, &positions[..handed_over.settled]).await?;
            if let Some(failed) = handed_over.failed {
                return Err(failed);
            }
        }
        Ok(empty)
    }
}

fn by_partition(rows: Vec<OutboxRow>, partitions: i32) -> BTreeMap<i32, Vec<OutboxRow>> {
    let mut by_partition: BTreeMap<i32, Vec<OutboxRow>> = BTreeMap::new();
    for row in rows {
        let partition = partition_of(row.event_key.as_bytes(), partitions);
        by_partition.entry(partition).or_default().push(row);
    }
    by_partition
}
