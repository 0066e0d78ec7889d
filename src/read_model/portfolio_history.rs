//! Owns what GET /api/portfolio/history shows: a user's portfolio as it was.
//! Promises of each hour the last recalculation, and a bound on what is kept.
//! Called by the API; [`retention`] by the running roles.

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::{Map, Value};
use sqlx::types::Json;

use crate::db::TenantTx;
use crate::economics::age::STALE_AFTER;
use crate::identifier::UserId;
use crate::partitions::Deletion;

/// The figures with what is to be known of their age at a moment.
macro_rules! figures_at {
    ($moment:literal, $stale_after:literal) => {
        concat!(
            "figures || case when (figures ->> 'as_of')::timestamptz < ",
            $moment,
            " - ",
            $stale_after,
            "::interval then jsonb_build_object('warnings', figures -> 'warnings' || '[\"snapshot-stale\"]') else '{}' end"
        )
    };
}

/// The portfolio of a user as it was at a moment: the newest recalculation that is kept from then or before. Nothing where
/// there is none.
pub async fn as_of(
    tx: &mut TenantTx,
    user: &UserId,
    at: DateTime<Utc>,
) -> Result<Option<Value>, sqlx::Error> {
    sqlx::query_scalar(concat!(
        "select ",
        figures_at!("$2", "$3"),
        " from portfolio_history \
             where user_id = $1 and hour <= $2 and computed_at <= $2 order by hour desc limit 1",
    ))
    .bind(user)
    .bind(at)
    .bind(STALE_AFTER)
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
    sqlx::query_as(concat!(
        "select hour, ",
        figures_at!("computed_at", "$5"),
        " as figures from portfolio_history \
             where user_id = $1 and hour >= $2 and hour < $3 order by hour desc limit $4",
    ))
    .bind(user)
    .bind(from)
    .bind(to)
    .bind(limit)
    .bind(STALE_AFTER)
    .fetch_all(tx.conn())
    .await
}

/// What is kept of the history.
pub fn retention(days: u32) -> Deletion {
    Deletion {
        statement: "delete from portfolio_history where ctid = any (array( \
                    select ctid from portfolio_history where hour < $1 limit $2))",
        days,
    }
}
