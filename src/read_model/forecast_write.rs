//! What the projection reads and writes to keep the forecast of the network.

use chrono::{DateTime, NaiveDate, Utc};
use rust_decimal::Decimal;
use serde_json::Value;
use sqlx::PgConnection;
use sqlx::types::Json;
use uuid::Uuid;

use crate::db::serial;
use crate::economics::forecast::{ForecastRow, NetworkClose};
use crate::identifier::TenantId;
use crate::read_model::portfolio_write;

/// Days of closes that are read: the longest history that a forecast looks at, and the epoch before it.
const HISTORY_DAYS: i32 = 760;

/// Waits until nobody else makes the tenant's forecast; held to the end of the transaction.
pub async fn lock(conn: &mut PgConnection, tenant: &TenantId) -> Result<(), sqlx::Error> {
    serial::take_turn(conn, &format!("forecast:{tenant}")).await
}

/// The daily closes of the network up to today.
#[derive(Debug)]
pub struct History {
    /// By the database's clock, UTC.
    pub today: NaiveDate,
    /// Oldest first.
    pub closes: Vec<NetworkClose>,
    /// The last one's snapshot.
    pub newest: Option<Uuid>,
}

#[derive(sqlx::FromRow)]
struct CloseRow {
    today: NaiveDate,
    id: Option<Uuid>,
    observed_at: Option<DateTime<Utc>>,
    btc_price_usd: Option<Decimal>,
    difficulty: Option<Decimal>,
    block_height: Option<i64>,
    fees_btc_per_block: Option<Decimal>,
}

/// The tenant's history: of each day the snapshot that was observed last.
pub async fn history(conn: &mut PgConnection) -> Result<History, sqlx::Error> {
    // A probe of the index for each day, however many snapshots a day has. The running day is there in any case, to tell
    // which one it is.
    let rows: Vec<CloseRow> = sqlx::query_as(
        "select t.today, s.* from (select (clock_timestamp() at time zone 'UTC')::date as today) t \
         cross join generate_series($1, 0, -1) ago \
         left join lateral (select id, observed_at, btc_price_usd, difficulty, block_height, fees_btc_per_block \
           from network_snapshots where observed_at >= (t.today - ago)::timestamp at time zone 'UTC' \
           and observed_at < (t.today - ago + 1)::timestamp at time zone 'UTC' \
           order by observed_at desc, id desc limit 1) s on true \
         where s.id is not null or ago = 0 order by ago desc",
    )
    .bind(HISTORY_DAYS)
    .fetch_all(conn)
    .await?;
    let mut history = History { today: NaiveDate::default(), closes: Vec::new(), newest: None };
    for row in rows {
        history.today = row.today;
        let (Some(at), Some(btc_price_usd), Some(difficulty), Some(height), Some(fees_btc_per_block)) =
            (row.observed_at, row.btc_price_usd, row.difficulty, row.block_height, row.fees_btc_per_block)
        else {
            continue;
        };
        let block_height = portfolio_write::height(height)?;
        history.closes.push(NetworkClose { at, btc_price_usd, difficulty, block_height, fees_btc_per_block });
        history.newest = row.id;
    }
    Ok(history)
}

/// The event that caused the forecast there is.
pub async fn event(conn: &mut PgConnection) -> Result<Option<Uuid>, sqlx::Error> {
    let newest: Option<Option<Uuid>> =
        sqlx::query_scalar("select event_id from forecast_daily order by version desc limit 1")
            .fetch_optional(conn)
            .await?;
    Ok(newest.flatten())
}

/// What a forecast rests on, the same for all of its rows.
#[derive(Debug)]
pub struct Made {
    pub snapshot_id: Uuid,
    pub as_of: DateTime<Utc>,
    pub closes: usize,
    pub basis: Value,
    pub warnings: Value,
    /// The event that caused it; none for a new day.
    pub event_id: Option<Uuid>,
}

/// Stores the rows as the next version, which it returns.
pub async fn store(
    conn: &mut PgConnection,
    tenant: &TenantId,
    rows: &[ForecastRow],
    made: &Made,
) -> Result<i64, sqlx::Error> {
    sqlx::query_scalar(
        "with next as (select coalesce(max(version), case when $8::uuid is null then hi_version_anew() else 0 end) + 1 as version \
           from forecast_daily), stored as ( \
           insert into forecast_daily (tenant_id, version, snapshot_id, as_of, closes, basis, warnings, event_id, \
             made_at, date, btc_price_usd, btc_price_usd_lower, btc_price_usd_upper, btc_price_usd_confidence, \
             network_hashrate_eh, network_hashrate_eh_lower, network_hashrate_eh_upper, difficulty, difficulty_lower, \
             difficulty_upper, difficulty_confidence, hashprice_usd_ph_day, confidence) \
           select $1, next.version, $3, $4, $5, $6, $7, $8, clock_timestamp(), r.* \
           from next, jsonb_to_recordset($2) as r (date date, btc_price_usd numeric, btc_price_usd_lower numeric, \
             btc_price_usd_upper numeric, btc_price_usd_confidence numeric, network_hashrate_eh numeric, \
             network_hashrate_eh_lower numeric, network_hashrate_eh_upper numeric, difficulty numeric, \
             difficulty_lower numeric, difficulty_upper numeric, difficulty_confidence numeric, \
             hashprice_usd_ph_day numeric, confidence numeric) \
           on conflict (tenant_id, date) do update set version = excluded.version, \
             snapshot_id = excluded.snapshot_id, as_of = excluded.as_of, closes = excluded.closes, \
             basis = excluded.basis, warnings = excluded.warnings, event_id = excluded.event_id, \
             made_at = excluded.made_at, btc_price_usd = excluded.btc_price_usd, \
             btc_price_usd_lower = excluded.btc_price_usd_lower, btc_price_usd_upper = excluded.btc_price_usd_upper, \
             btc_price_usd_confidence = excluded.btc_price_usd_confidence, \
             network_hashrate_eh = excluded.network_hashrate_eh, \
             network_hashrate_eh_lower = excluded.network_hashrate_eh_lower, \
             network_hashrate_eh_upper = excluded.network_hashrate_eh_upper, difficulty = excluded.difficulty, \
             difficulty_lower = excluded.difficulty_lower, difficulty_upper = excluded.difficulty_upper, \
             difficulty_confidence = excluded.difficulty_confidence, \
             hashprice_usd_ph_day = excluded.hashprice_usd_ph_day, confidence = excluded.confidence) \
         select version from next",
    )
    .bind(tenant.as_str())
    .bind(Json(rows))
    .bind(made.snapshot_id)
    .bind(made.as_of)
    .bind(i32::try_from(made.closes).unwrap_or(i32::MAX))
    .bind(&made.basis)
    .bind(&made.warnings)
    .bind(made.event_id)
    .fetch_one(conn)
    .await
}
