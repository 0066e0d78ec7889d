//! Owns satoshi and dollars: the value of satoshi, the satoshi a sum is worth, shares of satoshi, the rounding of booked money.
//! Promises whole satoshi, rounded so that a share never exceeds its whole and a sum that is needed is reached.
//! May be called by every module; needs nothing but its arguments.

use crate::economics::EconomicsError;
use crate::economics::exact::{dec, div, product};
use rust_decimal::Decimal;

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
    fn booked_money_has_eight_decimals() {
        assert_eq!(booked_usd(d("1.000000005")), d("1"));
        assert_eq!(booked_usd(d("1.000000015")), d("1.00000002"));
        assert_eq!(booked_usd(Decimal::MAX), Decimal::MAX);
    }
}
