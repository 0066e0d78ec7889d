//! Owns what an account's read model shows: pipeline, invoices, tickets, and the fleet behind the account.
//! Promises the figures of the newest event that the group [`GROUP`] has applied, and the fleet's as the portfolio has
//! them when it is read.
//! Called by the API.

use chrono::{DateTime, Utc};
use rust_decimal::Decimal;
use serde::Serialize;
use uuid::Uuid;

use crate::db::TenantTx;
use crate::event::kind;

/// The consumer group that keeps this read model.
pub const GROUP: &str = "crm-sync-group";

/// The kinds that are about an account.
pub const KINDS: &[&str] = &[
    kind::CRM_LEAD_CONVERTED,
    kind::CRM_ACCOUNT_CREATED,
    kind::CRM_ACCOUNT_UPDATED,
    kind::CRM_DEAL_CREATED,
    kind::CRM_DEAL_UPDATED,
    kind::CRM_DEAL_STAGE_CHANGED,
    kind::CRM_DEAL_WON,
    kind::CRM_DEAL_LOST,
    kind::CRM_CONTRACT_GENERATED,
    kind::CRM_CONTRACT_UPDATED,
    kind::CRM_CONTRACT_STATUS_CHANGED,
    kind::CRM_CONTRACT_SIGNED,
    kind::CRM_INVOICE_DRAFTED,
    kind::CRM_INVOICE_UPDATED,
    kind::CRM_INVOICE_STATUS_CHANGED,
    kind::CRM_INVOICE_ISSUED,
    kind::CRM_INVOICE_PAID,
    kind::CRM_INVOICE_OVERDUE,
    kind::CRM_INVOICE_REMINDER_DUE,
    kind::CRM_PAYMENT_RECEIVED,
    kind::CRM_TICKET_CREATED,
    kind::CRM_TICKET_UPDATED,
    kind::CRM_TICKET_STATUS_CHANGED,
    kind::CRM_TICKET_RESOLVED,
    kind::CRM_ASSET_CREATED,
    kind::CRM_ASSET_UPDATED,
    kind::CRM_ASSET_STATUS_CHANGED,
];

/// An account in figures. Before the first event of the account: zeros, version 0.
#[derive(Debug, Clone, Serialize, sqlx::FromRow)]
pub struct AccountSummary {
    pub deals_open: i64,
    /// The value of the open deals, USD.
    pub pipeline_usd: Decimal,
    /// The same, each weighted by its probability.
    pub pipeline_weighted_usd: Decimal,
    /// The invoices that are neither drafts nor cancelled, USD.
    pub billed_usd: Decimal,
    /// The payments, USD.
    pub paid_usd: Decimal,
    /// What is unpaid of the overdue invoices, USD.
    pub overdue_usd: Decimal,
    /// Tickets that are neither resolved nor closed.
    pub tickets_open: i64,
    /// Rated hashrate of the account's miners that are online, TH/s.
    pub fleet_hashrate_ths: Decimal,
    /// What they earn; null without a network snapshot.
    pub fleet_profit_usd_day: Option<Decimal>,
    /// When the portfolio behind the two was computed; null before its first event.
    pub fleet_computed_at: Option<DateTime<Utc>>,
    /// Grows with every recomputation.
    pub version: i64,
    pub computed_at: Option<DateTime<Utc>>,
    /// The event that caused the last recomputation.
    pub event_id: Option<Uuid>,
}

/// The summary of an account of this tenant; nothing where there is no such account.
pub async fn account(tx: &mut TenantTx, account_id: Uuid) -> Result<Option<AccountSummary>, sqlx::Error> {
    sqlx::query_as(
        "select coalesce(s.deals_open, 0) as deals_open, coalesce(s.pipeline_usd, 0) as pipeline_usd, \
         coalesce(s.pipeline_weighted_usd, 0) as pipeline_weighted_usd, coalesce(s.billed_usd, 0) as billed_usd, \
         coalesce(s.paid_usd, 0) as paid_usd, coalesce(s.overdue_usd, 0) as overdue_usd, \
         coalesce(s.tickets_open, 0) as tickets_open, coalesce(p.hashrate_ths, 0) as fleet_hashrate_ths, \
         p.profit_usd_day as fleet_profit_usd_day, p.computed_at as fleet_computed_at, \
         coalesce(s.version, 0) as version, s.computed_at, s.event_id \
         from crm_account a \
         left join crm_account_summary s on s.tenant_id = a.tenant_id and s.account_id = a.id \
         left join portfolio p on p.tenant_id = a.tenant_id and p.user_id = a.portfolio_user_id \
         where a.id = $1",
    )
    .bind(account_id)
    .fetch_optional(tx.conn())
    .await
}
