//! Owns what a set of strategies sells on one day: evaluation, order of priority, caps.
//! Promises that all together keep the caps, that earlier priorities come first, and that whatever cut a sale is named.
//! May be called by every module; needs nothing but its arguments.

use super::TreasuryError;
use super::money::share_sat;
use super::strategy::{Limit, Market, Signal, Strategy, StrategyKind, TreasuryState};
use crate::economics::EconomicsError;
use crate::economics::exact::{self, dec};
use rust_decimal::Decimal;
use serde::{Deserialize, Serialize};

/// What no set of strategies may exceed, whatever it wants.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Caps {
    /// Largest share of the inventory that is sold in a day, sales by hand included, 0..=1; 0.25.
    pub max_share_day: Decimal,
    /// Satoshi that are never sold; 0.
    pub min_reserve_sat: u64,
    /// Smallest order in satoshi; what is left of a signal below it is not sold; 10,000.
    pub min_order_sat: u64,
}

impl Default for Caps {
    fn default() -> Self {
        Self { max_share_day: dec(25, 2), min_reserve_sat: 0, min_order_sat: 10_000 }
    }
}

impl Caps {
    /// Checks every field against the range given at its definition.
    ///
    /// # Errors
    /// [`EconomicsError::OutOfRange`] naming the first field that is outside.
    pub fn check(&self) -> Result<(), EconomicsError> {
        exact::share(self.max_share_day, "caps.max_share_day")
    }
}

/// A strategy that could not be evaluated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Unevaluated {
    /// The strategy.
    pub strategy: StrategyKind,
    /// Name of the input it lacks, or of the figure that is too large to be computed.
    pub field: &'static str,
}

/// What a set of strategies does on a day.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// What is sold, in the order of execution. A signal of 0 satoshi is one that its limit left nothing of.
    pub signals: Vec<Signal>,
    /// Strategies that lack an input or cannot be computed, in the order given.
    pub unevaluated: Vec<Unevaluated>,
}

impl Plan {
    /// Satoshi sold by all signals.
    #[must_use]
    pub fn total_sat(&self) -> u64 {
        self.signals.iter().map(|signal| signal.sat).fold(0, u64::saturating_add)
    }
}

/// Evaluates the strategies and applies the caps in the order opex gap, stops, profit-taking (within a priority, in the order
/// given): what an earlier signal sells is no longer there for a later one. Of two caps that cut alike, reserve or inventory
/// is named before day share: tomorrow does not lift it.
///
/// # Errors
/// [`EconomicsError::OutOfRange`] for an input or parameter outside its range (`strategies` when one stands there twice). A
/// missing input or a figure too large is no error here, and keeps no other strategy from its turn: see
/// [`Plan::unevaluated`].
pub fn plan(
    strategies: &[Strategy],
    caps: &Caps,
    state: &TreasuryState,
    market: &Market<'_>,
) -> Result<Plan, TreasuryError> {
    caps.check()?;
    check_set(strategies)?;
    let mut plan = Plan::default();
    for strategy in strategies {
        match strategy.propose(state, market) {
            Ok(signal) => plan.signals.extend(signal),
            Err(
                TreasuryError::MissingInput { field, .. }
                | TreasuryError::Economics(EconomicsError::Overflow { figure: field }),
            ) => plan.unevaluated.push(Unevaluated { strategy: strategy.kind(), field }),
            Err(error) => return Err(error),
        }
    }
    plan.signals.sort_by_key(|signal| signal.strategy.priority());
    cap(&mut plan.signals, caps, state, market)?;
    Ok(plan)
}

/// What a strategy sold is counted under its name, so a set has each once.
pub(super) fn check_set(strategies: &[Strategy]) -> Result<(), EconomicsError> {
    for (at, strategy) in strategies.iter().enumerate() {
        strategy.check()?;
        let twice = strategies[..at].iter().any(|other| other.kind() == strategy.kind());
        exact::within(!twice, "strategies")?;
    }
    Ok(())
}

fn cap(
    signals: &mut [Signal],
    caps: &Caps,
    state: &TreasuryState,
    market: &Market<'_>,
) -> Result<(), EconomicsError> {
    let opening = state.opening_sat(market.date);
    let mut day_left =
        share_sat(opening, caps.max_share_day)?.saturating_sub(state.progress.sold_on(market.date));
    let mut held = state.inventory_sat;
    let nothing_left = if caps.min_reserve_sat > 0 { Limit::Reserve } else { Limit::Inventory };
    for signal in signals {
        signal.limit_to(held.saturating_sub(caps.min_reserve_sat), nothing_left);
        signal.limit_to(day_left, Limit::DayShare);
        if signal.sat > 0 && signal.sat < caps.min_order_sat {
            signal.limit_to(0, Limit::MinimumOrder);
        }
        (day_left, held) = (day_left - signal.sat, held - signal.sat);
    }
    Ok(())
}

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;
