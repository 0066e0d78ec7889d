//! What a bench stands on: a database, topics and tasks of its own, taken away at its end whatever happens.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use chrono::Utc;

use super::database::Database;
use super::debezium;
use super::destination::Broker;
use crate::config::{Config, ConfigError};
use crate::connector::Connect;
use crate::lifecycle::Lifecycle;
use crate::log::kafka::KafkaLog;
use crate::log::kafka::measured::MeasuredTopics;

/// The services of one bench.
#[derive(Clone)]
pub struct Ground {
    /// Everything that is made is named after it.
    pub name: String,
    pub database: Arc<Database>,
    pub broker: Broker,
    /// If it is configured.
    pub connect: Option<Connect>,
    pub lifecycle: Lifecycle,
}

/// Measures, until the end or a signal, and cleans up.
pub async fn measured<R, F>(config: Config, measure: F) -> anyhow::Result<R>
where
    R: Send + 'static,
    F: AsyncFnOnce(Ground) -> anyhow::Result<R>,
{
    if config.kafka.broker_list().is_empty() {
        bail!(ConfigError("kafka.brokers is not set: set KAFKA_BROKERS=host:port".to_owned()));
    }
    let connect = config.kafka.connect_url().map(|_| Connect::new(&config)).transpose()?;
    let name = name();
    let broker = Broker {
        log: Arc::new(KafkaLog::connect(&config.kafka).await?),
        topics: MeasuredTopics::new(&config.kafka)?,
        partitions: config.kafka.partitions,
        replication_factor: config.kafka.replication_factor,
    };
    let drain = config.shutdown.drain();
    let database = Arc::new(Database::create(config, &name).await?);
    let ground = Ground { name, database, broker, connect, lifecycle: Lifecycle::default() };
    let measured = until_stopped(&ground.lifecycle, drain, measure(ground.clone())).await;
    let cleaned = clean_up(&ground).await;
    let measured = measured?;
    cleaned.with_context(|| format!("cleaning up; what is left is named {}", ground.name))?;
    Ok(measured)
}

/// What a bench is named that begins now.
pub fn name() -> String {
    format!("hashinsight_bench_{}_{}", Utc::now().format("%Y%m%d%H%M%S"), std::process::id())
}

/// Measures until the end; a signal ends it without a report.
pub async fn until_stopped<R>(
    lifecycle: &Lifecycle,
    drain: Duration,
    measure: impl Future<Output = anyhow::Result<R>>,
) -> anyhow::Result<R> {
    let measuring = async {
        let measured = tokio::select! {
            measured = measure => Some(measured),
            () = lifecycle.stopping().cancelled() => None,
        };
        lifecycle.stop();
        measured
    };
    let (measured, ended) = tokio::join!(Box::pin(measuring), lifecycle.run(drain));
    let Some(measured) = measured else {
        ended?;
        bail!("stopped before the end: nothing is reported");
    };
    let measured = measured?;
    ended?;
    Ok(measured)
}

/// Takes away what was made: connectors first, since they would hold slots and topics. What fails keeps nothing else
/// from being taken away.
async fn clean_up(ground: &Ground) -> anyhow::Result<()> {
    let Ground { name, database, broker, connect, .. } = ground;
    let connectors = match connect {
        Some(connect) => debezium::delete_connectors(connect, name).await,
        None => Ok(()),
    };
    let dropped = Database::drop(database).await;
    let topics = broker.topics.delete(name).await;
    let heartbeats = broker.topics.delete(&debezium::heartbeat_topic(name)).await;
    connectors?;
    dropped?;
    topics?;
    Ok(heartbeats?)
}
