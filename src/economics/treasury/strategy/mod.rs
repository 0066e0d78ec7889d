//! Owns the eleven selling strategies: their names, parameters, and what each would sell on one day.
//! Promises that none sells more than there is, and that one lacking an input says which instead of guessing it.
//! May be called by every module; needs nothing but its arguments.
//!
//! | file | strategies |
//! |---|---|
//! | [`opex`] | opex_coverage |
//! | [`ladder`] | layered, next_sell_layers |
//! | [`stop`] | trailing_stop, stop_loss |
//! | [`schedule`] | fixed_share, dca_out |
//! | [`cycle`] | halving_cycle, hashprice_cycle |
//! | [`volatility`] | volatility_trigger |
//!
//! `hodl` never sells and has no parameters. [`kind`] has their names, [`refusal_of`] the ranges of their parameters in words,
//! [`signal`] what one sells; [`state`] and
//! [`market`] are what they look at. A strategy that is spread
//! over a cycle or a window of days counts what it sold in it, not that it sold: a sale that a cap cut short or that filled
//! in part goes on the next day, and one that filled is not repeated.

pub mod cycle;
mod json;
pub mod kind;
pub mod ladder;
pub mod market;
pub mod opex;
mod range;
pub mod schedule;
pub mod signal;
pub mod state;
pub mod stop;
pub mod volatility;

pub use cycle::{HalvingCycle, HashpriceCycle, Phase};
pub use kind::{Priority, StrategyKind, UnknownStrategy};
pub use ladder::{Layered, NextSellLayers, Rung, Step};
pub use market::Market;
pub use opex::OpexCoverage;
pub use range::refusal_of;
pub use schedule::{DcaOut, FixedShare};
pub use signal::{Limit, Signal};
pub use state::{Progress, Sold, TreasuryState};
pub use stop::{StopLoss, TrailingStop};
pub use volatility::VolatilityTrigger;

use super::TreasuryError;
use crate::economics::EconomicsError;
use crate::economics::exact::dec;
use rust_decimal::Decimal;
use serde::{Deserialize, Serialize};
use signal::Want;

/// The largest multiple of the cost that a price is compared with.
const MAX_COST_MULTIPLE: Decimal = dec(1_000, 0);

/// A strategy with its parameters. In JSON its name is the key, `{"opex_coverage": {"days": 45}}`, or stands alone,
/// `"layered"`; parameters that are left out have their defaults.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", remote = "Self")]
pub enum Strategy {
    /// Never sells.
    Hodl,
    /// See [`OpexCoverage`].
    OpexCoverage(OpexCoverage),
    /// See [`Layered`].
    Layered(Layered),
    /// See [`TrailingStop`].
    TrailingStop(TrailingStop),
    /// See [`StopLoss`].
    StopLoss(StopLoss),
    /// See [`FixedShare`].
    FixedShare(FixedShare),
    /// See [`DcaOut`].
    DcaOut(DcaOut),
    /// See [`HalvingCycle`].
    HalvingCycle(HalvingCycle),
    /// See [`VolatilityTrigger`].
    VolatilityTrigger(VolatilityTrigger),
    /// See [`HashpriceCycle`].
    HashpriceCycle(HashpriceCycle),
    /// See [`NextSellLayers`].
    NextSellLayers(NextSellLayers),
}

/// What every strategy but hodl is made of.
trait Rule {
    /// Checks every parameter against the range given at its definition.
    fn check(&self) -> Result<(), EconomicsError>;

    /// Days over which it counts what it sold; `None` counts over the cycle.
    fn window_days(&self) -> Option<u32>;

    /// What it sells now that `sold_sat` are sold in its window or cycle; `None` when the rule does not apply.
    fn want(
        &self,
        state: &TreasuryState,
        market: &Market<'_>,
        sold_sat: u64,
    ) -> Result<Option<Want>, TreasuryError>;
}

impl Strategy {
    /// The strategy with the default of every parameter.
    #[must_use]
    pub fn with_defaults(kind: StrategyKind) -> Self {
        match kind {
            StrategyKind::Hodl => Self::Hodl,
            StrategyKind::OpexCoverage => Self::OpexCoverage(OpexCoverage::default()),
            StrategyKind::Layered => Self::Layered(Layered::default()),
            StrategyKind::TrailingStop => Self::TrailingStop(TrailingStop::default()),
            StrategyKind::StopLoss => Self::StopLoss(StopLoss::default()),
            StrategyKind::FixedShare => Self::FixedShare(FixedShare::default()),
            StrategyKind::DcaOut => Self::DcaOut(DcaOut::default()),
            StrategyKind::HalvingCycle => Self::HalvingCycle(HalvingCycle::default()),
            StrategyKind::VolatilityTrigger => Self::VolatilityTrigger(VolatilityTrigger::default()),
            StrategyKind::HashpriceCycle => Self::HashpriceCycle(HashpriceCycle::default()),
            StrategyKind::NextSellLayers => Self::NextSellLayers(NextSellLayers::default()),
        }
    }

    /// Its name.
    #[must_use]
    pub const fn kind(&self) -> StrategyKind {
        match self {
            Self::Hodl => StrategyKind::Hodl,
            Self::OpexCoverage(_) => StrategyKind::OpexCoverage,
            Self::Layered(_) => StrategyKind::Layered,
            Self::TrailingStop(_) => StrategyKind::TrailingStop,
            Self::StopLoss(_) => StrategyKind::StopLoss,
            Self::FixedShare(_) => StrategyKind::FixedShare,
            Self::DcaOut(_) => StrategyKind::DcaOut,
            Self::HalvingCycle(_) => StrategyKind::HalvingCycle,
            Self::VolatilityTrigger(_) => StrategyKind::VolatilityTrigger,
            Self::HashpriceCycle(_) => StrategyKind::HashpriceCycle,
            Self::NextSellLayers(_) => StrategyKind::NextSellLayers,
        }
    }

    fn rule(&self) -> Option<&dyn Rule> {
        Some(match self {
            Self::Hodl => return None,
            Self::OpexCoverage(rule) => rule,
            Self::Layered(rule) => rule,
            Self::TrailingStop(rule) => rule,
            Self::StopLoss(rule) => rule,
            Self::FixedShare(rule) => rule,
            Self::DcaOut(rule) => rule,
            Self::HalvingCycle(rule) => rule,
            Self::VolatilityTrigger(rule) => rule,
            Self::HashpriceCycle(rule) => rule,
            Self::NextSellLayers(rule) => rule,
        })
    }

    /// Checks every parameter against the range given at its definition.
    ///
    /// # Errors
    /// [`EconomicsError::OutOfRange`] naming the first parameter that is outside.
    pub fn check(&self) -> Result<(), EconomicsError> {
        self.rule().map_or(Ok(()), Rule::check)
    }

    /// Days over which it counts what it sold; `None` counts over the cycle.
    #[must_use]
    pub fn window_days(&self) -> Option<u32> {
        self.rule().and_then(Rule::window_days)
    }

    /// What it sells on this day by itself: at most the inventory, no other cap. `None` when its rule does not apply, also
    /// when there is nothing to sell.
    ///
    /// # Errors
    /// [`TreasuryError::MissingInput`] when it lacks something it decides by, [`EconomicsError::OutOfRange`] for a parameter
    /// or an input outside its range, [`EconomicsError::Overflow`] for figures too large.
    pub fn propose(
        &self,
        state: &TreasuryState,
        market: &Market<'_>,
    ) -> Result<Option<Signal>, TreasuryError> {
        state.check()?;
        market.check()?;
        self.check()?;
        let Some(rule) = self.rule().filter(|_| state.inventory_sat > 0) else {
            return Ok(None);
        };
        let sold_sat = state.progress.sold_sat(self, market.date);
        let want = rule.want(state, market, sold_sat)?.filter(|want| want.sat > 0);
        Ok(want.map(|want| {
            let mut signal = Signal {
                strategy: self.kind(),
                wanted_sat: want.sat,
                sat: want.sat,
                reason: want.reason,
                limit: None,
            };
            signal.limit_to(want.allowed_sat, Limit::Strategy);
            signal.limit_to(state.inventory_sat, Limit::Inventory);
            signal
        }))
    }
}

fn required<T>(value: Option<T>, strategy: StrategyKind, field: &'static str) -> Result<T, TreasuryError> {
    value.ok_or(TreasuryError::MissingInput { strategy, field })
}

/// A figure for the reason: two decimals are enough to read.
fn text(value: Decimal) -> Decimal {
    value.round_dp(2).normalize()
}

#[cfg(test)]
pub(super) mod properties;
#[cfg(test)]
mod rule_tests;
#[cfg(test)]
pub(super) mod tests;
