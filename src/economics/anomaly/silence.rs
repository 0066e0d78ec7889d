//! Owns the judgement that a machine no longer reports.
//! Promises that ten minutes to the second are not yet silence, and that a clock running ahead never is.
//! May be called by every module; the time now is an argument.

use chrono::{DateTime, TimeDelta, Utc};

/// Telemetry older than this says nothing about a machine.
pub const STALE_AFTER: TimeDelta = TimeDelta::minutes(10);

/// Whether a machine counts as offline: its newest telemetry, observed at `last_seen`, is more than ten minutes old.
/// A machine that has never reported has no `last_seen`; whether it should have is the caller's knowledge.
#[must_use]
pub fn is_offline(last_seen: DateTime<Utc>, now: DateTime<Utc>) -> bool {
    now.signed_duration_since(last_seen) > STALE_AFTER
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_minutes_and_one_second() {
        let now = DateTime::UNIX_EPOCH;
        assert!(!is_offline(now, now));
        assert!(!is_offline(now - TimeDelta::seconds(600), now));
        assert!(is_offline(now - TimeDelta::seconds(601), now));
        assert!(!is_offline(now + TimeDelta::days(1), now));
        assert!(is_offline(DateTime::<Utc>::MIN_UTC, DateTime::<Utc>::MAX_UTC));
        assert!(!is_offline(DateTime::<Utc>::MAX_UTC, DateTime::<Utc>::MIN_UTC));
    }
}
