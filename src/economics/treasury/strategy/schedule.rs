//! Owns the strategies that sell by the calendar alone: fixed_share of what is mined, dca_out in equal parts.
//! Promises that a day or part is sold once, that a part missed is caught up, and that parts add up to the inventory.
//! May be called by the strategies only.

use super::{Market, Rule, StrategyKind, TreasuryState, Want, required};
use crate::economics::EconomicsError;
use crate::economics::exact::{self, dec};
use crate::economics::treasury::TreasuryError;
use crate::economics::treasury::money::share_sat;
use rust_decimal::Decimal;
use serde::{Deserialize, Serialize};

/// Sells a share of the day's production. A day on which nothing was sold is not caught up: tomorrow has its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FixedShare {
    /// Share of the production, 0..=1; 0.5.
    pub share: Decimal,
}

impl Default for FixedShare {
    fn default() -> Self {
        Self { share: dec(5, 1) }
    }
}

impl Rule for FixedShare {
    fn check(&self) -> Result<(), EconomicsError> {
        exact::share(self.share, "fixed_share.share")
    }

    fn window_days(&self) -> Option<u32> {
        Some(1)
    }

    fn want(
        &self,
        _state: &TreasuryState,
        market: &Market<'_>,
        sold_sat: u64,
    ) -> Result<Option<Want>, TreasuryError> {
        let mined = required(market.production_sat, StrategyKind::FixedShare, "production_sat")?;
        let sat = share_sat(mined, self.share)?.saturating_sub(sold_sat);
        let reason = format!("{} of {mined} sat mined today", self.share.normalize());
        Ok(Some(Want::unlimited(sat, reason)))
    }
}

/// Sells the initial inventory in equal parts, the first on the first day of the cycle, then one every `interval_days`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DcaOut {
    /// Into how many parts the initial inventory is divided, > 0; 52.
    pub parts: u32,
    /// Days between two parts, > 0; 7.
    pub interval_days: u32,
}

impl Default for DcaOut {
    fn default() -> Self {
        Self { parts: 52, interval_days: 7 }
    }
}

impl Rule for DcaOut {
    fn check(&self) -> Result<(), EconomicsError> {
        exact::within(self.parts > 0, "dca_out.parts")?;
        exact::within(self.interval_days > 0, "dca_out.interval_days")
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
        let Ok(days) = u32::try_from((market.date - state.progress.started_on).num_days()) else {
            return Ok(None);
        };
        let due = (days / self.interval_days).saturating_add(1).min(self.parts);
        // Parts of a whole that does not divide differ by one satoshi; due never exceeds parts, so the share fits.
        let share = u128::from(state.progress.initial_sat) * u128::from(due) / u128::from(self.parts);
        let until = u64::try_from(share).map_err(|_| EconomicsError::Overflow { figure: "sat" })?;
        let reason = format!("part {due} of {} is due", self.parts);
        Ok(Some(Want::unlimited(until.saturating_sub(sold_sat), reason)))
    }
}
