//! Owns the locks that count in this process alone.
//! Promises that they are free again when their holder gives them back or dies with the process.
//! Called by the locks.

use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::Key;

#[derive(Debug, Default)]
pub(super) struct MemoryLocks {
    /// The token of each holder.
    held: Mutex<HashMap<Key, String>>,
}

impl MemoryLocks {
    /// Takes what is free and returns what is not.
    pub(super) fn try_take(&self, keys: &BTreeSet<Key>, token: &str) -> BTreeSet<Key> {
        let mut held = self.held();
        let mut refused = BTreeSet::new();
        for key in keys {
            if let Entry::Vacant(free) = held.entry(key.clone()) {
                free.insert(token.to_owned());
            } else {
                refused.insert(key.clone());
            }
        }
        refused
    }

    pub(super) fn release(&self, keys: &BTreeSet<Key>, token: &str) {
        let mut held = self.held();
        for key in keys {
            if held.get(key).is_some_and(|holder| holder == token) {
                held.remove(key);
            }
        }
    }

    /// The data is whole after every statement, so a panic elsewhere under the lock does no harm.
    fn held(&self) -> MutexGuard<'_, HashMap<Key, String>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
