//! Owns the payments: money that came in for an invoice.
//! Promises that the payments of an invoice add up to what it says is paid, and never to more than its total.
//! Called by the API. A payment is a fact: it has no state and is not changed.

use chrono::{DateTime, TimeDelta, Utc};
use rust_decimal::Decimal;
use serde::Serialize;
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::account;
use super::fields;
use super::invoice::{self, Invoice, InvoiceState};
use super::machine::State;
use super::record::{Done, Entity, Statements, lock, object, statements};
use crate::db::TenantTx;
use crate::domain::input::{Low, Names};
use crate::domain::{Caller, CommandError, Input};
use crate::event::kind;

const INVOICE: Names = &["invoice_id"];
const AMOUNT: Names = &["amount_usd", "amount"];
const METHOD: Names = &["method"];
const REFERENCE: Names = &["reference"];
const RECEIVED: Names = &["received_at"];
const LONGEST_METHOD: usize = 50;
const LONGEST_REFERENCE: usize = 200;
/// How far a clock that dates a payment may be ahead.
const MAX_AHEAD: TimeDelta = TimeDelta::hours(1);

/// Money that came in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, sqlx::FromRow)]
pub struct Payment {
    #[sqlx(rename = "id")]
    pub payment_id: Uuid,
    pub account_id: Uuid,
    pub invoice_id: Uuid,
    pub amount_usd: Decimal,
    pub method: Option<String>,
    /// What the bank or the chain calls it.
    pub reference: Option<String>,
    pub received_at: DateTime<Utc>,
    pub created_at: DateTime<Utc>,
}

impl Entity for Payment {
    const NAME: &'static str = "payment";
    const PATH: &'static str = "payments";
    const STATES: &'static [&'static str] = &[];
    const STATEMENTS: Statements = statements!("crm_payment", state: "null", account: "account_id");

    fn id(&self) -> Uuid {
        self.payment_id
    }

    async fn create(
        tx: &mut TenantTx,
        caller: Caller<'_>,
        given: &Map<String, Value>,
    ) -> Result<Done, CommandError> {
        let mut input = Input::new(given);
        let invoice_id = fields::id(&mut input, INVOICE);
        let invoice_id = input.required(INVOICE, invoice_id);
        let amount_usd = fields::usd(&mut input, AMOUNT, Low::Above(Decimal::ZERO));
        let amount_usd = input.required(AMOUNT, amount_usd);
        let method = input.text(METHOD, LONGEST_METHOD).value();
        let reference = input.text(REFERENCE, LONGEST_REFERENCE).value();
        let received_at = input.timestamp(RECEIVED).value().unwrap_or(caller.now);
        if received_at > caller.now + MAX_AHEAD {
            input.refuse(RECEIVED[0], "must not be more than an hour in the future");
        }
        // From here to the commit nobody else pays it.
        let invoice: Option<Invoice> = match invoice_id {
            Some(id) => match lock(tx.conn(), id).await {
                Ok(invoice) => Some(invoice),
                Err(CommandError::NotFound) => {
                    input.refuse(INVOICE[0], "must be the id of one that exists");
                    None
                }
                Err(error) => return Err(error),
            },
            None => None,
        };
        input.finish().map_err(CommandError::Invalid)?;
        let (Some(invoice), Some(amount_usd)) = (invoice, amount_usd) else {
            return Err(CommandError::Invalid(Vec::new()));
        };
        let (state, paid_usd) = invoice::pay(&invoice, amount_usd)?;
        let payment = Self {
            payment_id: Uuid::now_v7(),
            account_id: invoice.account_id,
            invoice_id: invoice.invoice_id,
            amount_usd,
            method,
            reference,
            received_at,
            created_at: caller.now,
        };
        payment.store(tx).await?;
        sqlx::query("update crm_invoice set paid_usd = $2, state = $3, updated_at = $4 where id = $1")
            .bind(invoice.invoice_id)
            .bind(paid_usd)
            .bind(state.as_str())
            .bind(caller.now)
            .execute(tx.conn())
            .await?;

        let user = account::user_of(tx, invoice.account_id).await?;
        let mut done = Done::new(payment.payment_id);
        let mut data = object(&payment)?;
        data.insert("invoice_state".to_owned(), json!(state));
        data.insert("paid_usd".to_owned(), json!(paid_usd));
        data.insert("total_usd".to_owned(), json!(invoice.total_usd));
        done.emit(tx, caller, kind::CRM_PAYMENT_RECEIVED, &user, payment.payment_id, data.into()).await?;
        if state == InvoiceState::Paid {
            let data = json!({
                "invoice_id": invoice.invoice_id, "account_id": invoice.account_id, "from": invoice.state,
                "to": state, "total_usd": invoice.total_usd,
            });
            done.emit(tx, caller, kind::CRM_INVOICE_PAID, &user, invoice.invoice_id, data).await?;
        }
        done.tell("invoice_id", invoice.invoice_id.to_string());
        done.tell("invoice_state", state.as_str());
        done.tell("paid_usd", json!(paid_usd));
        done.tell("due_usd", json!((invoice.total_usd - paid_usd).normalize()));
        Ok(done)
    }
}

impl Payment {
    async fn store(&self, tx: &mut TenantTx) -> Result<(), sqlx::Error> {
        let tenant = tx.tenant().clone();
        sqlx::query(
            "insert into crm_payment (tenant_id, id, account_id, invoice_id, amount_usd, method, reference, received_at, \
             created_at) values ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
        )
        .bind(tenant.as_str())
        .bind(self.payment_id)
        .bind(self.account_id)
        .bind(self.invoice_id)
        .bind(self.amount_usd)
        .bind(&self.method)
        .bind(&self.reference)
        .bind(self.received_at)
        .bind(self.created_at)
        .execute(tx.conn())
        .await
        .map(drop)
    }
}
