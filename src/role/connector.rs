//! `hashinsight connector print | register | status`: the Debezium connector, generated, handed over, looked at.

use std::time::Duration;

use anyhow::{Context as _, bail};
use serde::Serialize;
use tokio::time::{Instant, sleep};

use crate::config::{Config, ConfigError};
use crate::connector::{self, Connect, Difference, NAME, Settings, Status};
use crate::db::Db;
use crate::log::EventLog;
use crate::log::kafka::KafkaLog;
use crate::role::{doctor, print_json, topics};

/// How long a registered connector may take until its task runs.
const STARTS: Duration = Duration::from_secs(60);

/// How often it is asked meanwhile.
const ASK_EVERY: Duration = Duration::from_millis(250);

/// The connector as Kafka Connect takes it.
#[derive(Debug, Serialize)]
struct Printed {
    name: &'static str,
    config: Settings,
}

/// Prints the connector as Kafka Connect takes it.
pub fn run_print(config: &Config) -> anyhow::Result<()> {
    if config.debezium_database_url().is_none() {
        eprintln!("DATABASE_URL is not set: the database is a usual local one");
    }
    print_json(&Printed { name: NAME, config: connector::settings(config)? })
}

/// Registers the connector if nothing speaks against it, and waits until it runs.
pub async fn run_register(config: &Config) -> anyhow::Result<()> {
    let connect = Connect::new(config)?;
    if config.debezium_database_url().is_none() {
        config.database_url()?;
    }
    let settings = connector::settings(config)?;
    connect.worker().await?;
    let running = connect.settings().await?.unwrap_or_default();
    if let Some((detail, remedy)) = doctor::transactions(&connect, &running).await? {
        bail!("not registered: {detail}; remedy: {remedy}");
    }
    let wrong = missing(config).await?;
    if !wrong.is_empty() {
        bail!("not registered: {}", wrong.join("; "));
    }
    connect.register(&settings).await?;
    let until = Instant::now() + STARTS;
    loop {
        // Connect may take a moment to know what it has accepted.
        let status = connect.status().await?;
        match &status {
            Some(status) if status.runs() => break,
            Some(status) if status.failure().is_some() => {
                bail!(
                    "{NAME} is registered, but fails: {}; remedy: `hashinsight doctor` names what is missing",
                    status.failure().unwrap_or_default()
                )
            }
            _ if Instant::now() >= until => {
                let seconds = STARTS.as_secs();
                bail!("{NAME} is registered, but does not run after {seconds} s: see Kafka Connect's log")
            }
            _ => sleep(ASK_EVERY).await,
        }
    }
    println!("{NAME} is registered and runs");
    Ok(())
}

/// What the connector needs and does not find, each with its remedy.
async fn missing(config: &Config) -> anyhow::Result<Vec<String>> {
    if config.kafka.broker_list().is_empty() {
        bail!(ConfigError("kafka.brokers is not set: set KAFKA_BROKERS=host:port".to_owned()));
    }
    let log = KafkaLog::connect(&config.kafka).await.context("event log")?;
    let specs = topics::specs(config, crate::config::EventLogKind::Kafka);
    let names: Vec<String> = specs.into_iter().map(|spec| spec.name).collect();
    let found = log.describe_topics(&names).await?;
    let mut wrong: Vec<String> = names
        .iter()
        .filter(|name| !found.iter().any(|topic| topic.topic == **name))
        .map(|name| format!("topic {name} is missing; remedy: run `hashinsight topics ensure`"))
        .collect();
    let db = Db::open(config).await?;
    let mut session = db.session().await?;
    wrong.extend(doctor::prerequisites(&mut session, config).await?);
    db.close().await;
    Ok(wrong)
}

/// What `connector status` found.
#[derive(Debug, Serialize)]
struct Found {
    name: &'static str,
    registered: bool,
    runs: bool,
    /// Null when it is not registered.
    status: Option<Status>,
    /// Between what runs and what would be registered.
    differences: Vec<Difference>,
}

/// Prints the state of the connector and what differs from the settings that would be registered.
pub async fn run_status(config: &Config, json: bool) -> anyhow::Result<()> {
    let connect = Connect::new(config)?;
    let expected = connector::settings(config)?;
    let running = connect.settings().await?;
    let status = connect.status().await?;
    let differences =
        running.as_ref().map_or_else(Vec::new, |running| connector::differences(&expected, running));
    let found = Found {
        name: NAME,
        registered: running.is_some(),
        runs: status.as_ref().is_some_and(Status::runs),
        status,
        differences,
    };
    if json {
        return print_json(&found);
    }
    print(&found);
    Ok(())
}

fn print(found: &Found) {
    let Some(status) = &found.status else {
        println!("{NAME} is not registered: run `hashinsight connector register`");
        return;
    };
    println!("{NAME}  {}", status.connector.state);
    for task in &status.tasks {
        println!("  task {}  {}", task.id, task.state);
    }
    if let Some(failure) = status.failure() {
        println!("  {failure}");
    }
    let shown = |value: &Option<String>| value.clone().unwrap_or_else(|| "not set".to_owned());
    for Difference { key, expected, actual } in &found.differences {
        println!("  differs {key}: is {}, expected {}", shown(actual), shown(expected));
    }
}
