//! The whole flow in one process: from an HTTP request to the portfolio, on both logs, with and without Redis.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use hashinsight::config::EventLogKind;
use hashinsight::consumer;
use hashinsight::db::WorkerTx;
use hashinsight::event::{AggregateType, Event};
use hashinsight::group::{LeaseMembership, Membership, MembershipError, TopicPartition};
use hashinsight::log::{
    AppendError, Bounds, EventLog, FetchLimits, Fetched, LogError, Record, Topic, TopicDescription, TopicSpec,
};
use hashinsight::projection::{Dirty, EventHandler, Group, HandlerError};
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::support::TestDb;
use crate::support::pipeline::{Pipeline, Store, applied};

/// The reference case of the economics, through everything.
async fn reference_case(log: EventLogKind, store: Store) {
    let pipeline = Pipeline::start(log, store).await;
    let alice = pipeline.user("acme", "alice");
    let snapshot = alice
        .post(
            "/api/network/snapshots",
            &json!({"btc_price_usd": 90000, "difficulty": 150000000000000.0, "block_height": 925000,
                "fees_btc_per_block": "0.05"}),
        )
        .await;
    // Its own recalculation is over, so the next one is the miner's.
    alice.portfolio_after(&snapshot["event_id"]).await;
    let added = alice
        .post("/api/miners", &json!({"model": "S21", "status": "online", "purchase_price_usd": 3000}))
        .await;
    let portfolio = alice.portfolio_after(&added["event_id"]).await;
    let data = &portfolio["data"];
    for (field, expected) in [
        ("miners_online", 1.0),
        ("hashrate_ths", 200.0),
        ("power_kw", 3.5),
        ("efficiency_j_th", 17.5),
        ("gross_btc_day", 8.516013622e-5),
        ("net_btc_day", 8.345693350e-5),
        ("revenue_usd_day", 7.511124),
        ("power_cost_usd_day", 5.04),
        ("profit_usd_day", 2.471124),
        ("hashprice_usd_ph_day", 38.3220613),
        ("break_even_tariff_usd_kwh", 0.0894181),
        ("break_even_btc_price_usd", 60_390.43),
        ("capex_usd", 3000.0),
        ("payback_days", 1214.022438),
        ("roi_percent", 30.0653422),
    ] {
        let actual = data[field].as_f64().unwrap_or(f64::NAN);
        assert!((actual / expected - 1.0).abs() < 1e-6, "{field}: {actual} instead of {expected}");
    }
    assert_eq!(data["event_id"], added["event_id"]);
    assert_eq!(portfolio["metadata"]["source"], "database", "after= looks past the cache");

    // Every further change is in the next answer, also through the cache.
    let id = added["miner_id"].as_str().expect("an id");
    let off = alice.patch(&format!("/api/miners/{id}/status"), &json!({"status": "offline"})).await;
    assert_eq!(alice.portfolio_after(&off["event_id"]).await["data"]["miners_online"], 0);
    let cached = alice.get("/api/portfolio").await;
    assert_eq!(cached["data"]["miners_online"], 0, "the cache was invalidated before the event was visible");
    assert_eq!(alice.get("/api/portfolio").await["metadata"]["cache_hit"], true);

    // A snapshot concerns everybody in the tenant, and nobody outside.
    let bob = pipeline.user("acme", "bob");
    let eve = pipeline.user("other", "eve");
    let bobs = bob.post("/api/miners", &json!({"model": "S19j Pro", "status": "online"})).await;
    let before = bob.portfolio_after(&bobs["event_id"]).await;
    eve.post("/api/network/snapshots", &json!({"btc_price_usd": 1, "difficulty": 1e12, "block_height": 1}))
        .await;
    let moved = alice
        .post(
            "/api/network/snapshots",
            &json!({"btc_price_usd": 180000, "difficulty": 150e12, "block_height": 925001, "fees_btc_per_block": 0.05}),
        )
        .await;
    let after = bob.portfolio_after(&moved["event_id"]).await;
    let revenue = |p: &Value| p["data"]["revenue_usd_day"].as_f64().expect("a number");
    assert!((revenue(&after) / revenue(&before) - 2.0).abs() < 1e-9);

    // What the cache holds of somebody who waits for nothing is invalidated as well.
    alice.get("/api/portfolio").await;
    let again = bob
        .post(
            "/api/network/snapshots",
            &json!({"btc_price_usd": 1000, "difficulty": 150e12, "block_height": 925002}),
        )
        .await;
    applied(pipeline.bells(), async || {
        alice.get("/api/portfolio").await["data"]["snapshot_id"] == again["snapshot_id"]
    })
    .await;
    pipeline.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reference_case_on_postgres_with_memory() {
    reference_case(EventLogKind::Postgres, Store::Memory).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reference_case_on_postgres_with_redis() {
    reference_case(EventLogKind::Postgres, Store::Redis).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reference_case_on_kafka_with_memory() {
    reference_case(EventLogKind::Kafka, Store::Memory).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reference_case_on_kafka_with_redis() {
    reference_case(EventLogKind::Kafka, Store::Redis).await;
}

/// A miner that changes hands is in both portfolios at once.
#[tokio::test(flavor = "multi_thread")]
async fn a_miner_given_away_leaves_the_old_portfolio() {
    let pipeline = Pipeline::start(EventLogKind::Postgres, Store::Memory).await;
    let alice = pipeline.user("acme", "alice");
    let added = alice.post("/api/miners", &json!({"model": "S21", "status": "online"})).await;
    let id = added["miner_id"].as_str().expect("an id");
    assert_eq!(alice.portfolio_after(&added["event_id"]).await["data"]["miners_total"], 1);
    let given = alice.patch(&format!("/api/miners/{id}"), &json!({"owner_id": "bob"})).await;
    assert_eq!(alice.portfolio_after(&given["event_id"]).await["data"]["miners_total"], 0);
    let bob = pipeline.user("acme", "bob");
    assert_eq!(bob.portfolio_after(&given["event_id"]).await["data"]["miners_total"], 1);
    pipeline.stop().await;
}

/// A handler that refuses some entities, and remembers what it tried and applied, in this order.
#[derive(Default)]
pub(crate) struct Picky {
    pub(crate) journal: Mutex<Vec<String>>,
}

#[async_trait]
impl EventHandler for Picky {
    fn consumes(&self, _: &str) -> bool {
        true
    }

    async fn apply(&self, tx: &mut WorkerTx, events: &[&Event]) -> Result<Vec<Dirty>, HandlerError> {
        let names = events.iter().map(|e| e.entity_id.as_str());
        if let Some(poison) = names.clone().find(|name| name.starts_with("poison")) {
            self.journal.lock().expect("lock").push(poison.to_owned());
            sqlx::query("select 1 / 0").execute(tx.conn()).await?;
        }
        self.journal.lock().expect("lock").extend(names.map(str::to_owned));
        Ok(Vec::new())
    }
}

pub(crate) fn record(key: &str, entity: &str, event_id: uuid::Uuid) -> Record {
    let tenant = key.split(':').next().expect("a tenant");
    let value = json!({"event_id": event_id, "kind": "miner.updated", "version": 1, "tenant_id": tenant,
        "user_id": key.split(':').nth(1).expect("a user"), "entity_id": entity, "occurred_at": "2026-01-01T00:00:00Z",
        "correlation_id": null, "causation_id": null, "data": {}});
    raw(key, Some(value.to_string().into_bytes()))
}

pub(crate) fn raw(key: &str, value: Option<Vec<u8>>) -> Record {
    Record {
        key: Some(key.as_bytes().to_vec()),
        value,
        headers: vec![("id".to_owned(), b"x".to_vec())],
        timestamp: chrono::DateTime::from_timestamp_millis(chrono::Utc::now().timestamp_millis())
            .expect("now"),
    }
}

/// A member of the group `picky` on one topic, with a handler of the test's own.
pub(crate) async fn member(
    test: &TestDb,
    handler: Arc<dyn EventHandler>,
) -> (Arc<consumer::Context>, Vec<TopicPartition>) {
    member_on(test, handler, test.log(EventLogKind::Postgres).await).await
}

/// The same on a log of the test's choice.
pub(crate) async fn member_on(
    test: &TestDb,
    handler: Arc<dyn EventHandler>,
    log: Arc<dyn EventLog>,
) -> (Arc<consumer::Context>, Vec<TopicPartition>) {
    let group = Group { name: "picky", reads: &[AggregateType::Miner], handler };
    let partitions =
        consumer::partitions_of(&*log, &group, &test.config.kafka.topic_prefix).await.expect("partitions");
    consumer::register(&test.db, group.name, &partitions).await.expect("registered");
    let mut settings = test.config.consumer.clone();
    settings.retry_backoff_ms = 20;
    let (cache, locks) = test.cache_and_locks().await;
    let context = consumer::Context {
        db: test.db.clone(),
        log,
        bells: test.bells.clone(),
        cache,
        locks,
        group,
        settings,
    };
    (Arc::new(context), partitions)
}

/// Runs one member until `done` holds.
async fn consume_until(test: &TestDb, handler: &Arc<Picky>, done: &str) {
    let (context, partitions) = member(test, Arc::clone(handler) as _).await;
    let name = uuid::Uuid::now_v7().to_string();
    let topics = partitions.into_iter().map(|p| p.topic).collect();
    let membership = LeaseMembership::new(test.db.clone(), "picky", name, Duration::from_millis(50), topics);
    let stop = CancellationToken::new();
    let running = tokio::spawn(consumer::run(context, Box::new(membership), stop.clone()));
    applied(&test.bells, async || test.scalar::<bool>(done).await).await;
    stop.cancel();
    running.await.expect("no panic").expect("clean");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_event_blocks_its_key_only_and_becomes_a_dead_letter() {
    let test = TestDb::with_topics(1).await;
    let log = test.log(EventLogKind::Postgres).await;
    let topic = AggregateType::Miner.topic(&test.config.kafka.topic_prefix);
    let poison = uuid::Uuid::now_v7();
    let first = record("t:sick", "poison", poison);
    let records = [
        record("t:well", "well-1", uuid::Uuid::now_v7()),
        first.clone(),
        record("t:sick", "sick-2", uuid::Uuid::now_v7()),
        record("t:well", "well-2", uuid::Uuid::now_v7()),
        record("t:sick", "sick-3", uuid::Uuid::now_v7()),
    ];
    log.append(&topic, 0, &records).await.expect("appended");
    let handler = Arc::new(Picky::default());
    consume_until(
        &test,
        &handler,
        "select count(*) = 5 from event_inbox where outcome in ('applied', 'dead')",
    )
    .await;

    let journal = handler.journal.lock().expect("lock").clone();
    let last_try = journal.iter().rposition(|e| e == "poison").expect("it was tried");
    let behind: Vec<&String> = journal[last_try + 1..].iter().filter(|e| e.starts_with("sick")).collect();
    assert_eq!(behind, ["sick-2", "sick-3"], "in order, and only when the poison was given up: {journal:?}");
    let well = journal.iter().position(|e| e == "well-2").expect("applied");
    assert!(well < last_try, "another key does not wait: {journal:?}");
    let parked: i64 = test.scalar("select count(*) from parked_event").await;
    assert_eq!(parked, 0);
    let (raw_value, raw_key, retries, class, offset): (Vec<u8>, Vec<u8>, i32, String, i64) = sqlx::query_as(
        "select raw_value, raw_key, retry_count, error_class, log_offset from event_dlq where event_id = $1",
    )
    .bind(poison)
    .fetch_one(&test.admin)
    .await
    .expect("a dead letter");
    assert_eq!(Some(raw_value), first.value);
    assert_eq!(Some(raw_key), first.key);
    assert_eq!((retries, class.as_str(), offset), (3, "database", 1));
    let next: i64 =
        test.scalar("select next_offset from consumer_offset where consumer_name = 'picky'").await;
    assert_eq!(next, 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_event_is_applied_once_per_group() {
    let test = TestDb::with_topics(1).await;
    let log = test.log(EventLogKind::Postgres).await;
    let topic = AggregateType::Miner.topic(&test.config.kafka.topic_prefix);
    let twice = record("t:u", "twice", uuid::Uuid::now_v7());
    log.append(&topic, 0, &[twice.clone(), twice.clone()]).await.expect("in one batch");
    let handler = Arc::new(Picky::default());
    consume_until(
        &test,
        &handler,
        "select next_offset = 2 from consumer_offset where consumer_name = 'picky'",
    )
    .await;
    log.append(&topic, 0, &[twice]).await.expect("and later");
    consume_until(
        &test,
        &handler,
        "select next_offset = 3 from consumer_offset where consumer_name = 'picky'",
    )
    .await;
    assert_eq!(*handler.journal.lock().expect("lock"), ["twice"]);
}

/// A handler whose effect is a row, in the transaction of the inbox.
pub(crate) struct Effect;

#[async_trait]
impl EventHandler for Effect {
    fn consumes(&self, _: &str) -> bool {
        true
    }

    async fn apply(&self, tx: &mut WorkerTx, events: &[&Event]) -> Result<Vec<Dirty>, HandlerError> {
        let entities: Vec<&str> = events.iter().map(|e| e.entity_id.as_str()).collect();
        sqlx::query("insert into effect select unnest($1::text[])").bind(entities).execute(tx.conn()).await?;
        Ok(Vec::new())
    }
}

/// A member that believes to own everything, whatever the others say.
pub(crate) struct Stubborn(pub(crate) BTreeSet<TopicPartition>);

#[async_trait]
impl Membership for Stubborn {
    fn member_id(&self) -> &str {
        "stubborn"
    }

    fn interval(&self) -> Duration {
        Duration::from_millis(5)
    }

    async fn heartbeat(
        &mut self,
        _: &BTreeSet<TopicPartition>,
    ) -> Result<BTreeSet<TopicPartition>, MembershipError> {
        Ok(self.0.clone())
    }

    fn expired(&self) -> bool {
        false
    }

    async fn leave(&mut self) -> Result<(), MembershipError> {
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_that_believe_to_own_a_partition_apply_each_event_once() {
    const EVENTS: usize = 300;
    let test = TestDb::with_topics(1).await;
    test.execute("create table effect (entity text); grant insert on effect to hi_worker").await;
    let log = test.log(EventLogKind::Postgres).await;
    let topic = AggregateType::Miner.topic(&test.config.kafka.topic_prefix);
    let stop = CancellationToken::new();
    let mut members = Vec::new();
    for _ in 0..2 {
        let (context, partitions) = member(&test, Arc::new(Effect)).await;
        let stubborn = Box::new(Stubborn(partitions.into_iter().collect()));
        members.push(tokio::spawn(consumer::run(context, stubborn, stop.clone())));
    }
    for n in 0..EVENTS {
        let event = record("t:u", &format!("e-{n}"), uuid::Uuid::now_v7());
        log.append(&topic, 0, &[event]).await.expect("appended");
    }
    let done = format!("select next_offset = {EVENTS} from consumer_offset where consumer_name = 'picky'");
    applied(&test.bells, async || test.scalar::<bool>(&done).await).await;
    stop.cancel();
    for member in members {
        member.await.expect("no panic").expect("clean");
    }
    let (effects, distinct): (i64, i64) =
        sqlx::query_as("select count(*), count(distinct entity) from effect")
            .fetch_one(&test.admin)
            .await
            .expect("counted");
    assert_eq!((effects, distinct), (EVENTS as i64, EVENTS as i64));
    let claims: i64 =
        test.scalar("select owner_epoch from consumer_offset where consumer_name = 'picky'").await;
    assert!(claims >= 2, "both had it at some time: {claims}");
}

/// A log whose first fetch hands its records over only when told to.
struct Delayed {
    log: Arc<dyn EventLog>,
    fetched: Notify,
    release: Notify,
    first: AtomicBool,
}

#[async_trait]
impl EventLog for Delayed {
    async fn topic(&self, name: &str) -> Result<Topic, LogError> {
        self.log.topic(name).await
    }

    async fn append(&self, topic: &str, partition: i32, records: &[Record]) -> Result<(), AppendError> {
        self.log.append(topic, partition, records).await
    }

    async fn append_one(&self, topic: &str, partition: i32, record: &Record) -> Result<i64, LogError> {
        self.log.append_one(topic, partition, record).await
    }

    async fn fetch(
        &self,
        topic: &str,
        partition: i32,
        offset: i64,
        limits: FetchLimits,
    ) -> Result<Fetched, LogError> {
        let fetched = self.log.fetch(topic, partition, offset, limits).await;
        if self.first.swap(false, Ordering::SeqCst) {
            self.fetched.notify_one();
            self.release.notified().await;
        }
        fetched
    }

    async fn bounds(&self, topic: &str, partition: i32) -> Result<Bounds, LogError> {
        self.log.bounds(topic, partition).await
    }

    async fn ensure_topics(&self, topics: &[TopicSpec]) -> Result<Vec<String>, LogError> {
        self.log.ensure_topics(topics).await
    }

    async fn describe_topics(&self, names: &[String]) -> Result<Vec<TopicDescription>, LogError> {
        self.log.describe_topics(names).await
    }

    async fn grow_topics(&self, names: &[String], partitions: i32) -> Result<(), LogError> {
        self.log.grow_topics(names, partitions).await
    }

    fn forget_topics(&self) {
        self.log.forget_topics();
    }
}

/// A member that is given its partitions once, and tells when it works on none of them any more.
struct Once {
    given: Option<BTreeSet<TopicPartition>>,
    idle: Arc<Notify>,
}

#[async_trait]
impl Membership for Once {
    fn member_id(&self) -> &str {
        "once"
    }

    fn interval(&self) -> Duration {
        Duration::from_millis(5)
    }

    async fn heartbeat(
        &mut self,
        owned: &BTreeSet<TopicPartition>,
    ) -> Result<BTreeSet<TopicPartition>, MembershipError> {
        if let Some(given) = self.given.take() {
            return Ok(given);
        }
        if owned.is_empty() {
            self.idle.notify_one();
        }
        Ok(owned.clone())
    }

    fn expired(&self) -> bool {
        false
    }

    async fn leave(&mut self) -> Result<(), MembershipError> {
        Ok(())
    }
}

/// Fails the test where a signal does not come.
pub(crate) async fn soon<T>(signal: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(10), signal).await.expect("the signal comes")
}

/// A member that slept between its fetch and its batch while another took over commits nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_wakes_up_too_late_is_fenced() {
    let test = TestDb::with_topics(1).await;
    let log = test.log(EventLogKind::Postgres).await;
    let topic = AggregateType::Miner.topic(&test.config.kafka.topic_prefix);
    log.append(&topic, 0, &[record("t:u", "first", uuid::Uuid::now_v7())]).await.expect("appended");

    let late = Arc::new(Picky::default());
    let (context, partitions) = member(&test, Arc::clone(&late) as _).await;
    let delayed = Arc::new(Delayed {
        log: Arc::clone(&log),
        fetched: Notify::new(),
        release: Notify::new(),
        first: AtomicBool::new(true),
    });
    let context = Arc::into_inner(context).expect("one holder");
    let context = Arc::new(consumer::Context { log: Arc::clone(&delayed) as _, ..context });
    let idle = Arc::new(Notify::new());
    let once = Once { given: Some(partitions.into_iter().collect()), idle: Arc::clone(&idle) };
    let stop = CancellationToken::new();
    let running = tokio::spawn(consumer::run(context, Box::new(once), stop.clone()));
    soon(delayed.fetched.notified()).await;

    log.append(&topic, 0, &[record("t:u", "second", uuid::Uuid::now_v7())]).await.expect("appended");
    let handler = Arc::new(Picky::default());
    consume_until(
        &test,
        &handler,
        "select next_offset = 2 from consumer_offset where consumer_name = 'picky'",
    )
    .await;
    delayed.release.notify_one();
    soon(idle.notified()).await;
    stop.cancel();
    running.await.expect("no panic").expect("clean");
    assert!(late.journal.lock().expect("lock").is_empty(), "the fence comes before the handler");
    let next: i64 =
        test.scalar("select next_offset from consumer_offset where consumer_name = 'picky'").await;
    assert_eq!(next, 2, "the offset does not go back");
}

/// F40: whoever renews more often than the others, because its workers come and go, does not take them for dead.
#[tokio::test(flavor = "multi_thread")]
async fn a_member_in_a_hurry_evicts_nobody() {
    let test = TestDb::new().await;
    let interval = Duration::from_secs(60);
    let member = |name: &str| {
        LeaseMembership::new(test.db.clone(), "picky", name.to_owned(), interval, BTreeSet::new())
    };
    let (mut hurried, mut calm) = (member("hurried"), member("calm"));
    calm.heartbeat(&BTreeSet::new()).await.expect("joined");
    for _ in 0..10 {
        hurried.heartbeat(&BTreeSet::new()).await.expect("renewed");
    }
    calm.heartbeat(&BTreeSet::new()).await.expect("it is a member still");
}
