//! Owns the signal: what a strategy wants to sell, what it may, why, and what keeps it from more.
//! Promises that a signal never sells more than its rule wants, and names a limit whenever it sells less.
//! May be called by every module; limits are set by the strategies and the plan.

use super::StrategyKind;
use serde::{Deserialize, Serialize};

/// Why less is sold than a strategy wants, or nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Limit {
    /// There is no more.
    Inventory,
    /// The strategy's own limit, a parameter of it.
    Strategy,
    /// The largest share of the inventory that is sold in a day.
    DayShare,
    /// The reserve that is never sold.
    Reserve,
    /// What is left to sell is below the smallest order: nothing is sold.
    MinimumOrder,
}

/// What a strategy sells on a day, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signal {
    /// The strategy.
    pub strategy: StrategyKind,
    /// Satoshi that its rule asks for.
    pub wanted_sat: u64,
    /// Satoshi to sell, at most those wanted; 0 when a limit leaves nothing.
    pub sat: u64,
    /// The rule in words, with its figures.
    pub reason: String,
    /// What keeps it from selling all that is wanted; none when nothing does.
    pub limit: Option<Limit>,
}

impl Signal {
    /// Sells at most `most_sat`, because of `limit`. A limit that does not bind leaves the signal as it is.
    pub(in crate::economics::treasury) fn limit_to(&mut self, most_sat: u64, limit: Limit) {
        if self.sat > most_sat {
            (self.sat, self.limit) = (most_sat, Some(limit));
        }
    }
}

/// What a rule asks for, before the inventory limits it.
pub(super) struct Want {
    pub(super) sat: u64,
    /// The most its own parameters allow today.
    pub(super) allowed_sat: u64,
    pub(super) reason: String,
}

impl Want {
    pub(super) fn unlimited(sat: u64, reason: String) -> Self {
        Self { sat, allowed_sat: sat, reason }
    }
}
