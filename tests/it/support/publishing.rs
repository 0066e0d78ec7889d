//! Events to publish, and what became of them in Kafka.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use hashinsight::config::EventLogKind;
use hashinsight::db::Db;
use hashinsight::log::{EventLog, FetchLimits, Record, partition_of};
use hashinsight::outbox::{self, NewEvent};
use hashinsight::role::app::open_log;
use hashinsight::role::topics;
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::process::Process;
use super::{TestDb, settings, until};

/// Longer than a broker takes to come back on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(90);

pub(crate) const LEADS: &str = "this publisher leads";

/// What a publisher says once it works from a source.
pub(crate) fn ready(source: &str) -> &'static str {
    if source == "wal" { "streaming from the write-ahead log" } else { LEADS }
}

/// A database and its topics on a broker, which the test reaches without detours.
pub(crate) struct Publishing {
    pub(crate) test: TestDb,
    pub(crate) log: Arc<dyn EventLog>,
    /// Each partition from its beginning, as far as it was read.
    partitions: BTreeMap<(String, i32), Vec<Record>>,
}

impl Publishing {
    /// With settings for the processes; they reach the broker at `through`.
    pub(crate) async fn on(broker: &str, through: &str, with: &[(&str, &str)]) -> Self {
        Self::of(TestDb::with(Self::settings(broker, with)).await, through).await
    }

    /// The settings of a database for [`Publishing::of`].
    pub(crate) fn settings(broker: &str, with: &[(&str, &str)]) -> BTreeMap<String, String> {
        // Slots belong to the cluster.
        let slot = format!("hi_test_{}", Uuid::now_v7().simple());
        let mut all = vec![
            ("KAFKA_BROKERS", broker),
            ("HASHINSIGHT__PUBLISHER__POLL_INTERVAL_MS", "20"),
            ("HASHINSIGHT__WAL__SLOT", &slot),
            ("HASHINSIGHT__WAL__STATUS_INTERVAL_MS", "50"),
        ];
        all.extend(with);
        settings(&all)
    }

    /// On a database that was made with [`Publishing::settings`].
    pub(crate) async fn of(mut test: TestDb, through: &str) -> Self {
        let log = open_log(&test.config, EventLogKind::Kafka, &test.db, &test.bells).await.expect("the log");
        let specs = topics::specs(&test.config, EventLogKind::Kafka);
        log.ensure_topics(&specs).await.expect("topics");
        let partitions = specs
            .iter()
            .filter(|spec| spec.name.starts_with(&test.config.kafka.topic_prefix))
            .flat_map(|spec| (0..spec.partitions).map(|p| ((spec.name.clone(), p), Vec::new())))
            .collect();
        test.environment.insert("KAFKA_BROKERS".to_owned(), through.to_owned());
        test.environment.insert("RUST_LOG".to_owned(), "hashinsight=debug".to_owned());
        Self { test, log, partitions }
    }

    /// Starts a publisher and waits until its log says `ready`.
    pub(crate) async fn publisher(&self, source: &str, ready: &str) -> Process {
        Process::start(&self.test.environment, &["publish", "--source", source], ready).await
    }

    /// As [`Publishing::publisher`], with fail points.
    pub(crate) async fn failing_publisher(&self, source: &str, fail_points: &str) -> Process {
        let mut environment = self.test.environment.clone();
        environment.insert("FAILPOINTS".to_owned(), fail_points.to_owned());
        Process::start(&environment, &["publish", "--source", source], ready(source)).await
    }

    /// Whether a record beyond those that were read arrives within this time.
    pub(crate) async fn another_arrives(&self, within: Duration) -> bool {
        let limits = FetchLimits { max_records: 1, max_bytes: 1 << 20, max_wait: within };
        let mut next: FuturesUnordered<_> = self
            .partitions
            .iter()
            .map(|((topic, partition), read)| async move {
                let fetched = self.log.fetch(topic, *partition, read.len() as i64, limits).await;
                !fetched.expect("read").records.is_empty()
            })
            .collect();
        while let Some(arrived) = next.next().await {
            if arrived {
                return true;
            }
        }
        false
    }

    pub(crate) fn topic(&self, aggregate: &str) -> String {
        format!("{}{aggregate}", self.test.config.kafka.topic_prefix)
    }

    /// Commits one event about one miner of an owner.
    pub(crate) async fn commit(&self, owner: usize) -> Uuid {
        commit(&self.test.db, "miner.updated", owner, "m-0", json!({})).await
    }

    /// Of one partition.
    pub(crate) fn read_in(&self, topic: &str, partition: i32) -> &[Record] {
        self.partitions.get(&(topic.to_owned(), partition)).map_or(&[], Vec::as_slice)
    }

    /// The records of a topic that were read so far.
    pub(crate) fn read_of(&self, topic: &str) -> Vec<&Record> {
        self.partitions
            .iter()
            .filter(|((name, _), _)| name == topic)
            .flat_map(|(_, records)| records)
            .collect()
    }

    /// Reads until every committed event is there; then checks that the first of each came in the order of its
    /// aggregate, and that nothing is there that was not committed.
    pub(crate) async fn everything_is_published(&mut self) {
        let committed = self.ids("select id from event_outbox").await;
        assert!(!committed.is_empty(), "nothing was to be published");
        self.read_until_there(committed.iter().copied().collect()).await;
        let committed: HashSet<Uuid> = committed.into_iter().collect();
        let mut seen = HashSet::new();
        let mut last: HashMap<String, (i64, Uuid)> = HashMap::new();
        for record in self.partitions.values().flatten() {
            let id = id_of(record);
            assert!(committed.contains(&id), "{id} was never committed");
            if !seen.insert(id) {
                continue;
            }
            let event: Value =
                serde_json::from_slice(record.value.as_deref().expect("a value")).expect("json");
            let entity = format!("{} {}", event["user_id"], event["entity_id"]);
            let position = position_of(record);
            if let Some((before, other)) = last.insert(entity.clone(), (position, id)) {
                assert!(before < position, "{entity}: {id} came after {other}");
            }
        }
    }

    pub(crate) async fn ids(&self, sql: &str) -> Vec<Uuid> {
        sqlx::query_scalar(sqlx::AssertSqlSafe(sql)).fetch_all(&self.test.admin).await.expect("ids")
    }

    /// Waits until a condition holds in the database.
    pub(crate) async fn holds(&self, condition: &str) {
        let sql = format!("select {condition}");
        until(condition, PATIENCE, async || self.test.scalar::<bool>(&sql).await.then_some(())).await;
    }

    /// Reads until these events are there.
    pub(crate) async fn read_until_there(&mut self, mut missing: HashSet<Uuid>) {
        for record in self.partitions.values().flatten() {
            missing.remove(&id_of(record));
        }
        let read = async {
            while !missing.is_empty() {
                for ((topic, partition), records) in self.read_on().await {
                    for record in &records {
                        missing.remove(&id_of(record));
                    }
                    self.partitions.entry((topic, partition)).or_default().extend(records);
                }
            }
        };
        let read = tokio::time::timeout(PATIENCE, read).await;
        assert!(read.is_ok(), "{} events never came, among them {:?}", missing.len(), missing.iter().next());
    }

    /// What each partition has beyond what was read.
    async fn read_on(&self) -> Vec<((String, i32), Vec<Record>)> {
        let limits =
            FetchLimits { max_records: 10_000, max_bytes: 4 << 20, max_wait: Duration::from_millis(50) };
        let reads = self.partitions.iter().map(|((topic, partition), read)| async move {
            let fetched =
                self.log.fetch(topic, *partition, read.len() as i64, limits).await.unwrap_or_default();
            let records = fetched.records.into_iter().map(|(_, record)| record).collect();
            ((topic.clone(), *partition), records)
        });
        join_all(reads).await
    }

    /// The topic was made anew: it will be read from its beginning.
    pub(crate) fn made_anew(&mut self, topic: &str, partitions: i32) {
        self.partitions.retain(|(name, _), _| name != topic);
        self.partitions.extend((0..partitions).map(|partition| ((topic.to_owned(), partition), Vec::new())));
    }

    /// Waits until the leader has shown so many times more that it lives, a second apart: whatever needs no more than a
    /// moment has happened.
    pub(crate) async fn beats_on(&self, times: i64) {
        let beat: i64 = self.test.scalar("select beat from publisher_cursor").await;
        self.holds(&format!("(select beat >= {} from publisher_cursor)", beat + times)).await;
    }

    /// How long after `commits` has begun the next event of an owner's miners is in Kafka.
    pub(crate) async fn time_to_append(&self, owner: usize, commits: impl Future) -> Duration {
        let (topic, partition) =
            (self.topic("miner"), partition_of(format!("acme:owner-{owner}").as_bytes(), 3));
        let end = self.log.bounds(&topic, partition).await.expect("bounds").end;
        let limits = FetchLimits { max_records: 1, max_bytes: 1 << 20, max_wait: PATIENCE };
        let arrives = async {
            let fetched = self.log.fetch(&topic, partition, end, limits).await.expect("read");
            assert!(!fetched.records.is_empty(), "it never came");
            Instant::now()
        };
        let began = async {
            let began = Instant::now();
            commits.await;
            began
        };
        let (arrived, began) = tokio::join!(arrives, began);
        arrived.duration_since(began)
    }
}

/// Commits one event.
pub(crate) async fn commit(db: &Db, kind: &str, owner: usize, entity: &str, data: Value) -> Uuid {
    let tenant = "acme".parse().expect("a tenant");
    let user = format!("owner-{owner}").parse().expect("a user");
    let mut tx = db.tenant(&tenant).await.expect("begin");
    let event = NewEvent {
        kind,
        user_id: &user,
        entity_id: entity.parse().expect("an entity"),
        data,
        correlation_id: None,
        causation_id: None,
        traceparent: "",
        idempotency_key: None,
    };
    let id = outbox::append(&mut tx, event).await.expect("appended");
    tx.commit().await.expect("commit");
    id
}

/// Writes events of many owners, on several topics, until it is stopped.
pub(crate) struct Writer {
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Writer {
    pub(crate) fn start(publishing: &Publishing) -> Self {
        let (db, stop) = (publishing.test.db.clone(), CancellationToken::new());
        let stopped = stop.clone();
        let task = tokio::spawn(async move {
            for n in 0.. {
                if stopped.is_cancelled() {
                    return;
                }
                commit(&db, "miner.updated", n % 12, "m-0", json!({ "n": n })).await;
                commit(&db, "crm.lead_created", n % 5, "lead", json!({ "n": n })).await;
            }
        });
        Self { stop, task }
    }

    pub(crate) async fn stop(self) {
        self.stop.cancel();
        self.task.await.expect("it wrote");
    }
}

/// Writers that go on until they have written so many events each, every seventh of which is rolled back; a database
/// or broker that is away does not stop them.
pub(crate) async fn write_under_load(db: Db, writers: usize, each: usize) {
    let write = |writer: usize| {
        let db = db.clone();
        async move {
            for n in 0..each {
                let data = json!({ "n": n });
                if n % 7 == 6 {
                    let tenant = "acme".parse().expect("a tenant");
                    let mut tx = db.tenant(&tenant).await.expect("begin");
                    let user = format!("owner-{writer}").parse().expect("a user");
                    let event = NewEvent {
                        kind: "miner.updated",
                        user_id: &user,
                        entity_id: "rolled-back".parse().expect("an entity"),
                        data,
                        correlation_id: None,
                        causation_id: None,
                        traceparent: "",
                        idempotency_key: None,
                    };
                    outbox::append(&mut tx, event).await.expect("appended");
                } else {
                    commit(&db, "miner.updated", writer, &format!("m-{}", n % 3), data).await;
                }
            }
        }
    };
    join_all((0..writers).map(write)).await;
}

pub(crate) fn id_of(record: &Record) -> Uuid {
    let text = std::str::from_utf8(record.header("id").expect("an id")).expect("text");
    text.parse().expect("a uuid")
}

fn position_of(record: &Record) -> i64 {
    std::str::from_utf8(record.header("position").expect("a position"))
        .expect("text")
        .parse()
        .expect("a number")
}
