//! Owns what GET /api/intelligence/anomalies shows: what the checks found wrong with miners.
//! Promises the anomalies of the newest event that the group [`GROUP`] has applied, the newest opened first.
//! Called by the API; [`retention`] by the running roles.

use chrono::{DateTime, Utc};
use rust_decimal::Decimal;
use serde::Serialize;
use serde_json::Value;
use sqlx::AssertSqlSafe;
use uuid::Uuid;

use crate::db::TenantTx;
use crate::event::kind;
use crate::identifier::UserId;
use crate::partitions::Deletion;

/// The consumer group that keeps this read model.
pub const GROUP: &str = "intel-group";

/// The kinds that change this read model.
pub const KINDS: &[&str] = &[kind::MINER_TELEMETRY];

/// A miner found failing by one check. Units of `measured` and `expected` are the check's: TH/s (hashrate, peers, drift), W
/// (power), degrees Celsius (heat), seconds of silence (offline); of one machine where the miner stands for several.
#[derive(Debug, Clone, PartialEq, Serialize, sqlx::FromRow)]
pub struct Anomaly {
    #[sqlx(rename = "id")]
    pub anomaly_id: Uuid,
    /// The owner of the miner.
    pub user_id: UserId,
    pub miner_id: Uuid,
    /// hashrate, peers, drift, power, heat or offline.
    pub kind: String,
    /// The class that the check has for it: low, medium, high, zero of the hashrate; warn, critical of the heat.
    pub level: Option<String>,
    /// open or resolved.
    pub state: String,
    /// low, medium, high or critical by the loss; null without a price.
    pub severity: Option<String>,
    pub opened_at: DateTime<Utc>,
    /// End of the newest window in which the check found it.
    pub last_seen_at: DateTime<Utc>,
    pub resolved_at: Option<DateTime<Utc>>,
    /// recovered, or out-of-service.
    pub resolution: Option<String>,
    pub measured: Decimal,
    pub expected: Option<Decimal>,
    /// A share of what is expected (hashrate, power), z (peers, drift), or null.
    pub score: Option<f64>,
    /// What the missing hashrate of the whole miner would earn, USD a day.
    pub lost_usd_day: Option<Decimal>,
    /// The network snapshot behind the loss.
    pub snapshot_id: Option<Uuid>,
    /// When that was observed.
    pub price_as_of: Option<DateTime<Utc>>,
    /// no-snapshot: there is no price; snapshot-stale: it was older than 30 minutes.
    pub warnings: Value,
}

/// Which anomalies a list shows.
#[derive(Debug, Clone, Copy, Default)]
pub struct Filter<'a> {
    pub user: Option<&'a UserId>,
    pub state: Option<&'a str>,
    pub severity: Option<&'a str>,
    pub miner_id: Option<Uuid>,
}

/// Up to `limit` anomalies, the newest first, behind the anomaly `after`.
pub async fn list(
    tx: &mut TenantTx,
    filter: Filter<'_>,
    after: Option<Uuid>,
    limit: i64,
) -> Result<Vec<Anomaly>, sqlx::Error> {
    // Few of those that ever were are open, and an index knows which.
    let of_state = match filter.state {
        Some("open") => "state = 'open' and $2::text is not null",
        _ => "($2::text is null or state = $2)",
    };
    sqlx::query_as(AssertSqlSafe(format!(
        "select * from anomaly where ($1::text is null or user_id = $1) and {of_state} \
         and ($3::text is null or severity = $3) and ($4::uuid is null or miner_id = $4) \
         and ($5::uuid is null or id < $5) order by id desc limit $6",
    )))
    .bind(filter.user)
    .bind(filter.state)
    .bind(filter.severity)
    .bind(filter.miner_id)
    .bind(after)
    .bind(limit)
    .fetch_all(tx.conn())
    .await
}

/// What is kept of those that are over.
pub fn retention(days: u32) -> Deletion {
    Deletion {
        statement: "delete from anomaly where ctid = any (array( \
                    select ctid from anomaly where state = 'resolved' and resolved_at < $1 limit $2))",
        days,
    }
}
