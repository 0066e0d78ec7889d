//! Owns the daily rows of a forecast as the API gives them: price, difficulty, network hashrate, hashprice, confidence.
//! Promises that each figure of a row belongs to its date, and that a figure without a basis is `None`.
//! May be called by every module; needs nothing but its arguments.

use super::super::mining::{btc_per_th_day, hashprice_usd_ph_day, network_hashrate_hs, subsidy_btc};
use super::super::{EconomicsError, exact};
use super::difficulty::DifficultyForecast;
use super::price::PriceOutlook;
use super::{Estimate, Interval};
use chrono::NaiveDate;
use rust_decimal::Decimal;
use serde::{Deserialize, Serialize};

/// Hashes per second in one EH/s, 1e18.
const HASHES_PER_EXAHASH: Decimal = exact::dec(1_000_000_000_000_000_000, 0);
const BLOCKS_PER_DAY: u64 = 144;

/// What a day of the future looks like. Bounds are `None` where the forecast has none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForecastRow {
    /// The day, UTC.
    pub date: NaiveDate,
    /// Price in USD at its end.
    pub btc_price_usd: Option<Decimal>,
    /// Lower bound of the price.
    pub btc_price_usd_lower: Option<Decimal>,
    /// Upper bound of the price.
    pub btc_price_usd_upper: Option<Decimal>,
    /// Confidence of the price.
    pub btc_price_usd_confidence: Option<Decimal>,
    /// Network hashrate in EH/s that the difficulty stands for.
    pub network_hashrate_eh: Decimal,
    /// Lower bound of the network hashrate.
    pub network_hashrate_eh_lower: Option<Decimal>,
    /// Upper bound of the network hashrate.
    pub network_hashrate_eh_upper: Option<Decimal>,
    /// Difficulty at the end of the day, as a plain number.
    pub difficulty: Decimal,
    /// Lower bound of the difficulty.
    pub difficulty_lower: Option<Decimal>,
    /// Upper bound of the difficulty.
    pub difficulty_upper: Option<Decimal>,
    /// Confidence of difficulty and network hashrate.
    pub difficulty_confidence: Option<Decimal>,
    /// Hashprice in $/PH/day at these points: what revenue follows from.
    pub hashprice_usd_ph_day: Option<Decimal>,
    /// The least confidence among the figures that the row has; `None` if that of one of them is not known.
    pub confidence: Option<Decimal>,
}

/// One row per day of the difficulty forecast. `block_height` is that of the snapshot it starts from and decides the
/// subsidy, `fees_btc_per_block` its mean fees, taken as constant.
///
/// # Errors
/// [`EconomicsError::OutOfRange`] for a difficulty outside 1e3..=1e18 or negative fees, [`EconomicsError::Overflow`]
/// for an absurd price.
pub fn forecast_rows(
    price: &PriceOutlook,
    difficulty: &DifficultyForecast,
    block_height: u64,
    fees_btc_per_block: Decimal,
) -> Result<Vec<ForecastRow>, EconomicsError> {
    exact::not_negative(fees_btc_per_block, "fees_btc_per_block")?;
    let prices = match price {
        PriceOutlook::Forecast(forecast) => forecast.days.as_slice(),
        PriceOutlook::NotEnoughHistory(_) => &[],
    };
    let row = |day: &Estimate| {
        let price = prices.iter().find(|price| price.date == day.date);
        let days = day.date.signed_duration_since(difficulty.as_of.date_naive()).num_days();
        let height = block_height.saturating_add(u64::try_from(days).unwrap_or(0) * BLOCKS_PER_DAY);
        let reward_btc = subsidy_btc(height).saturating_add(fees_btc_per_block);
        row(day, price, reward_btc)
    };
    difficulty.days.iter().map(row).collect()
}

fn row(
    difficulty: &Estimate,
    price: Option<&Estimate>,
    reward_btc: Decimal,
) -> Result<ForecastRow, EconomicsError> {
    let price_bounds = price.and_then(|price| price.interval);
    let bound = |side: fn(Interval) -> Decimal| difficulty.interval.map(side);
    let (lower, upper) = (bound(|interval| interval.lower), bound(|interval| interval.upper));
    let per_th = btc_per_th_day(difficulty.point, reward_btc)?;
    let price_confidence = price.map(|price| price.confidence);
    Ok(ForecastRow {
        date: difficulty.date,
        btc_price_usd: price.map(|price| price.point),
        btc_price_usd_lower: price_bounds.map(|interval| interval.lower),
        btc_price_usd_upper: price_bounds.map(|interval| interval.upper),
        btc_price_usd_confidence: price_confidence.flatten(),
        network_hashrate_eh: exahashes(difficulty.point)?,
        network_hashrate_eh_lower: lower.map(exahashes).transpose()?,
        network_hashrate_eh_upper: upper.map(exahashes).transpose()?,
        difficulty: difficulty.point,
        difficulty_lower: lower,
        difficulty_upper: upper,
        difficulty_confidence: difficulty.confidence,
        hashprice_usd_ph_day: price.map(|price| hashprice_usd_ph_day(per_th, price.point)).transpose()?,
        confidence: match price_confidence {
            Some(of_price) => of_price.zip(difficulty.confidence).map(|(a, b)| a.min(b)),
            None => difficulty.confidence,
        },
    })
}

fn exahashes(difficulty: Decimal) -> Result<Decimal, EconomicsError> {
    exact::div(network_hashrate_hs(difficulty)?, HASHES_PER_EXAHASH, "network_hashrate_eh")
}

#[cfg(test)]
mod tests;
