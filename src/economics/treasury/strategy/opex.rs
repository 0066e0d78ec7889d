//! Owns opex_coverage: sell what is missing in the cash for the next days of opex.
//! Promises to sell the gap and no more, grossed up for the fee, once, and never above its share of the inventory a day.
//! May be called by the strategies only.

use super::{Market, Rule, TreasuryState, Want, text};
use crate::economics::EconomicsError;
use crate::economics::exact::{self, dec, div, product, sub};
use crate::economics::treasury::TreasuryError;
use crate::economics::treasury::money::{MONTH_DAYS, sat_worth, share_sat};
use rust_decimal::Decimal;
use serde::{Deserialize, Serialize};

/// Keeps `days` of opex in cash. Sells `(days * opex / 30 - cash - incoming) / (price * (1 - fee))`, rounded up to the satoshi,
/// so that the gap is closed after the fee; what open sales will bring (`incoming`) closes it as well.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OpexCoverage {
    /// Days of opex to keep in cash, > 0; 30.
    pub days: u32,
    /// Largest share of the inventory it sells in a day, 0..=1; 0.05.
    pub max_share_day: Decimal,
}

impl Default for OpexCoverage {
    fn default() -> Self {
        Self { days: 30, max_share_day: dec(5, 2) }
    }
}

impl Rule for OpexCoverage {
    fn check(&self) -> Result<(), EconomicsError> {
        exact::within(self.days > 0, "opex_coverage.days")?;
        exact::share(self.max_share_day, "opex_coverage.max_share_day")
    }

    fn window_days(&self) -> Option<u32> {
        Some(1)
    }

    fn want(
        &self,
        state: &TreasuryState,
        market: &Market<'_>,
        sold_sat: u64,
    ) -> Result<Option<Want>, TreasuryError> {
        const FIGURE: &str = "opex_gap_usd";
        let needed = product([state.opex_usd_month, Decimal::from(self.days)], FIGURE)?;
        let needed = div(needed, MONTH_DAYS, FIGURE)?;
        let gap = sub(sub(needed, state.cash_usd, FIGURE)?, state.incoming_usd, FIGURE)?;
        if gap <= Decimal::ZERO || needed.is_zero() {
            return Ok(None);
        }
        let net_price = product([market.price_usd, Decimal::ONE - market.fee], "price_usd")?;
        let allowed = share_sat(state.opening_sat(market.date), self.max_share_day)?;
        Ok(Some(Want {
            sat: sat_worth(gap, net_price)?,
            allowed_sat: allowed.saturating_sub(sold_sat),
            reason: format!(
                "cash of {} USD{} is {} USD short of {} days of opex",
                text(state.cash_usd),
                if state.incoming_usd.is_zero() {
                    String::new()
                } else {
                    format!(" with {} USD of open sales", text(state.incoming_usd))
                },
                text(gap),
                self.days
            ),
        }))
    }
}
