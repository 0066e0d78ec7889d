//! Consumers as real processes: one that freezes inside a transaction, and events that take the process with them.

use std::time::{Duration, Instant};

use serde_json::json;
use uuid::Uuid;

use crate::support::process::Process;
use crate::support::publishing::{LEADS, Publishing, commit};
use crate::support::service;

const GROUP: [&str; 3] = ["consume", "--group", "portfolio-recalc-group"];
const WORKS: &str = "working on the partition";

/// Attempts that are written down, and the one before anything was suspected.
const CRASHES: usize = 4;

async fn on_kafka() -> Publishing {
    let kafka = service("KAFKA_BROKERS");
    let quick = [("HASHINSIGHT__KAFKA__PARTITIONS", "1"), ("HASHINSIGHT__GROUP__RENEW_INTERVAL_MS", "200")];
    Publishing::on(&kafka, &kafka, &quick).await
}

/// A consumer that stops, or dies, where it is told.
async fn failing(publishing: &Publishing, fail_points: &str) -> Process {
    let mut environment = publishing.test.environment.clone();
    environment.insert("FAILPOINTS".to_owned(), fail_points.to_owned());
    Process::start(&environment, &GROUP, WORKS).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_that_is_frozen_inside_a_transaction_is_ended_and_replaced() {
    let publishing = on_kafka().await;
    let _publisher = publishing.publisher("poll", LEADS).await;
    let frozen = failing(&publishing, "consume.before_commit=pause").await;
    let event = publishing.commit(1).await;
    // That of the batch: a claim locks the offset as well, and is over in a moment.
    publishing
        .holds(
            "exists (select from pg_stat_activity a join pg_locks l using (pid) where a.state = 'idle in transaction' \
             and a.datname = current_database() and l.granted and l.relation = 'event_inbox'::regclass)",
        )
        .await;
    let mut bystander = publishing.test.db.session().await.expect("a session");
    frozen.signal("STOP").await;
    let started = Instant::now();
    let mut survivor = Process::start(&publishing.test.environment, &GROUP, "joined the group").await;
    // Left alone, PostgreSQL would end it after ten seconds.
    survivor.says("its session was ended").await;
    publishing
        .holds(&format!("count(*) = 1 from event_inbox where event_id = '{event}' and outcome = 'applied'"))
        .await;
    assert!(started.elapsed() < Duration::from_secs(15), "{:?}", started.elapsed());
    sqlx::query("select 1").execute(&mut bystander).await.expect("nobody else was ended");
    frozen.signal("CONT").await;
    publishing.commit(2).await;
    publishing.holds("count(*) = 2 from event_inbox where outcome = 'applied'").await;
    frozen.kill().await;
}

/// Starts consumers until one lives; each of the others died by its own hand.
async fn crash_until_it_lives(publishing: &Publishing) -> Process {
    for _ in 0..CRASHES {
        let (status, said) = failing(publishing, "consume.die_of=return(m-deadly)").await.ended().await;
        assert!(status.code().is_none(), "{status}: {said}");
        assert_eq!(publishing.test.scalar::<i64>("select count(*) from event_dlq").await, 0, "{said}");
    }
    failing(publishing, "consume.die_of=return(m-deadly)").await
}

async fn died_of(publishing: &Publishing, deadly: Uuid) {
    publishing.holds("count(*) = 1 from event_dlq").await;
    let letter: (Uuid, String, i32) =
        sqlx::query_as("select event_id, error_class, retry_count from event_dlq")
            .fetch_one(&publishing.test.admin)
            .await
            .expect("a dead letter");
    assert_eq!(letter, (deadly, "crash".to_owned(), 3));
    publishing.holds(&format!("outcome = 'dead' from event_inbox where event_id = '{deadly}'")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_kills_the_process_becomes_a_dead_letter_and_the_rest_flows() {
    let publishing = on_kafka().await;
    let _publisher = publishing.publisher("poll", LEADS).await;
    let db = &publishing.test.db;
    commit(db, "miner.updated", 1, "m-before", json!({})).await;
    let deadly = commit(db, "miner.updated", 2, "m-deadly", json!({})).await;
    commit(db, "miner.updated", 2, "m-behind", json!({})).await;
    commit(db, "ops.price_received", 2, "m-elsewhere", json!({})).await;
    publishing.holds("not exists (select from event_outbox, publisher_cursor where not pg_visible_in_snapshot(xid, published))").await;
    let _survivor = crash_until_it_lives(&publishing).await;
    died_of(&publishing, deadly).await;
    publishing.holds("count(*) = 3 from event_inbox where outcome = 'applied'").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_parked_event_that_kills_the_process_becomes_a_dead_letter_as_well() {
    let publishing = on_kafka().await;
    let _publisher = publishing.publisher("poll", LEADS).await;
    let test = &publishing.test;
    let consumer = Process::start(&test.environment, &GROUP, WORKS).await;
    let deadly = commit(&test.db, "miner.updated", 2, "m-deadly", json!({})).await;
    publishing.holds("count(*) = 1 from event_inbox").await;
    consumer.signal("TERM").await;
    consumer.ended().await;
    // As if it had failed.
    test.execute(
        "insert into parked_event (consumer_name, topic, partition, log_offset, event_id, event_kind, tenant_id, user_id, \
         raw_key, raw_value, headers, record_time) \
         select c.consumer_name, c.topic, 0, 0, o.id, o.event_type, o.tenant_id, o.user_id, \
           convert_to(o.event_key, 'UTF8'), convert_to(o.payload::text, 'UTF8'), '[]', now() \
         from event_outbox o join consumer_offset c on c.topic like '%.miner'; \
         update event_inbox set outcome = 'parked'",
    )
    .await;
    commit(&test.db, "miner.updated", 2, "m-behind", json!({})).await;
    let _survivor = crash_until_it_lives(&publishing).await;
    died_of(&publishing, deadly).await;
    publishing.holds("count(*) = 1 from event_inbox where outcome = 'applied'").await;
}
