//! A topic of the test's own, logs to reach it, and records to put there.

use std::collections::BTreeMap;
use std::time::Duration;

use chrono::{DateTime, Utc};
use hashinsight::config::{self, Config};
use hashinsight::log::kafka::KafkaLog;
use hashinsight::log::{EventLog, FetchLimits, LogError, Record, TopicSpec};
use uuid::Uuid;

use super::service;

/// Longer than anything takes on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A configuration with a prefix of its own.
pub(crate) fn configured(brokers: &str, settings: &[(&str, &str)]) -> Config {
    let mut environment = BTreeMap::from([
        ("KAFKA_BROKERS".to_owned(), brokers.to_owned()),
        ("HASHINSIGHT__KAFKA__TOPIC_PREFIX".to_owned(), format!("it-{}.", Uuid::now_v7())),
    ]);
    environment.extend(
        settings.iter().map(|(key, value)| (format!("HASHINSIGHT__KAFKA__{key}"), (*value).to_owned())),
    );
    config::load_from(None, &environment).expect("valid").config
}

/// One topic and a log to reach it; the topic is deleted at the end.
pub(crate) struct Fixture {
    pub(crate) log: KafkaLog,
    pub(crate) topic: String,
    brokers: String,
}

impl Fixture {
    pub(crate) async fn new(partitions: i32) -> Self {
        Self::with(partitions, &[]).await
    }

    pub(crate) async fn with(partitions: i32, settings: &[(&str, &str)]) -> Self {
        Self::on(&service("KAFKA_BROKERS"), partitions, settings).await
    }

    /// On a broker of the test's own.
    pub(crate) async fn on(brokers: &str, partitions: i32, settings: &[(&str, &str)]) -> Self {
        let config = configured(brokers, settings);
        let log = KafkaLog::connect(&config.kafka).await.expect("a broker");
        let topic = format!("{}one", config.kafka.topic_prefix);
        let created = log.ensure_topics(&[spec(&topic, partitions)]).await.expect("created");
        assert_eq!(created, [topic.as_str()]);
        Self { log, topic, brokers: brokers.to_owned() }
    }

    /// A second log that reaches the topic by another way, such as a proxy.
    pub(crate) async fn through(&self, address: &str, settings: &[(&str, &str)]) -> KafkaLog {
        KafkaLog::connect(&configured(address, settings).kafka).await.expect("a broker")
    }

    /// Waits until partition 0 has so many records.
    pub(crate) async fn has(&self, records: i64) {
        let enough = async { while self.log.bounds(&self.topic, 0).await.expect("bounds").end < records {} };
        tokio::time::timeout(PATIENCE, enough).await.expect("they arrive");
    }

    /// The values of all records of partition 0.
    pub(crate) async fn values(&self) -> Vec<String> {
        let text = |record: Record| String::from_utf8(record.value.expect("a value")).expect("text");
        self.all().await.into_iter().map(text).collect()
    }

    pub(crate) async fn append(&self, records: &[Record]) {
        self.log.append(&self.topic, 0, records).await.expect("appended");
    }

    pub(crate) async fn fetch(&self, offset: i64) -> Result<Vec<(i64, Record)>, LogError> {
        Ok(self.log.fetch(&self.topic, 0, offset, limits(10_000)).await?.records)
    }

    /// All records of partition 0.
    pub(crate) async fn all(&self) -> Vec<Record> {
        let end = self.log.bounds(&self.topic, 0).await.expect("bounds").end;
        let mut found = Vec::new();
        let mut next = 0;
        while next < end {
            let records = self.fetch(next).await.expect("fetched");
            next = records.last().expect("a record before the end").0 + 1;
            found.extend(records.into_iter().map(|(_, record)| record));
        }
        found
    }

    pub(crate) async fn end(self) {
        delete(&self.brokers, &[self.topic]).await;
    }
}

pub(crate) async fn delete(brokers: &str, topics: &[String]) {
    let brokers = brokers.split(',').map(str::to_owned).collect();
    let client = rskafka::client::ClientBuilder::new(brokers).build().await.expect("a broker");
    for topic in topics {
        let controller = client.controller_client().expect("a controller");
        controller.delete_topic(topic, 5_000).await.expect("deleted");
    }
}

pub(crate) fn spec(name: &str, partitions: i32) -> TopicSpec {
    TopicSpec {
        name: name.to_owned(),
        partitions,
        replication_factor: 1,
        retention: Duration::from_secs(86_400),
    }
}

pub(crate) fn limits(max_records: usize) -> FetchLimits {
    FetchLimits { max_records, max_bytes: 1 << 20, max_wait: PATIENCE }
}

pub(crate) fn record(value: impl Into<Vec<u8>>) -> Record {
    let timestamp = DateTime::from_timestamp_millis(Utc::now().timestamp_millis()).expect("in range");
    Record { key: Some(b"t1:u1".to_vec()), value: Some(value.into()), headers: Vec::new(), timestamp }
}

/// A record like those of the product: about 700 bytes, some of which compress.
pub(crate) fn event(n: usize) -> Record {
    let header = |name: &str, value: String| (name.to_owned(), value.into_bytes());
    let (id, entity) = (Uuid::new_v4(), Uuid::new_v4());
    let value = format!(
        r#"{{"data": {{"model": "Antminer S21", "power_w": {}, "location": "site-{}", "quantity": 1, "hashrate_ths": {}, "purchase_price_usd": "{}", "electricity_cost_usd_kwh": "0.05", "reason": "imported"}}, "kind": "miner.added", "version": 1, "event_id": "{id}", "user_id": "u1", "entity_id": "{entity}", "tenant_id": "t1", "occurred_at": "2026-01-02T03:04:05.678901Z", "causation_id": null, "correlation_id": "{}"}}"#,
        fastrand::u32(1_000..4_000),
        fastrand::u32(..40),
        fastrand::u32(50..250),
        fastrand::u32(500..5_000),
        Uuid::new_v4(),
    );
    let traceparent = format!("00-{:032x}-{:016x}-01", fastrand::u128(..), fastrand::u64(..));
    let headers = vec![
        header("id", id.to_string()),
        header("position", n.to_string()),
        header("tenantId", "t1".to_owned()),
        header("traceparent", traceparent),
        header("type", "miner.added".to_owned()),
        header("version", "1".to_owned()),
    ];
    Record { headers, ..record(value) }
}
