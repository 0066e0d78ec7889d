//! Owns the log in Kafka. With its folder the only place that names the client of the data plane, rskafka.
//! Promises that no call outlasts its deadline, whatever the broker does, and that a failure says what to do about it.
//! Called through [`EventLog`].

pub mod bare;
mod clients;
mod errors;
pub mod measured;
mod requests;
mod topics;

use std::sync::Arc;
use std::time::{Duration, Instant as Moment};

use async_trait::async_trait;
use chrono::DateTime;
use rskafka::client::partition::{Compression as Codec, OffsetAt};
use rskafka::record::Record as KafkaRecord;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use self::clients::Clients;
use self::errors::{During, log_error};
use super::security::{Cluster, Security};
use super::topic_cache::TopicCache;
use super::{
    AppendError, Bounds, EventLog, FetchLimits, Fetched, LogError, Record, Topic, TopicDescription, TopicSpec,
};
use crate::backoff::Backoff;
use crate::config::{Compression, KafkaConfig};

/// A fetch that finds nothing is answered after its own wait; this long later the broker is taken for dead.
const FETCH_GRACE: Duration = Duration::from_secs(5);

/// The log in Kafka.
pub struct KafkaLog {
    cluster: Arc<Cluster>,
    clients: Clients,
    compression: Compression,
    produce_timeout: Duration,
    metadata_timeout: Duration,
    topics: TopicCache,
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
        let cluster = Arc::new(Cluster { brokers, security: Security::of(config)? });
        let clients = Clients::new(Arc::clone(&cluster));
        let mut last = "no answer".to_owned();
        let connected = async {
            let mut backoff = Backoff::default();
            loop {
                match clients.session(limit).await {
                    Ok(_) => return Ok(()),
                    // Neither a certificate nor a password gets better by waiting.
                    Err(failure) if failure.is_final() => return Err(failure),
                    Err(failure) => last = failure.to_string(),
                }
                sleep(backoff.pause()).await;
            }
        };
        match timeout(limit, connected).await {
            Ok(Ok(())) => {}
            Ok(Err(failure)) => return Err(LogError::Refused(failure.to_string())),
            Err(_) => {
                let (names, limit) = (cluster.brokers.join(", "), limit.as_millis());
                return Err(LogError::Unavailable(format!(
                    "no Kafka broker of {names} answered within {limit} ms ({last}): check KAFKA_BROKERS, kafka.tls and \
                     kafka.sasl_mechanism, and that the brokers run and can be reached from here"
                )));
            }
        }
        Ok(Self {
            cluster,
            clients,
            compression: config.compression,
            produce_timeout: Duration::from_millis(config.produce_timeout_ms),
            metadata_timeout: Duration::from_millis(config.metadata_timeout_ms),
            topics: TopicCache::default(),
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
            .map_err(|failure| log_error(failure, topic, partition, During::Fetch { offset }))
            .inspect_err(|error| self.topics.forget_if_unknown(error))?;
        Ok((records.into_iter().map(|r| (r.offset, from_kafka(r.record))).collect(), end))
    }

    /// One request: all of its records, each with its offset, or, as far as is known, none.
    async fn produce(&self, topic: &str, partition: i32, records: &[Record]) -> Result<Vec<i64>, LogError> {
        let records = records.iter().map(to_kafka).collect();
        let codec = codec(self.compression);
        self.clients
            .call(topic, partition, self.produce_timeout, |client| async move {
                client.produce(records, codec).await
            })
            .await
            .map_err(|failure| log_error(failure, topic, partition, During::Append))
            .inspect_err(|error| self.topics.forget_if_unknown(error))
    }
}

#[async_trait]
impl EventLog for KafkaLog {
    async fn topic(&self, name: &str) -> Result<Topic, LogError> {
        let now = Moment::now();
        if let Some(known) = self.topics.get(name, now) {
            return Ok(known);
        }
        let found = topics::describe(&self.cluster, self.metadata_timeout, &[name.to_owned()]).await?;
        let Some(found) = found.first() else {
            return Err(LogError::UnknownTopic { topic: name.to_owned() });
        };
        let topic = Topic { partitions: found.partitions, retention: found.retention() };
        self.topics.learn(name, topic, now);
        Ok(topic)
    }

    async fn append(&self, topic: &str, partition: i32, records: &[Record]) -> Result<(), AppendError> {
        let mut todo = requests::of(records, self.compression);
        todo.reverse();
        let mut appended = 0;
        while let Some(request) = todo.pop() {
            match self.produce(topic, partition, request).await {
                Ok(_) => appended += request.len(),
                // One record of it is at fault: halved until that one stands alone, behind those before it.
                Err(LogError::Rejected { .. }) if request.len() > 1 => {
                    let (first, second) = request.split_at(request.len() / 2);
                    todo.extend([second, first]);
                }
                Err(error) => return Err(AppendError { appended, error }),
            }
        }
        Ok(())
    }

    async fn append_one(&self, topic: &str, partition: i32, record: &Record) -> Result<i64, LogError> {
        let offsets = self.produce(topic, partition, std::slice::from_ref(record)).await?;
        let missing = || LogError::Unavailable(format!("{topic}/{partition}: no offset in the answer"));
        offsets.first().copied().ok_or_else(missing)
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
            .map_err(|failure| log_error(failure, topic, partition, During::Bounds))
            .inspect_err(|error| self.topics.forget_if_unknown(error))?;
        Ok(Bounds { start, end })
    }

    async fn ensure_topics(&self, topics: &[TopicSpec]) -> Result<Vec<String>, LogError> {
        topics::ensure(&self.cluster, self.metadata_timeout, topics).await
    }

    async fn describe_topics(&self, names: &[String]) -> Result<Vec<TopicDescription>, LogError> {
        topics::describe(&self.cluster, self.metadata_timeout, names).await
    }

    async fn grow_topics(&self, names: &[String], partitions: i32) -> Result<(), LogError> {
        topics::grow(&self.cluster, self.metadata_timeout, names, partitions).await?;
        self.forget_topics();
        Ok(())
    }

    fn forget_topics(&self) {
        self.topics.forget_all();
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
