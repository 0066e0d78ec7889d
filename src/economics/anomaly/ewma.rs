//! Owns the comparison of a machine with its own past: mean and variance with exponentially falling weights.
//! Promises that a flagged value never teaches what is normal, so a fault cannot hide by lasting.
//! May be called by every module; needs nothing but its arguments.

use super::robust::{SPREAD_FLOOR, Scale, is_outlier, score};
use serde::{Deserialize, Serialize};

/// Weight of the newest value.
pub const LAMBDA: f64 = 0.2;
/// Values needed before there is a past to compare with.
pub const MIN_WARM_UP: usize = 8;

/// What a figure of one machine usually is, one step ahead of the next value.
///
/// After a lasting change that is wanted (another power mode, another board) every value is flagged; the caller then
/// starts anew from a warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Ewma {
    /// Expected next value, in the unit of the figure.
    pub mean: f64,
    /// Variance of the one-step error, in the unit squared, >= 0.
    pub variance: f64,
}

impl Ewma {
    /// Starts from the values of a warm-up by median and MAD, which a few faults among them do not move.
    /// `None` with fewer than eight finite values.
    #[must_use]
    pub fn warm_up(values: &[f64]) -> Option<Self> {
        if values.iter().filter(|x| x.is_finite()).count() < MIN_WARM_UP {
            return None;
        }
        let scale = Scale::of(values)?;
        let variance = scale.standard_deviation().powi(2).min(f64::MAX);
        Some(Self { mean: scale.median, variance })
    }

    /// Score of the next value before it is learnt: `z = (x - m) / s`, `s = sqrt(v)` but at least 0.5 % of the mean
    /// (the floor of the robust z). `None` when mean and variance are both 0 or `x` is not finite.
    #[must_use]
    pub fn z(&self, x: f64) -> Option<f64> {
        score(x - self.mean, self.variance.sqrt().max(SPREAD_FLOOR * self.mean.abs()))
    }

    /// Scores a value, then learns it unless it is flagged (beyond 3.5):
    /// `m' = m + 0.2 (x - m)`, `v' = 0.8 (v + 0.2 (x - m)^2)`.
    #[must_use]
    pub fn step(self, x: f64) -> (Self, Option<f64>) {
        let z = self.z(x);
        let error = x - self.mean;
        let next = Self {
            mean: self.mean + LAMBDA * error,
            variance: (1.0 - LAMBDA) * (self.variance + LAMBDA * error * error),
        };
        let learns = !z.is_some_and(is_outlier) && next.mean.is_finite() && next.variance.is_finite();
        (if learns { next } else { self }, z)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const USUAL: Ewma = Ewma { mean: 100.0, variance: 4.0 };

    #[test]
    fn a_flagged_value_is_scored_and_not_learnt() {
        assert_eq!(USUAL.step(90.0), (USUAL, Some(-5.0)));
    }

    #[test]
    fn an_unflagged_value_is_scored_before_it_is_learnt() {
        let (next, z) = USUAL.step(103.0);
        assert_eq!(z, Some(1.5));
        assert!((next.mean - 100.6).abs() < 1e-12);
        assert!((next.variance - 0.8 * (4.0 + 0.2 * 9.0)).abs() < 1e-12);
    }

    #[test]
    fn a_lasting_fault_stays_flagged() {
        let mut state = USUAL;
        for _ in 0..1000 {
            let (next, z) = state.step(80.0);
            assert!(z.is_some_and(is_outlier));
            state = next;
        }
        assert_eq!(state, USUAL);
    }

    #[test]
    fn a_constant_past_is_judged_by_the_floor() {
        let still = Ewma { mean: 200.0, variance: 0.0 };
        assert_eq!(still.z(197.0), Some(-3.0));
        assert_eq!(Ewma { mean: 0.0, variance: 0.0 }.z(5.0), None);
    }

    #[test]
    fn a_warm_up_survives_faults_among_it() {
        let ewma =
            Ewma::warm_up(&[200.0, 201.0, 199.0, 0.0, 200.0, 202.0, 0.0, 198.0]).expect("eight values");
        assert_eq!(ewma.mean, 199.5);
        assert!(ewma.variance.sqrt() < 3.0);
        assert_eq!(Ewma::warm_up(&[200.0; 7]), None);
        assert_eq!(Ewma::warm_up(&[f64::NAN; 20]), None);
    }

    #[test]
    fn what_is_no_number_is_neither_scored_nor_learnt() {
        for x in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            assert_eq!(USUAL.step(x), (USUAL, None));
        }
    }
}
