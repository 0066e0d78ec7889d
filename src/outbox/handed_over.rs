//! What the log was given, as the publisher's cursor tells: for a range that the log has lost.

use sqlx::PgConnection;
use uuid::Uuid;

use super::OutboxRow;
use crate::event::AggregateType;

/// A row that the log was given.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct HandedOver {
    pub position: i64,
    pub id: Uuid,
    pub event_key: String,
}

/// The rows of an aggregate type that the log was given, after a position and in its order. Rows up to the floor were
/// handled in another space of transaction ids.
pub async fn handed_over(
    conn: &mut PgConnection,
    aggregate: AggregateType,
    after: i64,
    limit: i64,
) -> Result<Vec<HandedOver>, sqlx::Error> {
    sqlx::query_as(
        "select o.position, o.id, o.event_key from event_outbox o, publisher_cursor c \
         where c.name = 'publisher' and o.aggregate_type = $1 and o.position > $2 \
         and (o.position <= c.floor_position or pg_visible_in_snapshot(o.xid, c.published) \
           or c.reading is not null and o.position <= c.last_position and pg_visible_in_snapshot(o.xid, c.reading)) \
         order by o.position limit $3",
    )
    .bind(aggregate.as_str())
    .bind(after)
    .bind(limit)
    .fetch_all(conn)
    .await
}

/// The rows at these positions, in their order.
pub async fn rows_at(conn: &mut PgConnection, positions: &[i64]) -> Result<Vec<OutboxRow>, sqlx::Error> {
    sqlx::query_as(
        "select position, id, aggregate_type, event_key, event_type, tenant_id, payload::text as payload, \
         schema_version, traceparent, occurred_at from event_outbox where position = any ($1) order by position",
    )
    .bind(positions)
    .fetch_all(conn)
    .await
}
