//! Owns the locks in Redis, which count in all processes.
//! Promises that a lock is renewed and given back by whoever holds its token, and by nobody else.
//! Called by the locks.
//!
//! All keys of a call go out in one script, or in a cluster, which refuses that, each in one of its own, all at once: one
//! round trip either way.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;

use super::Key;
use crate::redis::{FromValue, Redis, Script};

/// Returns the places of the keys that somebody else holds.
const TAKE: &str = "\
    local refused = {} \
    for place, key in ipairs(KEYS) do \
        if not redis.call('SET', key, ARGV[1], 'NX', 'PX', ARGV[2]) then table.insert(refused, place) end \
    end \
    return refused";

/// Returns how many keys are ours.
const RENEW: &str = "\
    local ours = 0 \
    for _, key in ipairs(KEYS) do \
        if redis.call('GET', key) == ARGV[1] then ours = ours + redis.call('PEXPIRE', key, ARGV[2]) end \
    end \
    return ours";

/// Returns how many keys were ours.
const RELEASE: &str = "\
    local ours = 0 \
    for _, key in ipairs(KEYS) do \
        if redis.call('GET', key) == ARGV[1] then ours = ours + redis.call('DEL', key) end \
    end \
    return ours";

#[derive(Debug)]
pub(super) struct RedisLocks {
    redis: Arc<Redis>,
    take: Script,
    renew: Script,
    release: Script,
}

impl RedisLocks {
    pub(super) fn new(redis: Arc<Redis>) -> Self {
        Self {
            redis,
            take: Script::from_lua(TAKE),
            renew: Script::from_lua(RENEW),
            release: Script::from_lua(RELEASE),
        }
    }

    /// Takes what is free and returns what is not; `None`: there was no answer.
    pub(super) async fn try_take(
        &self,
        keys: &BTreeSet<Key>,
        token: &str,
        ttl: Duration,
    ) -> Option<BTreeSet<Key>> {
        let mut refused = BTreeSet::new();
        for (keys, places) in self.run::<Vec<usize>>(&self.take, keys, &[token, &millis(ttl)]).await {
            refused.extend(places?.into_iter().filter_map(|place| keys.get(place - 1)).cloned());
        }
        Some(refused)
    }

    /// Whether all are still ours as far as is known: no answer is no loss.
    pub(super) async fn renew(&self, keys: &BTreeSet<Key>, token: &str, ttl: Duration) -> bool {
        let renewed = self.run::<usize>(&self.renew, keys, &[token, &millis(ttl)]).await;
        renewed.into_iter().all(|(keys, ours)| ours.is_none_or(|ours| ours == keys.len()))
    }

    /// Gives back what is ours.
    pub(super) async fn release(&self, keys: &BTreeSet<Key>, token: &str) {
        self.run::<usize>(&self.release, keys, &[token]).await;
    }

    /// Runs a script on these keys and returns each answer with the keys that it is about.
    async fn run<T: FromValue>(
        &self,
        script: &Script,
        keys: &BTreeSet<Key>,
        arguments: &[&str],
    ) -> Vec<(Vec<Key>, Option<T>)> {
        let keys: Vec<Key> = keys.iter().cloned().collect();
        let together = if self.redis.is_cluster() { 1 } else { keys.len().max(1) };
        let calls = keys.chunks(together).map(|keys| async move {
            let names = keys.iter().map(Key::to_string).collect();
            let arguments = arguments.iter().copied().map(str::to_owned).collect();
            (keys.to_vec(), self.redis.eval(script, names, arguments).await)
        });
        join_all(calls).await
    }
}

fn millis(duration: Duration) -> String {
    duration.as_millis().to_string()
}
