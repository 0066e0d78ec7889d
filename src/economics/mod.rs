//! Owns the economics of a mining fleet and its treasury: network revenue, energy, break-evens, payback, portfolio, lots,
//! strategies, curtailment, anomalies, forecasts.
//! Promises pure, total functions over exact decimals (statistics: finite floats): no input or output, no clock, no panic; a figure that does not exist is `None`.
//! May be called by every module of the crate; it imports none of them.
//!
//! | file | content |
//! |---|---|
//! | [`mining`] | subsidy, network rate, revenue per TH, hashprice, energy, degradation, break-evens, strike price |
//! | [`difficulty`] | retarget and the projection inside an epoch |
//! | [`payback`] | static payback and ROI, dynamic payback with drift and halvings |
//! | [`miner`] | one line of a fleet and its status |
//! | [`mod@portfolio`] | the figures of a whole fleet, per model and per location |
//! | [`mod@what_if`] | the same figures with price, difficulty, tariff or uptime moved |
//! | [`catalogue`] | matching of model names |
//! | [`anomaly`] | failing miners: scores, checks against ratings, hysteresis, lost $/day |
//! | [`forecast`] | difficulty, network hashrate and price by day, with intervals |
//! | [`treasury`] | lots, inventory, selling strategies and their backtest |
//! | [`curtailment`] | plans under a site's limits, manual cuts, strike automation, the states of a plan |
//!
//! Units in names: `_ths` TH/s, `_w` watt per miner, `_kw` kilowatt per fleet, `_kwh` kilowatt-hour, `_j_th` joule per
//! terahash, `_usd_kwh` and `_usd_mwh` dollars per energy, `_usd_ph_day` dollars per PH/s and day, `_btc_day` bitcoin
//! per day. Difficulty is a plain number; shares and drifts are fractions (0.02 is 2 %), only `_percent` is times 100.

pub mod age;
pub mod anomaly;
pub mod catalogue;
pub mod curtailment;
pub mod difficulty;
mod exact;
pub mod forecast;
pub mod miner;
pub mod mining;
pub mod payback;
pub mod portfolio;
#[cfg(test)]
mod testing;
pub mod treasury;
pub mod what_if;

pub use miner::{MinerLine, MinerStatus, UnknownStatus};
pub use mining::{Network, subsidy_sat};
pub use payback::{DynamicCase, HalvingClock, Payback};
pub use portfolio::{Fleet, LocationRow, ModelRow, Portfolio, Warning, portfolio};
pub use what_if::{WhatIf, merged, what_if};

use exact::dec;
use rust_decimal::Decimal;
use serde::{Deserialize, Serialize};

/// Why a figure could not be computed. Repeating the call with the same input gives the same error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EconomicsError {
    /// An input is outside the range the formulas are defined for.
    #[error("{field} is outside the range the economics are defined for")]
    OutOfRange {
        /// Name of the input, as in the API.
        field: &'static str,
    },
    /// Inputs are each in range, but together exceed the largest exact decimal (7.9e28).
    #[error("{figure} is too large to be computed exactly")]
    Overflow {
        /// Name of the figure under computation.
        figure: &'static str,
    },
}

/// What a computation assumes where the owner has not said otherwise (configuration, section `economics`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Assumptions {
    /// Share of the gross reward kept by the pool, 0..=1.
    pub pool_fee: Decimal,
    /// Share of the day a miner runs, 0..=1; scales revenue and energy alike.
    pub uptime: Decimal,
    /// Power usage effectiveness of the site, >= 1; scales energy only.
    pub pue: Decimal,
    /// Tariff of a miner that names none, $/kWh.
    pub default_tariff_usd_kwh: Decimal,
    /// Hashrate lost per month, 0..=1; enters dynamic payback only.
    pub degradation_month: Decimal,
    /// Relative change of the BTC price per month, > -1; enters dynamic payback only.
    pub price_drift_month: Decimal,
    /// Relative change of the difficulty per month, > -1; enters dynamic payback only.
    pub difficulty_drift_month: Decimal,
}

impl Default for Assumptions {
    /// The defaults of the specification: fee 2 %, full uptime, PUE 1, $0.06/kWh, 0.5 % degradation, no drift.
    fn default() -> Self {
        Self {
            pool_fee: dec(2, 2),
            uptime: Decimal::ONE,
            pue: Decimal::ONE,
            default_tariff_usd_kwh: dec(6, 2),
            degradation_month: dec(5, 3),
            price_drift_month: Decimal::ZERO,
            difficulty_drift_month: Decimal::ZERO,
        }
    }
}

impl Assumptions {
    /// Checks every field against the range given at its definition.
    ///
    /// # Errors
    /// [`EconomicsError::OutOfRange`] naming the first field that is outside.
    pub fn check(&self) -> Result<(), EconomicsError> {
        exact::share(self.pool_fee, "pool_fee")?;
        exact::share(self.uptime, "uptime")?;
        exact::within(self.pue >= Decimal::ONE, "pue")?;
        exact::share(self.degradation_month, "degradation_month")?;
        exact::drift(self.price_drift_month, "price_drift_month")?;
        exact::drift(self.difficulty_drift_month, "difficulty_drift_month")
    }
}

#[cfg(test)]
mod tests {
    use super::testing::d;
    use super::*;

    #[test]
    fn defaults_are_those_of_the_specification() {
        let a = Assumptions::default();
        assert_eq!(a.pool_fee, d("0.02"));
        assert_eq!((a.uptime, a.pue), (d("1"), d("1")));
        assert_eq!(a.default_tariff_usd_kwh, d("0.06"));
        assert_eq!(a.degradation_month, d("0.005"));
        assert_eq!((a.price_drift_month, a.difficulty_drift_month), (d("0"), d("0")));
        assert_eq!(a.check(), Ok(()));
    }

    #[test]
    fn a_section_may_be_partial_but_not_misspelt() {
        let a: Assumptions = serde_json::from_str(r#"{"pool_fee":0.01}"#).expect("partial section");
        assert_eq!(a, Assumptions { pool_fee: d("0.01"), ..Assumptions::default() });
        assert!(serde_json::from_str::<Assumptions>(r#"{"poolfee":0.01}"#).is_err());
    }

    #[test]
    fn each_field_outside_its_range_is_named() {
        type Change = fn(&mut Assumptions);
        let cases: [(&str, Change); 8] = [
            ("pool_fee", |a| a.pool_fee = d("1.01")),
            ("pool_fee", |a| a.pool_fee = d("-0.01")),
            ("uptime", |a| a.uptime = d("1.1")),
            ("pue", |a| a.pue = d("0.99")),
            ("degradation_month", |a| a.degradation_month = d("1.5")),
            ("degradation_month", |a| a.degradation_month = d("-0.1")),
            ("price_drift_month", |a| a.price_drift_month = d("-1")),
            ("difficulty_drift_month", |a| {
                a.difficulty_drift_month = d("-1");
            }),
        ];
        for (field, change) in cases {
            let mut a = Assumptions::default();
            change(&mut a);
            assert_eq!(a.check(), Err(EconomicsError::OutOfRange { field }));
        }
    }
}
