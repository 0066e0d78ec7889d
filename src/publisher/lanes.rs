//! What waits for which partition, and how each partition is doing.
//!
//! A lane is a partition of a topic; while a topic is not known, its rows wait together in one lane. A lane that is
//! stuck takes nothing into memory: its rows are kept in `outbox_stuck` until they are drained in order.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::time::Duration;

use chrono::Utc;
use tokio::time::Instant;

use super::record;
use crate::backoff::Backoff;
use crate::log::{Record, Topic, partition_of};
use crate::outbox::stuck::{RowPlace, UNKNOWN_PARTITION};

/// Topic and partition.
pub(super) type LaneId = (String, i32);

/// Records of one append: several requests, if they are large.
const MOST_RECORDS: usize = 2_000;
const MOST_BYTES: usize = 900_000;

/// An append of fewer records says that there is little to do: the next one is not held back.
const LOADED: usize = 8;

/// Under load an append waits so long for so many records: a request costs the same for one as for a hundred.
const GATHER: Duration = Duration::from_millis(2);
const ENOUGH: usize = 250;

/// A record that waits, and the batch that is settled with it.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) batch: u64,
    pub(super) place: RowPlace,
    pub(super) record: Record,
}

/// One lane.
#[derive(Debug, Default)]
pub(super) struct Lane {
    queue: VecDeque<Entry>,
    /// An append, or the question for the topic, is under way.
    busy: bool,
    backoff: Backoff,
    /// Before the next attempt.
    pause: Option<Duration>,
    /// Before the next append, unless it is a large one.
    gather_until: Option<Instant>,
    failing_since: Option<Instant>,
    stuck: Option<Stuck>,
}

/// What a stuck lane is doing.
#[derive(Debug, Default)]
struct Stuck {
    keeping: bool,
    draining: bool,
    drained: bool,
}

/// What a lane is to do next.
#[derive(Debug)]
pub(super) enum Work {
    /// Hand over.
    Append(Vec<Entry>),
    /// Ask for the topic.
    Resolve,
    /// Keep in `outbox_stuck`.
    Keep(Vec<Entry>),
    /// Hand over what is kept there.
    Drain,
}

/// All lanes.
#[derive(Debug, Default)]
pub(super) struct Lanes {
    lanes: BTreeMap<LaneId, Lane>,
    topics: HashMap<String, Topic>,
    /// When a lane last handed something over.
    progress: Option<Instant>,
}

impl Lanes {
    /// A lane that an earlier leader left stuck.
    pub(super) fn restore_stuck(&mut self, lane: LaneId) {
        self.lanes.entry(lane).or_default().stuck = Some(Stuck::default());
    }

    /// Puts a record at the end of its lane.
    pub(super) fn push(&mut self, topic: &str, entry: Entry) {
        let (id, entry) = self.route(topic, entry);
        self.lanes.entry(id).or_default().queue.push_back(entry);
    }

    fn route(&self, topic: &str, mut entry: Entry) -> (LaneId, Entry) {
        let partition = match self.topics.get(topic) {
            None => UNKNOWN_PARTITION,
            Some(known) => {
                record::keep_alive(&mut entry.record, known.retention, Utc::now());
                partition_of(entry.record.key.as_deref().unwrap_or_default(), known.partitions)
            }
        };
        ((topic.to_owned(), partition), entry)
    }

    /// Work that can begin now, with the pause before it.
    pub(super) fn next_work(&mut self) -> Vec<(LaneId, Option<Duration>, Work)> {
        let mut work = Vec::new();
        let held_up = self.held_up();
        for (id, lane) in &mut self.lanes {
            let held_up = held_up.contains(id);
            if held_up && !lane.busy && lane.stuck.is_none() {
                lane.stuck = Some(Stuck::default());
            }
            if let Some(stuck) = &mut lane.stuck {
                if !lane.queue.is_empty() && !stuck.keeping {
                    stuck.keeping = true;
                    work.push((id.clone(), None, Work::Keep(lane.queue.drain(..).collect())));
                }
                if !stuck.draining && !stuck.drained && !held_up {
                    stuck.draining = true;
                    work.push((id.clone(), lane.pause, Work::Drain));
                }
            } else if !lane.busy && !lane.queue.is_empty() && !lane.gathers() {
                lane.busy = true;
                let next = if id.1 == UNKNOWN_PARTITION { Work::Resolve } else { Work::Append(lane.take()) };
                work.push((id.clone(), lane.pause, next));
            }
        }
        work
    }

    /// When the next lane has gathered long enough.
    pub(super) fn next_gathered(&self) -> Option<Instant> {
        let gathering =
            self.lanes.values().filter(|lane| !lane.busy && !lane.queue.is_empty() && lane.gathers());
        gathering.filter_map(|lane| lane.gather_until).min()
    }

    /// The lanes of unknown topics that have stuck partitions: what is kept for those is older and goes first.
    fn held_up(&self) -> BTreeSet<LaneId> {
        let stuck = self
            .lanes
            .iter()
            .filter(|((_, partition), lane)| *partition != UNKNOWN_PARTITION && lane.stuck.is_some());
        stuck.map(|((topic, _), _)| (topic.clone(), UNKNOWN_PARTITION)).collect()
    }

    /// An append has settled all it had.
    pub(super) fn appended(&mut self, id: &LaneId) {
        self.progress = Some(Instant::now());
        if let Some(lane) = self.lanes.get_mut(id) {
            lane.busy = false;
            lane.recovered();
        }
    }

    /// An append failed and gives back what it did not settle.
    pub(super) fn failed(&mut self, id: &LaneId, rest: Vec<Entry>) {
        let Some(lane) = self.lanes.get_mut(id) else { return };
        lane.busy = false;
        for entry in rest.into_iter().rev() {
            lane.queue.push_front(entry);
        }
        lane.pause = Some(lane.backoff.pause());
        lane.failing_since.get_or_insert_with(Instant::now);
    }

    /// The topic is known: its rows go to their partitions.
    pub(super) fn resolved(&mut self, topic: &str, known: Topic) {
        self.topics.insert(topic.to_owned(), known);
        let waiting = self.lanes.remove(&(topic.to_owned(), UNKNOWN_PARTITION));
        for entry in waiting.into_iter().flat_map(|lane| lane.queue) {
            self.push(topic, entry);
        }
    }

    /// The topic is gone: what waits for its partitions waits for it to come back, the older before the newer. Lanes
    /// that are busy or stuck come to it by themselves.
    pub(super) fn dissolve(&mut self, topic: &str) {
        self.topics.remove(topic);
        let (mut queue, mut since) = (VecDeque::new(), None);
        for (_, lane) in self.lanes.range_mut((topic.to_owned(), 0)..=(topic.to_owned(), i32::MAX)) {
            if !lane.busy && lane.stuck.is_none() {
                queue.append(&mut lane.queue);
                since = since.into_iter().chain(lane.failing_since.take()).min();
            }
        }
        let unknown = self.lanes.entry((topic.to_owned(), UNKNOWN_PARTITION)).or_default();
        queue.append(&mut unknown.queue);
        unknown.queue = queue;
        unknown.failing_since = since.into_iter().chain(unknown.failing_since).min();
    }

    /// Gives up waiting for a lane that has failed for longer than `patience` while others were served. When nobody
    /// is served there is nobody to make way for.
    pub(super) fn give_up(&mut self, id: &LaneId, patience: Duration) -> bool {
        let progress = self.progress;
        let Some(lane) = self.lanes.get_mut(id) else { return false };
        let overdue = lane.failing_since.is_some_and(|since| {
            since.elapsed() >= patience && progress.is_some_and(|progress| progress > since)
        });
        if overdue && lane.stuck.is_none() {
            lane.stuck = Some(Stuck::default());
            return true;
        }
        false
    }

    /// Rows of a stuck lane are kept.
    pub(super) fn kept(&mut self, id: &LaneId) {
        let Some(Lane { stuck: Some(stuck), .. }) = self.lanes.get_mut(id) else { return };
        (stuck.keeping, stuck.drained) = (false, false);
        self.unstick(id);
    }

    /// A drain handed over what it found; `empty`: there was nothing.
    pub(super) fn drained(&mut self, id: &LaneId, empty: bool) {
        let Some(lane) = self.lanes.get_mut(id) else { return };
        lane.recovered();
        if let Some(stuck) = &mut lane.stuck {
            (stuck.draining, stuck.drained) = (false, empty);
        }
        self.unstick(id);
    }

    /// A drain failed; it is tried again after a pause.
    pub(super) fn drain_failed(&mut self, id: &LaneId) {
        let Some(lane) = self.lanes.get_mut(id) else { return };
        lane.pause = Some(lane.backoff.pause());
        if let Some(stuck) = &mut lane.stuck {
            stuck.draining = false;
        }
    }

    /// A lane flows again once nothing of it is kept, or about to be.
    fn unstick(&mut self, id: &LaneId) {
        let Some(lane) = self.lanes.get_mut(id) else { return };
        if lane.queue.is_empty() && lane.stuck.as_ref().is_some_and(|s| s.drained && !s.keeping) {
            lane.stuck = None;
            tracing::info!(
                topic = id.0,
                partition = id.1,
                "everything that was kept back is published: the lane flows"
            );
        }
    }
}

impl Lane {
    /// What one append takes.
    fn take(&mut self) -> Vec<Entry> {
        let mut bytes = 0;
        let fits = self.queue.iter().take(MOST_RECORDS).take_while(|entry| {
            let first = bytes == 0;
            bytes += entry.record.value.as_ref().map_or(0, Vec::len);
            first || bytes <= MOST_BYTES
        });
        let count = fits.count();
        self.gather_until = (count >= LOADED).then(|| Instant::now() + GATHER);
        self.queue.drain(..count).collect()
    }

    fn gathers(&self) -> bool {
        self.queue.len() < ENOUGH && self.gather_until.is_some_and(|until| Instant::now() < until)
    }

    fn recovered(&mut self) {
        self.backoff.reset();
        (self.pause, self.failing_since) = (None, None);
    }
}
