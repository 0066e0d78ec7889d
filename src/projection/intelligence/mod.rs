//! Owns what the group intel-group makes of events: each part keeps a read model of its own.
//! Promises that every part sees the events it asked for, in one transaction.
//! Called by the registry of groups; what a batch leaves over by the scheduled work.
//!
//! | file | content |
//! |---|---|
//! | [`schedule`] | the optimum of each user's fleet over the next 24 hours |

use std::collections::BTreeSet;

use async_trait::async_trait;

use super::{Dirty, EventHandler, HandlerError, Owner};
use crate::db::WorkerTx;
use crate::economics::Assumptions;
use crate::event::Event;

pub mod schedule;

/// Hands the events of a batch to those parts that have a use for them.
pub(super) struct IntelligenceHandler {
    parts: Vec<Box<dyn EventHandler>>,
}

impl IntelligenceHandler {
    pub(super) fn new(assumptions: Assumptions) -> Self {
        Self { parts: vec![Box::new(schedule::ScheduleHandler { assumptions })] }
    }
}

#[async_trait]
impl EventHandler for IntelligenceHandler {
    fn consumes(&self, kind: &str) -> bool {
        self.parts.iter().any(|part| part.consumes(kind))
    }

    fn owners(&self, events: &[&Event]) -> BTreeSet<Owner> {
        self.parts.iter().flat_map(|part| part.owners(events)).collect()
    }

    async fn apply(&self, tx: &mut WorkerTx, events: &[&Event]) -> Result<Vec<Dirty>, HandlerError> {
        let mut dirty = Vec::new();
        for part in &self.parts {
            let of_part: Vec<&Event> = events.iter().copied().filter(|e| part.consumes(&e.kind)).collect();
            if !of_part.is_empty() {
                dirty.extend(part.apply(tx, &of_part).await?);
            }
        }
        Ok(dirty)
    }
}
