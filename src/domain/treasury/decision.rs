//! Owns the approval and the cancellation of a trade.
//! Promises that neither is done by whoever submitted it; the database refuses it as well.
//! Called by the API.

use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::account;
use super::trade::{Rule, Trade, TradeState, get};
use crate::db::TenantTx;
use crate::domain::change::broken;
use crate::domain::input::Names;
use crate::domain::{Caller, CommandError, Input, emit};
use crate::event::kind;

const REASON: Names = &["reason"];
const LONGEST_REASON: usize = 500;

/// What a second person decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// It executes when the group of the treasury hears of it; emits `treasury.trade_approved`.
    Approve,
    /// What is not filled is cancelled; emits `treasury.trade_cancelled`.
    Cancel,
}

/// Approves or cancels a trade.
pub async fn decide(
    tx: &mut TenantTx,
    caller: Caller<'_>,
    id: Uuid,
    decision: Decision,
    given: &Map<String, Value>,
) -> Result<(Trade, Uuid), CommandError> {
    let (to, kind) = match decision {
        Decision::Approve => (TradeState::Approved, kind::TREASURY_TRADE_APPROVED),
        Decision::Cancel => (TradeState::Cancelled, kind::TREASURY_TRADE_CANCELLED),
    };
    let mut input = Input::new(given);
    let reason = input.text(REASON, LONGEST_REASON).value();
    input.finish().map_err(CommandError::Invalid)?;
    let account = get(tx, id).await?.user_id;
    account::lock(tx, std::iter::once(&account)).await?;
    // As it stands now that nobody else fills it.
    let mut trade = get(tx, id).await?;
    let from = trade.state;
    trade.go(to, |rule| rule == Rule::SecondPerson)?;
    if trade.submitted_by == *caller.actor {
        let detail = "a second person decides: not the one who submitted the trade";
        return Err(broken("second-person", detail));
    }
    (trade.state_reason, trade.waiting) = (reason, None);
    (trade.decided_by, trade.decided_at) = (Some(caller.actor.clone()), Some(caller.now));
    trade.updated_at = caller.now;
    trade.store(tx).await?;
    let data = json!({
        "trade_id": id, "from": from, "to": to, "reason": trade.state_reason, "decided_by": caller.actor,
        "trade_type": trade.trade_type, "sat": trade.sat, "filled_sat": trade.filled_sat,
    });
    let event_id = emit(tx, caller, kind, &trade.user_id, id.into(), data).await?;
    Ok((trade, event_id))
}
