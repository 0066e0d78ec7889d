//! When to read on: under load a moment later.
//!
//! The server sends each transaction by itself and wakes whoever waits for it. At the pace of a backlog that is tens of
//! thousands of times a second, and waking costs both sides more than the rows. A millisecond later as many rows come at
//! once, and the server was not held up: what it sends meanwhile waits in the socket.

use std::time::Duration;

use tokio::time::Instant;

/// How long to wait, and how long load is observed.
const MOMENT: Duration = Duration::from_millis(1);

/// What comes in a moment under load: some ten transactions of one event.
const LOADED: usize = 8 * 1024;

/// After a read as large as this the socket may have more already: it is read at once.
const MUCH: usize = 32 * 1024;

/// How fast bytes come.
#[derive(Debug)]
pub(super) struct Pace {
    since: Instant,
    bytes: usize,
    until: Option<Instant>,
}

impl Pace {
    pub(super) fn new(now: Instant) -> Self {
        Self { since: now, bytes: 0, until: None }
    }

    /// Takes a read into account.
    pub(super) fn read(&mut self, bytes: usize, now: Instant) {
        self.bytes += bytes;
        let elapsed = now.saturating_duration_since(self.since);
        if elapsed < MOMENT {
            return;
        }
        let per_moment = self.bytes as f64 * MOMENT.div_duration_f64(elapsed);
        let loaded = per_moment >= LOADED as f64 && bytes < MUCH;
        self.until = loaded.then(|| now + MOMENT);
        (self.since, self.bytes) = (now, 0);
    }

    /// Until when not to read; `None`: read now.
    pub(super) fn paused_until(&mut self, now: Instant) -> Option<Instant> {
        self.until = self.until.filter(|until| now < *until);
        self.until
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads of so many bytes, so many microseconds apart; whether the last one was followed by a pause.
    fn paused_after(reads: usize, bytes: usize, apart_us: u64) -> bool {
        let mut now = Instant::now();
        let mut pace = Pace::new(now);
        for _ in 0..reads {
            now += Duration::from_micros(apart_us);
            pace.read(bytes, now);
        }
        pace.paused_until(now).is_some()
    }

    #[test]
    fn only_a_steady_stream_is_waited_for() {
        assert!(paused_after(50, 700, 20), "a backlog, one transaction a read");
        assert!(!paused_after(49, 700, 20), "not before it was observed for a moment");
        assert!(!paused_after(50, 700, 1_000), "a thousand transactions a second");
        assert!(!paused_after(1, 20_000, 500_000), "one that is large, after silence");
        assert!(!paused_after(20, 40_000, 100), "more than is read at once: nothing is gained by waiting");
    }

    #[test]
    fn a_pause_ends_by_itself() {
        let now = Instant::now();
        let mut pace = Pace::new(now);
        pace.read(20_000, now + MOMENT);
        assert_eq!(pace.paused_until(now + MOMENT), Some(now + MOMENT * 2));
        assert_eq!(pace.paused_until(now + MOMENT * 2), None);
    }
}
