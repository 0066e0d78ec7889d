//! Owns the synthetic price paths of this folder's unit tests.
//! Promises the same path for the same seed.
//! May be called by tests of this folder only.

use super::super::testing::Dice;
use super::DailyClose;
use chrono::{Days, NaiveDate};
use rust_decimal::Decimal;

/// The day with this number.
pub(super) fn day(number: u64) -> NaiveDate {
    NaiveDate::default() + Days::new(number)
}

/// Closes of consecutive days from day 0 on, from logarithms of the price.
pub(super) fn closes(logs: &[f64]) -> Vec<DailyClose> {
    let close = |(number, log): (u64, &f64)| DailyClose {
        date: day(number),
        value: Decimal::try_from(log.exp()).expect("a price"),
    };
    (0..).zip(logs).map(close).collect()
}

/// A sample of the normal distribution, nearly: the sum of twelve uniform ones.
fn normal(dice: &mut Dice) -> f64 {
    (0..12).map(|_| dice.roll(1_000_000) as f64 / 1e6).sum::<f64>() - 6.0
}

/// Logarithms of a random walk from about $60,000 with daily steps of 2.5 %.
pub(super) fn walk(seed: u64, days: usize) -> Vec<f64> {
    let mut dice = dice(seed);
    let mut log = 11.0;
    (0..days)
        .map(|_| {
            log += 0.025 * normal(&mut dice);
            log
        })
        .collect()
}

/// Logarithms of a price whose daily growth of about 0.5 % changes slowly, with 1 % of noise that does not last.
pub(super) fn trend(seed: u64, days: usize) -> Vec<f64> {
    let mut dice = dice(seed);
    let mut level = 11.0;
    (0..days)
        .map(|i| {
            level += 0.005 + 0.003 * (i as f64 / 60.0).sin();
            level + 0.01 * normal(&mut dice)
        })
        .collect()
}

fn dice(seed: u64) -> Dice {
    // Small seeds differ in few bits, which the first numbers of the generator would show.
    let mut dice = Dice(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15));
    (0..10).for_each(|_| {
        dice.roll(2);
    });
    dice
}
