//! A log that is not what it was: records that are gone, a topic made anew, a tail cut off, what cannot be read.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use hashinsight::config::EventLogKind;
use hashinsight::db::WorkerTx;
use hashinsight::event::Event;
use hashinsight::log::EventLog;
use hashinsight::projection::{Dirty, EventHandler, HandlerError};
use hashinsight::role::app::App;
use rskafka::client::ClientBuilder;
use rskafka::client::partition::UnknownTopicHandling;
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use uuid::Uuid;

use crate::kafka_log::kcat_produce;
use crate::pipeline::{member_on, raw, record};
use crate::support::consuming::{Setup, miners};
use crate::support::kafka::{delete, spec};
use crate::support::process::{Process, run};
use crate::support::proxy::Proxy;
use crate::support::publishing::{LEADS, Publishing, commit};
use crate::support::{TestDb, service, until};

const PATIENCE: Duration = Duration::from_secs(60);

const GROUP: [&str; 3] = ["consume", "--group", "portfolio-recalc-group"];
const WORKS: &str = "working on the partition";

/// The code of Fetch in Kafka's protocol.
const FETCH: i16 = 1;

/// What a publisher has handed over.
const ALL_PUBLISHED: &str = "not exists (select from event_outbox, publisher_cursor \
                             where not pg_visible_in_snapshot(xid, published))";

/// Remembers the events it applied, in their order.
#[derive(Default)]
struct Journal(Mutex<Vec<Uuid>>);

#[async_trait]
impl EventHandler for Journal {
    fn consumes(&self, _: &str) -> bool {
        true
    }

    async fn apply(&self, _: &mut WorkerTx, events: &[&Event]) -> Result<Vec<Dirty>, HandlerError> {
        self.0.lock().expect("lock").extend(events.iter().map(|event| event.event_id));
        Ok(Vec::new())
    }
}

/// Runs a member until so many events are applied and it has read so far.
async fn consume(test: &TestDb, log: &Arc<dyn EventLog>, journal: &Arc<Journal>, applied: i64, next: i64) {
    let (context, partitions) = member_on(test, Arc::clone(journal) as _, Arc::clone(log)).await;
    let context = Arc::into_inner(context).expect("one holder");
    let member = Setup { context, partitions }.start();
    let sql = "select (select count(*) from event_inbox where consumer_name = 'picky' and outcome = 'applied') || ' ' || \
               (select next_offset from consumer_offset where consumer_name = 'picky' and topic like '%.miner')";
    let expected = format!("{applied} {next}");
    until("applied", PATIENCE, async || (test.scalar::<String>(sql).await == expected).then_some(())).await;
    member.stop().await;
}

/// F21: after a failover the offset and the inbox are older, and no new record tells a worker that waits.
#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_went_back_is_noticed_by_a_worker_that_waits() {
    let test = TestDb::with_topics(1).await;
    let (log, topic) = miners(&test, EventLogKind::Postgres).await;
    let event = Uuid::now_v7();
    log.append(&topic, 0, &[record("t:u", "m", event)]).await.expect("appended");
    let journal = Arc::new(Journal::default());
    let member = Setup::of(&test, Arc::clone(&journal) as _).await.start();
    let applied = async |times: usize| {
        let enough = || journal.0.lock().expect("lock").len() == times;
        until("applied", PATIENCE, async || enough().then_some(())).await;
        let stored = "select count(*) = 1 from consumer_offset, event_inbox where next_offset = 1";
        until("and committed", PATIENCE, async || test.scalar::<bool>(stored).await.then_some(())).await;
    };
    applied(1).await;
    test.execute("begin; delete from event_inbox; update consumer_offset set next_offset = 0; commit").await;
    applied(2).await;
    member.stop().await;
    assert_eq!(*journal.0.lock().expect("lock"), [event, event]);
}

/// Fails the first time, and from then on works as long as it is told to, in a transaction that counts.
struct Slow {
    tries: AtomicUsize,
    go_on: Semaphore,
}

#[async_trait]
impl EventHandler for Slow {
    fn consumes(&self, _: &str) -> bool {
        true
    }

    async fn apply(&self, tx: &mut WorkerTx, _: &[&Event]) -> Result<Vec<Dirty>, HandlerError> {
        if self.tries.fetch_add(1, Ordering::SeqCst) == 0 {
            sqlx::query("select 1 / 0").execute(tx.conn()).await?;
        }
        sqlx::query("insert into effects default values").execute(tx.conn()).await?;
        self.go_on.acquire().await.expect("open").forget();
        Ok(Vec::new())
    }
}

/// F21: what the retry queue held before a failover is not what it holds now.
#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_a_failover_took_from_the_queue_is_not_applied_from_memory() {
    let test = TestDb::with_topics(1).await;
    test.execute("create table effects (n int); grant insert on effects to hi_worker").await;
    let (log, topic) = miners(&test, EventLogKind::Postgres).await;
    log.append(&topic, 0, &[record("t:u", "m", Uuid::now_v7())]).await.expect("appended");
    let slow = Arc::new(Slow { tries: AtomicUsize::new(0), go_on: Semaphore::new(0) });
    let member = Setup::of(&test, Arc::clone(&slow) as _).await.start();
    let tried = async |times: usize| {
        until("it is tried", PATIENCE, async || (slow.tries.load(Ordering::SeqCst) == times).then_some(()))
            .await;
    };
    tried(2).await;
    // The retry has begun. The database is one that has never heard of the event.
    test.execute("delete from parked_event; delete from event_inbox").await;
    slow.go_on.add_permits(1);
    let undone = "select count(*) = 0 from pg_locks where relation = 'effects'::regclass";
    until("the retry has ended", PATIENCE, async || test.scalar::<bool>(undone).await.then_some(())).await;
    assert_eq!(test.scalar::<i64>("select count(*) from effects").await, 0);
    // The offset is that of then, too, and the event comes from the log.
    test.execute("update consumer_offset set next_offset = 0").await;
    slow.go_on.add_permits(1);
    let applied = "select count(*) = 1 from event_inbox where outcome = 'applied'";
    until("applied", PATIENCE, async || test.scalar::<bool>(applied).await.then_some(())).await;
    member.stop().await;
    assert_eq!(test.scalar::<i64>("select count(*) from effects").await, 1, "once");
    assert_eq!(slow.tries.load(Ordering::SeqCst), 3);
}

/// Of each owner the events in the order in which they were committed, each once.
async fn in_order(test: &TestDb, journal: &Journal) {
    let committed: Vec<(String, Uuid)> =
        sqlx::query_as("select user_id, id from event_outbox order by position")
            .fetch_all(&test.admin)
            .await
            .expect("rows");
    let applied = journal.0.lock().expect("lock").clone();
    for n in 0..3 {
        let owner = format!("owner-{n}");
        let expected: Vec<Uuid> =
            committed.iter().filter(|(user, _)| *user == owner).map(|(_, id)| *id).collect();
        let found: Vec<Uuid> = applied.iter().filter(|id| expected.contains(id)).copied().collect();
        assert_eq!(found, expected, "{owner}");
    }
}

async fn on_kafka() -> Publishing {
    let kafka = service("KAFKA_BROKERS");
    Publishing::on(&kafka, &kafka, &[("HASHINSIGHT__KAFKA__PARTITIONS", "1")]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn records_that_retention_took_unread_come_from_the_outbox_in_order() {
    let mut publishing = on_kafka().await;
    let _publisher = publishing.publisher("poll", LEADS).await;
    for n in 0..9 {
        publishing.commit(n % 3).await;
    }
    publishing.everything_is_published().await;
    let journal = Arc::new(Journal::default());
    consume(&publishing.test, &publishing.log, &journal, 9, 9).await;
    for n in 0..18 {
        publishing.commit(n % 3).await;
    }
    publishing.everything_is_published().await;

    let client = ClientBuilder::new(vec![service("KAFKA_BROKERS")]).build().await.expect("a broker");
    let topic = publishing.topic("miner");
    let partition =
        client.partition_client(&topic, 0, UnknownTopicHandling::Error).await.expect("the partition");
    partition.delete_records(21, 5_000).await.expect("deleted");
    assert_eq!(publishing.log.bounds(&topic, 0).await.expect("bounds").start, 21);
    publishing.commit(0).await;
    consume(&publishing.test, &publishing.log, &journal, 28, 28).await;
    in_order(&publishing.test, &journal).await;
    let left: i64 = publishing.test.scalar("select count(*) from parked_event").await;
    assert_eq!(left, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_made_anew_is_noticed_though_it_has_our_offset_and_nothing_is_skipped() {
    let publishing = on_kafka().await;
    let _publisher = publishing.publisher("poll", LEADS).await;
    let test = &publishing.test;
    let consumer = Process::start(&test.environment, &GROUP, WORKS).await;
    for n in 0..5 {
        publishing.commit(n % 3).await;
    }
    publishing.holds("count(*) = 5 from event_inbox").await;
    // One that cannot be read: its letter stays, whatever comes to stand at its offset.
    let topic = publishing.topic("miner");
    publishing.log.append(&topic, 0, &[raw("t:u", Some(b"{".to_vec()))]).await.expect("appended");
    publishing.holds("count(*) = 1 from event_dlq").await;
    consumer.signal("TERM").await;
    consumer.ended().await;
    for n in 0..4 {
        publishing.commit(n % 3).await;
    }
    publishing.holds(ALL_PUBLISHED).await;

    delete(&service("KAFKA_BROKERS"), std::slice::from_ref(&topic)).await;
    until("it is gone", PATIENCE, async || {
        let gone =
            publishing.log.describe_topics(std::slice::from_ref(&topic)).await.expect("described").is_empty();
        gone.then_some(())
    })
    .await;
    publishing.log.ensure_topics(&[spec(&topic, 1)]).await.expect("made anew");
    for n in 0..10 {
        publishing.commit(n % 3).await;
    }
    publishing.holds(ALL_PUBLISHED).await;
    until("the new topic has our offset", PATIENCE, async || {
        let end = publishing.log.bounds(&topic, 0).await.ok()?.end;
        (end >= 10).then_some(())
    })
    .await;
    let mut consumer = Process::start(&test.environment, &GROUP, WORKS).await;
    consumer.says("the log has lost the place of the group: the topic was deleted and made anew").await;
    publishing.holds("count(*) = 19 from event_inbox where outcome = 'applied'").await;
    publishing.log.append(&topic, 0, &[raw("t:u", Some(b"[".to_vec()))]).await.expect("appended");
    publishing.holds("count(*) = 2 from event_dlq").await;
    let lost: i64 = test
        .scalar("select count(*) from event_outbox where id not in (select event_id from event_inbox)")
        .await;
    assert_eq!(lost, 0);
    assert_eq!(test.scalar::<i64>("select count(*) from event_dlq where log_offset < 0").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_whose_tail_was_cut_off_is_read_again() {
    let test = TestDb::with_topics(1).await;
    let (log, topic) = miners(&test, EventLogKind::Postgres).await;
    let app = App::open(test.config.clone()).await.expect("the app opens");
    app.spawn_publisher(&log).expect("the publisher");
    for n in 0..6 {
        commit(&test.db, "miner.updated", n % 3, "m", json!({})).await;
    }
    app.bells.ring(hashinsight::doorbell::Bell::Outbox);
    let journal = Arc::new(Journal::default());
    consume(&test, &log, &journal, 6, 6).await;
    test.execute(&format!(
        "delete from log_record where topic = '{topic}' and log_offset >= 3; \
         update log_partition set end_offset = 3 where topic = '{topic}'"
    ))
    .await;
    consume(&test, &log, &journal, 6, 3).await;
    for n in 0..6 {
        commit(&test.db, "miner.updated", n % 3, "m", json!({})).await;
    }
    app.bells.ring(hashinsight::doorbell::Bell::Outbox);
    consume(&test, &log, &journal, 12, 9).await;
    in_order(&test, &journal).await;
    app.lifecycle.stop();
    app.run().await.expect("a clean stop");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_read_is_said_once_and_others_flow_until_somebody_moves_the_offset() {
    let kafka = service("KAFKA_BROKERS");
    let proxy = Proxy::before(&kafka).await;
    let publishing =
        Publishing::on(&kafka, proxy.address(), &[("HASHINSIGHT__KAFKA__PARTITIONS", "1")]).await;
    let test = &publishing.test;
    let _publisher = publishing.publisher("poll", LEADS).await;
    let metrics =
        std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address");
    let mut environment = test.environment.clone();
    environment.insert("HASHINSIGHT__METRICS__BIND".to_owned(), metrics.to_string());
    publishing.commit(0).await;
    publishing.holds(ALL_PUBLISHED).await;
    let topic = publishing.topic("miner");
    // A transaction: a record that is no event, and its end, which is none at all.
    let transaction = format!("transactional.id={}", Uuid::now_v7());
    kcat_produce(&topic, &["-X", &transaction]);
    until("the transaction's end is written", PATIENCE, async || {
        (publishing.log.bounds(&topic, 0).await.expect("bounds").end >= 3).then_some(())
    })
    .await;
    publishing.commit(0).await;

    let mut consumer = Process::start(&environment, &GROUP, WORKS).await;
    consumer.says("stands still: unreadable log").await;
    publishing.holds("count(*) = 1 from event_dlq").await;
    // It is asked for again and again, and others flow.
    let asked = proxy.requests(FETCH);
    commit(&test.db, "ops.price_received", 0, "p", json!({})).await;
    publishing.holds("count(*) = 2 from event_inbox").await;
    proxy.requested(FETCH, asked + 12).await;
    let lag = run(&test.environment, &["lag", "--json"]).await;
    let lag: Value = serde_json::from_str(&lag.stdout).expect("json");
    assert_eq!(lag["groups"][0]["status"], "critical");
    let trouble = lag["groups"][0]["partitions"]
        .as_array()
        .expect("a list")
        .iter()
        .find_map(|p| p["trouble"].as_str())
        .expect("said why");
    for part in
        [topic.as_str(), "offset 2", "update consumer_offset set next_offset", "portfolio-recalc-group"]
    {
        assert!(trouble.contains(part), "{part}: {trouble}");
    }
    let text =
        reqwest::get(format!("http://{metrics}/metrics")).await.expect("served").text().await.expect("text");
    let of = |name: &str| {
        let named = |line: &&str| line.starts_with(name) && line.contains(&format!("topic=\"{topic}\""));
        let line = text.lines().find(named).unwrap_or_else(|| panic!("{name}: {text}"));
        line.rsplit(' ').next().expect("a value").to_owned()
    };
    assert_eq!(of("hashinsight_consumer_stalled"), "1");
    assert_eq!(of("hashinsight_consumer_alarms_total"), "1");
    assert_eq!(of("hashinsight_consumer_lag_records"), "2");

    // The remedy, as it is told.
    test.execute(&format!(
        "update consumer_offset set next_offset = 3 where consumer_name = 'portfolio-recalc-group' \
         and topic = '{topic}' and partition = 0"
    ))
    .await;
    consumer.says("the partition goes on").await;
    publishing.holds("count(*) = 3 from event_inbox where outcome = 'applied'").await;
    consumer.signal("TERM").await;
    let (_, said) = consumer.ended().await;
    assert_eq!(said.matches("stands still").count(), 1, "{said}");
    let troubles: i64 = test.scalar("select count(trouble) from consumer_offset").await;
    assert_eq!(troubles, 0);
}
