//! Owns the invoices: what a customer owes, and by when.
//! Promises that what is paid and the state of the invoice say the same, to the last decimal.
//! Called by the API, by the signing of a contract and by payments; the clock by scheduled work.

use chrono::{DateTime, Utc};
use rust_decimal::Decimal;
use serde::Serialize;
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::account;
use super::contract::Contract;
use super::fields::{self, DESCRIPTION};
use super::machine::{Machine, Rule, State, states};
use super::record::{
    Done, Entity, Mutable, Stateful, Statements, broken, changes, get, lock, object, statements,
};
use crate::db::TenantTx;
use crate::domain::input::{Given, Low, Names};
use crate::domain::{Caller, CommandError, Input};
use crate::event::kind;
use crate::identifier::UserId;

mod clock;

pub use clock::{InvoiceClock, Swept, sweep};

const TOTAL: Names = &["total_usd", "total"];
const DUE: Names = &["due_at"];
const CONTRACT: Names = &["contract_id"];
const LONGEST_DESCRIPTION: usize = 500;
/// When an invoice is due, in days, unless it says otherwise.
const DUE_DAYS: i32 = 30;

states! {
    /// The states of an invoice.
    InvoiceState {
        Draft = "DRAFT",
        Sent = "SENT",
        Issued = "ISSUED",
        Partial = "PARTIAL",
        Paid = "PAID",
        Overdue = "OVERDUE",
        Cancelled = "CANCELLED",
    }
}

use InvoiceState::{Cancelled, Draft, Issued, Overdue, Paid, Partial, Sent};

/// Payments make it partial and paid, the clock overdue; paid and cancelled are final. An overdue invoice that is paid
/// in part stays overdue. Something paid in part is not cancelled: the money would be nobody's.
pub const MACHINE: Machine<InvoiceState> = Machine {
    entity: "invoice",
    moves: &[
        (Draft, Sent, Rule::Asked),
        (Draft, Issued, Rule::Asked),
        (Draft, Partial, Rule::Payment),
        (Draft, Paid, Rule::Payment),
        (Draft, Cancelled, Rule::Asked),
        (Sent, Issued, Rule::Asked),
        (Sent, Partial, Rule::Payment),
        (Sent, Paid, Rule::Payment),
        (Sent, Overdue, Rule::Clock),
        (Sent, Cancelled, Rule::Asked),
        (Issued, Partial, Rule::Payment),
        (Issued, Paid, Rule::Payment),
        (Issued, Overdue, Rule::Clock),
        (Issued, Cancelled, Rule::Asked),
        (Partial, Paid, Rule::Payment),
        (Partial, Overdue, Rule::Clock),
        (Overdue, Paid, Rule::Payment),
        (Overdue, Cancelled, Rule::Unpaid),
    ],
};

/// What a customer owes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, sqlx::FromRow)]
pub struct Invoice {
    #[sqlx(rename = "id")]
    pub invoice_id: Uuid,
    pub account_id: Uuid,
    pub contract_id: Option<Uuid>,
    pub description: Option<String>,
    pub total_usd: Decimal,
    /// The sum of its payments.
    pub paid_usd: Decimal,
    pub due_at: DateTime<Utc>,
    #[sqlx(try_from = "String")]
    pub state: InvoiceState,
    pub state_reason: Option<String>,
    /// The days past due after which the last reminder went out; 0: none did.
    pub reminded_days: i32,
    pub created_at: DateTime<Utc>,
    pub updated_at: DateTime<Utc>,
}

impl Entity for Invoice {
    const NAME: &'static str = "invoice";
    const PATH: &'static str = "invoices";
    const STATES: &'static [&'static str] = InvoiceState::NAMES;
    const STATEMENTS: Statements = statements!("crm_invoice", state: "state", account: "account_id");

    fn id(&self) -> Uuid {
        self.invoice_id
    }

    async fn create(
        tx: &mut TenantTx,
        caller: Caller<'_>,
        given: &Map<String, Value>,
    ) -> Result<Done, CommandError> {
        let mut input = Input::new(given);
        let account = account::named(tx, &mut input).await?;
        let total_usd = fields::usd(&mut input, TOTAL, Low::Above(Decimal::ZERO));
        let total_usd = input.required(TOTAL, total_usd);
        let description = input.text(DESCRIPTION, LONGEST_DESCRIPTION).value();
        let due_at = due(&mut input).value();
        let contract_id = fields::id(&mut input, CONTRACT).value();
        if let (Some(id), Some(account)) = (contract_id, &account) {
            match get::<Contract>(tx, id).await {
                Ok(contract) if contract.account_id == account.account_id => {}
                Ok(_) | Err(CommandError::NotFound) => {
                    input.refuse(CONTRACT[0], "must be the id of a contract of this account");
                }
                Err(error) => return Err(error),
            }
        }
        input.finish().map_err(CommandError::Invalid)?;
        let (Some(account), Some(total_usd)) = (account, total_usd) else {
            return Err(CommandError::Invalid(Vec::new()));
        };
        let id = Uuid::now_v7();
        let new = New { id, account_id: account.account_id, contract_id, description, total_usd, due_at };
        let invoice = new.store(tx, Draft).await?;
        let mut done = Done::new(id);
        let data = object(&invoice)?.into();
        done.emit(tx, caller, kind::CRM_INVOICE_DRAFTED, &account.portfolio_user_id, id, data).await?;
        Ok(done)
    }
}

impl Mutable for Invoice {
    async fn update(
        tx: &mut TenantTx,
        caller: Caller<'_>,
        id: Uuid,
        given: &Map<String, Value>,
    ) -> Result<Done, CommandError> {
        let old: Self = lock(tx.conn(), id).await?;
        let mut input = Input::new(given);
        let mut new = old.clone();
        new.description = input.text(DESCRIPTION, LONGEST_DESCRIPTION).cleared(&old.description);
        let total = fields::usd(&mut input, TOTAL, Low::Above(Decimal::ZERO));
        new.total_usd = input.kept(TOTAL, total, &old.total_usd);
        let due_at = due(&mut input);
        new.due_at = input.kept(DUE, due_at, &old.due_at);
        fields::keep_state(&mut input, given, fields::STATE, old.state.as_str(), Self::PATH);
        input.finish().map_err(CommandError::Invalid)?;
        if old.state != Draft && (new.total_usd, new.due_at) != (old.total_usd, old.due_at) {
            let detail = format!("the invoice is {}: only a draft is rewritten", old.state.as_str());
            return Err(broken("invoice-is-no-draft", detail));
        }
        let mut done = Done::new(id);
        let changes = changes(&old, &new)?;
        if changes.is_empty() {
            return Ok(done);
        }
        sqlx::query(
            "update crm_invoice set description = $2, total_usd = $3, due_at = $4, updated_at = $5 where id = $1",
        )
        .bind(id)
        .bind(&new.description)
        .bind(new.total_usd)
        .bind(new.due_at)
        .bind(caller.now)
        .execute(tx.conn())
        .await?;
        let user = account::user_of(tx, new.account_id).await?;
        let data = json!({"invoice_id": id, "account_id": new.account_id, "changes": changes});
        done.emit(tx, caller, kind::CRM_INVOICE_UPDATED, &user, id, data).await?;
        Ok(done)
    }
}

impl Stateful for Invoice {
    const SET_STATE: &'static str =
        "update crm_invoice set state = $2, state_reason = $3, updated_at = $4 where id = $1";

    async fn transition(
        tx: &mut TenantTx,
        caller: Caller<'_>,
        id: Uuid,
        given: &Map<String, Value>,
    ) -> Result<Done, CommandError> {
        let invoice: Self = lock(tx.conn(), id).await?;
        let (input, step) = MACHINE.ask(given, invoice.state)?;
        input.finish().map_err(CommandError::Invalid)?;
        if step.rule == Rule::Unpaid && !invoice.paid_usd.is_zero() {
            let detail = format!("{} USD of the invoice are paid: it is not cancelled", invoice.paid_usd);
            return Err(broken("invoice-is-paid-in-part", detail));
        }
        step.store::<Self>(tx, caller, id).await?;
        let user = account::user_of(tx, invoice.account_id).await?;
        let kind =
            if step.to == Issued { kind::CRM_INVOICE_ISSUED } else { kind::CRM_INVOICE_STATUS_CHANGED };
        let mut done = Done::new(id);
        let mut data = step.told(("invoice_id", id), Some(invoice.account_id));
        data["total_usd"] = json!(invoice.total_usd);
        data["due_at"] = json!(invoice.due_at);
        done.emit(tx, caller, kind, &user, id, data).await?;
        Ok(done)
    }
}

/// An invoice about to be stored.
struct New {
    id: Uuid,
    account_id: Uuid,
    contract_id: Option<Uuid>,
    description: Option<String>,
    total_usd: Decimal,
    /// [`DUE_DAYS`] from now unless given.
    due_at: Option<DateTime<Utc>>,
}

impl New {
    /// The database's clock dates it: the same that will call it overdue.
    async fn store(&self, tx: &mut TenantTx, state: InvoiceState) -> Result<Invoice, sqlx::Error> {
        let tenant = tx.tenant().clone();
        sqlx::query_as(
            "insert into crm_invoice (tenant_id, id, account_id, contract_id, description, total_usd, due_at, state) \
             values ($1, $2, $3, $4, $5, $6, coalesce($7, now() + make_interval(days => $8)), $9) returning *",
        )
        .bind(tenant.as_str())
        .bind(self.id)
        .bind(self.account_id)
        .bind(self.contract_id)
        .bind(&self.description)
        .bind(self.total_usd)
        .bind(self.due_at)
        .bind(DUE_DAYS)
        .bind(state.as_str())
        .fetch_one(tx.conn())
        .await
    }
}

/// Issues the first invoice of a contract that is being signed; emits `crm.invoice_issued`.
pub(super) async fn issue_first(
    tx: &mut TenantTx,
    caller: Caller<'_>,
    user: &UserId,
    contract: &Contract,
    done: &mut Done,
) -> Result<Uuid, CommandError> {
    let id = Uuid::now_v7();
    let new = New {
        id,
        account_id: contract.account_id,
        contract_id: Some(contract.contract_id),
        description: Some(contract.title.clone()),
        total_usd: contract.first_invoice_usd,
        due_at: None,
    };
    let invoice = new.store(tx, Issued).await?;
    done.emit(tx, caller, kind::CRM_INVOICE_ISSUED, user, id, object(&invoice)?.into()).await?;
    Ok(id)
}

/// Adds a payment to the invoice, which is locked: the state and the sum after it.
///
/// # Errors
/// More than is due, or a state in which nothing is paid.
pub(super) fn pay(invoice: &Invoice, amount_usd: Decimal) -> Result<(InvoiceState, Decimal), CommandError> {
    let (total, paid) = (invoice.total_usd, invoice.paid_usd);
    let paid_after = paid.checked_add(amount_usd).filter(|sum| *sum <= total).map(|sum| sum.normalize());
    let to = match paid_after {
        Some(sum) if sum < total => Partial,
        _ => Paid,
    };
    if invoice.state == Cancelled {
        MACHINE.check(Cancelled, to, |rule| rule == Rule::Payment)?;
    }
    let Some(sum) = paid_after else {
        let detail = format!("{amount_usd} USD are more than the {} USD that are due", total - paid);
        return Err(broken("over-payment", detail));
    };
    if to == Partial && matches!(invoice.state, Partial | Overdue) {
        return Ok((invoice.state, sum));
    }
    MACHINE.check(invoice.state, to, |rule| rule == Rule::Payment)?;
    Ok((to, sum))
}

/// A moment within a century, which PostgreSQL and its intervals take.
fn due(input: &mut Input<'_>) -> Given<DateTime<Utc>> {
    let given = input.timestamp(DUE);
    if let Given::Value(due_at) = &given
        && !(2000..2100).contains(&chrono::Datelike::year(due_at))
    {
        input.refuse(DUE[0], "must be in this century");
        return Given::Absent;
    }
    given
}
