//! Owns the outbox: how an event is appended, read back in order, and kept.
//! Promises that an event exists exactly if its transaction committed, and that per aggregate a later event has a
//! larger position.
//! Called by the domain and the projections (append), the publisher (read), the running roles (retention), the
//! consumer (what the log lost) and the operator (rebase).

use chrono::{DateTime, Utc};
use serde_json::{Value, json};
use sqlx::PgConnection;
use uuid::{NoContext, Timestamp, Uuid};

use crate::db::Tenanted;
use crate::event::{self, AggregateType, UnknownPrefix};
use crate::identifier::{EntityId, TenantId, UserId};

mod cursor;
mod handed_over;
mod history;
mod progress;
mod reader;
mod rebase;
mod retention;
mod standby;
pub mod stuck;
pub mod wal;

pub use cursor::{Cursor, Leadership, LeadershipError, OBSERVER};
pub use handed_over::{HandedOver, handed_over, rows_at};
pub use history::{History, HistoryError};
pub use progress::{MOST_COUNTED, Progress, progress};
pub use reader::{OutboxRow, Page, READER_SETTINGS, Reader, STATEMENTS};
pub use rebase::{RebaseError, Rebased, rebase};
pub use retention::{Kept, Outcome, Pass, Retention};
pub use standby::Standby;

/// An event about to be appended. Its tenant is the transaction's.
#[derive(Debug)]
pub struct NewEvent<'a> {
    pub kind: &'a str,
    /// The owner the event is about.
    pub user_id: &'a UserId,
    /// The aggregate: what order is promised for.
    pub entity_id: EntityId,
    pub data: Value,
    /// The request that caused it, for tracing.
    pub correlation_id: Option<&'a str>,
    /// The event that caused it.
    pub causation_id: Option<Uuid>,
    /// W3C trace context, empty when there is none.
    pub traceparent: &'a str,
    /// Unique per tenant, if given: the second append with it fails the transaction.
    pub idempotency_key: Option<&'a str>,
}

/// Why an event was not appended; the transaction must be rolled back.
#[derive(Debug, thiserror::Error)]
pub enum AppendError {
    /// The kind routes nowhere.
    #[error(transparent)]
    Kind(#[from] UnknownPrefix),
    /// An event with this idempotency key exists.
    #[error("an event with this idempotency key exists")]
    Duplicate,
    /// With synchronous_commit off a crash could leave an event in the log whose state is gone.
    #[error("synchronous_commit is off: turn it on for the database or the login of DATABASE_URL")]
    AsynchronousCommit,
    /// The statement failed.
    #[error(transparent)]
    Sql(#[from] sqlx::Error),
}

/// Appends an event to the caller's transaction and returns its id.
///
/// The position is drawn after the lock of the aggregate, which is held to the end of the
/// transaction: this is where the promise of order per aggregate is kept.
pub async fn append<T: Tenanted>(tx: &mut T, new: NewEvent<'_>) -> Result<Uuid, AppendError> {
    let aggregate_type = AggregateType::of_kind(new.kind)?;
    let tenant = tx.tenant().clone();
    let event_id = new_id(tx.now());
    if let Some(key) = new.idempotency_key {
        reserve(tx.conn(), tenant.as_str(), key, event_id).await?;
    }
    let payload = payload(&tenant, event_id, &new);
    let lock = format!("{tenant}:{}:{}", aggregate_type.as_str(), new.entity_id);
    // `offset 0` keeps the lock below the projection that draws the position.
    let inserted = sqlx::query(
        "insert into event_outbox (id, aggregate_type, aggregate_id, event_key, event_type, tenant_id, user_id, \
         payload, schema_version, traceparent, idempotency_key) \
         select $1, $2, $3, $4, $5, $6, $7, $8 || jsonb_build_object('occurred_at', \
           to_char(statement_timestamp() at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')), $9, $10, $11 \
         from (select pg_advisory_xact_lock(hashtextextended($12, 0)) offset 0) locked \
         where current_setting('synchronous_commit') <> 'off'",
    )
    .bind(event_id)
    .bind(aggregate_type.as_str())
    .bind(new.entity_id.as_str())
    .bind(event::key(new.kind, &tenant, new.user_id))
    .bind(new.kind)
    .bind(tenant.as_str())
    .bind(new.user_id.as_str())
    .bind(payload)
    .bind(event::VERSION)
    .bind(new.traceparent)
    .bind(new.idempotency_key)
    .bind(lock)
    .execute(tx.conn())
    .await?
    .rows_affected();
    if inserted == 0 {
        return Err(AppendError::AsynchronousCommit);
    }
    tx.appended();
    Ok(event_id)
}

/// Appends events of aggregates whose rows the caller has locked, in their order and in one statement: what a consumer
/// group tells others.
///
/// A batch may open thousands of anomalies: a lock of the server's lock table for each, as [`append`] takes, would fill it.
/// The rows that change hold the promise of order instead. Idempotency keys are for commands: none is taken here.
pub async fn append_locked<T: Tenanted>(tx: &mut T, events: &[NewEvent<'_>]) -> Result<(), AppendError> {
    if events.is_empty() {
        return Ok(());
    }
    let (tenant, now) = (tx.tenant().clone(), tx.now());
    let mut rows = Vec::with_capacity(events.len());
    for new in events {
        let event_id = new_id(now);
        rows.push(json!({
            "id": event_id,
            "aggregate_type": AggregateType::of_kind(new.kind)?.as_str(),
            "aggregate_id": new.entity_id,
            "event_key": event::key(new.kind, &tenant, new.user_id),
            "event_type": new.kind,
            "user_id": new.user_id,
            "payload": payload(&tenant, event_id, new),
            "traceparent": new.traceparent,
        }));
    }
    let inserted = sqlx::query(
        "insert into event_outbox (id, aggregate_type, aggregate_id, event_key, event_type, tenant_id, user_id, \
         payload, schema_version, traceparent) \
         select e.id, e.aggregate_type, e.aggregate_id, e.event_key, e.event_type, $1, e.user_id, \
           e.payload || jsonb_build_object('occurred_at', \
           to_char(statement_timestamp() at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')), $3, e.traceparent \
         from rows from (jsonb_to_recordset($2) as (id uuid, aggregate_type text, aggregate_id text, event_key text, \
           event_type text, user_id text, payload jsonb, traceparent text)) with ordinality \
           e (id, aggregate_type, aggregate_id, event_key, event_type, user_id, payload, traceparent, n) \
         where current_setting('synchronous_commit') <> 'off' order by e.n",
    )
    .bind(tenant.as_str())
    .bind(Value::Array(rows))
    .bind(event::VERSION)
    .execute(tx.conn())
    .await?
    .rows_affected();
    if inserted == 0 {
        return Err(AppendError::AsynchronousCommit);
    }
    tx.appended();
    Ok(())
}

/// The envelope, but for the time, which the statement adds.
fn payload(tenant: &TenantId, event_id: Uuid, new: &NewEvent<'_>) -> Value {
    json!({
        "event_id": event_id,
        "kind": new.kind,
        "version": event::VERSION,
        "tenant_id": tenant,
        "user_id": new.user_id,
        "entity_id": new.entity_id,
        "correlation_id": new.correlation_id,
        "causation_id": new.causation_id,
        "data": new.data,
    })
}

/// An id of this moment by the database's clock: the inbox is partitioned by what an id says, and days of it are dropped
/// by that clock.
fn new_id(now: DateTime<Utc>) -> Uuid {
    let seconds = u64::try_from(now.timestamp()).unwrap_or_default();
    Uuid::new_v7(Timestamp::from_unix(NoContext, seconds, now.timestamp_subsec_nanos()))
}

async fn reserve(
    conn: &mut PgConnection,
    tenant: &str,
    key: &str,
    event_id: Uuid,
) -> Result<(), AppendError> {
    let reserved = sqlx::query(
        "insert into event_idempotency (tenant_id, idempotency_key, event_id) values ($1, $2, $3) \
         on conflict do nothing",
    )
    .bind(tenant)
    .bind(key)
    .bind(event_id)
    .execute(conn)
    .await?
    .rows_affected();
    if reserved == 0 { Err(AppendError::Duplicate) } else { Ok(()) }
}
