//! Owns the forecast of the BTC price by day.
//! Promises that exponential smoothing is used only where it beat the random walk on the past, and that the answer says so.
//! May be called by every module; today's date is an argument.

use super::super::EconomicsError;
use super::back_test::{BackTest, Comparison, TRAINING_DAYS, back_test, needed_days};
use super::exponential::damped_trend;
use super::log_forecast::LogForecast;
use super::random_walk::random_walk;
use super::series::{DailyClose, LogRun};
use super::{Estimate, Interval, NOMINAL_COVERAGE, NotEnoughHistory, check_days, day_after, float};
use chrono::NaiveDate;
use rust_decimal::Decimal;
use serde::{Deserialize, Serialize};

/// Days of history below which there is no forecast: the spread of a random walk is not known better than by a quarter
/// with less.
pub const MIN_HISTORY_DAYS: u32 = 30;
/// How much smaller the error of smoothing must be, as a share of the yardstick's. On pure walks it comes out a little
/// smaller by chance every third time; a trend worth following shows by far more.
pub const MARGIN: f64 = 0.05;
const FIGURE: &str = "btc_price_usd";

/// Which model a price forecast comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PriceModel {
    /// Damped-trend exponential smoothing of the logarithm.
    DampedTrend,
    /// Random walk of the logarithm without drift, the yardstick.
    RandomWalk,
}

/// Why the model was chosen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Choice {
    /// The error on the past decided: smoothing if its error is smaller by more than [`MARGIN`] and it can be fitted to
    /// the newest days, else the random walk. Confidence is what the past measured.
    Compared(Comparison),
    /// Too few days to compare: the random walk, with nominal confidence.
    NotCompared(NotEnoughHistory),
}

/// Price by day, in USD. The point is the median of the distribution, not its mean.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PriceForecast {
    /// Day of the newest price; up to three days before today.
    pub as_of: NaiveDate,
    /// The model used.
    pub model: PriceModel,
    /// Why this model.
    pub choice: Choice,
    /// Days of the usable history, bridged ones included.
    pub history_days: u32,
    /// Days among them without a price of their own.
    pub bridged_days: u32,
    /// One estimate per day, beginning tomorrow.
    pub days: Vec<Estimate>,
}

/// A forecast, or why there is none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PriceOutlook {
    /// The forecast.
    Forecast(PriceForecast),
    /// The history does not support one.
    NotEnoughHistory(NotEnoughHistory),
}

/// Forecast of the `days` (1..=30) after `today` from daily closes in USD; see [`super::series`] for gaps, duplicates
/// and values that are no prices. The comparison is made at the horizon asked for, so forecasts that are to agree with
/// each other are cut from one. It fits the model about twenty times: work for a blocking thread.
///
/// # Errors
/// [`EconomicsError::OutOfRange`] for `days` or a date beyond the calendar, [`EconomicsError::Overflow`] when the past
/// moves so wildly that a bound exceeds 7.9e28.
pub fn price_forecast(
    today: NaiveDate,
    closes: &[DailyClose],
    days: u32,
) -> Result<PriceOutlook, EconomicsError> {
    check_days(days)?;
    let run = LogRun::until(today, closes);
    if run.days() < MIN_HISTORY_DAYS {
        let short = NotEnoughHistory { have_days: run.days(), need_days: MIN_HISTORY_DAYS };
        return Ok(PriceOutlook::NotEnoughHistory(short));
    }
    // The newest price is `age_days` old, so that much of the horizon already lies behind.
    let horizon = (run.age_days + days) as usize;
    let known = &run.logs[run.logs.len().saturating_sub(TRAINING_DAYS)..];
    let tested = back_test(&run, horizon);
    let smoothed =
        tested.as_ref().filter(|test| prefers_damped_trend(test)).and_then(|_| damped_trend(known, horizon));
    let model = if smoothed.is_some() { PriceModel::DampedTrend } else { PriceModel::RandomWalk };
    let path = smoothed
        .or_else(|| random_walk(known, horizon))
        .ok_or(EconomicsError::Overflow { figure: FIGURE })?;
    let confidence = match &tested {
        Some(test) => match (model, &test.damped_trend) {
            (PriceModel::DampedTrend, Some(score)) => score.confidence(),
            _ => test.random_walk.confidence(),
        },
        None => vec![NOMINAL_COVERAGE; horizon],
    };
    Ok(PriceOutlook::Forecast(PriceForecast {
        as_of: day_before(today, run.age_days)?,
        model,
        choice: choice(tested.as_ref(), &run, horizon)?,
        history_days: run.days(),
        bridged_days: run.bridged_days(),
        days: estimates(today, run.age_days as usize, &path, &confidence)?,
    }))
}

fn prefers_damped_trend(test: &BackTest) -> bool {
    test.damped_trend.as_ref().is_some_and(|score| score.error < (1.0 - MARGIN) * test.random_walk.error)
}

fn choice(tested: Option<&BackTest>, run: &LogRun, horizon: usize) -> Result<Choice, EconomicsError> {
    let Some(test) = tested else {
        let need_days = u32::try_from(needed_days(horizon)).unwrap_or(u32::MAX);
        return Ok(Choice::NotCompared(NotEnoughHistory { have_days: run.days(), need_days }));
    };
    Ok(Choice::Compared(Comparison {
        origins: test.origins,
        random_walk_error: float::decimal(test.random_walk.error, FIGURE)?,
        damped_trend_error: match &test.damped_trend {
            Some(score) => Some(float::decimal(score.error, FIGURE)?),
            None => None,
        },
    }))
}

fn estimates(
    today: NaiveDate,
    skip: usize,
    path: &LogForecast,
    confidence: &[Decimal],
) -> Result<Vec<Estimate>, EconomicsError> {
    let days = path.centre.iter().zip(&path.half_width).zip(confidence).skip(skip);
    let estimate = |(after, ((centre, half_width), confidence)): (u64, ((&f64, &f64), &Decimal))| {
        Ok(Estimate {
            date: day_after(today, after)?,
            point: float::exp(*centre, FIGURE)?,
            interval: Some(Interval {
                lower: float::exp(centre - half_width, FIGURE)?,
                upper: float::exp(centre + half_width, FIGURE)?,
            }),
            confidence: Some(*confidence),
        })
    };
    (1..).zip(days).map(estimate).collect()
}

fn day_before(today: NaiveDate, days: u32) -> Result<NaiveDate, EconomicsError> {
    today
        .checked_sub_days(chrono::Days::new(u64::from(days)))
        .ok_or(EconomicsError::OutOfRange { field: "date" })
}

#[cfg(test)]
mod tests;
