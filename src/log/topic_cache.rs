//! Owns what is known of topics, so that not every append has to ask.
//! Promises that nothing known is older than [`KNOWN_FOR`]: a topic may grow, or come back with other partitions.
//! Called by both logs.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::{LogError, Topic};

/// How long an answer is good.
const KNOWN_FOR: Duration = Duration::from_secs(30);

/// The topics by name, each with the time at which it was asked for.
#[derive(Debug, Default)]
pub(super) struct TopicCache(Mutex<HashMap<String, (Topic, Instant)>>);

impl TopicCache {
    pub(super) fn get(&self, name: &str, now: Instant) -> Option<Topic> {
        let (topic, asked) = self.lock().get(name).copied()?;
        Some(topic).filter(|_| now.saturating_duration_since(asked) < KNOWN_FOR)
    }

    pub(super) fn learn(&self, name: &str, topic: Topic, now: Instant) {
        self.lock().insert(name.to_owned(), (topic, now));
    }

    /// Whatever was known of a topic that is gone is wrong.
    pub(super) fn forget_if_unknown(&self, error: &LogError) {
        if let LogError::UnknownTopic { topic } = error {
            self.lock().remove(topic);
        }
    }

    pub(super) fn forget_all(&self) {
        self.lock().clear();
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, (Topic, Instant)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_known_expires_and_is_forgotten_with_its_topic() {
        let (cache, now) = (TopicCache::default(), Instant::now());
        let topic = Topic { partitions: 3, retention: None };
        assert_eq!(cache.get("t", now), None);
        cache.learn("t", topic, now);
        cache.learn("u", topic, now);
        assert_eq!(cache.get("t", now + KNOWN_FOR / 2), Some(topic));
        assert_eq!(cache.get("t", now + KNOWN_FOR), None);
        cache.forget_if_unknown(&LogError::Unavailable("t".to_owned()));
        assert_eq!(cache.get("t", now), Some(topic));
        cache.forget_if_unknown(&LogError::UnknownTopic { topic: "t".to_owned() });
        assert_eq!((cache.get("t", now), cache.get("u", now)), (None, Some(topic)));
        cache.forget_all();
        assert_eq!(cache.get("u", now), None);
    }
}
