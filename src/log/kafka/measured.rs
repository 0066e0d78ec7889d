//! Owns topics made for a measurement: the broker itself writes down when it appended each batch.
//! Promises that the time of an append is the broker's, the same for whoever produced it.
//! Called by `bench` alone.
//!
//! Neither client reads that time: for such a topic it stands in the head of the batch, and both take the records'
//! own. So the heads are read here, and the records themselves through [`EventLog`](crate::log::EventLog).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::delete_topics_request::DeleteTopicState;
use kafka_protocol::messages::fetch_request::{FetchPartition, FetchTopic};
use kafka_protocol::messages::metadata_response::MetadataResponseTopic;
use kafka_protocol::messages::{DeleteTopicsRequest, FetchRequest, MetadataRequest};

use super::topics::{by_retry, ensure_with, metadata, topic};
use crate::config::KafkaConfig;
use crate::log::security::{Cluster, Security};
use crate::log::wire::Connection;
use crate::log::{LogError, TopicSpec};

const STAMPED_BY_THE_BROKER: [(&str, &str); 1] = [("message.timestamp.type", "LogAppendTime")];

/// Of one answer: well below what a connection accepts.
const FETCH_BYTES: i32 = 4 << 20;

/// The least that a batch has before its records.
const BATCH_HEAD: usize = 61;

/// The bit of a batch's attributes that says whose time it bears.
const LOG_APPEND_TIME: i16 = 1 << 3;

/// A batch as the broker appended it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Appended {
    pub first_offset: i64,
    pub last_offset: i64,
    /// Milliseconds since 1970, the broker's clock, rounded down.
    pub at_ms: i64,
}

/// The way to such topics.
#[derive(Clone)]
pub struct MeasuredTopics {
    cluster: Arc<Cluster>,
    deadline: Duration,
}

impl MeasuredTopics {
    /// On the brokers of a configuration.
    pub fn new(config: &KafkaConfig) -> Result<Self, LogError> {
        let deadline = Duration::from_millis(config.metadata_timeout_ms);
        let cluster = Cluster { brokers: config.broker_list(), security: Security::of(config)? };
        Ok(Self { cluster: Arc::new(cluster), deadline })
    }

    /// Makes the topics that are missing, stamped by the broker.
    pub async fn create(&self, specs: &[TopicSpec]) -> Result<(), LogError> {
        ensure_with(&self.cluster, self.deadline, specs, &STAMPED_BY_THE_BROKER).await.map(drop)
    }

    /// Deletes every topic whose name starts so.
    pub async fn delete(&self, prefix: &str) -> Result<(), LogError> {
        let mut connection = Connection::open_any(&self.cluster, self.deadline).await?;
        let all = MetadataRequest::default().with_topics(None).with_allow_auto_topic_creation(false);
        let names = connection.request(&all).await?.topics.into_iter().filter_map(|topic| topic.name);
        let topics: Vec<_> = names
            .filter(|name| name.starts_with(prefix))
            .map(|name| DeleteTopicState::default().with_name(Some(name)))
            .collect();
        if topics.is_empty() {
            return Ok(());
        }
        let request = DeleteTopicsRequest::default()
            .with_topics(topics)
            .with_timeout_ms(i32::try_from(self.deadline.as_millis()).unwrap_or(i32::MAX));
        for deleted in connection.request(&request).await?.responses {
            match ResponseError::try_from_code(deleted.error_code) {
                None | Some(ResponseError::UnknownTopicOrPartition) => {}
                Some(error) => {
                    let name = deleted.name.unwrap_or_default();
                    return Err(by_retry(
                        error,
                        format!("topic {} cannot be deleted: {error}", name.as_str()),
                    ));
                }
            }
        }
        Ok(())
    }

    /// The batches of a partition, from its start to its end.
    pub async fn appended(&self, name: &str, partition: i32) -> Result<Vec<Appended>, LogError> {
        let mut connection = Connection::open_any(&self.cluster, self.deadline).await?;
        let found = metadata(&mut connection, &[name.to_owned()]).await?;
        let unknown = || LogError::UnknownTopic { topic: name.to_owned() };
        let found = found.get(name).ok_or_else(unknown)?;
        let leader = found.partitions.iter().find(|p| p.partition_index == partition).ok_or_else(unknown)?;
        let brokers =
            connection.request(&MetadataRequest::default().with_topics(Some(Vec::new()))).await?.brokers;
        let unled = || LogError::Unavailable(format!("{name}/{partition} has no leader"));
        let broker = brokers.iter().find(|b| b.node_id == leader.leader_id).ok_or_else(unled)?;
        let address = format!("{}:{}", broker.host.as_str(), broker.port);
        let mut connection = Connection::open(&address, &self.cluster.security, self.deadline).await?;

        let mut batches: Vec<Appended> = Vec::new();
        loop {
            let offset = batches.last().map_or(0, |last| last.last_offset + 1);
            let answer = connection.request(&fetch(found, name, partition, offset)).await?;
            let answers = answer.responses.into_iter().flat_map(|topic| topic.partitions);
            let mut more = Vec::new();
            for data in answers {
                let code = if answer.error_code == 0 { data.error_code } else { answer.error_code };
                if let Some(error) = ResponseError::try_from_code(code) {
                    return Err(by_retry(error, format!("{name}/{partition} at {offset}: {error}")));
                }
                more.extend(heads(data.records.as_deref().unwrap_or_default()));
            }
            // A fetch from inside a batch returns all of it.
            more.retain(|batch: &Appended| batch.last_offset >= offset);
            if more.is_empty() {
                return Ok(batches);
            }
            batches.extend(more);
        }
    }

    /// The level of each feature that the cluster has agreed upon.
    pub async fn features(&self) -> Result<BTreeMap<String, i16>, LogError> {
        Ok(Connection::open_any(&self.cluster, self.deadline).await?.features().clone())
    }
}

fn fetch(found: &MetadataResponseTopic, name: &str, partition: i32, offset: i64) -> FetchRequest {
    let partition = FetchPartition::default()
        .with_partition(partition)
        .with_fetch_offset(offset)
        .with_partition_max_bytes(FETCH_BYTES);
    // Which of the two names goes out depends on the version.
    let topic = FetchTopic::default()
        .with_topic(topic(name))
        .with_topic_id(found.topic_id)
        .with_partitions(vec![partition]);
    FetchRequest::default().with_min_bytes(0).with_max_bytes(FETCH_BYTES).with_topics(vec![topic])
}

/// The heads of the batches that are there whole; the last one of an answer may be cut off.
fn heads(mut bytes: &[u8]) -> Vec<Appended> {
    let mut found = Vec::new();
    while bytes.len() >= BATCH_HEAD {
        // Everything before the length, and the length itself.
        let length = 12 + usize::try_from(i32_at(bytes, 8)).unwrap_or(usize::MAX - 12);
        if length < BATCH_HEAD || length > bytes.len() {
            break;
        }
        let (first_offset, stamped) = (i64_at(bytes, 0), i16_at(bytes, 21) & LOG_APPEND_TIME != 0);
        if stamped {
            let last_offset = first_offset + i64::from(i32_at(bytes, 23));
            found.push(Appended { first_offset, last_offset, at_ms: i64_at(bytes, 35) });
        }
        bytes = &bytes[length..];
    }
    found
}

fn i16_at(bytes: &[u8], at: usize) -> i16 {
    i16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn i32_at(bytes: &[u8], at: usize) -> i32 {
    bytes[at..at + 4].iter().fold(0, |number, byte| number << 8 | i32::from(*byte))
}

fn i64_at(bytes: &[u8], at: usize) -> i64 {
    bytes[at..at + 8].iter().fold(0, |number, byte| number << 8 | i64::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(first: i64, count: i32, stamped: bool, at_ms: i64) -> Vec<u8> {
        let mut bytes = vec![0; BATCH_HEAD + 10];
        let length = i32::try_from(bytes.len() - 12).expect("small");
        bytes[0..8].copy_from_slice(&first.to_be_bytes());
        bytes[8..12].copy_from_slice(&length.to_be_bytes());
        bytes[21..23].copy_from_slice(&(if stamped { LOG_APPEND_TIME } else { 0 }).to_be_bytes());
        bytes[23..27].copy_from_slice(&(count - 1).to_be_bytes());
        bytes[35..43].copy_from_slice(&at_ms.to_be_bytes());
        bytes
    }

    #[test]
    fn whole_batches_are_read_and_a_cut_one_is_not() {
        let mut bytes = batch(7, 3, true, 1_700_000_000_123);
        bytes.extend(batch(10, 1, true, 1_700_000_000_124));
        let next = batch(11, 5, true, 1_700_000_000_125);
        bytes.extend(&next[..next.len() - 1]);
        let (first, second) = (
            Appended { first_offset: 7, last_offset: 9, at_ms: 1_700_000_000_123 },
            Appended { first_offset: 10, last_offset: 10, at_ms: 1_700_000_000_124 },
        );
        assert_eq!(heads(&bytes), [first, second]);
        assert!(heads(&[0; 200]).is_empty());
    }

    #[test]
    fn a_producers_own_time_is_no_time_of_an_append() {
        assert!(heads(&batch(0, 1, false, 1_700_000_000_123)).is_empty());
    }
}
