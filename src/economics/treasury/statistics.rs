//! Owns the statistics of a treasury: realised volatility, Sharpe ratio, drawdown, percentile rank, Puell multiple.
//! Promises a finite figure or `None`; roots and logarithms are floats, ranks and means of money are exact decimals.
//! May be called by every module; needs nothing but its arguments.

use crate::economics::exact::{add, div, product};
use rust_decimal::Decimal;
use rust_decimal::prelude::ToPrimitive;

/// Days of a year of daily returns: bitcoin trades on all of them.
pub const DAYS_PER_YEAR: f64 = 365.0;
/// Daily returns that realised volatility is computed from.
pub const VOLATILITY_DAYS: usize = 30;
/// Days that the Puell multiple averages over.
pub const PUELL_DAYS: usize = 365;

/// A daily standard deviation over a year: times the root of 365.
#[must_use]
pub fn annualised(daily_sd: f64) -> f64 {
    daily_sd * DAYS_PER_YEAR.sqrt()
}

/// Realised volatility a year as a share (0.5 is 50 %): the annualised sample standard deviation of the newest 30 daily log
/// returns. `None` with fewer than 31 closes (USD, oldest first), or when one of them is not positive.
#[must_use]
pub fn realised_volatility(closes_usd: &[Decimal]) -> Option<f64> {
    let first = closes_usd.len().checked_sub(VOLATILITY_DAYS + 1)?;
    let logs = closes_usd[first..]
        .iter()
        .map(|close| close.to_f64().filter(|close| *close > 0.0).map(f64::ln))
        .collect::<Option<Vec<_>>>()?;
    let returns: Vec<_> = logs.windows(2).map(|pair| pair[1] - pair[0]).collect();
    finite(annualised(mean_and_sd(&returns)?.1))
}

/// Sharpe ratio a year of daily returns (shares), with a risk-free rate of 0: mean over sample standard deviation, times the
/// root of 365. `None` with fewer than two returns or when they do not differ.
#[must_use]
pub fn sharpe_ratio(daily_returns: &[f64]) -> Option<f64> {
    let (mean, sd) = mean_and_sd(daily_returns)?;
    // Equal returns differ in the last bit of their mean: that is no risk.
    if sd <= mean.abs() * 1e-12 {
        return None;
    }
    finite(annualised(mean / sd))
}

/// Largest fall of a value below its highest so far, as a share of that high (0..=1 while values are not negative). 0 for
/// values that never fall; `None` without a value or when the first is not positive.
#[must_use]
pub fn max_drawdown(values: &[f64]) -> Option<f64> {
    let mut high = values.first().copied().filter(|first| *first > 0.0)?;
    let mut worst: f64 = 0.0;
    for value in values {
        high = high.max(*value);
        worst = worst.max(1.0 - value / high);
    }
    finite(worst)
}

/// Percentile rank of `value` in `history`, 0..=100: the share of values below it plus half the share of those equal.
/// `None` without history.
#[must_use]
pub fn percentile_rank(history: &[Decimal], value: Decimal) -> Option<Decimal> {
    let (mut below, mut equal) = (0_u64, 0_u64);
    for other in history {
        below += u64::from(*other < value);
        equal += u64::from(*other == value);
    }
    // Counted in halves, so that the one division comes last.
    let halves = Decimal::from(below).checked_mul(Decimal::TWO)?.checked_add(Decimal::from(equal))?;
    let of = Decimal::from(u64::try_from(history.len()).ok()?).checked_mul(Decimal::TWO)?;
    halves.checked_mul(Decimal::ONE_HUNDRED)?.checked_div(of)
}

/// Puell multiple: the newest day's issuance in USD over the mean of the newest 365 days, its own included. `None` with
/// fewer days (oldest first), without issuance or beyond 7.9e28.
#[must_use]
pub fn puell_multiple(issuance_usd: &[Decimal]) -> Option<Decimal> {
    const FIGURE: &str = "puell_multiple";
    let year = &issuance_usd[issuance_usd.len().checked_sub(PUELL_DAYS)?..];
    let sum = year.iter().try_fold(Decimal::ZERO, |sum, day| add(sum, *day, FIGURE)).ok()?;
    let days = Decimal::from(u64::try_from(PUELL_DAYS).ok()?);
    div(product([*year.last()?, days], FIGURE).ok()?, sum, FIGURE).ok()
}

/// Mean and sample standard deviation (n - 1) of at least two values.
fn mean_and_sd(values: &[f64]) -> Option<(f64, f64)> {
    let count = values.len() as f64;
    if values.len() < 2 {
        return None;
    }
    let mean = values.iter().sum::<f64>() / count;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    Some((finite(mean)?, finite((squares / (count - 1.0)).sqrt())?))
}

pub(super) fn finite(value: f64) -> Option<f64> {
    Some(value).filter(|value| value.is_finite())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::economics::testing::d;

    #[track_caller]
    fn close(actual: Option<f64>, expected: f64) {
        let actual = actual.expect("the figure exists");
        assert!((actual - expected).abs() <= expected.abs() * 1e-6, "{actual} is not {expected}");
    }

    /// Prices whose log returns are +0.025, -0.025, +0.025 and so on.
    fn zigzag(days: usize) -> Vec<Decimal> {
        let up = Decimal::from_f64_retain(90_000.0 * 0.025_f64.exp()).expect("finite");
        (0..days).map(|day| if day % 2 == 0 { d("90000") } else { up }).collect()
    }

    #[test]
    fn volatility_is_a_daily_deviation_times_the_root_of_a_year() {
        close(Some(annualised(0.025) * 100.0), 47.762433);
        // 30 returns of +-0.025 with mean 0 have the sample variance 0.025^2 * 30 / 29.
        close(realised_volatility(&zigzag(31)), 0.47762433 * (30.0_f64 / 29.0).sqrt());
        close(realised_volatility(&vec![d("5"); 31]).map(|flat| flat + 1.0), 1.0);
        let mut quiet_lately = zigzag(200);
        quiet_lately.extend(vec![d("7"); 31]);
        close(realised_volatility(&quiet_lately).map(|flat| flat + 1.0), 1.0);
    }

    #[test]
    fn volatility_needs_thirty_returns_of_positive_prices() {
        assert_eq!(realised_volatility(&zigzag(30)), None);
        assert_eq!(realised_volatility(&[]), None);
        let mut closes = zigzag(40);
        closes[20] = d("0");
        assert_eq!(realised_volatility(&closes), None);
        closes[20] = d("-5");
        assert_eq!(realised_volatility(&closes), None);
        let extremes: Vec<_> =
            (0..31).map(|day| if day % 2 == 0 { Decimal::MAX } else { d("1e-28") }).collect();
        assert!(realised_volatility(&extremes).is_some_and(f64::is_finite));
    }

    #[test]
    fn sharpe_is_mean_over_deviation_a_year() {
        // Mean 0.01, sample deviation 0.01.
        close(sharpe_ratio(&[0.0, 0.01, 0.02]), 365.0_f64.sqrt());
        close(sharpe_ratio(&[0.0, -0.01, -0.02]), -(365.0_f64.sqrt()));
        assert_eq!(sharpe_ratio(&[0.1; 10]), None);
        assert_eq!(sharpe_ratio(&[0.0; 10]), None);
        assert_eq!(sharpe_ratio(&[0.1]), None);
        assert_eq!(sharpe_ratio(&[0.1, f64::INFINITY]), None);
        assert_eq!(sharpe_ratio(&[f64::NAN, 1.0]), None);
        assert_eq!(sharpe_ratio(&[f64::MAX, -f64::MAX]), None);
    }

    #[test]
    fn drawdown_is_measured_from_the_high_before_it() {
        close(max_drawdown(&[100.0, 80.0, 120.0, 60.0, 130.0, 90.0]), 0.5);
        assert_eq!(max_drawdown(&[1.0, 2.0, 3.0]), Some(0.0));
        assert_eq!(max_drawdown(&[1.0, 0.0]), Some(1.0));
        assert_eq!(max_drawdown(&[]), None);
        assert_eq!(max_drawdown(&[0.0, 1.0]), None);
        assert_eq!(max_drawdown(&[f64::INFINITY, 1.0]), Some(1.0));
    }

    #[test]
    fn ranks_count_half_of_what_is_equal() {
        let history = [d("1"), d("2"), d("2"), d("4")];
        assert_eq!(percentile_rank(&history, d("2")), Some(d("50")));
        assert_eq!(percentile_rank(&history, d("4")), Some(d("87.5")));
        assert_eq!(percentile_rank(&history, d("9")), Some(d("100")));
        assert_eq!(percentile_rank(&history, d("0")), Some(d("0")));
        assert_eq!(percentile_rank(&[], d("1")), None);
    }

    #[test]
    fn puell_compares_with_the_mean_of_a_year() {
        let mut issuance = vec![d("100"); 364];
        assert_eq!(puell_multiple(&issuance), None);
        issuance.push(d("465"));
        // 465 over (364 * 100 + 465) / 365 = 101.
        assert_eq!(puell_multiple(&issuance).map(|puell| puell.round_dp(10)), Some(d("4.6039603960")));
        let older = [vec![d("1e9"); 50], issuance.clone()].concat();
        assert_eq!(puell_multiple(&older), puell_multiple(&issuance));
        assert_eq!(puell_multiple(&[d("0"); 365]), None);
        assert_eq!(puell_multiple(&[Decimal::MAX; 365]), None);
    }
}
