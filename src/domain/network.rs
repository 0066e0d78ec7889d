//! Owns the recording of network snapshots: what revenue is computed from.
//! Promises values inside the bounds that the economics are defined for.
//! Called by the API and by the simulated fleet of the demo.

use chrono::TimeDelta;
use rust_decimal::Decimal;
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::input::Low;
use super::{Caller, CommandError, Input, emit};
use crate::db::TenantTx;
use crate::economics::mining::{MAX_DIFFICULTY, MIN_DIFFICULTY};
use crate::event::kind;

/// No more than a bitcoin may cost, USD.
pub(super) const MAX_PRICE_USD: Decimal = Decimal::from_parts(1_000_000_000, 0, 0, false, 0);
/// No more than the mean fees of a block may be, BTC.
const MAX_FEES_BTC: Decimal = Decimal::ONE_THOUSAND;
const MAX_HEIGHT: i64 = 10_000_000;
/// How far a clock that reports a snapshot may be ahead.
const MAX_AHEAD: TimeDelta = TimeDelta::hours(1);

/// A recorded snapshot.
#[derive(Debug, Clone, Copy)]
pub struct Recorded {
    pub snapshot_id: Uuid,
    pub event_id: Uuid,
}

/// Records `btc_price_usd`, `difficulty`, `block_height`, `fees_btc_per_block` (0) and `observed_at` (now); emits
/// `network.snapshot`.
pub async fn record(
    tx: &mut TenantTx,
    caller: Caller<'_>,
    object: &Map<String, Value>,
) -> Result<Recorded, CommandError> {
    let mut input = Input::new(object);
    let price = input.decimal(&["btc_price_usd"], Low::Above(Decimal::ZERO), MAX_PRICE_USD);
    let price = input.required(&["btc_price_usd"], price);
    let difficulty = input.decimal(&["difficulty"], Low::From(MIN_DIFFICULTY), MAX_DIFFICULTY);
    let difficulty = input.required(&["difficulty"], difficulty);
    let height = input.integer(&["block_height"], 0..=MAX_HEIGHT);
    let height = input.required(&["block_height"], height);
    let fees = input.decimal(&["fees_btc_per_block"], Low::From(Decimal::ZERO), MAX_FEES_BTC).value();
    let observed_at = input.timestamp(&["observed_at"]).value().unwrap_or(caller.now);
    if observed_at > caller.now + MAX_AHEAD {
        input.refuse("observed_at", "must not be more than an hour in the future");
    }
    input.finish().map_err(CommandError::Invalid)?;
    let (Some(price), Some(difficulty), Some(height)) = (price, difficulty, height) else {
        return Err(CommandError::Invalid(Vec::new()));
    };
    let fees = fees.unwrap_or_default();

    let snapshot_id = Uuid::now_v7();
    let tenant = tx.tenant().clone();
    sqlx::query(
        "insert into network_snapshots (tenant_id, id, btc_price_usd, difficulty, block_height, fees_btc_per_block, \
         observed_at) values ($1, $2, $3, $4, $5, $6, $7)",
    )
    .bind(tenant.as_str())
    .bind(snapshot_id)
    .bind(price)
    .bind(difficulty)
    .bind(height)
    .bind(fees)
    .bind(observed_at)
    .execute(tx.conn())
    .await?;
    let data = json!({
        "snapshot_id": snapshot_id, "price": price, "difficulty": difficulty, "height": height, "fees": fees,
        "observed_at": observed_at,
    });
    let event_id = emit(tx, caller, kind::NETWORK_SNAPSHOT, caller.actor, snapshot_id.into(), data).await?;
    Ok(Recorded { snapshot_id, event_id })
}
