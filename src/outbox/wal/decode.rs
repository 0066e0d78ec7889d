//! Decodes what PostgreSQL's output plugin pgoutput sends (protocol version 1): inserts into the outbox.
//!
//! The bytes come from a server, but nothing of them is believed: every length is checked, and whatever is not an
//! insert into the outbox is passed over.

use std::collections::HashMap;

use chrono::{NaiveDate, NaiveDateTime};
use uuid::Uuid;

use super::Lsn;
use crate::outbox::OutboxRow;

/// The table whose inserts are decoded, under whatever partition they were written.
const TABLE: &[u8] = b"event_outbox";

/// The columns of an [`OutboxRow`], by the names they are found by.
const COLUMNS: [&str; 10] = [
    "position",
    "id",
    "aggregate_type",
    "event_key",
    "event_type",
    "tenant_id",
    "payload",
    "schema_version",
    "traceparent",
    "occurred_at",
];

/// One message of the stream.
#[derive(Debug)]
pub enum Message {
    /// A committed transaction starts; all of it follows without another in between. The lower half of its id.
    Begin(u32),
    /// A row of the outbox.
    Row(OutboxRow),
    /// The transaction is complete; its commit record ends here.
    Commit(Lsn),
    /// Anything else.
    Other,
}

/// Bytes that are no message of pgoutput, or no row of the outbox.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The message ends before its {0} does.
    #[error("the message ends within its {0}")]
    Truncated(&'static str),
    /// The publication lacks a column.
    #[error(
        "column {0} of event_outbox does not arrive: the publication's column list must name it; run `hashinsight \
         migrate`, or `alter publication hashinsight_outbox set table ...` as its owner"
    )]
    MissingColumn(&'static str),
    /// The column has no value, or it is not text.
    #[error("column {0} of event_outbox arrived without a value in text form")]
    NoValue(&'static str),
    /// The column's text is not what its type writes.
    #[error("column {0} of event_outbox arrived in a form that cannot be read")]
    Unreadable(&'static str),
    /// An insert into a table that was not described before.
    #[error("a row arrived of table {0}, which was not described")]
    UnknownTable(u32),
}

/// Where each of a table's columns goes: an index into [`COLUMNS`].
type Places = Vec<Option<usize>>;

/// Remembers the tables that were described.
#[derive(Debug, Default)]
pub struct Decoder {
    /// `None`: not the outbox.
    tables: HashMap<u32, Option<Places>>,
}

impl Decoder {
    /// Decodes one message.
    pub fn decode(&mut self, message: &[u8]) -> Result<Message, DecodeError> {
        let mut bytes = Bytes(message);
        match bytes.byte("kind")? {
            b'B' => {
                // Where and when it was committed.
                bytes.take(8 + 8, "begin")?;
                Ok(Message::Begin(u32::from_be_bytes(bytes.array("begin")?)))
            }
            b'R' => self.describe(bytes),
            b'I' => self.insert(bytes),
            b'C' => {
                // Flags and the place of the commit record.
                bytes.take(1 + 8, "commit")?;
                Ok(Message::Commit(Lsn(u64::from_be_bytes(bytes.array("commit")?))))
            }
            _ => Ok(Message::Other),
        }
    }

    fn describe(&mut self, mut bytes: Bytes<'_>) -> Result<Message, DecodeError> {
        const WHAT: &str = "description of a table";
        let table = u32::from_be_bytes(bytes.array(WHAT)?);
        bytes.text(WHAT)?;
        let outbox = bytes.text(WHAT)? == TABLE;
        bytes.byte(WHAT)?;
        let mut places = Places::new();
        for _ in 0..bytes.count(WHAT)? {
            bytes.byte(WHAT)?;
            let name = bytes.text(WHAT)?;
            places.push(COLUMNS.iter().position(|column| column.as_bytes() == name));
            // Type and its modifier.
            bytes.take(4 + 4, WHAT)?;
        }
        if !outbox {
            self.tables.insert(table, None);
            return Ok(Message::Other);
        }
        if let Some(missing) = (0..COLUMNS.len()).find(|&column| !places.contains(&Some(column))) {
            return Err(DecodeError::MissingColumn(COLUMNS[missing]));
        }
        self.tables.insert(table, Some(places));
        Ok(Message::Other)
    }

    fn insert(&self, mut bytes: Bytes<'_>) -> Result<Message, DecodeError> {
        const WHAT: &str = "row";
        let table = u32::from_be_bytes(bytes.array(WHAT)?);
        let places = match self.tables.get(&table) {
            Some(Some(places)) => places,
            Some(None) => return Ok(Message::Other),
            None => return Err(DecodeError::UnknownTable(table)),
        };
        bytes.byte(WHAT)?;
        let mut values: [Option<&[u8]>; COLUMNS.len()] = [None; COLUMNS.len()];
        for column in 0..bytes.count(WHAT)? {
            let value = match bytes.byte(WHAT)? {
                b't' => {
                    let length = u32::from_be_bytes(bytes.array(WHAT)?);
                    Some(bytes.take(usize::try_from(length).unwrap_or(usize::MAX), WHAT)?)
                }
                b'b' => {
                    let length = u32::from_be_bytes(bytes.array(WHAT)?);
                    bytes.take(usize::try_from(length).unwrap_or(usize::MAX), WHAT)?;
                    None
                }
                _ => None,
            };
            if let Some(place) = places.get(column).copied().flatten() {
                values[place] = value;
            }
        }
        let column = |index: usize| Value {
            name: COLUMNS[index],
            text: values[index].and_then(|v| std::str::from_utf8(v).ok()),
        };
        Ok(Message::Row(OutboxRow {
            position: column(0).parse()?,
            id: column(1).read(|text| Uuid::try_parse(text).ok())?,
            aggregate_type: column(2).owned()?,
            event_key: column(3).owned()?,
            event_type: column(4).owned()?,
            tenant_id: column(5).owned()?,
            payload: column(6).owned()?,
            schema_version: column(7).parse()?,
            traceparent: column(8).owned()?,
            occurred_at: column(9).read(timestamp)?,
        }))
    }
}

/// The text of a column.
struct Value<'a> {
    name: &'static str,
    text: Option<&'a str>,
}

impl<'a> Value<'a> {
    fn read<T>(self, read: impl FnOnce(&'a str) -> Option<T>) -> Result<T, DecodeError> {
        let text = self.text.ok_or(DecodeError::NoValue(self.name))?;
        read(text).ok_or(DecodeError::Unreadable(self.name))
    }

    fn owned(self) -> Result<String, DecodeError> {
        self.read(|text| Some(text.to_owned()))
    }

    fn parse<T: std::str::FromStr>(self) -> Result<T, DecodeError> {
        self.read(|text| text.parse().ok())
    }
}

/// A timestamp in the output of `datestyle = ISO`: `2026-01-02 03:04:05[.678901]`.
fn timestamp(text: &str) -> Option<NaiveDateTime> {
    let number = |from: usize, to: usize| -> Option<u32> {
        let digits = text.as_bytes().get(from..to)?;
        digits.iter().try_fold(0, |n, d| d.is_ascii_digit().then(|| n * 10 + u32::from(d - b'0')))
    };
    let separators = [(4, b'-'), (7, b'-'), (10, b' '), (13, b':'), (16, b':')];
    if separators.iter().any(|(at, separator)| text.as_bytes().get(*at) != Some(separator)) {
        return None;
    }
    let micros = match text.len() {
        19 => 0,
        21..=26 if text.as_bytes()[19] == b'.' => {
            // PostgreSQL leaves out trailing zeros.
            let digits = text.len() - 20;
            number(20, text.len())? * 10_u32.pow(6 - u32::try_from(digits).ok()?)
        }
        _ => return None,
    };
    let year = i32::try_from(number(0, 4)?).ok()?;
    NaiveDate::from_ymd_opt(year, number(5, 7)?, number(8, 10)?)?.and_hms_micro_opt(
        number(11, 13)?,
        number(14, 16)?,
        number(17, 19)?,
        micros,
    )
}

/// What is left of a message.
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn take(&mut self, length: usize, what: &'static str) -> Result<&'a [u8], DecodeError> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(DecodeError::Truncated(what))?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], DecodeError> {
        let (taken, rest) = self.0.split_first_chunk().ok_or(DecodeError::Truncated(what))?;
        self.0 = rest;
        Ok(*taken)
    }

    fn byte(&mut self, what: &'static str) -> Result<u8, DecodeError> {
        self.array(what).map(|[byte]| byte)
    }

    fn count(&mut self, what: &'static str) -> Result<usize, DecodeError> {
        self.array(what).map(|count| usize::from(u16::from_be_bytes(count)))
    }

    /// Text up to its NUL.
    fn text(&mut self, what: &'static str) -> Result<&'a [u8], DecodeError> {
        let end = self.0.iter().position(|b| *b == 0).ok_or(DecodeError::Truncated(what))?;
        let text = self.take(end, what)?;
        self.byte(what)?;
        Ok(text)
    }
}

#[cfg(test)]
mod tests;
