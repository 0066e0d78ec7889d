//! Publishing through failures: real processes that are killed and frozen, brokers that are lost, lanes that are stuck.
//! After each, every committed event is in Kafka at least once, in order per aggregate, and nothing else is.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use hashinsight::doorbell::Bell;
use hashinsight::log::{FetchLimits, partition_of};
use hashinsight::outbox::wal::APPLICATION_NAME;
use serde_json::json;
use sqlx::{Connection, Executor, PgConnection};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::support::broker::{Broker, Settings};
use crate::support::cluster::{Cluster, program};
use crate::support::kafka::{delete, spec};
use crate::support::process::{Process, run};
use crate::support::proxy::{Fate, PRODUCE, Proxy, Rule};
use crate::support::publishing::{LEADS, PATIENCE, Publishing, Writer, commit, ready, write_under_load};
use crate::support::{TestDb, service, until};

/// Of a publisher that has more to do than it can: what 100,000 events take is several times as much.
const MOST_MEMORY: u64 = 64 << 20;

/// A writer in another process that rings is published so soon by one that has nothing else to do.
const AT_ONCE: Duration = Duration::from_millis(20);

/// On the shared broker, with publishers that look every so often by themselves.
async fn publishing(with: &[(&str, &str)]) -> Publishing {
    let kafka = service("KAFKA_BROKERS");
    Publishing::on(&kafka, &kafka, with).await
}

/// The same test from either source.
macro_rules! from_both_sources {
    ($($name:ident)*) => {
        $(mod $name {
            #[tokio::test(flavor = "multi_thread")]
            async fn poll() {
                super::$name("poll").await;
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn wal() {
                super::$name("wal").await;
            }
        })*
    };
}

from_both_sources! {
    killed_after_the_acknowledgement_and_before_it_is_kept_the_batch_comes_again
    killed_before_the_append_nothing_is_lost
    a_leader_that_is_frozen_is_replaced_and_fenced
    a_broker_that_is_killed_and_comes_back_gets_everything
    a_leader_that_is_told_so_by_its_beat_or_by_its_cursor_stops
    one_partition_that_fails_makes_way_for_the_others_and_catches_up_in_order
    a_transaction_of_100_000_events_passes_through_bounded_memory
}

async fn killed_after_the_acknowledgement_and_before_it_is_kept_the_batch_comes_again(source: &str) {
    let mut publishing = publishing(&[]).await;
    let mut publisher = publishing.failing_publisher(source, "pub.after_ack=pause").await;
    let id = publishing.commit(1).await;
    publisher.says("handed over").await;
    publishing.read_until_there([id].into()).await;
    publisher.kill().await;
    let _publisher = publishing.publisher(source, ready(source)).await;
    publishing.commit(1).await;
    publishing.everything_is_published().await;
    let topic = publishing.topic("miner");
    assert!(publishing.read_of(&topic).len() >= 3, "the first came twice");
}

async fn killed_before_the_append_nothing_is_lost(source: &str) {
    let mut publishing = publishing(&[]).await;
    let mut publisher = publishing.failing_publisher(source, "pub.before_send=pause").await;
    publishing.commit(1).await;
    publisher.says("handing over").await;
    publisher.kill().await;
    let topic = publishing.topic("miner");
    let mut ends = 0;
    for partition in 0..3 {
        ends += publishing.log.bounds(&topic, partition).await.expect("bounds").end;
    }
    assert_eq!(ends, 0, "it was not sent");
    let _publisher = publishing.publisher(source, ready(source)).await;
    publishing.commit(1).await;
    publishing.everything_is_published().await;
    assert!(source == "wal" || publishing.read_of(&topic).len() == 2);
}

async fn a_leader_that_is_frozen_is_replaced_and_fenced(source: &str) {
    let mut publishing = publishing(&[]).await;
    let mut frozen = publishing.publisher(source, ready(source)).await;
    let mut standby = publishing.publisher(source, "standing by").await;
    let db = publishing.test.db.clone();
    let load = tokio::spawn(write_under_load(db, 4, 200));
    publishing.commit(9).await;
    frozen.signal("STOP").await;
    let since = Instant::now();
    standby.says(LEADS).await;
    let taken_over = since.elapsed();
    assert!(taken_over < Duration::from_secs(5), "{taken_over:?}");
    if source == "wal" {
        // The frozen one still has the slot, which PostgreSQL would take from it after a minute.
        standby.says(ready(source)).await;
        let streaming = since.elapsed();
        assert!(streaming < Duration::from_secs(20), "{streaming:?}");
    }
    load.await.expect("written");
    publishing.everything_is_published().await;
    frozen.signal("CONT").await;
    frozen.says("publishing was interrupted").await;
    frozen.says("standing by").await;
    publishing.commit(9).await;
    publishing.everything_is_published().await;
    assert_eq!(
        publishing.test.scalar::<i64>("select epoch from publisher_cursor").await,
        2,
        "it did not lead again"
    );
}

/// The server changes nothing of the cursor where this holds, as if another led.
fn fenced_when(condition: &str) -> String {
    format!(
        "create or replace function change_nothing() returns trigger language plpgsql as 'begin return null; end'; \
         create or replace trigger fenced before update on publisher_cursor for each row \
         when (old.epoch = new.epoch and {condition}) execute function change_nothing()"
    )
}

/// Each of the two is enough: the other one finds everything in order.
async fn a_leader_that_is_told_so_by_its_beat_or_by_its_cursor_stops(source: &str) {
    let mut publishing = publishing(&[]).await;
    for by in ["old.beat <> new.beat", "old.beat = new.beat"] {
        let mut publisher = publishing.publisher(source, ready(source)).await;
        publishing.test.execute(&fenced_when(by)).await;
        publishing.commit(1).await;
        publisher.says("another publisher has taken the lead").await;
        publishing.test.execute("drop trigger fenced on publisher_cursor").await;
        publishing.commit(1).await;
        publishing.everything_is_published().await;
        publisher.kill().await;
    }
}

#[tokio::test]
async fn the_log_in_postgres_takes_nothing_from_a_leader_whose_cursor_is_refused() {
    let test = TestDb::with_topics(1).await;
    let mut environment = test.environment.clone();
    environment.insert("HASHINSIGHT__EVENT_LOG__KIND".to_owned(), "postgres".to_owned());
    environment.insert("HASHINSIGHT__PUBLISHER__POLL_INTERVAL_MS".to_owned(), "20".to_owned());
    let mut publisher = Process::start(&environment, &["publish"], LEADS).await;
    test.execute(&fenced_when("old.beat = new.beat")).await;
    commit(&test.db, "miner.updated", 1, "m-0", json!({})).await;
    publisher.says("another publisher has taken the lead").await;
    let records = "select count(*) from log_record";
    assert_eq!(test.scalar::<i64>(records).await, 0, "the records go with the cursor");
    test.execute("drop trigger fenced on publisher_cursor").await;
    until("it is published", PATIENCE, async || (test.scalar::<i64>(records).await == 1).then_some(())).await;
}

async fn a_broker_that_is_killed_and_comes_back_gets_everything(source: &str) {
    let mut broker = Broker::start(Settings::default()).await;
    let address = broker.address();
    let with = [("HASHINSIGHT__PUBLISHER__LANE_PATIENCE_MS", "500")];
    let mut publishing = Publishing::on(&address, &address, &with).await;
    let mut publisher = publishing.publisher(source, ready(source)).await;
    let db = publishing.test.db.clone();
    write_under_load(db.clone(), 4, 50).await;
    publishing.everything_is_published().await;
    broker.kill().await;
    // Writers do not notice.
    write_under_load(db.clone(), 4, 100).await;
    publisher.says("publishing failed").await;
    broker.restart().await;
    write_under_load(db, 4, 50).await;
    publishing.everything_is_published().await;
    let stuck: i64 = publishing.test.scalar("select count(*) from outbox_stuck").await;
    assert_eq!(stuck, 0, "when nobody is served nobody makes way");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_hangs_and_goes_on_gets_everything() {
    let broker = Broker::start(Settings::default()).await;
    let address = broker.address();
    let with = [
        ("HASHINSIGHT__KAFKA__PRODUCE_TIMEOUT_MS", "1000"),
        ("HASHINSIGHT__KAFKA__METADATA_TIMEOUT_MS", "1000"),
    ];
    let mut publishing = Publishing::on(&address, &address, &with).await;
    let mut publisher = publishing.publisher("poll", LEADS).await;
    publishing.commit(1).await;
    publishing.everything_is_published().await;
    broker.pause().await;
    for owner in 0..5 {
        publishing.commit(owner).await;
    }
    publisher.says("no answer").await;
    publisher.says("no answer").await;
    broker.resume().await;
    publishing.commit(1).await;
    publishing.everything_is_published().await;
}

/// F03: whether a request without an answer was appended is not known, so nothing newer may pass it.
#[tokio::test(flavor = "multi_thread")]
async fn what_has_no_answer_comes_again_before_anything_newer() {
    let kafka = service("KAFKA_BROKERS");
    let proxy = Proxy::before(&kafka).await;
    let with = [("HASHINSIGHT__KAFKA__PRODUCE_TIMEOUT_MS", "1000")];
    let mut publishing = Publishing::on(&kafka, proxy.address(), &with).await;
    let mut publisher = publishing.publisher("poll", LEADS).await;
    for fate in [Fate::Swallow, Fate::LoseAnswer] {
        proxy.rule(Rule { api_key: PRODUCE, lane: None, skip: 0, times: 1, fate });
        publishing.commit(1).await;
        publisher.says("handing over").await;
        for _ in 0..3 {
            publishing.commit(1).await;
        }
        publisher.says("no answer from Kafka").await;
        publishing.everything_is_published().await;
    }
    // The broker may append the one of which we do not know long after the one that came again.
    let twice = publishing.read_of(&publishing.topic("miner")).len() > 8
        || publishing.another_arrives(PATIENCE).await;
    assert!(twice, "one was appended, unknown to us, and came again");
}

async fn one_partition_that_fails_makes_way_for_the_others_and_catches_up_in_order(source: &str) {
    let kafka = service("KAFKA_BROKERS");
    let proxy = Proxy::before(&kafka).await;
    let with = [
        ("HASHINSIGHT__PUBLISHER__LANE_PATIENCE_MS", "300"),
        ("HASHINSIGHT__KAFKA__PRODUCE_TIMEOUT_MS", "500"),
    ];
    let mut publishing = Publishing::on(&kafka, proxy.address(), &with).await;
    let topic = publishing.topic("miner");
    let mut publisher = publishing.publisher(source, ready(source)).await;
    // NOT_ENOUGH_REPLICAS
    let lane = Some((topic.clone(), 1));
    proxy.rule(Rule { api_key: PRODUCE, lane, skip: 0, times: usize::MAX, fate: Fate::Refuse(19) });
    let writer = Writer::start(&publishing);
    publisher.says("the lane is stuck").await;
    writer.stop().await;
    // The others come through all the same.
    let others = publishing.ids("select id from event_outbox where aggregate_type = 'crm'").await;
    assert!(!others.is_empty());
    publishing.read_until_there(others.into_iter().collect()).await;
    publishing.holds("exists (select from outbox_stuck)").await;
    proxy.forget_rules();
    publisher.says("the lane flows").await;
    write_under_load(publishing.test.db.clone(), 12, 20).await;
    publishing.everything_is_published().await;
    assert_eq!(publishing.test.scalar::<i64>("select count(*) from outbox_stuck").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_left_behind_by_a_dead_leader_go_first() {
    let kafka = service("KAFKA_BROKERS");
    let proxy = Proxy::before(&kafka).await;
    let with = [("HASHINSIGHT__PUBLISHER__LANE_PATIENCE_MS", "300")];
    let mut publishing = Publishing::on(&kafka, proxy.address(), &with).await;
    let lane = Some((publishing.topic("miner"), 2));
    proxy.rule(Rule { api_key: PRODUCE, lane, skip: 0, times: usize::MAX, fate: Fate::Refuse(19) });
    let mut publisher = publishing.publisher("poll", LEADS).await;
    let writer = Writer::start(&publishing);
    publisher.says("the lane is stuck").await;
    publishing.holds("exists (select from outbox_stuck)").await;
    writer.stop().await;
    publisher.kill().await;
    proxy.forget_rules();
    let mut publisher = publishing.publisher("poll", "rows were kept back").await;
    write_under_load(publishing.test.db.clone(), 12, 20).await;
    publisher.says("the lane flows").await;
    publishing.everything_is_published().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_is_deleted_holds_up_nobody_else_and_is_served_when_it_is_back_with_other_partitions() {
    let mut publishing = publishing(&[("HASHINSIGHT__PUBLISHER__LANE_PATIENCE_MS", "300")]).await;
    let mut publisher = publishing.publisher("poll", LEADS).await;
    publishing.commit(1).await;
    publishing.everything_is_published().await;
    let miner = publishing.topic("miner");
    delete(&service("KAFKA_BROKERS"), std::slice::from_ref(&miner)).await;
    let writer = Writer::start(&publishing);
    publisher.says("does not exist").await;
    publisher.says("the lane is stuck").await;
    writer.stop().await;
    let others = publishing.ids("select id from event_outbox where aggregate_type = 'crm'").await;
    assert!(!others.is_empty());
    publishing.read_until_there(others.into_iter().collect()).await;

    let kept = publishing.ids("select id from event_outbox join outbox_stuck using (position)").await;
    assert!(!kept.is_empty());
    publishing.log.ensure_topics(&[spec(&miner, 5)]).await.expect("made again");
    publishing.made_anew(&miner, 5);
    publisher.says("the lane flows").await;
    publishing.read_until_there(kept.into_iter().collect()).await;
    publishing.holds("not exists (select from outbox_stuck)").await;
    let mut after = HashSet::new();
    for owner in 0..12 {
        after.insert(publishing.commit(owner).await);
    }
    publishing.read_until_there(after).await;
    assert_eq!(publishing.test.scalar::<i64>("select count(*) from outbox_stuck").await, 0);
    for partition in 0..5 {
        for record in publishing.read_in(&miner, partition) {
            let key = record.key.as_deref().expect("a key");
            assert_eq!(partition, partition_of(key, 5), "{}", String::from_utf8_lossy(key));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_no_broker_takes_becomes_a_dead_letter_and_can_be_replayed() {
    let small = |bytes: &str| Settings {
        properties: vec![("message.max.bytes", bytes.to_owned())],
        ..Settings::default()
    };
    let mut broker = Broker::start(small("65536")).await;
    let address = broker.address();
    let with = [("HASHINSIGHT__KAFKA__COMPRESSION", "none")];
    let mut publishing = Publishing::on(&address, &address, &with).await;
    let mut publisher = publishing.publisher("poll", LEADS).await;
    let db = publishing.test.db.clone();
    let before = publishing.commit(1).await;
    publishing
        .test
        .execute(
            "create function refuse() returns trigger language plpgsql as 'begin raise ''no letters today''; end'; \
             create trigger refuse before insert on event_dlq for each row execute function refuse()",
        )
        .await;
    let large = commit(&db, "miner.updated", 1, "m-0", json!({"note": "x".repeat(100_000)})).await;
    let after = publishing.commit(1).await;
    // What is neither published nor a letter is not passed over.
    publisher.says("no letters today").await;
    publisher.says(LEADS).await;
    publishing.test.execute("drop trigger refuse on event_dlq").await;
    publisher.says("it is a dead letter now").await;
    publishing.read_until_there([before, after].into()).await;
    let letter: (String, Uuid, String, String, String, i64) = sqlx::query_as(
        "select consumer_name, event_id, event_kind, tenant_id, status, log_offset from event_dlq",
    )
    .fetch_one(&publishing.test.admin)
    .await
    .expect("one letter");
    let position: i64 =
        publishing.test.scalar(&format!("select position from event_outbox where id = '{large}'")).await;
    assert_eq!(
        letter,
        (
            "publisher".to_owned(),
            large,
            "miner.updated".to_owned(),
            "acme".to_owned(),
            "dead".to_owned(),
            position
        )
    );

    // With its headers it is too large for events.dlq as well: put off, and in nobody's way.
    publishing.holds("(select dlq_offset is null and dlq_retry_at > now() from event_dlq)").await;

    let environment = publishing.test.environment.clone();
    let replay = async |arguments: &[&str]| -> serde_json::Value {
        let mut all = vec!["replay", "--consumer", "publisher", "--json"];
        all.extend(arguments);
        let ended = run(&environment, &all).await;
        assert_eq!(ended.code, 0, "{}", ended.stderr);
        serde_json::from_str(&ended.stdout).expect("json")
    };
    assert_eq!(
        replay(&["--dry-run"]).await,
        json!({"dry_run": true, "matched": 1, "queued": 0, "skipped": 0})
    );
    assert_eq!(replay(&["--event-kind", "miner.added"]).await["matched"], 0);
    assert_eq!(replay(&[]).await, json!({"dry_run": false, "matched": 1, "queued": 1, "skipped": 0}));
    publisher.says("still not taken").await;
    publishing.holds("(select status from event_dlq) = 'dead'").await;

    broker.set("message.max.bytes", "1048588");
    broker.restart().await;
    assert_eq!(replay(&[]).await["queued"], 1);
    publisher.says("a dead letter was published").await;
    publishing.read_until_there([large].into()).await;
    publishing.holds("(select status from event_dlq) = 'resolved'").await;
    publishing.test.execute("update event_dlq set dlq_retry_at = now()").await;
    publishing.holds("(select dlq_offset is not null from event_dlq)").await;
    let at: i64 = publishing.test.scalar("select dlq_offset from event_dlq").await;
    let limits = FetchLimits { max_records: 1, max_bytes: 1 << 20, max_wait: Duration::from_secs(5) };
    let partition = partition_of(b"acme:owner-1", 3);
    let fetched =
        publishing.log.fetch(&publishing.topic("dlq"), partition, at, limits).await.expect("readable");
    let (_, record) = fetched.records.first().expect("a record");
    assert_eq!(record.header("__dlq.errors.group"), Some(&b"publisher"[..]));
    assert_eq!(record.header("__dlq.errors.offset"), Some(position.to_string().as_bytes()));
    let payload: String =
        publishing.test.scalar(&format!("select payload::text from event_outbox where id = '{large}'")).await;
    assert_eq!(record.value, Some(payload.into_bytes()));
}

const A_LARGE_TRANSACTION: &str = "\
    insert into event_outbox (id, aggregate_type, aggregate_id, event_key, event_type, tenant_id, user_id, payload) \
    select i.id, 'miner', 'm', 't:u' || n % 7, 'miner.updated', 't', 'u' || n % 7, jsonb_build_object( \
      'event_id', i.id, 'kind', 'miner.updated', 'tenant_id', 't', 'user_id', 'u' || n % 7, 'entity_id', 'm', \
      'data', jsonb_build_object('pad', repeat('x', 300))) \
    from (select gen_random_uuid() as id, n from generate_series(1, 100000) n offset 0) i";

async fn a_transaction_of_100_000_events_passes_through_bounded_memory(source: &str) {
    let kafka = service("KAFKA_BROKERS");
    let proxy = Proxy::before(&kafka).await;
    let with = [("HASHINSIGHT__KAFKA__PRODUCE_TIMEOUT_MS", "20000")];
    let mut publishing = Publishing::on(&kafka, proxy.address(), &with).await;
    let mut publisher = publishing.publisher(source, ready(source)).await;
    let answers = CancellationToken::new();
    let fate = Fate::HoldAnswer(answers.clone());
    proxy.rule(Rule { api_key: PRODUCE, lane: None, skip: 0, times: usize::MAX, fate });
    publishing.test.execute(A_LARGE_TRANSACTION).await;
    // The broker takes nothing more, so the publisher reads until it has what it may have.
    publisher.says("handing over").await;
    let mut peak = publisher.peak_memory();
    loop {
        publishing.beats_on(3).await;
        let grown = publisher.peak_memory();
        if grown == peak {
            break;
        }
        peak = grown;
    }
    assert!(peak < MOST_MEMORY, "{} MiB, and nothing is published", peak >> 20);
    answers.cancel();
    publishing.everything_is_published().await;
    let peak = publisher.peak_memory();
    assert!(peak < MOST_MEMORY, "{} MiB", peak >> 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ring_of_another_process_is_heard_and_a_lost_one_costs_the_poll_interval() {
    let kafka = service("KAFKA_BROKERS");
    // Nothing but a ring can wake this one in time.
    let with = [("HASHINSIGHT__PUBLISHER__POLL_INTERVAL_MS", "3600000")];
    let mut publishing = Publishing::on(&kafka, &kafka, &with).await;
    let publisher = publishing.publisher("poll", LEADS).await;
    let test = &publishing.test;
    test.lifecycle
        .spawn("doorbells", test.bells.clone().run(test.db.clone(), test.lifecycle.stopping().clone()));
    // The quickest of several: the machine is busy with other tests.
    let mut quickest = Duration::MAX;
    for _ in 0..20 {
        let publishing = &publishing;
        let commits = async {
            publishing.commit(1).await;
            publishing.test.bells.ring(Bell::Outbox);
        };
        quickest = quickest.min(publishing.time_to_append(1, commits).await);
    }
    assert!(quickest < AT_ONCE, "{quickest:?}");
    publisher.kill().await;
    // Whoever commits and dies rings no bell.
    publishing
        .test
        .environment
        .insert("HASHINSIGHT__PUBLISHER__POLL_INTERVAL_MS".to_owned(), "500".to_owned());
    let _publisher = publishing.publisher("poll", LEADS).await;
    let mut quickest = Duration::MAX;
    for _ in 0..5 {
        let commits = async { publishing.commit(1).await };
        quickest = quickest.min(publishing.time_to_append(1, commits).await);
    }
    // The interval varies by a fifth.
    assert!(quickest < Duration::from_millis(600) + AT_ONCE, "{quickest:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_source_is_switched_on_a_live_system() {
    let mut publishing = publishing(&[]).await;
    let writer = Writer::start(&publishing);
    for (round, source) in ["poll", "wal", "poll", "wal", "wal", "poll"].into_iter().enumerate() {
        let publisher = publishing.publisher(source, ready(source)).await;
        let id = publishing.commit(round).await;
        publishing.read_until_there([id].into()).await;
        // Every other time there is no farewell.
        if round % 2 == 0 {
            publisher.signal("TERM").await;
            assert_eq!(publisher.ended().await.0.code(), Some(0));
        } else {
            publisher.kill().await;
        }
        // Some events of each switch are committed while nobody publishes.
        publishing.commit(round).await;
    }
    writer.stop().await;
    let _publisher = publishing.publisher("wal", ready("wal")).await;
    publishing.everything_is_published().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn transactions_open_across_the_switch_to_the_log_are_published() {
    let mut publishing = publishing(&[]).await;
    let mut early = publishing.test.admin.begin().await.expect("begin");
    let insert = |n: u32| {
        format!(
            "insert into event_outbox (id, aggregate_type, aggregate_id, event_key, event_type, tenant_id, user_id, payload) \
             select i.id, 'miner', 'open-{n}', 't:u', 'miner.updated', 't', 'u', jsonb_build_object('event_id', i.id, \
               'kind', 'miner.updated', 'tenant_id', 't', 'user_id', 'u', 'entity_id', 'open-{n}') \
             from (select gen_random_uuid() as id offset 0) i"
        )
    };
    sqlx::raw_sql(sqlx::AssertSqlSafe(insert(1))).execute(&mut *early).await.expect("written");
    let mut publisher = publishing.publisher("wal", "the replication slot is missing").await;
    // The slot waits for the open transaction; meanwhile the table is polled.
    let id = publishing.commit(1).await;
    publishing.read_until_there([id].into()).await;
    early.commit().await.expect("commit");
    publisher.says(ready("wal")).await;
    publishing.everything_is_published().await;
    let mut late = publishing.test.admin.begin().await.expect("begin");
    sqlx::raw_sql(sqlx::AssertSqlSafe(insert(2))).execute(&mut *late).await.expect("written");
    let id = publishing.commit(1).await;
    publishing.read_until_there([id].into()).await;
    late.commit().await.expect("commit");
    publishing.everything_is_published().await;
}

/// The slot is there long before the table is read to its end.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_new_slot_has_missed_comes_from_the_table_and_the_slot_keeps_nothing_that_is_published() {
    let mut publishing = publishing(&[]).await;
    publishing.test.execute(A_LARGE_TRANSACTION).await;
    let _publisher = publishing.publisher("wal", ready("wal")).await;
    publishing.commit(1).await;
    publishing.everything_is_published().await;
    let written: String = publishing.test.scalar("select pg_current_wal_insert_lsn()::text").await;
    publishing
        .holds(&format!(
            "(select confirmed_flush_lsn >= '{written}' from pg_replication_slots where database = current_database())"
        ))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_slot_loses_no_event() {
    let keep_little = [("max_slot_wal_keep_size", "4MB"), ("min_wal_size", "2MB"), ("max_wal_size", "2MB")];
    let cluster = Cluster::start(&keep_little).await;
    let kafka = service("KAFKA_BROKERS");
    let test = TestDb::on(&cluster, Publishing::settings(&kafka, &[])).await;
    let mut publishing = Publishing::of(test, &kafka).await;
    let publisher = publishing.publisher("wal", ready("wal")).await;
    publishing.commit(1).await;
    publishing.everything_is_published().await;
    publisher.kill().await;
    publishing.commit(1).await;
    for _ in 0..4 {
        publishing
            .test
            .execute(
                "select pg_logical_emit_message(false, 'test', repeat('x', 100000)) from generate_series(1, 60); checkpoint",
            )
            .await;
    }
    publishing.holds("exists (select from pg_replication_slots where wal_status = 'lost')").await;
    let mut publisher = publishing.publisher("wal", "the replication slot is lost").await;
    publisher.says(ready("wal")).await;
    publishing.commit(1).await;
    publishing.everything_is_published().await;
}

/// A commit that waits for a synchronous standby is on the disk, and was sent to whoever reads the log, but nobody sees it
/// yet: who recomputed from the tables now would miss it.
#[tokio::test(flavor = "multi_thread")]
async fn an_event_is_not_published_before_it_can_be_seen() {
    let cluster = Cluster::start(&[]).await;
    let kafka = service("KAFKA_BROKERS");
    let test = TestDb::on(&cluster, Publishing::settings(&kafka, &[])).await;
    let mut publishing = Publishing::of(test, &kafka).await;
    let _publisher = publishing.publisher("wal", ready("wal")).await;
    publishing.commit(1).await;
    publishing.everything_is_published().await;
    cluster.execute("postgres", "alter system set synchronous_standby_names = 'nobody'").await;
    cluster.execute("postgres", "select pg_reload_conf()").await;

    let committing = commit_that_waits(&mut publishing).await;
    publishing
        .holds("exists (select from pg_stat_replication where sent_lsn >= pg_current_wal_flush_lsn())")
        .await;
    assert!(!publishing.another_arrives(Duration::from_millis(500)).await, "published, and nobody sees it");
    cluster.execute("postgres", "alter system reset synchronous_standby_names").await;
    cluster.execute("postgres", "select pg_reload_conf()").await;
    committing.await.expect("committed");
    publishing.everything_is_published().await;
}

/// While a slot is made, a commit may be on the disk before the slot begins and still wait for a synchronous standby: the
/// slot does not deliver it, and the table does not show it yet.
#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_waits_for_a_standby_while_the_slot_is_made_is_published() {
    let cluster = Cluster::start(&[]).await;
    let kafka = service("KAFKA_BROKERS");
    let test = TestDb::on(&cluster, Publishing::settings(&kafka, &[])).await;
    let mut publishing = Publishing::of(test, &kafka).await;
    let url = publishing.test.environment["DATABASE_URL"].clone();
    // PostgreSQL makes a slot in two steps, each of which waits for what is open when it begins and for nothing later.
    let mut first = open_transaction(&url).await;
    let mut publisher = publishing.publisher("wal", "the replication slot is missing").await;
    let waits_for = |(_, id): &(PgConnection, String)| {
        format!("exists (select from pg_locks where transactionid::text = '{id}' and not granted)")
    };
    publishing.holds(&waits_for(&first)).await;
    let mut second = open_transaction(&url).await;
    cluster.execute("postgres", "alter system set synchronous_standby_names = 'nobody'").await;
    cluster.execute("postgres", "select pg_reload_conf()").await;
    first.0.execute("rollback").await.expect("rolled back");
    publishing.holds(&waits_for(&second)).await;
    let committing = commit_that_waits(&mut publishing).await;
    second.0.execute("rollback").await.expect("rolled back");
    // The slot is there, and the publisher asks whether what was open then still is; or it streams already.
    let streams = "exists (select from pg_stat_replication)";
    publishing
        .holds(&format!(
            "{streams} or exists (select from pg_stat_activity where application_name = '{APPLICATION_NAME}' \
             and query like '%pg_snapshot_xip%')"
        ))
        .await;
    let streams: bool = publishing.test.scalar(&format!("select {streams}")).await;
    assert!(!streams, "the event is neither in the slot nor to be seen in the table");
    cluster.execute("postgres", "alter system reset synchronous_standby_names").await;
    cluster.execute("postgres", "select pg_reload_conf()").await;
    committing.await.expect("committed");
    publisher.says(ready("wal")).await;
    publishing.everything_is_published().await;
}

/// A transaction that has its id, and the id.
async fn open_transaction(url: &str) -> (PgConnection, String) {
    let mut conn = PgConnection::connect(url).await.expect("connected");
    conn.execute("begin").await.expect("begun");
    let id = sqlx::query_scalar("select pg_current_xact_id()::text").fetch_one(&mut conn).await;
    (conn, id.expect("an id"))
}

/// A commit that is on the disk and not to be seen, since no standby confirms it. Whether one is waited for is the
/// checkpointer's to say, which may be slow to hear of it: what is committed before does not wait, and is read here.
async fn commit_that_waits(publishing: &mut Publishing) -> JoinHandle<Uuid> {
    let waits = "select exists (select from pg_stat_activity where wait_event = 'SyncRep' \
                 and datname = current_database())";
    let end = Instant::now() + PATIENCE;
    while Instant::now() < end {
        let db = publishing.test.db.clone();
        let committing = tokio::spawn(async move { commit(&db, "miner.updated", 1, "m-0", json!({})).await });
        while !committing.is_finished() {
            if publishing.test.scalar::<bool>(waits).await {
                return committing;
            }
        }
        let id = committing.await.expect("committed");
        publishing.read_until_there([id].into()).await;
    }
    panic!("no commit waits for a standby");
}

#[tokio::test(flavor = "multi_thread")]
async fn while_somebody_else_reads_the_slot_the_table_is_polled() {
    let mut publishing = publishing(&[]).await;
    let slot = publishing.test.environment["HASHINSIGHT__WAL__SLOT"].clone();
    let created = run(&publishing.test.environment, &["slot", "create"]).await;
    assert_eq!(created.code, 0, "{}", created.stderr);
    let mut reader = tokio::process::Command::new(program("pg_recvlogical"))
        .args(["--start", "-f", "/dev/null", "--slot", &slot, "-o", "proto_version=1"])
        .args([
            "-o",
            "publication_names=hashinsight_outbox",
            "-d",
            &publishing.test.environment["DATABASE_URL"],
        ])
        .stderr(std::process::Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .expect("pg_recvlogical");
    publishing
        .holds("exists (select from pg_replication_slots where active and database = current_database())")
        .await;
    let mut publisher = publishing.publisher("wal", "somebody else reads the replication slot").await;
    let id = publishing.commit(1).await;
    publishing.read_until_there([id].into()).await;
    reader.kill().await.expect("killed");
    publisher.says(ready("wal")).await;
    publishing.commit(1).await;
    publishing.everything_is_published().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_replication_connection_is_replaced() {
    let mut publishing = publishing(&[]).await;
    let mut publisher = publishing.publisher("wal", ready("wal")).await;
    let writer = Writer::start(&publishing);
    for _ in 0..3 {
        publishing
            .test
            .execute(
                "select pg_terminate_backend(active_pid) from pg_replication_slots where database = current_database()",
            )
            .await;
        publisher.says(ready("wal")).await;
    }
    writer.stop().await;
    publishing.everything_is_published().await;
    // P follows the stream, which alone has seen this one: a publisher that polls finds next to nothing left.
    let streamed = publishing.commit(1).await;
    publishing.holds(&counts_as_published(streamed)).await;
    publishing.everything_is_published().await;
}

/// An event is visible in P.
fn counts_as_published(id: Uuid) -> String {
    format!(
        "(select pg_visible_in_snapshot(o.xid, c.published) from event_outbox o, publisher_cursor c where o.id = '{id}')"
    )
}

/// The snapshot that is to become P may show more than was confirmed when it was taken.
#[tokio::test(flavor = "multi_thread")]
async fn the_cursor_behind_the_stream_passes_nothing_that_was_not_acknowledged() {
    let kafka = service("KAFKA_BROKERS");
    let proxy = Proxy::before(&kafka).await;
    // Nothing is given up meanwhile.
    let with = [
        ("HASHINSIGHT__KAFKA__PRODUCE_TIMEOUT_MS", "120000"),
        ("HASHINSIGHT__PUBLISHER__LANE_PATIENCE_MS", "600000"),
    ];
    let mut publishing = Publishing::on(&kafka, proxy.address(), &with).await;
    let mut publisher = publishing.publisher("wal", ready("wal")).await;
    let topic = publishing.topic("miner");
    let rule = |partition: i32, fate: Fate| {
        let lane = Some((topic.clone(), partition));
        proxy.rule(Rule { api_key: PRODUCE, lane, skip: 0, times: usize::MAX, fate });
    };
    let answers = [CancellationToken::new(), CancellationToken::new()];
    rule(0, Fate::HoldAnswer(answers[0].clone()));
    rule(1, Fate::HoldAnswer(answers[1].clone()));
    // NOT_ENOUGH_REPLICAS
    rule(2, Fate::Refuse(19));
    let mut ids = Vec::new();
    for (partition, says) in [(0, "handing over"), (1, "handing over"), (2, "publishing failed")] {
        let in_it = |owner: &usize| partition_of(format!("acme:owner-{owner}").as_bytes(), 3) == partition;
        ids.push(publishing.commit((0..).find(in_it).expect("an owner")).await);
        publisher.says(says).await;
    }
    for (partition, answer) in answers.iter().enumerate() {
        // Long enough that a snapshot is due: with the first acknowledgement one is taken, which shows all three, and
        // with the second it could become P.
        publishing.beats_on(3).await;
        answer.cancel();
        publisher.says(&format!("handed over topic={topic:?} partition={partition}")).await;
    }
    publishing.beats_on(2).await;
    let passed: bool = publishing.test.scalar(&format!("select {}", counts_as_published(ids[2]))).await;
    assert!(!passed, "nobody would ever read it from the table");
    publisher.kill().await;
    proxy.forget_rules();
    let _publisher = publishing.publisher("poll", LEADS).await;
    publishing.everything_is_published().await;
}
