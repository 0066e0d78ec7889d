//! Owns the tests of the log in Kafka against a real broker that is well.
//! Promises that each test has topics of its own and waits on signals, never on a clock.
//! Called by `cargo test --test it kafka_log`.

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use hashinsight::config::EventLogKind;
use hashinsight::log::kafka::KafkaLog;
use hashinsight::log::{EventLog, FetchLimits, LogError, Record, Topic, TopicSpec};
use hashinsight::role::topics;
use uuid::Uuid;

use crate::support::kafka::{Fixture, PATIENCE, configured, delete, event, limits, record, spec};
use crate::support::service;

#[tokio::test]
async fn records_come_back_byte_for_byte() {
    for codec in ["none", "snappy", "lz4", "gzip"] {
        let fixture = Fixture::with(1, &[("COMPRESSION", codec)]).await;
        let mut records = vec![event(0), record([0xff, 0x00, 0xfe]), record("")];
        records.push(Record {
            headers: vec![("a".to_owned(), Vec::new()), ("b".to_owned(), vec![0, 0xff])],
            ..record("x")
        });
        records.push(Record { key: None, value: None, ..record("") });
        records.push(Record { key: Some(Vec::new()), ..record("") });
        fixture.append(&records).await;
        let fetched = fixture.log.fetch(&fixture.topic, 0, 0, limits(100)).await.expect("fetched");
        let (offsets, found): (Vec<i64>, Vec<Record>) = fetched.records.into_iter().unzip();
        assert_eq!(found, records, "{codec}");
        assert_eq!(offsets, [0, 1, 2, 3, 4, 5]);
        assert_eq!(fetched.end, 6);
        fixture.end().await;
    }
}

#[tokio::test]
async fn timestamps_are_cut_to_milliseconds_each_by_itself() {
    let fixture = Fixture::new(1).await;
    let millis = Utc::now().timestamp_millis();
    let at = |micros: i64| DateTime::from_timestamp_micros(millis * 1_000 + micros).expect("in range");
    let records: Vec<Record> =
        [900, 1_100].iter().map(|m| Record { timestamp: at(*m), ..record("x") }).collect();
    fixture.append(&records).await;
    let found: Vec<i64> = fixture.all().await.iter().map(|r| r.timestamp.timestamp_micros()).collect();
    assert_eq!(found, [millis * 1_000, (millis + 1) * 1_000]);
    fixture.end().await;
}

#[tokio::test]
async fn partitions_are_counted_and_independent() {
    let fixture = Fixture::new(3).await;
    let topic = Topic { partitions: 3, retention: Some(Duration::from_secs(86_400)) };
    assert_eq!(fixture.log.topic(&fixture.topic).await.expect("known"), topic);
    fixture.log.append(&fixture.topic, 2, &[record("x")]).await.expect("appended");
    let mut ends = Vec::new();
    for partition in 0..3 {
        let bounds = fixture.log.bounds(&fixture.topic, partition).await.expect("bounds");
        ends.push((bounds.start, bounds.end));
    }
    assert_eq!(ends, [(0, 0), (0, 0), (0, 1)]);
    fixture.end().await;
}

#[tokio::test]
async fn an_append_of_many_requests_keeps_its_order() {
    for codec in ["none", "snappy"] {
        let fixture = Fixture::with(1, &[("COMPRESSION", codec)]).await;
        let (small, large): (Vec<_>, Vec<_>) =
            ((0..60).map(event).collect(), (0..3_000).map(event).collect());
        fixture.append(&small).await;
        fixture.append(&large).await;
        assert!(fixture.all().await == [small, large].concat(), "{codec}");
        fixture.end().await;
    }
}

#[tokio::test]
async fn a_handful_to_some_hundred_records_never_wait_for_a_delayed_acknowledgement() {
    for codec in ["none", "snappy", "lz4", "gzip"] {
        let fixture = Fixture::with(1, &[("COMPRESSION", codec)]).await;
        fixture.append(&[event(0)]).await;
        for count in [9, 12, 40, 100] {
            let mut fastest = PATIENCE;
            for _ in 0..5 {
                let records: Vec<Record> = (0..count).map(event).collect();
                let started = Instant::now();
                fixture.append(&records).await;
                fastest = fastest.min(started.elapsed());
            }
            // The stall is 40 ms and strikes every time.
            assert!(fastest < Duration::from_millis(40), "{codec}, {count} records: {fastest:?}");
        }
        fixture.end().await;
    }
}

#[tokio::test]
async fn a_fetch_waits_for_the_first_record_and_holds_up_nobody() {
    let fixture = Fixture::new(1).await;
    let started = Instant::now();
    let (first, second, ()) = tokio::join!(fixture.fetch(0), fixture.fetch(0), async {
        fixture.append(&[record("x")]).await;
    });
    assert_eq!(first.expect("fetched").len(), 1);
    assert_eq!(second.expect("fetched").len(), 1);
    assert!(started.elapsed() < PATIENCE / 2, "{:?}", started.elapsed());

    let brief = FetchLimits { max_wait: Duration::from_millis(50), ..limits(10) };
    let empty = fixture.log.fetch(&fixture.topic, 0, 1, brief).await.expect("answered");
    assert_eq!((empty.records.len(), empty.end), (0, 1));
    fixture.end().await;
}

#[tokio::test]
async fn a_fetch_that_is_given_up_does_not_hold_up_the_next() {
    let fixture = Fixture::new(1).await;
    fixture.append(&[record("x")]).await;
    for _ in 0..3 {
        let given_up = tokio::time::timeout(Duration::from_millis(50), fixture.fetch(1)).await;
        assert!(given_up.is_err());
        let started = Instant::now();
        assert_eq!(fixture.fetch(0).await.expect("fetched").len(), 1);
        assert!(started.elapsed() < PATIENCE / 2);
    }
    fixture.end().await;
}

#[tokio::test]
async fn a_fetch_returns_no_more_than_asked_for() {
    let fixture = Fixture::new(1).await;
    let records: Vec<Record> = (0..500).map(event).collect();
    fixture.append(&records).await;
    let few = fixture.log.fetch(&fixture.topic, 0, 3, limits(2)).await.expect("fetched");
    assert_eq!(few.records.iter().map(|(offset, _)| *offset).collect::<Vec<_>>(), [3, 4]);
    assert_eq!(few.end, 500);
    // A broker gives whole batches, and at least one.
    fixture.append(&[event(500)]).await;
    let narrow = FetchLimits { max_bytes: 1_024, ..limits(1_000) };
    let narrow = fixture.log.fetch(&fixture.topic, 0, 0, narrow).await.expect("fetched");
    assert!((1..501).contains(&narrow.records.len()), "{}", narrow.records.len());
    assert_eq!(narrow.end, 501);
    fixture.end().await;
}

#[tokio::test]
async fn an_offset_beyond_the_end_is_out_of_range() {
    let fixture = Fixture::new(1).await;
    let error = fixture.fetch(5).await.expect_err("out of range");
    let matches = matches!(&error, LogError::OffsetOutOfRange { topic, partition: 0, offset: 5 } if *topic == fixture.topic);
    assert!(matches, "{error}");
    fixture.end().await;
}

#[tokio::test]
async fn a_topic_that_is_missing_is_named() {
    let config = configured(&service("KAFKA_BROKERS"), &[]);
    let log = KafkaLog::connect(&config.kafka).await.expect("a broker");
    let topic = format!("{}missing", config.kafka.topic_prefix);
    let errors = [
        log.topic(&topic).await.expect_err("unknown"),
        log.append(&topic, 0, &[record("x")]).await.expect_err("unknown").error,
        log.fetch(&topic, 0, 0, limits(1)).await.expect_err("unknown"),
        log.bounds(&topic, 0).await.expect_err("unknown"),
    ];
    for error in errors {
        assert!(matches!(&error, LogError::UnknownTopic { topic: named } if *named == topic), "{error}");
    }
    log.ensure_topics(&[spec(&topic, 1)]).await.expect("created");
    log.append(&topic, 0, &[record("x")]).await.expect("it exists now");
    delete(&service("KAFKA_BROKERS"), &[topic]).await;
}

#[tokio::test]
async fn a_record_the_broker_does_not_take_is_too_large() {
    let fixture = Fixture::with(1, &[("COMPRESSION", "none")]).await;
    let error =
        fixture.log.append(&fixture.topic, 0, &[record(vec![b'x'; 2 << 20])]).await.expect_err("refused");
    assert!(matches!(error.error, LogError::Rejected { .. }), "{error}");
    fixture.append(&[record("x")]).await;
    assert_eq!(fixture.all().await.len(), 1);
    fixture.end().await;
}

#[tokio::test]
async fn what_cannot_be_read_is_named_by_its_offset_and_hides_nothing_before_it() {
    // Another producer's codec, which this build does not have; and a transaction, whose end is a record as well.
    let transaction = format!("transactional.id={}", Uuid::now_v7());
    let transactional: &[&str] = &["-X", &transaction];
    for (foreign, unreadable) in [(&["-z", "zstd"][..], 2), (transactional, 3)] {
        let fixture = Fixture::new(1).await;
        fixture.append(&[record("a"), record("b")]).await;
        kcat_produce(&fixture.topic, foreign);
        // A transaction's end is written after its producer was told of it.
        let all_there =
            async { while fixture.log.bounds(&fixture.topic, 0).await.expect("bounds").end <= unreadable {} };
        tokio::time::timeout(PATIENCE, all_there).await.expect("written");
        fixture.append(&[record("c")]).await;

        let before = fixture.fetch(0).await.expect("what comes first can be read");
        assert_eq!(before.iter().map(|(offset, _)| *offset).collect::<Vec<_>>(), [0, 1], "{foreign:?}");
        let error = fixture.fetch(unreadable).await.expect_err("cannot be read");
        assert!(
            matches!(error, LogError::Unreadable { partition: 0, offset, .. } if offset == unreadable),
            "{foreign:?}: {error}"
        );
        let after = fixture.fetch(unreadable + 1).await.expect("what comes after can be read");
        assert_eq!(after.len(), 1, "{foreign:?}");
        fixture.end().await;
    }
}

/// Produces one record by somebody else's client.
pub(crate) fn kcat_produce(topic: &str, arguments: &[&str]) {
    let mut kcat = Command::new("kcat")
        .args(["-P", "-b", &service("KAFKA_BROKERS"), "-t", topic, "-p", "0"])
        .args(arguments)
        .stdin(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("kcat: dev/services up kafka installs it");
    // zstd is used only where it saves something.
    kcat.stdin.take().expect("piped").write_all(&b"the same again ".repeat(20)).expect("written");
    assert!(kcat.wait().expect("runs").success());
}

#[tokio::test]
async fn topics_are_made_once_with_their_retention() {
    let config = configured(&service("KAFKA_BROKERS"), &[("PARTITIONS", "2")]);
    let log = KafkaLog::connect(&config.kafka).await.expect("a broker");
    let specs = topics::specs(&config, EventLogKind::Kafka);
    // The heartbeat topic has one name for everybody.
    let (ours, heartbeat): (Vec<TopicSpec>, Vec<TopicSpec>) =
        specs.into_iter().partition(|spec| spec.name.starts_with(&config.kafka.topic_prefix));
    assert_eq!((ours.len(), heartbeat.len()), (5, 1));
    topics::ensure(&log, &heartbeat).await.expect("ensured");
    assert!(topics::describe(&log, &heartbeat).await.expect("described").missing.is_empty());

    let before = topics::describe(&log, &ours).await.expect("described");
    assert_eq!((before.topics.len(), before.missing.len()), (0, 5));
    assert!(!before.is_complete());
    let ensured = topics::ensure(&log, &ours).await.expect("ensured");
    assert_eq!((ensured.created.len(), ensured.existed.len(), ensured.differences.len()), (5, 0, 0));
    let again = topics::ensure(&log, &ours).await.expect("ensured");
    assert_eq!((again.created.len(), again.existed.len()), (0, 5));

    let described = topics::describe(&log, &ours).await.expect("described");
    assert!(described.is_complete(), "{described:?}");
    let of = |name: &str| {
        let topic = described.topics.iter().find(|t| t.topic.ends_with(name)).expect("described");
        (topic.partitions, topic.replication_factor, topic.retention_ms)
    };
    const DAY_MS: i64 = 24 * 60 * 60 * 1_000;
    assert_eq!(of(".miner"), (2, Some(1), Some(7 * DAY_MS)));
    assert_eq!(of(".dlq"), (3, Some(1), Some(30 * DAY_MS)));

    let mut others = ours.clone();
    others[0].partitions = 5;
    others[1].retention = Duration::from_secs(1);
    let differences = topics::describe(&log, &others).await.expect("described").differences;
    let named: Vec<_> = differences.iter().map(|d| (d.setting, d.expected, d.actual)).collect();
    assert_eq!(named, [("partitions", 5, Some(2)), ("retention_ms", 1_000, Some(7 * DAY_MS))]);
    delete(&service("KAFKA_BROKERS"), &ours.into_iter().map(|spec| spec.name).collect::<Vec<_>>()).await;
}

#[tokio::test]
async fn a_topic_that_cannot_be_made_says_why() {
    let config = configured(&service("KAFKA_BROKERS"), &[]);
    let log = KafkaLog::connect(&config.kafka).await.expect("a broker");
    let name = format!("{}wide", config.kafka.topic_prefix);
    let spec = TopicSpec { replication_factor: 99, ..spec(&name, 1) };
    let error = log.ensure_topics(&[spec]).await.expect_err("too few brokers");
    assert!(matches!(&error, LogError::Refused(message) if message.contains(&name)), "{error}");
}
