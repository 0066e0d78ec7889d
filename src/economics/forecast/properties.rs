//! Owns the property tests of the forecasts, over histories from a fixed seed with every kind of extreme among them.
//! Promises no panic, intervals around the point that widen with the horizon, and the same answer to the same question.
//! May be called by the test runner only.

use super::super::mining::{MAX_DIFFICULTY, MIN_DIFFICULTY};
use super::super::testing::{Dice, d};
use super::testing::{closes, day, walk};
use super::*;
use chrono::{DateTime, TimeDelta, Utc};

/// Checks what holds for every forecast: consecutive days, intervals around the point that widen, falling confidence.
fn check(days: &[Estimate]) {
    for pair in days.windows(2) {
        assert_eq!(pair[1].date, pair[0].date.succ_opt().expect("a day"));
        assert!(pair[0].confidence >= pair[1].confidence, "confidence rises: {pair:?}");
    }
    let mut widest = 1.0;
    for day in days {
        let Some(Interval { lower, upper }) = day.interval else { continue };
        assert!(lower <= day.point && day.point <= upper, "{day:?}");
        assert!(day.confidence.is_none_or(|share| share > Decimal::ZERO && share <= Decimal::ONE));
        // A bound at the end of what a decimal or the formulas can hold says nothing about the width.
        let cut = lower < d("1e-12") || lower == MIN_DIFFICULTY || upper == MAX_DIFFICULTY;
        if let (false, Some(low), Some(high)) = (cut, float::ln(lower), float::ln(upper)) {
            let ratio = (high - low).exp();
            assert!(ratio >= widest * (1.0 - 1e-9), "narrows: {day:?}");
            widest = ratio;
        }
    }
}

/// A price history with holes, repeated days and extremes, in no order.
fn odd_history(dice: &mut Dice, days: u64) -> Vec<DailyClose> {
    let extremes = [d("0"), d("-1"), d("1e-28"), Decimal::MAX, Decimal::MIN, d("1")];
    let rare = 1 + dice.roll(60);
    let usual = closes(&walk(dice.roll(1_000) + 1, days as usize));
    let mut history: Vec<DailyClose> = Vec::new();
    for mut close in usual {
        match dice.roll(rare * 3) {
            0 => continue,
            1 => close.value = extremes[dice.roll(6) as usize],
            2 => history.push(close),
            _ => {}
        }
        let at = dice.roll(history.len() as u64 + 1) as usize;
        history.insert(at, close);
    }
    history
}

#[test]
fn price_forecasts_hold_for_odd_histories() {
    let mut dice = Dice(21);
    let mut given = 0;
    for round in 0..120 {
        let length = dice.roll(if round % 20 == 0 { 400 } else { 110 });
        let history = odd_history(&mut dice, length);
        let (today, days) = (day(length + dice.roll(4)), 1 + dice.roll(30) as u32);
        let first = price_forecast(today, &history, days);
        assert_eq!(first, price_forecast(today, &history, days), "not deterministic");
        match first {
            Ok(PriceOutlook::Forecast(forecast)) => {
                given += 1;
                assert_eq!(forecast.days.len(), days as usize);
                check(&forecast.days);
            }
            Ok(PriceOutlook::NotEnoughHistory(short)) => assert!(short.have_days < short.need_days),
            Err(error) => assert_eq!(error, EconomicsError::Overflow { figure: "btc_price_usd" }),
        }
    }
    assert!(given > 20, "only {given} histories gave a forecast");
}

#[test]
fn longer_forecasts_of_a_short_history_begin_like_shorter_ones() {
    // Below the days of a comparison the horizon decides nothing.
    let history = closes(&walk(4, 60));
    let outlook = |days| match price_forecast(day(59), &history, days).expect("in range") {
        PriceOutlook::Forecast(forecast) => forecast.days,
        PriceOutlook::NotEnoughHistory(short) => panic!("{short}"),
    };
    assert_eq!(outlook(3)[..], outlook(30)[..3]);
}

fn random_point(dice: &mut Dice) -> ChainPoint {
    let difficulties =
        ["150e12", "1e3", "1e18", "0", "-1", "151e12", "37e12", "79228162514264337593543950335"];
    let heights = [900_000, 0, u64::MAX, 2016 * 446, 2016 * 447 - 1];
    let times = [DateTime::<Utc>::MIN_UTC, DateTime::<Utc>::MAX_UTC, DateTime::UNIX_EPOCH];
    let rare = |dice: &mut Dice| dice.roll(12) == 0;
    let at = DateTime::UNIX_EPOCH + TimeDelta::seconds(dice.roll(40_000_000) as i64);
    ChainPoint {
        at: if rare(dice) { times[dice.roll(3) as usize] } else { at },
        block_height: if rare(dice) { heights[dice.roll(5) as usize] } else { 900_000 + dice.roll(66_000) },
        difficulty: if rare(dice) {
            d(difficulties[dice.roll(8) as usize])
        } else {
            d("140e12") + Decimal::from(dice.roll(1 << 44))
        },
    }
}

#[test]
fn difficulty_forecasts_hold_for_odd_snapshots() {
    let mut dice = Dice(22);
    let mut given = 0;
    for _ in 0..2_000 {
        let points: Vec<_> = (0..dice.roll(40)).map(|_| random_point(&mut dice)).collect();
        let changes = retarget_changes(&points);
        assert!(changes.len() <= epoch::MAX_RETARGETS && changes.iter().all(|change| change.is_finite()));
        let Some(view) = EpochView::of(&points) else { continue };
        assert!(view.block_seconds.is_finite() && (0.0..=1.0).contains(&view.unwatched_share()));
        let today = if dice.roll(8) == 0 { day(dice.roll(5_000_000)) } else { view.now.at.date_naive() };
        let first = difficulty_forecast(today, &view, &changes, 30);
        assert_eq!(first, difficulty_forecast(today, &view, &changes, 30), "not deterministic");
        let Ok(forecast) = first else { continue };
        given += 1;
        assert_eq!(forecast.days.len(), 30);
        check(&forecast.days);
        let retarget = &forecast.next_retarget;
        assert!(retarget.earliest <= retarget.at && retarget.at <= retarget.latest);
        let price = PriceOutlook::NotEnoughHistory(NotEnoughHistory { have_days: 0, need_days: 30 });
        let rows = forecast_rows(&price, &forecast, view.now.block_height, Decimal::ZERO).expect("in range");
        assert_eq!(rows.len(), 30);
    }
    assert!(given > 1_000, "only {given} of the snapshots gave a forecast");
}

#[test]
fn changes_that_no_chain_makes_give_no_nan() {
    let now = ChainPoint { at: DateTime::UNIX_EPOCH, block_height: 900_000, difficulty: d("150e12") };
    let view = EpochView::of(&[now]).expect("a snapshot");
    for odd in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, f64::MAX, f64::MIN, 1e3, -1e3, 5e-324] {
        for changes in [[odd; 6], [odd, 0.0, 0.01, -0.01, 0.02, odd], [odd, -odd, odd, -odd, odd, -odd]] {
            match difficulty_forecast(day(0), &view, &changes, 30) {
                Ok(forecast) => check(&forecast.days),
                Err(error) => assert!(matches!(
                    error,
                    EconomicsError::Overflow { .. } | EconomicsError::OutOfRange { field: "difficulty" }
                )),
            }
        }
    }
}
