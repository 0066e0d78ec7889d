//! Owns the strategies that sell at multiples of the cost: layered, and next_sell_layers.
//! Promises that each rung sells its share of the initial inventory once per cycle, however many fills it takes.
//! May be called by every module; needs nothing but its arguments.

use super::{MAX_COST_MULTIPLE, Market, Rule, StrategyKind, TreasuryState, Want, text};
use crate::economics::EconomicsError;
use crate::economics::exact::{self, add, dec, product};
use crate::economics::treasury::TreasuryError;
use crate::economics::treasury::money::share_sat;
use rust_decimal::Decimal;
use serde::{Deserialize, Serialize};

/// How many rungs or layers a strategy may have.
const MOST_RUNGS: usize = 100;

/// A rung as it is set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Step {
    /// Target price as a multiple of the cost, > 0 and at most 1,000.
    pub cost_multiple: Decimal,
    /// Share of the initial inventory that it sells, 0..=1.
    pub share: Decimal,
}

/// A rung as it stands in a treasury.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rung {
    /// Its place, counted from 1.
    pub number: usize,
    /// Price from which on it sells, USD.
    pub target_usd: Decimal,
    /// Satoshi that it sells in a cycle.
    pub quota_sat: u64,
    /// Satoshi of them that are sold.
    pub sold_sat: u64,
}

impl Rung {
    /// Satoshi that it still sells in this cycle.
    #[must_use]
    pub const fn left_sat(&self) -> u64 {
        self.quota_sat.saturating_sub(self.sold_sat)
    }
}

/// Sells at each rung its share of the initial inventory, all rungs reached at once.
///
/// Default: 15, 15 and 20 % at 1.2, 1.5 and 1.8 times the cost, and the reserve of 50 % at 2.2 times.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Layered {
    /// The rungs, at most 100, by ascending multiple; their shares are at most 1 together.
    pub rungs: Vec<Step>,
}

impl Default for Layered {
    fn default() -> Self {
        let rung = |cost_multiple, share| Step { cost_multiple: dec(cost_multiple, 1), share: dec(share, 2) };
        Self { rungs: vec![rung(12, 15), rung(15, 15), rung(18, 20), rung(22, 50)] }
    }
}

impl Layered {
    /// The rungs as they stand.
    ///
    /// # Errors
    /// [`EconomicsError::OutOfRange`] for a parameter outside its range, [`TreasuryError::MissingInput`] without an average
    /// cost above 0.
    pub fn rungs(&self, state: &TreasuryState) -> Result<Vec<Rung>, TreasuryError> {
        const KIND: StrategyKind = StrategyKind::Layered;
        self.check()?;
        let (mut steps, mut until) = (Vec::with_capacity(self.rungs.len()), Decimal::ZERO);
        for rung in &self.rungs {
            until = add(until, rung.share, RUNGS)?;
            steps.push((rung.cost_multiple, until));
        }
        climb(&steps, state, KIND)
    }
}

const RUNGS: &str = "layered.rungs";

impl Rule for Layered {
    fn check(&self) -> Result<(), EconomicsError> {
        exact::within(climbs(self.rungs.iter().map(|rung| rung.cost_multiple)), RUNGS)?;
        let mut sum = Decimal::ZERO;
        for rung in &self.rungs {
            exact::share(rung.share, RUNGS)?;
            sum = add(sum, rung.share, RUNGS)?;
        }
        exact::share(sum, RUNGS)
    }

    fn window_days(&self) -> Option<u32> {
        None
    }

    fn want(
        &self,
        state: &TreasuryState,
        market: &Market<'_>,
        _sold_sat: u64,
    ) -> Result<Option<Want>, TreasuryError> {
        let mut reached = self.rungs(state)?;
        reached.retain(|rung| market.price_usd >= rung.target_usd);
        Ok(reached.last().map(|highest| {
            let sat = reached.iter().map(Rung::left_sat).fold(0, u64::saturating_add);
            let (price, target) = (text(market.price_usd), text(highest.target_usd));
            Want::unlimited(sat, format!("price {price} reached rung {} at {target} USD", highest.number))
        }))
    }
}

/// Sells one layer at a time: the one after the last that is sold out, once the price reaches it. Layers that a jump of the
/// price reaches together are sold one after the other, each when the one before has filled.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NextSellLayers {
    /// Target prices as multiples of the cost, at most 100 of them, ascending, > 0 and at most 1,000; 1.25, 1.52, 1.85, 2.20.
    pub cost_multiples: Vec<Decimal>,
    /// Share of the initial inventory that a layer sells, 0..=1; 0.08.
    pub quota: Decimal,
    /// Largest share of the initial inventory that all layers sell together, 0..=1; 0.25.
    pub cap: Decimal,
}

impl Default for NextSellLayers {
    fn default() -> Self {
        Self {
            cost_multiples: vec![dec(125, 2), dec(152, 2), dec(185, 2), dec(220, 2)],
            quota: dec(8, 2),
            cap: dec(25, 2),
        }
    }
}

impl NextSellLayers {
    /// The layers as they stand; the quota of the last is what the cap leaves.
    ///
    /// # Errors
    /// [`EconomicsError::OutOfRange`] for a parameter outside its range, [`TreasuryError::MissingInput`] without an average
    /// cost above 0.
    pub fn layers(&self, state: &TreasuryState) -> Result<Vec<Rung>, TreasuryError> {
        self.check()?;
        let mut steps = Vec::with_capacity(self.cost_multiples.len());
        let mut until = Decimal::ZERO;
        for multiple in &self.cost_multiples {
            until = add(until, self.quota, QUOTA)?.min(self.cap);
            steps.push((*multiple, until));
        }
        climb(&steps, state, StrategyKind::NextSellLayers)
    }

    /// The layer that sells next; none once all did.
    ///
    /// # Errors
    /// As [`NextSellLayers::layers`].
    pub fn next_layer(&self, state: &TreasuryState) -> Result<Option<Rung>, TreasuryError> {
        Ok(self.layers(state)?.into_iter().find(|layer| layer.left_sat() > 0))
    }
}

const QUOTA: &str = "next_sell_layers.quota";

impl Rule for NextSellLayers {
    fn check(&self) -> Result<(), EconomicsError> {
        let multiples = self.cost_multiples.iter().copied();
        exact::within(climbs(multiples), "next_sell_layers.cost_multiples")?;
        exact::share(self.quota, QUOTA)?;
        exact::share(self.cap, "next_sell_layers.cap")
    }

    fn window_days(&self) -> Option<u32> {
        None
    }

    fn want(
        &self,
        state: &TreasuryState,
        market: &Market<'_>,
        _sold_sat: u64,
    ) -> Result<Option<Want>, TreasuryError> {
        let next = self.next_layer(state)?.filter(|layer| market.price_usd >= layer.target_usd);
        let Some(layer) = next else { return Ok(None) };
        let (price, target) = (text(market.price_usd), text(layer.target_usd));
        // What the layer would sell without the cap.
        let uncapped = share_sat(state.progress.initial_sat, self.quota)?.saturating_sub(layer.sold_sat);
        Ok(Some(Want {
            sat: uncapped.max(layer.left_sat()),
            allowed_sat: layer.left_sat(),
            reason: format!("price {price} reached layer {} at {target} USD", layer.number),
        }))
    }
}

/// Whether multiples of the cost ascend, each in its range, and are not too many.
fn climbs(multiples: impl ExactSizeIterator<Item = Decimal>) -> bool {
    let mut above = Decimal::ZERO;
    multiples.len() <= MOST_RUNGS
        && multiples.into_iter().all(|multiple| {
            std::mem::replace(&mut above, multiple) < multiple && multiple <= MAX_COST_MULTIPLE
        })
}

/// The rungs of `steps` (multiple of the cost, share of the initial inventory sold until and with it). What the strategy
/// sold in the cycle fills them from the lowest on: it never sells a rung before those below it.
fn climb(
    steps: &[(Decimal, Decimal)],
    state: &TreasuryState,
    kind: StrategyKind,
) -> Result<Vec<Rung>, TreasuryError> {
    let cost = state.cost_usd(kind)?;
    let mut sold_left = state.progress.in_cycle.get(&kind).copied().unwrap_or_default();
    let (mut rungs, mut until_sat) = (Vec::with_capacity(steps.len()), 0);
    for (at, (multiple, share)) in steps.iter().enumerate() {
        // Between two shares of the whole, so that the quotas add up to the share of all.
        let reaches = share_sat(state.progress.initial_sat, *share)?;
        let quota_sat = reaches.saturating_sub(until_sat);
        let sold_sat = quota_sat.min(sold_left);
        let target_usd = product([cost, *multiple], "target_usd")?;
        rungs.push(Rung { number: at + 1, target_usd, quota_sat, sold_sat });
        (until_sat, sold_left) = (reaches, sold_left - sold_sat);
    }
    Ok(rungs)
}
