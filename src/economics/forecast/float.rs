//! Owns the border between decimals and the floats inside the forecasts.
//! Promises that what crosses it is finite; anything else is a typed error.
//! May be called by the files of this folder only.

use super::super::EconomicsError;
use rust_decimal::Decimal;
use rust_decimal::prelude::ToPrimitive;

/// Natural logarithm of a positive decimal; `None` for any other.
pub(super) fn ln(value: Decimal) -> Option<f64> {
    value.to_f64().filter(|x| *x > 0.0).map(f64::ln).filter(|x| x.is_finite())
}

/// `e^exponent` as a decimal.
pub(super) fn exp(exponent: f64, figure: &'static str) -> Result<Decimal, EconomicsError> {
    decimal(exponent.exp(), figure)
}

/// A float as a decimal of at most 15 digits.
pub(super) fn decimal(value: f64, figure: &'static str) -> Result<Decimal, EconomicsError> {
    Decimal::try_from(value).map_err(|_| EconomicsError::Overflow { figure })
}

#[cfg(test)]
mod tests {
    use super::super::super::testing::{close, d};
    use super::*;

    #[test]
    fn there_and_back() {
        for text in ["0.0000000000000000000000000001", "1", "90000", "79228162514264337593543950335"] {
            let log = ln(d(text)).expect("positive");
            assert!(log.is_finite());
            if text != "79228162514264337593543950335" {
                close(exp(log, "x").expect("in range"), text);
            }
        }
        assert_eq!(ln(d("0")), None);
        assert_eq!(ln(d("-1")), None);
    }

    #[test]
    fn what_is_no_decimal_is_an_error() {
        let overflow = Err(EconomicsError::Overflow { figure: "x" });
        for exponent in [f64::NAN, f64::INFINITY, 67.0, f64::MAX] {
            assert_eq!(exp(exponent, "x"), overflow);
        }
        assert_eq!(exp(f64::NEG_INFINITY, "x"), Ok(Decimal::ZERO));
        assert_eq!(exp(-1_000.0, "x"), Ok(Decimal::ZERO));
    }
}
