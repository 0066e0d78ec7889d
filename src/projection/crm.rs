//! Recomputes the summaries of accounts, one recomputation per account and batch, and queues every event for the
//! webhooks of its tenant.

use std::collections::BTreeMap;

use async_trait::async_trait;
use sqlx::PgConnection;
use uuid::Uuid;

use super::{Dirty, EventHandler, HandlerError, REBUILT_AT_ONCE, Rebuilt};
use crate::db::{WorkerTx, serial};
use crate::event::Event;
use crate::identifier::TenantId;
use crate::read_model::{crm, crm_write};
use crate::webhook;

/// What the group hands on: everything of the CRM, whether it is about an account or not.
const PREFIX: &str = "crm.";

/// Keeps the read model of accounts.
pub(super) struct CrmHandler;

#[async_trait]
impl EventHandler for CrmHandler {
    fn consumes(&self, kind: &str) -> bool {
        crm::KINDS.contains(&kind)
    }

    async fn apply(&self, tx: &mut WorkerTx, events: &[&Event]) -> Result<Vec<Dirty>, HandlerError> {
        let mut by_tenant: BTreeMap<&TenantId, BTreeMap<Uuid, Option<Uuid>>> = BTreeMap::new();
        for event in events.iter().filter(|e| self.consumes(&e.kind)) {
            if let Some(account) = account_of(event) {
                by_tenant.entry(&event.tenant_id).or_default().insert(account, Some(event.event_id));
            }
        }
        for (tenant, accounts) in by_tenant {
            recompute(tx.for_tenant(tenant).await?, tenant, &accounts).await?;
        }
        let mut of_tenant: BTreeMap<&TenantId, Vec<&Event>> = BTreeMap::new();
        for event in events.iter().filter(|e| e.kind.starts_with(PREFIX)) {
            of_tenant.entry(&event.tenant_id).or_default().push(event);
        }
        for (tenant, events) in of_tenant {
            webhook::enqueue(tx.for_tenant(tenant).await?, tenant, &events).await?;
        }
        // No copy of a summary is cached.
        Ok(Vec::new())
    }

    fn tenants(&self) -> Option<&'static str> {
        Some("select distinct tenant_id from crm_account")
    }

    async fn rebuild(
        &self,
        tx: &mut WorkerTx,
        tenant: &TenantId,
        after: Option<&str>,
    ) -> Result<Rebuilt, HandlerError> {
        let conn = tx.for_tenant(tenant).await?;
        let after = after.and_then(|id| id.parse().ok());
        let accounts = crm_write::accounts(conn, after, REBUILT_AT_ONCE).await?;
        let accounts: BTreeMap<Uuid, Option<Uuid>> = accounts.into_iter().map(|id| (id, None)).collect();
        recompute(conn, tenant, &accounts).await?;
        let last = accounts.keys().next_back().map(ToString::to_string);
        Ok(Rebuilt { dirty: Vec::new(), rows: accounts.len(), last })
    }
}

/// With each account goes the event that asks for it, if one does.
async fn recompute(
    conn: &mut PgConnection,
    tenant: &TenantId,
    accounts: &BTreeMap<Uuid, Option<Uuid>>,
) -> Result<(), sqlx::Error> {
    // A replay comes through its own batch: the later of two recomputations reads what the earlier one was told.
    serial::take_turns(conn, &format!("crm_account:{tenant}"), accounts.keys()).await?;
    crm_write::recompute(conn, tenant, accounts).await
}

/// The account an event of ours names.
fn account_of(event: &Event) -> Option<Uuid> {
    event.data.get("account_id")?.as_str()?.parse().ok()
}
