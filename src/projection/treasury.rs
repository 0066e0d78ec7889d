//! Executes trades when they may go on and when a price comes, and recomputes the accounts: once an account and batch.

use std::collections::{BTreeMap, HashMap};

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use rust_decimal::Decimal;
use tracing::error;
use uuid::Uuid;

use super::{Dirty, EventHandler, HandlerError, REBUILT_AT_ONCE, Rebuilt};
use crate::db::{Tenanted, WorkerTx};
use crate::domain::treasury::price::{self, Price};
use crate::domain::treasury::{Settings, account, execution, lot};
use crate::economics::treasury::money::{booked_usd, value_usd};
use crate::economics::treasury::{Inventory, Lot, TreasuryError, inventory};
use crate::event::{Event, kind};
use crate::identifier::{TenantId, UserId};
use crate::read_model::treasury::{DRIVING, KINDS};
use crate::read_model::treasury_write::{self, Figures, Sums};
use outlook::Outlook;

mod outlook;
mod signals;

/// Keeps the read models of the treasury.
pub(super) struct TreasuryHandler;

/// What a batch asks for in one tenant.
#[derive(Default)]
struct Wanted {
    /// Each account with the last event that concerns it, and whether its trades go on.
    accounts: BTreeMap<UserId, (Uuid, bool)>,
    /// The last network snapshot, which concerns every account.
    snapshot: Option<Uuid>,
}

#[async_trait]
impl EventHandler for TreasuryHandler {
    fn consumes(&self, kind: &str) -> bool {
        KINDS.contains(&kind)
    }

    async fn apply(&self, tx: &mut WorkerTx, events: &[&Event]) -> Result<Vec<Dirty>, HandlerError> {
        let mut by_tenant: BTreeMap<&TenantId, Wanted> = BTreeMap::new();
        for event in events.iter().filter(|event| self.consumes(&event.kind)) {
            let wanted = by_tenant.entry(&event.tenant_id).or_default();
            if event.kind == kind::NETWORK_SNAPSHOT {
                wanted.snapshot = Some(event.event_id);
                continue;
            }
            let drives = DRIVING.contains(&event.kind.as_str());
            let account = wanted.accounts.entry(event.user_id.clone()).or_insert((event.event_id, false));
            *account = (event.event_id, account.1 || drives);
        }
        for (tenant, mut wanted) in by_tenant {
            let mut tx = tx.within(tenant).await?;
            if let Some(snapshot) = wanted.snapshot {
                for account in account::all(tx.conn(), None, None).await? {
                    wanted.accounts.entry(account).or_insert((snapshot, true)).1 = true;
                }
            }
            // A price and a trade come through different partitions, and requests sell meanwhile: whoever comes later
            // reads what the earlier one did.
            account::lock(&mut tx, wanted.accounts.keys()).await?;
            let now = tx.now();
            let driven = wanted.accounts.iter().filter(|(_, (_, drives))| *drives);
            let driven = driven.map(|(user, (event, _))| (user.clone(), Some(*event))).collect();
            execution::advance_accounts(&mut tx, &driven, now).await?;
            let causes = wanted.accounts.into_iter().map(|(user, (event, _))| (user, Some(event))).collect();
            recompute(&mut tx, &causes, now).await?;
        }
        // No copy of these read models is cached.
        Ok(Vec::new())
    }

    fn tenants(&self) -> Option<&'static str> {
        Some("select distinct tenant_id from treasury_settings")
    }

    async fn rebuild(
        &self,
        tx: &mut WorkerTx,
        tenant: &TenantId,
        after: Option<&str>,
    ) -> Result<Rebuilt, HandlerError> {
        let mut tx = tx.within(tenant).await?;
        let accounts = account::all(tx.conn(), after, Some(REBUILT_AT_ONCE)).await?;
        let last = accounts.last().map(ToString::to_string);
        account::lock(&mut tx, accounts.iter()).await?;
        let now = tx.now();
        let causes: BTreeMap<UserId, Option<Uuid>> =
            accounts.into_iter().map(|account| (account, None)).collect();
        // No trade goes on by it: what is due waits for its price or for the clock.
        recompute(&mut tx, &causes, now).await?;
        Ok(Rebuilt { dirty: Vec::new(), rows: causes.len(), last })
    }
}

/// Recomputes the accounts from the tables of record. With each goes the last event that concerns it, if one does.
async fn recompute<T: Tenanted>(
    tx: &mut T,
    causes: &BTreeMap<UserId, Option<Uuid>>,
    now: DateTime<Utc>,
) -> Result<(), HandlerError> {
    let users: Vec<&str> = causes.keys().map(UserId::as_str).collect();
    let prices = price::recent(tx.conn(), now).await?;
    let settings = account::settings_of(tx.conn(), &users).await?;
    let cash = account::cash_of(tx.conn(), &users).await?;
    let mut lots: HashMap<UserId, Vec<Lot>> = HashMap::new();
    for held in lot::held(tx.conn(), &users).await? {
        lots.entry(held.user_id.clone()).or_default().push((&held).into());
    }
    let sums = treasury_write::sums(tx.conn(), &users).await?;
    let mut sums: HashMap<String, Sums> = sums.into_iter().map(|sums| (sums.user_id.clone(), sums)).collect();
    // The market is the tenant's: it is looked at once for all of its accounts.
    let outlook = match prices.current() {
        Some(price) => Some(Outlook::of(tx.conn(), &settings, price, now).await?),
        // Without a price that counts, what was said last stands.
        None => None,
    };
    for settings in settings {
        let user = settings.user_id.clone();
        let Some(event_id) = causes.get(&user).copied() else { continue };
        let account = Account {
            lots: lots.remove(&user).unwrap_or_default(),
            cash_usd: cash.get(&user).copied().unwrap_or_default(),
            sums: sums.remove(user.as_str()).unwrap_or_default(),
            settings,
            event_id,
        };
        account.recompute(tx, prices.newest.as_ref(), outlook.as_ref()).await?;
    }
    Ok(())
}

/// An account as it stands in the tables of record.
struct Account {
    settings: Settings,
    lots: Vec<Lot>,
    cash_usd: Decimal,
    sums: Sums,
    event_id: Option<Uuid>,
}

impl Account {
    async fn recompute<T: Tenanted>(
        &self,
        tx: &mut T,
        newest: Option<&Price>,
        outlook: Option<&Outlook>,
    ) -> Result<(), HandlerError> {
        let (tenant, user) = (tx.tenant().clone(), &self.settings.user_id);
        let (inventory, hedge_gain) = match self.held(newest.map(|price| price.price_usd)) {
            Ok(held) => held,
            // One account's figures do not keep the others from theirs.
            Err(error) => {
                error!(%tenant, %user, %error, "the figures of a treasury cannot be computed from what is stored");
                treasury_write::store_out_of_range(tx.conn(), &tenant, user, self.event_id).await?;
                return Ok(());
            }
        };
        let plan = match outlook {
            Some(outlook) => Some(outlook.plan(tx.conn(), self, &inventory).await?),
            None => None,
        };
        if let Some(plan) = &plan {
            signals::store(tx, user, self.event_id, plan).await?;
        }
        let figures = Figures {
            inventory: &inventory,
            lots: self.lots.len(),
            sums: &self.sums,
            hedge_gain_usd: hedge_gain,
            cash_usd: self.cash_usd,
            opex_usd_month: self.settings.opex_usd_month,
            unevaluated: plan.as_ref().map_or(&[][..], |plan| plan.unevaluated.as_slice()),
            price: newest.map(|price| (price.price_usd, price.snapshot_id, price.at)),
            event_id: self.event_id,
        };
        treasury_write::store(tx.conn(), &tenant, user, &figures).await?;
        Ok(())
    }

    /// What is held at a price, and what closing the hedges at it would bring.
    fn held(&self, price_usd: Option<Decimal>) -> Result<(Inventory, Option<Decimal>), TreasuryError> {
        let inventory = inventory(&self.lots, price_usd, self.cash_usd, self.settings.opex_usd_month)?;
        let hedged = self.sums.hedged_sat.unsigned_abs();
        let value = price_usd.map(|price| value_usd(hedged, price)).transpose()?;
        let gain = value.map(|value| booked_usd(self.sums.hedged_usd - value).normalize());
        Ok((inventory, gain))
    }
}
