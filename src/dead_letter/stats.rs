//! How many letters there are, and pages of them for people.

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::Value;
use sqlx::PgConnection;
use uuid::Uuid;

use super::PUBLISHER;

/// Of a larger value a list shows only the size.
const MOST_LISTED_BYTES: i32 = 16 * 1024;

/// Letters by group, kind and status.
#[derive(Debug, Serialize)]
pub struct Stats {
    /// Those nobody has settled yet.
    pub open: i64,
    pub groups: Vec<Count>,
}

/// The letters of one group, kind and status.
#[derive(Debug, Serialize, sqlx::FromRow)]
pub struct Count {
    pub consumer_name: String,
    /// Null where the bytes tell none.
    pub event_kind: Option<String>,
    pub status: String,
    pub count: i64,
    /// When the first of them died.
    pub oldest: DateTime<Utc>,
    /// When the last of them died.
    pub newest: DateTime<Utc>,
    pub last_error: String,
}

/// Counts the letters that the connection may see.
pub async fn stats(conn: &mut PgConnection) -> Result<Stats, sqlx::Error> {
    let groups: Vec<Count> = sqlx::query_as(
        "select consumer_name, event_kind, status, count(*) as count, min(created_at) as oldest, \
         max(created_at) as newest, (array_agg(error_message order by last_failed_at desc, id))[1] as last_error \
         from event_dlq group by consumer_name, event_kind, status order by consumer_name, event_kind, status",
    )
    .fetch_all(conn)
    .await?;
    let is_open = |count: &&Count| matches!(count.status.as_str(), "dead" | "replaying");
    let open = groups.iter().filter(is_open).map(|count| count.count).sum();
    Ok(Stats { open, groups })
}

/// How many dead letters nobody has settled yet.
pub async fn open(conn: &mut PgConnection) -> Result<i64, sqlx::Error> {
    sqlx::query_scalar("select count(*) from event_dlq where status in ('dead', 'replaying')")
        .fetch_one(conn)
        .await
}

/// How many dead letters of each group nobody has settled yet, also where there are none.
pub async fn open_by_group(conn: &mut PgConnection) -> Result<Vec<(String, i64)>, sqlx::Error> {
    sqlx::query_as(
        "select g.name, (select count(*) from event_dlq d where d.consumer_name = g.name \
           and d.status in ('dead', 'replaying')) \
         from (select consumer_name from consumer_offset union select $1 \
           union select consumer_name from event_dlq where status in ('dead', 'replaying')) g(name) order by 1",
    )
    .bind(PUBLISHER)
    .fetch_all(conn)
    .await
}

/// A letter as a list shows it.
#[derive(Debug, Serialize, sqlx::FromRow)]
pub struct Listed {
    pub id: Uuid,
    pub consumer_name: String,
    pub event_id: Option<Uuid>,
    pub event_kind: Option<String>,
    pub user_id: Option<String>,
    pub topic: String,
    pub partition: i32,
    pub log_offset: i64,
    /// Null where the value is no JSON, or large.
    pub payload: Option<Value>,
    pub value_bytes: Option<i32>,
    pub error_class: String,
    pub error_message: String,
    pub retry_count: i32,
    pub first_failed_at: DateTime<Utc>,
    pub last_failed_at: DateTime<Utc>,
    pub created_at: DateTime<Utc>,
    pub status: String,
    pub resolved_at: Option<DateTime<Utc>>,
    pub discard_reason: Option<String>,
    /// Its place on events.dlq, once it is there.
    pub dlq_offset: Option<i64>,
}

/// What a list shows; everything, where nothing is said.
#[derive(Debug, Clone, Copy, Default)]
pub struct Shown<'a> {
    pub group: Option<&'a str>,
    pub kind: Option<&'a str>,
    pub status: Option<&'a str>,
    pub hours: Option<i32>,
    /// From behind this letter on.
    pub after: Option<Uuid>,
}

/// A page of the letters that the connection may see, the newest first.
pub async fn page(conn: &mut PgConnection, shown: Shown<'_>, limit: i64) -> Result<Vec<Listed>, sqlx::Error> {
    sqlx::query_as(
        "select id, consumer_name, event_id, event_kind, user_id, topic, partition, log_offset, \
         case when octet_length(raw_value) <= $7 then payload end as payload, octet_length(raw_value) as value_bytes, \
         error_class, error_message, retry_count, first_failed_at, last_failed_at, created_at, status, resolved_at, \
         discard_reason, dlq_offset from event_dlq \
         where ($1::text is null or consumer_name = $1) and ($2::text is null or event_kind = $2) \
         and ($3::text is null or status = $3) \
         and ($4::int is null or created_at >= now() - make_interval(hours => $4)) \
         and ($5::uuid is null or (created_at, id) < (select created_at, id from event_dlq where id = $5)) \
         order by created_at desc, id desc limit $6",
    )
    .bind(shown.group)
    .bind(shown.kind)
    .bind(shown.status)
    .bind(shown.hours)
    .bind(shown.after)
    .bind(limit)
    .bind(MOST_LISTED_BYTES)
    .fetch_all(conn)
    .await
}
