//! When a job is due.

use std::fmt;
use std::time::Duration;

use chrono::{DateTime, Days, NaiveTime, TimeDelta, Utc};

/// When a job is due. Times that were missed are made up for by one run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Schedule {
    /// This long after it was due last, whole milliseconds.
    Every(Duration),
    /// Once a day, at this time UTC.
    Daily(NaiveTime),
}

impl Schedule {
    /// When a job that nobody has run yet is due.
    pub fn first(self, now: DateTime<Utc>) -> DateTime<Utc> {
        match self {
            Self::Every(_) => now,
            Self::Daily(_) => self.next(now, now),
        }
    }

    /// When a job is due again that was due then and has ended now: later than now.
    pub fn next(self, due: DateTime<Utc>, now: DateTime<Utc>) -> DateTime<Utc> {
        match self {
            Self::Every(interval) => {
                let interval = i64::try_from(interval.as_millis()).unwrap_or(i64::MAX).max(1);
                let missed = (now - due).num_milliseconds().max(0) / interval;
                let after = interval.saturating_mul(missed.saturating_add(1));
                let next = TimeDelta::try_milliseconds(after).and_then(|after| due.checked_add_signed(after));
                next.unwrap_or(DateTime::<Utc>::MAX_UTC)
            }
            Self::Daily(time) => {
                let today = now.date_naive().and_time(time).and_utc();
                let next = if today > now { Some(today) } else { today.checked_add_days(Days::new(1)) };
                next.unwrap_or(DateTime::<Utc>::MAX_UTC)
            }
        }
    }

    /// The time between two runs.
    pub fn period(self) -> Duration {
        match self {
            Self::Every(interval) => interval,
            Self::Daily(_) => Duration::from_secs(24 * 3_600),
        }
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Every(interval) => write!(f, "every {} s", interval.as_secs_f64()),
            Self::Daily(time) => write!(f, "daily at {} UTC", time.format("%H:%M")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> DateTime<Utc> {
        text.parse().expect("a time")
    }

    #[test]
    fn an_interval_keeps_its_beat_and_makes_up_for_what_was_missed_once() {
        let five = Schedule::Every(Duration::from_secs(300));
        let due = at("2026-03-01T12:00:00Z");
        assert_eq!(five.first(due), due);
        for (now, next) in [
            ("2026-03-01T12:00:00Z", "2026-03-01T12:05:00Z"),
            ("2026-03-01T12:04:59.999Z", "2026-03-01T12:05:00Z"),
            // It took as long as the interval, and longer.
            ("2026-03-01T12:05:00Z", "2026-03-01T12:10:00Z"),
            ("2026-03-01T12:17:00Z", "2026-03-01T12:20:00Z"),
            // A clock that was put back.
            ("2026-03-01T11:00:00Z", "2026-03-01T12:05:00Z"),
            ("2027-03-01T12:01:00Z", "2027-03-01T12:05:00Z"),
        ] {
            assert_eq!(five.next(due, at(now)), at(next), "{now}");
        }
        assert_eq!(five.to_string(), "every 300 s");
        let endless = Schedule::Every(Duration::MAX);
        assert!(endless.next(due, due) > due);
        assert!(Schedule::Every(Duration::ZERO).next(due, due) > due);
    }

    #[test]
    fn a_time_of_day_is_the_next_of_its_kind() {
        let daily = Schedule::Daily(NaiveTime::from_hms_opt(0, 5, 0).expect("a time"));
        for (now, next) in [
            ("2026-02-28T00:04:59Z", "2026-02-28T00:05:00Z"),
            ("2026-02-28T00:05:00Z", "2026-03-01T00:05:00Z"),
            ("2026-12-31T23:59:59Z", "2027-01-01T00:05:00Z"),
        ] {
            assert_eq!(daily.first(at(now)), at(next), "{now}");
            assert_eq!(daily.next(at("2020-01-01T00:05:00Z"), at(now)), at(next), "{now}");
        }
        assert_eq!((daily.to_string().as_str(), daily.period().as_secs()), ("daily at 00:05 UTC", 86_400));
    }
}
