//! Owns the event that a strategy's signal changed.
//! Promises the event in the transaction that stores the signal.
//! Called by the group of the treasury, which computes signals.

use serde_json::json;
use uuid::Uuid;

use crate::db::Tenanted;
use crate::domain::{Caller, CommandError, follow_up};
use crate::economics::treasury::Limit;
use crate::event::kind;
use crate::identifier::UserId;

/// Who the audit log says it was.
const ACTOR: &str = "strategies";

/// What is told of a signal.
#[derive(Debug, Clone, Copy)]
pub struct Told<'a> {
    pub strategy: &'a str,
    pub sat: i64,
    pub wanted_sat: i64,
    pub reason: &'a str,
    pub limit: Option<Limit>,
}

/// Emits `treasury.signal`, which `cause` led to if an event did; returns the event's id.
pub async fn tell<T: Tenanted>(
    tx: &mut T,
    user: &UserId,
    cause: Option<Uuid>,
    told: Told<'_>,
) -> Result<Uuid, CommandError> {
    let actor = ACTOR.parse::<UserId>().map_err(|error| sqlx::Error::Encode(Box::new(error)))?;
    let caller = Caller { actor: &actor, request_id: "", traceparent: "", now: tx.now() };
    let data = json!({
        "strategy": told.strategy, "sat": told.sat, "wanted_sat": told.wanted_sat, "reason": told.reason,
        "limit": told.limit,
    });
    follow_up(tx, caller, cause, (kind::TREASURY_SIGNAL, user, user.into()), data).await
}
