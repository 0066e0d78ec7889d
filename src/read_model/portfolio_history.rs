//! Owns what GET /api/portfolio/history shows: a user's portfolio as it was.
//! Promises of each hour the last recalculation, and a bound on what is kept.
//! Called by the API; [`Retention`] by the running roles.

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::{Map, Value};
use sqlx::types::Json;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::db::{Db, TenantTx};
use crate::identifier::UserId;
use crate::partitions::{Upkeep, days_ago, delete_before};

/// The portfolio of a user as it was at a moment: the newest recalculation that is kept from then or before. Nothing where
/// there is none.
pub async fn as_of(
    tx: &mut TenantTx,
    user: &UserId,
    at: DateTime<Utc>,
) -> Result<Option<Value>, sqlx::Error> {
    sqlx::query_scalar(
        "select figures from portfolio_history where user_id = $1 and hour <= $2 and computed_at <= $2 \
         order by hour desc limit 1",
    )
    .bind(user)
    .bind(at)
    .fetch_optional(tx.conn())
    .await
}

/// An hour and the figures of its last recalculation.
#[derive(Debug, Serialize, sqlx::FromRow)]
pub struct Hour {
    pub hour: DateTime<Utc>,
    #[serde(flatten)]
    pub figures: Json<Map<String, Value>>,
}

/// Up to `limit` hours from one to before another, the newest first.
pub async fn hours(
    tx: &mut TenantTx,
    user: &UserId,
    (from, to): (DateTime<Utc>, DateTime<Utc>),
    limit: i64,
) -> Result<Vec<Hour>, sqlx::Error> {
    sqlx::query_as(
        "select hour, figures from portfolio_history where user_id = $1 and hour >= $2 and hour < $3 \
         order by hour desc limit $4",
    )
    .bind(user)
    .bind(from)
    .bind(to)
    .bind(limit)
    .fetch_all(tx.conn())
    .await
}

/// How long the history is kept.
#[derive(Debug, Clone)]
pub struct Retention {
    pub days: u32,
}

impl Retention {
    /// As configured.
    pub fn of(config: &Config) -> Self {
        Self { days: config.portfolio_history.retention_days }
    }
}

#[async_trait]
impl Upkeep for Retention {
    async fn make_ahead(&self, _: &Db) -> Result<usize, sqlx::Error> {
        Ok(0)
    }

    async fn remove_old(&self, db: &Db, stopping: &CancellationToken) -> Result<bool, sqlx::Error> {
        let before = days_ago(db, self.days).await?.and_utc();
        let old = "delete from portfolio_history where ctid = any (array( \
                   select ctid from portfolio_history where hour < $1 limit $2))";
        delete_before(db, old, before, stopping).await?;
        Ok(false)
    }
}
