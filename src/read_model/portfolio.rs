//! Owns what GET /api/portfolio shows: one row per user.
//! Promises the figures of the newest event that the group [`GROUP`] has applied.
//! Called by the API.

use chrono::{DateTime, Utc};
use rust_decimal::Decimal;
use serde::Serialize;
use serde_json::Value;
use uuid::Uuid;

use crate::config::EconomicsConfig;
use crate::db::TenantTx;
use crate::economics::Assumptions;
use crate::economics::age::is_stale;
use crate::event::kind;
use crate::identifier::UserId;

/// The consumer group that keeps this read model.
pub const GROUP: &str = "portfolio-recalc-group";

/// The name of this read model in the keys of locks.
pub const NAME: &str = "portfolio";

/// The kinds that change this read model.
pub const KINDS: &[&str] = &[
    kind::MINER_ADDED,
    kind::MINER_UPDATED,
    kind::MINER_REMOVED,
    kind::MINER_DELETED,
    kind::MINER_STATUS_CHANGED,
    kind::MINER_BULK_IMPORTED,
    kind::MINER_PORTFOLIO_UPDATED,
    kind::MINER_SYNC_REQUESTED,
    kind::NETWORK_SNAPSHOT,
];

/// A user's portfolio; units are in the names, figures that need a network snapshot are null without one.
/// Before the first event of the user: zeros and nulls, version 0.
#[derive(Debug, Clone, Serialize, sqlx::FromRow)]
pub struct PortfolioView {
    pub user_id: UserId,
    pub miners_total: i64,
    pub miners_online: i64,
    pub hashrate_ths: Decimal,
    pub effective_hashrate_ths: Decimal,
    pub power_kw: Decimal,
    pub efficiency_j_th: Decimal,
    pub gross_btc_day: Option<Decimal>,
    pub net_btc_day: Option<Decimal>,
    pub revenue_usd_day: Option<Decimal>,
    pub power_cost_usd_day: Decimal,
    pub profit_usd_day: Option<Decimal>,
    pub hashprice_usd_ph_day: Option<Decimal>,
    pub break_even_tariff_usd_kwh: Option<Decimal>,
    pub break_even_btc_price_usd: Option<Decimal>,
    pub capex_usd: Decimal,
    pub payback_days: Option<Decimal>,
    pub dynamic_payback_days: Option<Decimal>,
    pub roi_percent: Option<Decimal>,
    /// One object per model.
    pub by_model: Value,
    /// One object per location.
    pub by_location: Value,
    /// What to know about the figures, for instance `no-snapshot`; not that they are old, which [`stale`] tells.
    pub warnings: Value,
    /// The network snapshot behind the figures.
    pub snapshot_id: Option<Uuid>,
    /// When it was observed.
    pub as_of: Option<DateTime<Utc>>,
    /// Grows with every recalculation.
    pub version: i64,
    pub computed_at: Option<DateTime<Utc>>,
    /// The event that caused the last recalculation.
    pub event_id: Option<Uuid>,
}

impl PortfolioView {
    fn empty(user_id: UserId) -> Self {
        let none = || Value::Array(Vec::new());
        Self {
            user_id,
            miners_total: 0,
            miners_online: 0,
            hashrate_ths: Decimal::ZERO,
            effective_hashrate_ths: Decimal::ZERO,
            power_kw: Decimal::ZERO,
            efficiency_j_th: Decimal::ZERO,
            gross_btc_day: None,
            net_btc_day: None,
            revenue_usd_day: None,
            power_cost_usd_day: Decimal::ZERO,
            profit_usd_day: None,
            hashprice_usd_ph_day: None,
            break_even_tariff_usd_kwh: None,
            break_even_btc_price_usd: None,
            capex_usd: Decimal::ZERO,
            payback_days: None,
            dynamic_payback_days: None,
            roi_percent: None,
            by_model: none(),
            by_location: none(),
            warnings: none(),
            snapshot_id: None,
            as_of: None,
            version: 0,
            computed_at: None,
            event_id: None,
        }
    }
}

/// The portfolio of a user of this tenant.
pub async fn get(tx: &mut TenantTx, user: &UserId) -> Result<PortfolioView, sqlx::Error> {
    let row = sqlx::query_as("select * from portfolio where user_id = $1")
        .bind(user)
        .fetch_optional(tx.conn())
        .await?;
    Ok(row.unwrap_or_else(|| PortfolioView::empty(user.clone())))
}

/// What to know about figures of this age at this moment: they are true of then.
pub fn stale(now: DateTime<Utc>, as_of: Option<DateTime<Utc>>) -> Vec<String> {
    as_of.filter(|as_of| is_stale(*as_of, now)).map(|_| "snapshot-stale".to_owned()).into_iter().collect()
}

/// The version that [`get`] would show.
pub async fn version(tx: &mut TenantTx, user: &UserId) -> Result<i64, sqlx::Error> {
    let version: Option<i64> = sqlx::query_scalar("select version from portfolio where user_id = $1")
        .bind(user)
        .fetch_optional(tx.conn())
        .await?;
    Ok(version.unwrap_or_default())
}

/// The assumptions behind every portfolio.
pub fn assumptions(config: &EconomicsConfig) -> Assumptions {
    Assumptions {
        pool_fee: config.pool_fee,
        uptime: config.uptime,
        pue: config.pue,
        default_tariff_usd_kwh: config.tariff_usd_kwh,
        degradation_month: config.degradation_per_month,
        price_drift_month: config.price_drift_per_month,
        difficulty_drift_month: config.difficulty_drift_per_month,
    }
}
