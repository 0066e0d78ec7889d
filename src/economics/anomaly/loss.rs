//! Owns the severity of an anomaly: the revenue that the missing hashrate would earn.
//! Promises the same revenue per TH as the portfolio; more hashrate than rated loses nothing.
//! May be called by every module; needs nothing but its arguments.

use super::super::mining::{Network, net_of_gross};
use super::super::{Assumptions, EconomicsError, exact};
use rust_decimal::Decimal;

/// Net revenue lost per day, USD: `(rated - measured) * BTC/TH/day * price`, net of uptime and pool fee; hashrates in
/// TH/s. 0 when nothing is missing.
///
/// Power that a silent machine does not draw is not counted as saved: whether it draws none is not known without a
/// reading, and the anomaly list is sorted by what a repair brings back.
///
/// # Errors
/// [`EconomicsError::OutOfRange`] for a negative hashrate, or as [`Network::check`];
/// [`EconomicsError::Overflow`] beyond 7.9e28.
pub fn lost_usd_day(
    rated_ths: Decimal,
    measured_ths: Decimal,
    network: &Network,
    assumptions: &Assumptions,
) -> Result<Decimal, EconomicsError> {
    const FIGURE: &str = "lost_usd_day";
    exact::not_negative(rated_ths, "rated_ths")?;
    exact::not_negative(measured_ths, "measured_ths")?;
    let missing_ths = exact::sub(rated_ths, measured_ths, FIGURE)?.max(Decimal::ZERO);
    let gross = exact::product([missing_ths, network.btc_per_th_day()?, network.btc_price_usd], FIGURE)?;
    net_of_gross(gross, assumptions.uptime, Decimal::ZERO, assumptions.pool_fee)
}

#[cfg(test)]
mod tests {
    use super::super::super::testing::{close, d};
    use super::*;

    fn reference() -> Network {
        Network {
            btc_price_usd: d("90000"),
            difficulty: d("150e12"),
            block_height: 900_000,
            fees_btc_per_block: d("0.05"),
        }
    }

    fn lost(rated: &str, measured: &str) -> Result<Decimal, EconomicsError> {
        lost_usd_day(d(rated), d(measured), &reference(), &Assumptions::default())
    }

    #[test]
    fn a_dead_machine_of_the_reference_case_loses_its_net_revenue() {
        close(lost("200", "0").expect("in range"), "7.511124");
        close(lost("200", "120").expect("in range"), "3.0044496");
    }

    #[test]
    fn nothing_missing_loses_nothing() {
        assert_eq!(lost("200", "200"), Ok(d("0")));
        assert_eq!(lost("200", "230"), Ok(d("0")));
    }

    #[test]
    fn what_is_out_of_range_is_named() {
        assert_eq!(lost("-1", "0"), Err(EconomicsError::OutOfRange { field: "rated_ths" }));
        assert_eq!(lost("1", "-1"), Err(EconomicsError::OutOfRange { field: "measured_ths" }));
        assert!(lost("79228162514264337593543950335", "0").is_ok());
    }
}
