//! Owns daily series: the last value of each UTC day from irregular snapshots, and the run that forecasts start from.
//! Promises that gaps and duplicates have one documented meaning, and that filling a gap never looks ahead.
//! May be called by every module; needs nothing but its arguments.

use super::float;
use chrono::{DateTime, NaiveDate, Utc};
use rust_decimal::Decimal;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Missing days in a row that are bridged; a longer hole ends the usable history.
pub const MAX_GAP_DAYS: i64 = 3;
/// Days of history that forecasts look at; what is older describes another market.
pub const MAX_HISTORY_DAYS: usize = 730;

/// The last value of a UTC day.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DailyClose {
    /// The day, UTC.
    pub date: NaiveDate,
    /// Its last value, in the unit of the snapshots.
    pub value: Decimal,
}

/// The last value of each UTC day, by date; days without a snapshot are absent. The order of the snapshots does not
/// matter, but of several at one instant the last given counts. The running day closes with what is known so far.
#[must_use]
pub fn daily_closes(snapshots: impl IntoIterator<Item = (DateTime<Utc>, Decimal)>) -> Vec<DailyClose> {
    let mut days: BTreeMap<NaiveDate, (DateTime<Utc>, Decimal)> = BTreeMap::new();
    for (at, value) in snapshots {
        let close = days.entry(at.date_naive()).or_insert((at, value));
        if at >= close.0 {
            *close = (at, value);
        }
    }
    days.into_iter().map(|(date, (_, value))| DailyClose { date, value }).collect()
}

/// The usable history of a positive figure before a forecast: logarithms of consecutive days without a hole.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct LogRun {
    /// Natural logarithm of each day, oldest first.
    pub(super) logs: Vec<f64>,
    /// Whether the day has a value of its own; a bridged day repeats the one before.
    pub(super) observed: Vec<bool>,
    /// Days between the last value and `today`, 0..=3.
    pub(super) age_days: u32,
}

impl LogRun {
    /// The run that ends at most three missing days before `today`; empty if there is none.
    ///
    /// The closes may be in any order; of several of one day the last given counts. Values that are not positive are
    /// no prices and count as missing, closes after `today` are ignored. Up to three missing days in a row are bridged
    /// by the value before them: that keeps the size of the following step and, unlike interpolation, knows nothing of
    /// the future, so that the back-test stays honest. At a longer hole everything before it is left out.
    pub(super) fn until(today: NaiveDate, closes: &[DailyClose]) -> Self {
        let known: BTreeMap<NaiveDate, f64> = closes
            .iter()
            .filter(|close| close.date <= today)
            .filter_map(|close| Some((close.date, float::ln(close.value)?)))
            .collect();
        let mut days: Vec<(f64, bool)> = Vec::new();
        let (mut later, mut age_days) = (today, 0);
        for (date, log) in known.into_iter().rev() {
            let apart = later.signed_duration_since(date).num_days();
            let missing = if days.is_empty() { apart } else { apart - 1 };
            if missing > MAX_GAP_DAYS || days.len() >= MAX_HISTORY_DAYS {
                break;
            }
            if days.is_empty() {
                // At most three, as just checked.
                age_days = missing as u32;
            } else {
                days.extend((0..missing).map(|_| (log, false)));
            }
            days.push((log, true));
            later = date;
        }
        days.reverse();
        let (logs, observed) = days.into_iter().unzip();
        Self { logs, observed, age_days }
    }

    /// Days of the run.
    pub(super) fn days(&self) -> u32 {
        u32::try_from(self.logs.len()).unwrap_or(u32::MAX)
    }

    /// How many of them are bridged.
    pub(super) fn bridged_days(&self) -> u32 {
        u32::try_from(self.observed.iter().filter(|observed| !**observed).count()).unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::testing::d;
    use super::*;
    use chrono::{Days, TimeDelta};

    fn day(number: u64) -> NaiveDate {
        NaiveDate::default() + Days::new(number)
    }

    fn close(number: u64, value: &str) -> DailyClose {
        DailyClose { date: day(number), value: d(value) }
    }

    fn hour(hours: i64) -> DateTime<Utc> {
        DateTime::UNIX_EPOCH + TimeDelta::hours(hours)
    }

    /// The run as prices, bridged ones in brackets.
    fn run(today: u64, closes: &[DailyClose]) -> String {
        let run = LogRun::until(day(today), closes);
        let price = |log: &f64, observed: &bool| {
            let price = log.exp().round();
            if *observed { format!("{price}") } else { format!("({price})") }
        };
        run.logs.iter().zip(&run.observed).map(|(log, seen)| price(log, seen)).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn a_day_closes_with_its_last_value() {
        let snapshots = [
            (hour(30), d("5")),
            (hour(1), d("1")),
            (hour(23), d("3")),
            (hour(12), d("2")),
            (hour(24), d("4")),
            (hour(100), d("7")),
        ];
        assert_eq!(daily_closes(snapshots), [close(0, "3"), close(1, "5"), close(4, "7")]);
        let backwards: Vec<_> = snapshots.into_iter().rev().collect();
        assert_eq!(daily_closes(backwards), daily_closes(snapshots));
        assert!(daily_closes([]).is_empty());
    }

    #[test]
    fn of_two_values_at_one_instant_the_last_given_counts() {
        assert_eq!(daily_closes([(hour(5), d("1")), (hour(5), d("2"))]), [close(0, "2")]);
        assert_eq!(run(0, &[close(0, "1"), close(0, "2")]), "2");
    }

    #[test]
    fn short_gaps_are_bridged_by_the_value_before() {
        let closes = [close(0, "10"), close(1, "20"), close(5, "30")];
        assert_eq!(run(5, &closes), "10 20 (20) (20) (20) 30");
        assert_eq!(LogRun::until(day(5), &closes).bridged_days(), 3);
    }

    #[test]
    fn a_longer_hole_ends_the_history() {
        assert_eq!(run(6, &[close(0, "10"), close(1, "20"), close(6, "30")]), "30");
        assert_eq!(run(4, &[close(0, "10"), close(1, "20")]), "10 20");
        assert_eq!(LogRun::until(day(4), &[close(1, "20")]).age_days, 3);
        assert_eq!(LogRun::until(day(5), &[close(1, "20")]), LogRun::default());
    }

    #[test]
    fn what_is_no_price_is_missing_and_the_future_is_ignored() {
        let closes = [close(0, "10"), close(1, "0"), close(2, "-5"), close(3, "30"), close(4, "40")];
        assert_eq!(run(3, &closes), "10 (10) (10) 30");
        assert_eq!(run(3, &[]), "");
    }

    #[test]
    fn closes_may_come_in_any_order() {
        assert_eq!(run(2, &[close(2, "30"), close(0, "10"), close(1, "20")]), "10 20 30");
    }

    #[test]
    fn the_history_is_bounded() {
        let closes: Vec<_> = (0..2_000).map(|i| close(i, "10")).collect();
        assert_eq!(LogRun::until(day(1_999), &closes).logs.len(), MAX_HISTORY_DAYS);
    }
}
