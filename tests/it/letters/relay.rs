//! events.dlq: letters as records, after the commit, and in nobody's way.

use std::time::Duration;

use chrono::Utc;
use hashinsight::config::EventLogKind;
use hashinsight::log::{FetchLimits, Record, partition_of};
use hashinsight::role::topics;
use uuid::Uuid;

use super::ward::{Clinic, Ward};
use crate::pipeline::{raw, record};

/// The record at a letter's offset is the original one with our headers, and young enough to stay.
pub(super) async fn stands_on_the_topic(
    ward: &Ward,
    original: &Record,
    dlq_offset: Option<i64>,
    offset: i64,
    message: &str,
) {
    let topic = format!("{}dlq", ward.test.config.kafka.topic_prefix);
    let partitions = ward.log.topic(&topic).await.expect("it exists").partitions;
    let partition = original.key.as_ref().map_or(0, |key| partition_of(key, partitions));
    let at = dlq_offset.expect("it was acknowledged");
    let limits = FetchLimits { max_records: 1, max_bytes: 4 << 20, max_wait: Duration::from_secs(5) };
    let fetched = ward.log.fetch(&topic, partition, at, limits).await.expect("readable");
    let (found, record) = fetched.records.first().expect("a record");
    assert_eq!(*found, at);
    assert_eq!((&record.key, &record.value), (&original.key, &original.value), "offset {offset}");
    for (name, value) in &original.headers {
        assert_eq!(record.header(name), Some(value.as_slice()), "offset {offset}, header {name:?}");
    }
    let text = |name: &str| String::from_utf8_lossy(record.header(name).expect(name)).into_owned();
    assert_eq!(text("__dlq.errors.topic"), ward.topic);
    assert_eq!(text("__dlq.errors.partition"), "0");
    assert_eq!(text("__dlq.errors.offset"), offset.to_string());
    assert_eq!(text("__dlq.errors.group"), "picky");
    assert!(["1", "3"].contains(&text("__dlq.errors.delivery.count").as_str()));
    assert_eq!(text("__dlq.errors.message"), message);
    assert_eq!(text("kafka_dlt-original-topic"), ward.topic);
    assert_eq!(record.header("kafka_dlt-original-partition"), Some(&0_i32.to_be_bytes()[..]));
    assert_eq!(record.header("kafka_dlt-original-offset"), Some(&offset.to_be_bytes()[..]));
    assert_eq!(text("kafka_dlt-exception-message"), message);
    assert_eq!(record.headers.len(), original.headers.len() + 10);
    let age = Utc::now() - record.timestamp;
    assert!(age < chrono::TimeDelta::minutes(10), "offset {offset}: {age}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_of_dead_letters_that_is_away_holds_nobody_up() {
    let mut ward = Ward::open(EventLogKind::Postgres, 1).await;
    ward.test.execute("delete from log_partition where topic like '%.dlq'").await;
    let clinic = Clinic::with(&["poison"]);
    ward.group("picky", &clinic, Duration::from_millis(20)).await;
    for n in 0..5 {
        let bad = raw("t:u", Some(b"{".to_vec()));
        let (poison, well) = (record("t:u", "poison", Uuid::now_v7()), record("t:v", "well", Uuid::now_v7()));
        ward.append(0, &[bad, poison, well]).await;
        ward.holds(&format!(
            "(select next_offset = {} from consumer_offset where topic like '%miner')",
            3 * (n + 1)
        ))
        .await;
    }
    ward.holds("(select count(*) = 10 from event_dlq where dlq_offset is null)").await;
    assert_eq!(clinic.applied(), ["well"; 5]);
    let specs = topics::specs(&ward.test.config, EventLogKind::Postgres);
    ward.log.ensure_topics(&specs).await.expect("made again");
    ward.holds("(select bool_and(dlq_offset is not null) from event_dlq)").await;
    let records: i64 = ward.test.scalar("select count(*) from log_record where topic like '%.dlq'").await;
    assert_eq!(records, 10, "each once, when nothing fails in between");
    ward.close().await;
}
