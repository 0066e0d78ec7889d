//! Owns what GET /api/intelligence/forecast shows: the network on the days to come.
//! Promises the rows of the newest snapshot that the group [`GROUP`] has applied, and the same version for all of them.
//! Called by the API.

use chrono::{DateTime, NaiveDate, Utc};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sqlx::types::Json;
use uuid::Uuid;

use crate::db::TenantTx;
use crate::event::kind;
pub use crate::read_model::anomaly::GROUP;

/// The kinds that change this read model.
pub const KINDS: &[&str] = &[kind::NETWORK_SNAPSHOT];

/// The days after one, and what their figures rest on. Before the first snapshot: no days, version 0.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct ForecastView {
    /// One object a day, with the figures by their names; see [`crate::economics::forecast::ForecastRow`].
    pub days: Vec<Map<String, Value>>,
    /// Grows with every forecast.
    pub version: i64,
    pub made_at: Option<DateTime<Utc>>,
    /// When the newest snapshot behind it was observed.
    pub as_of: Option<DateTime<Utc>>,
    pub snapshot_id: Option<Uuid>,
    /// The model of the price and why, the next retarget, what is known and what is needed.
    pub basis: Value,
    /// not-enough-price-history, not-enough-retargets.
    pub warnings: Vec<String>,
    /// The event that caused it; null: a new day.
    pub event_id: Option<Uuid>,
}

#[derive(sqlx::FromRow)]
struct DayRow {
    figures: Json<Map<String, Value>>,
    version: i64,
    made_at: DateTime<Utc>,
    as_of: DateTime<Utc>,
    snapshot_id: Uuid,
    basis: Value,
    warnings: Json<Vec<String>>,
    event_id: Option<Uuid>,
}

/// The forecast of the days after `today`.
pub async fn get(tx: &mut TenantTx, today: NaiveDate) -> Result<ForecastView, sqlx::Error> {
    // Those of the newest forecast: a day of an older one may be left from when it reached further.
    let rows: Vec<DayRow> = sqlx::query_as(
        "select to_jsonb(f) - array['tenant_id', 'version', 'made_at', 'as_of', 'closes', 'snapshot_id', 'basis', \
           'warnings', 'event_id'] as figures, version, made_at, as_of, snapshot_id, basis, warnings, event_id \
         from forecast_daily f where date > $1 and version = (select max(version) from forecast_daily where date > $1) \
         order by date",
    )
    .bind(today)
    .fetch_all(tx.conn())
    .await?;
    let mut view = ForecastView::default();
    for row in rows {
        view.days.push(row.figures.0);
        view.version = row.version;
        view.made_at = Some(row.made_at);
        view.as_of = Some(row.as_of);
        view.snapshot_id = Some(row.snapshot_id);
        view.basis = row.basis;
        view.warnings = row.warnings.0;
        view.event_id = row.event_id;
    }
    Ok(view)
}

/// The version that [`get`] would show.
pub async fn version(tx: &mut TenantTx, today: NaiveDate) -> Result<i64, sqlx::Error> {
    sqlx::query_scalar("select coalesce(max(version), 0) from forecast_daily where date > $1")
        .bind(today)
        .fetch_one(tx.conn())
        .await
}
