//! Owns the stops: trailing_stop below the high, stop_loss below the cost.
//! Promises that each sells its share of the initial inventory once per cycle.
//! May be called by the strategies; the stop price by every module.

use super::{MAX_COST_MULTIPLE, Market, Rule, StrategyKind, TreasuryState, Want, required, text};
use crate::economics::EconomicsError;
use crate::economics::exact::{self, dec, product, sub};
use crate::economics::treasury::TreasuryError;
use crate::economics::treasury::money::share_sat;
use rust_decimal::Decimal;
use serde::{Deserialize, Serialize};

/// Sells the reserve once the price is `trail` or more below the high of the cycle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrailingStop {
    /// How far below the high the stop lies, 0..1; 0.08.
    pub trail: Decimal,
    /// The reserve that it guards, as a share of the initial inventory, 0..=1; 0.5, what the first three rungs of `layered`
    /// leave.
    pub reserve_share: Decimal,
}

impl Default for TrailingStop {
    fn default() -> Self {
        Self { trail: dec(8, 2), reserve_share: dec(50, 2) }
    }
}

impl TrailingStop {
    /// Price in USD at and below which the stop sells: `high * (1 - trail)`.
    ///
    /// # Errors
    /// [`EconomicsError::OutOfRange`] for a parameter outside its range, [`EconomicsError::Overflow`] beyond 7.9e28.
    pub fn stop_usd(&self, high_usd: Decimal) -> Result<Decimal, EconomicsError> {
        self.check()?;
        product([high_usd, sub(Decimal::ONE, self.trail, "stop_usd")?], "stop_usd")
    }
}

impl Rule for TrailingStop {
    fn check(&self) -> Result<(), EconomicsError> {
        exact::within((Decimal::ZERO..Decimal::ONE).contains(&self.trail), "trailing_stop.trail")?;
        exact::share(self.reserve_share, "trailing_stop.reserve_share")
    }

    fn window_days(&self) -> Option<u32> {
        None
    }

    fn want(
        &self,
        state: &TreasuryState,
        market: &Market<'_>,
        sold_sat: u64,
    ) -> Result<Option<Want>, TreasuryError> {
        let high = required(market.high_usd, StrategyKind::TrailingStop, "high_usd")?;
        let stop = self.stop_usd(high)?;
        if market.price_usd > stop {
            return Ok(None);
        }
        let reserve = share_sat(state.progress.initial_sat, self.reserve_share)?;
        let (price, stop, high) = (text(market.price_usd), text(stop), text(high));
        let reason = format!("price {price} is at or below the stop {stop} under the high {high} USD");
        Ok(Some(Want::unlimited(reserve.saturating_sub(sold_sat), reason)))
    }
}

/// Sells a share of the initial inventory once the price is below a multiple of the cost.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StopLoss {
    /// The stop as a multiple of the cost, > 0 and at most 1,000; 0.8.
    pub cost_multiple: Decimal,
    /// Share of the initial inventory that it sells, 0..=1; 0.25.
    pub share: Decimal,
}

impl Default for StopLoss {
    fn default() -> Self {
        Self { cost_multiple: dec(8, 1), share: dec(25, 2) }
    }
}

impl Rule for StopLoss {
    fn check(&self) -> Result<(), EconomicsError> {
        let in_range = self.cost_multiple > Decimal::ZERO && self.cost_multiple <= MAX_COST_MULTIPLE;
        exact::within(in_range, "stop_loss.cost_multiple")?;
        exact::share(self.share, "stop_loss.share")
    }

    fn window_days(&self) -> Option<u32> {
        None
    }

    fn want(
        &self,
        state: &TreasuryState,
        market: &Market<'_>,
        sold_sat: u64,
    ) -> Result<Option<Want>, TreasuryError> {
        let cost = state.cost_usd(StrategyKind::StopLoss)?;
        let stop = product([cost, self.cost_multiple], "stop_usd")?;
        if market.price_usd >= stop {
            return Ok(None);
        }
        let quota = share_sat(state.progress.initial_sat, self.share)?;
        let (price, stop, cost) = (text(market.price_usd), text(stop), text(cost));
        let reason = format!("price {price} is below the stop {stop} under the cost {cost} USD");
        Ok(Some(Want::unlimited(quota.saturating_sub(sold_sat), reason)))
    }
}
