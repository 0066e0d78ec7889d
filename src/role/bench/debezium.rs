//! The peer: Debezium's connector in Kafka Connect, reading the same table through a slot of its own.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, bail};
use serde_json::{Value, json};
use sqlx::ConnectOptions;
use tokio::time::{Instant, sleep};

use super::database::Database;
use super::process::{self, Usage};
use crate::connector::{self, CLASS, Connect, Settings};

/// How often a running connector is asked how it is.
const CHECK_EVERY: Duration = Duration::from_secs(1);

/// The topic it cannot do without is named after it.
const HEARTBEAT: &str = "__debezium-heartbeat.";

/// What makes it fast.
const TUNED: [(&str, &str); 4] = [
    ("poll.interval.ms", "10"),
    ("max.batch.size", "8192"),
    ("max.queue.size", "32768"),
    ("producer.override.linger.ms", "0"),
];

/// A running connector.
pub struct Connector {
    connect: Connect,
    name: String,
    checked: Instant,
}

/// What a connector is to read and write.
pub struct Route<'a> {
    /// Also the connector's name, so that nothing an earlier one left behind applies to it.
    pub slot: &'a str,
    pub topic_prefix: &'a str,
    pub tuned: bool,
}

/// The heartbeat topic of a connector.
pub fn heartbeat_topic(name: &str) -> String {
    format!("{HEARTBEAT}{name}")
}

impl Connector {
    /// Registers it; it starts by itself.
    pub async fn start(connect: &Connect, database: &Database, route: &Route<'_>) -> anyhow::Result<Self> {
        let settings = settings(database, route)?;
        connect.put(&format!("/connectors/{}/config", route.slot), json!(settings)).await?;
        Ok(Self { connect: connect.clone(), name: route.slot.to_owned(), checked: Instant::now() })
    }

    /// Fails if it, or its task, has failed.
    pub async fn check(&mut self) -> anyhow::Result<()> {
        if self.checked.elapsed() < CHECK_EVERY {
            return Ok(());
        }
        self.checked = Instant::now();
        let status = self.connect.get(&format!("/connectors/{}/status", self.name)).await?;
        let tasks = status["tasks"].as_array().map_or(&[][..], Vec::as_slice);
        for part in std::iter::once(&status["connector"]).chain(tasks) {
            if part["state"] == "FAILED" {
                let trace = part["trace"].as_str().unwrap_or_default();
                let causes = trace.lines().filter(|line| !line.trim_start().starts_with("at "));
                bail!("Debezium failed: {}", causes.collect::<Vec<_>>().join(" "));
            }
        }
        Ok(())
    }

    /// What Connect has used since its start, if it runs on this machine.
    pub fn usage(&self) -> Option<Usage> {
        process::usage(process::listening_on(self.connect.port())?).ok()
    }

    /// Deletes it and waits until Connect knows it no more.
    pub async fn stop(self) -> anyhow::Result<()> {
        self.connect.delete(&format!("/connectors/{}", self.name)).await?;
        while self.connect.get("/connectors").await?.as_array().is_some_and(|n| n.contains(&json!(self.name)))
        {
            sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }
}

/// Deletes the connectors whose names start so.
pub async fn delete_connectors(connect: &Connect, prefix: &str) -> anyhow::Result<()> {
    for name in connect.get("/connectors").await?.as_array().into_iter().flatten().filter_map(Value::as_str) {
        if name.starts_with(prefix) {
            connect.delete(&format!("/connectors/{name}")).await?;
        }
    }
    Ok(())
}

/// The version of the connector, or why there is none.
pub async fn version(connect: &Connect) -> anyhow::Result<String> {
    let plugins = connect.get("/connector-plugins").await?;
    let found = plugins.as_array().into_iter().flatten().find(|plugin| plugin["class"] == CLASS);
    let found = found.with_context(|| format!("Kafka Connect has no plugin {CLASS}"))?;
    Ok(found["version"].as_str().unwrap_or("unknown").to_owned())
}

/// What the tuned connector sets, for the report.
pub fn tuned() -> BTreeMap<String, String> {
    TUNED.map(|(name, value)| (format!("debezium-tuned {name}"), value.to_owned())).into()
}

/// The connector of the product, under names of this run. A bench has no secrets to keep: the password stands as it is.
fn settings(database: &Database, route: &Route<'_>) -> anyhow::Result<Settings> {
    let mut config = database.config.clone();
    config.debezium.slot = route.slot.to_owned();
    config.kafka.topic_prefix = route.topic_prefix.to_owned();
    let mut settings = connector::settings(&config)?;
    let url = database.options().to_url_lossy();
    let of_the_run =
        [("topic.prefix", route.slot), ("database.password", url.password().unwrap_or_default())];
    let tuned = if route.tuned { &TUNED[..] } else { &[] };
    settings.extend(
        of_the_run.iter().chain(tuned).map(|(name, value)| ((*name).to_owned(), (*value).to_owned())),
    );
    Ok(settings)
}
