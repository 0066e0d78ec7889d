//! Owns the forecast of the difficulty by day: a step function that moves at retargets only.
//! Promises today's value up to the next retarget, the projection of the running epoch after it, damped growth from then on.
//! May be called by every module; today's date is an argument.

use super::super::EconomicsError;
use super::super::difficulty::{EPOCH_SECONDS, projected_change, projected_difficulty};
use super::super::mining::{MAX_DIFFICULTY, MIN_DIFFICULTY, check_difficulty};
use super::epoch::EpochView;
use super::{Estimate, INTERVAL_Z, Interval, NOMINAL_COVERAGE, check_days, day_after, float};
use chrono::{DateTime, NaiveDate, NaiveTime, TimeDelta, Utc};
use rust_decimal::Decimal;
use serde::{Deserialize, Serialize};

/// Share of the growth that survives from one epoch to the next.
pub const GROWTH_DAMPING: f64 = 0.8;
/// Past retargets from which on their mean and spread are used; with fewer there is no growth and no interval.
pub const MIN_RETARGETS: usize = 6;
/// How many standard deviations of its date a retarget may come early or late.
const DATE_SIGMAS: f64 = 3.0;
/// Blocks whose pace the date of a retarget rests on at least: a day's worth at the target.
const MIN_EVIDENCE_BLOCKS: f64 = 144.0;
const FIGURE: &str = "difficulty";

/// The retarget that ends the running epoch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retarget {
    /// When it is expected at the present pace.
    pub at: DateTime<Utc>,
    /// Three standard deviations earlier.
    pub earliest: DateTime<Utc>,
    /// Three standard deviations later.
    pub latest: DateTime<Utc>,
    /// Relative change projected from the epoch so far, see [`projected_change`].
    pub change: Decimal,
}

/// Difficulty by day.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DifficultyForecast {
    /// When the snapshot was observed that the forecast starts from.
    pub as_of: DateTime<Utc>,
    /// The next retarget.
    pub next_retarget: Retarget,
    /// Past retargets known; below [`MIN_RETARGETS`] there is no growth after the next one, and no interval.
    pub retargets_known: u32,
    /// Past retargets needed for growth and intervals.
    pub retargets_needed: u32,
    /// Mean logarithmic growth per epoch before damping; `None` without enough retargets.
    pub growth_per_epoch: Option<Decimal>,
    /// One estimate per day, beginning tomorrow.
    pub days: Vec<Estimate>,
}

/// Logarithmic growth over `epochs` epochs: `g (phi + phi^2 + ... + phi^epochs)`, `phi` = [`GROWTH_DAMPING`].
fn damped_growth(growth_per_epoch: f64, epochs: u32) -> f64 {
    let faded = 1.0 - GROWTH_DAMPING.powf(f64::from(epochs));
    growth_per_epoch * GROWTH_DAMPING * faded / (1.0 - GROWTH_DAMPING)
}

/// Forecast of the `days` (1..=30) after `today`. `past_changes` are logarithms of past retargets' factors, as
/// [`super::retarget_changes`] gives them; the difficulty of a day is that at its end, UTC.
///
/// After the `k`-th retarget ahead the variance of the logarithm is `sigma^2 (u + k - 1)`, where `sigma^2` is the variance
/// of past changes and `u` the share of the running epoch's blocks whose pace is not known. The interval speaks of the size
/// of the steps; on days between `earliest` and `latest` of a retarget the step itself may be a day off. Before `earliest`
/// the difficulty is certain.
///
/// # Errors
/// [`EconomicsError::OutOfRange`] for `days`, a date beyond the calendar, or a difficulty outside 1e3..=1e18, now or in
/// the forecast.
pub fn difficulty_forecast(
    today: NaiveDate,
    view: &EpochView,
    past_changes: &[f64],
    days: u32,
) -> Result<DifficultyForecast, EconomicsError> {
    check_days(days)?;
    let current = view.now.difficulty;
    let next_retarget = next_retarget(view)?;
    let projected = projected_difficulty(current, view.blocks_since_start(), view.elapsed_seconds())?;
    let past = Past::of(past_changes);
    let mut estimates = Vec::new();
    for after in 1..=u64::from(days) {
        let date = day_after(today, after)?;
        let end = day_after(date, 1)?.and_time(NaiveTime::MIN).and_utc();
        let (point, interval, confidence) = match epochs_ahead(next_retarget.at, end) {
            0 => {
                let certain = end < next_retarget.earliest;
                let confidence = if certain { Some(Decimal::ONE) } else { past.map(|_| NOMINAL_COVERAGE) };
                (current, Some(Interval { lower: current, upper: current }), confidence)
            }
            epochs => {
                let growth = past.map_or(0.0, |past| damped_growth(past.mean, epochs - 1));
                let point = times(projected, growth)?;
                check_difficulty(point)?;
                let unknown = view.unwatched_share() + f64::from(epochs - 1);
                let interval = past.map(|past| interval(point, INTERVAL_Z * past.sigma * unknown.sqrt()));
                (point, interval, past.map(|_| NOMINAL_COVERAGE))
            }
        };
        estimates.push(Estimate { date, point, interval, confidence });
    }
    Ok(DifficultyForecast {
        as_of: view.now.at,
        next_retarget,
        retargets_known: u32::try_from(past_changes.len()).unwrap_or(u32::MAX),
        retargets_needed: MIN_RETARGETS as u32,
        growth_per_epoch: past.map(|past| float::decimal(past.mean, FIGURE)).transpose()?,
        days: estimates,
    })
}

/// Mean and standard deviation of past logarithmic changes.
#[derive(Debug, Clone, Copy)]
struct Past {
    mean: f64,
    sigma: f64,
}

impl Past {
    /// `None` with too few changes or with values that give nothing finite.
    fn of(changes: &[f64]) -> Option<Self> {
        if changes.len() < MIN_RETARGETS {
            return None;
        }
        let mean = changes.iter().sum::<f64>() / changes.len() as f64;
        let squares: f64 = changes.iter().map(|change| (change - mean).powi(2)).sum();
        let sigma = (squares / (changes.len() - 1) as f64).sqrt();
        (mean.is_finite() && sigma.is_finite()).then_some(Self { mean, sigma })
    }
}

/// When the running epoch ends: the blocks left at the present pace. The date's standard deviation has two sources, the
/// chance in finding that many blocks and the error of a pace that rests on the watched ones.
fn next_retarget(view: &EpochView) -> Result<Retarget, EconomicsError> {
    let left = f64::from(view.blocks_left());
    let seconds = left * view.block_seconds;
    let evidence = f64::from(view.watched_blocks).max(MIN_EVIDENCE_BLOCKS);
    let spread = DATE_SIGMAS * view.block_seconds * (left * (1.0 + left / evidence)).sqrt();
    let after = |seconds: f64| {
        // A float becomes the nearest integer in range; at most 2015 blocks of 2400 seconds and their spread.
        TimeDelta::try_seconds(seconds as i64)
            .and_then(|delta| view.now.at.checked_add_signed(delta))
            .ok_or(EconomicsError::OutOfRange { field: "date" })
    };
    Ok(Retarget {
        at: after(seconds)?,
        earliest: after((seconds - spread).max(0.0))?,
        latest: after(seconds + spread)?,
        change: projected_change(view.blocks_since_start(), view.elapsed_seconds())?,
    })
}

/// Retargets up to `at`, when the first is expected at `first` and each later epoch takes its target of 14 days.
fn epochs_ahead(first: DateTime<Utc>, at: DateTime<Utc>) -> u32 {
    match u64::try_from(at.signed_duration_since(first).num_seconds()) {
        Ok(since) => u32::try_from(since / EPOCH_SECONDS + 1).unwrap_or(u32::MAX),
        Err(_) => 0,
    }
}

fn times(value: Decimal, log: f64) -> Result<Decimal, EconomicsError> {
    value.checked_mul(float::exp(log, FIGURE)?).ok_or(EconomicsError::Overflow { figure: FIGURE })
}

/// The interval around a point; bounds outside 1e3..=1e18, where the formulas end, are set to its ends.
fn interval(point: Decimal, half_width: f64) -> Interval {
    let upper = times(point, half_width).unwrap_or(MAX_DIFFICULTY).min(MAX_DIFFICULTY);
    let lower = times(point, -half_width).unwrap_or(MIN_DIFFICULTY).max(MIN_DIFFICULTY);
    Interval { lower, upper }
}

#[cfg(test)]
mod tests;
