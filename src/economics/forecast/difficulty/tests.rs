//! Owns the unit tests of the difficulty forecast.
//! Promises every number of the specification's section 6 about the difficulty, relative 1e-6.
//! May be called by the test runner only.

use super::super::super::testing::{close, d};
use super::super::epoch::ChainPoint;
use super::*;

/// First block of the running epoch in these tests.
const FIRST: u64 = 2016 * 460;
/// A history that grew by exactly 2 % (logarithmic) at each retarget.
const STEADY: [f64; 6] = [0.02; 6];
/// Mean 2 %, standard deviation 3 %.
const UNEVEN: [f64; 6] = [0.05, -0.01, 0.05, -0.01, 0.05, -0.01];

fn midnight(day: i64) -> DateTime<Utc> {
    DateTime::UNIX_EPOCH + TimeDelta::days(day)
}

/// The view at midnight of day 0, `blocks` after a first block that was seen, at `pace` seconds per block.
fn view(blocks: u64, pace: i64) -> EpochView {
    let now = ChainPoint { at: midnight(0), block_height: FIRST + blocks, difficulty: d("150e12") };
    let first =
        ChainPoint { at: now.at - TimeDelta::seconds(blocks as i64 * pace), block_height: FIRST, ..now };
    EpochView::of(&[first, now]).expect("snapshots")
}

fn forecast(view: &EpochView, changes: &[f64]) -> DifficultyForecast {
    difficulty_forecast(midnight(0).date_naive(), view, changes, 30).expect("in range")
}

/// The points by day, with equal neighbours once.
fn steps(forecast: &DifficultyForecast) -> Vec<Decimal> {
    let mut points: Vec<_> = forecast.days.iter().map(|day| day.point).collect();
    points.dedup();
    points
}

#[test]
fn growth_is_damped() {
    let growth = damped_growth(0.02, 3);
    assert!((growth - 0.03904).abs() < 1e-12);
    close(times(d("150e12"), growth).expect("in range"), "155.9718113e12");
    assert_eq!(damped_growth(0.02, 0), 0.0);
    // However far ahead, growth adds up to g phi / (1 - phi).
    assert!((damped_growth(0.02, u32::MAX) - 0.08).abs() < 1e-12);
}

#[test]
fn constant_then_projected_then_damped_growth() {
    // 1000 blocks in 570,000 s leave 1015 blocks of 570 s: 6.7 days to the retarget.
    let forecast = forecast(&view(1000, 570), &STEADY);
    assert_eq!(forecast.next_retarget.at, midnight(0) + TimeDelta::seconds(1015 * 570));
    close(forecast.next_retarget.change * d("100"), "2.543235");
    let steps = steps(&forecast);
    assert_eq!(steps.len(), 3);
    assert_eq!(steps[0], d("150e12"));
    close(steps[1], "153.8148525e12");
    // 153.8148525e12 * e^(0.02 * 0.8)
    close(steps[2], "156.2956837e12");
    // The retarget falls on day 6, the next one two weeks later; a day's figure is that of its end.
    let on = |day: usize| forecast.days[day - 1].point;
    assert_eq!((on(5), on(6), on(19), on(20)), (steps[0], steps[1], steps[1], steps[2]));
    assert_eq!(forecast.days[0].date, midnight(1).date_naive());
    assert_eq!(forecast.days.len(), 30);
}

#[test]
fn an_epoch_nobody_watched_is_projected_without_change() {
    let now = ChainPoint { at: midnight(0), block_height: FIRST + 500, difficulty: d("150e12") };
    let forecast = forecast(&EpochView::of(&[now]).expect("a snapshot"), &[]);
    assert_eq!(forecast.next_retarget.change, d("0"));
    assert_eq!(steps(&forecast), [d("150e12")]);
}

#[test]
fn inside_the_epoch_the_difficulty_is_certain() {
    let forecast = forecast(&view(1000, 600), &UNEVEN);
    let earliest = forecast.next_retarget.earliest;
    assert!(
        earliest < forecast.next_retarget.at && forecast.next_retarget.at < forecast.next_retarget.latest
    );
    for day in &forecast.days {
        let end = day.date.and_time(NaiveTime::MIN).and_utc() + TimeDelta::days(1);
        let interval = day.interval.expect("a history");
        if end < forecast.next_retarget.at {
            assert_eq!((interval.lower, interval.upper), (day.point, day.point));
        }
        assert_eq!(day.confidence == Some(d("1")), end < earliest, "{}", day.date);
        assert!(day.confidence >= Some(d("0.8")));
    }
}

#[test]
fn intervals_come_from_the_spread_of_past_retargets() {
    let forecast = forecast(&view(1008, 600), &UNEVEN);
    // Sample deviation of +-3 % around the mean of six: 0.03 * sqrt(6 / 5). Half of the epoch is known.
    let sigma = 0.03 * 1.2_f64.sqrt();
    let ratio = |day: usize| {
        let day = &forecast.days[day - 1];
        float::ln(day.interval.expect("a history").upper / day.point).expect("positive")
    };
    assert!((ratio(10) - INTERVAL_Z * sigma * 0.5_f64.sqrt()).abs() < 1e-6);
    assert!((ratio(25) - INTERVAL_Z * sigma * 1.5_f64.sqrt()).abs() < 1e-6);
    assert_eq!(forecast.days[9].confidence, Some(d("0.8")));
}

#[test]
fn without_enough_retargets_there_is_no_growth_and_no_interval() {
    let short = forecast(&view(1000, 570), &STEADY[..5]);
    assert_eq!((short.retargets_known, short.retargets_needed, short.growth_per_epoch), (5, 6, None));
    let last = short.days.last().expect("30 days");
    assert_eq!((last.interval, last.confidence), (None, None));
    close(last.point, "153.8148525e12");
    // Until the retarget nothing but consensus is needed.
    let first = &short.days[0];
    assert_eq!(first.interval, Some(Interval { lower: first.point, upper: first.point }));
    assert_eq!(first.confidence, Some(d("1")));
    close(forecast(&view(1000, 570), &STEADY).growth_per_epoch.expect("enough"), "0.02");
}

#[test]
fn a_slow_epoch_ends_late() {
    let (slow, fast) = (forecast(&view(1000, 900), &STEADY), forecast(&view(1000, 450), &STEADY));
    assert_eq!(slow.next_retarget.at, midnight(0) + TimeDelta::seconds(1015 * 900));
    assert_eq!(fast.next_retarget.at, midnight(0) + TimeDelta::seconds(1015 * 450));
    assert!(slow.next_retarget.change < d("0") && fast.next_retarget.change > d("0"));
}

#[test]
fn the_last_block_of_an_epoch_retargets_at_once() {
    let forecast = forecast(&view(2015, 600), &STEADY);
    assert_eq!(forecast.next_retarget.at, midnight(0));
    assert_eq!(steps(&forecast).len(), 3, "days 0, 14 and 28");
}

#[test]
fn what_is_out_of_range_is_named() {
    let today = midnight(0).date_naive();
    for days in [0, 31, u32::MAX] {
        let outside = Err(EconomicsError::OutOfRange { field: "days" });
        assert_eq!(difficulty_forecast(today, &view(1000, 600), &STEADY, days), outside);
    }
    let mut odd = view(1000, 600);
    odd.now.difficulty = d("0");
    let outside = Err(EconomicsError::OutOfRange { field: "difficulty" });
    assert_eq!(difficulty_forecast(today, &odd, &STEADY, 1), outside);
    let outside = Err(EconomicsError::OutOfRange { field: "date" });
    assert_eq!(difficulty_forecast(NaiveDate::MAX, &view(1000, 600), &STEADY, 1), outside);
}
