//! Owns the log in Kafka. With its folder the only place that names the client of the data plane, rskafka.
//! Promises that no call outlasts its deadline, whatever the broker does, and that a failure says what to do about it.
//! Called through [`EventLog`].

mod clients;
mod errors;
mod requests;
mod topics;

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use chrono::DateTime;
use rskafka::client::partition::{Compression as Codec, OffsetAt};
use rskafka::record::Record as KafkaRecord;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use self::clients::Clients;
use self::errors::{During, log_error};
use super::{Bounds, EventLog, FetchLimits, Fetched, LogError, Record, TopicDescription, TopicSpec};
use crate::backoff::Backoff;
use crate::config::{Compression, KafkaConfig};

/// A fetch that finds nothing is answered after its own wait; this long later the broker is taken for dead.
const FETCH_GRACE: Duration = Duration::from_secs(5);

/// The log in Kafka.
pub struct KafkaLog {
    brokers: Vec<String>,
    clients: Clients,
    compression: Compression,
    produce_timeout: Duration,
    metadata_timeout: Duration,
    partitions: Mutex<HashMap<String, i32>>,
}

impl KafkaLog {
    /// Connects to a broker, trying until `kafka.connect_timeout_ms` has passed.
    pub async fn connect(config: &KafkaConfig) -> Result<Self, LogError> {
        let brokers = config.broker_list();
        if brokers.is_empty() {
            return Err(LogError::Refused(
                "kafka.brokers is not set: set KAFKA_BROKERS=host:port".to_owned(),
            ));
        }
        let limit = Duration::from_millis(config.connect_timeout_ms);
        let clients = Clients::new(brokers.clone());
        let mut last = "no answer".to_owned();
        let connected = async {
            let mut backoff = Backoff::default();
            loop {
                match clients.session(limit).await {
                    Ok(_) => return,
                    Err(failure) => last = failure.to_string(),
                }
                sleep(backoff.pause()).await;
            }
        };
        if timeout(limit, connected).await.is_err() {
            let (names, limit) = (brokers.join(", "), limit.as_millis());
            return Err(LogError::Unavailable(format!(
                "no Kafka broker of {names} answered within {limit} ms ({last}): check KAFKA_BROKERS, and that the \
                 brokers run and can be reached from here"
            )));
        }
        Ok(Self {
            brokers,
            clients,
            compression: config.compression,
            produce_timeout: Duration::from_millis(config.produce_timeout_ms),
            metadata_timeout: Duration::from_millis(config.metadata_timeout_ms),
            partitions: Mutex::default(),
        })
    }

    async fn fetch_once(
        &self,
        topic: &str,
        partition: i32,
        offset: i64,
        bytes: u32,
        wait: Duration,
    ) -> Result<(Vec<(i64, Record)>, i64), LogError> {
        // The end of the range is exclusive.
        let bytes = 1..i32::try_from(bytes).unwrap_or(i32::MAX - 1).saturating_add(1);
        let wait_ms = i32::try_from(wait.as_millis()).unwrap_or(i32::MAX);
        let deadline = wait + FETCH_GRACE;
        let (records, end) = self
            .clients
            .call(topic, partition, deadline, |client| async move {
                client.fetch_records(offset, bytes, wait_ms).await
            })
            .await
            .map_err(|failure| log_error(failure, topic, partition, During::Fetch { offset }))?;
        Ok((records.into_iter().map(|r| (r.offset, from_kafka(r.record))).collect(), end))
    }

    fn known_partitions(&self) -> std::sync::MutexGuard<'_, HashMap<String, i32>> {
        self.partitions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A topic that is gone may come back with another number of partitions.
    fn forget_if_unknown(&self, error: &LogError) {
        if let LogError::UnknownTopic { topic } = error {
            self.known_partitions().remove(topic);
        }
    }
}

#[async_trait]
impl EventLog for KafkaLog {
    async fn partitions(&self, topic: &str) -> Result<i32, LogError> {
        let known = self.known_partitions().get(topic).copied();
        if let Some(count) = known {
            return Ok(count);
        }
        let found = topics::describe(&self.brokers, self.metadata_timeout, &[topic.to_owned()]).await?;
        let topic = topic.to_owned();
        let Some(found) = found.first() else { return Err(LogError::UnknownTopic { topic }) };
        self.known_partitions().insert(topic, found.partitions);
        Ok(found.partitions)
    }

    async fn append(&self, topic: &str, partition: i32, records: &[Record]) -> Result<(), LogError> {
        for request in requests::of(records, self.compression) {
            let records = request.iter().map(to_kafka).collect();
            let codec = codec(self.compression);
            self.clients
                .call(topic, partition, self.produce_timeout, |client| async move {
                    client.produce(records, codec).await
                })
                .await
                .map_err(|failure| log_error(failure, topic, partition, During::Append))
                .inspect_err(|error| self.forget_if_unknown(error))?;
        }
        Ok(())
    }

    async fn fetch(
        &self,
        topic: &str,
        partition: i32,
        offset: i64,
        limits: FetchLimits,
    ) -> Result<Fetched, LogError> {
        let until = Instant::now() + limits.max_wait;
        let fetched = self.fetch_once(topic, partition, offset, limits.max_bytes, limits.max_wait).await;
        let (mut records, end) = match fetched {
            // One batch that cannot be read hides those before it: a broker asked for one byte gives one batch.
            Err(LogError::Unreadable { .. }) => {
                self.fetch_once(topic, partition, offset, 1, limits.max_wait).await?
            }
            fetched => fetched?,
        };
        if records.is_empty() {
            // Beyond an open transaction a broker answers at once with nothing: the caller must not spin.
            sleep_until(until).await;
        }
        records.truncate(limits.max_records);
        Ok(Fetched { records, end })
    }

    async fn bounds(&self, topic: &str, partition: i32) -> Result<Bounds, LogError> {
        let (start, end) = self
            .clients
            .call(topic, partition, self.metadata_timeout, |client| async move {
                let start = client.get_offset(OffsetAt::Earliest).await?;
                Ok((start, client.get_offset(OffsetAt::Latest).await?))
            })
            .await
            .map_err(|failure| log_error(failure, topic, partition, During::Bounds))?;
        Ok(Bounds { start, end })
    }

    async fn ensure_topics(&self, topics: &[TopicSpec]) -> Result<Vec<String>, LogError> {
        topics::ensure(&self.brokers, self.metadata_timeout, topics).await
    }

    async fn describe_topics(&self, names: &[String]) -> Result<Vec<TopicDescription>, LogError> {
        topics::describe(&self.brokers, self.metadata_timeout, names).await
    }
}

fn codec(compression: Compression) -> Codec {
    match compression {
        Compression::None => Codec::NoCompression,
        Compression::Snappy => Codec::Snappy,
        Compression::Lz4 => Codec::Lz4,
        Compression::Gzip => Codec::Gzip,
    }
}

fn to_kafka(record: &Record) -> KafkaRecord {
    // rskafka rounds the difference to the batch's first record: with microseconds it would be off by one.
    let timestamp = DateTime::from_timestamp_millis(record.timestamp.timestamp_millis());
    KafkaRecord {
        key: record.key.clone(),
        value: record.value.clone(),
        headers: record.headers.iter().cloned().collect(),
        timestamp: timestamp.unwrap_or(record.timestamp),
    }
}

fn from_kafka(record: KafkaRecord) -> Record {
    Record {
        key: record.key,
        value: record.value,
        headers: record.headers.into_iter().collect(),
        timestamp: record.timestamp,
    }
}
