//! What was asked to be replayed, and what became of it.

use chrono::{DateTime, Utc};
use serde_json::Value;
use sqlx::PgConnection;
use uuid::Uuid;

use super::Cause;
use super::content::{headers_from_json, storable_text};
use crate::log::Record;

/// A letter that waits to be picked up, without its bytes.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct Requested {
    pub id: Uuid,
    pub requested_at: DateTime<Utc>,
    pub partition: i32,
    pub raw_key: Option<Vec<u8>>,
}

/// A letter with its record.
#[derive(Debug)]
pub struct Letter {
    pub id: Uuid,
    pub topic: String,
    pub offset: i64,
    pub record: Record,
}

/// What [`Letter`] is read from: topic, offset, key, value, headers, time of the record.
type LetterRow = (String, i64, Option<Vec<u8>>, Option<Vec<u8>>, Value, DateTime<Utc>);

fn letter(id: Uuid, (topic, offset, key, value, headers, timestamp): LetterRow) -> Letter {
    let record = Record { key, value, headers: headers_from_json(&headers), timestamp };
    Letter { id, topic, offset, record }
}

/// The letters of a group that wait to be picked up, of one topic or of all, in the order they were asked for; from
/// behind `after` on.
pub async fn requested(
    conn: &mut PgConnection,
    group: &str,
    topic: Option<&str>,
    after: Option<(DateTime<Utc>, Uuid)>,
    limit: i64,
) -> Result<Vec<Requested>, sqlx::Error> {
    let (after_time, after_id) = after.unzip();
    sqlx::query_as(
        "select id, requested_at, partition, raw_key from event_dlq \
         where consumer_name = $1 and requested_at is not null and ($2::text is null or topic = $2) \
         and ($3::timestamptz is null or (requested_at, id) > ($3, $4)) order by requested_at, id limit $5",
    )
    .bind(group)
    .bind(topic)
    .bind(after_time)
    .bind(after_id)
    .bind(limit)
    .fetch_all(conn)
    .await
}

/// Reads a letter that waits to be picked up, and leaves it waiting.
pub async fn load(conn: &mut PgConnection, id: Uuid) -> Result<Option<Letter>, sqlx::Error> {
    let row: Option<LetterRow> = sqlx::query_as(
        "select topic, log_offset, raw_key, raw_value, headers, coalesce(record_time, created_at) from event_dlq \
         where id = $1 and requested_at is not null",
    )
    .bind(id)
    .fetch_optional(conn)
    .await?;
    Ok(row.map(|row| letter(id, row)))
}

/// Picks a letter up: it is replayed by the transaction of this connection, and by nobody else.
pub async fn take(conn: &mut PgConnection, id: Uuid) -> Result<Option<Letter>, sqlx::Error> {
    let row: Option<LetterRow> = sqlx::query_as(
        "update event_dlq set requested_at = null where id = $1 and requested_at is not null \
         returning topic, log_offset, raw_key, raw_value, headers, coalesce(record_time, created_at)",
    )
    .bind(id)
    .fetch_optional(conn)
    .await?;
    Ok(row.map(|row| letter(id, row)))
}

/// The replay succeeded. A letter that is not being replayed stays as it is.
pub async fn resolved(conn: &mut PgConnection, id: Uuid) -> Result<(), sqlx::Error> {
    sqlx::query(
        "update event_dlq set status = 'resolved', resolved_at = statement_timestamp(), requested_at = null \
         where id = $1 and status = 'replaying'",
    )
    .bind(id)
    .execute(conn)
    .await
    .map(drop)
}

/// The replay failed: the same letter, dead again, with the attempts added to those before. A letter that is not being
/// replayed stays as it is.
pub async fn died_again(conn: &mut PgConnection, id: Uuid, cause: Cause<'_>) -> Result<(), sqlx::Error> {
    sqlx::query(
        "update event_dlq set status = 'dead', requested_at = null, error_class = $2, error_message = $3, \
         retry_count = retry_count + $4, last_failed_at = statement_timestamp() \
         where id = $1 and status = 'replaying'",
    )
    .bind(id)
    .bind(cause.class)
    .bind(storable_text(cause.message))
    .bind(cause.attempts)
    .execute(conn)
    .await
    .map(drop)
}
