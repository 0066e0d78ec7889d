//! Owns the figures of what a treasury holds: total, average cost, market value, unrealised gain, runway.
//! Promises that a figure that does not exist (no price, no cost, no opex) is `None` and never a default.
//! May be called by every module; needs nothing but its arguments.

use super::TreasuryError;
use super::lots::{Lot, total_cost_usd, total_sat};
use super::money::{MONTH_DAYS, per_btc_usd, value_usd};
use crate::economics::EconomicsError;
use crate::economics::exact::{self, div, product, sub};
use rust_decimal::Decimal;
use serde::{Deserialize, Serialize};

/// Figures of a treasury at a price.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inventory {
    /// Satoshi held.
    pub sat: u64,
    /// What they cost in USD.
    pub cost_usd: Decimal,
    /// Cost of one BTC in USD; none without satoshi.
    pub average_cost_usd: Option<Decimal>,
    /// Value in USD; none without a price.
    pub market_value_usd: Option<Decimal>,
    /// Value less cost in USD; none without a price.
    pub unrealised_usd: Option<Decimal>,
    /// Value less cost in percent of the cost; none without a price or a cost.
    pub unrealised_percent: Option<Decimal>,
    /// Days that the cash pays for; none without opex, 0 for a debt.
    pub runway_days: Option<Decimal>,
}

/// Computes the figures of the lots at `price_usd` per BTC, if there is one, with `cash_usd` at hand (any sign) against
/// `opex_usd_month` per month of 30 days.
///
/// # Errors
/// [`EconomicsError::OutOfRange`] for a lot that [`Lot::check`] refuses or a negative price or opex,
/// [`EconomicsError::Overflow`] when sums exceed 7.9e28.
pub fn inventory(
    lots: &[Lot],
    price_usd: Option<Decimal>,
    cash_usd: Decimal,
    opex_usd_month: Decimal,
) -> Result<Inventory, TreasuryError> {
    lots.iter().try_for_each(Lot::check)?;
    exact::not_negative(price_usd.unwrap_or_default(), "price_usd")?;
    let sat = total_sat(lots.iter())?;
    let cost_usd = total_cost_usd(lots.iter())?;
    let market_value_usd = price_usd.map(|price| value_usd(sat, price)).transpose()?;
    let unrealised_usd = market_value_usd.map(|value| sub(value, cost_usd, "unrealised_usd")).transpose()?;
    let unrealised_percent = unrealised_usd
        .filter(|_| !cost_usd.is_zero())
        .map(|gain| div(product([gain, Decimal::ONE_HUNDRED], PERCENT)?, cost_usd, PERCENT))
        .transpose()?;
    Ok(Inventory {
        sat,
        cost_usd: cost_usd.normalize(),
        average_cost_usd: per_btc_usd(cost_usd, sat)?.map(|cost| cost.normalize()),
        market_value_usd: market_value_usd.map(|value| value.normalize()),
        unrealised_usd: unrealised_usd.map(|gain| gain.normalize()),
        unrealised_percent,
        runway_days: runway_days(cash_usd, opex_usd_month)?,
    })
}

const PERCENT: &str = "unrealised_percent";

/// Days that `cash_usd` pays for: cash over daily opex. `None` without opex, 0 for a debt.
///
/// # Errors
/// [`EconomicsError::OutOfRange`] for a negative opex, [`EconomicsError::Overflow`] beyond 7.9e28.
pub fn runway_days(cash_usd: Decimal, opex_usd_month: Decimal) -> Result<Option<Decimal>, EconomicsError> {
    const FIGURE: &str = "runway_days";
    exact::not_negative(opex_usd_month, "opex_usd_month")?;
    if opex_usd_month.is_zero() {
        return Ok(None);
    }
    let cash_days = product([cash_usd.max(Decimal::ZERO), MONTH_DAYS], FIGURE)?;
    div(cash_days, opex_usd_month, FIGURE).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::economics::testing::{close, d, some_close};
    use chrono::DateTime;
    use uuid::Uuid;

    fn lot(sat: u64, cost: &str) -> Lot {
        Lot { id: Uuid::nil(), acquired_at: DateTime::UNIX_EPOCH, sat, cost_usd: d(cost) }
    }

    #[test]
    fn figures_of_the_specification() {
        let lots = [lot(1_000_000_000, "950000"), lot(250_000_000, "237500")];
        let i = inventory(&lots, Some(d("90000")), d("600000"), d("200000")).expect("in range");
        assert_eq!(i.sat, 1_250_000_000);
        close(i.cost_usd, "1187500");
        some_close(i.average_cost_usd, "95000");
        some_close(i.market_value_usd, "1125000");
        some_close(i.unrealised_usd, "-62500");
        some_close(i.unrealised_percent, "-5.263158");
        some_close(i.runway_days, "90");
        let json = serde_json::to_string(&i).expect("serialisable");
        assert_eq!(serde_json::from_str::<Inventory>(&json).ok(), Some(i));
    }

    #[test]
    fn what_does_not_exist_is_none() {
        let unpriced = inventory(&[lot(5, "1")], None, d("1"), d("0")).expect("in range");
        assert_eq!((unpriced.market_value_usd, unpriced.unrealised_usd), (None, None));
        assert_eq!((unpriced.unrealised_percent, unpriced.runway_days), (None, None));
        let free = inventory(&[lot(5, "0")], Some(d("1")), d("-1"), d("1")).expect("in range");
        assert_eq!((free.average_cost_usd, free.unrealised_percent), (Some(d("0")), None));
        assert_eq!(free.runway_days, Some(d("0")), "a debt pays for nothing");
        let empty = inventory(&[], Some(d("90000")), d("0"), d("0")).expect("in range");
        assert_eq!((empty.sat, empty.average_cost_usd), (0, None));
        assert_eq!(empty.market_value_usd, Some(d("0")));
    }

    #[test]
    fn figures_outside_their_range_are_named() {
        let outside = |field| Err(TreasuryError::Economics(EconomicsError::OutOfRange { field }));
        assert_eq!(inventory(&[lot(0, "1")], None, d("0"), d("0")), outside("sat"));
        assert_eq!(inventory(&[], Some(d("-1")), d("0"), d("0")), outside("price_usd"));
        assert_eq!(inventory(&[], None, d("0"), d("-1")), outside("opex_usd_month"));
        let lots = [lot(u64::MAX, "0"), lot(1, "0")];
        assert!(inventory(&lots, None, d("0"), d("0")).is_err());
        assert!(inventory(&lots[..1], Some(Decimal::MAX), d("0"), d("0")).is_err());
        assert!(inventory(&[], None, Decimal::MAX, d("1")).is_err());
    }
}
