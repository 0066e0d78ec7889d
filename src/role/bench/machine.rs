//! What a figure was measured on: the machine, the services and their versions, what differs from default.

use std::collections::BTreeMap;

use serde::Serialize;
use sqlx::Connection;

use super::database::Database;
use super::debezium;
use super::destination::Broker;
use crate::config::Origin;
use crate::connector::Connect;

/// The machine of the bench.
#[derive(Debug, Serialize)]
pub struct Machine {
    pub cpu: String,
    pub cores: usize,
    pub memory_mib: u64,
    /// Of the last minute before the bench: others at work make its figures worse.
    pub load_average: f64,
    /// An unoptimised build says nothing about speed.
    pub optimised: bool,
}

/// A service as it ran.
#[derive(Debug, Serialize)]
pub struct Service {
    pub service: &'static str,
    pub version: String,
    /// What differs from the service's defaults, as far as it tells.
    pub settings: BTreeMap<String, String>,
}

/// Looks at this machine.
pub fn machine() -> Machine {
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    Machine {
        cpu: value_of(&read("/proc/cpuinfo"), "model name").unwrap_or_else(|| "unknown".to_owned()),
        cores: std::thread::available_parallelism().map_or(0, usize::from),
        memory_mib: value_of(&read("/proc/meminfo"), "MemTotal")
            .and_then(|kib| kib.strip_suffix(" kB")?.parse::<u64>().ok())
            .unwrap_or_default()
            / 1_024,
        load_average: read("/proc/loadavg")
            .split(' ')
            .next()
            .and_then(|l| l.parse().ok())
            .unwrap_or_default(),
        optimised: !cfg!(debug_assertions),
    }
}

fn value_of(text: &str, name: &str) -> Option<String> {
    let lines = text.lines().filter_map(|line| line.split_once(':'));
    let found = lines.filter(|(key, _)| key.trim() == name).map(|(_, value)| value.trim().to_owned());
    found.into_iter().next()
}

/// PostgreSQL and what was set there.
pub async fn postgres(database: &Database) -> anyhow::Result<Service> {
    let mut conn = database.connect().await?;
    let version = sqlx::query_scalar("select current_setting('server_version')").fetch_one(&mut conn).await?;
    // What a client or the installation sets for itself says nothing about the server.
    let settings: Vec<(String, String)> = sqlx::query_as(
        "select name, current_setting(name) from pg_settings where setting is distinct from boot_val \
         and source not in ('default', 'override', 'client', 'session') and category not like 'Client Connection%' \
         and category not like 'File Locations%'",
    )
    .fetch_all(&mut conn)
    .await?;
    conn.close().await?;
    Ok(Service { service: "PostgreSQL", version, settings: settings.into_iter().collect() })
}

/// The brokers, by the features they agreed upon.
pub async fn kafka(broker: &Broker) -> anyhow::Result<Service> {
    let features = broker.topics.features().await?;
    let level = features.get("metadata.version").map_or_else(|| "unknown".to_owned(), ToString::to_string);
    let settings = BTreeMap::from([
        ("partitions of a topic".to_owned(), broker.partitions.to_string()),
        ("replicas of a topic".to_owned(), broker.replication_factor.to_string()),
        ("message.timestamp.type".to_owned(), "LogAppendTime".to_owned()),
    ]);
    Ok(Service { service: "Kafka", version: format!("metadata.version {level}"), settings })
}

/// Kafka Connect and the connector in it.
pub async fn kafka_connect(connect: &Connect) -> anyhow::Result<Service> {
    let worker = connect.get("/").await?;
    let kafka = worker["version"].as_str().unwrap_or("unknown");
    let version = format!("{kafka} with Debezium {}", debezium::version(connect).await?);
    Ok(Service { service: "Kafka Connect", version, settings: debezium::tuned() })
}

/// This build, and what its configuration sets.
pub fn ours(origins: &[Origin]) -> Service {
    let set = origins.iter().filter(|origin| origin.origin != "default");
    let settings = set.map(|origin| (origin.key.clone(), origin.value.clone())).collect();
    Service { service: "HashInsight", version: env!("CARGO_PKG_VERSION").to_owned(), settings }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_proc_are_found_by_name() {
        let text = "processor\t: 0\nmodel name\t: Some CPU: fast\nMemTotal:       24685000 kB\n";
        assert_eq!(value_of(text, "model name").as_deref(), Some("Some CPU: fast"));
        assert_eq!(value_of(text, "MemTotal").as_deref(), Some("24685000 kB"));
        assert_eq!(value_of(text, "absent"), None);
    }
}
