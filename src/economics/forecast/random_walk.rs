//! Owns the yardstick: a random walk of the logarithm, tomorrow's best guess is today's value.
//! Promises a half-width that grows with the square root of the horizon.
//! May be called by the files of this folder only.

use super::INTERVAL_Z;
use super::log_forecast::LogForecast;

/// Centre: the last value. Half-width: `z sigma sqrt(h)`, sigma^2 the mean square of the daily steps (no drift: over
/// months its estimate is mostly noise). `None` with fewer than two days.
pub(super) fn random_walk(logs: &[f64], days: usize) -> Option<LogForecast> {
    let last = *logs.last()?;
    let steps = logs.len().checked_sub(1).filter(|steps| *steps > 0)?;
    let squares: f64 = logs.windows(2).map(|pair| (pair[1] - pair[0]).powi(2)).sum();
    let sigma = (squares / steps as f64).sqrt();
    let half_width = (1..=days).map(|h| INTERVAL_Z * sigma * (h as f64).sqrt()).collect();
    LogForecast::checked(vec![last; days], half_width)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stays_where_it_is_and_widens_by_the_root() {
        let forecast = random_walk(&[0.0, 0.02, 0.0, 0.02], 9).expect("a forecast");
        assert_eq!(forecast.centre, [0.02; 9]);
        assert!((forecast.half_width[0] - 1.281_551_565_5 * 0.02).abs() < 1e-10);
        assert!((forecast.half_width[8] - 3.0 * forecast.half_width[0]).abs() < 1e-12);
    }

    #[test]
    fn a_constant_series_has_no_spread() {
        let forecast = random_walk(&[5.0; 10], 3).expect("a forecast");
        assert_eq!(forecast.half_width, [0.0; 3]);
    }

    #[test]
    fn needs_two_days_and_finite_values() {
        assert_eq!(random_walk(&[], 3), None);
        assert_eq!(random_walk(&[1.0], 3), None);
        assert_eq!(random_walk(&[0.0, f64::MAX], 3), None);
        assert_eq!(random_walk(&[0.0, f64::NAN], 3), None);
    }
}
