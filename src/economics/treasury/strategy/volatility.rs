//! Owns volatility_trigger: sell a share when the price moves much and stands above the cost.
//! Promises that it sells once per window of days and never without thirty days of returns.
//! May be called by the strategies only.

use super::cycle::share_of_window;
use super::{Market, Rule, StrategyKind, TreasuryState, Want, required, text};
use crate::economics::EconomicsError;
use crate::economics::exact::{self, dec};
use crate::economics::treasury::TreasuryError;
use crate::economics::treasury::statistics::realised_volatility;
use rust_decimal::Decimal;
use rust_decimal::prelude::ToPrimitive;
use serde::{Deserialize, Serialize};

/// Sells a share of the inventory when the realised volatility of the last 30 days, annualised, is above the threshold and
/// the price above the cost.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct VolatilityTrigger {
    /// Volatility a year as a share (0.8 is 80 %), >= 0; 0.8.
    pub threshold: Decimal,
    /// Share of the inventory that it sells, 0..=1; 0.1.
    pub share: Decimal,
    /// Days until it sells again, > 0; 30, when all returns it looked at are new.
    pub every_days: u32,
}

impl Default for VolatilityTrigger {
    fn default() -> Self {
        Self { threshold: dec(8, 1), share: dec(1, 1), every_days: 30 }
    }
}

impl Rule for VolatilityTrigger {
    fn check(&self) -> Result<(), EconomicsError> {
        exact::not_negative(self.threshold, "volatility_trigger.threshold")?;
        exact::share(self.share, "volatility_trigger.share")?;
        exact::within(self.every_days > 0, "volatility_trigger.every_days")
    }

    fn window_days(&self) -> Option<u32> {
        Some(self.every_days)
    }

    fn want(
        &self,
        state: &TreasuryState,
        market: &Market<'_>,
        sold_sat: u64,
    ) -> Result<Option<Want>, TreasuryError> {
        const KIND: StrategyKind = StrategyKind::VolatilityTrigger;
        let cost = state.cost_usd(KIND)?;
        let volatility = required(realised_volatility(market.closes_usd), KIND, "closes_usd")?;
        let above = self.threshold.to_f64().is_some_and(|threshold| volatility > threshold);
        if !above || market.price_usd <= cost {
            return Ok(None);
        }
        let sat = share_of_window(state, self.share, sold_sat)?;
        let (percent, price, cost) = (volatility * 100.0, text(market.price_usd), text(cost));
        let reason = format!("volatility {percent:.1} % at price {price} above the cost {cost} USD");
        Ok(Some(Want::unlimited(sat, reason)))
    }
}
