//! Owns what a user's site allows and costs: market, cap, ramp, minimum times, fees, and the prices that switch it.
//! Promises one row a user, replaced as a whole, with an event when something changed.
//! Called by the API.

use std::ops::RangeInclusive;

use chrono::{DateTime, Utc};
use rust_decimal::Decimal;
use serde::Serialize;
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::MARKET;
use super::price::{MAX_PRICE_USD_MWH, MIN_PRICE_USD_MWH};
use crate::db::{TenantTx, serial};
use crate::domain::input::{Given, Low, Names};
use crate::domain::{Caller, CommandError, Input, emit};
use crate::economics::curtailment::series::LENGTHS;
use crate::economics::curtailment::{CustomerTier, SiteTerms, StrikeRule, UnknownTier};
use crate::event::kind;
use crate::identifier::{EntityId, UserId};

/// The field that only an admin may give.
pub const TIER: Names = &["tier"];
const STRIKE_LOW: Names = &["strike_low_usd_mwh"];
const STRIKE_HIGH: Names = &["strike_high_usd_mwh"];
const STEP: Names = &["step_seconds"];

const MAX_KW: Decimal = Decimal::from_parts(100_000_000, 0, 0, false, 0);
const MAX_START_COST_USD: Decimal = Decimal::from_parts(10_000, 0, 0, false, 0);
const MAX_STEPS: RangeInclusive<i64> = 0..=288;
const MAX_RECOVERY_MINUTES: i64 = 1_440;

/// [`CustomerTier`] as a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Tier(pub CustomerTier);

impl TryFrom<String> for Tier {
    type Error = UnknownTier;

    fn try_from(text: String) -> Result<Self, UnknownTier> {
        text.parse().map(Self)
    }
}

/// What a user's site allows and costs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, sqlx::FromRow)]
pub struct Settings {
    #[serde(rename = "user_id")]
    pub owner_id: UserId,
    /// Whose prices the site pays.
    pub market: Option<String>,
    /// Length of a step of the schedule.
    pub step_seconds: i32,
    /// Most power of the site, kW.
    pub cap_kw: Option<Decimal>,
    /// Most change of power from step to step, kW.
    pub ramp_kw: Option<Decimal>,
    /// Share of the miners that must be on.
    pub min_online_share: Decimal,
    /// Of one machine, USD.
    pub start_cost_usd: Decimal,
    pub min_up_steps: i32,
    pub min_down_steps: i32,
    /// Null: the one of the configuration.
    pub pool_fee: Option<Decimal>,
    /// Added to every price.
    pub delivery_usd_mwh: Decimal,
    /// What the user has been promised as somebody's customer.
    #[sqlx(try_from = "String")]
    pub tier: Tier,
    /// The automation switches off above these, see [`StrikeRule`]; null: it is off.
    pub strike_low_usd_mwh: Option<Decimal>,
    pub strike_high_usd_mwh: Option<Decimal>,
    /// How long after a plan its miners take to be back.
    pub recovery_minutes: i32,
    /// Null: never set.
    pub updated_at: Option<DateTime<Utc>>,
    /// Since when the automation has been on, on this market; null: it is off, or was set by an earlier release.
    #[serde(skip)]
    pub strike_since: Option<DateTime<Utc>>,
}

/// What a site assumes where its settings say nothing (configuration, section `economics`).
#[derive(Debug, Clone, Copy)]
pub struct Defaults {
    pub pool_fee: Decimal,
    pub pue: Decimal,
}

impl Settings {
    /// Of a user who has set nothing: no market, no limit, steps of an hour.
    pub fn unset(owner_id: UserId) -> Self {
        Self {
            owner_id,
            market: None,
            step_seconds: 3_600,
            cap_kw: None,
            ramp_kw: None,
            min_online_share: Decimal::ZERO,
            start_cost_usd: Decimal::ZERO,
            min_up_steps: 0,
            min_down_steps: 0,
            pool_fee: None,
            delivery_usd_mwh: Decimal::ZERO,
            tier: Tier(CustomerTier::Standard),
            strike_low_usd_mwh: None,
            strike_high_usd_mwh: None,
            recovery_minutes: 15,
            updated_at: None,
            strike_since: None,
        }
    }

    /// These settings with the fields that are given.
    pub fn with(&self, input: &mut Input<'_>) -> Self {
        let zero = Low::From(Decimal::ZERO);
        let (low, high) = (Low::From(MIN_PRICE_USD_MWH), MAX_PRICE_USD_MWH);
        let market = input.identifier::<EntityId>(MARKET);
        let step_seconds = integer(input, STEP, 1..=3_600, self.step_seconds);
        if u32::try_from(step_seconds).is_ok_and(|s| !LENGTHS.contains(&s)) && !input.refused(STEP) {
            input.refuse(STEP[0], "must be 300 or 3600");
        }
        let new = Self {
            owner_id: self.owner_id.clone(),
            market: match market {
                Given::Value(market) => Some(market.as_str().to_owned()),
                Given::Null => None,
                Given::Absent => self.market.clone(),
            },
            step_seconds,
            cap_kw: input.decimal(&["cap_kw"], zero, MAX_KW).cleared(&self.cap_kw),
            ramp_kw: input.decimal(&["ramp_kw"], zero, MAX_KW).cleared(&self.ramp_kw),
            min_online_share: decimal(
                input,
                &["min_online_share"],
                (zero, Decimal::ONE),
                self.min_online_share,
            ),
            start_cost_usd: decimal(
                input,
                &["start_cost_usd"],
                (zero, MAX_START_COST_USD),
                self.start_cost_usd,
            ),
            min_up_steps: integer(input, &["min_up_steps"], MAX_STEPS, self.min_up_steps),
            min_down_steps: integer(input, &["min_down_steps"], MAX_STEPS, self.min_down_steps),
            pool_fee: input.decimal(&["pool_fee"], zero, Decimal::ONE).cleared(&self.pool_fee),
            delivery_usd_mwh: decimal(input, &["delivery_usd_mwh"], (low, high), self.delivery_usd_mwh),
            tier: match input.choice::<CustomerTier>(TIER) {
                Given::Value(tier) => Tier(tier),
                Given::Absent | Given::Null => self.tier,
            },
            strike_low_usd_mwh: input.decimal(STRIKE_LOW, low, high).cleared(&self.strike_low_usd_mwh),
            strike_high_usd_mwh: input.decimal(STRIKE_HIGH, low, high).cleared(&self.strike_high_usd_mwh),
            recovery_minutes: integer(
                input,
                &["recovery_minutes"],
                0..=MAX_RECOVERY_MINUTES,
                self.recovery_minutes,
            ),
            updated_at: self.updated_at,
            strike_since: self.strike_since,
        };
        match (new.strike_low_usd_mwh, new.strike_high_usd_mwh) {
            (Some(low), Some(high)) if low > high => {
                input.refuse(STRIKE_LOW[0], "must not be above strike_high_usd_mwh");
            }
            (Some(_), None) if !input.refused(STRIKE_HIGH) => {
                input.refuse(STRIKE_HIGH[0], "is required with strike_low_usd_mwh");
            }
            (None, Some(_)) if !input.refused(STRIKE_LOW) => {
                input.refuse(STRIKE_LOW[0], "is required with strike_high_usd_mwh");
            }
            _ => {}
        }
        if new.strike_low_usd_mwh.is_some() && new.market.is_none() && !input.refused(MARKET) {
            input.refuse(MARKET[0], "is required with strikes: their prices are the market's");
        }
        new
    }

    /// The same as the optimum takes it.
    pub fn terms(&self, defaults: Defaults) -> SiteTerms {
        let steps = |steps: i32| u32::try_from(steps).unwrap_or_default();
        SiteTerms {
            cap_kw: self.cap_kw,
            ramp_kw: self.ramp_kw,
            min_online_share: self.min_online_share,
            start_cost_usd: self.start_cost_usd,
            min_up_steps: steps(self.min_up_steps),
            min_down_steps: steps(self.min_down_steps),
            pool_fee: self.pool_fee.unwrap_or(defaults.pool_fee),
            delivery_usd_mwh: self.delivery_usd_mwh,
            pue: defaults.pue,
        }
    }

    /// The prices of the automation, if it is on.
    pub fn strike_rule(&self) -> Option<StrikeRule> {
        let (low_usd_mwh, high_usd_mwh) = self.strike_low_usd_mwh.zip(self.strike_high_usd_mwh)?;
        Some(StrikeRule { low_usd_mwh, high_usd_mwh })
    }
}

fn integer(input: &mut Input<'_>, names: Names, range: RangeInclusive<i64>, old: i32) -> i32 {
    let given = input.integer(names, range);
    i32::try_from(input.kept(names, given, &i64::from(old))).unwrap_or(old)
}

fn decimal(input: &mut Input<'_>, names: Names, (low, high): (Low, Decimal), old: Decimal) -> Decimal {
    let given = input.decimal(names, low, high);
    input.kept(names, given, &old)
}

/// The settings of a user of this tenant; of one who has set nothing, what holds for such.
pub async fn get(tx: &mut TenantTx, owner: &UserId) -> Result<Settings, sqlx::Error> {
    let found = sqlx::query_as("select * from ops_settings where owner_id = $1")
        .bind(owner)
        .fetch_optional(tx.conn())
        .await?;
    Ok(found.unwrap_or_else(|| Settings::unset(owner.clone())))
}

/// Replaces the settings of a user: what is not given is unset, save the tier. Emits `ops.settings_changed` unless they
/// are the same.
pub async fn put(
    tx: &mut TenantTx,
    caller: Caller<'_>,
    owner: &UserId,
    object: &Map<String, Value>,
) -> Result<(Settings, Option<Uuid>), CommandError> {
    // Two who set a user's settings for the first time have no row to lock.
    let key = format!("ops_settings:{}:{owner}", tx.tenant());
    serial::take_turn(tx.conn(), &key).await?;
    let old = get(tx, owner).await?;
    let mut input = Input::new(object);
    let kept = Settings::unset(owner.clone());
    let base =
        Settings { tier: old.tier, updated_at: old.updated_at, strike_since: old.strike_since, ..kept };
    let new = base.with(&mut input);
    input.finish().map_err(CommandError::Invalid)?;
    if new == old && old.updated_at.is_some() {
        return Ok((old, None));
    }
    let goes_on = old.strike_rule().is_some() && old.market == new.market;
    let strike_since = if goes_on { old.strike_since.or(old.updated_at) } else { Some(caller.now) };
    let strike_since = strike_since.filter(|_| new.strike_rule().is_some());
    let new = Settings { updated_at: Some(caller.now), strike_since, ..new };
    store(tx, &new).await?;
    let data = json!({"user_id": owner, "settings": new});
    let event_id = emit(tx, caller, kind::OPS_SETTINGS_CHANGED, owner, EntityId::from(owner), data).await?;
    Ok((new, Some(event_id)))
}

async fn store(tx: &mut TenantTx, new: &Settings) -> Result<(), sqlx::Error> {
    let tenant = tx.tenant().clone();
    sqlx::query(
        "insert into ops_settings (tenant_id, owner_id, market, step_seconds, cap_kw, ramp_kw, min_online_share, \
         start_cost_usd, min_up_steps, min_down_steps, pool_fee, delivery_usd_mwh, tier, strike_low_usd_mwh, \
         strike_high_usd_mwh, recovery_minutes, updated_at, strike_since) \
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18) \
         on conflict (tenant_id, owner_id) do update set market = excluded.market, \
         step_seconds = excluded.step_seconds, cap_kw = excluded.cap_kw, ramp_kw = excluded.ramp_kw, \
         min_online_share = excluded.min_online_share, start_cost_usd = excluded.start_cost_usd, \
         min_up_steps = excluded.min_up_steps, min_down_steps = excluded.min_down_steps, \
         pool_fee = excluded.pool_fee, delivery_usd_mwh = excluded.delivery_usd_mwh, tier = excluded.tier, \
         strike_low_usd_mwh = excluded.strike_low_usd_mwh, strike_high_usd_mwh = excluded.strike_high_usd_mwh, \
         recovery_minutes = excluded.recovery_minutes, updated_at = excluded.updated_at, \
         strike_since = excluded.strike_since",
    )
    .bind(tenant.as_str())
    .bind(&new.owner_id)
    .bind(&new.market)
    .bind(new.step_seconds)
    .bind(new.cap_kw)
    .bind(new.ramp_kw)
    .bind(new.min_online_share)
    .bind(new.start_cost_usd)
    .bind(new.min_up_steps)
    .bind(new.min_down_steps)
    .bind(new.pool_fee)
    .bind(new.delivery_usd_mwh)
    .bind(new.tier.0.as_str())
    .bind(new.strike_low_usd_mwh)
    .bind(new.strike_high_usd_mwh)
    .bind(new.recovery_minutes)
    .bind(new.updated_at)
    .bind(new.strike_since)
    .execute(tx.conn())
    .await
    .map(drop)
}
