//! Owns the filter of a manual cut: which miners may go off at all.
//! Promises that an empty filter lets everything through and that each condition only takes away.
//! May be called by every module; needs nothing but its arguments.

use super::super::catalogue::normalise;
use super::cut::{CustomerTier, CutCandidate};
use rust_decimal::Decimal;
use serde::{Deserialize, Serialize};

/// Conditions that all must hold. An empty list or `None` is no condition.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CutFilter {
    /// One of these models, in any spelling of the catalogue.
    pub models: Vec<String>,
    /// At one of these locations.
    pub locations: Vec<String>,
    /// Of one of these customers.
    pub customers: Vec<String>,
    /// Of one of these tiers.
    pub tiers: Vec<CustomerTier>,
    /// At least this many J/TH as measured: the less efficient ones. A miner that draws power without hashing passes.
    pub min_efficiency_j_th: Option<Decimal>,
    /// At most this many J/TH as measured: the more efficient ones.
    pub max_efficiency_j_th: Option<Decimal>,
}

impl CutFilter {
    /// The filter with its model names as keys.
    pub(super) fn compiled(&self) -> Compiled<'_> {
        Compiled { models: self.models.iter().map(|m| normalise(m)).collect(), filter: self }
    }
}

/// A filter ready to be asked often.
pub(super) struct Compiled<'a> {
    models: Vec<String>,
    filter: &'a CutFilter,
}

impl Compiled<'_> {
    pub(super) fn passes(&self, miner: &CutCandidate) -> bool {
        let filter = self.filter;
        let location = miner.location.as_deref().map_or("", str::trim);
        // As a product, so that a miner without hashrate is infinitely inefficient and not an error.
        let over = |j_th: Decimal| j_th.checked_mul(miner.hashrate_ths).is_some_and(|w| miner.power_w >= w);
        let under = |j_th: Decimal| j_th.checked_mul(miner.hashrate_ths).is_none_or(|w| miner.power_w <= w);
        (self.models.is_empty() || self.models.contains(&normalise(&miner.model)))
            && (filter.locations.is_empty() || filter.locations.iter().any(|l| l.trim() == location))
            && (filter.customers.is_empty() || filter.customers.contains(&miner.customer))
            && (filter.tiers.is_empty() || filter.tiers.contains(&miner.tier))
            && filter.min_efficiency_j_th.is_none_or(over)
            && filter.max_efficiency_j_th.is_none_or(under)
    }
}
