//! Owns what GET /api/ops/schedule shows: one row per user, the optimum of the user's fleet over the next 24 hours.
//! Promises the schedule of the newest event that the group [`GROUP`] has applied.
//! Called by the API.

use chrono::{DateTime, Utc};
use serde::Serialize;
use uuid::Uuid;

use super::optimum::Optimum;
use crate::db::TenantTx;
use crate::event::kind;
use crate::identifier::UserId;

pub use crate::read_model::anomaly::GROUP;

/// The name of this read model in locks.
pub const NAME: &str = "ops_schedule";

/// The kinds that change this read model.
pub const KINDS: &[&str] = &[
    kind::OPS_PRICE_RECEIVED,
    kind::OPS_SETTINGS_CHANGED,
    kind::NETWORK_SNAPSHOT,
    kind::MINER_ADDED,
    kind::MINER_UPDATED,
    kind::MINER_REMOVED,
    kind::MINER_DELETED,
    kind::MINER_STATUS_CHANGED,
    kind::MINER_BULK_IMPORTED,
    kind::MINER_SYNC_REQUESTED,
];

/// A user's schedule. Before the first event of a user with settings: nothing, version 0.
#[derive(Debug, Clone, Serialize, sqlx::FromRow)]
pub struct ScheduleView {
    pub user_id: UserId,
    #[serde(flatten)]
    #[sqlx(flatten)]
    pub optimum: Optimum,
    /// Grows with every computation.
    pub version: i64,
    pub computed_at: Option<DateTime<Utc>>,
    /// The event that caused the last computation.
    pub event_id: Option<Uuid>,
}

/// The schedule of a user of this tenant.
pub async fn get(tx: &mut TenantTx, user: &UserId) -> Result<ScheduleView, sqlx::Error> {
    let row = sqlx::query_as("select * from ops_schedule where user_id = $1")
        .bind(user)
        .fetch_optional(tx.conn())
        .await?;
    Ok(row.unwrap_or_else(|| ScheduleView {
        user_id: user.clone(),
        optimum: Optimum { warnings: sqlx::types::Json(vec!["no-market".to_owned()]), ..Optimum::default() },
        version: 0,
        computed_at: None,
        event_id: None,
    }))
}

/// The version that [`get`] would show.
pub async fn version(tx: &mut TenantTx, user: &UserId) -> Result<i64, sqlx::Error> {
    let version: Option<i64> = sqlx::query_scalar("select version from ops_schedule where user_id = $1")
        .bind(user)
        .fetch_optional(tx.conn())
        .await?;
    Ok(version.unwrap_or_default())
}

/// Whether every schedule that an applied event asked for is computed: none is left to the job.
pub async fn is_caught_up(tx: &mut TenantTx, user: &UserId) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar("select not exists (select from ops_schedule_due where user_id = $1)")
        .bind(user)
        .fetch_one(tx.conn())
        .await
}
