//! Owns the arithmetic of this folder: decimal constants, checked operations, range checks.
//! Promises that an operation either gives an exact (28-digit) decimal or a typed error; nothing here panics.
//! May be called by the files of this folder only.

use super::EconomicsError;
use rust_decimal::Decimal;

/// `mantissa / 10^scale` as a constant (scale <= 28).
pub(super) const fn dec(mantissa: u64, scale: u32) -> Decimal {
    Decimal::from_parts(mantissa as u32, (mantissa >> 32) as u32, 0, false, scale)
}

pub(super) fn add(a: Decimal, b: Decimal, figure: &'static str) -> Result<Decimal, EconomicsError> {
    a.checked_add(b).ok_or(EconomicsError::Overflow { figure })
}

pub(super) fn sub(a: Decimal, b: Decimal, figure: &'static str) -> Result<Decimal, EconomicsError> {
    a.checked_sub(b).ok_or(EconomicsError::Overflow { figure })
}

/// Product of all factors, left to right; the order decides where digits are lost, so callers put large factors first.
pub(super) fn product<const N: usize>(
    factors: [Decimal; N],
    figure: &'static str,
) -> Result<Decimal, EconomicsError> {
    factors.into_iter().try_fold(Decimal::ONE, |acc, factor| {
        acc.checked_mul(factor).ok_or(EconomicsError::Overflow { figure })
    })
}

/// Quotient of a denominator that the caller knows to be non-zero; zero is reported like an overflow.
pub(super) fn div(a: Decimal, b: Decimal, figure: &'static str) -> Result<Decimal, EconomicsError> {
    a.checked_div(b).ok_or(EconomicsError::Overflow { figure })
}

/// `base^exponent` by squaring; `None` beyond the decimal's range.
pub(super) fn power(base: Decimal, exponent: u32) -> Option<Decimal> {
    let (mut result, mut square, mut left) = (Decimal::ONE, base, exponent);
    loop {
        if left & 1 == 1 {
            result = result.checked_mul(square)?;
        }
        left >>= 1;
        // The square after the last bit is never used and must not be the one that overflows.
        if left == 0 {
            return Some(result);
        }
        square = square.checked_mul(square)?;
    }
}

pub(super) fn within(holds: bool, field: &'static str) -> Result<(), EconomicsError> {
    if holds { Ok(()) } else { Err(EconomicsError::OutOfRange { field }) }
}

pub(super) fn not_negative(value: Decimal, field: &'static str) -> Result<(), EconomicsError> {
    within(value >= Decimal::ZERO, field)
}

/// A share lies in 0..=1.
pub(super) fn share(value: Decimal, field: &'static str) -> Result<(), EconomicsError> {
    within((Decimal::ZERO..=Decimal::ONE).contains(&value), field)
}

/// A drift is a relative change that leaves something: above -1.
pub(super) fn drift(value: Decimal, field: &'static str) -> Result<(), EconomicsError> {
    within(value > Decimal::NEGATIVE_ONE, field)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{close, d};
    use super::*;

    #[test]
    fn constants_carry_more_than_32_bits() {
        assert_eq!(dec(86_400_000_000_000_000, 0), d("86400000000000000"));
        assert_eq!(dec(304_375, 4), d("30.4375"));
    }

    #[test]
    fn powers() {
        assert_eq!(power(d("0.5"), 0), Some(d("1")));
        assert_eq!(power(d("2"), 10), Some(d("1024")));
        assert_eq!(power(d("2"), 95), Some(d("39614081257132168796771975168")));
        assert_eq!(power(d("2"), 97), None);
        assert_eq!(power(d("0.9"), u32::MAX), Some(d("0")));
        close(power(d("0.985"), 27).expect("in range"), "0.66493351493129180470");
    }

    #[test]
    fn errors_name_the_figure() {
        let overflow = Err(EconomicsError::Overflow { figure: "x" });
        assert_eq!(add(Decimal::MAX, Decimal::MAX, "x"), overflow);
        assert_eq!(sub(Decimal::MIN, Decimal::MAX, "x"), overflow);
        assert_eq!(product([Decimal::MAX, Decimal::MAX], "x"), overflow);
        assert_eq!(div(Decimal::ONE, Decimal::ZERO, "x"), overflow);
    }
}
