//! The database's clock, for whatever must agree with the times that PostgreSQL writes.
//!
//! Hosts' clocks differ and step. What we were told last, carried on by a clock that only runs, does neither.

use std::sync::{Mutex, PoisonError};

use chrono::{DateTime, Utc};
use tokio::time::Instant;

/// What the database's clock showed, and when we heard it.
#[derive(Debug)]
pub(super) struct Clock(Mutex<(DateTime<Utc>, Instant)>);

impl Clock {
    pub(super) fn heard(shown: DateTime<Utc>) -> Self {
        Self(Mutex::new((shown, Instant::now())))
    }

    /// It shows this.
    pub(super) fn set(&self, shown: DateTime<Utc>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = (shown, Instant::now());
    }

    pub(super) fn now(&self) -> DateTime<Utc> {
        let (shown, at) = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        shown + at.elapsed()
    }
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;

    use super::*;

    #[test]
    fn it_goes_on_from_what_was_heard_last() {
        let near = |shown, now: DateTime<Utc>| now >= shown && now - shown < TimeDelta::seconds(60);
        let ahead = DateTime::UNIX_EPOCH + TimeDelta::days(1);
        let clock = Clock::heard(ahead);
        let before = clock.now();
        assert!(near(ahead, before) && clock.now() >= before);
        // It was set back.
        clock.set(DateTime::UNIX_EPOCH);
        assert!(near(DateTime::UNIX_EPOCH, clock.now()));
    }
}
