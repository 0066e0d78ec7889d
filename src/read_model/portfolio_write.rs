//! What the projection reads and writes to keep the portfolio.

use chrono::{DateTime, Utc};
use futures_util::TryStreamExt;
use rust_decimal::Decimal;
use sqlx::PgConnection;
use sqlx::types::Json;
use uuid::Uuid;

use crate::db::serial;
use crate::economics::age::is_stale;
use crate::economics::{MinerLine, MinerStatus, Network, Portfolio};
use crate::identifier::{TenantId, UserId};

#[derive(sqlx::FromRow)]
struct MinerRow {
    owner_id: String,
    model: String,
    hashrate_ths: Decimal,
    power_w: Decimal,
    quantity: i64,
    purchase_price_usd: Option<Decimal>,
    electricity_cost_usd_kwh: Option<Decimal>,
    status: String,
    location: Option<String>,
}

/// A stored value that the database's own checks should have kept out.
fn corrupt(column: &str, value: &str) -> sqlx::Error {
    sqlx::Error::Decode(format!("{column} holds {value:?}").into())
}

/// The status in this column.
pub fn status(text: &str) -> Result<MinerStatus, sqlx::Error> {
    text.parse().map_err(|_| corrupt("miners.status", text))
}

impl TryFrom<MinerRow> for MinerLine {
    type Error = sqlx::Error;

    fn try_from(row: MinerRow) -> Result<Self, Self::Error> {
        Ok(Self {
            status: status(&row.status)?,
            quantity: u64::try_from(row.quantity)
                .map_err(|_| corrupt("miners.quantity", &row.quantity.to_string()))?,
            model: row.model,
            hashrate_ths: row.hashrate_ths,
            power_w: row.power_w,
            purchase_price_usd: row.purchase_price_usd,
            tariff_usd_kwh: row.electricity_cost_usd_kwh,
            location: row.location,
        })
    }
}

/// Everybody in the tenant who has or had miners, in order: those behind `after`, at most so many.
pub async fn owners(
    conn: &mut PgConnection,
    after: Option<&str>,
    limit: Option<i64>,
) -> Result<Vec<UserId>, sqlx::Error> {
    sqlx::query_scalar(
        "select owner_id from miners where removed_at is null and ($1 is null or owner_id > $1) \
         union select user_id from portfolio where $1 is null or user_id > $1 order by 1 limit $2",
    )
    .bind(after)
    .bind(limit)
    .fetch_all(conn)
    .await
}

/// Waits until nobody else recomputes one of these owners; held to the end of the transaction.
pub async fn lock(
    conn: &mut PgConnection,
    tenant: &TenantId,
    owners: impl Iterator<Item = &UserId>,
) -> Result<(), sqlx::Error> {
    serial::take_turns(conn, &format!("portfolio:{tenant}"), owners).await
}

/// A network snapshot as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    pub id: Uuid,
    pub observed_at: DateTime<Utc>,
    pub network: Network,
}

impl Snapshot {
    /// Whether it is old at this moment.
    pub fn is_stale(&self, now: DateTime<Utc>) -> bool {
        is_stale(self.observed_at, now)
    }
}

/// The height in this column.
pub fn height(stored: i64) -> Result<u64, sqlx::Error> {
    u64::try_from(stored).map_err(|_| corrupt("network_snapshots.block_height", &stored.to_string()))
}

/// The newest network snapshot of the tenant.
pub async fn newest_snapshot(conn: &mut PgConnection) -> Result<Option<Snapshot>, sqlx::Error> {
    let row: Option<(Uuid, DateTime<Utc>, Decimal, Decimal, i64, Decimal)> = sqlx::query_as(
        "select id, observed_at, btc_price_usd, difficulty, block_height, fees_btc_per_block from network_snapshots \
         order by observed_at desc, id desc limit 1",
    )
    .fetch_optional(conn)
    .await?;
    row.map(|(id, observed_at, btc_price_usd, difficulty, stored, fees_btc_per_block)| {
        let network =
            Network { btc_price_usd, difficulty, block_height: height(stored)?, fees_btc_per_block };
        Ok(Snapshot { id, observed_at, network })
    })
    .transpose()
}

/// Hands over the miners of these owners, in no order and those that are alike as one line: a large fleet has few of them,
/// and no more than one is held here.
pub async fn lines<E: From<sqlx::Error>>(
    conn: &mut PgConnection,
    owners: impl Iterator<Item = &UserId>,
    mut take: impl FnMut(&UserId, MinerLine) -> Result<(), E>,
) -> Result<(), E> {
    let owners: Vec<&str> = owners.map(UserId::as_str).collect();
    let mut rows = sqlx::query_as::<_, MinerRow>(
        "select owner_id, model, hashrate_ths, power_w, sum(quantity)::bigint as quantity, purchase_price_usd, \
           electricity_cost_usd_kwh, status, location \
         from miners where owner_id = any($1) and removed_at is null \
         group by owner_id, model, hashrate_ths, power_w, purchase_price_usd, electricity_cost_usd_kwh, status, location",
    )
    .bind(owners)
    .fetch(conn);
    while let Some(row) = rows.try_next().await? {
        let owner = row.owner_id.parse().map_err(|_| corrupt("miners.owner_id", &row.owner_id))?;
        take(&owner, row.try_into()?)?;
    }
    Ok(())
}

/// Stores the figures as the next version, which it returns, and as what the hour's history shows.
pub async fn store(
    conn: &mut PgConnection,
    tenant: &TenantId,
    owner: &UserId,
    figures: &Portfolio,
    snapshot: Option<&Snapshot>,
    event_id: Option<Uuid>,
) -> Result<i64, sqlx::Error> {
    let count = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    sqlx::query_scalar(
        "with stored as (insert into portfolio as p (tenant_id, user_id, version, miners_total, miners_online, \
         hashrate_ths, effective_hashrate_ths, power_kw, efficiency_j_th, gross_btc_day, net_btc_day, revenue_usd_day, \
         power_cost_usd_day, profit_usd_day, hashprice_usd_ph_day, break_even_tariff_usd_kwh, \
         break_even_btc_price_usd, capex_usd, payback_days, dynamic_payback_days, roi_percent, by_model, by_location, \
         warnings, snapshot_id, event_id, as_of, computed_at) \
         values ($1, $2, case when $25::uuid is null then hi_version_anew() else 1 end, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, \
         $22, $23, $24, $25, $26, clock_timestamp()) \
         on conflict (tenant_id, user_id) do update set version = p.version + 1, \
         miners_total = excluded.miners_total, miners_online = excluded.miners_online, \
         hashrate_ths = excluded.hashrate_ths, effective_hashrate_ths = excluded.effective_hashrate_ths, \
         power_kw = excluded.power_kw, efficiency_j_th = excluded.efficiency_j_th, \
         gross_btc_day = excluded.gross_btc_day, net_btc_day = excluded.net_btc_day, \
         revenue_usd_day = excluded.revenue_usd_day, power_cost_usd_day = excluded.power_cost_usd_day, \
         profit_usd_day = excluded.profit_usd_day, hashprice_usd_ph_day = excluded.hashprice_usd_ph_day, \
         break_even_tariff_usd_kwh = excluded.break_even_tariff_usd_kwh, \
         break_even_btc_price_usd = excluded.break_even_btc_price_usd, capex_usd = excluded.capex_usd, \
         payback_days = excluded.payback_days, dynamic_payback_days = excluded.dynamic_payback_days, \
         roi_percent = excluded.roi_percent, by_model = excluded.by_model, by_location = excluded.by_location, \
         warnings = excluded.warnings, snapshot_id = excluded.snapshot_id, as_of = excluded.as_of, \
         event_id = coalesce(excluded.event_id, p.event_id), \
         computed_at = excluded.computed_at returning *), \
         kept as (insert into portfolio_history (tenant_id, user_id, hour, version, computed_at, figures) \
           select tenant_id, user_id, date_trunc('hour', computed_at, 'UTC'), version, computed_at, \
             to_jsonb(stored) - array['tenant_id', 'by_model', 'by_location'] from stored \
           on conflict (tenant_id, user_id, hour) do update set version = excluded.version, \
             computed_at = excluded.computed_at, figures = excluded.figures) \
         select version from stored",
    )
    .bind(tenant.as_str())
    .bind(owner.as_str())
    .bind(count(figures.miners_total))
    .bind(count(figures.miners_online))
    .bind(figures.hashrate_ths)
    .bind(figures.effective_hashrate_ths)
    .bind(figures.power_kw)
    .bind(figures.efficiency_j_th)
    .bind(figures.gross_btc_day)
    .bind(figures.net_btc_day)
    .bind(figures.revenue_usd_day)
    .bind(figures.power_cost_usd_day)
    .bind(figures.profit_usd_day)
    .bind(figures.hashprice_usd_ph_day)
    .bind(figures.break_even_tariff_usd_kwh)
    .bind(figures.break_even_btc_price_usd)
    .bind(figures.capex_usd)
    .bind(figures.payback_days)
    .bind(figures.dynamic_payback_days.map(Decimal::from))
    .bind(figures.roi_percent)
    .bind(Json(&figures.by_model))
    .bind(Json(&figures.by_location))
    .bind(Json(&figures.warnings))
    .bind(snapshot.map(|snapshot| snapshot.id))
    .bind(event_id)
    .bind(snapshot.map(|snapshot| snapshot.observed_at))
    .fetch_one(conn)
    .await
}
