//! Owns the event log: topics of partitions of records, each with an offset.
//! Promises that records of one partition come out in the order they went in, at least once, until retention.
//! Called by the publisher (append), the consumer (fetch), `lag` and `topics`.
//!
//! Two implementations: [`kafka`] and [`postgres`].

use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use uuid::Uuid;

pub mod broker;
pub mod kafka;
mod partitioner;
pub mod postgres;
pub(crate) mod security;
mod topic_cache;
pub(crate) mod wire;

pub use partitioner::partition_of;

/// A record, with the bytes as the log keeps them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Record {
    pub key: Option<Vec<u8>>,
    pub value: Option<Vec<u8>>,
    /// In the order of their names, each name once.
    pub headers: Vec<(String, Vec<u8>)>,
    /// Millisecond precision.
    pub timestamp: DateTime<Utc>,
}

impl Record {
    /// The bytes of a header.
    pub fn header(&self, name: &str) -> Option<&[u8]> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_slice())
    }
}

/// What one fetch returned.
#[derive(Debug, Clone, Default)]
pub struct Fetched {
    /// Each record with its offset, ascending; may have gaps.
    pub records: Vec<(i64, Record)>,
    /// The log's end when it answered: the offset of the next record to come.
    pub end: i64,
}

/// How much a fetch may return and how long it may wait for a first record.
#[derive(Debug, Clone, Copy)]
pub struct FetchLimits {
    pub max_records: usize,
    pub max_bytes: u32,
    pub max_wait: Duration,
}

/// First offset still kept and the offset of the next record to come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    pub start: i64,
    pub end: i64,
}

/// What a producer needs to know of a topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Topic {
    pub partitions: i32,
    /// None when unlimited.
    pub retention: Option<Duration>,
}

/// A topic as it should be.
#[derive(Debug, Clone)]
pub struct TopicSpec {
    pub name: String,
    pub partitions: i32,
    pub replication_factor: i16,
    pub retention: Duration,
}

/// A topic as it is.
#[derive(Debug, Clone, serde::Serialize)]
pub struct TopicDescription {
    pub topic: String,
    pub partitions: i32,
    /// Null where the log has no such notion.
    pub replication_factor: Option<i16>,
    /// Null when unlimited.
    pub retention_ms: Option<i64>,
    /// Another one after the topic was deleted and made anew; null where the log has no such notion.
    pub topic_id: Option<Uuid>,
}

impl TopicDescription {
    fn retention(&self) -> Option<Duration> {
        self.retention_ms.and_then(|ms| u64::try_from(ms).ok()).map(Duration::from_millis)
    }
}

/// What went wrong, by what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// Nothing was appended, or it is not known whether: the same batch again, before anything newer.
    #[error("event log unavailable: {0}")]
    Unavailable(String),
    /// The topic or partition does not exist.
    #[error("topic {topic} does not exist: run `hashinsight topics ensure`")]
    UnknownTopic { topic: String },
    /// A record that the log will never take: too large for the topic, or invalid in the broker's eyes.
    #[error("topic {topic} does not take the record: {message}")]
    Rejected { topic: String, message: String },
    /// The offset is not in the log.
    #[error("offset {offset} of {topic}/{partition} is out of range")]
    OffsetOutOfRange { topic: String, partition: i32, offset: i64 },
    /// The log refuses, and will refuse again.
    #[error("event log refuses: {0}")]
    Refused(String),
    /// What the log returned cannot be read.
    #[error("unreadable log at {topic}/{partition} offset {offset}: {message}")]
    Unreadable { topic: String, partition: i32, offset: i64, message: String },
}

/// An append that did not complete: the first `appended` records are in the log, the error is about what comes after.
/// For [`LogError::Rejected`] it is exactly the record at that index.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub struct AppendError {
    pub appended: usize,
    #[source]
    pub error: LogError,
}

impl From<sqlx::Error> for LogError {
    fn from(error: sqlx::Error) -> Self {
        Self::Unavailable(error.to_string())
    }
}

/// The log.
#[async_trait]
pub trait EventLog: Send + Sync {
    /// A topic as it is; what was known of it minutes ago may be the answer.
    async fn topic(&self, name: &str) -> Result<Topic, LogError>;

    /// Appends to one partition, in order. The caller keeps one append in flight per partition.
    async fn append(&self, topic: &str, partition: i32, records: &[Record]) -> Result<(), AppendError>;

    /// Appends one record and says where it stands, on a partition that others append to as well.
    async fn append_one(&self, topic: &str, partition: i32, record: &Record) -> Result<i64, LogError>;

    /// Records from an offset on; empty after `max_wait` without one.
    async fn fetch(
        &self,
        topic: &str,
        partition: i32,
        offset: i64,
        limits: FetchLimits,
    ) -> Result<Fetched, LogError>;

    /// The offsets between which the partition has records.
    async fn bounds(&self, topic: &str, partition: i32) -> Result<Bounds, LogError>;

    /// Creates the topics that are missing; returns the names of those it created.
    async fn ensure_topics(&self, topics: &[TopicSpec]) -> Result<Vec<String>, LogError>;

    /// The topics of these names that exist.
    async fn describe_topics(&self, names: &[String]) -> Result<Vec<TopicDescription>, LogError>;

    /// Gives topics more partitions, so many each; they can be used when it returns. Keys move: the caller sees to it
    /// that nothing of them is on its way.
    async fn grow_topics(&self, names: &[String], partitions: i32) -> Result<(), LogError>;

    /// Forgets what is known of topics: whoever wants to know one asks.
    fn forget_topics(&self);

    /// The log in PostgreSQL, which can append inside the publisher's transaction.
    fn transactional(&self) -> Option<&postgres::PostgresLog> {
        None
    }
}
