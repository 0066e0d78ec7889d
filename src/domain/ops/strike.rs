//! Owns the strike automation: each user's site goes off and on by the price of the running day, without a plan.
//! Promises that a window counts once, however often it is called and whoever died in between. A price that comes late counts
//! if no later window has been looked at.
//! Called by the runner of scheduled work, in a transaction of each tenant.
//!
//! | file | content |
//! |---|---|
//! | `step` | where a site's automation stands, and what the windows it had not seen do to it |
//! | `windows` | the priced windows of a market |

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;
use serde_json::json;

use super::settings::Settings;
use super::{CLOCK, curtailment};
use crate::db::{TenantTx, serial};
use crate::domain::{Caller, CommandError};
use crate::economics::curtailment::automation::WINDOW_SECONDS;
use crate::economics::curtailment::{PriceWindow, StrikePhase};
use crate::identifier::{EntityId, UserId};
use crate::jobs::{Job, JobError, Progress, Run, Schedule};
use step::Step;
use windows::windows_of;

mod step;
mod windows;

pub use step::Automation;

/// What a call did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Observed {
    /// Sites for which there was a new window.
    pub sites: usize,
    /// Sites that went off.
    pub curtailed: usize,
    /// Sites that may run again.
    pub resumed: usize,
}

/// Observes the prices of every tenant that has a rule, or a site that one switched off.
pub struct StrikeAutomation;

#[async_trait]
impl Job for StrikeAutomation {
    fn name(&self) -> &'static str {
        "ops-strikes"
    }

    fn schedule(&self) -> Schedule {
        Schedule::Every(Duration::from_secs(WINDOW_SECONDS))
    }

    fn tenants(&self) -> &'static str {
        "select tenant_id from ops_settings where strike_low_usd_mwh is not null \
         union select tenant_id from ops_strike where phase = 'curtailed'"
    }

    async fn run(&self, tx: &mut TenantTx, run: &Run) -> Result<Progress, JobError> {
        let actor: UserId = CLOCK.parse()?;
        let caller = Caller { actor: &actor, request_id: &run.id, traceparent: "", now: tx.now() };
        observe(tx, caller).await?;
        Ok(Progress::Done)
    }
}

/// The automation of a user on a market; nothing before its first window.
pub async fn get(tx: &mut TenantTx, owner: &UserId, market: &str) -> Result<Option<Automation>, sqlx::Error> {
    sqlx::query_as("select * from ops_strike where owner_id = $1 and market = $2")
        .bind(owner)
        .bind(market)
        .fetch_optional(tx.conn())
        .await
}

/// Lets every site of the tenant see the windows that have a price by now, up to the one of `caller.now`. Emits
/// `ops.curtailment_started` and `ops.curtailment_ended`; a site whose automation was turned off or moved to another
/// market while it was off may run again.
///
/// # Errors
/// A statement that failed; the transaction must be rolled back.
pub async fn observe(tx: &mut TenantTx, caller: Caller<'_>) -> Result<Observed, CommandError> {
    // One at a time: who comes later sees what the earlier one saw.
    let key = format!("ops_strike:{}", tx.tenant());
    serial::take_turn(tx.conn(), &key).await?;
    let now = u64::try_from(caller.now.timestamp()).unwrap_or_default() / WINDOW_SECONDS;
    let sites: Vec<Settings> =
        sqlx::query_as("select * from ops_settings where strike_low_usd_mwh is not null order by owner_id")
            .fetch_all(tx.conn())
            .await?;
    let mut known: BTreeMap<(UserId, String), Automation> =
        sqlx::query_as::<_, Automation>("select * from ops_strike order by owner_id, market")
            .fetch_all(tx.conn())
            .await?
            .into_iter()
            .map(|automation| ((automation.owner_id.clone(), automation.market.clone()), automation))
            .collect();
    let mut observed = Observed::default();
    let mut prices: BTreeMap<String, Vec<PriceWindow>> = BTreeMap::new();
    for site in sites {
        let (Some(rule), Some(market)) = (site.strike_rule(), site.market.clone()) else { continue };
        let windows = match prices.get(&market) {
            Some(windows) => windows.clone(),
            None => {
                let windows = windows_of(tx.conn(), &market, now).await?;
                prices.insert(market.clone(), windows.clone());
                windows
            }
        };
        let before = known.remove(&(site.owner_id.clone(), market.clone()));
        let Some(step) = Step::of(&site, &rule, before.as_ref(), &windows, now) else { continue };
        observed.sites += 1;
        let (off, on) = step.switched();
        observed.curtailed += usize::from(off);
        observed.resumed += usize::from(on);
        store(tx, caller, &site.owner_id, &market, &step).await?;
        if off || on {
            tell(tx, caller, &site.owner_id, &market, off, step.cause.as_ref().map(|at| (&site, at))).await?;
        }
    }
    // Whose rule is gone.
    for ((owner, market), _) in known.into_iter().filter(|(_, automation)| automation.is_curtailed()) {
        sqlx::query(
            "update ops_strike set phase = 'running', windows = 0, since = $3, resumed_at = $3 \
             where owner_id = $1 and market = $2",
        )
        .bind(&owner)
        .bind(&market)
        .bind(caller.now)
        .execute(tx.conn())
        .await?;
        observed.resumed += 1;
        tell(tx, caller, &owner, &market, false, None).await?;
    }
    Ok(observed)
}

async fn store(
    tx: &mut TenantTx,
    caller: Caller<'_>,
    owner: &UserId,
    market: &str,
    step: &Step,
) -> Result<(), sqlx::Error> {
    let tenant = tx.tenant().clone();
    let (phase, windows) = match step.after.phase {
        StrikePhase::Running { above } => ("running", above),
        StrikePhase::Curtailed { below } => ("curtailed", below),
    };
    sqlx::query(
        "insert into ops_strike as s (tenant_id, owner_id, market, phase, windows, last_window, since) \
         values ($1, $2, $3, $4, $5, $6, $7) on conflict (tenant_id, owner_id, market) do update set \
         since = case when s.phase = excluded.phase then s.since else excluded.since end, \
         resumed_at = case when s.phase = 'curtailed' and excluded.phase = 'running' then excluded.since \
           else s.resumed_at end, phase = excluded.phase, \
         windows = excluded.windows, last_window = excluded.last_window",
    )
    .bind(tenant.as_str())
    .bind(owner)
    .bind(market)
    .bind(phase)
    .bind(i16::from(windows))
    .bind(i64::try_from(step.last).unwrap_or(i64::MAX))
    .bind(caller.now)
    .execute(tx.conn())
    .await
    .map(drop)
}

/// Tells that a site is to be off from now on, or let go; without a cause because its rule is gone.
async fn tell(
    tx: &mut TenantTx,
    caller: Caller<'_>,
    owner: &UserId,
    market: &str,
    off: bool,
    cause: Option<(&Settings, &PriceWindow)>,
) -> Result<(), CommandError> {
    let data = json!({
        "source": "strike", "user_id": owner, "market": market,
        // With delivery.
        "price_usd_mwh": cause.map(|(_, window)| window.price_usd_mwh),
        "delivery_usd_mwh": cause.map(|(site, _)| site.delivery_usd_mwh),
        "window": cause.map(|(_, window)| window.index),
        "strike_low_usd_mwh": cause.map(|(site, _)| site.strike_low_usd_mwh),
        "strike_high_usd_mwh": cause.map(|(site, _)| site.strike_high_usd_mwh),
    });
    match off {
        true => curtailment::started(tx, caller, owner, EntityId::from(owner), data).await,
        false => curtailment::ended(tx, caller, owner, EntityId::from(owner), data).await,
    }
}
