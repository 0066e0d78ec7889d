//! What the sweep for silent miners reads and writes: who may be silent, what it saw, anomalies whose miner is gone.

use chrono::{DateTime, Utc};
use rust_decimal::Decimal;
use serde::Serialize;
use sqlx::PgConnection;
use sqlx::types::Json;
use uuid::Uuid;

use crate::economics::anomaly::Watch;
use crate::identifier::UserId;
use crate::read_model::anomaly::Anomaly;
use crate::read_model::curtailed::Candidate;

/// A miner that may have fallen silent, or did before.
#[derive(Debug, sqlx::FromRow)]
pub struct QuietRow {
    pub id: Uuid,
    pub owner_id: UserId,
    pub model: String,
    pub hashrate_ths: Decimal,
    pub quantity: i32,
    pub status: String,
    pub status_changed_at: Option<DateTime<Utc>>,
    pub silence: Option<Json<Watch>>,
    pub last_point_at: DateTime<Utc>,
}

impl QuietRow {
    /// As one that something may hold off.
    pub fn candidate(&self) -> Candidate<'_> {
        Candidate { id: self.id, owner: &self.owner_id, model: &self.model, hashrate_ths: self.hashrate_ths }
    }
}

/// Up to `limit` miners to look at in this minute, kept from other sweeps until the end of the transaction: whose newest
/// point known to the group is from before `stale_before`, and who have a silence to remember.
pub async fn quiet(
    conn: &mut PgConnection,
    minute: DateTime<Utc>,
    stale_before: DateTime<Utc>,
    limit: i64,
) -> Result<Vec<QuietRow>, sqlx::Error> {
    // The group may be behind: the points themselves say when the last one came.
    sqlx::query_as(
        "select m.id, m.owner_id, m.model, m.hashrate_ths, m.quantity, m.status, m.status_changed_at, d.silence, \
           coalesce((select max(at) from miner_telemetry t where t.miner_id = d.miner_id and t.at > d.last_point_at), \
             d.last_point_at) as last_point_at \
         from miner_detector d join miners m on m.tenant_id = d.tenant_id and m.id = d.miner_id \
         where m.removed_at is null and d.swept_to < $1 and (d.last_point_at < $2 or d.silence is not null) \
         order by d.miner_id limit $3 for no key update of d skip locked",
    )
    .bind(minute)
    .bind(stale_before)
    .bind(limit)
    .fetch_all(conn)
    .await
}

/// The open anomalies of silence of miners, kept from others until the end of the transaction.
pub async fn silent(conn: &mut PgConnection, miners: &[Uuid]) -> Result<Vec<Anomaly>, sqlx::Error> {
    sqlx::query_as(
        "select * from anomaly where miner_id = any($1) and state = 'open' and kind = 'offline' \
         order by id for no key update",
    )
    .bind(miners)
    .fetch_all(conn)
    .await
}

/// What the sweep remembers of a miner: nothing once all is well.
#[derive(Debug, Serialize)]
pub struct Swept {
    pub miner_id: Uuid,
    pub silence: Option<Watch>,
}

/// Stores what the sweep saw in this minute.
pub async fn swept(
    conn: &mut PgConnection,
    minute: DateTime<Utc>,
    swept: &[Swept],
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "update miner_detector d set silence = s.silence, swept_to = $1 \
         from jsonb_to_recordset($2) as s (miner_id uuid, silence jsonb) where d.miner_id = s.miner_id",
    )
    .bind(minute)
    .bind(Json(swept))
    .execute(conn)
    .await
    .map(drop)
}

/// Resolves up to `limit` open anomalies of miners that were removed, are out of service or are another's now, and returns
/// them.
pub async fn retire(
    conn: &mut PgConnection,
    now: DateTime<Utc>,
    limit: i64,
) -> Result<Vec<Anomaly>, sqlx::Error> {
    sqlx::query_as(
        "update anomaly set state = 'resolved', resolved_at = $1, resolution = 'out-of-service' \
         where id in (select a.id from anomaly a where a.state = 'open' and not exists ( \
             select from miners m where m.tenant_id = a.tenant_id and m.id = a.miner_id and m.removed_at is null \
             and m.owner_id = a.user_id and m.status in ('online', 'offline', 'maintenance')) \
           order by a.id limit $2 for no key update skip locked) returning *",
    )
    .bind(now)
    .bind(limit)
    .fetch_all(conn)
    .await
}
