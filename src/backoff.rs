//! Owns the pause between attempts of a worker: 50 ms, doubling to 1 s, with jitter.
//! Promises that a dependency that comes back is noticed within about a second.
//! Called by every worker loop.

use std::time::Duration;

const FIRST: Duration = Duration::from_millis(50);
const LONGEST: Duration = Duration::from_secs(1);

/// Counts failures in a row.
#[derive(Debug, Default)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    /// The pause after one more failure.
    pub fn pause(&mut self) -> Duration {
        let pause = FIRST.saturating_mul(1 << self.failures.min(5)).min(LONGEST);
        self.failures = self.failures.saturating_add(1);
        jittered(pause)
    }

    /// A success: the next pause is the shortest again.
    pub fn reset(&mut self) {
        self.failures = 0;
    }
}

/// A duration, up to a fifth longer or shorter, so that workers that failed together do not return together.
pub fn jittered(duration: Duration) -> Duration {
    duration.mul_f64(0.8 + 0.4 * fastrand::f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_second_and_start_over() {
        let mut backoff = Backoff::default();
        let pauses: Vec<Duration> = (0..10).map(|_| backoff.pause()).collect();
        assert!(pauses[0] <= FIRST.mul_f64(1.2) && pauses[0] >= FIRST.mul_f64(0.8));
        assert!(pauses[9] <= LONGEST.mul_f64(1.2) && pauses[9] >= LONGEST.mul_f64(0.8));
        backoff.reset();
        assert!(backoff.pause() <= FIRST.mul_f64(1.2));
    }
}
