//! Owns the values in Redis, shared by all processes.
//! Promises that of two values of a key the newer version stays, and that an error is a miss within the time-out.
//! Called by the cache.
//!
//! A value is the text `<version>:<json>`; without JSON it is a mark that older versions are superseded. While a process
//! loads what is missing, the mark is `<version>?<process>?<until>:`, the time being Redis' own in milliseconds. Every
//! later value or mark takes its place, so whoever reads after an invalidation waits for no load from before it. The age
//! of a value is what its time to live has lost.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::{Instant, sleep, timeout};
use uuid::Uuid;

use super::{Entry, Freshness, Hit, Key, locked};
use crate::lifecycle::Lifecycle;
use crate::redis::{FromValue, PAUSE, Redis, Script};

const GET: &str = "\
    local known = redis.call('GET', KEYS[1]) \
    if not known then return false end \
    return {known, redis.call('PTTL', KEYS[1])}";

const PUT: &str = "\
    local known = redis.call('GET', KEYS[1]) \
    local version = known and tonumber(string.match(known, '^%d+')) or 0 \
    if version > tonumber(ARGV[1]) then return 0 end \
    redis.call('SET', KEYS[1], ARGV[1] .. ':' .. ARGV[2], 'PX', ARGV[3]) \
    return 1";

const INVALIDATE: &str = "\
    local known = redis.call('GET', KEYS[1]) \
    local version = known and tonumber(string.match(known, '^%d+')) or -1 \
    if version >= tonumber(ARGV[1]) then return 0 end \
    redis.call('SET', KEYS[1], ARGV[1] .. ':', 'PX', ARGV[2]) \
    return 1";

/// Gives the value, or says that another process is loading it, or notes that this one is.
const CLAIM: &str = "\
    local known = redis.call('GET', KEYS[1]) \
    local mark = known and string.match(known, '^([^:]*):$') or '0' \
    if known and #known > #mark + 1 then return {'loaded', known} end \
    local time = redis.call('TIME') \
    local now = time[1] * 1000 + math.floor(time[2] / 1000) \
    local process, ends = string.match(mark, '^%d+%?(.*)%?(%d+)$') \
    if process and process ~= ARGV[1] and tonumber(ends) > now then return {'loading', ''} end \
    local claim = string.format('%s?%s?%.0f:', string.match(mark, '^%d+'), ARGV[1], now + ARGV[2]) \
    if known then redis.call('SET', KEYS[1], claim, 'KEEPTTL') \
    else redis.call('SET', KEYS[1], claim, 'PX', ARGV[2]) end \
    return {'ours', ''}";

/// How long one process that loads or refreshes a key keeps the others from it.
const LOAD_CLAIM: Duration = Duration::from_secs(5);

/// Between two looks for what another process loads.
const LOOK_AGAIN: Duration = Duration::from_millis(2);

#[derive(Debug)]
pub(super) struct RedisStore {
    redis: Arc<Redis>,
    get: Script,
    put: Script,
    invalidate: Script,
    claim: Script,
    /// The name of this process in claims.
    process: String,
    freshness: Freshness,
    /// How long a load waits for that of another process.
    patience: Duration,
    lifecycle: Lifecycle,
    /// Invalidations that Redis has not confirmed: until it does, its copies of these keys are not believed.
    owed: Mutex<HashMap<Key, Owed>>,
}

#[derive(Debug, Clone, Copy)]
struct Owed {
    version: i64,
    since: Instant,
}

impl RedisStore {
    pub(super) fn new(
        redis: Arc<Redis>,
        freshness: Freshness,
        patience: Duration,
        lifecycle: &Lifecycle,
    ) -> Arc<Self> {
        Arc::new(Self {
            redis,
            get: Script::from_lua(GET),
            put: Script::from_lua(PUT),
            invalidate: Script::from_lua(INVALIDATE),
            claim: Script::from_lua(CLAIM),
            process: Uuid::new_v4().simple().to_string(),
            freshness,
            patience,
            lifecycle: lifecycle.clone(),
            owed: Mutex::default(),
        })
    }

    pub(super) async fn get(&self, key: &Key) -> Option<Hit> {
        if locked(&self.owed).contains_key(key) {
            return None;
        }
        let found: Option<(String, i64)> = self.eval(&self.get, key, Vec::new()).await?;
        let (text, left_ms) = found?;
        let left = Duration::from_millis(u64::try_from(left_ms).unwrap_or_default());
        Some(Hit { entry: entry(&text)?, age: self.freshness.kept(key).saturating_sub(left) })
    }

    /// Waits while another process loads a key. What it loaded, or nothing: then it is for this one to load, and the
    /// others wait.
    pub(super) async fn loaded_elsewhere(&self, key: &Key) -> Option<Entry> {
        let waiting = async {
            while !locked(&self.owed).contains_key(key) {
                let arguments = vec![self.process.clone(), LOAD_CLAIM.as_millis().to_string()];
                let (state, text): (String, String) = self.eval(&self.claim, key, arguments).await?;
                if state != "loading" {
                    return entry(&text);
                }
                sleep(LOOK_AGAIN).await;
            }
            None
        };
        timeout(self.patience, waiting).await.ok().flatten()
    }

    pub(super) async fn put(&self, key: &Key, entry: &Entry) {
        let arguments = vec![entry.version.to_string(), entry.json.to_string(), self.kept_ms(key)];
        let _: Option<i64> = self.eval(&self.put, key, arguments).await;
    }

    /// Invalidates, or remembers to: a lost invalidation would leave an old value that looks fresh.
    pub(super) async fn invalidate(self: &Arc<Self>, keys: &[(Key, i64)]) {
        let failed = self.try_invalidate(keys.to_vec()).await;
        if failed.is_empty() {
            return;
        }
        let mut owed = locked(&self.owed);
        let idle = owed.is_empty();
        let since = Instant::now();
        for (key, version) in failed {
            let known = owed.get(&key).map_or(version, |o| o.version);
            owed.insert(key, Owed { version: version.max(known), since });
        }
        if idle {
            let this = Arc::clone(self);
            self.lifecycle.spawn_brief(async move { this.pay().await });
        }
    }

    /// Whether this process is the one to refresh a key.
    pub(super) async fn claim_refresh(&self, key: &Key) -> bool {
        let claim = self.redis.set_absent(format!("{key}:refresh"), "1".to_owned(), LOAD_CLAIM);
        claim.await.unwrap_or(false)
    }

    /// Invalidates all at once and returns those that failed.
    async fn try_invalidate(&self, keys: Vec<(Key, i64)>) -> Vec<(Key, i64)> {
        let calls = keys.into_iter().map(|(key, version)| async move {
            let arguments = vec![version.to_string(), self.kept_ms(&key)];
            let done: Option<i64> = self.eval(&self.invalidate, &key, arguments).await;
            done.is_none().then_some((key, version))
        });
        join_all(calls).await.into_iter().flatten().collect()
    }

    /// Repeats what is owed until Redis has confirmed it, or has forgotten the value by itself.
    async fn pay(&self) {
        while !self.lifecycle.stopping().is_cancelled() {
            tokio::select! {
                () = self.lifecycle.stopping().cancelled() => return,
                () = sleep(PAUSE) => {}
            }
            let due: Vec<(Key, i64)> =
                locked(&self.owed).iter().map(|(key, owed)| (key.clone(), owed.version)).collect();
            let failed: HashMap<Key, i64> = self.try_invalidate(due.clone()).await.into_iter().collect();
            let mut owed = locked(&self.owed);
            for (key, version) in due {
                let paid = !failed.contains_key(&key);
                if owed.get(&key).is_some_and(|o| {
                    (paid && o.version <= version) || o.since.elapsed() > self.freshness.kept(&key)
                }) {
                    owed.remove(&key);
                }
            }
            if owed.is_empty() {
                return;
            }
        }
    }

    fn kept_ms(&self, key: &Key) -> String {
        self.freshness.kept(key).as_millis().to_string()
    }

    async fn eval<T: FromValue>(&self, script: &Script, key: &Key, arguments: Vec<String>) -> Option<T> {
        self.redis.eval(script, vec![key.to_string()], arguments).await
    }
}

/// The entry that a stored text holds; a mark holds none.
fn entry(text: &str) -> Option<Entry> {
    let (version, json) = text.split_once(':').filter(|(_, json)| !json.is_empty())?;
    Some(Entry { json: json.into(), version: version.parse().ok()? })
}
