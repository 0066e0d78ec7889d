//! Owns the accounts: their settings, the cash they have by now, and the lock of everything about one.
//! Promises that whatever reads an account to change it does so alone: nothing is sold or reserved twice.
//! Called by the commands of this folder, by the group of the treasury and, to read, by the API.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use rust_decimal::Decimal;
use serde::Serialize;
use serde_json::{Map, Value, json};
use sqlx::PgConnection;
use sqlx::types::Json;
use uuid::Uuid;

use crate::db::{TenantTx, Tenanted, serial};
use crate::domain::amount::{MAX_USD, balance_usd, usd};
use crate::domain::change::changes;
use crate::domain::input::{Given, Low, Names};
use crate::domain::machine::{State, states};
use crate::domain::{Caller, CommandError, Input, emit};
use crate::economics::EconomicsError;
use crate::economics::treasury::money::MONTH_DAYS;
use crate::economics::treasury::strategy::refusal_of;
use crate::economics::treasury::{Caps, LotMethod, Rules, Strategy};
use crate::event::kind;
use crate::identifier::UserId;

const CASH: Names = &["cash_usd", "cash"];
const OPEX_MONTH: Names = &["opex_usd_month", "opex"];
const OPEX_DAY: Names = &["opex_usd_day"];
/// The setting that only an administrator changes.
pub const APPROVAL_LIMIT: &str = "approval_limit_usd";
const LIMIT: Names = &[APPROVAL_LIMIT];
const METHOD: Names = &["lot_method"];
const FEE: Names = &["fee_share"];
const DAY_SHARE: Names = &["max_share_day"];
const RESERVE: Names = &["min_reserve_sat"];
const MIN_ORDER: Names = &["min_order_sat"];
const STRATEGIES: &str = "strategies";
/// No more satoshi will ever be.
pub(super) const MAX_SAT: i64 = 2_100_000_000_000_000;

states! {
    /// Which lots a sale takes first. Specific lots are named by the trade.
    Method {
        Fifo = "fifo",
        Lifo = "lifo",
        Hifo = "hifo",
        Average = "average",
    }
}

impl From<Method> for LotMethod {
    fn from(method: Method) -> Self {
        match method {
            Method::Fifo => Self::Fifo,
            Method::Lifo => Self::Lifo,
            Method::Hifo => Self::Hifo,
            Method::Average => Self::Average,
        }
    }
}

/// The settings of an account.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, sqlx::FromRow)]
pub struct Settings {
    pub user_id: UserId,
    /// What was at hand at `cash_set_at`; the fills since then come on top.
    pub cash_usd: Decimal,
    pub cash_set_at: DateTime<Utc>,
    /// Of 30 days.
    pub opex_usd_month: Decimal,
    /// A trade worth more needs a second person.
    pub approval_limit_usd: Decimal,
    #[sqlx(try_from = "String")]
    pub lot_method: Method,
    /// The share of a trade's value that the venue keeps.
    pub fee_share: Decimal,
    pub max_share_day: Decimal,
    pub min_reserve_sat: i64,
    pub min_order_sat: i64,
    pub strategies: Json<Vec<Strategy>>,
    /// When the strategies were chosen: what they sell once, they sell once from here on.
    pub cycle_started_at: DateTime<Utc>,
    pub updated_at: DateTime<Utc>,
}

impl Settings {
    /// The caps on what strategies sell.
    #[must_use]
    pub fn caps(&self) -> Caps {
        Caps {
            max_share_day: self.max_share_day,
            min_reserve_sat: self.min_reserve_sat.unsigned_abs(),
            min_order_sat: self.min_order_sat.unsigned_abs(),
        }
    }

    /// The strategies with this name, if it was chosen.
    pub(super) fn follows(&self, name: &str) -> bool {
        self.strategies.iter().any(|strategy| strategy.kind().as_str() == name)
    }
}

/// Waits until nobody else changes or computes one of these accounts; held to the end of the transaction. It comes
/// before anything of them is read.
pub async fn lock<T: Tenanted>(
    tx: &mut T,
    users: impl Iterator<Item = &UserId> + Send,
) -> Result<(), sqlx::Error> {
    let scope = format!("treasury:{}", tx.tenant());
    serial::take_turns(tx.conn(), &scope, users).await
}

/// Locks an account and gives its settings; makes it if it is new.
pub(super) async fn open(tx: &mut TenantTx, user: &UserId) -> Result<Settings, sqlx::Error> {
    lock(tx, std::iter::once(user)).await?;
    let tenant = tx.tenant().clone();
    sqlx::query("insert into treasury_settings (tenant_id, user_id) values ($1, $2) on conflict do nothing")
        .bind(tenant.as_str())
        .bind(user)
        .execute(tx.conn())
        .await?;
    sqlx::query_as("select * from treasury_settings where user_id = $1").bind(user).fetch_one(tx.conn()).await
}

/// The settings of these accounts; what is no account has none.
pub async fn settings_of(conn: &mut PgConnection, users: &[&str]) -> Result<Vec<Settings>, sqlx::Error> {
    sqlx::query_as("select * from treasury_settings where user_id = any($1)")
        .bind(users)
        .fetch_all(conn)
        .await
}

/// The accounts of the tenant in the order of their users: those behind `after`, at most so many.
pub async fn all(
    conn: &mut PgConnection,
    after: Option<&str>,
    limit: Option<i64>,
) -> Result<Vec<UserId>, sqlx::Error> {
    sqlx::query_scalar(
        "select user_id from treasury_settings where $1 is null or user_id > $1 order by user_id limit $2",
    )
    .bind(after)
    .bind(limit)
    .fetch_all(conn)
    .await
}

/// The cash that these accounts have by now: what was set, and what their fills since then brought or took.
pub async fn cash_of(
    conn: &mut PgConnection,
    users: &[&str],
) -> Result<HashMap<UserId, Decimal>, sqlx::Error> {
    let rows: Vec<(UserId, Decimal)> = sqlx::query_as(
        "select s.user_id, trim_scale(s.cash_usd + coalesce(sum(case f.trade_type when 'sell' then f.proceeds_usd \
         when 'buy' then -f.proceeds_usd else 0 end - f.fee_usd), 0)) from treasury_settings s \
         left join treasury_fill f on f.tenant_id = s.tenant_id and f.user_id = s.user_id and f.filled_at > s.cash_set_at \
         where s.user_id = any($1) group by s.tenant_id, s.user_id",
    )
    .bind(users)
    .fetch_all(conn)
    .await?;
    Ok(rows.into_iter().collect())
}

/// Changes the settings that are given; emits `treasury.settings_changed` if any differs. `strategies` begins a cycle, and
/// `cash_usd` counts from now, also when they are given as they were.
pub async fn change(
    tx: &mut TenantTx,
    caller: Caller<'_>,
    user: &UserId,
    object: &Map<String, Value>,
) -> Result<(Settings, Option<Uuid>), CommandError> {
    let old = open(tx, user).await?;
    let mut input = Input::new(object);
    let mut new = old.clone();
    let cash = balance_usd(&mut input, CASH);
    let cash_is_set = matches!(cash, Given::Value(_));
    new.cash_usd = input.kept(CASH, cash, &old.cash_usd);
    new.opex_usd_month = opex(&mut input, &old);
    let limit = usd(&mut input, LIMIT, Low::From(Decimal::ZERO));
    new.approval_limit_usd = input.kept(LIMIT, limit, &old.approval_limit_usd);
    let method = input.choice(METHOD);
    new.lot_method = input.kept(METHOD, method, &old.lot_method);
    new.fee_share = share(&mut input, FEE, old.fee_share);
    new.max_share_day = share(&mut input, DAY_SHARE, old.max_share_day);
    let reserve = input.integer(RESERVE, 0..=MAX_SAT);
    new.min_reserve_sat = input.kept(RESERVE, reserve, &old.min_reserve_sat);
    let least = input.integer(MIN_ORDER, 0..=MAX_SAT);
    new.min_order_sat = input.kept(MIN_ORDER, least, &old.min_order_sat);
    let strategies = strategies(&mut input);
    let cycle_begins = strategies.is_some();
    if let Some(strategies) = strategies {
        new.strategies = Json(strategies);
    }
    input.finish().map_err(CommandError::Invalid)?;
    let stored: Settings = store(tx, &new, cash_is_set, cycle_begins).await?;
    let mut changes = changes(&old, &stored)?;
    changes.remove("updated_at");
    if changes.is_empty() {
        return Ok((stored, None));
    }
    let data = json!({"user_id": user, "changes": changes});
    let event_id = emit(tx, caller, kind::TREASURY_SETTINGS_CHANGED, user, user.into(), data).await?;
    Ok((stored, Some(event_id)))
}

/// The database's clock, after the lock: what is filled before and after it is told apart by it.
async fn store(tx: &mut TenantTx, new: &Settings, cash: bool, cycle: bool) -> Result<Settings, sqlx::Error> {
    sqlx::query_as(
        "update treasury_settings set cash_usd = $2, cash_set_at = case when $3 then clock_timestamp() else cash_set_at \
         end, opex_usd_month = $4, approval_limit_usd = $5, lot_method = $6, fee_share = $7, max_share_day = $8, \
         min_reserve_sat = $9, min_order_sat = $10, strategies = $11, cycle_started_at = case when $12 \
         then clock_timestamp() else cycle_started_at end, updated_at = clock_timestamp() where user_id = $1 returning *",
    )
    .bind(&new.user_id)
    .bind(new.cash_usd)
    .bind(cash)
    .bind(new.opex_usd_month)
    .bind(new.approval_limit_usd)
    .bind(new.lot_method.as_str())
    .bind(new.fee_share)
    .bind(new.max_share_day)
    .bind(new.min_reserve_sat)
    .bind(new.min_order_sat)
    .bind(&new.strategies)
    .bind(cycle)
    .fetch_one(tx.conn())
    .await
}

/// A month of the treasury has 30 days. Given both ways, the two must agree.
fn opex(input: &mut Input<'_>, old: &Settings) -> Decimal {
    let month = usd(input, OPEX_MONTH, Low::From(Decimal::ZERO));
    let day =
        usd(input, OPEX_DAY, Low::From(Decimal::ZERO)).value().map(|day| (day * MONTH_DAYS).normalize());
    if let (Given::Value(month), Some(day)) = (&month, day)
        && *month != day
    {
        input.refuse(
            OPEX_MONTH[0],
            "opex_usd_month and opex_usd_day contradict each other: a month has 30 days",
        );
    }
    if day.is_some_and(|day| day > MAX_USD) {
        input.refuse(OPEX_DAY[0], format!("must be at most {MAX_USD} in a month"));
    }
    match day {
        Some(day) => day,
        None => input.kept(OPEX_MONTH, month, &old.opex_usd_month),
    }
}

/// A share of 0 to 1; a fee of 1 would leave nothing.
fn share(input: &mut Input<'_>, names: Names, old: Decimal) -> Decimal {
    let given = input.decimal(names, Low::From(Decimal::ZERO), Decimal::ONE);
    if names == FEE && given == Given::Value(Decimal::ONE) {
        input.refuse(FEE[0], "must be less than 1");
    }
    input.kept(names, given, &old)
}

/// What is wrong with a strategy, and what is allowed.
fn explained(error: EconomicsError) -> String {
    match error {
        EconomicsError::OutOfRange { field } => refusal_of(field).unwrap_or_else(|| error.to_string()),
        EconomicsError::Overflow { .. } => error.to_string(),
    }
}

fn strategies(input: &mut Input<'_>) -> Option<Vec<Strategy>> {
    let given = input.raw(STRATEGIES)?;
    let parsed: Result<Vec<Strategy>, String> =
        serde_json::from_value(given.clone()).map_err(|error| error.to_string());
    let checked = parsed.and_then(|strategies| {
        let rules = Rules { strategies, ..Rules::default() };
        rules.check().map_err(explained).map(|()| rules.strategies)
    });
    match checked {
        Ok(strategies) => Some(strategies),
        Err(message) => {
            input.refuse(STRATEGIES, message);
            None
        }
    }
}
