//! Owns the tests of the log in Kafka against a real broker, and of what it does when the broker does not answer.
//! Promises that each test has topics of its own and waits on signals, never on a clock.
//! Called by `cargo test --test it kafka_log`.

use std::collections::BTreeMap;
use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use hashinsight::config::{self, Config, EventLogKind};
use hashinsight::log::kafka::KafkaLog;
use hashinsight::log::{EventLog, FetchLimits, LogError, Record, TopicSpec};
use hashinsight::role::topics;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use uuid::Uuid;

const PATIENCE: Duration = Duration::from_secs(20);

fn brokers() -> String {
    std::env::var("KAFKA_BROKERS").expect("KAFKA_BROKERS is not set: run dev/services up kafka")
}

/// A configuration with a prefix of its own.
fn configured(brokers: &str, settings: &[(&str, &str)]) -> Config {
    let mut environment = BTreeMap::from([
        ("KAFKA_BROKERS".to_owned(), brokers.to_owned()),
        ("HASHINSIGHT__KAFKA__TOPIC_PREFIX".to_owned(), format!("it-{}.", Uuid::now_v7())),
    ]);
    environment.extend(
        settings.iter().map(|(key, value)| (format!("HASHINSIGHT__KAFKA__{key}"), (*value).to_owned())),
    );
    config::load_from(None, &environment).expect("valid").config
}

/// One topic and a log to reach it; the topic is deleted at the end.
struct Fixture {
    log: KafkaLog,
    topic: String,
}

impl Fixture {
    async fn new(partitions: i32) -> Self {
        Self::with(partitions, &[]).await
    }

    async fn with(partitions: i32, settings: &[(&str, &str)]) -> Self {
        let config = configured(&brokers(), settings);
        let log = KafkaLog::connect(&config.kafka).await.expect("a broker");
        let topic = format!("{}one", config.kafka.topic_prefix);
        let created = log.ensure_topics(&[spec(&topic, partitions)]).await.expect("created");
        assert_eq!(created, [topic.as_str()]);
        Self { log, topic }
    }

    async fn append(&self, records: &[Record]) {
        self.log.append(&self.topic, 0, records).await.expect("appended");
    }

    async fn fetch(&self, offset: i64) -> Result<Vec<(i64, Record)>, LogError> {
        Ok(self.log.fetch(&self.topic, 0, offset, limits(10_000)).await?.records)
    }

    /// All records of partition 0.
    async fn all(&self) -> Vec<Record> {
        let end = self.log.bounds(&self.topic, 0).await.expect("bounds").end;
        let mut found = Vec::new();
        let mut next = 0;
        while next < end {
            let records = self.fetch(next).await.expect("fetched");
            next = records.last().expect("a record before the end").0 + 1;
            found.extend(records.into_iter().map(|(_, record)| record));
        }
        found
    }

    async fn end(self) {
        delete(&[self.topic]).await;
    }
}

async fn delete(topics: &[String]) {
    let brokers = brokers().split(',').map(str::to_owned).collect();
    let client = rskafka::client::ClientBuilder::new(brokers).build().await.expect("a broker");
    for topic in topics {
        let controller = client.controller_client().expect("a controller");
        controller.delete_topic(topic, 5_000).await.expect("deleted");
    }
}

fn spec(name: &str, partitions: i32) -> TopicSpec {
    TopicSpec {
        name: name.to_owned(),
        partitions,
        replication_factor: 1,
        retention: Duration::from_secs(86_400),
    }
}

fn limits(max_records: usize) -> FetchLimits {
    FetchLimits { max_records, max_bytes: 1 << 20, max_wait: PATIENCE }
}

fn record(value: impl Into<Vec<u8>>) -> Record {
    let timestamp = DateTime::from_timestamp_millis(Utc::now().timestamp_millis()).expect("in range");
    Record { key: Some(b"t1:u1".to_vec()), value: Some(value.into()), headers: Vec::new(), timestamp }
}

/// A record like those of the product: about 700 bytes, some of which compress.
fn event(n: usize) -> Record {
    let header = |name: &str, value: String| (name.to_owned(), value.into_bytes());
    let (id, entity) = (Uuid::new_v4(), Uuid::new_v4());
    let value = format!(
        r#"{{"data": {{"model": "Antminer S21", "power_w": {}, "location": "site-{}", "quantity": 1, "hashrate_ths": {}, "purchase_price_usd": "{}", "electricity_cost_usd_kwh": "0.05", "reason": "imported"}}, "kind": "miner.added", "version": 1, "event_id": "{id}", "user_id": "u1", "entity_id": "{entity}", "tenant_id": "t1", "occurred_at": "2026-01-02T03:04:05.678901Z", "causation_id": null, "correlation_id": "{}"}}"#,
        fastrand::u32(1_000..4_000),
        fastrand::u32(..40),
        fastrand::u32(50..250),
        fastrand::u32(500..5_000),
        Uuid::new_v4(),
    );
    let traceparent = format!("00-{:032x}-{:016x}-01", fastrand::u128(..), fastrand::u64(..));
    let headers = vec![
        header("id", id.to_string()),
        header("position", n.to_string()),
        header("tenantId", "t1".to_owned()),
        header("traceparent", traceparent),
        header("type", "miner.added".to_owned()),
        header("version", "1".to_owned()),
    ];
    Record { headers, ..record(value) }
}

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
    assert_eq!(fixture.log.partitions(&fixture.topic).await.expect("known"), 3);
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
    let config = configured(&brokers(), &[]);
    let log = KafkaLog::connect(&config.kafka).await.expect("a broker");
    let topic = format!("{}missing", config.kafka.topic_prefix);
    let errors = [
        log.partitions(&topic).await.expect_err("unknown"),
        log.append(&topic, 0, &[record("x")]).await.expect_err("unknown"),
        log.fetch(&topic, 0, 0, limits(1)).await.expect_err("unknown"),
        log.bounds(&topic, 0).await.expect_err("unknown"),
    ];
    for error in errors {
        assert!(matches!(&error, LogError::UnknownTopic { topic: named } if *named == topic), "{error}");
    }
    log.ensure_topics(&[spec(&topic, 1)]).await.expect("created");
    log.append(&topic, 0, &[record("x")]).await.expect("it exists now");
    delete(&[topic]).await;
}

#[tokio::test]
async fn a_record_the_broker_does_not_take_is_too_large() {
    let fixture = Fixture::with(1, &[("COMPRESSION", "none")]).await;
    let error =
        fixture.log.append(&fixture.topic, 0, &[record(vec![b'x'; 2 << 20])]).await.expect_err("refused");
    assert!(matches!(error, LogError::TooLarge { .. }), "{error}");
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
fn kcat_produce(topic: &str, arguments: &[&str]) {
    let mut kcat = Command::new("kcat")
        .args(["-P", "-b", &brokers(), "-t", topic, "-p", "0"])
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
    let config = configured(&brokers(), &[("PARTITIONS", "2")]);
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
    delete(&ours.into_iter().map(|spec| spec.name).collect::<Vec<_>>()).await;
}

#[tokio::test]
async fn a_topic_that_cannot_be_made_says_why() {
    let config = configured(&brokers(), &[]);
    let log = KafkaLog::connect(&config.kafka).await.expect("a broker");
    let name = format!("{}wide", config.kafka.topic_prefix);
    let spec = TopicSpec { replication_factor: 99, ..spec(&name, 1) };
    let error = log.ensure_topics(&[spec]).await.expect_err("too few brokers");
    assert!(matches!(&error, LogError::Refused(message) if message.contains(&name)), "{error}");
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
    let config = configured(&format!("{silent},{}", brokers()), &[]);
    let log = KafkaLog::connect(&config.kafka).await.expect("the other one answers");
    let topic = format!("{}none", config.kafka.topic_prefix);
    let error = log.partitions(&topic).await.expect_err("no such topic");
    assert!(matches!(error, LogError::UnknownTopic { .. }), "{error}");
}

#[tokio::test]
async fn a_broker_that_hangs_meets_the_deadline_and_is_used_again_once_it_answers() {
    let fixture = Fixture::new(1).await;
    let proxy = Proxy::start().await;
    let config = configured(
        &proxy.address,
        &[("PRODUCE_TIMEOUT_MS", "300"), ("METADATA_TIMEOUT_MS", "300"), ("COMPRESSION", "none")],
    );
    let log = KafkaLog::connect(&config.kafka).await.expect("a broker");
    let topic = &fixture.topic;
    log.append(topic, 0, &[record("before")]).await.expect("appended");
    log.bounds(topic, 0).await.expect("bounds");

    proxy.set(Mode::Hang);
    for _ in 0..2 {
        let started = Instant::now();
        let error = log.append(topic, 0, &[record("during")]).await.expect_err("no answer");
        assert!(matches!(error, LogError::Unavailable(_)), "{error}");
        let error = log.bounds(topic, 0).await.expect_err("no answer");
        assert!(matches!(error, LogError::Unavailable(_)), "{error}");
        let error = log.describe_topics(std::slice::from_ref(topic)).await.expect_err("no answer");
        assert!(matches!(error, LogError::Unavailable(_)), "{error}");
        assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
    }

    // What was connected stays silent for ever: only a new client gets through.
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
    let fixture = Fixture::new(1).await;
    let proxy = Proxy::start().await;
    let config = configured(&proxy.address, &[("PRODUCE_TIMEOUT_MS", "500")]);
    let log = KafkaLog::connect(&config.kafka).await.expect("a broker");
    log.append(&fixture.topic, 0, &[record("a")]).await.expect("appended");

    proxy.set(Mode::LoseAnswers);
    let error = log.append(&fixture.topic, 0, &[record("b")]).await.expect_err("no answer");
    assert!(matches!(error, LogError::Unavailable(_)), "{error}");
    assert_eq!(fixture.all().await.len(), 2);

    proxy.set(Mode::Forward);
    log.append(&fixture.topic, 0, &[record("b")]).await.expect("again, before anything newer");
    log.append(&fixture.topic, 0, &[record("c")]).await.expect("appended");
    let values: Vec<_> = fixture.all().await.into_iter().map(|r| r.value.expect("a value")).collect();
    assert_eq!(values, [b"a", b"b", b"b", b"c"]);
    fixture.end().await;
}

#[tokio::test]
async fn connections_that_break_are_replaced_within_the_call() {
    let fixture = Fixture::new(1).await;
    let proxy = Proxy::start().await;
    let log = KafkaLog::connect(&configured(&proxy.address, &[]).kafka).await.expect("a broker");
    log.append(&fixture.topic, 0, &[record("a")]).await.expect("appended");
    proxy.set(Mode::Cut);
    proxy.all_cut().await;
    proxy.set(Mode::Forward);
    log.append(&fixture.topic, 0, &[record("b")]).await.expect("through a new connection");
    assert_eq!(fixture.all().await.len(), 2);
    fixture.end().await;
}

/// What the proxy does with the connections it has and gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Forward,
    /// Like a frozen broker: connections open and stay, nothing goes through, now or later.
    Hang,
    /// Requests get through; no answer comes back, now or later.
    LoseAnswers,
    /// Connections are closed.
    Cut,
}

/// Stands before the broker and calls itself the broker: its address replaces the real one in every answer.
struct Proxy {
    address: String,
    mode: watch::Sender<Mode>,
    accepted: Arc<AtomicUsize>,
    open: watch::Receiver<usize>,
}

impl Proxy {
    async fn start() -> Self {
        let broker = brokers().split(',').next().expect("a broker").to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let names = (name_on_the_wire(&broker), name_on_the_wire(&address.to_string()));
        assert_eq!(names.0.len(), names.1.len(), "the broker must be known as 127.0.0.1");
        let (mode, current) = watch::channel(Mode::Forward);
        let accepted = Arc::new(AtomicUsize::new(0));
        let (opened, open) = watch::channel(0);
        let count = Arc::clone(&accepted);
        tokio::spawn(async move {
            loop {
                let (client, _) = listener.accept().await.expect("accepts");
                count.fetch_add(1, Ordering::SeqCst);
                let (broker, names) = (broker.clone(), names.clone());
                let (mut mode, opened) = (current.clone(), opened.clone());
                opened.send_modify(|open| *open += 1);
                tokio::spawn(async move {
                    let broker = TcpStream::connect(broker).await.expect("a broker");
                    client.set_nodelay(true).expect("set");
                    broker.set_nodelay(true).expect("set");
                    let (from_client, to_client) = client.into_split();
                    let (from_broker, to_broker) = broker.into_split();
                    let there = forward(from_client, to_broker, mode.clone(), &[Mode::Hang], None);
                    let stop = [Mode::Hang, Mode::LoseAnswers];
                    let back = forward(from_broker, to_client, mode.clone(), &stop, Some(names));
                    tokio::select! {
                        _ = there => {}
                        _ = back => {}
                        _ = mode.wait_for(|mode| *mode == Mode::Cut) => {}
                    }
                    opened.send_modify(|open| *open -= 1);
                });
            }
        });
        Self { address: address.to_string(), mode, accepted, open }
    }

    fn set(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }

    fn connections(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }

    async fn all_cut(&self) {
        self.open.clone().wait_for(|open| *open == 0).await.expect("the proxy runs");
    }
}

/// Frame by frame, until the connection closes; in a mode of `stop` for ever nothing.
async fn forward(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mode: watch::Receiver<Mode>,
    stop: &[Mode],
    names: Option<(Vec<u8>, Vec<u8>)>,
) -> std::io::Result<()> {
    loop {
        let length = from.read_u32().await?;
        let mut frame = vec![0; length as usize];
        from.read_exact(&mut frame).await?;
        if stop.contains(&mode.borrow()) {
            std::future::pending::<()>().await;
        }
        if let Some((broker, proxy)) = &names
            && let Some(at) = frame.windows(broker.len()).position(|bytes| bytes == broker.as_slice())
        {
            frame[at..at + broker.len()].copy_from_slice(proxy);
        }
        to.write_all(&[&length.to_be_bytes(), frame.as_slice()].concat()).await?;
    }
}

/// Host and port as they stand in an answer to Metadata.
fn name_on_the_wire(address: &str) -> Vec<u8> {
    let (host, port) = address.rsplit_once(':').expect("host:port");
    let port: i32 = port.parse().expect("a port");
    [host.as_bytes(), &port.to_be_bytes()].concat()
}
