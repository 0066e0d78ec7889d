//! Owns the tests of what the log in Kafka does when brokers, answers and connections are lost, late or wrong.
//! Promises that each failure is made by the test and waited for, never guessed from a clock.
//! Called by `cargo test --test it kafka_faults`.

use std::time::{Duration, Instant};

use hashinsight::log::kafka::KafkaLog;
use hashinsight::log::{EventLog, LogError};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::support::kafka::{Fixture, PATIENCE, configured, delete, record, spec};
use crate::support::proxy::{Fate, METADATA, Mode, PRODUCE, Proxy, Rule};
use crate::support::service;

/// NOT_LEADER_OR_FOLLOWER.
const NOT_LEADER: i16 = 6;

/// A call without a deadline would hold up the test for ever instead of failing it.
async fn in_time<T>(call: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, call).await.expect("a deadline of its own")
}

#[tokio::test]
async fn a_broker_that_cannot_be_reached_is_one_clear_line() {
    let closed = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let refusing = closed.local_addr().expect("bound").to_string();
    drop(closed);
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let silent = listener.local_addr().expect("bound").to_string();
    for address in [refusing, silent] {
        let config = configured(&address, &[("CONNECT_TIMEOUT_MS", "300")]);
        let started = Instant::now();
        let error = KafkaLog::connect(&config.kafka).await.err().expect("nobody answers").to_string();
        assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
        assert!(error.contains(&address) && error.contains("KAFKA_BROKERS"), "{error}");
        assert!(!error.contains('\n'), "{error}");
    }
    let unset = KafkaLog::connect(&configured("", &[]).kafka).await.err().expect("no brokers").to_string();
    assert!(unset.contains("KAFKA_BROKERS"), "{unset}");
}

#[tokio::test]
async fn one_broker_that_hangs_does_not_keep_us_from_the_others() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let silent = listener.local_addr().expect("bound");
    let config = configured(&format!("{silent},{}", service("KAFKA_BROKERS")), &[]);
    let log = KafkaLog::connect(&config.kafka).await.expect("the other one answers");
    let topic = format!("{}none", config.kafka.topic_prefix);
    let error = log.topic(&topic).await.expect_err("no such topic");
    assert!(matches!(error, LogError::UnknownTopic { .. }), "{error}");
}

#[tokio::test]
async fn a_broker_that_hangs_meets_the_deadline_and_is_used_again_once_it_answers() {
    let fixture = Fixture::new(1).await;
    let proxy = Proxy::before(&service("KAFKA_BROKERS")).await;
    let config = configured(
        proxy.address(),
        &[("PRODUCE_TIMEOUT_MS", "300"), ("METADATA_TIMEOUT_MS", "300"), ("COMPRESSION", "none")],
    );
    let log = KafkaLog::connect(&config.kafka).await.expect("a broker");
    let topic = &fixture.topic;
    log.append(topic, 0, &[record("before")]).await.expect("appended");
    log.bounds(topic, 0).await.expect("bounds");

    proxy.set(Mode::Blackhole);
    for _ in 0..2 {
        let started = Instant::now();
        let error = in_time(log.append(topic, 0, &[record("during")])).await.expect_err("no answer").error;
        assert!(matches!(error, LogError::Unavailable(_)), "{error}");
        let error = in_time(log.bounds(topic, 0)).await.expect_err("no answer");
        assert!(matches!(error, LogError::Unavailable(_)), "{error}");
        let described = in_time(log.describe_topics(std::slice::from_ref(topic))).await;
        let error = described.expect_err("no answer");
        assert!(matches!(error, LogError::Unavailable(_)), "{error}");
        assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
    }

    // What was connected stays silent for ever: only a new connection gets through.
    let connected = proxy.connections();
    proxy.set(Mode::Forward);
    log.append(topic, 0, &[record("after")]).await.expect("appended");
    assert!(proxy.connections() > connected);
    let values: Vec<_> = fixture.all().await.into_iter().map(|r| r.value.expect("a value")).collect();
    assert_eq!(values, [b"before".to_vec(), b"after".to_vec()]);
    fixture.end().await;
}

#[tokio::test]
async fn an_append_whose_answer_is_lost_is_unavailable_though_it_happened() {
    let fixture = Fixture::new(2).await;
    let proxy = Proxy::before(&service("KAFKA_BROKERS")).await;
    let log = fixture.through(proxy.address(), &[("PRODUCE_TIMEOUT_MS", "500")]).await;
    log.append(&fixture.topic, 0, &[record("a")]).await.expect("appended");

    proxy.rule(produce(&fixture.topic, 1, Fate::LoseAnswer));
    let (lost, other) = ([record("b")], [record("x")]);
    let (lost, other) = tokio::join!(
        in_time(log.append(&fixture.topic, 0, &lost)),
        in_time(log.append(&fixture.topic, 1, &other)), // another lane goes on
    );
    let failed = lost.expect_err("no answer");
    assert!(matches!(failed.error, LogError::Unavailable(_)), "{failed}");
    assert_eq!(failed.appended, 0, "nothing is known of it");
    other.expect("appended");
    assert_eq!(fixture.values().await, ["a", "b"]);

    log.append(&fixture.topic, 0, &[record("b")]).await.expect("again, before anything newer");
    log.append(&fixture.topic, 0, &[record("c")]).await.expect("appended");
    assert_eq!(fixture.values().await, ["a", "b", "b", "c"]);
    fixture.end().await;
}

#[tokio::test]
async fn an_append_that_the_broker_gave_up_on_is_ambiguous() {
    // REQUEST_TIMED_OUT and NOT_ENOUGH_REPLICAS_AFTER_APPEND: the broker may go on with what it started.
    for code in [7, 20] {
        let fixture = Fixture::new(1).await;
        let proxy = Proxy::before(&service("KAFKA_BROKERS")).await;
        let log = fixture.through(proxy.address(), &[]).await;
        proxy.rule(produce(&fixture.topic, 1, Fate::AppendButRefuse(code)));
        let failed = log.append(&fixture.topic, 0, &[record("a")]).await.expect_err("ambiguous");
        assert!(matches!(failed.error, LogError::Unavailable(_)), "{code}: {failed}");
        log.append(&fixture.topic, 0, &[record("a")]).await.expect("again, before anything newer");
        assert_eq!(fixture.values().await, ["a", "a"], "{code}");
        fixture.end().await;
    }
}

#[tokio::test]
async fn an_append_that_arrives_after_its_deadline_is_there_again() {
    let fixture = Fixture::new(1).await;
    let proxy = Proxy::before(&service("KAFKA_BROKERS")).await;
    let log = fixture.through(proxy.address(), &[("PRODUCE_TIMEOUT_MS", "300")]).await;
    log.append(&fixture.topic, 0, &[record("a")]).await.expect("appended");
    let arrives = CancellationToken::new();
    proxy.rule(produce(&fixture.topic, 1, Fate::HoldRequest(arrives.clone())));
    let failed = in_time(log.append(&fixture.topic, 0, &[record("b")])).await.expect_err("no answer");
    assert!(matches!(failed.error, LogError::Unavailable(_)), "{failed}");
    log.append(&fixture.topic, 0, &[record("b")]).await.expect("again, before anything newer");
    log.append(&fixture.topic, 0, &[record("c")]).await.expect("appended");
    arrives.cancel();
    fixture.has(4).await;
    assert_eq!(fixture.values().await, ["a", "b", "c", "b"], "what came first came in order");
    fixture.end().await;
}

#[tokio::test]
async fn one_lane_that_hangs_leaves_the_others_alone() {
    let fixture = Fixture::new(3).await;
    let proxy = Proxy::before(&service("KAFKA_BROKERS")).await;
    let log = fixture.through(proxy.address(), &[("PRODUCE_TIMEOUT_MS", "400")]).await;
    proxy.rule(produce(&fixture.topic, usize::MAX, Fate::Swallow));
    for round in 0..3 {
        let records = [record(format!("{round}"))];
        let (dead, one, two) = tokio::join!(
            in_time(log.append(&fixture.topic, 0, &records)),
            in_time(log.append(&fixture.topic, 1, &records)),
            in_time(log.append(&fixture.topic, 2, &records)),
        );
        assert!(matches!(dead.expect_err("no answer").error, LogError::Unavailable(_)));
        one.expect("appended");
        two.expect("appended");
    }
    proxy.forget_rules();
    log.append(&fixture.topic, 0, &[record("at last")]).await.expect("appended");
    assert_eq!(fixture.values().await, ["at last"]);
    fixture.end().await;
}

#[tokio::test]
async fn a_leader_that_moved_is_looked_up_and_asked_again_within_the_call() {
    let fixture = Fixture::new(1).await;
    let proxy = Proxy::before(&service("KAFKA_BROKERS")).await;
    let log = fixture.through(proxy.address(), &[]).await;
    log.append(&fixture.topic, 0, &[record("a")]).await.expect("appended");
    proxy.rule(produce(&fixture.topic, 2, Fate::Refuse(NOT_LEADER)));
    let looked_up = proxy.requests(METADATA);
    log.append(&fixture.topic, 0, &[record("b")]).await.expect("appended at last");
    assert!(proxy.requests(METADATA) > looked_up);
    assert_eq!(fixture.values().await, ["a", "b"]);

    proxy.rule(produce(&fixture.topic, usize::MAX, Fate::Refuse(NOT_LEADER)));
    let failed = log.append(&fixture.topic, 0, &[record("c")]).await.expect_err("it never leads");
    assert!(matches!(failed.error, LogError::Unavailable(_)), "{failed}");
    proxy.forget_rules();
    log.append(&fixture.topic, 0, &[record("c")]).await.expect("appended");
    assert_eq!(fixture.values().await, ["a", "b", "c"]);
    fixture.end().await;
}

#[tokio::test]
async fn a_broker_that_is_gone_for_good_is_replaced_after_three_failures() {
    let fixture = Fixture::new(1).await;
    let broker = service("KAFKA_BROKERS");
    let (first, second) = (Proxy::before(&broker).await, Proxy::before(&broker).await);
    second.set(Mode::Refuse);
    let both = format!("{},{}", first.address(), second.address());
    let log = fixture.through(&both, &[]).await;
    log.append(&fixture.topic, 0, &[record("a")]).await.expect("appended");

    // The client knows the first by name, and nobody else: only a client built anew asks the second.
    second.set(Mode::Forward);
    first.set(Mode::Refuse);
    let mut failures = 0;
    while let Err(failed) = log.append(&fixture.topic, 0, &[record("b")]).await {
        assert!(matches!(failed.error, LogError::Unavailable(_)), "{failed}");
        failures += 1;
        assert!(failures <= 3, "{failed}");
    }
    assert_eq!((failures, fixture.values().await), (3, vec!["a".to_owned(), "b".to_owned()]));
    fixture.end().await;
}

/// The client asks for the leaders by a connection of its own, and keeps it when it is dead.
#[tokio::test]
async fn a_deadline_that_passes_replaces_the_client_with_every_connection_it_keeps() {
    let fixture = Fixture::new(1).await;
    let proxy = Proxy::before(&service("KAFKA_BROKERS")).await;
    let log = fixture.through(proxy.address(), &[("PRODUCE_TIMEOUT_MS", "1000")]).await;
    log.append(&fixture.topic, 0, &[record("a")]).await.expect("appended");
    proxy.rule(produce(&fixture.topic, 1, Fate::Refuse(NOT_LEADER)));
    proxy.rule(Rule { api_key: METADATA, lane: None, skip: 0, times: 1, fate: Fate::Swallow });
    let looked_up = proxy.requests(METADATA);
    let failed = in_time(log.append(&fixture.topic, 0, &[record("b")])).await.expect_err("who leads?");
    assert!(matches!(failed.error, LogError::Unavailable(_)), "{failed}");
    assert_eq!(proxy.requests(METADATA), looked_up + 1, "nobody said");
    log.append(&fixture.topic, 0, &[record("b")]).await.expect("through a new client");
    assert_eq!(fixture.values().await, ["a", "b"]);
    fixture.end().await;
}

#[tokio::test]
async fn a_topic_that_is_deleted_is_named_and_used_again_once_it_is_back_with_other_partitions() {
    let fixture = Fixture::new(1).await;
    let (log, topic) = (&fixture.log, &fixture.topic);
    fixture.append(&[record("a")]).await;
    assert_eq!(log.topic(topic).await.expect("known").partitions, 1);
    delete(&service("KAFKA_BROKERS"), std::slice::from_ref(topic)).await;

    let gone = async {
        loop {
            match log.append(topic, 0, &[record("b")]).await {
                // The broker that answered the deletion is quicker than the one that leads.
                Ok(()) => {}
                Err(failed) => break failed.error,
            }
        }
    };
    let error = tokio::time::timeout(PATIENCE, gone).await.expect("it is gone");
    assert!(matches!(&error, LogError::UnknownTopic { topic: named } if named == topic), "{error}");
    let error = log.topic(topic).await.expect_err("what was known of it is forgotten");
    assert!(matches!(error, LogError::UnknownTopic { .. }), "{error}");

    log.ensure_topics(&[spec(topic, 3)]).await.expect("created again");
    assert_eq!(log.topic(topic).await.expect("known").partitions, 3);
    for partition in 0..3 {
        log.append(topic, partition, &[record("c")]).await.expect("appended");
    }
    assert_eq!(fixture.values().await, ["c"]);
    fixture.end().await;
}

#[tokio::test]
async fn a_slow_network_only_takes_longer() {
    let fixture = Fixture::new(1).await;
    let proxy = Proxy::before(&service("KAFKA_BROKERS")).await;
    let log = fixture.through(proxy.address(), &[]).await;
    log.append(&fixture.topic, 0, &[record("a")]).await.expect("appended");

    let delay = Duration::from_millis(50);
    proxy.set(Mode::Delay(delay));
    let started = Instant::now();
    log.append(&fixture.topic, 0, &[record("b")]).await.expect("appended");
    assert!(started.elapsed() >= 2 * delay, "there and back: {:?}", started.elapsed());
    proxy.set(Mode::Forward);

    let (arrives, sent) = (CancellationToken::new(), proxy.requests(PRODUCE));
    proxy.rule(produce(&fixture.topic, 1, Fate::HoldAnswer(arrives.clone())));
    let late = [record("c")];
    let (appended, ()) = tokio::join!(log.append(&fixture.topic, 0, &late), async {
        proxy.requested(PRODUCE, sent + 1).await;
        fixture.has(3).await;
        arrives.cancel();
    });
    appended.expect("late, but within the deadline");
    assert_eq!(fixture.values().await, ["a", "b", "c"]);
    fixture.end().await;
}

#[tokio::test]
async fn answers_that_are_cut_off_are_unavailable() {
    let fixture = Fixture::new(1).await;
    let proxy = Proxy::before(&service("KAFKA_BROKERS")).await;
    let log = fixture.through(proxy.address(), &[]).await;
    proxy.set(Mode::CutAfter(100));
    let failed = log.append(&fixture.topic, 0, &[record("a")]).await.expect_err("cut off");
    assert!(matches!(failed.error, LogError::Unavailable(_)), "{failed}");
    proxy.set(Mode::Forward);
    log.append(&fixture.topic, 0, &[record("a")]).await.expect("appended");
    fixture.end().await;
}

/// The next so many Produce requests to partition 0.
fn produce(topic: &str, times: usize, fate: Fate) -> Rule {
    Rule { api_key: PRODUCE, lane: Some((topic.to_owned(), 0)), skip: 0, times, fate }
}

#[tokio::test]
async fn connections_that_break_are_replaced_within_the_call() {
    let fixture = Fixture::new(1).await;
    let proxy = Proxy::before(&service("KAFKA_BROKERS")).await;
    let log = KafkaLog::connect(&configured(proxy.address(), &[]).kafka).await.expect("a broker");
    log.append(&fixture.topic, 0, &[record("a")]).await.expect("appended");
    proxy.set(Mode::Reset);
    proxy.all_closed().await;
    proxy.set(Mode::Forward);
    log.append(&fixture.topic, 0, &[record("b")]).await.expect("through a new connection");
    assert_eq!(fixture.all().await.len(), 2);
    fixture.end().await;
}
