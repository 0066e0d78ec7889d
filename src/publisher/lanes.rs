//! What waits for which partition, and how each partition is doing.
//!
//! A lane is a partition of a topic; while a topic is not known, its rows wait together in one lane. A lane that is
//! stuck takes nothing into memory: its rows are kept in `outbox_stuck` until they are drained in order.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::time::Duration;

use chrono::{DateTime, Utc};
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
const GATHER: Duration = Duration::from_millis(5);
const ENOUGH: usize = 250;

/// A topic is looked at again so often: it may have grown behind our back.
const LOOK_EVERY: Duration = Duration::from_secs(20);

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

/// A topic whose partitions are known.
#[derive(Debug)]
struct Known {
    topic: Topic,
    looked_at: Instant,
    /// What it is by now, with other partitions; see [`Lanes::turn`].
    becomes: Option<Topic>,
}

/// All lanes.
#[derive(Debug, Default)]
pub(super) struct Lanes {
    lanes: BTreeMap<LaneId, Lane>,
    topics: HashMap<String, Known>,
    /// When a lane last handed something over.
    progress: Option<Instant>,
    /// By the database's clock, which dated the rows.
    pub(super) now: DateTime<Utc>,
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
            Some(Known { topic: known, .. }) => {
                record::keep_alive(&mut entry.record, known.retention, self.now);
                partition_of(entry.record.key.as_deref().unwrap_or_default(), known.partitions)
            }
        };
        ((topic.to_owned(), partition), entry)
    }

    /// Work that can begin now, with the pause before it.
    pub(super) fn next_work(&mut self) -> Vec<(LaneId, Option<Duration>, Work)> {
        let mut work = Vec::new();
        let turning = self.turn();
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
            } else if !lane.busy && !lane.queue.is_empty() && !lane.gathers() && !turning.contains(&id.0) {
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
        let known = Known { topic: known, looked_at: Instant::now(), becomes: None };
        self.topics.insert(topic.to_owned(), known);
        let waiting = self.lanes.remove(&(topic.to_owned(), UNKNOWN_PARTITION));
        for entry in waiting.into_iter().flat_map(|lane| lane.queue) {
            self.push(topic, entry);
        }
    }

    /// The known topics that were not looked at for a while; they are now.
    pub(super) fn due_for_a_look(&mut self, now: Instant) -> Vec<String> {
        let due = self.topics.iter_mut().filter(|(_, known)| now >= known.looked_at + LOOK_EVERY);
        due.map(|(name, known)| {
            known.looked_at = now;
            name.clone()
        })
        .collect()
    }

    /// What a topic is by now.
    pub(super) fn looked_at(&mut self, topic: &str, found: Topic) {
        let Some(known) = self.topics.get_mut(topic) else { return };
        if known.topic.partitions == found.partitions {
            (known.topic, known.becomes) = (found, None);
        } else {
            known.becomes = Some(found);
        }
    }

    /// Sends what waits for a topic that has other partitions now to those. What a busy or a stuck lane has is older:
    /// nothing newer of the same keys may pass it on another lane. Returns the topics that wait for a busy lane, on which
    /// nothing is begun.
    fn turn(&mut self) -> BTreeSet<String> {
        let mut waiting = BTreeSet::new();
        let changed = self.topics.iter().filter(|(_, known)| known.becomes.is_some());
        for name in changed.map(|(name, _)| name.clone()).collect::<Vec<_>>() {
            let lanes = || (name.clone(), 0)..=(name.clone(), i32::MAX);
            if self.lanes.range(lanes()).any(|(_, lane)| lane.stuck.is_some()) {
                continue;
            }
            if self.lanes.range(lanes()).any(|(_, lane)| lane.busy) {
                waiting.insert(name);
                continue;
            }
            if let Some(known) = self.topics.get_mut(&name)
                && let Some(found) = known.becomes.take()
            {
                let (before, now) = (known.topic.partitions, found.partitions);
                tracing::warn!(
                    topic = name,
                    before,
                    now,
                    "the topic has other partitions: unless `hashinsight topics alter` did it, events of one miner may \
                     be applied out of order now"
                );
                known.topic = found;
            }
            let queues = self.lanes.range_mut(lanes()).flat_map(|(_, lane)| lane.queue.drain(..));
            for entry in queues.collect::<Vec<_>>() {
                self.push(&name, entry);
            }
        }
        waiting
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

#[cfg(test)]
mod tests {
    use super::*;

    const TOPIC: &str = "t";

    fn entry(n: u64, key: &str) -> Entry {
        let place =
            RowPlace { position: i64::try_from(n).expect("small"), occurred_at: Utc::now().naive_utc() };
        let key = Some(key.as_bytes().to_vec());
        Entry { batch: n, place, record: Record { key, timestamp: Utc::now(), ..Record::default() } }
    }

    fn topic(partitions: i32) -> Topic {
        Topic { partitions, retention: None }
    }

    /// What is begun now: the partition and the numbers of the entries.
    fn begun(lanes: &mut Lanes) -> Vec<(i32, Vec<u64>, Vec<Entry>)> {
        let work = lanes.next_work().into_iter().map(|((_, partition), _, work)| match work {
            Work::Append(entries) => (partition, entries.iter().map(|e| e.batch).collect(), entries),
            other => panic!("{other:?}"),
        });
        work.collect()
    }

    #[test]
    fn what_waits_turns_to_the_new_partitions_behind_what_is_in_flight() {
        let mut lanes = Lanes::default();
        lanes.resolved(TOPIC, topic(1));
        let keys = ["a", "b", "c", "d", "e", "f"];
        lanes.push(TOPIC, entry(0, "a"));
        let (partition, _, in_flight) = begun(&mut lanes).remove(0);
        assert_eq!(partition, 0);
        for (n, key) in keys.into_iter().cycle().take(12).enumerate() {
            lanes.push(TOPIC, entry(n as u64 + 1, key));
        }
        assert_eq!(lanes.due_for_a_look(Instant::now()), Vec::<String>::new(), "it was asked for just now");
        let later = Instant::now() + LOOK_EVERY;
        assert_eq!(lanes.due_for_a_look(later), [TOPIC]);
        assert_eq!(lanes.due_for_a_look(later), Vec::<String>::new());
        lanes.looked_at(TOPIC, topic(4));
        assert!(begun(&mut lanes).is_empty(), "the older ones are in flight");
        lanes.failed(&(TOPIC.to_owned(), 0), in_flight);
        let begun = begun(&mut lanes);
        assert!(begun.len() > 1, "{begun:?}");
        let mut seen = 0;
        for (partition, numbers, entries) in begun {
            seen += numbers.len();
            assert!(numbers.is_sorted(), "{numbers:?}");
            for entry in entries {
                assert_eq!(partition, partition_of(&entry.record.key.expect("a key"), 4));
            }
        }
        assert_eq!(seen, 13, "the one that came back as well");
    }

    #[test]
    fn a_topic_with_a_stuck_lane_keeps_its_partitions_until_it_flows() {
        let mut lanes = Lanes::default();
        lanes.resolved(TOPIC, topic(1));
        lanes.restore_stuck((TOPIC.to_owned(), 0));
        lanes.looked_at(TOPIC, topic(4));
        assert!(matches!(lanes.next_work().remove(0).2, Work::Drain));
        lanes.push(TOPIC, entry(1, "a"));
        assert!(matches!(&lanes.next_work()[0], ((_, 0), _, Work::Keep(kept)) if kept.len() == 1));
        lanes.kept(&(TOPIC.to_owned(), 0));
        lanes.drained(&(TOPIC.to_owned(), 0), true);
        lanes.push(TOPIC, entry(2, "a"));
        let begun = begun(&mut lanes);
        assert_eq!((begun.len(), begun[0].0), (1, partition_of(b"a", 4)));
    }
}
