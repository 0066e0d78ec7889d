//! The locks of a batch: while another worker recomputes one of its owners, this one waits for a moment outside of the
//! database instead of inside a transaction.
//!
//! Nothing rests on it. Who gets no lock goes on without; who loses one is rolled back and goes on without. A retry goes
//! without from the start: it is one event, and rare.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use tracing::warn;

use super::worker::Worker;
use crate::event::Event;
use crate::lock::{Held, Key};
use crate::metrics;

impl Worker {
    /// Takes the locks of the owners that these events recompute, as many as can be had soon.
    pub(super) async fn lock_owners(&self, events: &[&Event]) -> Held {
        let (group, settings) = (&self.context.group, &self.context.settings);
        // What panics here panics again in the transaction, where it is a failure of the event.
        let named = || catch_unwind(AssertUnwindSafe(|| group.handler.owners(events))).unwrap_or_default();
        let owners = if settings.owner_locks { named() } else { BTreeSet::new() };
        let keys: BTreeSet<Key> = owners
            .iter()
            .map(|owner| Key::user(&owner.tenant_id, &owner.user_id, owner.read_model))
            .collect();
        let held = self.context.locks.take(keys, Duration::from_millis(settings.owner_lock_wait_ms)).await;
        metrics::owner_locks(group.name, held.taken(), held.refused());
        held
    }

    /// A lock was lost, and what was begun under it is rolled back. It is begun again without locks: a second loss would
    /// be one too many.
    pub(super) async fn without_locks(&self) -> Held {
        let group = self.context.group.name;
        warn!(
            group,
            topic = self.partition.topic,
            partition = self.partition.partition,
            "the lock of an owner was lost; the batch is rolled back and applied without"
        );
        metrics::retry(group, "transient");
        self.lock_owners(&[]).await
    }
}
