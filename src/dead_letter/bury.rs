//! Storing a dead letter.

use sqlx::PgConnection;
use uuid::Uuid;

use super::content::{headers_json, storable_json, storable_text, storable_time};
use super::{Cause, Known, Place};
use crate::log::Record;

/// Stores a dead letter. One that exists for this record is left as it is.
pub async fn bury(
    conn: &mut PgConnection,
    group: &str,
    place: Place<'_>,
    record: &Record,
    known: Known<'_>,
    cause: Cause<'_>,
) -> Result<(), sqlx::Error> {
    // The id may be taken: by bytes that named this event and could not be read. Then the letter goes without; its
    // bytes tell the id as well.
    for event_id in [known.event_id, None] {
        if insert(conn, group, place, record, Known { event_id, ..known }, cause).await? {
            return Ok(());
        }
    }
    // The place is taken. By another record only if the topic was made anew, and then the older letter's offset means
    // nothing any more.
    if make_room(conn, group, place, record).await? {
        for event_id in [known.event_id, None] {
            if insert(conn, group, place, record, Known { event_id, ..known }, cause).await? {
                break;
            }
        }
    }
    Ok(())
}

/// `false`: the place or the event's id is taken.
async fn insert(
    conn: &mut PgConnection,
    group: &str,
    place: Place<'_>,
    record: &Record,
    known: Known<'_>,
    cause: Cause<'_>,
) -> Result<bool, sqlx::Error> {
    let stored: Option<Uuid> = sqlx::query_scalar(
        "insert into event_dlq (consumer_name, event_id, event_kind, tenant_id, user_id, topic, partition, \
         log_offset, payload, raw_key, raw_value, headers, record_time, error_class, error_message, retry_count, \
         first_failed_at, last_failed_at) values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, \
         $16, coalesce($17, statement_timestamp()), statement_timestamp()) on conflict do nothing returning id",
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
    .bind(storable_time(record.timestamp))
    .bind(cause.class)
    .bind(storable_text(cause.message))
    .bind(cause.attempts)
    .bind(cause.first_failed_at)
    .fetch_optional(conn)
    .await?;
    Ok(stored.is_some())
}

/// Gives the letter of another record at this place a negative offset, which no record has.
async fn make_room(
    conn: &mut PgConnection,
    group: &str,
    place: Place<'_>,
    record: &Record,
) -> Result<bool, sqlx::Error> {
    let moved = sqlx::query(
        "update event_dlq set log_offset = (select least(min(log_offset), 0) - 1 from event_dlq \
           where consumer_name = $1 and topic = $2 and partition = $3) \
         where consumer_name = $1 and topic = $2 and partition = $3 and log_offset = $4 \
         and (raw_key is distinct from $5 or raw_value is distinct from $6)",
    )
    .bind(group)
    .bind(place.topic)
    .bind(place.partition)
    .bind(place.offset)
    .bind(&record.key)
    .bind(&record.value)
    .execute(conn)
    .await?
    .rows_affected();
    Ok(moved == 1)
}
