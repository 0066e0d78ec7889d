//! Patience with failures called transient: the same again, until one event alone is seen to cause them.
//!
//! A database that is away fails everything, and nothing is held against an event. An event that fails alone while
//! others commit makes way for them, and in the end that counts as a failed attempt.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

/// A batch that fails for this part of the tolerance is applied event by event.
const ISOLATE: u32 = 30;

/// An event that fails alone for this part of the tolerance goes to the retry queue, where it blocks only its key.
const GIVE_WAY: u32 = 10;

/// What fails, and since when.
#[derive(Debug, Default)]
pub(super) struct Patience {
    batch: Option<Failing>,
    heads: HashMap<i64, FailingHead>,
    commits: u64,
}

/// A batch that fails.
#[derive(Debug)]
struct Failing {
    since: Instant,
    /// Its end.
    until: i64,
    isolated: bool,
    /// The first event of it that is not applied.
    first: i64,
    first_since: Instant,
}

/// An event of the retry queue that fails.
#[derive(Debug)]
struct FailingHead {
    since: Instant,
    /// Commits of this worker before it began to fail.
    commits: u64,
}

impl Patience {
    /// Events up to this offset were committed.
    pub(super) fn progress(&mut self, up_to: i64) {
        self.commits += 1;
        self.batch = self.batch.take().filter(|batch| batch.isolated && up_to < batch.until);
    }

    /// A batch failed.
    pub(super) fn failed(&mut self, first: i64, until: i64, tolerance: Duration, now: Instant) {
        let new = || Failing { since: now, until, isolated: false, first, first_since: now };
        let batch = self.batch.get_or_insert_with(new);
        if batch.first != first {
            (batch.first, batch.first_since) = (first, now);
        }
        batch.isolated |= now - batch.since >= tolerance / ISOLATE;
    }

    /// Whether events from here on are applied one by one.
    pub(super) fn isolates(&self, first: i64) -> bool {
        self.batch.as_ref().is_some_and(|batch| batch.isolated && first < batch.until)
    }

    /// Whether this event, alone, has failed for too long to hold up the partition.
    pub(super) fn gives_way(&self, offset: i64, tolerance: Duration, now: Instant) -> bool {
        let failing = self.batch.as_ref().filter(|batch| batch.isolated && batch.first == offset);
        failing.is_some_and(|batch| now - batch.first_since >= tolerance / GIVE_WAY)
    }

    /// The head of a key's queue failed; returns for how long it has.
    pub(super) fn head_failed(&mut self, offset: i64, now: Instant) -> Duration {
        now - self.heads.entry(offset).or_insert(FailingHead { since: now, commits: self.commits }).since
    }

    /// Whether the failures are to be held against the event: others were committed all the while.
    pub(super) fn head_is_at_fault(&self, offset: i64, tolerance: Duration, now: Instant) -> bool {
        let head = self.heads.get(&offset);
        head.is_some_and(|head| now - head.since >= tolerance && self.commits > head.commits)
    }

    /// The head was tried, and did not fail for a transient reason.
    pub(super) fn head_is_done(&mut self, offset: i64) {
        self.heads.remove(&offset);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOLERANCE: Duration = Duration::from_secs(300);

    #[test]
    fn a_batch_is_isolated_and_its_culprit_gives_way() {
        let (mut patience, start) = (Patience::default(), Instant::now());
        let after = |seconds| start + Duration::from_secs(seconds);
        patience.failed(10, 20, TOLERANCE, start);
        assert!(!patience.isolates(10));
        patience.failed(10, 20, TOLERANCE, after(11));
        assert!(patience.isolates(10) && !patience.isolates(20));
        // Those before the culprit are applied; it has its own time.
        patience.progress(14);
        patience.failed(14, 15, TOLERANCE, after(11));
        assert!(patience.isolates(14) && !patience.gives_way(14, TOLERANCE, after(40)));
        assert!(patience.gives_way(14, TOLERANCE, after(41)));
        patience.progress(20);
        assert!(!patience.isolates(20));
    }

    #[test]
    fn a_head_is_at_fault_only_if_others_committed_meanwhile() {
        let (mut patience, start) = (Patience::default(), Instant::now());
        let later = start + TOLERANCE;
        patience.progress(1);
        patience.head_failed(0, start);
        assert!(!patience.head_is_at_fault(0, TOLERANCE, later), "nothing else was committed either");
        patience.progress(2);
        assert!(!patience.head_is_at_fault(0, TOLERANCE, later - Duration::from_secs(1)));
        assert!(patience.head_is_at_fault(0, TOLERANCE, later));
        patience.head_is_done(0);
        assert!(!patience.head_is_at_fault(0, TOLERANCE, later));
    }
}
