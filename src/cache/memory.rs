//! Owns the values that one process keeps for itself.
//! Promises that of two values of a key the newer version stays.
//! Called by the cache, which checks a hit against the row's version.

use std::sync::Arc;
use std::time::Duration;

use moka::ops::compute::Op;
use moka::sync::Cache as Moka;
use tokio::time::Instant;

use super::{Entry, Hit, Key};

#[derive(Debug, Clone)]
struct Stored {
    version: i64,
    /// Nothing: the version is known to be superseded by this one, whose value nobody has loaded yet.
    json: Option<Arc<str>>,
    at: Instant,
}

#[derive(Debug)]
pub(super) struct MemoryStore {
    entries: Moka<Key, Stored>,
}

impl MemoryStore {
    pub(super) fn new(max_entries: u64, kept: Duration) -> Self {
        Self { entries: Moka::builder().max_capacity(max_entries).time_to_live(kept).build() }
    }

    pub(super) fn get(&self, key: &Key) -> Option<Hit> {
        let Stored { version, json, at } = self.entries.get(key)?;
        Some(Hit { entry: Entry { json: json?, version }, age: at.elapsed() })
    }

    pub(super) fn put(&self, key: &Key, entry: &Entry) {
        let new = Stored { version: entry.version, json: Some(Arc::clone(&entry.json)), at: Instant::now() };
        self.entries.entry_by_ref(key).and_compute_with(|known| match known {
            Some(known) if known.value().version > new.version => Op::Nop,
            _ => Op::Put(new),
        });
    }

    /// A key that is not here needs no mark: every hit is compared with the row's version.
    pub(super) fn invalidate(&self, key: &Key, version: i64) {
        self.entries.entry_by_ref(key).and_compute_with(|known| match known {
            Some(known) if known.value().version < version => {
                Op::Put(Stored { version, json: None, at: Instant::now() })
            }
            _ => Op::Nop,
        });
    }
}
