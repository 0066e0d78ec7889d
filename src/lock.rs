//! Owns the locks that keep two workers from recomputing the same owner at the same time.
//! Promises to save waiting, and guards nothing: that no update is lost is the doing of the database alone.
//! Called by the consumer around the transaction of a batch.
//!
//! With Redis the locks count in every process, without it in this one. A lock has a token that only its holder knows,
//! ends by itself, and is renewed for as long as the work takes.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use tokio::time::{Instant, sleep, timeout};
use uuid::Uuid;

use crate::identifier::{TenantId, UserId};
use crate::lifecycle::Lifecycle;
use crate::redis::Redis;

mod memory;
mod redis;

use memory::MemoryLocks;
use redis::RedisLocks;

/// Between two looks at a lock that somebody else holds.
const LOOK_AGAIN: Duration = Duration::from_millis(2);

/// After a wait in vain nothing is locked for so long: whoever holds a lock may be dead, and Redis may stay slow.
const REST: Duration = Duration::from_secs(1);

/// What is locked: one read model of one user.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(String);

impl Key {
    /// A read model, such as `portfolio`, of a user. Identifiers hold no colon, so different keys have different names.
    pub fn user(tenant: &TenantId, user: &UserId, read_model: &str) -> Self {
        Self(format!("lock:user:{tenant}:{user}:{read_model}"))
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// For how long a lock in Redis is held.
#[derive(Debug, Clone, Copy)]
pub struct Lease {
    /// Without a renewal it ends after this long.
    pub ttl: Duration,
    /// Between two renewals.
    pub renew_every: Duration,
}

impl Default for Lease {
    fn default() -> Self {
        Self { ttl: Duration::from_secs(60), renew_every: Duration::from_secs(20) }
    }
}

#[derive(Debug)]
enum Store {
    Redis(RedisLocks),
    Memory(MemoryLocks),
}

/// The locks as one process sees them.
#[derive(Debug)]
pub struct Locks {
    store: Store,
    lease: Lease,
    lifecycle: Lifecycle,
    rests_until: Mutex<Option<Instant>>,
}

impl Locks {
    /// Locks in Redis, or without one in this process.
    pub fn new(redis: Option<Arc<Redis>>, lease: Lease, lifecycle: &Lifecycle) -> Arc<Self> {
        let store = redis.map_or_else(
            || Store::Memory(MemoryLocks::default()),
            |redis| Store::Redis(RedisLocks::new(redis)),
        );
        Arc::new(Self { store, lease, lifecycle: lifecycle.clone(), rests_until: Mutex::default() })
    }

    /// Takes these locks at once, and waits for those that somebody else holds. When `patience` is over it goes on with
    /// what it has, whatever Redis is doing.
    pub async fn take(self: &Arc<Self>, keys: BTreeSet<Key>, patience: Duration) -> Held {
        let keys = if self.rests() { BTreeSet::new() } else { keys };
        let (token, confirmed) = (token(), BTreeSet::new());
        let mut held = Held { locks: Arc::clone(self), keys, token, confirmed, refused: 0 };
        if !held.keys.is_empty() && timeout(patience, held.collect()).await.is_err() {
            *self.rests_until() = Some(Instant::now() + REST);
        }
        held
    }

    /// Takes what is free and returns what is not; `None`: nobody knows.
    async fn try_take(&self, keys: &BTreeSet<Key>, token: &str) -> Option<BTreeSet<Key>> {
        match &self.store {
            Store::Redis(redis) => redis.try_take(keys, token, self.lease.ttl).await,
            Store::Memory(memory) => Some(memory.try_take(keys, token)),
        }
    }

    fn rests(&self) -> bool {
        self.rests_until().is_some_and(|until| Instant::now() < until)
    }

    /// The data is whole after every statement, so a panic elsewhere under the lock does no harm.
    fn rests_until(&self) -> MutexGuard<'_, Option<Instant>> {
        self.rests_until.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// 128 random bits. A UUID of version 4 has 122: where one has a fixed bit, the other has a random one.
fn token() -> String {
    format!("{:032x}", Uuid::new_v4().as_u128() ^ Uuid::new_v4().as_u128().rotate_left(64))
}

/// Locks that were taken; they are given back when this is dropped, without waiting for Redis.
#[derive(Debug)]
pub struct Held {
    locks: Arc<Locks>,
    /// All that were asked for: an answer that did not come in time may have been yes.
    keys: BTreeSet<Key>,
    token: String,
    confirmed: BTreeSet<Key>,
    /// How many somebody else holds.
    refused: usize,
}

impl Held {
    /// How many were taken.
    pub fn taken(&self) -> usize {
        self.confirmed.len()
    }

    /// How many somebody else held all the time.
    pub fn refused(&self) -> usize {
        self.refused
    }

    /// Does the work and renews the locks meanwhile. `None`: one was lost, and the work was cancelled where it stood.
    pub async fn guard<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            done = work => Some(done),
            () = self.lost() => None,
        }
    }

    async fn collect(&mut self) {
        let mut missing = self.keys.clone();
        while let Some(refused) = self.locks.try_take(&missing, &self.token).await {
            self.confirmed.extend(missing.difference(&refused).cloned());
            self.refused = refused.len();
            if refused.is_empty() {
                return;
            }
            missing = refused;
            sleep(LOOK_AGAIN).await;
        }
    }

    /// Returns when a lock turns out to be somebody else's, or nobody's.
    async fn lost(&self) {
        let Store::Redis(redis) = &self.locks.store else { return std::future::pending().await };
        if self.confirmed.is_empty() {
            return std::future::pending().await;
        }
        loop {
            sleep(self.locks.lease.renew_every).await;
            if !redis.renew(&self.confirmed, &self.token, self.locks.lease.ttl).await {
                return;
            }
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let (keys, token) = (std::mem::take(&mut self.keys), std::mem::take(&mut self.token));
        if keys.is_empty() {
            return;
        }
        let locks = Arc::clone(&self.locks);
        match &self.locks.store {
            Store::Memory(memory) => memory.release(&keys, &token),
            Store::Redis(_) => {
                let mut releasing = Box::pin(async move {
                    if let Store::Redis(redis) = &locks.store {
                        redis.release(&keys, &token).await;
                    }
                });
                // Asked for here and now, so that it comes before whatever is taken next; only the answer is awaited
                // elsewhere.
                if releasing.as_mut().now_or_never().is_none() {
                    self.locks.lifecycle.spawn_brief(releasing);
                }
            }
        }
    }
}
