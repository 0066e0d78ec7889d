//! Owns how old a price or a network snapshot may be before its figures carry a warning.
//! Promises one bound for every room.
//! May be called by every module; needs nothing but its arguments.

use chrono::{DateTime, TimeDelta, Utc};

/// What is older is used with a warning, and no trade is filled at it.
pub const STALE_AFTER: TimeDelta = TimeDelta::minutes(30);

/// Whether what was observed then is old at this moment.
#[must_use]
pub fn is_stale(observed_at: DateTime<Utc>, now: DateTime<Utc>) -> bool {
    now.signed_duration_since(observed_at) > STALE_AFTER
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_an_hour_is_not_old_yet() {
        let now = DateTime::UNIX_EPOCH + TimeDelta::days(1);
        assert!(!is_stale(now - STALE_AFTER, now));
        assert!(is_stale(now - STALE_AFTER - TimeDelta::milliseconds(1), now));
        assert!(!is_stale(now + STALE_AFTER, now), "from a clock that is ahead");
    }
}
