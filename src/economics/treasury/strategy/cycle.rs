//! Owns the strategies that follow bitcoin's own cycles: halving_cycle and hashprice_cycle.
//! Promises that each sells its share of the inventory once per window of days, however long its condition holds.
//! May be called by the strategies only.

use super::{Market, Rule, StrategyKind, TreasuryState, Want, required, text};
use crate::economics::EconomicsError;
use crate::economics::exact::{self, dec, div};
use crate::economics::mining::HALVING_INTERVAL;
use crate::economics::treasury::TreasuryError;
use crate::economics::treasury::money::share_sat;
use rust_decimal::Decimal;
use serde::{Deserialize, Serialize};

/// How many phases the time between two halvings may have.
const MOST_PHASES: usize = 100;

/// From here on in the time between two halvings, sell this share a week.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Phase {
    /// Blocks since the halving over 210,000, 0..1.
    pub from: Decimal,
    /// Share of the inventory that is sold a week, 0..=1.
    pub share_week: Decimal,
}

/// Sells a share of the inventory a week that depends on how far it is since the halving.
///
/// The default sells 0.5 % a week in the first quarter, 3 % from the 12th to the 18th month or so (0.25..0.4), when past
/// cycles had their highs, 1 % until the middle of the fourth year (0.75) and nothing in the last year before the halving.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HalvingCycle {
    /// The phases, at most 100, by ascending beginning; nothing is sold before the first.
    pub phases: Vec<Phase>,
}

impl Default for HalvingCycle {
    fn default() -> Self {
        let phase = |from, share_week| Phase { from: dec(from, 2), share_week: dec(share_week, 3) };
        Self { phases: vec![phase(0, 5), phase(25, 30), phase(40, 10), phase(75, 0)] }
    }
}

impl Rule for HalvingCycle {
    fn check(&self) -> Result<(), EconomicsError> {
        const FIELD: &str = "halving_cycle.phases";
        exact::within(self.phases.len() <= MOST_PHASES, FIELD)?;
        exact::within(self.phases.is_sorted_by(|a, b| a.from < b.from), FIELD)?;
        for phase in &self.phases {
            exact::within((Decimal::ZERO..Decimal::ONE).contains(&phase.from), FIELD)?;
            exact::share(phase.share_week, FIELD)?;
        }
        Ok(())
    }

    fn window_days(&self) -> Option<u32> {
        Some(7)
    }

    fn want(
        &self,
        state: &TreasuryState,
        market: &Market<'_>,
        sold_sat: u64,
    ) -> Result<Option<Want>, TreasuryError> {
        let height = required(market.block_height, StrategyKind::HalvingCycle, "block_height")?;
        let blocks = Decimal::from(height % HALVING_INTERVAL);
        let at = div(blocks, Decimal::from(HALVING_INTERVAL), "phase")?;
        let Some(phase) = self.phases.iter().rfind(|phase| phase.from <= at) else { return Ok(None) };
        let sat = share_of_window(state, phase.share_week, sold_sat)?;
        let (share, at) = (phase.share_week.normalize(), text(at));
        let reason = format!("{share} a week at phase {at} of the halving cycle");
        Ok(Some(Want::unlimited(sat, reason)))
    }
}

/// Sells a share of the inventory when mining earns much: hashprice high in the past year and the Puell multiple high.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HashpriceCycle {
    /// The hashprice's percentile must be above this, 0..=100; 70.
    pub percentile_above: Decimal,
    /// The Puell multiple must be above this, >= 0; 1.8.
    pub puell_above: Decimal,
    /// Share of the inventory that it sells, 0..=1; 0.15.
    pub share: Decimal,
    /// Days until it sells again, > 0; 30.
    pub every_days: u32,
}

impl Default for HashpriceCycle {
    fn default() -> Self {
        Self { percentile_above: dec(70, 0), puell_above: dec(18, 1), share: dec(15, 2), every_days: 30 }
    }
}

impl Rule for HashpriceCycle {
    fn check(&self) -> Result<(), EconomicsError> {
        let percent = Decimal::ZERO..=Decimal::ONE_HUNDRED;
        exact::within(percent.contains(&self.percentile_above), "hashprice_cycle.percentile_above")?;
        exact::not_negative(self.puell_above, "hashprice_cycle.puell_above")?;
        exact::share(self.share, "hashprice_cycle.share")?;
        exact::within(self.every_days > 0, "hashprice_cycle.every_days")
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
        const KIND: StrategyKind = StrategyKind::HashpriceCycle;
        let percentile = required(market.hashprice_percentile, KIND, "hashprice_percentile")?;
        let puell = required(market.puell_multiple, KIND, "puell_multiple")?;
        if percentile <= self.percentile_above || puell <= self.puell_above {
            return Ok(None);
        }
        let sat = share_of_window(state, self.share, sold_sat)?;
        let reason = format!("hashprice percentile {} and Puell multiple {}", text(percentile), text(puell));
        Ok(Some(Want::unlimited(sat, reason)))
    }
}

/// What is left of `share` of the inventory, `sold_sat` of which are sold in the open window already.
pub(super) fn share_of_window(
    state: &TreasuryState,
    share: Decimal,
    sold_sat: u64,
) -> Result<u64, EconomicsError> {
    let whole = state.inventory_sat.saturating_add(sold_sat);
    Ok(share_sat(whole, share)?.saturating_sub(sold_sat))
}
