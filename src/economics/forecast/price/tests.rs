//! Owns the unit tests of the price forecast.
//! Promises that the model is the one that did better on the past, and that a short history is said, not hidden.
//! May be called by the test runner only.

use super::super::super::testing::{close, d};
use super::super::testing::{closes, day, trend, walk};
use super::*;

fn forecast(today: u64, closes: &[DailyClose], days: u32) -> PriceForecast {
    match price_forecast(day(today), closes, days).expect("in range") {
        PriceOutlook::Forecast(forecast) => forecast,
        PriceOutlook::NotEnoughHistory(short) => panic!("{short}"),
    }
}

fn comparison(forecast: &PriceForecast) -> &Comparison {
    match &forecast.choice {
        Choice::Compared(comparison) => comparison,
        Choice::NotCompared(short) => panic!("{short}"),
    }
}

#[test]
fn walks_are_left_to_the_random_walk() {
    for seed in 1..=6 {
        let history = closes(&walk(seed, 400));
        let forecast = forecast(399, &history, 30);
        let compared = comparison(&forecast);
        assert_eq!((forecast.model, compared.origins), (PriceModel::RandomWalk, 20), "seed {seed}");
        assert!(compared.damped_trend_error.expect("fitted") > compared.random_walk_error * d("0.95"));
        close(forecast.days[29].point, &history[399].value.to_string());
    }
}

#[test]
fn a_trend_is_left_to_exponential_smoothing() {
    let history = closes(&trend(1, 400));
    let forecast = forecast(399, &history, 30);
    let compared = comparison(&forecast);
    assert_eq!(forecast.model, PriceModel::DampedTrend);
    assert!(compared.damped_trend_error.expect("fitted") < compared.random_walk_error);
    assert!(forecast.days[29].point > history[399].value);
}

#[test]
fn a_short_history_is_said_and_gives_no_number() {
    let history = closes(&walk(1, 29));
    let short = NotEnoughHistory { have_days: 29, need_days: 30 };
    assert_eq!(price_forecast(day(28), &history, 7), Ok(PriceOutlook::NotEnoughHistory(short)));
    assert_eq!(short.to_string(), "not enough history: have 29 days, need 30");
    let none = NotEnoughHistory { have_days: 0, need_days: 30 };
    assert_eq!(price_forecast(day(28), &[], 7), Ok(PriceOutlook::NotEnoughHistory(none)));
    // A history that ended four days ago is none.
    let old = closes(&walk(1, 400));
    assert_eq!(price_forecast(day(403), &old, 7), Ok(PriceOutlook::NotEnoughHistory(none)));
}

#[test]
fn before_a_comparison_is_possible_the_yardstick_is_used() {
    let history = closes(&trend(1, 149));
    let early = forecast(148, &history, 30);
    assert_eq!(early.model, PriceModel::RandomWalk);
    let short = NotEnoughHistory { have_days: 149, need_days: 150 };
    assert_eq!(early.choice, Choice::NotCompared(short));
    assert!(early.days.iter().all(|day| day.confidence == Some(NOMINAL_COVERAGE)));
    assert!(matches!(forecast(149, &closes(&trend(1, 150)), 30).choice, Choice::Compared(_)));
}

#[test]
fn days_begin_tomorrow_and_an_old_price_widens_the_interval() {
    let history = closes(&walk(2, 60));
    let (fresh, old) = (forecast(59, &history, 5), forecast(62, &history, 5));
    assert_eq!((fresh.as_of, fresh.days[0].date, fresh.days.len()), (day(59), day(60), 5));
    assert_eq!((old.as_of, old.days[0].date, old.days.len()), (day(59), day(63), 5));
    // The first day of the old one is the fourth after its newest price.
    assert_eq!(old.days[0], fresh.days[3]);
}

#[test]
fn bridged_days_are_counted() {
    let mut history = closes(&walk(3, 80));
    history.drain(40..42);
    let forecast = forecast(79, &history, 5);
    assert_eq!((forecast.history_days, forecast.bridged_days), (80, 2));
}

#[test]
fn a_constant_price_stays_and_has_no_spread() {
    let history = closes(&[11.0; 200]);
    let forecast = forecast(199, &history, 30);
    assert_eq!(forecast.model, PriceModel::RandomWalk);
    assert_eq!(comparison(&forecast).damped_trend_error, None);
    for day in &forecast.days {
        let interval = day.interval.expect("always");
        assert_eq!((interval.lower, interval.upper), (day.point, day.point));
    }
}

#[test]
fn intervals_of_a_walk_hold_what_they_promise() {
    // 40 walks, the last 10 days held back: about 80 % of the truths lie inside.
    let (mut inside, mut all) = (0, 0);
    for seed in 1..=40 {
        let history = closes(&walk(seed * 7, 100));
        let forecast = forecast(89, &history, 10);
        for (day, truth) in forecast.days.iter().zip(&history[90..]) {
            let interval = day.interval.expect("always");
            inside += u32::from((interval.lower..=interval.upper).contains(&truth.value));
            all += 1;
        }
    }
    let share = f64::from(inside) / f64::from(all);
    assert!((0.72..0.88).contains(&share), "{share}");
}

#[test]
fn what_is_out_of_range_is_named() {
    let history = closes(&walk(1, 60));
    for days in [0, 31] {
        let outside = Err(EconomicsError::OutOfRange { field: "days" });
        assert_eq!(price_forecast(day(59), &history, days), outside);
    }
    // A price that jumps over 56 orders of magnitude every day has no upper bound that a decimal could hold.
    let wild: Vec<_> = (0..60)
        .map(|i| DailyClose { date: day(i), value: if i % 2 == 0 { Decimal::MAX } else { d("1e-28") } })
        .collect();
    let overflow = Err(EconomicsError::Overflow { figure: "btc_price_usd" });
    assert_eq!(price_forecast(day(59), &wild, 5), overflow);
}
