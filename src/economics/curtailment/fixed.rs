//! Owns the fixed-point numbers the schedules are searched with: whole multiples of 1e-12 in 128 bits.
//! Promises that sums and comparisons of schedules are exact, so a tie is a tie and a plan is never worse by a rounding.
//! May be called by the files of this folder only.

use super::super::EconomicsError;
use rust_decimal::Decimal;

/// Decimals kept: a trillionth of a dollar, a billionth of a watt.
pub(super) const DECIMALS: u32 = 12;
/// One, as a fixed-point number.
pub(super) const ONE: i128 = 10_i128.pow(DECIMALS);

/// The nearest fixed-point number (half to even).
pub(super) fn fixed(value: Decimal, figure: &'static str) -> Result<i128, EconomicsError> {
    let rounded = value.round_dp(DECIMALS);
    let lift = 10_i128.pow(DECIMALS.saturating_sub(rounded.scale()));
    rounded.mantissa().checked_mul(lift).ok_or(EconomicsError::Overflow { figure })
}

/// The same number as a decimal; beyond 7.9e16 it does not fit.
pub(super) fn decimal(value: i128, figure: &'static str) -> Result<Decimal, EconomicsError> {
    Decimal::try_from_i128_with_scale(value, DECIMALS)
        .map(|value| value.normalize())
        .map_err(|_| EconomicsError::Overflow { figure })
}

/// A fixed-point number as a float, for a search whose result is judged exactly afterwards.
pub(super) fn float(value: i128) -> f64 {
    value as f64 / ONE as f64
}

#[cfg(test)]
mod tests {
    use super::super::super::testing::d;
    use super::*;

    #[test]
    fn both_ways() {
        for text in ["0", "1", "-1", "0.000000000001", "-3.5", "79228162514264337.593543950335"] {
            let value = d(text);
            assert_eq!(decimal(fixed(value, "x").expect("in range"), "x"), Ok(value));
        }
        assert_eq!(fixed(d("0.0000000000015"), "x"), Ok(2));
        assert_eq!(fixed(d("1e3"), "x"), Ok(1_000 * ONE));
        assert_eq!(float(-ONE / 4), -0.25);
    }

    #[test]
    fn too_large_is_a_typed_error() {
        let overflow = EconomicsError::Overflow { figure: "x" };
        assert_eq!(fixed(Decimal::MAX, "x"), Err(overflow));
        assert_eq!(fixed(Decimal::MIN, "x"), Err(overflow));
        assert_eq!(decimal(i128::MAX, "x"), Err(overflow));
    }
}
