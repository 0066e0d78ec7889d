//! `hashinsight topics`: the topics this product needs, how they are, and more partitions for them.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;

use crate::config::{Config, EventLogKind};
use crate::connector;
use crate::db::Db;
use crate::doorbell::Doorbells;
use crate::event::AggregateType;
use crate::log::kafka::KafkaLog;
use crate::log::postgres::PostgresLog;
use crate::log::{EventLog, LogError, TopicDescription, TopicSpec};
use crate::role::print_json;

pub mod alter;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const RETENTION: Duration = DAY.saturating_mul(7);

/// Dead letters go by their own measure: fewer, and read by people.
const DLQ_PARTITIONS: i32 = 3;
const DLQ_RETENTION: Duration = DAY.saturating_mul(30);

/// What `topics ensure` did.
#[derive(Debug, serde::Serialize)]
pub struct Ensured {
    pub created: Vec<String>,
    pub existed: Vec<String>,
    /// Of those that existed: they are left as they are.
    pub differences: Vec<Difference>,
}

/// What `topics describe` found.
#[derive(Debug, serde::Serialize)]
pub struct Described {
    pub topics: Vec<TopicDescription>,
    pub missing: Vec<String>,
    pub differences: Vec<Difference>,
}

impl Described {
    /// Whether every topic is there and as it should be.
    pub fn is_complete(&self) -> bool {
        self.missing.is_empty() && self.differences.is_empty()
    }
}

/// A setting of a topic that is not what it should be.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Difference {
    pub topic: String,
    pub setting: &'static str,
    pub expected: i64,
    /// Null when unlimited.
    pub actual: Option<i64>,
}

/// Creates the topics that are missing and prints what there is.
pub async fn run_ensure(config: &Config, json: bool) -> anyhow::Result<()> {
    let (kind, log) = connect(config).await?;
    let ensured = ensure(&*log, &specs(config, kind)).await?;
    if json {
        return print_json(&ensured);
    }
    for topic in &ensured.created {
        println!("created {topic}");
    }
    for topic in &ensured.existed {
        println!("exists  {topic}");
    }
    ensured.differences.iter().for_each(|d| println!("{d}"));
    Ok(())
}

/// Prints the topics as they are, what is missing and what differs.
pub async fn run_describe(config: &Config, json: bool) -> anyhow::Result<()> {
    let (kind, log) = connect(config).await?;
    let described = describe(&*log, &specs(config, kind)).await?;
    if json {
        return print_json(&described);
    }
    println!("{:<34} {:>10} {:>12} {:>16}", "topic", "partitions", "replication", "retention (days)");
    for t in &described.topics {
        let replication = t.replication_factor.map_or_else(|| "-".to_owned(), |n| n.to_string());
        let retention =
            t.retention_ms.map_or_else(|| "unlimited".to_owned(), |ms| (ms / 86_400_000).to_string());
        println!("{:<34} {:>10} {:>12} {:>16}", t.topic, t.partitions, replication, retention);
    }
    for topic in &described.missing {
        println!("missing {topic}: run `hashinsight topics ensure`");
    }
    described.differences.iter().for_each(|d| println!("{d}"));
    Ok(())
}

/// Only the log in PostgreSQL needs the database.
pub(super) async fn connect(config: &Config) -> anyhow::Result<(EventLogKind, Arc<dyn EventLog>)> {
    let kind = config.event_log_kind(true)?;
    let log: Arc<dyn EventLog> = match kind {
        EventLogKind::Kafka => Arc::new(KafkaLog::connect(&config.kafka).await.context("event log")?),
        EventLogKind::Postgres => Arc::new(PostgresLog::new(Db::open(config).await?, Doorbells::default())),
    };
    Ok((kind, log))
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let actual = self.actual.map_or_else(|| "unlimited".to_owned(), |n| n.to_string());
        write!(f, "differs {}: {} is {actual}, expected {}", self.topic, self.setting, self.expected)
    }
}

/// The topics of a log of this kind.
pub fn specs(config: &Config, kind: EventLogKind) -> Vec<TopicSpec> {
    let prefix = &config.kafka.topic_prefix;
    let retention = match kind {
        EventLogKind::Kafka => RETENTION,
        EventLogKind::Postgres => DAY * config.event_log.retention_days,
    };
    let spec = |name: String, partitions, retention| TopicSpec {
        name,
        partitions,
        replication_factor: config.kafka.replication_factor,
        retention,
    };
    let mut specs: Vec<TopicSpec> = AggregateType::ALL
        .iter()
        .map(|aggregate| spec(aggregate.topic(prefix), config.kafka.partitions, retention))
        .collect();
    specs.push(spec(format!("{prefix}dlq"), DLQ_PARTITIONS, DLQ_RETENTION));
    if kind == EventLogKind::Kafka {
        specs.push(spec(connector::HEARTBEAT_TOPIC.to_owned(), 1, RETENTION));
    }
    specs
}

/// Makes the topics that are missing and compares the others.
pub async fn ensure(log: &dyn EventLog, specs: &[TopicSpec]) -> Result<Ensured, LogError> {
    let created = log.ensure_topics(specs).await?;
    let Described { topics, differences, .. } = describe(log, specs).await?;
    let existed = topics.into_iter().map(|t| t.topic).filter(|name| !created.contains(name)).collect();
    Ok(Ensured { created, existed, differences })
}

/// The topics as they are, beside what they should be.
pub async fn describe(log: &dyn EventLog, specs: &[TopicSpec]) -> Result<Described, LogError> {
    let names: Vec<String> = specs.iter().map(|spec| spec.name.clone()).collect();
    let topics = log.describe_topics(&names).await?;
    let by_name: BTreeMap<&str, &TopicDescription> = topics.iter().map(|t| (t.topic.as_str(), t)).collect();
    let (mut missing, mut differences) = (Vec::new(), Vec::new());
    for spec in specs {
        match by_name.get(spec.name.as_str()) {
            Some(topic) => differences.extend(compare(spec, topic)),
            None => missing.push(spec.name.clone()),
        }
    }
    Ok(Described { topics, missing, differences })
}

fn compare(spec: &TopicSpec, topic: &TopicDescription) -> Vec<Difference> {
    let retention_ms = i64::try_from(spec.retention.as_millis()).unwrap_or(i64::MAX);
    [
        ("partitions", i64::from(spec.partitions), Some(i64::from(topic.partitions))),
        ("retention_ms", retention_ms, topic.retention_ms),
    ]
    .into_iter()
    .filter(|(_, expected, actual)| *actual != Some(*expected))
    .map(|(setting, expected, actual)| Difference { topic: spec.name.clone(), setting, expected, actual })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    #[test]
    fn each_log_has_the_topics_of_the_product() {
        let config = config::load_from(None, &BTreeMap::new()).expect("defaults").config;
        let names = |kind| specs(&config, kind).into_iter().map(|s| s.name).collect::<Vec<_>>();
        let product = ["events.miner", "events.treasury", "events.ops", "events.crm", "events.dlq"];
        assert_eq!(names(EventLogKind::Postgres), product);
        assert_eq!(names(EventLogKind::Kafka)[..5], product);
        assert_eq!(names(EventLogKind::Kafka)[5..], [connector::HEARTBEAT_TOPIC]);
        let kafka = specs(&config, EventLogKind::Kafka);
        assert_eq!(kafka.iter().map(|s| s.partitions).collect::<Vec<_>>(), [3, 3, 3, 3, 3, 1]);
        assert_eq!((kafka[0].retention, kafka[4].retention), (DAY * 7, DAY * 30));
    }

    #[test]
    fn what_differs_is_named() {
        let spec = TopicSpec {
            name: "t".to_owned(),
            partitions: 3,
            replication_factor: 1,
            retention: Duration::from_secs(1),
        };
        let topic = |partitions, retention_ms| TopicDescription {
            topic: "t".to_owned(),
            partitions,
            replication_factor: Some(1),
            retention_ms,
            topic_id: None,
        };
        assert!(compare(&spec, &topic(3, Some(1_000))).is_empty());
        let differences = compare(&spec, &topic(1, None));
        let named: Vec<_> = differences.iter().map(|d| (d.setting, d.expected, d.actual)).collect();
        assert_eq!(named, [("partitions", 3, Some(1)), ("retention_ms", 1_000, None)]);
    }
}
