//! How the keys of a partition fare: one that is beyond help, or a trouble that is not the events' own.
//!
//! Kept in memory: a worker that starts anew knows nothing and gives every key its attempts again.

use std::collections::{HashMap, VecDeque};

/// Dead letters of one key in a row after which its next events get one attempt.
const HOPELESS: u32 = 3;

/// So many keys are remembered.
const WINDOW: usize = 100;

/// So many of them that fail alike are no accident.
const ALIKE: usize = WINDOW / 2;

/// Keys with dead letters in a row that are remembered.
const MOST_KEYS: usize = 10_000;

/// What is known of the keys.
#[derive(Debug, Default)]
pub(super) struct Health {
    /// The last keys, the newest at the back, each with how it failed if it did. Empty while none fails.
    recent: VecDeque<(Vec<u8>, Option<String>)>,
    dead_in_a_row: HashMap<Vec<u8>, u32>,
}

impl Health {
    /// Whether successes matter: nothing has failed otherwise.
    pub(super) fn is_watching(&self) -> bool {
        !self.recent.is_empty() || !self.dead_in_a_row.is_empty()
    }

    pub(super) fn succeeded(&mut self, key: &[u8]) {
        self.dead_in_a_row.remove(key);
        if !self.recent.is_empty() {
            self.remember(key, None);
            if self.recent.iter().all(|(_, failure)| failure.is_none()) {
                self.recent.clear();
            }
        }
    }

    pub(super) fn failed(&mut self, key: &[u8], how: &str) {
        self.remember(key, Some(how.to_owned()));
    }

    /// The key's event became a dead letter.
    pub(super) fn died(&mut self, key: &[u8]) {
        if self.dead_in_a_row.len() >= MOST_KEYS && !self.dead_in_a_row.contains_key(key) {
            // Forgetting costs some attempts, remembering without end costs the process.
            self.dead_in_a_row.clear();
        }
        *self.dead_in_a_row.entry(key.to_owned()).or_default() += 1;
    }

    /// Whether its last three events became dead letters: the next gets one attempt.
    pub(super) fn is_hopeless(&self, key: &[u8]) -> bool {
        self.dead_in_a_row.get(key).is_some_and(|dead| *dead >= HOPELESS)
    }

    /// How half of the last hundred keys fail, if they fail alike.
    pub(super) fn common_failure(&self) -> Option<&str> {
        let mut counts: HashMap<&str, usize> = HashMap::new();
        for failure in self.recent.iter().filter_map(|(_, failure)| failure.as_deref()) {
            let count = counts.entry(failure).or_default();
            *count += 1;
            if *count >= ALIKE {
                return Some(failure);
            }
        }
        None
    }

    fn remember(&mut self, key: &[u8], failure: Option<String>) {
        self.recent.retain(|(known, _)| known != key);
        self.recent.push_back((key.to_owned(), failure));
        if self.recent.len() > WINDOW {
            self.recent.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: usize) -> Vec<u8> {
        format!("t:u{n}").into_bytes()
    }

    #[test]
    fn three_dead_letters_in_a_row_make_a_key_hopeless_and_one_success_mends_it() {
        let mut health = Health::default();
        for _ in 0..3 {
            assert!(!health.is_hopeless(&key(1)));
            health.died(&key(1));
        }
        assert!(health.is_hopeless(&key(1)) && !health.is_hopeless(&key(2)));
        health.succeeded(&key(1));
        assert!(!health.is_hopeless(&key(1)) && !health.is_watching());
    }

    #[test]
    fn fifty_of_the_last_hundred_keys_that_fail_alike_are_a_common_failure() {
        let mut health = Health::default();
        for n in 0..49 {
            health.failed(&key(n), "economics");
            // The same key again is no further key.
            health.failed(&key(n), "economics");
        }
        health.failed(&key(49), "database 22012");
        assert_eq!(health.common_failure(), None);
        health.failed(&key(50), "economics");
        assert_eq!(health.common_failure(), Some("economics"));
        health.succeeded(&key(50));
        assert_eq!(health.common_failure(), None);
    }

    #[test]
    fn keys_that_succeed_push_older_failures_out() {
        let mut health = Health::default();
        (0..50).for_each(|n| health.failed(&key(n), "economics"));
        assert!(health.common_failure().is_some());
        (100..151).for_each(|n| health.succeeded(&key(n)));
        assert_eq!(health.common_failure(), None);
        (200..300).for_each(|n| health.succeeded(&key(n)));
        assert!(!health.is_watching(), "nothing fails any more");
    }
}
