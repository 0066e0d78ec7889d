//! Rows whose lane cannot take them now: kept behind the cursor, so that the other lanes flow.
//!
//! A lane is a partition of a topic, or a topic whose partitions are not known because it does not exist.

use chrono::NaiveDateTime;
use sqlx::PgConnection;

use super::OutboxRow;

/// The partition of a lane whose topic does not exist.
pub const UNKNOWN_PARTITION: i32 = -1;

/// A row by its place in the outbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RowPlace {
    pub position: i64,
    pub occurred_at: NaiveDateTime,
}

/// The lanes that have stuck rows.
pub async fn lanes(conn: &mut PgConnection) -> Result<Vec<(String, i32)>, sqlx::Error> {
    sqlx::query_as("select distinct topic, partition from outbox_stuck").fetch_all(conn).await
}

/// How many rows of topics are stuck.
pub async fn count(conn: &mut PgConnection, topics: &[String]) -> Result<i64, sqlx::Error> {
    sqlx::query_scalar("select count(*) from outbox_stuck where topic = any ($1)")
        .bind(topics)
        .fetch_one(conn)
        .await
}

/// Keeps rows of a lane. A row that is kept already stays where it is.
pub async fn keep(
    conn: &mut PgConnection,
    topic: &str,
    partition: i32,
    rows: &[RowPlace],
) -> Result<(), sqlx::Error> {
    let (positions, times): (Vec<i64>, Vec<NaiveDateTime>) =
        rows.iter().map(|row| (row.position, row.occurred_at)).unzip();
    sqlx::query(
        "insert into outbox_stuck (position, occurred_at, topic, partition) \
         select position, occurred_at, $3, $4 from unnest($1::bigint[], $2::timestamp[]) as r (position, occurred_at) \
         on conflict do nothing",
    )
    .bind(positions)
    .bind(times)
    .bind(topic)
    .bind(partition)
    .execute(conn)
    .await
    .map(drop)
}

/// The first rows of a lane in the order of position.
pub async fn first(
    conn: &mut PgConnection,
    topic: &str,
    partition: i32,
    limit: i64,
) -> Result<Vec<OutboxRow>, sqlx::Error> {
    sqlx::query_as(
        "select o.position, o.id, o.aggregate_type, o.event_key, o.event_type, o.tenant_id, \
         o.payload::text as payload, o.schema_version, o.traceparent, o.occurred_at \
         from (select position, occurred_at from outbox_stuck where topic = $1 and partition = $2 \
           order by position limit $3) s \
         join event_outbox o on o.position = s.position and o.occurred_at = s.occurred_at order by o.position",
    )
    .bind(topic)
    .bind(partition)
    .bind(limit)
    .fetch_all(conn)
    .await
}

/// Forgets rows: they are in the log, or dead letters.
pub async fn forget(conn: &mut PgConnection, positions: &[i64]) -> Result<(), sqlx::Error> {
    sqlx::query("delete from outbox_stuck where position = any ($1)")
        .bind(positions)
        .execute(conn)
        .await
        .map(drop)
}
