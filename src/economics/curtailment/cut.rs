//! Owns manual cuts: which miners go off so that a site sheds a number of kilowatts.
//! Promises the order of the chosen strategy, each miner at most once, and how much of the target is missing.
//! May be called by every module; needs nothing but its arguments.

use super::super::EconomicsError;
use super::super::exact::{self, add, dec, div, product, sub};
use super::cut_filter::CutFilter;
use fair::fair_order;
use rust_decimal::Decimal;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::str::FromStr;

mod fair;

/// Weights of the score, in points of 100.
const HASHRATE_POINTS: Decimal = dec(70, 0);
const EFFICIENCY_POINTS: Decimal = dec(20, 0);
const UPTIME_POINTS: Decimal = dec(10, 0);

/// What a customer has been promised. Lower tiers go off first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CustomerTier {
    /// Off first.
    Standard,
    /// Off when no standard customer's miner is left.
    Enterprise,
    /// Off last.
    Vip,
}

impl CustomerTier {
    /// The name used in JSON and SQL.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Standard => "standard",
            Self::Enterprise => "enterprise",
            Self::Vip => "vip",
        }
    }
}

/// The text names no [`CustomerTier`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must be one of standard, enterprise, vip")]
pub struct UnknownTier;

impl FromStr for CustomerTier {
    type Err = UnknownTier;

    fn from_str(text: &str) -> Result<Self, UnknownTier> {
        [Self::Standard, Self::Enterprise, Self::Vip]
            .into_iter()
            .find(|tier| tier.as_str() == text)
            .ok_or(UnknownTier)
    }
}

/// A miner that runs and could be switched off.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CutCandidate {
    /// Name of the model.
    pub model: String,
    /// Site or part of it; `None` when unassigned.
    #[serde(default)]
    pub location: Option<String>,
    /// Whose miner it is.
    pub customer: String,
    /// What the customer has been promised.
    pub tier: CustomerTier,
    /// Measured hashrate, TH/s, >= 0.
    pub hashrate_ths: Decimal,
    /// Rated hashrate, TH/s, >= 0.
    pub rated_hashrate_ths: Decimal,
    /// Measured power, W, >= 0: what switching off saves.
    pub power_w: Decimal,
    /// Power it should draw, W, >= 0.
    pub reference_power_w: Decimal,
    /// Share of the time it ran, 0..=1.
    pub uptime: Decimal,
}

/// The order in which miners go off. Equal ones go in the order of the input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CutStrategy {
    /// Lowest score first.
    PerformancePriority,
    /// Standard customers, then enterprise, then vip; inside a tier the lowest score first.
    CustomerPriority,
    /// The same share of each customer's power, rounded to whole miners by the largest remainder.
    FairDistribution,
}

/// What a cut does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cut {
    /// Positions in the input of the miners that go off, in that order.
    pub off: Vec<usize>,
    /// Power saved, kW.
    pub cut_kw: Decimal,
    /// Whether that is the target or more.
    pub reached: bool,
    /// What is missing to the target, kW; 0 when it is reached.
    pub missing_kw: Decimal,
    /// What it means for each customer with a running miner, by name.
    pub by_customer: Vec<CustomerCut>,
}

/// A customer's part of a cut.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CustomerCut {
    /// Whose.
    pub customer: String,
    /// Power of all the customer's candidates, filtered out or not, kW.
    pub power_kw: Decimal,
    /// Power saved, kW.
    pub cut_kw: Decimal,
    /// How many of the customer's miners go off.
    pub miners_offline: u64,
}

impl CutCandidate {
    fn check(&self) -> Result<(), EconomicsError> {
        exact::not_negative(self.hashrate_ths, "hashrate_ths")?;
        exact::not_negative(self.rated_hashrate_ths, "rated_hashrate_ths")?;
        exact::not_negative(self.power_w, "power_w")?;
        exact::not_negative(self.reference_power_w, "reference_power_w")?;
        exact::share(self.uptime, "uptime")
    }

    /// How well it performs: `100 * (0.7 hashrate / rated + 0.2 reference power / power + 0.1 uptime)`. A ratio to
    /// nothing counts 0.
    ///
    /// # Errors
    /// [`EconomicsError::OutOfRange`] naming a field outside its range, [`EconomicsError::Overflow`] for ratios beyond
    /// 1e26.
    pub fn score(&self) -> Result<Decimal, EconomicsError> {
        const FIGURE: &str = "score";
        self.check()?;
        let ratio = |part: Decimal, whole: Decimal| {
            if whole.is_zero() { Ok(Decimal::ZERO) } else { div(part, whole, FIGURE) }
        };
        let hashrate =
            product([HASHRATE_POINTS, ratio(self.hashrate_ths, self.rated_hashrate_ths)?], FIGURE)?;
        let efficiency = product([EFFICIENCY_POINTS, ratio(self.reference_power_w, self.power_w)?], FIGURE)?;
        let uptime = product([UPTIME_POINTS, self.uptime], FIGURE)?;
        add(add(hashrate, efficiency, FIGURE)?, uptime, FIGURE)
    }
}

/// A candidate that the filter lets through and that draws power.
struct Ranked<'a> {
    position: usize,
    miner: &'a CutCandidate,
    score: Decimal,
}

/// Chooses the miners that go off for `target_kw`: the strategy's order over those the filter lets through, until the
/// target is reached or none is left. A miner that draws nothing saves nothing and stays.
///
/// # Errors
/// [`EconomicsError::OutOfRange`] for a negative target or naming a field of a candidate,
/// [`EconomicsError::Overflow`] when sums exceed 7.9e28.
pub fn cut(
    candidates: &[CutCandidate],
    target_kw: Decimal,
    strategy: CutStrategy,
    filter: &CutFilter,
) -> Result<Cut, EconomicsError> {
    const FIGURE: &str = "cut_kw";
    exact::not_negative(target_kw, "target_kw")?;
    let target_w = product([target_kw, Decimal::ONE_THOUSAND], "target_kw")?;
    let filter = filter.compiled();
    let mut customers: BTreeMap<&str, (Decimal, Decimal, u64)> = BTreeMap::new();
    let mut ranked = Vec::new();
    for (position, miner) in candidates.iter().enumerate() {
        let score = miner.score()?;
        let (power, ..) = customers.entry(&miner.customer).or_default();
        *power = add(*power, miner.power_w, FIGURE)?;
        if !miner.power_w.is_zero() && filter.passes(miner) {
            ranked.push(Ranked { position, miner, score });
        }
    }
    match strategy {
        CutStrategy::PerformancePriority => ranked.sort_by_key(|r| r.score),
        CutStrategy::CustomerPriority => ranked.sort_by_key(|r| (r.miner.tier, r.score)),
        CutStrategy::FairDistribution => ranked = fair_order(ranked, target_w)?,
    }

    let (mut off, mut cut_w) = (Vec::new(), Decimal::ZERO);
    for r in ranked {
        if cut_w >= target_w {
            break;
        }
        off.push(r.position);
        cut_w = add(cut_w, r.miner.power_w, FIGURE)?;
        let (_, cut, miners) = customers.entry(&r.miner.customer).or_default();
        *cut = add(*cut, r.miner.power_w, FIGURE)?;
        *miners += 1;
    }
    let kw = |watt: Decimal| div(watt, Decimal::ONE_THOUSAND, FIGURE).map(|kw| kw.normalize());
    Ok(Cut {
        off,
        cut_kw: kw(cut_w)?,
        reached: cut_w >= target_w,
        missing_kw: kw(sub(target_w, cut_w, FIGURE)?.max(Decimal::ZERO))?,
        by_customer: customers
            .into_iter()
            .map(|(customer, (power, cut, miners_offline))| {
                let customer = customer.to_owned();
                Ok(CustomerCut { customer, power_kw: kw(power)?, cut_kw: kw(cut)?, miners_offline })
            })
            .collect::<Result<_, EconomicsError>>()?,
    })
}

#[cfg(test)]
mod tests;
