//! Owns the forecast of the network as a whole: from its daily closes to the rows of the days ahead.
//! Promises that what the history does not support is said, and that the rows go on without it.
//! May be called by every module; today's date is an argument.

use super::super::EconomicsError;
use super::{
    ChainPoint, DailyClose, DifficultyForecast, EpochView, ForecastRow, PriceOutlook, difficulty_forecast,
    forecast_rows, price_forecast, retarget_changes,
};
use chrono::{DateTime, NaiveDate, Utc};
use rust_decimal::Decimal;
use serde::{Deserialize, Serialize};

/// The last snapshot of a UTC day.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkClose {
    /// When it was observed.
    pub at: DateTime<Utc>,
    /// Price of one BTC, USD.
    pub btc_price_usd: Decimal,
    /// Difficulty, as a plain number.
    pub difficulty: Decimal,
    /// Height of the newest block.
    pub block_height: u64,
    /// Mean fees per block, BTC.
    pub fees_btc_per_block: Decimal,
}

/// What to know about the rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Warning {
    /// Too few days of prices: the rows have none, and no hashprice.
    NotEnoughPriceHistory,
    /// Too few retargets: after the next one the difficulty does not grow, and nothing is known of its spread.
    NotEnoughRetargets,
}

/// A forecast and what it rests on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outlook {
    /// One row per day, beginning tomorrow.
    pub rows: Vec<ForecastRow>,
    /// The price by itself: its model and why, or what is missing.
    pub price: PriceOutlook,
    /// The difficulty by itself.
    pub difficulty: DifficultyForecast,
    /// What to know about the rows.
    pub warnings: Vec<Warning>,
}

/// Forecast of the `days` (1..=30) after `today` from the closes up to it, oldest first. `None` without any.
///
/// # Errors
/// As [`difficulty_forecast`], [`price_forecast`] and [`forecast_rows`].
pub fn outlook(
    today: NaiveDate,
    closes: &[NetworkClose],
    days: u32,
) -> Result<Option<Outlook>, EconomicsError> {
    let Some(newest) = closes.iter().max_by_key(|close| (close.at, close.block_height)) else {
        return Ok(None);
    };
    let chain: Vec<ChainPoint> = closes.iter().map(point).collect();
    let Some(view) = EpochView::of(&chain) else { return Ok(None) };
    let difficulty = difficulty_forecast(today, &view, &retarget_changes(&chain), days)?;
    let prices: Vec<DailyClose> =
        closes.iter().map(|c| DailyClose { date: c.at.date_naive(), value: c.btc_price_usd }).collect();
    let price = price_forecast(today, &prices, days)?;
    let rows = forecast_rows(&price, &difficulty, newest.block_height, newest.fees_btc_per_block)?;
    let mut warnings = Vec::new();
    if matches!(price, PriceOutlook::NotEnoughHistory(_)) {
        warnings.push(Warning::NotEnoughPriceHistory);
    }
    if difficulty.growth_per_epoch.is_none() {
        warnings.push(Warning::NotEnoughRetargets);
    }
    Ok(Some(Outlook { rows, price, difficulty, warnings }))
}

fn point(close: &NetworkClose) -> ChainPoint {
    ChainPoint { at: close.at, block_height: close.block_height, difficulty: close.difficulty }
}

#[cfg(test)]
mod tests {
    use super::super::super::testing::d;
    use super::*;
    use chrono::{Days, NaiveTime, TimeDelta};

    fn today() -> NaiveDate {
        NaiveDate::from_ymd_opt(2026, 3, 1).expect("a date")
    }

    /// A close at noon of each of the last `days` days: 144 blocks a day, a retarget of 1 % every fortnight.
    fn history(days: u64) -> Vec<NetworkClose> {
        let noon = NaiveTime::from_hms_opt(12, 0, 0).expect("a time");
        (0..days)
            .map(|ago| {
                let height = 2016 * 460 + 1000 - ago * 144;
                NetworkClose {
                    at: (today() - Days::new(ago)).and_time(noon).and_utc(),
                    btc_price_usd: Decimal::from(90_000 - 100 * (ago % 7)),
                    difficulty: d("100e12") + d("1e12") * Decimal::from(height / 2016),
                    block_height: height,
                    fees_btc_per_block: d("0.05"),
                }
            })
            .collect()
    }

    #[test]
    fn a_long_history_gives_every_figure_and_no_warning() {
        let outlook = outlook(today(), &history(120), 30).expect("in range").expect("closes");
        assert_eq!((outlook.rows.len(), &outlook.warnings), (30, &Vec::new()));
        assert_eq!(outlook.rows[0].date, today() + Days::new(1));
        for row in &outlook.rows {
            assert!(row.btc_price_usd.is_some() && row.hashprice_usd_ph_day.is_some(), "{row:?}");
            assert!(row.difficulty_lower.is_some() && row.confidence.is_some(), "{row:?}");
        }
    }

    #[test]
    fn what_a_short_history_lacks_is_said_and_not_invented() {
        let short = outlook(today(), &history(29), 7).expect("in range").expect("closes");
        assert_eq!(short.warnings, [Warning::NotEnoughPriceHistory, Warning::NotEnoughRetargets]);
        let PriceOutlook::NotEnoughHistory(missing) = short.price else { panic!("{:?}", short.price) };
        assert_eq!((missing.have_days, missing.need_days), (29, 30));
        let last = short.rows.last().expect("rows");
        assert_eq!((last.btc_price_usd, last.hashprice_usd_ph_day, last.confidence), (None, None, None));
        assert!(last.difficulty > Decimal::ZERO);
        let enough = outlook(today(), &history(30), 7).expect("in range").expect("closes");
        assert_eq!(enough.warnings, [Warning::NotEnoughRetargets]);
        assert_eq!(outlook(today(), &[], 7), Ok(None));
    }

    #[test]
    fn an_old_history_has_no_price_any_more() {
        let late = today() + Days::new(4);
        let outlook = outlook(late, &history(120), 7).expect("in range").expect("closes");
        assert_eq!(outlook.warnings, [Warning::NotEnoughPriceHistory]);
        assert_eq!(outlook.difficulty.as_of.date_naive() + TimeDelta::days(4), late);
    }
}
