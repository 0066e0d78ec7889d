//! The deliveries of an endpoint as its tenant sees them: looked at, and asked for again.

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::json;
use uuid::Uuid;

use super::broken;
use crate::db::TenantTx;
use crate::domain::{Caller, CommandError, audit};

/// What the list is filtered by.
pub const DELIVERY_STATES: &[&str] = &["pending", "delivered", "failed"];

/// The delivery of one event.
#[derive(Debug, Clone, Serialize, sqlx::FromRow)]
pub struct Delivery {
    #[sqlx(rename = "id")]
    pub delivery_id: Uuid,
    /// The event, and the header `webhook-id`.
    pub event_id: Uuid,
    #[sqlx(rename = "event_kind")]
    pub kind: String,
    pub state: String,
    /// Attempts that began.
    pub attempts: i32,
    /// When it is tried next, while it is pending.
    pub next_attempt_at: Option<DateTime<Utc>>,
    pub last_attempt_at: Option<DateTime<Utc>>,
    /// The status of the last answer.
    pub last_status: Option<i32>,
    /// Why the last attempt failed.
    pub last_error: Option<String>,
    pub delivered_at: Option<DateTime<Utc>>,
    pub created_at: DateTime<Utc>,
}

/// Up to `limit` deliveries of an endpoint, those of the newest events first, behind the event `after`.
pub async fn deliveries(
    tx: &mut TenantTx,
    endpoint: Uuid,
    state: Option<&str>,
    after: Option<Uuid>,
    limit: i64,
) -> Result<Vec<Delivery>, sqlx::Error> {
    sqlx::query_as(
        "select id, event_id, event_kind, state, attempts, last_attempt_at, last_status, last_error, delivered_at, \
         created_at, case when state = 'pending' then next_attempt_at end as next_attempt_at \
         from webhook_delivery where endpoint_id = $1 and ($2::text is null or state = $2) \
         and ($3::uuid is null or event_id < $3) order by event_id desc limit $4",
    )
    .bind(endpoint)
    .bind(state)
    .bind(after)
    .bind(limit)
    .fetch_all(tx.conn())
    .await
}

/// Has a delivery that ended made again, from the first attempt; returns its event.
pub async fn redeliver(tx: &mut TenantTx, caller: Caller<'_>, id: Uuid) -> Result<Uuid, CommandError> {
    let of: Option<Uuid> = sqlx::query_scalar("select endpoint_id from webhook_delivery where id = $1")
        .bind(id)
        .fetch_optional(tx.conn())
        .await?;
    let endpoint = of.ok_or(CommandError::NotFound)?;
    let enabled: Option<bool> =
        sqlx::query_scalar("select enabled from webhook_endpoint where id = $1 for share")
            .bind(endpoint)
            .fetch_optional(tx.conn())
            .await?;
    if !enabled.ok_or(CommandError::NotFound)? {
        return Err(broken("webhook-is-disabled", "enable the webhook first".to_owned()));
    }
    let (event_id, state): (Uuid, String) =
        sqlx::query_as("select event_id, state from webhook_delivery where id = $1 for no key update")
            .bind(id)
            .fetch_one(tx.conn())
            .await?;
    if state == "pending" {
        return Err(broken(
            "delivery-is-pending",
            "it is under way, or waits for its next attempt".to_owned(),
        ));
    }
    sqlx::query(
        "update webhook_delivery set state = 'pending', attempts = 0, next_attempt_at = now(), last_error = null \
         where id = $1",
    )
    .bind(id)
    .execute(tx.conn())
    .await?;
    let detail = json!({"webhook_id": endpoint, "delivery_id": id});
    audit::record(tx, caller, "crm.webhook_redelivery", &endpoint.into(), event_id, &detail).await?;
    Ok(event_id)
}

/// What waits for an endpoint that is switched off or on is not sent any more.
pub(super) async fn give_up(tx: &mut TenantTx, endpoint: Uuid) -> Result<(), sqlx::Error> {
    sqlx::query(
        "update webhook_delivery set state = 'failed', last_error = 'the webhook was disabled' \
         where endpoint_id = $1 and state = 'pending'",
    )
    .bind(endpoint)
    .execute(tx.conn())
    .await
    .map(drop)
}
