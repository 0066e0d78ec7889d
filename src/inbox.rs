//! Owns the inbox: which events a group has seen, and with what outcome.
//! Promises that an event is admitted once per group, however often it is delivered.
//! Called by the consumer, inside the transaction that applies the event.

use sqlx::PgConnection;
use uuid::Uuid;

use crate::event::Event;

/// What became of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Its effect is committed.
    Applied,
    /// It waits in the retry queue.
    Parked,
    /// It is a dead letter.
    Dead,
    /// It was a dead letter, and somebody discarded it.
    Discarded,
}

impl Outcome {
    /// As the table spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Applied => "applied",
            Self::Parked => "parked",
            Self::Dead => "dead",
            Self::Discarded => "discarded",
        }
    }
}

/// Writes the events that the group has not seen, each with its outcome, and returns their ids.
/// Redelivery never changes an outcome.
pub async fn admit(
    conn: &mut PgConnection,
    group: &str,
    events: &[(&Event, Outcome)],
) -> Result<Vec<Uuid>, sqlx::Error> {
    if events.is_empty() {
        return Ok(Vec::new());
    }
    sqlx::query_scalar(
        "insert into event_inbox (consumer_name, event_id, tenant_id, event_kind, outcome) \
         select $1, e.event_id, e.tenant_id, e.event_kind, e.outcome \
         from unnest($2::uuid[], $3::text[], $4::text[], $5::text[]) e(event_id, tenant_id, event_kind, outcome) \
         on conflict do nothing returning event_id",
    )
    .bind(group)
    .bind(events.iter().map(|(e, _)| e.event_id).collect::<Vec<_>>())
    .bind(events.iter().map(|(e, _)| e.tenant_id.as_str()).collect::<Vec<_>>())
    .bind(events.iter().map(|(e, _)| e.kind.as_str()).collect::<Vec<_>>())
    .bind(events.iter().map(|(_, outcome)| outcome.as_str()).collect::<Vec<_>>())
    .fetch_all(conn)
    .await
}

/// Those of these events that the group has not seen.
pub async fn unseen(conn: &mut PgConnection, group: &str, ids: &[Uuid]) -> Result<Vec<Uuid>, sqlx::Error> {
    sqlx::query_scalar(
        "select id from unnest($2::uuid[]) id \
         where not exists (select from event_inbox i where i.consumer_name = $1 and i.event_id = id) \
         and not exists (select from event_dlq d where d.consumer_name = $1 and d.event_id = id)",
    )
    .bind(group)
    .bind(ids)
    .fetch_all(conn)
    .await
}

/// Changes the outcome of an event that has `from`; `false` when it has another.
pub async fn settle(
    conn: &mut PgConnection,
    group: &str,
    event_id: Uuid,
    from: Outcome,
    to: Outcome,
) -> Result<bool, sqlx::Error> {
    let changed = sqlx::query(
        "update event_inbox set outcome = $4, processed_at = statement_timestamp() \
         where consumer_name = $1 and event_id = $2 and outcome = $3",
    )
    .bind(group)
    .bind(event_id)
    .bind(from.as_str())
    .bind(to.as_str())
    .execute(conn)
    .await?
    .rows_affected();
    Ok(changed == 1)
}

/// Lets an event in again, to the retry queue, because somebody asked for it: one that was given up, or never got in
/// since its bytes could not be read. `false`: it was applied, or waits in the queue already.
pub async fn readmit(conn: &mut PgConnection, group: &str, event: &Event) -> Result<bool, sqlx::Error> {
    let admitted = sqlx::query(
        "insert into event_inbox as i (consumer_name, event_id, tenant_id, event_kind, outcome) \
         values ($1, $2, $3, $4, 'parked') on conflict (consumer_name, event_id) \
         do update set outcome = 'parked', processed_at = statement_timestamp() \
         where i.outcome in ('dead', 'discarded')",
    )
    .bind(group)
    .bind(event.event_id)
    .bind(event.tenant_id.as_str())
    .bind(&event.kind)
    .execute(conn)
    .await?
    .rows_affected();
    Ok(admitted == 1)
}
