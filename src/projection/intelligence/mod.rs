//! Owns what intel-group makes of events: anomalies of miners, the forecast of the network, the schedules of sites.
//! Promises that each part sees the events it asked for, all in one transaction, with what the group tells others.
//! Called by the registry of groups; silence, the forecast of a new day and schedules left over by the scheduled work.
//!
//! | file | content |
//! |---|---|
//! | `anomalies` | telemetry by windows, through the checks of each miner |
//! | `figures` | an anomaly's figures: what it costs, its severity, what is told of it |
//! | `service` | what a miner is there for at a moment |
//! | [`silence`] | miners that no longer report |
//! | [`forecast`] | the days ahead, from the daily closes of the network |
//! | [`schedule`] | the optimum of each user's fleet over the next 24 hours |

use std::collections::BTreeSet;

use async_trait::async_trait;

use super::{Dirty, EventHandler, HandlerError, Owner, Rebuilt};
use crate::db::WorkerTx;
use crate::economics::Assumptions;
use crate::event::Event;
use crate::identifier::TenantId;

mod anomalies;
mod figures;
pub mod forecast;
pub mod schedule;
mod service;
pub mod silence;

/// Hands the events of a batch to those parts that have a use for them.
pub(super) struct IntelligenceHandler {
    parts: Vec<Box<dyn EventHandler>>,
}

impl IntelligenceHandler {
    pub(super) fn new(assumptions: Assumptions) -> Self {
        let anomalies = anomalies::Anomalies { assumptions: assumptions.clone() };
        let schedules = schedule::ScheduleHandler { assumptions };
        Self { parts: vec![Box::new(anomalies), Box::new(forecast::Forecasts), Box::new(schedules)] }
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

    fn tenants(&self) -> Option<&'static str> {
        Some(
            "select tenant_id from miners where removed_at is null union select tenant_id from network_snapshots \
             union select tenant_id from ops_settings",
        )
    }

    /// Part by part: a key has the number of its part in front.
    async fn rebuild(
        &self,
        tx: &mut WorkerTx,
        tenant: &TenantId,
        after: Option<&str>,
    ) -> Result<Rebuilt, HandlerError> {
        let (mut number, mut key) = match after.and_then(|after| after.split_once(':')) {
            Some((number, key)) => (number.parse().unwrap_or_default(), Some(key)),
            None => (0, None),
        };
        while let Some(part) = self.parts.get(number) {
            let rebuilt = part.rebuild(tx, tenant, key).await?;
            if let Some(last) = &rebuilt.last {
                return Ok(Rebuilt { last: Some(format!("{number}:{last}")), ..rebuilt });
            }
            (number, key) = (number + 1, None);
        }
        Ok(Rebuilt::default())
    }
}
