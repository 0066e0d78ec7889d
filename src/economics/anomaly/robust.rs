//! Owns the robust z score: distance from the median in units of the median absolute deviation (MAD).
//! Promises finite scores; half of the sample may be arbitrarily wrong before a score is.
//! May be called by every module; needs nothing but its arguments.

/// A score beyond this, in either direction, is an outlier.
pub const OUTLIER: f64 = 3.5;
/// MAD of a normal distribution with standard deviation 1.
const MAD_OF_NORMAL: f64 = 0.6745;
/// Smallest spread that counts, as a share of the median: below 0.5 % machines differ for no reason worth a look.
pub(super) const SPREAD_FLOOR: f64 = 0.005;

/// Centre and spread of a sample.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scale {
    /// Median of the sample, in its unit.
    pub median: f64,
    /// Median absolute deviation from the median, in the same unit, >= 0.
    pub mad: f64,
}

impl Scale {
    /// Median and MAD of the finite values of a sample; `None` if there are none.
    #[must_use]
    pub fn of(sample: &[f64]) -> Option<Self> {
        let mut values: Vec<f64> = sample.iter().copied().filter(|x| x.is_finite()).collect();
        let median = median(&mut values)?;
        for value in &mut values {
            *value = (*value - median).abs().min(f64::MAX);
        }
        Some(Self { median, mad: self::median(&mut values)? })
    }

    /// Robust z: `0.6745 (x - median) / max(MAD, 0.6745 * 0.5 % of |median|)`, dimensionless; negative is below the
    /// median. `None` when median and MAD are both 0, or for an `x` that is not finite. A score beyond the range of
    /// `f64` is the largest of its sign.
    #[must_use]
    pub fn robust_z(&self, x: f64) -> Option<f64> {
        let spread = self.mad.max(MAD_OF_NORMAL * SPREAD_FLOOR * self.median.abs());
        score(MAD_OF_NORMAL * (x - self.median), spread)
    }

    /// Standard deviation of a normal distribution with this MAD: `MAD / 0.6745`.
    #[must_use]
    pub fn standard_deviation(&self) -> f64 {
        (self.mad / MAD_OF_NORMAL).min(f64::MAX)
    }
}

/// Whether a score is beyond 3.5 in either direction.
#[must_use]
pub fn is_outlier(z: f64) -> bool {
    z.abs() > OUTLIER
}

/// `deviation / spread`, kept finite; `None` where that says nothing.
pub(super) fn score(deviation: f64, spread: f64) -> Option<f64> {
    let z = deviation / spread;
    (spread > 0.0 && deviation.is_finite() && !z.is_nan()).then(|| z.clamp(-f64::MAX, f64::MAX))
}

/// Middle of the values, between the two middle ones of an even number; sorts them.
fn median(values: &mut [f64]) -> Option<f64> {
    values.sort_unstable_by(f64::total_cmp);
    let upper = *values.get(values.len() / 2)?;
    if values.len() % 2 == 1 {
        return Some(upper);
    }
    Some(values[values.len() / 2 - 1].midpoint(upper))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(actual: Option<f64>, expected: f64) {
        let actual = actual.expect("a score");
        assert!((actual - expected).abs() <= expected.abs() * 1e-6, "{actual} is not {expected}");
    }

    #[test]
    fn one_bad_miner_among_ten() {
        let sample = [200.0, 201.0, 199.0, 200.0, 198.0, 202.0, 200.0, 120.0, 200.0, 201.0];
        let scale = Scale::of(&sample).expect("a sample");
        assert_eq!((scale.median, scale.mad), (200.0, 1.0));
        close(scale.robust_z(120.0), -53.96);
        let flagged: Vec<_> = sample.iter().filter(|x| scale.robust_z(**x).is_some_and(is_outlier)).collect();
        assert_eq!(flagged, [&120.0]);
    }

    #[test]
    fn equal_values_are_judged_by_the_floor() {
        let scale = Scale::of(&[100.0; 9]).expect("a sample");
        assert_eq!(scale.mad, 0.0);
        // The floor makes a z of 1 out of each 0.5 % of the median.
        close(scale.robust_z(98.0), -4.0);
        close(scale.robust_z(101.5), 3.0);
        close(Scale::of(&[-100.0; 9]).expect("a sample").robust_z(-98.0), 4.0);
    }

    #[test]
    fn without_centre_and_spread_nothing_is_flagged() {
        let scale = Scale::of(&[0.0; 8]).expect("a sample");
        assert_eq!(scale.robust_z(0.0), None);
        assert_eq!(scale.robust_z(120.0), None);
    }

    #[test]
    fn the_limit_itself_is_no_outlier() {
        assert!(!is_outlier(3.5) && !is_outlier(-3.5));
        assert!(is_outlier(3.500_001) && is_outlier(-3.500_001));
    }

    #[test]
    fn medians_of_even_and_odd_samples() {
        assert_eq!(median(&mut [3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&mut [4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median(&mut [f64::MAX, f64::MAX]), Some(f64::MAX));
        assert_eq!(median(&mut []), None);
    }

    #[test]
    fn values_that_are_no_numbers_do_not_count() {
        let sample = [f64::NAN, 1.0, f64::INFINITY, 3.0, 2.0, f64::NEG_INFINITY];
        assert_eq!(Scale::of(&sample), Some(Scale { median: 2.0, mad: 1.0 }));
        assert_eq!(Scale::of(&[f64::NAN, f64::INFINITY]), None);
        assert_eq!(Scale::of(&[]), None);
        let scale = Scale::of(&sample).expect("a sample");
        assert_eq!(scale.robust_z(f64::NAN), None);
        assert_eq!(scale.robust_z(f64::INFINITY), None);
    }
}
