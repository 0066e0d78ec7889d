//! Owns what the read models of the treasury show: an account's figures, and what its strategies say.
//! Promises the figures of the newest event that the group [`GROUP`] has applied, at the price it had, with its time.
//! Called by the API.

use chrono::{DateTime, Utc};
use rust_decimal::Decimal;
use serde::Serialize;
use serde_json::Value;
use uuid::Uuid;

use crate::db::TenantTx;
use crate::event::kind;
use crate::identifier::UserId;

/// The consumer group that keeps these read models.
pub const GROUP: &str = "treasury-group";

/// The kinds that change an account's figures.
pub const KINDS: &[&str] = &[
    kind::TREASURY_TRADE_SUBMITTED,
    kind::TREASURY_TRADE_APPROVED,
    kind::TREASURY_TRADE_EXECUTED,
    kind::TREASURY_TRADE_CANCELLED,
    kind::TREASURY_TRADE_FAILED,
    kind::TREASURY_SETTINGS_CHANGED,
    kind::TREASURY_LOT_ADDED,
    kind::NETWORK_SNAPSHOT,
];

/// Those of them upon which trades go on. The group does not hear from itself through them, so that a fill leads to no
/// other fill.
pub const DRIVING: &[&str] =
    &[kind::TREASURY_TRADE_SUBMITTED, kind::TREASURY_TRADE_APPROVED, kind::NETWORK_SNAPSHOT];

/// An account in figures. Before its first event: zeros, version 0.
#[derive(Debug, Clone, Serialize, sqlx::FromRow)]
pub struct Overview {
    pub user_id: UserId,
    /// Satoshi held.
    pub sat: i64,
    /// Satoshi of them promised to sales that are open.
    pub reserved_sat: i64,
    /// Satoshi that hedges have sold ahead.
    pub hedged_sat: i64,
    /// Lots of which something is left.
    pub lots: i64,
    pub cost_usd: Decimal,
    pub average_cost_usd: Option<Decimal>,
    pub market_value_usd: Option<Decimal>,
    pub unrealised_usd: Option<Decimal>,
    pub unrealised_percent: Option<Decimal>,
    /// What closing the hedges at the price would bring.
    pub hedge_gain_usd: Option<Decimal>,
    pub realised_gain_usd: Decimal,
    pub fees_usd: Decimal,
    pub sold_sat: i64,
    pub bought_sat: i64,
    pub cash_usd: Decimal,
    pub opex_usd_month: Decimal,
    pub runway_days: Option<Decimal>,
    /// Trades that may still be filled.
    pub open_trades: i64,
    /// Strategies that lack an input or cannot be computed, as {strategy, field}.
    pub unevaluated: Value,
    pub btc_price_usd: Option<Decimal>,
    /// The network snapshot behind the price.
    pub snapshot_id: Option<Uuid>,
    /// From when the price is.
    pub as_of: Option<DateTime<Utc>>,
    /// `out-of-range` where the figures cannot be computed: then they are those of before.
    #[serde(skip)]
    pub warnings: Vec<String>,
    /// Grows with every recomputation.
    pub version: i64,
    pub computed_at: Option<DateTime<Utc>>,
    /// The event that caused the last recomputation.
    pub event_id: Option<Uuid>,
}

impl Overview {
    fn empty(user_id: UserId) -> Self {
        Self {
            user_id,
            sat: 0,
            reserved_sat: 0,
            hedged_sat: 0,
            lots: 0,
            cost_usd: Decimal::ZERO,
            average_cost_usd: None,
            market_value_usd: None,
            unrealised_usd: None,
            unrealised_percent: None,
            hedge_gain_usd: None,
            realised_gain_usd: Decimal::ZERO,
            fees_usd: Decimal::ZERO,
            sold_sat: 0,
            bought_sat: 0,
            cash_usd: Decimal::ZERO,
            opex_usd_month: Decimal::ZERO,
            runway_days: None,
            open_trades: 0,
            unevaluated: Value::Array(Vec::new()),
            btc_price_usd: None,
            snapshot_id: None,
            as_of: None,
            warnings: Vec::new(),
            version: 0,
            computed_at: None,
            event_id: None,
        }
    }
}

/// The figures of an account of this tenant.
pub async fn overview(tx: &mut TenantTx, user: &UserId) -> Result<Overview, sqlx::Error> {
    let row = sqlx::query_as("select * from treasury_overview where user_id = $1")
        .bind(user)
        .fetch_optional(tx.conn())
        .await?;
    Ok(row.unwrap_or_else(|| Overview::empty(user.clone())))
}

/// What a strategy says.
#[derive(Debug, Clone, Serialize, sqlx::FromRow)]
pub struct StrategySignal {
    pub strategy: String,
    /// Satoshi to sell; 0 when it has nothing to sell, or a limit leaves nothing.
    pub sat: i64,
    /// Satoshi that its rule asks for.
    pub wanted_sat: i64,
    pub reason: String,
    /// What keeps it from selling all that is wanted.
    #[sqlx(rename = "limited_by")]
    pub limit: Option<String>,
    /// When it changed last, and the event that told so.
    #[sqlx(rename = "told_at")]
    pub changed_at: DateTime<Utc>,
    pub event_id: Uuid,
    pub computed_at: DateTime<Utc>,
}

/// What the strategies of an account say, those that once said something.
pub async fn signals(tx: &mut TenantTx, user: &UserId) -> Result<Vec<StrategySignal>, sqlx::Error> {
    sqlx::query_as("select * from treasury_signal where user_id = $1 order by sat = 0, strategy")
        .bind(user)
        .fetch_all(tx.conn())
        .await
}
