//! Owns satoshi and dollars: the value of satoshi, the satoshi a sum is worth, shares of satoshi, the rounding of booked money.
//! Promises whole satoshi, rounded so that a share never exceeds its whole and a sum that is needed is reached.
//! May be called by every module; needs nothing but its arguments.

use crate::economics::EconomicsError;
use crate::economics::exact::{dec, div, product};
use rust_decimal::Decimal;
use rust_decimal::prelude::ToPrimitive;

/// Satoshi of one BTC.
pub const SAT_PER_BTC: u64 = 100_000_000;
/// Days of a month of the treasury.
pub const MONTH_DAYS: Decimal = dec(30, 0);
/// Decimals of money that is booked: fine enough for any price times a satoshi, coarse enough that sums stay exact.
pub const USD_DECIMALS: u32 = 8;

/// Money as it is booked: rounded to 8 decimals, half to even.
#[must_use]
pub fn booked_usd(amount_usd: Decimal) -> Decimal {
    amount_usd.round_dp(USD_DECIMALS)
}

/// Value in USD of `sat` satoshi at `price_usd` per BTC, unrounded: `price * sat / 1e8`.
///
/// # Errors
/// [`EconomicsError::Overflow`] beyond 7.9e28.
pub fn value_usd(sat: u64, price_usd: Decimal) -> Result<Decimal, EconomicsError> {
    product([price_usd, Decimal::from(sat), dec(1, 8)], "value_usd")
}

/// Price in USD of one BTC of which `sat` satoshi cost `total_usd`: `total * 1e8 / sat`; `None` without satoshi.
///
/// # Errors
/// [`EconomicsError::Overflow`] beyond 7.9e28.
pub fn per_btc_usd(total_usd: Decimal, sat: u64) -> Result<Option<Decimal>, EconomicsError> {
    const FIGURE: &str = "average_cost_usd";
    if sat == 0 {
        return Ok(None);
    }
    let scaled = product([total_usd, Decimal::from(SAT_PER_BTC)], FIGURE)?;
    div(scaled, Decimal::from(sat), FIGURE).map(Some)
}

/// Satoshi that are worth `amount_usd` at `price_usd` per BTC, rounded up to the next one; 0 for nothing or a debt.
/// More than a `u64` holds is `u64::MAX`: no inventory has as many.
///
/// # Errors
/// [`EconomicsError::Overflow`] beyond 7.9e28 satoshi or for a price of 0.
pub(super) fn sat_worth(amount_usd: Decimal, price_usd: Decimal) -> Result<u64, EconomicsError> {
    const FIGURE: &str = "sat";
    if amount_usd <= Decimal::ZERO {
        return Ok(0);
    }
    let scaled = product([amount_usd, Decimal::from(SAT_PER_BTC)], FIGURE)?;
    Ok(div(scaled, price_usd, FIGURE)?.ceil().to_u64().unwrap_or(u64::MAX))
}

/// `share` (0..=1) of `sat`, rounded down.
///
/// # Errors
/// [`EconomicsError::Overflow`] for a share outside 0..=1 that leaves the range of satoshi.
pub(super) fn share_sat(sat: u64, share: Decimal) -> Result<u64, EconomicsError> {
    let part = product([Decimal::from(sat), share], "sat")?;
    part.floor().to_u64().ok_or(EconomicsError::Overflow { figure: "sat" })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::economics::testing::d;

    #[test]
    fn value_and_price_are_each_others_inverse() {
        assert_eq!(value_usd(1_250_000_000, d("90000")), Ok(d("1125000")));
        assert_eq!(value_usd(1, d("0.00000001")), Ok(d("0.0000000000000001")));
        assert_eq!(value_usd(0, Decimal::MAX), Ok(d("0")));
        assert!(value_usd(u64::MAX, Decimal::MAX).is_err());
        assert_eq!(per_btc_usd(d("1125000"), 1_250_000_000), Ok(Some(d("90000"))));
        assert_eq!(per_btc_usd(d("1"), 0), Ok(None));
        assert!(per_btc_usd(Decimal::MAX, 1).is_err());
    }

    #[test]
    fn a_sum_is_reached_and_a_share_not_exceeded() {
        assert_eq!(sat_worth(d("50000"), d("90000")), Ok(55_555_556));
        assert_eq!(sat_worth(d("90000"), d("90000")), Ok(SAT_PER_BTC));
        assert_eq!(sat_worth(d("0"), d("90000")), Ok(0));
        assert_eq!(sat_worth(d("-5"), d("90000")), Ok(0));
        assert_eq!(sat_worth(d("1e15"), d("1")), Ok(u64::MAX));
        assert!(sat_worth(d("1"), d("0")).is_err());
        assert_eq!(share_sat(10, d("0.19")), Ok(1));
        assert_eq!(share_sat(u64::MAX, d("1")), Ok(u64::MAX));
        assert_eq!(share_sat(u64::MAX, d("0")), Ok(0));
        assert_eq!(share_sat(3, d("0.3333333333333333333333333333")), Ok(0));
        assert!(share_sat(u64::MAX, d("2")).is_err());
        assert!(share_sat(1, d("-2")).is_err());
    }

    #[test]
    fn booked_money_has_eight_decimals() {
        assert_eq!(booked_usd(d("1.000000005")), d("1"));
        assert_eq!(booked_usd(d("1.000000015")), d("1.00000002"));
        assert_eq!(booked_usd(Decimal::MAX), Decimal::MAX);
    }
}
