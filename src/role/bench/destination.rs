//! Where a source delivers to in one run: a topic of its own, stamped by the broker, and what arrived in it.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use uuid::Uuid;

use crate::event::AggregateType;
use crate::log::kafka::KafkaLog;
use crate::log::kafka::measured::MeasuredTopics;
use crate::log::{EventLog, FetchLimits, TopicSpec};

/// Longer than any bench.
const RETENTION: Duration = Duration::from_secs(24 * 60 * 60);

const READ: FetchLimits =
    FetchLimits { max_records: usize::MAX, max_bytes: 8 << 20, max_wait: Duration::from_millis(10) };

/// The broker of a bench.
#[derive(Clone)]
pub struct Broker {
    pub log: Arc<KafkaLog>,
    pub topics: MeasuredTopics,
    pub partitions: i32,
    pub replication_factor: i16,
}

/// One topic of one run.
pub struct Destination {
    broker: Broker,
    /// What the source is told: its topics start so.
    pub prefix: String,
    /// The one topic that gets records, since the events of a bench are all about miners.
    pub topic: String,
}

/// What is in the topic.
#[derive(Debug, Default)]
pub struct Arrivals {
    /// Each event with the time of its first append.
    pub at_ms: HashMap<Uuid, i64>,
    pub duplicates: u64,
}

impl Broker {
    /// Makes the topic of a run.
    pub async fn destination(&self, prefix: String) -> anyhow::Result<Destination> {
        let topic = AggregateType::Miner.topic(&prefix);
        self.create(&topic, self.partitions).await?;
        Ok(Destination { broker: self.clone(), prefix, topic })
    }

    /// Makes a topic.
    pub async fn create(&self, name: &str, partitions: i32) -> anyhow::Result<()> {
        let spec = TopicSpec {
            name: name.to_owned(),
            partitions,
            replication_factor: self.replication_factor,
            retention: RETENTION,
        };
        Ok(self.topics.create(&[spec]).await?)
    }
}

impl Destination {
    /// How many records there are.
    pub async fn count(&self) -> anyhow::Result<u64> {
        let mut count = 0;
        for partition in 0..self.broker.partitions {
            let bounds = self.broker.log.bounds(&self.topic, partition).await?;
            count += u64::try_from(bounds.end - bounds.start)?;
        }
        Ok(count)
    }

    /// Reads everything.
    pub async fn arrivals(&self) -> anyhow::Result<Arrivals> {
        let mut arrivals = Arrivals::default();
        for partition in 0..self.broker.partitions {
            let batches = self.broker.topics.appended(&self.topic, partition).await?;
            let end = batches.last().map_or(0, |batch| batch.last_offset + 1);
            let mut stamps = batches.iter().peekable();
            let mut next = 0;
            while next < end {
                let fetched = self.broker.log.fetch(&self.topic, partition, next, READ).await?;
                for (offset, record) in fetched.records.into_iter().filter(|(offset, _)| *offset < end) {
                    while stamps.next_if(|batch| batch.last_offset < offset).is_some() {}
                    let at_ms = stamps.peek().context("a record in no batch")?.at_ms;
                    let id = record.header("id").and_then(|id| std::str::from_utf8(id).ok()?.parse().ok());
                    arrivals.add(id.context("a record without an event id")?, at_ms);
                    next = offset + 1;
                }
            }
        }
        Ok(arrivals)
    }

    /// Deletes the topic.
    pub async fn delete(self) -> anyhow::Result<()> {
        Ok(self.broker.topics.delete(&self.prefix).await?)
    }
}

impl Arrivals {
    fn add(&mut self, id: Uuid, at_ms: i64) {
        use std::collections::hash_map::Entry;
        match self.at_ms.entry(id) {
            Entry::Vacant(free) => {
                free.insert(at_ms);
            }
            Entry::Occupied(mut first) => {
                self.duplicates += 1;
                let earlier = at_ms.min(*first.get());
                first.insert(earlier);
            }
        }
    }

    /// When an event was appended, in microseconds since 1970: the beginning of its millisecond.
    pub fn at_us(&self, id: Uuid) -> Option<i64> {
        Some(self.at_ms.get(&id)? * 1_000)
    }

    /// How many of these events are missing.
    pub fn missing(&self, expected: &HashSet<Uuid>) -> usize {
        expected.iter().filter(|id| !self.at_ms.contains_key(id)).count()
    }

    /// How many events are there that nobody committed.
    pub fn unexpected(&self, expected: &HashSet<Uuid>) -> usize {
        self.at_ms.keys().filter(|id| !expected.contains(id)).count()
    }

    /// From the first append to the last. Appends within one millisecond count as one millisecond apart.
    pub fn span(&self) -> Duration {
        let times = || self.at_ms.values().copied();
        let ms = times().max().unwrap_or_default() - times().min().unwrap_or_default();
        Duration::from_millis(u64::try_from(ms).unwrap_or_default().max(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arrivals(records: &[(u128, i64)]) -> Arrivals {
        let mut arrivals = Arrivals::default();
        records.iter().for_each(|(id, at)| arrivals.add(Uuid::from_u128(*id), *at));
        arrivals
    }

    #[test]
    fn lost_doubled_and_foreign_events_are_told_apart() {
        let expected: HashSet<Uuid> = [1, 2, 3].map(Uuid::from_u128).into();
        let whole = arrivals(&[(1, 10), (2, 11), (3, 12)]);
        assert_eq!((whole.missing(&expected), whole.unexpected(&expected), whole.duplicates), (0, 0, 0));
        let broken = arrivals(&[(1, 10), (1, 15), (4, 12)]);
        assert_eq!((broken.missing(&expected), broken.unexpected(&expected), broken.duplicates), (2, 1, 1));
    }

    #[test]
    fn the_first_append_of_an_event_counts() {
        let doubled = arrivals(&[(1, 15), (2, 12), (1, 10), (2, 40)]);
        assert_eq!(doubled.span(), Duration::from_millis(2));
        assert_eq!(arrivals(&[(1, 10)]).span(), Duration::from_millis(1));
    }
}
