//! What the roles share: one pool, one set of bells, one log, one cache a process.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};

use crate::api::{Api, server};
use crate::cache::Cache;
use crate::config::{Config, ConfigError, EventLogKind, EventSource};
use crate::consumer;
use crate::db::Db;
use crate::domain::miner::telemetry::Retention as TelemetryRetention;
use crate::doorbell::Doorbells;
use crate::economics::Assumptions;
use crate::lifecycle::Lifecycle;
use crate::lock::{Lease, Locks};
use crate::log::EventLog;
use crate::log::kafka::KafkaLog;
use crate::log::postgres::{PostgresLog, run_retention};
use crate::metrics;
use crate::outbox::Retention;
use crate::outbox::wal::WalSettings;
use crate::partitions::{self, Upkeep};
use crate::projection::{self, Group};
use crate::publisher::{Publisher, SlotOwner};
pub use crate::read_model::portfolio::assumptions;
use crate::read_model::{anomaly, portfolio_history};
use crate::redis::Redis;
use crate::role::membership;

/// A process: its configuration and what its roles have in common.
pub struct App {
    pub config: Config,
    pub db: Db,
    pub bells: Doorbells,
    pub lifecycle: Lifecycle,
}

impl App {
    /// Opens the database and starts what every role needs: wake-ups, partitions ahead, and retention behind.
    pub async fn open(config: Config) -> anyhow::Result<Self> {
        let db = Db::open(&config).await?;
        let app = Self { config, db, bells: Doorbells::default(), lifecycle: Lifecycle::default() };
        let stopping = app.lifecycle.stopping();
        if let Some(address) = app.config.metrics.bind() {
            let (exporter, stopping) = (metrics::listen(address)?, stopping.clone());
            app.lifecycle.spawn("metrics", async move {
                tokio::select! {
                    () = stopping.cancelled() => Ok(()),
                    ended = exporter => ended,
                }
            });
        }
        app.lifecycle.spawn("doorbells", app.bells.clone().run(app.db.clone(), stopping.clone()));
        let kept = partitions::run(app.db.clone(), upkeep(&app.config), stopping.clone());
        app.lifecycle.spawn("partitions", kept);
        Ok(app)
    }

    /// Connects the log.
    pub async fn log(&self, kind: EventLogKind) -> anyhow::Result<Arc<dyn EventLog>> {
        open_log(&self.config, kind, &self.db, &self.bells).await
    }

    /// Connects Redis, if there is one.
    pub async fn redis(&self) -> anyhow::Result<Option<Arc<Redis>>> {
        Ok(Redis::connect(&self.config.redis).await?)
    }

    /// The cache of this process.
    pub fn cache(&self, redis: Option<Arc<Redis>>) -> Arc<Cache> {
        Cache::new(&self.config.cache, redis, &self.lifecycle)
    }

    /// The locks of this process.
    pub fn locks(&self, redis: Option<Arc<Redis>>) -> Arc<Locks> {
        Locks::new(redis, Lease::default(), &self.lifecycle)
    }

    /// Starts the publisher; with the log in PostgreSQL also its retention.
    pub fn spawn_publisher(&self, log: &Arc<dyn EventLog>) -> anyhow::Result<()> {
        let behind = |owner, slot: &str| anyhow::Ok(Some((owner, WalSettings::new(&self.config, slot)?)));
        let slot = match self.config.publisher.source {
            EventSource::Poll => None,
            EventSource::Wal => behind(SlotOwner::Us, &self.config.wal.slot)?,
            EventSource::Debezium => behind(SlotOwner::Debezium, &self.config.debezium.slot)?,
        };
        let publisher = Publisher {
            db: self.db.clone(),
            log: Arc::clone(log),
            bells: self.bells.clone(),
            topic_prefix: self.config.kafka.topic_prefix.clone(),
            page_size: self.config.publisher.batch_size,
            poll_interval: Duration::from_millis(self.config.publisher.poll_interval_ms),
            lane_patience: Duration::from_millis(self.config.publisher.lane_patience_ms),
            slot,
            wal_slot: self.config.wal.slot.clone(),
            debezium_slot: self.config.debezium.slot.clone(),
            slot_alarm_bytes: self.config.wal.retained_alarm_mb << 20,
            lifecycle: self.lifecycle.clone(),
        };
        self.lifecycle.spawn("publisher", publisher.run(self.lifecycle.stopping().clone()));
        if log.transactional().is_some() {
            let stopping = self.lifecycle.stopping().clone();
            self.lifecycle.spawn("log-retention", run_retention(self.db.clone(), stopping));
        }
        Ok(())
    }

    /// Starts a member of a group.
    pub async fn spawn_consumer(
        &self,
        group_name: &str,
        log: &Arc<dyn EventLog>,
        cache: &Arc<Cache>,
        locks: &Arc<Locks>,
    ) -> anyhow::Result<()> {
        let group = group_named(group_name, assumptions(&self.config.economics))?;
        let protocol = membership::protocol(self, group.name, &**log).await?;
        let partitions = consumer::partitions_of(&**log, &group, &self.config.kafka.topic_prefix).await?;
        consumer::register(&self.db, group.name, &partitions).await?;
        let membership = membership::member(self, protocol, group.name, partitions)?;
        let prefix = self.config.kafka.topic_prefix.clone();
        let stopping = self.lifecycle.stopping();
        let following = consumer::follow_topics(
            self.db.clone(),
            Arc::clone(log),
            group.clone(),
            prefix,
            stopping.clone(),
        );
        self.lifecycle.spawn("topics", following);
        let context = consumer::Context {
            db: self.db.clone(),
            log: Arc::clone(log),
            bells: self.bells.clone(),
            cache: Arc::clone(cache),
            locks: Arc::clone(locks),
            group,
            settings: self.config.consumer.clone(),
        };
        self.lifecycle.spawn("consumer", consumer::run(Arc::new(context), membership, stopping.clone()));
        Ok(())
    }

    /// Starts the HTTP API and returns the address it listens on.
    pub async fn spawn_api(&self, cache: &Arc<Cache>) -> anyhow::Result<SocketAddr> {
        let api = Api::new(&self.config, self.db.clone(), Arc::clone(cache), self.bells.clone())?;
        let listener = server::bind(&self.config.server).await?;
        let address = listener.local_addr()?;
        let serving =
            server::serve(listener, api.router(), self.config.server.clone(), self.lifecycle.clone());
        self.lifecycle.spawn("api", serving);
        Ok(address)
    }

    /// Runs until a signal or a failure; then stops in two stages.
    pub async fn run(self) -> anyhow::Result<()> {
        let ended = self.lifecycle.run(self.config.shutdown.drain()).await;
        self.db.close().await;
        ended
    }
}

/// The tables of which old rows go.
pub fn upkeep(config: &Config) -> Vec<Box<dyn Upkeep>> {
    vec![
        Box::new(Retention::of(config)),
        Box::new(TelemetryRetention::of(config)),
        Box::new(portfolio_history::retention(config.portfolio_history.retention_days)),
        Box::new(anomaly::retention(config.anomalies.retention_days)),
    ]
}

/// The group of this name.
pub(super) fn group_named(name: &str, assumptions: Assumptions) -> anyhow::Result<Group> {
    let groups = projection::groups(assumptions);
    if let Some(group) = groups.iter().find(|group| group.name == name) {
        return Ok(group.clone());
    }
    let known: Vec<&str> = groups.iter().map(|group| group.name).collect();
    bail!(ConfigError(format!("--group {name:?} is no group of this build: {}", known.join(", "))));
}

/// Connects the log of this configuration.
pub async fn open_log(
    config: &Config,
    kind: EventLogKind,
    db: &Db,
    bells: &Doorbells,
) -> anyhow::Result<Arc<dyn EventLog>> {
    Ok(match kind {
        EventLogKind::Kafka => Arc::new(KafkaLog::connect(&config.kafka).await.context("event log")?),
        EventLogKind::Postgres => Arc::new(PostgresLog::new(db.clone(), bells.clone())),
    })
}
