//! Recomputes portfolios: one recalculation per owner and batch.

use std::collections::{BTreeMap, BTreeSet};

use async_trait::async_trait;
use sqlx::PgConnection;
use uuid::Uuid;

use super::{Dirty, EventHandler, HandlerError, Owner, REBUILT_AT_ONCE, Rebuilt, Row};
use crate::db::WorkerTx;
use crate::economics::{Assumptions, Fleet};
use crate::event::{Event, kind};
use crate::identifier::{TenantId, UserId};
use crate::read_model::{portfolio, portfolio_write};

/// Keeps the read model `portfolio`.
pub(super) struct PortfolioHandler {
    pub(super) assumptions: Assumptions,
}

/// What a batch asks for in one tenant.
#[derive(Default)]
struct Wanted {
    /// Each owner with the last event that concerns it.
    owners: BTreeMap<UserId, Uuid>,
    /// The last network snapshot, which concerns everybody.
    snapshot: Option<Uuid>,
}

#[async_trait]
impl EventHandler for PortfolioHandler {
    fn consumes(&self, kind: &str) -> bool {
        portfolio::KINDS.contains(&kind)
    }

    fn owners(&self, events: &[&Event]) -> BTreeSet<Owner> {
        let named = events.iter().filter(|e| self.consumes(&e.kind) && e.kind != kind::NETWORK_SNAPSHOT);
        let owners = named.flat_map(|event| {
            let owner =
                |user_id| Owner { tenant_id: event.tenant_id.clone(), user_id, read_model: portfolio::NAME };
            owners_of(event).into_iter().map(owner)
        });
        owners.collect()
    }

    async fn apply(&self, tx: &mut WorkerTx, events: &[&Event]) -> Result<Vec<Dirty>, HandlerError> {
        let mut by_tenant: BTreeMap<&TenantId, Wanted> = BTreeMap::new();
        for event in events.iter().filter(|e| self.consumes(&e.kind)) {
            let wanted = by_tenant.entry(&event.tenant_id).or_default();
            if event.kind == kind::NETWORK_SNAPSHOT {
                wanted.snapshot = Some(event.event_id);
                continue;
            }
            for owner in owners_of(event) {
                wanted.owners.insert(owner, event.event_id);
            }
        }
        let mut dirty = Vec::new();
        for (tenant, mut wanted) in by_tenant {
            let conn = tx.for_tenant(tenant).await?;
            if let Some(snapshot) = wanted.snapshot {
                for owner in portfolio_write::owners(conn, None, None).await? {
                    wanted.owners.entry(owner).or_insert(snapshot);
                }
            }
            let owners = wanted.owners.into_iter().map(|(owner, event)| (owner, Some(event))).collect();
            dirty.extend(self.recompute(conn, tenant, owners).await?);
        }
        Ok(dirty)
    }

    fn tenants(&self) -> Option<&'static str> {
        Some("select tenant_id from miners where removed_at is null union select tenant_id from portfolio")
    }

    async fn rebuild(
        &self,
        tx: &mut WorkerTx,
        tenant: &TenantId,
        after: Option<&str>,
    ) -> Result<Rebuilt, HandlerError> {
        let conn = tx.for_tenant(tenant).await?;
        let owners = portfolio_write::owners(conn, after, Some(REBUILT_AT_ONCE)).await?;
        let last = owners.last().map(ToString::to_string);
        let rows = owners.len();
        let owners = owners.into_iter().map(|owner| (owner, None)).collect();
        Ok(Rebuilt { dirty: self.recompute(conn, tenant, owners).await?, rows, last })
    }
}

impl PortfolioHandler {
    /// With each owner goes the event that asks for it, if one does.
    async fn recompute(
        &self,
        conn: &mut PgConnection,
        tenant: &TenantId,
        owners: BTreeMap<UserId, Option<Uuid>>,
    ) -> Result<Vec<Dirty>, HandlerError> {
        // A snapshot and a miner's event come through different partitions. Both owners of a recalculation read
        // after this lock, so the later one sees what the earlier one was told.
        portfolio_write::lock(conn, tenant, owners.keys()).await?;
        let newest = portfolio_write::newest_snapshot(conn).await?;
        let mut fleets = BTreeMap::new();
        for owner in owners.keys() {
            fleets.insert(owner.clone(), Fleet::new(&self.assumptions)?);
        }
        portfolio_write::lines(conn, owners.keys(), |owner, line| -> Result<(), HandlerError> {
            Ok(fleets.get_mut(owner).map_or(Ok(()), |fleet| fleet.add(&line))?)
        })
        .await?;
        let mut dirty = Vec::with_capacity(owners.len());
        for (owner, event_id) in owners {
            let Some(fleet) = fleets.remove(&owner) else { continue };
            let figures = fleet.figures(newest.as_ref().map(|newest| &newest.network))?;
            let version =
                portfolio_write::store(conn, tenant, &owner, &figures, newest.as_ref(), event_id).await?;
            dirty.push(Dirty { tenant_id: tenant.clone(), row: Row::Portfolio(owner), version });
        }
        Ok(dirty)
    }
}

/// The owners an event concerns: its user, and the one who gave the miner away.
pub(super) fn owners_of(event: &Event) -> BTreeSet<UserId> {
    let previous = event.data.pointer("/changes/owner_id/old").and_then(|v| v.as_str()?.parse().ok());
    previous.into_iter().chain([event.user_id.clone()]).collect()
}
