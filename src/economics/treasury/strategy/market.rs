//! Owns what strategies look at outside the treasury: a day's price and, where they exist, the figures around it.
//! Promises ranges that the rules can rely on; everything but date, price and fee may be missing.
//! May be called by every module; needs nothing but its arguments.

use crate::economics::EconomicsError;
use crate::economics::exact;
use chrono::NaiveDate;
use rust_decimal::Decimal;

/// The market on a day.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Market<'a> {
    /// The day, UTC.
    pub date: NaiveDate,
    /// Price of one BTC in USD, > 0.
    pub price_usd: Decimal,
    /// Share of the proceeds that the venue keeps, 0..1.
    pub fee: Decimal,
    /// Highest price in USD since the cycle began, > 0.
    pub high_usd: Option<Decimal>,
    /// Daily closes in USD, oldest first, the newest last; empty when there are none.
    pub closes_usd: &'a [Decimal],
    /// Satoshi mined on this day.
    pub production_sat: Option<u64>,
    /// Height of the newest block.
    pub block_height: Option<u64>,
    /// Percentile rank of today's hashprice in the past year, 0..=100.
    pub hashprice_percentile: Option<Decimal>,
    /// Issuance in USD over its mean of a year, >= 0.
    pub puell_multiple: Option<Decimal>,
}

impl Market<'static> {
    /// A day of which only the price is known, without a fee.
    #[must_use]
    pub const fn at(date: NaiveDate, price_usd: Decimal) -> Self {
        Self {
            date,
            price_usd,
            fee: Decimal::ZERO,
            high_usd: None,
            closes_usd: &[],
            production_sat: None,
            block_height: None,
            hashprice_percentile: None,
            puell_multiple: None,
        }
    }
}

impl Market<'_> {
    /// Checks every figure against the range given at its definition.
    ///
    /// # Errors
    /// [`EconomicsError::OutOfRange`] naming the first field that is outside.
    pub fn check(&self) -> Result<(), EconomicsError> {
        let positive = |value: Option<Decimal>| value.is_none_or(|value| value > Decimal::ZERO);
        exact::within(positive(Some(self.price_usd)), "price_usd")?;
        check_fee(self.fee)?;
        exact::within(positive(self.high_usd), "high_usd")?;
        let percentile = self.hashprice_percentile.unwrap_or_default();
        let percent = Decimal::ZERO..=Decimal::ONE_HUNDRED;
        exact::within(percent.contains(&percentile), "hashprice_percentile")?;
        exact::not_negative(self.puell_multiple.unwrap_or_default(), "puell_multiple")
    }
}

/// A fee leaves something of the proceeds.
pub(in crate::economics::treasury) fn check_fee(fee: Decimal) -> Result<(), EconomicsError> {
    exact::within((Decimal::ZERO..Decimal::ONE).contains(&fee), "fee")
}
