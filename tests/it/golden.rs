//! The same events through every publisher are the same bytes in Kafka.
//!
//! The publishers read one outbox and write to topics of their own prefix; what they wrote is read with kcat, which
//! shares no code with us and keeps the order of headers.

use std::collections::BTreeMap;
use std::fmt;
use std::process::Command;
use std::time::Duration;

use hashinsight::config::{Config, EventLogKind, load_from};
use hashinsight::event::AggregateType;
use hashinsight::identifier::{TenantId, UserId};
use hashinsight::log::EventLog;
use hashinsight::outbox::{NewEvent, append};
use hashinsight::role::topics;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::connector::{for_debezium, make_slot};
use crate::support::connect::Connect;
use crate::support::process::{Process, run};
use crate::support::{TestDb, service, until};

const EVENTS: usize = 500;

/// All of them through one publisher, on a busy machine.
const PUBLISHED: Duration = Duration::from_secs(120);

/// A way from the outbox to Kafka.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    Poll,
    Wal,
    Debezium,
}

/// The write-ahead log after the table: its publisher polls first, and finds nothing that was not published.
const SOURCES: [Source; 3] = [Source::Poll, Source::Wal, Source::Debezium];

#[tokio::test(flavor = "multi_thread")]
async fn every_source_writes_the_same_bytes() {
    // Declared first, dropped last: Connect is gone before its database.
    let test;
    let connect = Connect::start(&service("KAFKA_BROKERS")).await;
    test = for_debezium(&connect.url).await;
    // Before the events, as an operator makes it: what is committed from now on is in the slot.
    make_slot(&test).await;
    let created = run(&environment(&test, Source::Wal), &["slot", "create"]).await;
    assert_eq!(created.code, 0, "{}", created.stderr);
    // As the connector's own heartbeat does: passed on, they would be records of a topic that does not exist.
    test.execute(
        "select pg_logical_emit_message(false, 'hashinsight.heartbeat', ''); \
         select pg_logical_emit_message(true, 'somebody else', 'x')",
    )
    .await;
    write(&test).await;
    let mut written = Vec::new();
    for source in SOURCES {
        written.push((source, publish(&test, &connect, source).await));
    }
    let (first, reference) = &written[0];
    assert_eq!(reference.len(), EVENTS, "{first:?} wrote every event once");
    for (source, records) in &written[1..] {
        same((*first, reference), (*source, records));
    }
    of_the_rows(&test, reference).await;
}

/// What a process of a source gets: topics of its own, and a slot by the database's name.
fn environment(test: &TestDb, source: Source) -> BTreeMap<String, String> {
    let mut environment = test.environment.clone();
    let prefix = &test.config.kafka.topic_prefix;
    environment.insert("HASHINSIGHT__KAFKA__TOPIC_PREFIX".to_owned(), format!("{prefix}{source:?}."));
    environment.insert("HASHINSIGHT__WAL__SLOT".to_owned(), prefix.trim_end_matches('.').to_owned());
    environment
}

/// Runs one source on topics of its own until everything is there, and reads what it wrote.
async fn publish(test: &TestDb, connect: &Connect, source: Source) -> Vec<Record> {
    let environment = environment(test, source);
    let prefix = environment["HASHINSIGHT__KAFKA__TOPIC_PREFIX"].clone();
    let config = load_from(None, &environment).expect("valid").config;
    let kind = EventLogKind::Kafka;
    let log = test.log(kind).await;
    log.ensure_topics(&topics::specs(&config, kind)).await.expect("topics");
    // Held until the records are there.
    let _running = match source {
        Source::Poll => Some(Process::start(&environment, &["publish"], "this publisher leads").await),
        Source::Wal => {
            let streams = "streaming from the write-ahead log";
            Some(Process::start(&environment, &["publish", "--source", "wal"], streams).await)
        }
        Source::Debezium => {
            let registered = run(&environment, &["connector", "register"]).await;
            assert_eq!(registered.code, 0, "{}\n{}", registered.stderr, connect.log());
            None
        }
    };
    until(&format!("{source:?} has published everything"), PUBLISHED, async || {
        (ends(&*log, &config).await >= EVENTS as i64).then_some(())
    })
    .await;
    AggregateType::ALL.iter().flat_map(|aggregate| read(&prefix, *aggregate)).collect()
}

/// How many records the topics hold.
async fn ends(log: &dyn EventLog, config: &Config) -> i64 {
    let mut sum = 0;
    for aggregate in AggregateType::ALL {
        for partition in 0..config.kafka.partitions {
            let topic = aggregate.topic(&config.kafka.topic_prefix);
            sum += log.bounds(&topic, partition).await.expect("bounds").end;
        }
    }
    sum
}

/// A record as it stands in Kafka, its topic without the prefix.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Record {
    topic: &'static str,
    partition: i64,
    offset: i64,
    timestamp: i64,
    key: Option<String>,
    value: Option<String>,
    /// In the order of the wire.
    headers: Vec<(String, Option<String>)>,
}

/// Everything in a topic, in the order of partition and offset.
fn read(prefix: &str, aggregate: AggregateType) -> Vec<Record> {
    let topic = aggregate.topic(prefix);
    let output = Command::new("kcat")
        .args(["-C", "-q", "-J", "-e", "-o", "beginning", "-b", &service("KAFKA_BROKERS"), "-t", &topic])
        .output()
        .expect("kcat: dev/services up kafka installs it");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // Bytes that are no UTF-8 would make no JSON: then this fails.
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    let optional = |value: &Value| value.as_str().map(str::to_owned);
    let mut records: Vec<Record> = text
        .lines()
        .map(|line| {
            let record: Value = serde_json::from_str(line).expect("JSON");
            let number = |value: &Value| value.as_i64().expect("a number");
            let flat = record["headers"].as_array().expect("headers");
            let headers =
                flat.chunks(2).map(|pair| (optional(&pair[0]).expect("a name"), optional(&pair[1])));
            Record {
                topic: aggregate.as_str(),
                partition: number(&record["partition"]),
                offset: number(&record["offset"]),
                timestamp: number(&record["ts"]),
                key: optional(&record["key"]),
                value: optional(&record["payload"]),
                headers: headers.collect(),
            }
        })
        .collect();
    records.sort();
    records
}

/// Fails at the first record that differs, and says where.
fn same((one, expected): (Source, &[Record]), (other, found): (Source, &[Record])) {
    for (n, record) in expected.iter().enumerate() {
        let differs = |what: &str, a: &dyn fmt::Debug, b: &dyn fmt::Debug| {
            panic!("record {n}, {record:?}: {what} differs\n  {one:?}: {a:?}\n  {other:?}: {b:?}")
        };
        let Some(twin) = found.get(n) else { differs("existence", &"there", &"missing") };
        let place = |r: &Record| (r.topic, r.partition, r.offset);
        if place(record) != place(twin) {
            differs("topic, partition or offset", &place(record), &place(twin));
        }
        if record.key != twin.key {
            differs("key", &record.key, &twin.key);
        }
        if record.headers != twin.headers {
            differs("headers", &record.headers, &twin.headers);
        }
        if record.timestamp != twin.timestamp {
            differs("timestamp", &record.timestamp, &twin.timestamp);
        }
        let (a, b) = (record.value.as_deref(), twin.value.as_deref());
        if a != b {
            let (a, b) = (a.unwrap_or("null"), b.unwrap_or("null"));
            let at = a.bytes().zip(b.bytes()).position(|(a, b)| a != b).unwrap_or(a.len().min(b.len()));
            let around = |text: &str| {
                let bytes =
                    &text.as_bytes()[at.saturating_sub(40).min(text.len())..(at + 40).min(text.len())];
                format!("{} bytes, at {at}: {}", text.len(), String::from_utf8_lossy(bytes))
            };
            differs("value", &around(a), &around(b));
        }
    }
    assert_eq!(found.len(), expected.len(), "{other:?} wrote more than {one:?}");
}

impl fmt::Debug for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let id = self.headers.iter().find(|(name, _)| name == "id").and_then(|(_, id)| id.as_deref());
        write!(f, "{} of {}/{}@{}", id.unwrap_or("?"), self.topic, self.partition, self.offset)
    }
}

/// That all agree does not say that they are right: the bytes are those of the rows.
async fn of_the_rows(test: &TestDb, records: &[Record]) {
    type Row = (String, String, String, String, i64, [String; 5]);
    let rows: Vec<(String, String, String, String, i64, Vec<String>)> = sqlx::query_as(
        "select id::text, aggregate_type, event_key, payload::text, \
           (extract(epoch from date_trunc('milliseconds', occurred_at)) * 1000)::bigint, \
           array[position::text, tenant_id, traceparent, event_type, schema_version::text] from event_outbox",
    )
    .fetch_all(&test.admin)
    .await
    .expect("rows");
    let by_id: BTreeMap<String, Row> = rows
        .into_iter()
        .map(|row| (row.0.clone(), (row.0, row.1, row.2, row.3, row.4, row.5.try_into().expect("five"))))
        .collect();
    assert_eq!(by_id.len(), records.len());
    for record in records {
        let id = record.headers[0].1.as_deref().expect("an id");
        let (_, topic, key, payload, millis, columns) = &by_id[id];
        assert_eq!((record.topic, record.timestamp), (topic.as_str(), *millis), "{record:?}");
        assert_eq!(record.key.as_ref(), Some(key), "{record:?}");
        assert!(record.value.as_ref() == Some(payload), "{record:?}: the value is not the row's payload");
        let names = ["id", "position", "tenantId", "traceparent", "type", "version"];
        let values = [id].into_iter().chain(columns.iter().map(String::as_str));
        let expected: Vec<(String, Option<String>)> = names
            .into_iter()
            .zip(values)
            .map(|(name, value)| (name.to_owned(), Some(value.to_owned())))
            .collect();
        assert_eq!(record.headers, expected, "{record:?}");
    }
}

/// Every kind that this build knows by name, and one of each further prefix.
fn kinds() -> Vec<String> {
    let source = std::fs::read_to_string("src/event.rs").expect("src/event.rs");
    let constants = source.lines().filter_map(|line| line.trim().strip_prefix("pub const "));
    let mut kinds: Vec<String> = constants
        .filter_map(|rest| rest.split_once("&str = \"")?.1.strip_suffix("\";"))
        .filter(|name| AggregateType::of_kind(name).is_ok())
        .map(str::to_owned)
        .collect();
    assert!(kinds.len() >= 9, "the kinds were not found: {kinds:?}");
    kinds.extend(
        ["treasury.trade_executed", "ops.plan_made", "anomaly.opened", "crm.lead_created"].map(str::to_owned),
    );
    kinds
}

/// What may be in the data of an event and what a publisher could get wrong.
fn data(n: usize) -> Value {
    let number = |text: &str| serde_json::from_str::<Value>(text).expect("a number");
    match n % 13 {
        0 => json!({}),
        1 => {
            json!({"text": "Grüße, 東京 🚀 \u{1d11e} e\u{301} \u{202e}rtl\u{202c} \u{feff}", "naïve ключ": "değer"})
        }
        2 => {
            json!({"text": "\"quoted\" \\ / \u{8}\u{c}\n\r\t \u{1f}\u{7f}\u{2028} </script> ' ; -- ${env:HOME} %s"})
        }
        3 => {
            json!({"nulls": [null, [null], {"a": null}], "empty": [[], {}, "", [{}], {"": {}}], "null": null})
        }
        4 => (0..60).fold(json!({}), |inner, depth| json!({"depth": depth, "in": [inner]})),
        5 => json!({"large": [number("123456789012345678901234567890.000000000000000001"), number("1e308"),
                number("-9223372036854775809"), number("18446744073709551616"), 150_000_000_000_000.0]}),
        6 => json!({"tiny": [number("0.000000000000000000000000000001"), number("1e-300"), number("-0.0"), 0,
                number("1.50"), number("100e-2")]}),
        7 => json!({"big": "0123456789abcdef".repeat(6_400), "n": n}),
        8 => json!({"booleans": [true, false], "string_numbers": ["1", "1.0", "0x1f"]}),
        9 => json!([1, "an array", null]),
        10 => json!("text alone"),
        11 => json!({"keys": (0..40).map(|k| (format!("k{k}"), json!(k))).collect::<BTreeMap<_, _>>()}),
        _ => Value::Null,
    }
}

/// Several tenants and owners, one and several events a transaction, with and without a trace.
async fn write(test: &TestDb) {
    let kinds = kinds();
    let tenants: Vec<TenantId> =
        ["acme", "b2.Mine_r@x-1", "42"].iter().map(|t| t.parse().expect("a tenant")).collect();
    let users: Vec<UserId> = (0..17).map(|u| format!("owner.{u}@x").parse().expect("a user")).collect();
    let mut n = 0;
    while n < EVENTS {
        let mut tx = test.db.tenant(&tenants[n / 5 % tenants.len()]).await.expect("begin");
        for _ in 0..1 + n % 4 {
            if n == EVENTS {
                break;
            }
            let traceparent = match n % 3 {
                0 => String::new(),
                _ => format!("00-{:032x}-{:016x}-0{}", fastrand::u128(1..), fastrand::u64(1..), n % 2),
            };
            let new = NewEvent {
                kind: &kinds[n % kinds.len()],
                user_id: &users[n * 7 % users.len()],
                entity_id: format!("entity-{}", n % 31).parse().expect("an entity"),
                data: data(n),
                correlation_id: (n % 2 == 0).then_some("request \"ü\""),
                causation_id: (n % 5 == 0).then(Uuid::now_v7),
                traceparent: &traceparent,
                idempotency_key: None,
            };
            append(&mut tx, new).await.expect("appended");
            n += 1;
        }
        tx.commit().await.expect("commit");
    }
    let written: i64 = test.scalar("select count(*) from event_outbox").await;
    assert_eq!(written, EVENTS as i64);
}
