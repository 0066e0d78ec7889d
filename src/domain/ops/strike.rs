//! Owns the strike automation: each user's site goes off and on by the price of the running day, without a plan.
//! Promises that a window counts once, however often it is called and whoever died in between; late prices still count.
//! Called by the runner of scheduled work, in a transaction of each tenant.

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use rust_decimal::Decimal;
use serde::Serialize;
use serde_json::json;
use sqlx::PgConnection;

use super::CLOCK;
use super::settings::Settings;
use crate::db::{TenantTx, serial};
use crate::domain::{Caller, CommandError, emit};
use crate::economics::curtailment::automation::WINDOW_SECONDS;
use crate::economics::curtailment::{
    PriceInterval, PriceWindow, StrikePhase, StrikeRule, StrikeState, automation, price_series,
};
use crate::event::kind;
use crate::identifier::{EntityId, UserId};
use crate::jobs::{Job, JobError, Progress, Run, Schedule};

/// How far back a window may lie whose price came late.
const LATE_WINDOWS: u64 = 12;

/// The automation of a user's site, as it stands.
#[derive(Debug, Clone, PartialEq, Serialize, sqlx::FromRow)]
pub struct Automation {
    #[serde(skip)]
    pub owner_id: UserId,
    pub market: String,
    /// `running` or `curtailed`.
    pub phase: String,
    /// Windows towards the next switch.
    pub windows: i16,
    /// Number of the newest window seen: its start in Unix seconds / 300.
    pub last_window: i64,
    /// When the phase began.
    pub since: DateTime<Utc>,
    /// When the site last could run again; nothing if it was never off.
    pub resumed_at: Option<DateTime<Utc>>,
}

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

impl Automation {
    fn state(&self) -> StrikeState {
        let windows = u8::try_from(self.windows).unwrap_or(u8::MAX);
        let phase = match self.phase.as_str() {
            "curtailed" => StrikePhase::Curtailed { below: windows },
            _ => StrikePhase::Running { above: windows },
        };
        StrikeState { phase, last_window: u64::try_from(self.last_window).ok() }
    }

    fn is_curtailed(&self) -> bool {
        matches!(self.state().phase, StrikePhase::Curtailed { .. })
    }
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
    serial::take_turns(tx.conn(), vec![key]).await?;
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
        let Some(step) = Step::of(&rule, before.as_ref(), &windows, now) else { continue };
        observed.sites += 1;
        let (off, on) = step.switched();
        observed.curtailed += usize::from(off);
        observed.resumed += usize::from(on);
        store(tx, caller, &site.owner_id, &market, &step).await?;
        if off || on {
            tell(tx, caller, &site.owner_id, &market, off, Some((&rule, &step.last))).await?;
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

/// What the windows that one site had not seen did to it.
struct Step {
    before: StrikePhase,
    after: StrikeState,
    last: PriceWindow,
}

impl Step {
    /// Nothing without a new window. A site that never saw one begins with that of this moment.
    fn of(rule: &StrikeRule, before: Option<&Automation>, windows: &[PriceWindow], now: u64) -> Option<Self> {
        let start = before.map(Automation::state).unwrap_or_default();
        let first = start.last_window.map_or(now, |last| last + 1);
        let (mut state, mut last) = (start, None);
        for window in windows.iter().filter(|window| window.index >= first) {
            (state, _) = automation::observe(rule, state, window);
            last = Some(*window);
        }
        last.map(|last| Self { before: start.phase, after: state, last })
    }

    /// Whether the site goes off, and whether it may run again. What was undone before anybody heard of it is neither.
    fn switched(&self) -> (bool, bool) {
        let off = |phase: &StrikePhase| matches!(phase, StrikePhase::Curtailed { .. });
        let (was, is) = (off(&self.before), off(&self.after.phase));
        (!was && is, was && !is)
    }
}

/// The priced windows up to the one of now, oldest first.
async fn windows_of(
    conn: &mut PgConnection,
    market: &str,
    now: u64,
) -> Result<Vec<PriceWindow>, CommandError> {
    let slot = i64::try_from(WINDOW_SECONDS).unwrap_or(i64::MAX);
    let to = i64::try_from(now + 1).unwrap_or_default() * slot;
    let from = i64::try_from(now.saturating_sub(LATE_WINDOWS)).unwrap_or_default() * slot;
    let rows: Vec<(i64, i32, Decimal)> = sqlx::query_as(
        "select extract(epoch from starts_at)::bigint, seconds, price_usd_mwh from power_price_newest \
         where market = $1 and starts_at > to_timestamp($2) - interval '1 hour' and starts_at < to_timestamp($3) \
         order by received_at, reception_id",
    )
    .bind(market)
    .bind(from)
    .bind(to)
    .fetch_all(conn)
    .await?;
    let intervals: Vec<PriceInterval> = rows
        .into_iter()
        .map(|(start, seconds, price_usd_mwh)| PriceInterval {
            start,
            seconds: u32::try_from(seconds).unwrap_or_default(),
            price_usd_mwh,
        })
        .collect();
    let mut windows = Vec::new();
    for start in (from..to).step_by(usize::try_from(WINDOW_SECONDS).unwrap_or(300)) {
        let one = price_series(&intervals, start, start + slot, 300)
            .map_err(|error| CommandError::Sql(sqlx::Error::Decode(Box::new(error))))?;
        if let (Some(price), Ok(index)) = (one.prices.first(), u64::try_from(start / slot)) {
            windows.push(PriceWindow { index, price_usd_mwh: *price });
        }
    }
    Ok(windows)
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
    .bind(i64::try_from(step.last.index).unwrap_or(i64::MAX))
    .bind(caller.now)
    .execute(tx.conn())
    .await
    .map(drop)
}

/// Tells that a site is to be off from now on, or may run again; without a cause because its rule is gone.
async fn tell(
    tx: &mut TenantTx,
    caller: Caller<'_>,
    owner: &UserId,
    market: &str,
    off: bool,
    cause: Option<(&StrikeRule, &PriceWindow)>,
) -> Result<(), CommandError> {
    let kind = if off { kind::OPS_CURTAILMENT_STARTED } else { kind::OPS_CURTAILMENT_ENDED };
    let data = json!({
        "source": "strike", "user_id": owner, "market": market,
        "price_usd_mwh": cause.map(|(_, window)| window.price_usd_mwh),
        "window": cause.map(|(_, window)| window.index),
        "strike_low_usd_mwh": cause.map(|(rule, _)| rule.low_usd_mwh),
        "strike_high_usd_mwh": cause.map(|(rule, _)| rule.high_usd_mwh),
    });
    emit(tx, caller, kind, owner, EntityId::from(owner), data).await.map(drop)
}
