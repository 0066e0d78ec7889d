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
