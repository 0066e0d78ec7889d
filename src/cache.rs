//! Owns the copies of read models that are served without asking the database.
//! Promises that an older version never replaces a newer one, and that a broken cache costs time, never an answer.
//! Called by the API (read) and by the consumer after its commit (invalidate). Only this room names moka.
//!
//! A value is fresh for a while, then served stale for as long again while one task loads it anew. With Redis all
//! processes share the values, and what all of them miss one of them loads. Without, each process has its own and asks the database for the version before it
//! trusts one.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::NaiveDate;
use serde::Serialize;
use tokio::sync::OnceCell;
use tracing::debug;

use crate::config::CacheConfig;
use crate::identifier::{TenantId, UserId};
use crate::lifecycle::Lifecycle;
use crate::metrics;
use crate::redis::Redis;

mod memory;
mod redis;

use memory::MemoryStore;
use redis::RedisStore;

/// What a value is about. Identifiers hold no colon, so different keys have different names.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Key {
    /// A user's portfolio.
    UserPortfolio { tenant: TenantId, user: UserId },
    /// A user's schedule.
    OpsSchedule { tenant: TenantId, user: UserId },
    /// The forecast as it is read on a day.
    Forecast { tenant: TenantId, date: NaiveDate },
}

impl Key {
    /// The key of a user's portfolio.
    pub fn portfolio(tenant: &TenantId, user: &UserId) -> Self {
        Self::UserPortfolio { tenant: tenant.clone(), user: user.clone() }
    }

    /// The key of a user's schedule.
    pub fn schedule(tenant: &TenantId, user: &UserId) -> Self {
        Self::OpsSchedule { tenant: tenant.clone(), user: user.clone() }
    }

    /// The key of the forecast as it is read on a day.
    pub fn forecast(tenant: &TenantId, date: NaiveDate) -> Self {
        Self::Forecast { tenant: tenant.clone(), date }
    }

    /// The kind of key: a label of metrics.
    fn family(&self) -> &'static str {
        match self {
            Self::UserPortfolio { .. } => "user_portfolio",
            Self::OpsSchedule { .. } => "ops_schedule",
            Self::Forecast { .. } => "forecast",
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UserPortfolio { tenant, user } | Self::OpsSchedule { tenant, user } => {
                write!(f, "{}:{tenant}:{user}", self.family())
            }
            Self::Forecast { tenant, date } => write!(f, "{}:{tenant}:{date}", self.family()),
        }
    }
}

/// How long values are fresh, by the kind of key; for as long again they are served stale.
#[derive(Debug, Clone, Copy)]
struct Freshness {
    portfolio: Duration,
    schedule: Duration,
    forecast: Duration,
}

impl Freshness {
    fn of(config: &CacheConfig) -> Self {
        Self {
            portfolio: Duration::from_secs(config.portfolio_fresh_seconds),
            schedule: Duration::from_secs(config.schedule_fresh_seconds),
            forecast: Duration::from_secs(config.forecast_fresh_seconds),
        }
    }

    fn fresh(self, key: &Key) -> Duration {
        match key {
            Key::UserPortfolio { .. } => self.portfolio,
            Key::OpsSchedule { .. } => self.schedule,
            Key::Forecast { .. } => self.forecast,
        }
    }

    fn kept(self, key: &Key) -> Duration {
        self.fresh(key) * 2
    }

    fn longest_kept(self) -> Duration {
        self.portfolio.max(self.schedule).max(self.forecast) * 2
    }
}

/// A value as it is stored: JSON text and the version of the row it was made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub json: Arc<str>,
    pub version: i64,
}

/// An entry found in a store.
#[derive(Debug)]
struct Hit {
    entry: Entry,
    age: Duration,
}

/// Where a value comes from when the cache has none.
pub trait Origin: Send + Sync + 'static {
    type Error: fmt::Display + Send;

    /// The value as it is now.
    fn load(&self) -> impl Future<Output = Result<Entry, Self::Error>> + Send;

    /// The version that [`Origin::load`] would give.
    fn version(&self) -> impl Future<Output = Result<i64, Self::Error>> + Send;
}

/// Where an answer came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    Redis,
    Memory,
    Database,
}

/// What the reader is told about an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Metadata {
    pub cache_hit: bool,
    pub stale: bool,
    /// Age of the value in seconds.
    pub freshness_sec: u64,
    pub source: Source,
}

impl Metadata {
    /// Of a value that was just loaded.
    pub const LOADED: Self =
        Self { cache_hit: false, stale: false, freshness_sec: 0, source: Source::Database };
}

#[derive(Debug)]
enum Store {
    Redis(Arc<RedisStore>),
    Memory(MemoryStore),
}

/// The cache of one process.
#[derive(Debug)]
pub struct Cache {
    store: Store,
    freshness: Freshness,
    lifecycle: Lifecycle,
    /// Loads in flight: whoever misses the same key waits for the first.
    flights: Mutex<HashMap<Key, Arc<OnceCell<Entry>>>>,
    /// Keys that a task of this process is refreshing.
    refreshing: Mutex<HashSet<Key>>,
}

/// The data is whole after every statement, so a panic elsewhere under the lock does no harm.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Cache {
    /// A cache in Redis, or without one in this process.
    pub fn new(config: &CacheConfig, redis: Option<Arc<Redis>>, lifecycle: &Lifecycle) -> Arc<Self> {
        let freshness = Freshness::of(config);
        let patience = Duration::from_millis(config.load_wait_ms);
        let store = match redis {
            Some(redis) => Store::Redis(RedisStore::new(redis, freshness, patience, lifecycle)),
            None => Store::Memory(MemoryStore::new(config.memory_max_entries, freshness)),
        };
        Arc::new(Self {
            store,
            freshness,
            lifecycle: lifecycle.clone(),
            flights: Mutex::default(),
            refreshing: Mutex::default(),
        })
    }

    /// The value of a key: from the store while fresh, from the store and refreshed behind the answer while stale,
    /// otherwise from its origin, once for all who ask at the same time.
    pub async fn read<O: Origin>(
        self: &Arc<Self>,
        key: &Key,
        origin: O,
    ) -> Result<(Entry, Metadata), O::Error> {
        let (source, hit) = match &self.store {
            Store::Redis(redis) => (Source::Redis, redis.get(key).await),
            Store::Memory(memory) => match memory.get(key) {
                // Another process may have changed the row without this one hearing of it.
                Some(hit) if origin.version().await? != hit.entry.version => (Source::Memory, None),
                hit => (Source::Memory, hit),
            },
        };
        let Some(Hit { entry, age }) = hit else {
            metrics::cache_request(key.family(), "miss");
            let entry = self.load(key, &origin).await?;
            return Ok((entry, Metadata::LOADED));
        };
        let stale = age >= self.freshness.fresh(key);
        metrics::cache_request(key.family(), if stale { "stale" } else { "hit" });
        if stale {
            self.refresh(key, origin);
        }
        Ok((entry, Metadata { cache_hit: true, stale, freshness_sec: age.as_secs(), source }))
    }

    /// Stores a value unless a newer version is known.
    pub async fn put(&self, key: &Key, entry: &Entry) {
        match &self.store {
            Store::Redis(redis) => redis.put(key, entry).await,
            Store::Memory(memory) => memory.put(key, entry),
        }
    }

    /// Drops what is older than these versions, now and when it comes later. Call it after the commit.
    pub async fn invalidate(&self, keys: &[(Key, i64)]) {
        {
            let mut flights = locked(&self.flights);
            for (key, _) in keys {
                // Whoever asks from now on must not get what was loaded before the commit.
                flights.remove(key);
            }
        }
        match &self.store {
            Store::Redis(redis) => redis.invalidate(keys).await,
            Store::Memory(memory) => keys.iter().for_each(|(key, version)| memory.invalidate(key, *version)),
        }
    }

    async fn load<O: Origin>(&self, key: &Key, origin: &O) -> Result<Entry, O::Error> {
        let cell = Arc::clone(locked(&self.flights).entry(key.clone()).or_default());
        let flight = Flight { cache: self, key, cell };
        flight
            .cell
            .get_or_try_init(|| async {
                if let Store::Redis(redis) = &self.store
                    && let Some(entry) = redis.loaded_elsewhere(key).await
                {
                    return Ok(entry);
                }
                let entry = origin.load().await?;
                self.put(key, &entry).await;
                Ok(entry)
            })
            .await
            .cloned()
    }

    fn refresh<O: Origin>(self: &Arc<Self>, key: &Key, origin: O) {
        if !locked(&self.refreshing).insert(key.clone()) {
            return;
        }
        let refresh = Refresh { cache: Arc::clone(self), key: key.clone() };
        self.lifecycle.spawn_brief(async move {
            let Refresh { cache, key } = &refresh;
            if let Store::Redis(redis) = &cache.store
                && !redis.claim_refresh(key).await
            {
                return;
            }
            match origin.load().await {
                Ok(entry) => cache.put(key, &entry).await,
                // The stale value is served on; whoever misses meets the same failure and reports it.
                Err(error) => debug!(%error, "a stale value could not be refreshed"),
            }
        });
    }
}

/// Ends a flight however its future ends.
struct Flight<'a> {
    cache: &'a Cache,
    key: &'a Key,
    cell: Arc<OnceCell<Entry>>,
}

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        let mut flights = locked(&self.cache.flights);
        if flights.get(self.key).is_some_and(|cell| Arc::ptr_eq(cell, &self.cell)) {
            flights.remove(self.key);
        }
    }
}

/// Frees the key for the next refresh however the task ends.
struct Refresh {
    cache: Arc<Cache>,
    key: Key,
}

impl Drop for Refresh {
    fn drop(&mut self) {
        locked(&self.cache.refreshing).remove(&self.key);
    }
}
