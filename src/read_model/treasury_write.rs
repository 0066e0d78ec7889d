//! What the projection reads and writes to keep the read models of the treasury.

use chrono::{DateTime, NaiveDate, Utc};
use rust_decimal::Decimal;
use sqlx::PgConnection;
use sqlx::types::Json;
use uuid::Uuid;

use crate::economics::treasury::{Inventory, Unevaluated};
use crate::identifier::{TenantId, UserId};

/// The warning about figures that cannot be computed from what is stored.
const OUT_OF_RANGE: &str = "out-of-range";

/// Sums over the trades of an account.
#[derive(Debug, Clone, Default, sqlx::FromRow)]
pub struct Sums {
    pub user_id: String,
    pub open_trades: i64,
    pub reserved_sat: i64,
    pub hedged_sat: i64,
    /// What the hedges were sold ahead for, USD.
    pub hedged_usd: Decimal,
    pub realised_gain_usd: Decimal,
    pub fees_usd: Decimal,
    pub sold_sat: i64,
    pub bought_sat: i64,
}

/// The sums of these accounts; one without trades has none. What was sold and bought over the years may be more than there
/// are bitcoin, but not more than the column holds.
pub async fn sums(conn: &mut PgConnection, users: &[&str]) -> Result<Vec<Sums>, sqlx::Error> {
    sqlx::query_as(
        "select user_id, count(*) filter (where open) as open_trades, \
         coalesce(sum(sat - filled_sat) filter (where open and trade_type = 'sell'), 0)::bigint as reserved_sat, \
         coalesce(sum(filled_sat) filter (where trade_type = 'hedge'), 0)::bigint as hedged_sat, \
         coalesce(sum(proceeds_usd) filter (where trade_type = 'hedge'), 0) as hedged_usd, \
         trim_scale(sum(gain_usd)) as realised_gain_usd, trim_scale(sum(fee_usd)) as fees_usd, \
         least(coalesce(sum(filled_sat) filter (where trade_type = 'sell'), 0), 9223372036854775807)::bigint as sold_sat, \
         least(coalesce(sum(filled_sat) filter (where trade_type = 'buy'), 0), 9223372036854775807)::bigint as bought_sat \
         from (select *, state in ('submitted', 'approved', 'executing', 'partially_filled') as open \
               from treasury_trade where user_id = any($1)) t group by user_id",
    )
    .bind(users)
    .fetch_all(conn)
    .await
}

/// Satoshi that an account sold on a day, by a strategy or by hand.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct SoldOn {
    pub date: NaiveDate,
    pub strategy: Option<String>,
    pub sat: i64,
    /// Whether it was in the cycle that began at the moment asked about.
    pub in_cycle: bool,
}

/// What an account sold since a year before `now` or the beginning of its cycle, in the order of the days; what is promised
/// to open sales counts as of today.
pub async fn sold(
    conn: &mut PgConnection,
    user: &UserId,
    cycle: DateTime<Utc>,
    now: DateTime<Utc>,
) -> Result<Vec<SoldOn>, sqlx::Error> {
    sqlx::query_as(
        "select (filled_at at time zone 'UTC')::date as date, strategy, least(sum(sat), 9223372036854775807)::bigint as sat, \
           filled_at >= $2 as in_cycle from treasury_fill \
         where user_id = $1 and trade_type = 'sell' and filled_at >= least($2, $3 - interval '1 year') group by 1, 2, 4 \
         union all \
         select ($3 at time zone 'UTC')::date, strategy, sum(sat - filled_sat)::bigint, true from treasury_trade \
         where user_id = $1 and trade_type = 'sell' \
           and state in ('submitted', 'approved', 'executing', 'partially_filled') group by strategy \
         order by in_cycle, date",
    )
    .bind(user)
    .bind(cycle)
    .bind(now)
    .fetch_all(conn)
    .await
}

/// Satoshi that came into an account since a moment, and those of them mined on a day.
pub async fn came_in(
    conn: &mut PgConnection,
    user: &UserId,
    since: DateTime<Utc>,
    day: NaiveDate,
) -> Result<(i64, i64), sqlx::Error> {
    sqlx::query_as(
        "select least(coalesce(sum(sat) filter (where created_at >= $2), 0), 9223372036854775807)::bigint, \
         least(coalesce(sum(sat) filter (where source = 'mined' and (acquired_at at time zone 'UTC')::date = $3), 0), \
           9223372036854775807)::bigint \
         from treasury_lot where user_id = $1",
    )
    .bind(user)
    .bind(since)
    .bind(day)
    .fetch_one(conn)
    .await
}

/// The figures of an account, about to be stored.
#[derive(Debug)]
pub struct Figures<'a> {
    pub inventory: &'a Inventory,
    pub lots: usize,
    pub sums: &'a Sums,
    pub hedge_gain_usd: Option<Decimal>,
    pub cash_usd: Decimal,
    pub opex_usd_month: Decimal,
    pub unevaluated: &'a [Unevaluated],
    /// Price, its snapshot, and from when it is.
    pub price: Option<(Decimal, Uuid, DateTime<Utc>)>,
    pub event_id: Option<Uuid>,
}

/// Stores the figures as the next version.
pub async fn store(
    conn: &mut PgConnection,
    tenant: &TenantId,
    user: &UserId,
    figures: &Figures<'_>,
) -> Result<(), sqlx::Error> {
    let Figures { inventory, sums, .. } = figures;
    sqlx::query(
        "insert into treasury_overview as o (tenant_id, user_id, version, sat, reserved_sat, hedged_sat, lots, cost_usd, \
         average_cost_usd, market_value_usd, unrealised_usd, unrealised_percent, hedge_gain_usd, realised_gain_usd, \
         fees_usd, sold_sat, bought_sat, cash_usd, opex_usd_month, runway_days, open_trades, unevaluated, btc_price_usd, \
         snapshot_id, as_of, event_id, computed_at) \
         values ($1, $2, 1, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22, \
         $23, $24, $25, clock_timestamp()) \
         on conflict (tenant_id, user_id) do update set version = o.version + 1, sat = excluded.sat, \
         reserved_sat = excluded.reserved_sat, hedged_sat = excluded.hedged_sat, lots = excluded.lots, \
         cost_usd = excluded.cost_usd, average_cost_usd = excluded.average_cost_usd, \
         market_value_usd = excluded.market_value_usd, unrealised_usd = excluded.unrealised_usd, \
         unrealised_percent = excluded.unrealised_percent, hedge_gain_usd = excluded.hedge_gain_usd, \
         realised_gain_usd = excluded.realised_gain_usd, fees_usd = excluded.fees_usd, sold_sat = excluded.sold_sat, \
         bought_sat = excluded.bought_sat, cash_usd = excluded.cash_usd, opex_usd_month = excluded.opex_usd_month, \
         runway_days = excluded.runway_days, open_trades = excluded.open_trades, unevaluated = excluded.unevaluated, \
         btc_price_usd = excluded.btc_price_usd, snapshot_id = excluded.snapshot_id, as_of = excluded.as_of, warnings = '{}', \
         event_id = coalesce(excluded.event_id, o.event_id), computed_at = excluded.computed_at",
    )
    .bind(tenant.as_str())
    .bind(user)
    .bind(i64::try_from(inventory.sat).unwrap_or(i64::MAX))
    .bind(sums.reserved_sat)
    .bind(sums.hedged_sat)
    .bind(i64::try_from(figures.lots).unwrap_or(i64::MAX))
    .bind(inventory.cost_usd)
    .bind(inventory.average_cost_usd)
    .bind(inventory.market_value_usd)
    .bind(inventory.unrealised_usd)
    .bind(inventory.unrealised_percent)
    .bind(figures.hedge_gain_usd)
    .bind(sums.realised_gain_usd)
    .bind(sums.fees_usd)
    .bind(sums.sold_sat)
    .bind(sums.bought_sat)
    .bind(figures.cash_usd)
    .bind(figures.opex_usd_month)
    .bind(inventory.runway_days)
    .bind(sums.open_trades)
    .bind(Json(figures.unevaluated))
    .bind(figures.price.map(|(price, ..)| price))
    .bind(figures.price.map(|(_, snapshot, _)| snapshot))
    .bind(figures.price.map(|(.., at)| at))
    .bind(figures.event_id)
    .execute(conn)
    .await
    .map(drop)
}

/// Stores that the figures cannot be computed: those of before stay, with a warning.
pub async fn store_out_of_range(
    conn: &mut PgConnection,
    tenant: &TenantId,
    user: &UserId,
    event_id: Option<Uuid>,
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "insert into treasury_overview as o (tenant_id, user_id, version, sat, reserved_sat, hedged_sat, lots, cost_usd, \
         realised_gain_usd, fees_usd, sold_sat, bought_sat, cash_usd, opex_usd_month, open_trades, unevaluated, warnings, \
         event_id, computed_at) \
         values ($1, $2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, '[]', $4, $3, clock_timestamp()) \
         on conflict (tenant_id, user_id) do update set version = o.version + 1, warnings = excluded.warnings, \
         event_id = coalesce(excluded.event_id, o.event_id), computed_at = excluded.computed_at",
    )
    .bind(tenant.as_str())
    .bind(user)
    .bind(event_id)
    .bind([OUT_OF_RANGE])
    .execute(conn)
    .await
    .map(drop)
}

/// What the last event about a strategy said, and what the strategy says.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct SignalRow {
    pub strategy: String,
    pub sat: i64,
    pub wanted_sat: i64,
    pub reason: String,
    pub limited_by: Option<String>,
    pub told_sat: i64,
    pub told_limit: Option<String>,
    pub told_at: DateTime<Utc>,
    pub event_id: Uuid,
}

/// The signals of an account as they were computed last.
pub async fn signals(conn: &mut PgConnection, user: &UserId) -> Result<Vec<SignalRow>, sqlx::Error> {
    sqlx::query_as("select * from treasury_signal where user_id = $1 order by strategy")
        .bind(user)
        .fetch_all(conn)
        .await
}

/// Stores what a strategy says.
pub async fn store_signal(
    conn: &mut PgConnection,
    tenant: &TenantId,
    user: &UserId,
    row: &SignalRow,
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "insert into treasury_signal (tenant_id, user_id, strategy, sat, wanted_sat, reason, limited_by, told_sat, \
         told_limit, told_at, event_id, computed_at) \
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, clock_timestamp()) \
         on conflict (tenant_id, user_id, strategy) do update set sat = excluded.sat, wanted_sat = excluded.wanted_sat, \
         reason = excluded.reason, limited_by = excluded.limited_by, told_sat = excluded.told_sat, \
         told_limit = excluded.told_limit, told_at = excluded.told_at, event_id = excluded.event_id, \
         computed_at = excluded.computed_at",
    )
    .bind(tenant.as_str())
    .bind(user)
    .bind(&row.strategy)
    .bind(row.sat)
    .bind(row.wanted_sat)
    .bind(&row.reason)
    .bind(&row.limited_by)
    .bind(row.told_sat)
    .bind(&row.told_limit)
    .bind(row.told_at)
    .bind(row.event_id)
    .execute(conn)
    .await
    .map(drop)
}
