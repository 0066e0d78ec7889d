//! F17: bytes that are no event become dead letters with everything that was known of them, and the rest flows.
//! F19: a dead letter that cannot be written holds its offset.

use std::time::Duration;

use chrono::{DateTime, Utc};
use hashinsight::config::EventLogKind;
use hashinsight::dead_letter::{self, Cause, Known, Place};
use hashinsight::log::Record;
use serde_json::{Value, json};
use uuid::Uuid;

use super::ward::{Clinic, Ward};
use crate::pipeline::{raw, record};

/// A record of an event whose text was changed.
fn changed(change: impl FnOnce(&mut Value)) -> Record {
    let mut json: Value =
        serde_json::from_slice(&record("t:u", "e", Uuid::now_v7()).value.expect("a value")).expect("json");
    change(&mut json);
    raw("t:u", Some(json.to_string().into_bytes()))
}

/// Each with the class of its letter.
fn corpus() -> Vec<(Record, &'static str)> {
    let bytes = |bytes: &[u8]| raw("t:u", Some(bytes.to_vec()));
    let huge = "x".repeat(900_000);
    let deep = |levels: usize| "[".repeat(levels).into_bytes();
    let closed = [deep(20_000), "]".repeat(20_000).into_bytes()].concat();
    let surrogate = br#"{"data":"\ud800"}"#;
    let without = |field: &str| {
        changed(|json| {
            json.as_object_mut().expect("an object").remove(field);
        })
    };
    let headers = vec![
        ("id".to_owned(), vec![0xff, 0x00, 0x10]),
        ("tenantId".to_owned(), b"t".to_vec()),
        ("x\0y".to_owned(), b"a\0b".to_vec()),
        ("z".to_owned(), "z".repeat(20_000).into_bytes()),
    ];
    let of_yore = DateTime::<Utc>::UNIX_EPOCH;
    vec![
        (raw("t:u", None), "null_value"),
        (bytes(b""), "invalid_json"),
        (bytes(b"{"), "invalid_json"),
        (bytes(&[0xff, 0x00]), "invalid_json"),
        (bytes(b"\xef\xbb\xbf{}"), "invalid_json"),
        (bytes(surrogate), "invalid_json"),
        (bytes(&deep(20_000)), "invalid_json"),
        (bytes(&closed), "invalid_json"),
        (bytes(huge.as_bytes()), "invalid_json"),
        (bytes(json!({ "data": huge }).to_string().as_bytes()), "invalid_envelope"),
        (bytes(b"{\"data\":\"\\u0000\"}"), "invalid_envelope"),
        (bytes(b"{\"\\u0000\":1}"), "invalid_envelope"),
        (bytes(b"[1e400000]"), "invalid_envelope"),
        (bytes(b"{\"version\":1e400000}"), "invalid_envelope"),
        (bytes(b"null"), "invalid_envelope"),
        (bytes(b"[]"), "invalid_envelope"),
        (without("event_id"), "invalid_envelope"),
        (without("tenant_id"), "invalid_envelope"),
        (without("kind"), "invalid_envelope"),
        (changed(|json| json["event_id"] = "x".into()), "invalid_envelope"),
        (changed(|json| json["event_id"] = "\0".into()), "invalid_envelope"),
        (changed(|json| json["user_id"] = "a b".into()), "invalid_envelope"),
        (changed(|json| json["tenant_id"] = "t\0".into()), "invalid_envelope"),
        (changed(|json| json["kind"] = "miner.\0".into()), "invalid_envelope"),
        (changed(|json| json["kind"] = "k".repeat(5_000).into()), "invalid_envelope"),
        (changed(|json| json["occurred_at"] = "yesterday".into()), "invalid_envelope"),
        (changed(|json| json["version"] = 99.into()), "unsupported_version"),
        (Record { key: Some(b"other:u".to_vec()), ..changed(|_| ()) }, "tenant_mismatch"),
        (Record { key: Some(vec![0xff, 0x00]), ..changed(|_| ()) }, "tenant_mismatch"),
        (Record { key: None, ..changed(|_| ()) }, "tenant_mismatch"),
        (Record { headers, timestamp: of_yore, ..raw("t:u", Some(b"{".to_vec())) }, "invalid_json"),
    ]
}

/// A letter as the table keeps it.
#[derive(sqlx::FromRow)]
struct Kept {
    log_offset: i64,
    raw_key: Option<Vec<u8>>,
    raw_value: Option<Vec<u8>>,
    headers: Value,
    error_class: String,
    error_message: String,
    record_time: Option<DateTime<Utc>>,
    dlq_offset: Option<i64>,
}

async fn every_corpse_is_kept_and_relayed(kind: EventLogKind) {
    let mut corpus = corpus();
    if kind == EventLogKind::Postgres {
        // That log holds what our publisher writes: names that are text.
        corpus.iter_mut().for_each(|(record, _)| record.headers.retain(|(name, _)| !name.contains('\0')));
    }
    let mut ward = Ward::open(kind, 1).await;
    for (record, _) in &corpus {
        ward.append(0, std::slice::from_ref(record)).await;
    }
    ward.append(0, &[record("t:u", "good", Uuid::now_v7())]).await;
    // Handlers may fail events whose content is odd: the retry queue takes them as well.
    let odd = changed(|json| {
        json["entity_id"] = "odd".into();
        json["data"] = json!({"a": "\0", "n": 1});
    });
    let odd = Record { key: Some([b"t:".as_slice(), &[0xfe; 5_000]].concat()), ..odd };
    ward.append(0, std::slice::from_ref(&odd)).await;
    let clinic = Clinic::with(&["odd"]);
    ward.group("picky", &clinic, Duration::from_millis(20)).await;
    ward.holds(&format!("(select count(*) = {} from event_dlq)", corpus.len() + 1)).await;
    assert_eq!(clinic.applied(), ["good"]);
    let end = corpus.len() + 2;
    ward.holds(&format!("(select next_offset = {end} from consumer_offset where topic like '%miner')")).await;
    ward.holds("(select bool_and(dlq_offset is not null) from event_dlq)").await;

    let kept: Vec<Kept> = sqlx::query_as("select * from event_dlq order by log_offset")
        .fetch_all(&ward.test.admin)
        .await
        .expect("letters");
    let expected = corpus.iter().map(|(r, class)| (r, *class)).chain([(&odd, "database")]);
    for (letter, (record, class)) in kept.iter().zip(expected) {
        let (offset, message) = (letter.log_offset, &letter.error_message);
        assert_eq!(letter.error_class, class, "offset {offset}: {message}");
        assert_eq!((&letter.raw_key, &letter.raw_value), (&record.key, &record.value), "offset {offset}");
        assert_eq!(dead_letter::headers_from_json(&letter.headers), record.headers, "offset {offset}");
        assert_eq!(letter.record_time, Some(record.timestamp), "offset {offset}");
        super::relay::stands_on_the_topic(&ward, record, letter.dlq_offset, offset, message).await;
    }
    ward.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_corpse_is_kept_and_relayed_on_postgres() {
    every_corpse_is_kept_and_relayed(EventLogKind::Postgres).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_corpse_is_kept_and_relayed_on_kafka() {
    every_corpse_is_kept_and_relayed(EventLogKind::Kafka).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_that_cannot_be_written_holds_the_offset() {
    let mut ward = Ward::open(EventLogKind::Postgres, 1).await;
    // A sequence counts the tries: it is not rolled back.
    ward.test
        .execute(
            "create sequence tries; grant usage on tries to hi_worker; \
             create function refuse() returns trigger language plpgsql as $$ \
             begin perform nextval('tries'); raise exception 'on purpose'; end $$; \
             create trigger refuse before insert on event_dlq for each row execute function refuse()",
        )
        .await;
    let bad = raw("t:u", Some(b"{".to_vec()));
    ward.append(0, &[record("t:u", "before", Uuid::now_v7()), bad]).await;
    ward.append(0, &[record("t:v", "after", Uuid::now_v7())]).await;
    let clinic = Clinic::with(&["poison"]);
    ward.group("picky", &clinic, Duration::from_millis(20)).await;
    ward.holds("(select last_value >= 8 from tries)").await;
    let next = "select next_offset from consumer_offset where topic like '%miner'";
    assert_eq!(ward.test.scalar::<i64>(next).await, 1, "not past what could not be buried");
    ward.test.execute("alter table event_dlq disable trigger refuse").await;
    ward.holds(&format!("({next}) = 3")).await;
    assert_eq!(ward.test.scalar::<i64>("select count(*) from event_dlq").await, 1);
    assert_eq!(clinic.applied(), ["before", "after"]);

    // The same behind the third attempt: the event stays in the queue.
    ward.test.execute("alter table event_dlq enable trigger refuse; select setval('tries', 1)").await;
    ward.append(0, &[record("t:u", "poison", Uuid::now_v7())]).await;
    ward.holds("(select last_value >= 4 from tries)").await;
    assert_eq!(ward.test.scalar::<i64>("select count(*) from parked_event").await, 1);
    assert_eq!(ward.test.scalar::<i64>("select count(*) from event_inbox where outcome = 'parked'").await, 1);
    ward.test.execute("alter table event_dlq disable trigger refuse").await;
    ward.holds("(select count(*) = 2 from event_dlq)").await;
    ward.holds("(select count(*) = 0 from parked_event)").await;
    ward.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_letter_for_each_record_and_none_is_lost() {
    let ward = Ward::open(EventLogKind::Postgres, 1).await;
    let event_id = Uuid::now_v7();
    let bury = async |offset: i64, record: &Record, event_id: Option<Uuid>| {
        let mut tx = ward.test.db.worker().await.expect("begin");
        let place = Place { topic: &ward.topic, partition: 0, offset };
        let known = Known { event_id, ..Known::default() };
        let cause = Cause { class: "c", message: "m", attempts: 1, first_failed_at: None };
        dead_letter::bury(tx.conn(), "picky", place, record, known, cause).await.expect("buried");
        tx.commit().await.expect("commit");
        ward.test.scalar::<i64>("select count(*) from event_dlq").await
    };
    let unreadable = raw("t:u", Some(b"{".to_vec()));
    let readable = record("t:u", "e", event_id);
    assert_eq!(bury(5, &unreadable, Some(event_id)).await, 1);
    assert_eq!(bury(5, &unreadable, Some(event_id)).await, 1, "delivered again");
    assert_eq!(bury(6, &readable, Some(event_id)).await, 2, "the event itself, whose id the bytes named");
    assert_eq!(bury(5, &raw("t:u", None), None).await, 3, "the same place in a topic that was made anew");
    assert_eq!(bury(5, &raw("t:u", Some(b"]".to_vec())), None).await, 4, "and again");
    let offsets: Vec<i64> = sqlx::query_scalar("select log_offset from event_dlq order by 1")
        .fetch_all(&ward.test.admin)
        .await
        .expect("offsets");
    assert_eq!(offsets, [-2, -1, 5, 6]);
    ward.close().await;
}
