//! Owns the unit tests of the forecast rows.
//! Promises the names of the API and that figures of one row belong together.
//! May be called by the test runner only.

use super::super::super::testing::{close, d, some_close};
use super::super::epoch::{ChainPoint, EpochView};
use super::super::testing::{closes, day, walk};
use super::super::{DailyClose, PriceForecast, difficulty_forecast, price_forecast};
use super::*;
use chrono::NaiveTime;

const HEIGHT: u64 = 2016 * 460 + 1000;

fn rows(history: &[DailyClose], changes: &[f64], height: u64) -> Vec<ForecastRow> {
    let today = day(history.len().saturating_sub(1) as u64);
    let now = ChainPoint {
        at: today.and_time(NaiveTime::MIN).and_utc(),
        block_height: height,
        difficulty: d("150e12"),
    };
    let view = EpochView::of(&[now]).expect("a snapshot");
    let difficulty = difficulty_forecast(today, &view, changes, 30).expect("in range");
    let price = price_forecast(today, history, 30).expect("in range");
    forecast_rows(&price, &difficulty, height, d("0.05")).expect("in range")
}

#[test]
fn figures_of_a_row_belong_together() {
    let history = closes(&walk(1, 50));
    let rows = rows(&history, &[0.01; 6], HEIGHT);
    assert_eq!(rows.len(), 30);
    let Ok(PriceOutlook::Forecast(PriceForecast { days: prices, .. })) =
        price_forecast(day(49), &history, 30)
    else {
        panic!("a history");
    };
    for (number, row) in (50..).zip(&rows) {
        assert_eq!(row.date, day(number));
        let price = row.btc_price_usd.expect("a history");
        let interval = Interval {
            lower: row.btc_price_usd_lower.expect("a history"),
            upper: row.btc_price_usd_upper.expect("a history"),
        };
        let of_price = prices.iter().find(|estimate| estimate.date == row.date).expect("the same days");
        assert_eq!((price, Some(interval)), (of_price.point, of_price.interval));
        // 4.25800681e-7 BTC per TH and day at 150e12 is the reference case.
        let expected = d("4.25800681e-4") * price * d("150e12") / row.difficulty;
        some_close(row.hashprice_usd_ph_day, &expected.to_string());
        close(row.network_hashrate_eh, &(row.difficulty / d("150e12") * d("1073.741824")).to_string());
        assert_eq!(row.confidence, Some(d("0.8")));
    }
    assert_eq!(rows[0].network_hashrate_eh, d("1073.741824"));
    assert_eq!(rows[0].difficulty_confidence, Some(d("1")));
}

#[test]
fn without_prices_the_network_is_still_forecast() {
    for row in rows(&[], &[0.01; 6], HEIGHT) {
        assert_eq!((row.btc_price_usd, row.btc_price_usd_lower, row.btc_price_usd_upper), (None, None, None));
        assert_eq!((row.hashprice_usd_ph_day, row.btc_price_usd_confidence), (None, None));
        assert_eq!(row.confidence, row.difficulty_confidence);
        assert!(row.confidence.is_some() && row.network_hashrate_eh_lower.is_some());
    }
}

#[test]
fn a_confidence_that_is_not_known_is_not_hidden_by_one_that_is() {
    let rows = rows(&closes(&walk(1, 50)), &[], HEIGHT);
    let last = &rows[29];
    assert_eq!((last.difficulty_confidence, last.confidence), (None, None));
    assert_eq!(last.btc_price_usd_confidence, Some(d("0.8")));
    assert_eq!((last.difficulty_lower, last.network_hashrate_eh_upper), (None, None));
}

#[test]
fn a_halving_on_the_way_halves_the_subsidy() {
    // Five days before the halving at 1,050,000: subsidy 3.125 to 1.5625 with 0.05 of fees.
    let rows = rows(&closes(&[11.0; 50]), &[], 1_050_000 - 5 * 144);
    let hashprice = |index: usize| rows[index].hashprice_usd_ph_day.expect("a history");
    close(hashprice(4) / hashprice(3), &(d("1.6125") / d("3.175")).to_string());
}

#[test]
fn names_are_those_of_the_api() {
    let row = serde_json::to_value(&rows(&[], &[], HEIGHT)[0]).expect("serialisable");
    for name in [
        "date",
        "btc_price_usd",
        "btc_price_usd_lower",
        "btc_price_usd_upper",
        "network_hashrate_eh",
        "network_hashrate_eh_lower",
        "network_hashrate_eh_upper",
        "difficulty",
        "difficulty_lower",
        "difficulty_upper",
        "confidence",
    ] {
        assert!(row.get(name).is_some(), "{name}");
    }
}

#[test]
fn negative_fees_are_named() {
    let today = day(0);
    let now =
        ChainPoint { at: today.and_time(NaiveTime::MIN).and_utc(), block_height: 0, difficulty: d("1e12") };
    let view = EpochView::of(&[now]).expect("a snapshot");
    let difficulty = difficulty_forecast(today, &view, &[], 1).expect("in range");
    let price = price_forecast(today, &[], 1).expect("in range");
    let outside = Err(EconomicsError::OutOfRange { field: "fees_btc_per_block" });
    assert_eq!(forecast_rows(&price, &difficulty, 0, d("-1")), outside);
}
