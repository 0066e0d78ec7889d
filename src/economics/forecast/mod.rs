//! Owns the forecasts of difficulty, network hashrate and BTC price by day, with intervals that say how sure they are.
//! Promises pure, total, deterministic functions: without enough history the answer says so, and no number is invented.
//! May be called by every module; dates and times are arguments.
//!
//! | file | content |
//! |---|---|
//! | [`series`] | daily closes from irregular snapshots, gaps and duplicates |
//! | [`epoch`] | where the network stands in its difficulty epoch, and past retargets, from snapshots |
//! | [`difficulty`] | difficulty as a step function |
//! | [`price`] | price by damped-trend exponential smoothing or by the random walk, whichever forecast better |
//! | `random_walk`, `exponential`, `back_test` | the two models and their comparison on the past |
//! | [`rows`] | one row per day: price, difficulty, network hashrate, hashprice, confidence |
//! | [`mod@outlook`] | all of it from the daily closes of the network |
//!
//! **Intervals** have a nominal coverage of 80 % ([`NOMINAL_COVERAGE`]). **Confidence** is the share of such intervals
//! that is known to contain the truth: 1 where consensus fixes the number, the nominal coverage where the spread comes
//! from history, less where a back-test saw less; `None` where no history gives a spread. It never rises with the
//! horizon.
//!
//! Inside, logarithms are `f64`: a forecast has few significant digits and `exp` no exact decimal. At the border they
//! become decimals of at most 15 digits or a typed error.

mod back_test;
pub mod difficulty;
pub mod epoch;
mod exponential;
mod float;
mod log_forecast;
pub mod outlook;
pub mod price;
#[cfg(test)]
mod properties;
mod random_walk;
pub mod rows;
pub mod series;
#[cfg(test)]
mod testing;

pub use back_test::Comparison;
pub use difficulty::{DifficultyForecast, Retarget, difficulty_forecast};
pub use epoch::{ChainPoint, EpochView, retarget_changes};
pub use outlook::{NetworkClose, Outlook, outlook};
pub use price::{Choice, PriceForecast, PriceModel, PriceOutlook, price_forecast};
pub use rows::{ForecastRow, forecast_rows};
pub use series::{DailyClose, daily_closes};

use super::EconomicsError;
use super::exact::{self, dec};
use chrono::{Days, NaiveDate};
use rust_decimal::Decimal;
use serde::{Deserialize, Serialize};

/// Share of intervals that contain the truth if the model is right.
pub const NOMINAL_COVERAGE: Decimal = dec(8, 1);
/// Farthest day of a forecast.
pub const MAX_DAYS: u32 = 30;
/// Half-width of the interval in standard deviations: the 0.9 quantile of the normal distribution.
const INTERVAL_Z: f64 = 1.281_551_565_544_600_4;

/// One forecast figure of one day.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Estimate {
    /// The day, UTC; the figure is that of its end.
    pub date: NaiveDate,
    /// Point forecast: as likely too high as too low.
    pub point: Decimal,
    /// `None` when no history gives a spread.
    pub interval: Option<Interval>,
    /// Share of such intervals known to contain the truth, 0..=1; `None` when no history gives a spread.
    pub confidence: Option<Decimal>,
}

/// Bounds of a figure, `lower <= point <= upper`; as a ratio `upper / lower` they never narrow with the horizon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interval {
    /// Below it with a probability of 10 %.
    pub lower: Decimal,
    /// Above it with a probability of 10 %.
    pub upper: Decimal,
}

/// The answer in place of a number that history does not support.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("not enough history: have {have_days} days, need {need_days}")]
pub struct NotEnoughHistory {
    /// Usable days up to the forecast, see [`series`].
    pub have_days: u32,
    /// Days from which on there is a forecast.
    pub need_days: u32,
}

/// A horizon lies in 1..=30 days.
fn check_days(days: u32) -> Result<(), EconomicsError> {
    exact::within((1..=MAX_DAYS).contains(&days), "days")
}

/// The date `days` after `today`, from 1 for tomorrow.
fn day_after(today: NaiveDate, days: u64) -> Result<NaiveDate, EconomicsError> {
    today.checked_add_days(Days::new(days)).ok_or(EconomicsError::OutOfRange { field: "date" })
}
