//! Owns what the clock does to invoices: overdue, reminders, and drafts that nobody paid.
//! Promises that each happens once, by the database's clock, however late or often it is called.
//! Called by the runner of scheduled work, in transactions of each tenant.

use std::time::Duration;

use async_trait::async_trait;
use serde_json::json;
use uuid::Uuid;

use super::{Cancelled, Draft, Invoice, MACHINE, Overdue};
use crate::db::TenantTx;
use crate::domain::crm::account;
use crate::domain::crm::machine::{Rule, State};
use crate::domain::crm::record::Done;
use crate::domain::{Caller, CommandError};
use crate::event::kind;
use crate::identifier::UserId;
use crate::jobs::{Job, JobError, Progress, Run, Schedule};

/// Who the audit log says it was.
const ACTOR: &str = "system";
/// How many of each are done in one transaction.
const AT_ONCE: i64 = 100;

/// When an overdue invoice is reminded of, in days past its due date.
const REMINDERS: [i32; 3] = [7, 14, 30];
/// When a draft that nobody paid is cancelled, in days.
const DRAFT_DAYS: i32 = 7;

/// What a sweep found due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Swept {
    /// Invoices that became overdue.
    pub overdue: usize,
    /// Reminders that became due.
    pub reminders: usize,
    /// Drafts that were cancelled.
    pub cancelled: usize,
}

#[derive(sqlx::FromRow)]
struct Due {
    #[sqlx(flatten)]
    invoice: Invoice,
    was: String,
}

#[derive(sqlx::FromRow)]
struct Reminder {
    id: Uuid,
    account_id: Uuid,
    days: i32,
}

/// Sweeps the invoices of every tenant.
pub struct InvoiceClock;

#[async_trait]
impl Job for InvoiceClock {
    fn name(&self) -> &'static str {
        "crm-invoices"
    }

    fn schedule(&self) -> Schedule {
        Schedule::Every(Duration::from_secs(300))
    }

    fn tenants(&self) -> &'static str {
        // What is due by the rules below, each part by an index of its own.
        "select tenant_id from crm_invoice where state in ('SENT', 'ISSUED', 'PARTIAL') and due_at < now() \
         union select tenant_id from crm_invoice where state = 'OVERDUE' and reminded_days < 30 \
           and due_at + make_interval(days => case reminded_days when 0 then 7 when 7 then 14 else 30 end) <= now() \
         union select tenant_id from crm_invoice where state = 'DRAFT' and created_at < now() - interval '7 days'"
    }

    async fn run(&self, tx: &mut TenantTx, run: &Run) -> Result<Progress, JobError> {
        let actor: UserId = ACTOR.parse()?;
        let caller = Caller { actor: &actor, request_id: &run.id, traceparent: "", now: tx.now() };
        let swept = sweep(tx, caller, AT_ONCE).await?;
        let most = [swept.overdue, swept.reminders, swept.cancelled].into_iter().max();
        Ok(if most >= usize::try_from(AT_ONCE).ok() { Progress::More } else { Progress::Done })
    }
}

/// Does what is due in this tenant, up to `limit` of each; call again while one of them is the limit. A row that
/// somebody holds is left for the next call.
pub async fn sweep(tx: &mut TenantTx, caller: Caller<'_>, limit: i64) -> Result<Swept, CommandError> {
    Ok(Swept {
        overdue: overdue(tx, caller, limit).await?,
        reminders: remind(tx, caller, limit).await?,
        cancelled: cancel_drafts(tx, caller, limit).await?,
    })
}

async fn overdue(tx: &mut TenantTx, caller: Caller<'_>, limit: i64) -> Result<usize, CommandError> {
    let rows: Vec<Due> = sqlx::query_as(
        "with due as (select id, state as was from crm_invoice where state = any($1) and due_at < now() \
           order by due_at limit $2 for no key update skip locked) \
         update crm_invoice i set state = $3, state_reason = null, updated_at = now() from due where i.id = due.id \
         returning i.*, due.was",
    )
    .bind(MACHINE.sources(Overdue, Rule::Clock))
    .bind(limit)
    .bind(Overdue.as_str())
    .fetch_all(tx.conn())
    .await?;
    for Due { invoice, was } in &rows {
        let data = json!({
            "invoice_id": invoice.invoice_id, "account_id": invoice.account_id, "from": was, "to": Overdue.as_str(),
            "total_usd": invoice.total_usd, "paid_usd": invoice.paid_usd, "due_at": invoice.due_at,
        });
        tell(tx, caller, kind::CRM_INVOICE_OVERDUE, invoice.invoice_id, invoice.account_id, data).await?;
    }
    Ok(rows.len())
}

async fn remind(tx: &mut TenantTx, caller: Caller<'_>, limit: i64) -> Result<usize, CommandError> {
    // The earliest of an invoice first: what the limit cuts off is later than what is marked as done.
    let rows: Vec<Reminder> = sqlx::query_as(
        "select i.id, i.account_id, r.days from crm_invoice i join unnest($1::int[]) r (days) \
           on r.days > i.reminded_days and i.due_at + make_interval(days => r.days) <= now() \
         where i.state = $2 order by i.due_at, i.id, r.days limit $3 for no key update of i skip locked",
    )
    .bind(REMINDERS)
    .bind(Overdue.as_str())
    .bind(limit)
    .fetch_all(tx.conn())
    .await?;
    for Reminder { id, account_id, days } in &rows {
        sqlx::query("update crm_invoice set reminded_days = $2, updated_at = now() where id = $1")
            .bind(id)
            .bind(days)
            .execute(tx.conn())
            .await?;
        let data = json!({"invoice_id": id, "account_id": account_id, "days_overdue": days});
        tell(tx, caller, kind::CRM_INVOICE_REMINDER_DUE, *id, *account_id, data).await?;
    }
    Ok(rows.len())
}

async fn cancel_drafts(tx: &mut TenantTx, caller: Caller<'_>, limit: i64) -> Result<usize, CommandError> {
    let reason = format!("a draft for {DRAFT_DAYS} days");
    let rows: Vec<Invoice> = sqlx::query_as(
        "update crm_invoice set state = $1, state_reason = $2, updated_at = now() \
         where id in (select id from crm_invoice where state = $3 \
           and created_at < now() - make_interval(days => $4) order by id limit $5 for no key update skip locked) \
         returning *",
    )
    .bind(Cancelled.as_str())
    .bind(&reason)
    .bind(Draft.as_str())
    .bind(DRAFT_DAYS)
    .bind(limit)
    .fetch_all(tx.conn())
    .await?;
    for invoice in &rows {
        let (id, account_id) = (invoice.invoice_id, invoice.account_id);
        let data = json!({
            "invoice_id": id, "account_id": account_id, "from": Draft.as_str(), "to": Cancelled.as_str(),
            "reason": reason,
        });
        tell(tx, caller, kind::CRM_INVOICE_STATUS_CHANGED, id, account_id, data).await?;
    }
    Ok(rows.len())
}

async fn tell(
    tx: &mut TenantTx,
    caller: Caller<'_>,
    kind: &'static str,
    invoice_id: Uuid,
    account_id: Uuid,
    data: serde_json::Value,
) -> Result<(), CommandError> {
    let user = account::user_of(tx, account_id).await?;
    Done::new(invoice_id).emit(tx, caller, kind, &user, invoice_id, data).await
}
