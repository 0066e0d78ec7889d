//! Owns the dead letters: events that a group gave up on, with their raw bytes and the reason.
//! Promises that storing one cannot fail on its content, whatever the bytes are.
//! Called by the consumer, inside the transaction that moves the offset past the event.

use chrono::{DateTime, Utc};
use serde_json::{Value, json};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::log::Record;

/// Longest error message kept, in bytes.
const MAX_MESSAGE: usize = 8 * 1024;

/// The name under which events that could not be published are dead letters; their offset is the outbox position.
pub const PUBLISHER: &str = "publisher";

/// Where a record stands in the log.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    pub topic: &'a str,
    pub partition: i32,
    pub offset: i64,
}

/// What the bytes still tell about the event.
#[derive(Debug, Clone, Copy, Default)]
pub struct Known<'a> {
    pub event_id: Option<Uuid>,
    pub kind: Option<&'a str>,
    pub tenant_id: Option<&'a str>,
    pub user_id: Option<&'a str>,
}

/// Why it is dead.
#[derive(Debug, Clone, Copy)]
pub struct Cause<'a> {
    pub class: &'a str,
    pub message: &'a str,
    /// Attempts made.
    pub attempts: i32,
    /// Time of the first failed attempt; now, if this is the first.
    pub first_failed_at: Option<DateTime<Utc>>,
}

/// Stores a dead letter. One that exists for this place or this event is left as it is.
pub async fn bury(
    conn: &mut PgConnection,
    group: &str,
    place: Place<'_>,
    record: &Record,
    known: Known<'_>,
    cause: Cause<'_>,
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "insert into event_dlq (consumer_name, event_id, event_kind, tenant_id, user_id, topic, partition, \
         log_offset, payload, raw_key, raw_value, headers, error_class, error_message, retry_count, first_failed_at, \
         last_failed_at) values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, \
         coalesce($16, statement_timestamp()), statement_timestamp()) on conflict do nothing",
    )
    .bind(group)
    .bind(known.event_id)
    .bind(known.kind)
    .bind(known.tenant_id)
    .bind(known.user_id)
    .bind(place.topic)
    .bind(place.partition)
    .bind(place.offset)
    .bind(record.value.as_deref().and_then(storable_json))
    .bind(&record.key)
    .bind(&record.value)
    .bind(headers_json(record))
    .bind(cause.class)
    .bind(storable_text(cause.message))
    .bind(cause.attempts)
    .bind(cause.first_failed_at)
    .execute(conn)
    .await
    .map(drop)
}

/// A dead letter that somebody asked to be replayed.
#[derive(Debug)]
pub struct Letter {
    pub id: Uuid,
    pub topic: String,
    pub record: Record,
}

/// What became of a replay.
#[derive(Debug)]
pub enum Replayed {
    Resolved,
    /// It failed again, for this reason.
    Dead(String),
}

/// What [`to_replay`] reads: id, topic, key, value, headers, time of the event.
type LetterRow = (Uuid, String, Option<Vec<u8>>, Option<Vec<u8>>, Value, DateTime<Utc>);

/// The dead letters of a group that wait to be replayed, the oldest first.
pub async fn to_replay(conn: &mut PgConnection, group: &str, limit: i64) -> Result<Vec<Letter>, sqlx::Error> {
    let rows: Vec<LetterRow> = sqlx::query_as(
        "select id, topic, raw_key, raw_value, headers, \
         coalesce((payload ->> 'occurred_at')::timestamptz, created_at) \
         from event_dlq where consumer_name = $1 and status = 'replaying' order by created_at, log_offset limit $2",
    )
    .bind(group)
    .bind(limit)
    .fetch_all(conn)
    .await?;
    let letter = |(id, topic, key, value, headers, timestamp): LetterRow| {
        let record = Record { key, value, headers: headers_from_json(&headers), timestamp };
        Letter { id, topic, record }
    };
    Ok(rows.into_iter().map(letter).collect())
}

/// Which dead letters to replay.
#[derive(Debug, Clone, Copy)]
pub struct Filter<'a> {
    pub group: &'a str,
    pub kind: Option<&'a str>,
    /// Not older than so many hours.
    pub hours: i32,
    pub limit: i64,
}

/// The dead letters that a filter meets, the oldest first.
pub async fn matching(conn: &mut PgConnection, filter: Filter<'_>) -> Result<Vec<Uuid>, sqlx::Error> {
    sqlx::query_scalar(
        "select id from event_dlq where consumer_name = $1 and status = 'dead' and event_kind is not distinct from \
         coalesce($2, event_kind) and created_at >= now() - make_interval(hours => $3) \
         order by created_at, log_offset limit $4",
    )
    .bind(filter.group)
    .bind(filter.kind)
    .bind(filter.hours)
    .bind(filter.limit)
    .fetch_all(conn)
    .await
}

/// Asks for a dead letter to be replayed. `false`: it is not dead any more.
pub async fn ask_for_replay(conn: &mut PgConnection, id: Uuid) -> Result<bool, sqlx::Error> {
    let asked = sqlx::query("update event_dlq set status = 'replaying' where id = $1 and status = 'dead'")
        .bind(id)
        .execute(conn)
        .await?
        .rows_affected();
    Ok(asked == 1)
}

/// Writes down what became of a replay; a letter that is not being replayed any more stays as it is.
pub async fn replayed(conn: &mut PgConnection, id: Uuid, outcome: &Replayed) -> Result<(), sqlx::Error> {
    let message = match outcome {
        Replayed::Resolved => None,
        Replayed::Dead(message) => Some(storable_text(message)),
    };
    sqlx::query(
        "update event_dlq set status = case when $2::text is null then 'resolved' else 'dead' end, \
         resolved_at = case when $2::text is null then statement_timestamp() end, \
         error_message = coalesce($2, error_message), \
         retry_count = retry_count + case when $2::text is null then 0 else 1 end, \
         last_failed_at = case when $2::text is null then last_failed_at else statement_timestamp() end \
         where id = $1 and status = 'replaying'",
    )
    .bind(id)
    .bind(message)
    .execute(conn)
    .await
    .map(drop)
}

/// How many dead letters nobody has settled yet.
pub async fn open(conn: &mut PgConnection) -> Result<i64, sqlx::Error> {
    sqlx::query_scalar("select count(*) from event_dlq where status in ('dead', 'replaying')")
        .fetch_one(conn)
        .await
}

/// The headers as JSON: `[{"name", "value"}]`, or `"hex"` in place of `"value"` where the bytes are no text.
pub fn headers_json(record: &Record) -> Value {
    let header = |(name, value): &(String, Vec<u8>)| match std::str::from_utf8(value) {
        Ok(text) if !text.contains('\0') => json!({"name": storable_text(name), "value": text}),
        _ => {
            json!({"name": storable_text(name), "hex": value.iter().map(|b| format!("{b:02x}")).collect::<String>()})
        }
    };
    record.headers.iter().map(header).collect()
}

/// Reads back what [`headers_json`] wrote.
pub fn headers_from_json(json: &Value) -> Vec<(String, Vec<u8>)> {
    let bytes = |hex: &str| {
        (0..hex.len() / 2).filter_map(|i| u8::from_str_radix(hex.get(2 * i..2 * i + 2)?, 16).ok()).collect()
    };
    let header = |h: &Value| {
        let value = match (h.get("value").and_then(Value::as_str), h.get("hex").and_then(Value::as_str)) {
            (Some(text), _) => text.as_bytes().to_vec(),
            (None, hex) => bytes(hex.unwrap_or_default()),
        };
        Some((h.get("name")?.as_str()?.to_owned(), value))
    };
    json.as_array().map(|list| list.iter().filter_map(header).collect()).unwrap_or_default()
}

/// Text that PostgreSQL takes: without NUL, and not endless.
pub fn storable_text(text: &str) -> String {
    let mut end = text.len().min(MAX_MESSAGE);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].replace('\0', "\u{fffd}")
}

/// The value as JSON, if jsonb takes it: it refuses U+0000 and numbers beyond its range.
fn storable_json(bytes: &[u8]) -> Option<Value> {
    serde_json::from_slice(bytes).ok().filter(is_storable)
}

fn is_storable(json: &Value) -> bool {
    match json {
        Value::String(text) => !text.contains('\0'),
        Value::Number(number) => {
            let text = number.to_string();
            let exponent = text.split(['e', 'E']).nth(1).map_or(Ok(0), str::parse::<i64>);
            text.len() < 1_000 && exponent.is_ok_and(|e| e.abs() < 1_000)
        }
        Value::Array(list) => list.iter().all(is_storable),
        Value::Object(fields) => {
            fields.iter().all(|(name, value)| !name.contains('\0') && is_storable(value))
        }
        Value::Null | Value::Bool(_) => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_jsonb_takes_is_kept_as_json() {
        for refused in
            ["{\"a\":\"\\u0000\"}", "{\"\\u0000\":1}", "[1e400000]", "{", "\"\\ud800\"", "\u{fffd}x"]
        {
            assert!(storable_json(refused.as_bytes()).is_none(), "{refused}");
        }
        let deep = format!("{}{}", "[".repeat(20_000), "]".repeat(20_000));
        assert!(storable_json(deep.as_bytes()).is_none());
        assert!(storable_json(b"{\"a\":[1.50,null,\"\xc3\xa9\"]}").is_some());
    }

    #[test]
    fn headers_survive_the_round_trip() {
        let record = Record {
            key: None,
            value: None,
            headers: vec![("id".to_owned(), b"x".to_vec()), ("bytes".to_owned(), vec![0, 255, 16])],
            timestamp: DateTime::UNIX_EPOCH,
        };
        assert_eq!(headers_from_json(&headers_json(&record)), record.headers);
    }

    #[test]
    fn messages_are_cut_at_a_character() {
        let text = "é".repeat(MAX_MESSAGE);
        assert!(storable_text(&text).len() <= MAX_MESSAGE);
        assert_eq!(storable_text("a\0b"), "a\u{fffd}b");
    }
}
