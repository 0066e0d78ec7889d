//! Owns the values in Redis, shared by all processes.
//! Promises that of two values of a key the newer version stays, and that an error is a miss within the time-out.
//! Called by the cache.
//!
//! A value is the text `<version>:<json>`; without JSON it is a mark that older versions are superseded. The age of a
//! value is what its time to live has lost.

use std::collections::HashMap;
use std::fmt::Display;
use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fred::clients::Client;
use fred::interfaces::{ClientLike, FredResult, KeysInterface};
use fred::types::config::{Config, ReconnectPolicy};
use fred::types::scripts::Script;
use fred::types::{Builder, Expiration, FromValue, InfoKind, SetOptions};
use futures_util::future::join_all;
use tokio::time::{Instant, timeout};
use tracing::{info, warn};

use super::{Entry, Hit, Key, locked};
use crate::config::{ConfigError, mask_userinfo};
use crate::lifecycle::Lifecycle;

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

/// What an address may begin with.
const SCHEMES: [&str; 6] =
    ["redis", "rediss", "redis-cluster", "rediss-cluster", "redis-sentinel", "rediss-sentinel"];

/// After a failure nothing is asked for this long: otherwise every request would wait for the time-out.
const PAUSE: Duration = Duration::from_secs(1);

/// A connection on which an answer takes this long is given up.
const UNRESPONSIVE: Duration = Duration::from_secs(2);

/// How long one process's refresh of a key keeps the others from refreshing it, in milliseconds.
const REFRESH_CLAIM_MS: i64 = 5_000;

#[derive(Debug)]
pub(super) struct RedisStore {
    client: Client,
    get: Script,
    put: Script,
    invalidate: Script,
    /// For log lines, without user information.
    address: String,
    timeout: Duration,
    kept: Duration,
    lifecycle: Lifecycle,
    health: Mutex<Health>,
    /// Invalidations that Redis has not confirmed: until it does, its copies of these keys are not believed.
    owed: Mutex<HashMap<Key, Owed>>,
}

#[derive(Debug, Default)]
struct Health {
    away: bool,
    ask_again_at: Option<Instant>,
}

#[derive(Debug, Clone, Copy)]
struct Owed {
    version: i64,
    since: Instant,
}

/// Asks Redis once for its version.
pub(super) async fn probe(url: &str, command_timeout: Duration) -> Result<String, String> {
    let (client, _) = client(url, command_timeout).map_err(|e| e.to_string())?;
    let asked = async {
        client.connect();
        client.wait_for_connect().await?;
        client.ping::<String>(None).await?;
        client.info::<String>(Some(InfoKind::Server)).await
    };
    let answer = timeout(UNRESPONSIVE, asked).await;
    // Not waited for: a server that does not answer does not hear it either.
    drop(client);
    let text = answer
        .map_err(|_| format!("no answer within {} ms", UNRESPONSIVE.as_millis()))?
        .map_err(|e| e.details().to_owned())?;
    let version = text.lines().find_map(|line| line.strip_prefix("redis_version:"));
    Ok(version.unwrap_or("unknown").trim().to_owned())
}

/// A client that is not connected yet, and its address without user information.
fn client(url: &str, command_timeout: Duration) -> Result<(Client, String), ConfigError> {
    // Without a scheme there is no telling what of it is a password.
    let scheme = url.split_once("://").map(|(scheme, _)| scheme);
    let address = scheme.map_or_else(|| "***".to_owned(), |_| mask_userinfo(url));
    let refuse = |cause: &str| {
        ConfigError(format!(
            "redis.url = {address:?} is not allowed: {cause}; set REDIS_URL=redis://user:password@host:port/db"
        ))
    };
    if !scheme.is_some_and(|scheme| SCHEMES.contains(&scheme)) {
        return Err(refuse(&format!("the scheme must be one of {}", SCHEMES.join(", "))));
    }
    let mut config = Config::from_url(url).map_err(|e| refuse(e.details()))?;
    // The first connection is retried like any later one.
    config.fail_fast = false;
    let client = Builder::from_config(config)
        .with_performance_config(|c| c.default_command_timeout = command_timeout)
        .with_connection_config(|c| {
            c.connection_timeout = UNRESPONSIVE;
            c.internal_command_timeout = UNRESPONSIVE;
            c.max_command_attempts = 1;
            c.unresponsive.max_timeout = Some(UNRESPONSIVE);
            c.unresponsive.interval = UNRESPONSIVE / 4;
        })
        .set_policy(ReconnectPolicy::new_exponential(0, 50, 1_000, 2))
        .build()
        .map_err(|e| refuse(e.details()))?;
    Ok((client, address))
}

impl RedisStore {
    pub(super) async fn connect(
        url: &str,
        command_timeout: Duration,
        kept: Duration,
        lifecycle: &Lifecycle,
    ) -> Result<Arc<Self>, ConfigError> {
        let (client, address) = client(url, command_timeout)?;
        let store = Self {
            client,
            get: Script::from_lua(GET),
            put: Script::from_lua(PUT),
            invalidate: Script::from_lua(INVALIDATE),
            address,
            timeout: command_timeout,
            kept,
            lifecycle: lifecycle.clone(),
            health: Mutex::default(),
            owed: Mutex::default(),
        };
        store.client.connect();
        match timeout(command_timeout, store.client.wait_for_connect()).await {
            Ok(Ok(())) => info!(redis = store.address, "the cache is in Redis"),
            Ok(Err(error)) => store.failed(&error),
            Err(_) => store.failed(&"no connection within the command time-out"),
        }
        Ok(Arc::new(store))
    }

    pub(super) async fn get(&self, key: &Key) -> Option<Hit> {
        if locked(&self.owed).contains_key(key) {
            return None;
        }
        let found: Option<(String, i64)> = self.eval(&self.get, key, Vec::new()).await?;
        let (text, left_ms) = found?;
        let (version, json) = text.split_once(':').filter(|(_, json)| !json.is_empty())?;
        let left = Duration::from_millis(u64::try_from(left_ms).unwrap_or_default());
        Some(Hit {
            entry: Entry { json: json.into(), version: version.parse().ok()? },
            age: self.kept.saturating_sub(left),
        })
    }

    pub(super) async fn put(&self, key: &Key, entry: &Entry) {
        let arguments = vec![entry.version.to_string(), entry.json.to_string(), self.kept_ms()];
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
        let (claim, expiry) = (format!("{key}:refresh"), Expiration::PX(REFRESH_CLAIM_MS));
        let set =
            self.client.set::<Option<String>, _, _>(claim, "1", Some(expiry), Some(SetOptions::NX), false);
        self.ask(set).await.flatten().is_some()
    }

    /// Invalidates all at once and returns those that failed.
    async fn try_invalidate(&self, keys: Vec<(Key, i64)>) -> Vec<(Key, i64)> {
        let calls = keys.into_iter().map(|(key, version)| async move {
            let arguments = vec![version.to_string(), self.kept_ms()];
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
                () = tokio::time::sleep(PAUSE) => {}
            }
            let due: Vec<(Key, i64)> =
                locked(&self.owed).iter().map(|(key, owed)| (key.clone(), owed.version)).collect();
            let failed: HashMap<Key, i64> = self.try_invalidate(due.clone()).await.into_iter().collect();
            let mut owed = locked(&self.owed);
            for (key, version) in due {
                let paid = !failed.contains_key(&key);
                if owed
                    .get(&key)
                    .is_some_and(|o| (paid && o.version <= version) || o.since.elapsed() > self.kept)
                {
                    owed.remove(&key);
                }
            }
            if owed.is_empty() {
                return;
            }
        }
    }

    fn kept_ms(&self) -> String {
        self.kept.as_millis().to_string()
    }

    async fn eval<T: FromValue>(&self, script: &Script, key: &Key, arguments: Vec<String>) -> Option<T> {
        self.ask(script.evalsha_with_reload(&self.client, key.to_string(), arguments)).await
    }

    /// The answer, or nothing when there is none in time.
    async fn ask<T>(&self, command: impl Future<Output = FredResult<T>>) -> Option<T> {
        if locked(&self.health).ask_again_at.is_some_and(|at| Instant::now() < at) {
            return None;
        }
        // Without this the command would wait in a queue for the connection.
        if !self.client.is_connected() {
            self.failed(&"no connection");
            return None;
        }
        match timeout(self.timeout, command).await {
            Ok(Ok(answer)) => {
                self.answered();
                return Some(answer);
            }
            Ok(Err(error)) => self.failed(&error),
            Err(_) => self.failed(&"no answer within the command time-out"),
        }
        None
    }

    fn answered(&self) {
        let mut health = locked(&self.health);
        health.ask_again_at = None;
        if std::mem::take(&mut health.away) {
            info!(redis = self.address, "Redis answers again");
        }
    }

    fn failed(&self, error: &dyn Display) {
        let mut health = locked(&self.health);
        health.ask_again_at = Some(Instant::now() + PAUSE);
        if !std::mem::replace(&mut health.away, true) {
            warn!(redis = self.address, %error, "Redis does not answer: reads go to the database until it does");
        }
    }
}
