//! Owns the tests that need a broker of their own: killed, frozen, with limits or passwords of its own.
//! Promises that each failure is made by the test and waited for, never guessed from a clock.
//! Called by `cargo test --test it kafka_broker`.

use std::time::{Duration, Instant};

use hashinsight::log::kafka::KafkaLog;
use hashinsight::log::{EventLog, FetchLimits, LogError, Record};

use crate::support::broker::{Broker, Listener, Settings};
use crate::support::kafka::{Fixture, PATIENCE, configured, limits, record};
use crate::support::proxy::{Fate, Proxy, Rule, SASL_AUTHENTICATE};

#[tokio::test]
async fn a_broker_that_is_killed_is_found_again_without_a_busy_loop() {
    let mut broker = Broker::start(Settings::default()).await;
    let fixture = Fixture::on(&broker.address(), 1, &[]).await;
    let proxy = Proxy::before(&broker.address()).await;
    let log = fixture.through(proxy.address(), &[]).await;
    log.append(&fixture.topic, 0, &[record("a")]).await.expect("appended");

    broker.kill().await;
    // A caller that tries again at once, three times over: the pauses are the log's own.
    let (started, connected) = (Instant::now(), proxy.connections());
    for _ in 0..4 {
        let failed = log.append(&fixture.topic, 0, &[record("b")]).await.expect_err("nobody is there");
        assert!(matches!(failed.error, LogError::Unavailable(_)), "{failed}");
    }
    let (attempts, seconds) = (proxy.connections() - connected, started.elapsed().as_secs_f64());
    assert!((attempts as f64) < 10.0 + 20.0 * seconds, "{attempts} attempts in {seconds} s");

    broker.restart().await;
    let back = Instant::now();
    while log.append(&fixture.topic, 0, &[record("b")]).await.is_err() {}
    assert!(back.elapsed() < Duration::from_secs(3), "{:?}", back.elapsed());
    assert_eq!(fixture.values().await, ["a", "b"], "what was acknowledged is there");
}

#[tokio::test]
async fn a_broker_that_is_frozen_meets_every_deadline_and_is_used_again_at_once() {
    let broker = Broker::start(Settings::default()).await;
    let deadline = Duration::from_millis(500);
    let deadlines = [("PRODUCE_TIMEOUT_MS", "500"), ("METADATA_TIMEOUT_MS", "500")];
    let fixture = Fixture::on(&broker.address(), 1, &deadlines).await;
    let (log, topic) = (&fixture.log, &fixture.topic);
    fixture.append(&[record("a")]).await;

    broker.pause().await;
    for _ in 0..3 {
        let started = Instant::now();
        let limits = FetchLimits { max_wait: Duration::from_millis(1), ..limits(1) };
        let calls = async {
            tokio::join!(
                async { log.append(topic, 0, &[record("b")]).await.expect_err("frozen").error },
                async { log.bounds(topic, 0).await.expect_err("frozen") },
                async { log.describe_topics(std::slice::from_ref(topic)).await.expect_err("frozen") },
                async { tokio::time::timeout(deadline, log.fetch(topic, 0, 1, limits)).await },
            )
        };
        let answered = tokio::time::timeout(PATIENCE, calls).await;
        let (append, bounds, describe, fetch) = answered.expect("every call has a deadline");
        for error in [append, bounds, describe] {
            assert!(matches!(error, LogError::Unavailable(_)), "{error}");
        }
        assert!(!matches!(fetch, Ok(Ok(_))), "{fetch:?}");
        assert!(started.elapsed() < 2 * deadline, "{:?}", started.elapsed());
    }
    broker.resume().await;
    let back = Instant::now();
    while log.append(topic, 0, &[record("c")]).await.is_err() {}
    assert!(back.elapsed() < Duration::from_secs(2), "{:?}", back.elapsed());
    let values = fixture.values().await;
    assert_eq!(
        (values.first().map(String::as_str), values.last().map(String::as_str)),
        (Some("a"), Some("c"))
    );
}

#[tokio::test]
async fn an_answer_that_makes_the_client_panic_is_a_failure_like_others() {
    let users = Listener { name: "USERS", identity: None, client_authority: None, sasl: true };
    let settings = Settings { listeners: vec![users], users: vec![("miner", "hush")], ..Settings::default() };
    let broker = Broker::start(settings).await;
    let proxy = Proxy::before(&broker.address_of("USERS")).await;
    // No error, no message, and bytes of a length that cannot be: rskafka 0.6.0 subtracts one from it. The first
    // connection is our own.
    let fate = Fate::Garble(vec![0, 0, 0, 0, 0]);
    proxy.rule(Rule { api_key: SASL_AUTHENTICATE, lane: None, skip: 1, times: 1, fate });
    let user = [("SASL_MECHANISM", "plain"), ("SASL_USERNAME", "miner"), ("SASL_PASSWORD", "hush")];
    let config = configured(proxy.address(), &user);
    let log = KafkaLog::connect(&config.kafka).await.expect("the second attempt");
    let missing = log.topic("missing").await.expect_err("it answers");
    assert!(matches!(missing, LogError::UnknownTopic { .. }), "{missing}");
    assert!(proxy.requests(SASL_AUTHENTICATE) > 2);
}

#[tokio::test]
async fn a_record_that_is_rejected_is_found_among_the_others() {
    let broker = Broker::start(Settings {
        properties: vec![("message.max.bytes", "65536".to_owned())],
        ..Settings::default()
    });
    let broker = broker.await;
    for codec in ["none", "snappy"] {
        let fixture = Fixture::on(&broker.address(), 1, &[("COMPRESSION", codec)]).await;
        let noise = |length: usize| {
            record(std::iter::repeat_with(|| fastrand::alphanumeric() as u8).take(length).collect::<Vec<_>>())
        };
        let mut records: Vec<Record> = (0..100).map(|n| record(format!("{n}"))).collect();
        // Several that a topic of 64 KiB takes only one by one, then one that it never takes.
        records.extend((0..4).map(|_| noise(40_000)));
        records.push(noise(100_000));
        records.extend((105..110).map(|n| record(format!("{n}"))));
        let failed = fixture.log.append(&fixture.topic, 0, &records).await.expect_err("one is too large");
        assert!(
            matches!(&failed.error, LogError::Rejected { topic, .. } if *topic == fixture.topic),
            "{failed}"
        );
        assert_eq!(failed.appended, 104, "{codec}");
        assert!(fixture.all().await == records[..104], "{codec}");
        fixture.append(&records[105..]).await;
        records.remove(104);
        assert!(fixture.all().await == records, "{codec}");
    }
}
