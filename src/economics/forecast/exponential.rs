//! Owns the fit of damped-trend exponential smoothing, ETS(A,Ad,N), to daily logarithms.
//! Promises forecasts that depend on the series' steps only: not on its unit, and the same for the same input.
//! May be called by the files of this folder only.
//!
//! Level `l`, trend `b`, damping `phi`: the forecast `h` days ahead is `l + (phi + phi^2 + ... + phi^h) b` (Hyndman,
//! Koehler, Ord, Snyder: Forecasting with Exponential Smoothing, 2008). The crate `augurs-ets` estimates the parameters
//! by maximum likelihood and gives the spread of that book's chapter 6.
//!
//! Its version 0.10.3, like the programs it was translated from until 2026, sums the damping one power behind from the
//! second day on: `phi + phi + phi^2 + ...`. What it gives for day `h + 1` less its first step, `phi b`, is therefore
//! exactly the forecast for day `h`. `Cargo.toml` pins the version; a test fails if another one sums differently.

use super::NOMINAL_COVERAGE;
use super::log_forecast::LogForecast;
use augurs_core::Predict;
use augurs_ets::model::{ErrorComponent, ModelType, SeasonalComponent, TrendComponent, Unfit};
use rust_decimal::prelude::ToPrimitive;

/// Days a fit needs at least: five parameters and initial states cannot be told from noise with less.
pub(super) const MIN_FIT_DAYS: usize = 60;
/// Where the standardised series begins: away from 0, around which the search would start with tiny steps.
const ORIGIN: f64 = 10.0;

/// Forecast of the next days; `None` with fewer than [`MIN_FIT_DAYS`], for a series that does not move, or where the fit
/// finds nothing finite.
pub(super) fn damped_trend(logs: &[f64], days: usize) -> Option<LogForecast> {
    if logs.len() < MIN_FIT_DAYS {
        return None;
    }
    let first = *logs.first()?;
    let squares: f64 = logs.windows(2).map(|pair| (pair[1] - pair[0]).powi(2)).sum();
    let step = (squares / (logs.len() - 1) as f64).sqrt();
    if !step.is_normal() {
        return None;
    }
    let standard: Vec<f64> = logs.iter().map(|log| ORIGIN + (log - first) / step).collect();
    if !standard.iter().all(|x| x.is_finite()) {
        return None;
    }
    let model_type = ModelType {
        error: ErrorComponent::Additive,
        trend: TrendComponent::Additive,
        season: SeasonalComponent::None,
    };
    let model = Unfit::new(model_type).damped(true).fit(&standard).ok()?;
    let forecast = model.predict(days.max(1) + 1, NOMINAL_COVERAGE.to_f64()?).ok()?;
    let [one, two, ..] = forecast.point[..] else { return None };
    let centre = forecast.point.iter().skip(1).map(|p| first + (p - (two - one) - ORIGIN) * step);
    let upper = forecast.intervals.as_ref()?.upper.iter();
    let half_width = upper.zip(&forecast.point).map(|(upper, point)| (upper - point) * step);
    LogForecast::checked(centre.take(days).collect(), half_width.take(days).collect())
}

#[cfg(test)]
mod tests {
    use super::super::testing::{trend, walk};
    use super::*;

    /// A trend that dies out, without noise: level after `t` days is `(phi + ... + phi^t) b`.
    fn dying_trend(phi: f64, b: f64, days: usize) -> Vec<f64> {
        let mut level = 11.0;
        (1..=days as i32)
            .map(|t| {
                level += phi.powi(t) * b;
                level
            })
            .collect()
    }

    #[test]
    fn a_dying_trend_is_continued_as_it_dies() {
        let path = dying_trend(0.97, 0.05, 110);
        let forecast = damped_trend(&path[..80], 30).expect("a fit");
        let risen = path[109] - path[79];
        for (centre, truth) in forecast.centre.iter().zip(&path[80..]) {
            assert!((centre - truth).abs() < 1e-6 * risen, "{centre} is not {truth}");
        }
    }

    #[test]
    fn steps_shrink_by_one_factor() {
        let forecast = damped_trend(&trend(3, 200), 10).expect("a fit");
        let steps: Vec<f64> = forecast.centre.windows(2).map(|pair| pair[1] - pair[0]).collect();
        let phi = steps[1] / steps[0];
        assert!((0.79..0.99).contains(&phi), "phi {phi}");
        for pair in steps.windows(2) {
            assert!((pair[1] / pair[0] - phi).abs() < 1e-6, "{steps:?}");
        }
    }

    #[test]
    fn the_unit_of_the_price_does_not_matter() {
        let dollars = walk(5, 150);
        let shift = 100.0_f64.ln();
        let cents: Vec<f64> = dollars.iter().map(|log| log + shift).collect();
        let (in_dollars, in_cents) =
            (damped_trend(&dollars, 30).expect("a fit"), damped_trend(&cents, 30).expect("a fit"));
        for h in 0..30 {
            assert!((in_cents.centre[h] - shift - in_dollars.centre[h]).abs() < 1e-6);
            assert!((in_cents.half_width[h] - in_dollars.half_width[h]).abs() < 1e-6);
        }
    }

    #[test]
    fn needs_enough_days_that_move() {
        assert_eq!(damped_trend(&walk(1, MIN_FIT_DAYS - 1), 5), None);
        assert!(damped_trend(&walk(1, MIN_FIT_DAYS), 5).is_some());
        assert_eq!(damped_trend(&[11.0; 100], 5), None);
        assert_eq!(damped_trend(&[f64::NAN; 100], 5), None);
        let mut broken = walk(1, 100);
        broken[50] = f64::INFINITY;
        assert_eq!(damped_trend(&broken, 5), None);
    }

    #[test]
    fn a_horizon_of_one_day_is_one_entry() {
        let logs = walk(9, 100);
        let (one, many) = (damped_trend(&logs, 1).expect("a fit"), damped_trend(&logs, 30).expect("a fit"));
        assert_eq!(one.centre.len(), 1);
        assert_eq!((one.centre[0], one.half_width[0]), (many.centre[0], many.half_width[0]));
    }
}
