//! The log: brokers and topics.

use anyhow::anyhow;

use super::{Check, Limit};
use crate::config::{Config, EventLogKind};
use crate::connector::HEARTBEAT_TOPIC;
use crate::log::broker::{self, Broker};
use crate::role::membership::KIP_848;
use crate::role::topics::{self, Described, Difference};

pub(super) async fn examine(config: &Config) -> Vec<Check> {
    let kind = match config.event_log_kind(true) {
        Ok(kind) => kind,
        Err(error) => return vec![Check::failed("kafka", error.0, "set KAFKA_BROKERS=host:port")],
    };
    let limit = Limit::start();
    let mut checks = vec![match kind {
        EventLogKind::Postgres => Check::ok("kafka", "not used: the log is in PostgreSQL"),
        EventLogKind::Kafka => match limit.ask(broker::ask(&config.kafka)).await {
            Ok(broker) => version(&broker),
            Err(cause) => {
                let remedy = "start the brokers, or correct KAFKA_BROKERS";
                return vec![Check::failed("kafka", format!("no broker answers: {cause}"), remedy)];
            }
        },
    }];
    let described = limit.ask(async {
        let (_, log) = topics::connect(config).await?;
        topics::describe(&*log, &topics::specs(config, kind)).await.map_err(|error| anyhow!(error))
    });
    checks.extend(match described.await {
        Ok(described) => judge(&described, kind, config.kafka.connect_url().is_some()),
        Err(cause) => vec![Check::failed("topics", cause, "run `hashinsight topics describe`")],
    });
    checks
}

fn version(broker: &Broker) -> Check {
    match broker.group_protocol {
        Some(version) if version >= KIP_848 => {
            Check::ok("kafka", format!("{} answers, Kafka 4.0 or newer", broker.address))
        }
        _ => Check::warning(
            "kafka",
            format!(
                "{} does not speak the group protocol of Kafka 4.0: leases take its place",
                broker.address
            ),
            "upgrade the brokers to Kafka 4.0 or newer, and the feature group.version to 1",
        ),
    }
}

/// The heartbeat topic has a check of its own: nothing but the connector needs it.
fn judge(described: &Described, kind: EventLogKind, connect: bool) -> Vec<Check> {
    let beats = |topic: &String| topic == HEARTBEAT_TOPIC;
    let missing: Vec<&str> = described.missing.iter().filter(|t| !beats(t)).map(String::as_str).collect();
    let differences: Vec<&Difference> = described.differences.iter().filter(|d| !beats(&d.topic)).collect();
    let topics = if !missing.is_empty() {
        Check::failed("topics", format!("missing: {}", missing.join(", ")), "run `hashinsight topics ensure`")
    } else if !differences.is_empty() {
        let listed: Vec<String> = differences.iter().map(|d| d.to_string()).collect();
        Check::warning("topics", listed.join("; "), "alter the topic, or set kafka.partitions to what it has")
    } else {
        let present = described.topics.iter().filter(|t| !beats(&t.topic)).count();
        Check::ok("topics", format!("all {present} are there, with their partitions and retention"))
    };
    let mut checks = vec![topics];
    if kind == EventLogKind::Kafka {
        let name = "heartbeat topic";
        checks.push(match (described.missing.iter().any(beats), connect) {
            (false, _) => Check::ok(name, format!("{HEARTBEAT_TOPIC} is there")),
            (true, false) => Check::ok(name, format!("{HEARTBEAT_TOPIC} is missing; only Debezium needs it")),
            (true, true) => Check::failed(
                name,
                format!("{HEARTBEAT_TOPIC} is missing: Debezium says RUNNING and stands still"),
                "run `hashinsight topics ensure`",
            ),
        });
    }
    checks
}

#[cfg(test)]
mod tests {
    use super::super::Status;
    use super::*;
    use crate::log::TopicDescription;

    #[test]
    fn topics_are_judged_apart_from_the_heartbeat() {
        let missing = |names: &[&str]| Described {
            topics: Vec::new(),
            missing: names.iter().map(|name| (*name).to_owned()).collect(),
            differences: Vec::new(),
        };
        let judged = |described: &Described, connect| -> Vec<(&str, Status)> {
            let checks = judge(described, EventLogKind::Kafka, connect);
            checks.into_iter().map(|check| (check.name, check.status)).collect()
        };
        let (topics, beat) = ("topics", "heartbeat topic");
        assert_eq!(judged(&missing(&[]), true), [(topics, Status::Ok), (beat, Status::Ok)]);
        assert_eq!(judged(&missing(&["events.ops"]), true), [(topics, Status::Failed), (beat, Status::Ok)]);
        let no_beat = missing(&[HEARTBEAT_TOPIC]);
        assert_eq!(judged(&no_beat, true), [(topics, Status::Ok), (beat, Status::Failed)]);
        assert_eq!(judged(&no_beat, false), [(topics, Status::Ok), (beat, Status::Ok)]);
        assert_eq!(judge(&no_beat, EventLogKind::Postgres, true).len(), 1);
        let retention = |topic: &str| Described {
            topics: vec![TopicDescription {
                topic: topic.to_owned(),
                partitions: 1,
                replication_factor: None,
                retention_ms: None,
                topic_id: None,
            }],
            missing: Vec::new(),
            differences: vec![Difference {
                topic: topic.to_owned(),
                setting: "retention_ms",
                expected: 1,
                actual: None,
            }],
        };
        assert_eq!(judged(&retention("events.ops"), true)[0], (topics, Status::Warning));
        assert_eq!(judged(&retention(HEARTBEAT_TOPIC), true)[0], (topics, Status::Ok));
    }

    #[test]
    fn an_old_broker_is_a_warning() {
        let broker = |group_protocol| Broker { address: "h:1".to_owned(), group_protocol };
        assert_eq!(version(&broker(Some(1))).status, Status::Ok);
        assert_eq!(version(&broker(Some(0))).status, Status::Warning);
        assert_eq!(version(&broker(None)).status, Status::Warning);
    }
}
