//! Groups whose handler fails what a test calls sick, and the letters that come of it.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use hashinsight::config::EventLogKind;
use hashinsight::consumer;
use hashinsight::db::WorkerTx;
use hashinsight::event::{AggregateType, Event};
use hashinsight::log::{EventLog, Record};
use hashinsight::projection::{Dirty, EventHandler, Group, HandlerError};
use hashinsight::role::topics;
use serde_json::Value;
use sqlx::AssertSqlSafe;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::pipeline::Stubborn;
use crate::support::process::run;
use crate::support::{TestDb, service, settings, until};

/// Longer than the polls that a lost wake-up costs, on a busy machine.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);

/// A handler that fails sick entities. It remembers what it applied, and with a `!` what it failed.
#[derive(Default)]
pub(super) struct Clinic {
    sick: Mutex<BTreeSet<String>>,
    journal: Mutex<Vec<String>>,
}

impl Clinic {
    pub(super) fn with(sick: &[&str]) -> Arc<Self> {
        let clinic = Self::default();
        clinic.sick.lock().expect("lock").extend(sick.iter().map(|s| (*s).to_owned()));
        Arc::new(clinic)
    }

    pub(super) fn heal(&self, entity: &str) {
        self.sick.lock().expect("lock").remove(entity);
    }

    pub(super) fn journal(&self) -> Vec<String> {
        self.journal.lock().expect("lock").clone()
    }

    /// What was applied, in this order.
    pub(super) fn applied(&self) -> Vec<String> {
        self.journal().into_iter().filter(|entry| !entry.ends_with('!')).collect()
    }
}

#[async_trait]
impl EventHandler for Clinic {
    fn consumes(&self, _: &str) -> bool {
        true
    }

    async fn apply(&self, tx: &mut WorkerTx, events: &[&Event]) -> Result<Vec<Dirty>, HandlerError> {
        let names: Vec<String> = events.iter().map(|e| e.entity_id.to_string()).collect();
        let sick = names.iter().find(|name| self.sick.lock().expect("lock").contains(*name));
        if let Some(sick) = sick {
            self.journal.lock().expect("lock").push(format!("{sick}!"));
            sqlx::query("select 1 / 0").execute(tx.conn()).await?;
        }
        self.journal.lock().expect("lock").extend(names);
        Ok(Vec::new())
    }
}

/// A database with a log of one topic, and the groups that read it.
pub(super) struct Ward {
    pub(super) test: TestDb,
    pub(super) log: Arc<dyn EventLog>,
    pub(super) topic: String,
    stop: CancellationToken,
    groups: Vec<JoinHandle<anyhow::Result<()>>>,
}

impl Ward {
    pub(super) async fn open(kind: EventLogKind, partitions: i32) -> Self {
        let partitions = partitions.to_string();
        let brokers = match kind {
            EventLogKind::Kafka => service("KAFKA_BROKERS"),
            EventLogKind::Postgres => String::new(),
        };
        let with = [("HASHINSIGHT__KAFKA__PARTITIONS", partitions.as_str()), ("KAFKA_BROKERS", &brokers)];
        let test = TestDb::with(settings(&with)).await;
        let log = test.log(kind).await;
        log.ensure_topics(&topics::specs(&test.config, kind)).await.expect("topics");
        let topic = AggregateType::Miner.topic(&test.config.kafka.topic_prefix);
        let stop = CancellationToken::new();
        // Wake-ups of other processes: the command line's.
        let bells = tokio::spawn(test.bells.clone().run(test.db.clone(), stop.clone()));
        Self { test, log, topic, stop, groups: vec![bells] }
    }

    /// Starts a group that has every partition. Its first pause between two attempts is this long.
    pub(super) async fn group(&mut self, name: &'static str, clinic: &Arc<Clinic>, pause: Duration) {
        let handler = Arc::clone(clinic) as _;
        let group = Group { name, reads: &[AggregateType::Miner], handler };
        let prefix = &self.test.config.kafka.topic_prefix;
        let partitions = consumer::partitions_of(&*self.log, &group, prefix).await.expect("partitions");
        consumer::register(&self.test.db, name, &partitions).await.expect("registered");
        let mut settings = self.test.config.consumer.clone();
        settings.retry_backoff_ms = pause.as_millis() as u64;
        let (cache, locks) = self.test.cache_and_locks().await;
        let context = consumer::Context {
            db: self.test.db.clone(),
            log: Arc::clone(&self.log),
            bells: self.test.bells.clone(),
            cache,
            locks,
            group,
            settings,
        };
        let member = Box::new(Stubborn(partitions.into_iter().collect()));
        self.groups.push(tokio::spawn(consumer::run(Arc::new(context), member, self.stop.clone())));
    }

    /// Stops the groups; fails the test if one did not end well.
    pub(super) async fn close(self) {
        self.stop.cancel();
        for group in self.groups {
            group.await.expect("no panic").expect("clean");
        }
    }

    pub(super) async fn append(&self, partition: i32, records: &[Record]) {
        self.log.append(&self.topic, partition, records).await.expect("appended");
    }

    /// Waits until a condition holds in the database.
    pub(super) async fn holds(&self, condition: &str) {
        let sql = format!("select coalesce({condition}, false)");
        until(condition, PATIENCE, async || self.test.scalar::<bool>(&sql).await.then_some(())).await;
    }

    /// `hashinsight replay ... --json`.
    pub(super) async fn replay(&self, arguments: &[&str]) -> Value {
        let arguments: Vec<&str> = ["replay"].iter().chain(arguments).chain(&["--json"]).copied().collect();
        let ended = run(&self.test.environment, &arguments).await;
        assert_eq!(ended.code, 0, "{}", ended.stderr);
        serde_json::from_str(&ended.stdout).expect("json")
    }

    /// A letter as if it had been buried by an earlier run; returns its id.
    pub(super) async fn letter(&self, of: Buried<'_>) -> Uuid {
        bury(&self.test, &self.topic, of).await
    }
}

/// What a letter says, where it matters.
#[derive(Clone, Copy)]
pub(super) struct Buried<'a> {
    pub(super) group: &'a str,
    pub(super) kind: Option<&'a str>,
    pub(super) tenant: Option<&'a str>,
    pub(super) key: &'a str,
    pub(super) partition: i32,
    pub(super) offset: i64,
    pub(super) event_id: Option<Uuid>,
    pub(super) value: &'a [u8],
    /// When it died, as PostgreSQL writes an interval before now.
    pub(super) ago: &'a str,
}

impl Default for Buried<'_> {
    fn default() -> Self {
        Self {
            group: "picky",
            kind: Some("miner.updated"),
            tenant: Some("t"),
            key: "t:u",
            partition: 0,
            offset: 0,
            event_id: None,
            value: b"{",
            ago: "1 minute",
        }
    }
}

pub(super) async fn bury(test: &TestDb, topic: &str, of: Buried<'_>) -> Uuid {
    let sql = format!(
        "insert into event_dlq (consumer_name, event_id, event_kind, tenant_id, user_id, topic, partition, log_offset, \
         raw_key, raw_value, headers, error_class, error_message, retry_count, first_failed_at, last_failed_at, \
         created_at) values ($1, $2, $3, $4, 'u', $5, $6, $7, $8, $9, '[]', 'database', 'it broke', 3, \
         now() - interval '{0}', now() - interval '{0}', now() - interval '{0}') returning id",
        of.ago
    );
    sqlx::query_scalar(AssertSqlSafe(sql))
        .bind(of.group)
        .bind(of.event_id)
        .bind(of.kind)
        .bind(of.tenant)
        .bind(topic)
        .bind(of.partition)
        .bind(of.offset)
        .bind(of.key.as_bytes())
        .bind(of.value)
        .fetch_one(&test.admin)
        .await
        .expect("a letter")
}
