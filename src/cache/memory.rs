//! Owns the values that one process keeps for itself.
//! Promises that of two values of a key the newer version stays.
//! Called by the cache, which checks a hit against the row's version.

use std::sync::Arc;

use moka::ops::compute::Op;
use moka::sync::Cache as Moka;
use tokio::time::Instant;

use super::{Entry, Freshness, Hit, Key};

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
    freshness: Freshness,
}

impl MemoryStore {
    pub(super) fn new(max_entries: u64, freshness: Freshness) -> Self {
        let kept = freshness.longest_kept();
        Self { entries: Moka::builder().max_capacity(max_entries).time_to_live(kept).build(), freshness }
    }

    pub(super) fn get(&self, key: &Key) -> Option<Hit> {
        let Stored { version, json, at } = self.entries.get(key)?;
        let age = at.elapsed();
        let hit = Hit { entry: Entry { json: json?, version }, age };
        (age < self.freshness.kept(key)).then_some(hit)
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
