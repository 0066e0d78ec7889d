//! Owns what strategies look at inside the treasury, and what they have sold so far in their cycle or window.
//! Promises that recording the fills in order gives the same progress again, however often it is rebuilt.
//! May be called by every module; needs nothing but its arguments.

use super::{Strategy, StrategyKind, required};
use crate::economics::EconomicsError;
use crate::economics::exact;
use crate::economics::treasury::TreasuryError;
use chrono::NaiveDate;
use rust_decimal::Decimal;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A treasury on a day.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TreasuryState {
    /// Satoshi held.
    pub inventory_sat: u64,
    /// Cost of one BTC of them in USD, >= 0. Rules that multiply the cost need one above 0.
    pub average_cost_usd: Option<Decimal>,
    /// Cash in USD, negative for a debt.
    pub cash_usd: Decimal,
    /// What sales that are open already will bring in USD, after the fee, >= 0.
    pub incoming_usd: Decimal,
    /// Operating expenses of 30 days in USD, >= 0.
    pub opex_usd_month: Decimal,
    /// What was sold so far.
    pub progress: Progress,
}

impl TreasuryState {
    /// Checks every figure against the range given at its definition.
    ///
    /// # Errors
    /// [`EconomicsError::OutOfRange`] naming the first field that is outside.
    pub fn check(&self) -> Result<(), EconomicsError> {
        exact::not_negative(self.average_cost_usd.unwrap_or_default(), "average_cost_usd")?;
        exact::not_negative(self.incoming_usd, "incoming_usd")?;
        exact::not_negative(self.opex_usd_month, "opex_usd_month")
    }

    /// Satoshi held before the first sale of the day.
    #[must_use]
    pub fn opening_sat(&self, date: NaiveDate) -> u64 {
        self.inventory_sat.saturating_add(self.progress.sold_on(date))
    }

    /// The cost of one BTC for rules that multiply it: bitcoin that cost nothing have no such price.
    pub(super) fn cost_usd(&self, strategy: StrategyKind) -> Result<Decimal, TreasuryError> {
        let cost = self.average_cost_usd.filter(|cost| *cost > Decimal::ZERO);
        required(cost, strategy, "average_cost_usd")
    }
}

/// Satoshi sold from a day on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sold {
    /// Day of the first sale, UTC.
    pub since: NaiveDate,
    /// Satoshi sold since then.
    pub sat: u64,
}

impl Sold {
    /// Satoshi of a window of `days` that is still open on `date`.
    fn within(self, days: u32, date: NaiveDate) -> u64 {
        let open = (date - self.since).num_days() < i64::from(days);
        if open { self.sat } else { 0 }
    }

    fn grow(window: Option<Self>, days: u32, date: NaiveDate, sat: u64) -> Self {
        match window.filter(|window| (date - window.since).num_days() < i64::from(days)) {
            Some(open) => Self { sat: open.sat.saturating_add(sat), ..open },
            None => Self { since: date, sat },
        }
    }
}

/// What was sold so far: per strategy in the cycle or in its window of days, and altogether on the newest day of sale.
///
/// A cycle is what "once" refers to in the rules: rungs, stops and parts are shares of the inventory at its beginning.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// First day of the cycle, UTC.
    pub started_on: NaiveDate,
    /// Satoshi held when the cycle began.
    pub initial_sat: u64,
    /// Satoshi sold in the cycle by the strategies that count over it.
    pub in_cycle: BTreeMap<StrategyKind, u64>,
    /// Satoshi sold in the current window of the strategies that count over days.
    pub in_window: BTreeMap<StrategyKind, Sold>,
    /// Satoshi sold on the newest day of sale, by whomever.
    pub day: Option<Sold>,
}

impl Progress {
    /// A cycle that begins, with nothing sold.
    #[must_use]
    pub const fn new(started_on: NaiveDate, initial_sat: u64) -> Self {
        Self { started_on, initial_sat, in_cycle: BTreeMap::new(), in_window: BTreeMap::new(), day: None }
    }

    /// Begins the next cycle; windows of days and the day go on.
    pub fn renew(&mut self, started_on: NaiveDate, initial_sat: u64) {
        (self.started_on, self.initial_sat) = (started_on, initial_sat);
        self.in_cycle.clear();
    }

    /// Records a fill of `sat` on `date`, by a strategy or by hand. Fills are recorded in the order of their days; one of an
    /// earlier day counts into the newest.
    pub fn record(&mut self, date: NaiveDate, strategy: Option<&Strategy>, sat: u64) {
        self.day = Some(Sold::grow(self.day, 1, date, sat));
        let Some(strategy) = strategy else { return };
        let kind = strategy.kind();
        match strategy.window_days() {
            Some(days) => {
                let window = self.in_window.get(&kind).copied();
                self.in_window.insert(kind, Sold::grow(window, days, date, sat));
            }
            None => {
                let sold = self.in_cycle.entry(kind).or_default();
                *sold = sold.saturating_add(sat);
            }
        }
    }

    /// Satoshi that a strategy sold in its cycle, or in the window that is open on `date`.
    #[must_use]
    pub fn sold_sat(&self, strategy: &Strategy, date: NaiveDate) -> u64 {
        let kind = strategy.kind();
        match strategy.window_days() {
            Some(days) => self.in_window.get(&kind).map_or(0, |window| window.within(days, date)),
            None => self.in_cycle.get(&kind).copied().unwrap_or_default(),
        }
    }

    /// Satoshi sold on `date` altogether.
    #[must_use]
    pub fn sold_on(&self, date: NaiveDate) -> u64 {
        self.day.map_or(0, |day| day.within(1, date))
    }
}
