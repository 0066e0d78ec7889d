//! What PostgreSQL takes of bytes that came from anywhere. The raw bytes are kept beside it.

use chrono::{DateTime, Datelike, Utc};
use serde_json::{Value, json};

use crate::log::Record;

/// Longest error message kept, in bytes.
const MAX_MESSAGE: usize = 8 * 1024;

/// The headers as JSON: `[{"name", "value"}]`, or `"hex_name"` and `"hex"` where JSON in PostgreSQL does not take the
/// bytes.
pub fn headers_json(record: &Record) -> Value {
    let header = |(name, value): &(String, Vec<u8>)| {
        let (of_name, name) = match name.contains('\0') {
            true => ("hex_name", hex(name.as_bytes())),
            false => ("name", name.clone()),
        };
        match std::str::from_utf8(value) {
            Ok(text) if !text.contains('\0') => json!({of_name: name, "value": text}),
            _ => json!({of_name: name, "hex": hex(value)}),
        }
    };
    record.headers.iter().map(header).collect()
}

/// Reads back what [`headers_json`] wrote.
pub fn headers_from_json(json: &Value) -> Vec<(String, Vec<u8>)> {
    let header = |h: &Value| {
        let field = |name: &str| h.get(name).and_then(Value::as_str);
        let name = match (field("name"), field("hex_name")) {
            (Some(name), _) => name.to_owned(),
            (None, hex) => String::from_utf8(bytes(hex?)).ok()?,
        };
        let value = match (field("value"), field("hex")) {
            (Some(text), _) => text.as_bytes().to_vec(),
            (None, hex) => bytes(hex.unwrap_or_default()),
        };
        Some((name, value))
    };
    json.as_array().map(|list| list.iter().filter_map(header).collect()).unwrap_or_default()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len() / 2).filter_map(|i| u8::from_str_radix(hex.get(2 * i..2 * i + 2)?, 16).ok()).collect()
}

/// Text that PostgreSQL takes: without NUL, and not endless.
pub fn storable_text(text: &str) -> String {
    cut(text, MAX_MESSAGE).replace('\0', "\u{fffd}")
}

/// The beginning of a text, at most so many bytes.
pub(super) fn cut(text: &str, most: usize) -> &str {
    let mut end = text.len().min(most);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// A time that PostgreSQL takes: whoever writes a record chooses its time.
pub fn storable_time(time: DateTime<Utc>) -> Option<DateTime<Utc>> {
    (1..=9_999).contains(&time.year()).then_some(time)
}

/// The value as JSON, if jsonb takes it: it refuses U+0000 and numbers beyond its range.
pub(super) fn storable_json(bytes: &[u8]) -> Option<Value> {
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
            headers: vec![
                ("id".to_owned(), b"x".to_vec()),
                ("bytes".to_owned(), vec![0, 255, 16]),
                ("n\0l".to_owned(), b"a\0b".to_vec()),
            ],
            timestamp: DateTime::UNIX_EPOCH,
        };
        assert_eq!(headers_from_json(&headers_json(&record)), record.headers);
        assert!(is_storable(&headers_json(&record)));
    }

    #[test]
    fn messages_are_cut_at_a_character() {
        let text = "é".repeat(MAX_MESSAGE);
        assert!(storable_text(&text).len() <= MAX_MESSAGE);
        assert_eq!(storable_text("a\0b"), "a\u{fffd}b");
    }

    #[test]
    fn times_beyond_the_calendar_are_not_kept() {
        assert!(storable_time(DateTime::UNIX_EPOCH).is_some());
        assert!(storable_time(DateTime::<Utc>::MAX_UTC).is_none());
        assert!(storable_time(DateTime::<Utc>::MIN_UTC).is_none());
    }
}
