//! Owns the check of a miner's hashrate against its rating.
//! Promises exact limits: a machine at 95 % of its rating is healthy, one a hair below is not.
//! May be called by every module; needs nothing but its arguments.

use super::super::exact::dec;
use rust_decimal::Decimal;
use serde::{Deserialize, Serialize};

/// How far the hashrate of the last hour is below the rating.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RatingClass {
    /// Below 95 %.
    Low,
    /// Below 80 %.
    Medium,
    /// Below 50 %.
    High,
    /// At most 1 %.
    Zero,
}

impl RatingClass {
    /// The name used in JSON, SQL and events.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Low => "low",
            Self::Medium => "medium",
            Self::High => "high",
            Self::Zero => "zero",
        }
    }
}

/// Class of a mean over one hour against the rating, both TH/s per miner. `None` for a healthy machine and for one
/// without a rating.
#[must_use]
pub fn rating_class(hour_mean_ths: Decimal, rated_ths: Decimal) -> Option<RatingClass> {
    if rated_ths <= Decimal::ZERO {
        return None;
    }
    // A share of a decimal is smaller than the decimal, so the product is always in range.
    let share = |percent| rated_ths.saturating_mul(dec(percent, 2));
    if hour_mean_ths <= share(1) {
        Some(RatingClass::Zero)
    } else if hour_mean_ths < share(50) {
        Some(RatingClass::High)
    } else if hour_mean_ths < share(80) {
        Some(RatingClass::Medium)
    } else if hour_mean_ths < share(95) {
        Some(RatingClass::Low)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::testing::d;
    use super::*;

    #[test]
    fn classes_and_their_limits() {
        let cases = [
            ("210", None),
            ("190", None),
            ("189.999999", Some(RatingClass::Low)),
            ("160", Some(RatingClass::Low)),
            ("159.999999", Some(RatingClass::Medium)),
            ("100", Some(RatingClass::Medium)),
            ("99.999999", Some(RatingClass::High)),
            ("2.000001", Some(RatingClass::High)),
            ("2", Some(RatingClass::Zero)),
            ("0", Some(RatingClass::Zero)),
            ("-1", Some(RatingClass::Zero)),
        ];
        for (mean, expected) in cases {
            assert_eq!(rating_class(d(mean), d("200")), expected, "{mean} of 200 TH/s");
        }
    }

    #[test]
    fn limits_are_exact_where_floats_are_not() {
        // 98.8 / 104 is below 0.95 in binary arithmetic.
        assert_eq!(rating_class(d("98.8"), d("104")), None);
    }

    #[test]
    fn classes_are_ordered_by_severity() {
        assert!(RatingClass::Low < RatingClass::Medium && RatingClass::High < RatingClass::Zero);
    }

    #[test]
    fn without_a_rating_there_is_no_class() {
        for rated in ["0", "-5"] {
            assert_eq!(rating_class(d("0"), d(rated)), None);
        }
        assert_eq!(rating_class(Decimal::MAX, Decimal::MAX), None);
        assert_eq!(rating_class(Decimal::MIN, Decimal::MAX), Some(RatingClass::Zero));
    }
}
