//! What the projection reads and writes to keep the summaries of accounts.

use std::collections::BTreeMap;

use sqlx::PgConnection;
use uuid::Uuid;

use crate::identifier::TenantId;

/// The accounts of the tenant in the order of their ids: those behind `after`, at most so many.
pub async fn accounts(
    conn: &mut PgConnection,
    after: Option<Uuid>,
    limit: i64,
) -> Result<Vec<Uuid>, sqlx::Error> {
    sqlx::query_scalar("select id from crm_account where $1 is null or id > $1 order by id limit $2")
        .bind(after)
        .bind(limit)
        .fetch_all(conn)
        .await
}

/// Recomputes the accounts from the tables of record, each as its next version; an account that does not exist has no
/// summary. With each goes the last event that concerns it, if one does.
pub async fn recompute(
    conn: &mut PgConnection,
    tenant: &TenantId,
    accounts: &BTreeMap<Uuid, Option<Uuid>>,
) -> Result<(), sqlx::Error> {
    // One round trip for a batch. A hundredth is multiplied and not divided by: no digit is lost.
    sqlx::query(
        "insert into crm_account_summary as s (tenant_id, account_id, version, deals_open, pipeline_usd, \
         pipeline_weighted_usd, billed_usd, paid_usd, overdue_usd, tickets_open, event_id, computed_at) \
         select $1, a.id, 1, d.open, trim_scale(d.value), trim_scale(d.weighted), trim_scale(i.billed), \
           trim_scale(i.paid), trim_scale(i.overdue), t.open, u.event_id, clock_timestamp() \
         from unnest($2::uuid[], $3::uuid[]) u (account_id, event_id) join crm_account a on a.id = u.account_id \
         cross join lateral (select count(*) as open, coalesce(sum(value_usd), 0) as value, \
           coalesce(sum(value_usd * probability_percent * 0.01), 0) as weighted \
           from crm_deal where account_id = a.id and state not in ('CLOSED_WON', 'CLOSED_LOST')) d \
         cross join lateral (select coalesce(sum(paid_usd), 0) as paid, \
           coalesce(sum(total_usd) filter (where state not in ('DRAFT', 'CANCELLED')), 0) as billed, \
           coalesce(sum(total_usd - paid_usd) filter (where state = 'OVERDUE'), 0) as overdue \
           from crm_invoice where account_id = a.id) i \
         cross join lateral (select count(*) as open \
           from crm_ticket where account_id = a.id and state not in ('resolved', 'closed')) t \
         on conflict (tenant_id, account_id) do update set version = s.version + 1, \
           deals_open = excluded.deals_open, pipeline_usd = excluded.pipeline_usd, \
           pipeline_weighted_usd = excluded.pipeline_weighted_usd, billed_usd = excluded.billed_usd, \
           paid_usd = excluded.paid_usd, overdue_usd = excluded.overdue_usd, tickets_open = excluded.tickets_open, \
           event_id = coalesce(excluded.event_id, s.event_id), computed_at = excluded.computed_at",
    )
    .bind(tenant.as_str())
    .bind(accounts.keys().copied().collect::<Vec<_>>())
    .bind(accounts.values().copied().collect::<Vec<_>>())
    .execute(conn)
    .await
    .map(drop)
}
