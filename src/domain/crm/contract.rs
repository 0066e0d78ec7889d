//! Owns the contracts: what was agreed in a deal.
//! Promises that signing closes the deal as won and issues the first invoice, all in one transaction.
//! Called by the API.

use chrono::{DateTime, Utc};
use rust_decimal::Decimal;
use serde::Serialize;
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::account;
use super::deal::{self, Deal, DealState};
use super::fields::{self, NOTES, VALUE};
use super::invoice;
use super::machine::{Machine, Rule, State, Step, states};
use super::record::{Done, Entity, Mutable, Stateful, Statements, broken, changes, lock, object, statements};
use crate::db::TenantTx;
use crate::domain::input::{Low, Names};
use crate::domain::{Caller, CommandError, Input};
use crate::event::kind;

const DEAL: Names = &["deal_id"];
const TITLE: Names = &["title"];
const FIRST_INVOICE: Names = &["first_invoice_usd"];

states! {
    /// The states of a contract.
    ContractState {
        Draft = "draft",
        Sent = "sent",
        Signed = "signed",
        Expired = "expired",
        Cancelled = "cancelled",
    }
}

use ContractState::{Cancelled, Draft, Expired, Sent, Signed};

/// What was sent may be signed, or lapse; signed, expired and cancelled are final.
pub const MACHINE: Machine<ContractState> = Machine {
    entity: "contract",
    moves: &[
        (Draft, Sent, Rule::Asked),
        (Draft, Cancelled, Rule::Asked),
        (Sent, Signed, Rule::Asked),
        (Sent, Expired, Rule::Asked),
        (Sent, Cancelled, Rule::Asked),
    ],
};

/// What was agreed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, sqlx::FromRow)]
pub struct Contract {
    #[sqlx(rename = "id")]
    pub contract_id: Uuid,
    pub account_id: Uuid,
    pub deal_id: Uuid,
    pub title: String,
    pub value_usd: Decimal,
    /// What signing issues an invoice over.
    pub first_invoice_usd: Decimal,
    pub notes: Option<String>,
    #[sqlx(try_from = "String")]
    pub state: ContractState,
    pub state_reason: Option<String>,
    pub signed_at: Option<DateTime<Utc>>,
    pub created_at: DateTime<Utc>,
    pub updated_at: DateTime<Utc>,
}

impl Entity for Contract {
    const NAME: &'static str = "contract";
    const PATH: &'static str = "contracts";
    const STATES: &'static [&'static str] = ContractState::NAMES;
    const STATEMENTS: Statements = statements!("crm_contract", state: "state", account: "account_id");

    fn id(&self) -> Uuid {
        self.contract_id
    }

    async fn create(
        tx: &mut TenantTx,
        caller: Caller<'_>,
        given: &Map<String, Value>,
    ) -> Result<Done, CommandError> {
        let mut input = Input::new(given);
        let deal_id = fields::id(&mut input, DEAL);
        let deal_id = input.required(DEAL, deal_id);
        // Locked: the stage that allows the contract is the stage when the contract commits.
        let deal: Option<Deal> = match deal_id {
            Some(id) => match lock(tx.conn(), id).await {
                Ok(deal) => Some(deal),
                Err(CommandError::NotFound) => {
                    input.refuse(DEAL[0], "must be the id of one that exists");
                    None
                }
                Err(error) => return Err(error),
            },
            None => None,
        };
        let title = fields::name(&mut input, TITLE).value();
        let value = fields::usd(&mut input, VALUE, Low::Above(Decimal::ZERO)).value();
        let first = fields::usd(&mut input, FIRST_INVOICE, Low::Above(Decimal::ZERO)).value();
        let notes = fields::notes(&mut input, NOTES).value();
        let value_usd = value.or(deal.as_ref().map(|deal| deal.value_usd)).unwrap_or_default();
        let first_invoice_usd = first.unwrap_or(value_usd);
        if deal.is_some() && value_usd <= Decimal::ZERO && !input.refused(VALUE) {
            input.refuse(VALUE[0], "is required: the deal has none");
        }
        within_value(&mut input, first_invoice_usd, value_usd);
        input.finish().map_err(CommandError::Invalid)?;
        let Some(deal) = deal else { return Err(CommandError::Invalid(Vec::new())) };
        if !matches!(deal.state, DealState::Negotiation | DealState::Won) {
            let detail = format!(
                "a contract is made from a deal in NEGOTIATION or CLOSED_WON, and this one is {}",
                deal.state.as_str()
            );
            return Err(broken("contract-needs-negotiation", detail));
        }
        let contract = Self {
            contract_id: Uuid::now_v7(),
            account_id: deal.account_id,
            deal_id: deal.deal_id,
            title: title.unwrap_or_else(|| deal.name.clone()),
            value_usd,
            first_invoice_usd,
            notes,
            state: Draft,
            state_reason: None,
            signed_at: None,
            created_at: caller.now,
            updated_at: caller.now,
        };
        contract.store(tx).await?;
        let user = account::user_of(tx, deal.account_id).await?;
        let mut done = Done::new(contract.contract_id);
        let data = object(&contract)?.into();
        done.emit(tx, caller, kind::CRM_CONTRACT_GENERATED, &user, contract.contract_id, data).await?;
        Ok(done)
    }
}

impl Mutable for Contract {
    async fn update(
        tx: &mut TenantTx,
        caller: Caller<'_>,
        id: Uuid,
        given: &Map<String, Value>,
    ) -> Result<Done, CommandError> {
        let old: Self = lock(tx.conn(), id).await?;
        let mut input = Input::new(given);
        let mut new = old.clone();
        let title = fields::name(&mut input, TITLE);
        new.title = input.kept(TITLE, title, &old.title);
        let value = fields::usd(&mut input, VALUE, Low::Above(Decimal::ZERO));
        new.value_usd = input.kept(VALUE, value, &old.value_usd);
        let first = fields::usd(&mut input, FIRST_INVOICE, Low::Above(Decimal::ZERO));
        new.first_invoice_usd = input.kept(FIRST_INVOICE, first, &old.first_invoice_usd);
        new.notes = fields::notes(&mut input, NOTES).cleared(&old.notes);
        within_value(&mut input, new.first_invoice_usd, new.value_usd);
        fields::keep_state(&mut input, given, fields::STATE, old.state.as_str(), Self::PATH);
        input.finish().map_err(CommandError::Invalid)?;
        let agreed = |c: &Self| (c.title.clone(), c.value_usd, c.first_invoice_usd);
        if old.state != Draft && agreed(&new) != agreed(&old) {
            let detail = format!("the contract is {}: only a draft is rewritten", old.state.as_str());
            return Err(broken("contract-is-no-draft", detail));
        }
        let mut done = Done::new(id);
        let changes = changes(&old, &new)?;
        if changes.is_empty() {
            return Ok(done);
        }
        sqlx::query(
            "update crm_contract set title = $2, value_usd = $3, first_invoice_usd = $4, notes = $5, updated_at = $6 \
             where id = $1",
        )
        .bind(id)
        .bind(&new.title)
        .bind(new.value_usd)
        .bind(new.first_invoice_usd)
        .bind(&new.notes)
        .bind(caller.now)
        .execute(tx.conn())
        .await?;
        let user = account::user_of(tx, new.account_id).await?;
        let data = json!({"contract_id": id, "account_id": new.account_id, "changes": changes});
        done.emit(tx, caller, kind::CRM_CONTRACT_UPDATED, &user, id, data).await?;
        Ok(done)
    }
}

impl Stateful for Contract {
    const SET_STATE: &'static str =
        "update crm_contract set state = $2, state_reason = $3, updated_at = $4 where id = $1";

    async fn transition(
        tx: &mut TenantTx,
        caller: Caller<'_>,
        id: Uuid,
        given: &Map<String, Value>,
    ) -> Result<Done, CommandError> {
        let contract: Self = lock(tx.conn(), id).await?;
        let (input, step) = MACHINE.ask(given, contract.state)?;
        input.finish().map_err(CommandError::Invalid)?;
        if step.to == Signed {
            return sign(tx, caller, &contract, &step).await;
        }
        step.store::<Self>(tx, caller, id).await?;
        let user = account::user_of(tx, contract.account_id).await?;
        let mut done = Done::new(id);
        let data = step.told(("contract_id", id), Some(contract.account_id));
        done.emit(tx, caller, kind::CRM_CONTRACT_STATUS_CHANGED, &user, id, data).await?;
        Ok(done)
    }
}

impl Contract {
    async fn store(&self, tx: &mut TenantTx) -> Result<(), sqlx::Error> {
        let tenant = tx.tenant().clone();
        sqlx::query(
            "insert into crm_contract (tenant_id, id, account_id, deal_id, title, value_usd, first_invoice_usd, notes, \
             state, created_at, updated_at) values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $10)",
        )
        .bind(tenant.as_str())
        .bind(self.contract_id)
        .bind(self.account_id)
        .bind(self.deal_id)
        .bind(&self.title)
        .bind(self.value_usd)
        .bind(self.first_invoice_usd)
        .bind(&self.notes)
        .bind(self.state.as_str())
        .bind(self.created_at)
        .execute(tx.conn())
        .await
        .map(drop)
    }
}

/// Signs: the deal is won, and the first invoice is issued.
async fn sign(
    tx: &mut TenantTx,
    caller: Caller<'_>,
    contract: &Contract,
    step: &Step<ContractState>,
) -> Result<Done, CommandError> {
    let id = contract.contract_id;
    let deal: Deal = lock(tx.conn(), contract.deal_id).await?;
    let user = account::user_of(tx, contract.account_id).await?;
    step.store::<Contract>(tx, caller, id).await?;
    sqlx::query("update crm_contract set signed_at = now() where id = $1")
        .bind(id)
        .execute(tx.conn())
        .await?;
    let mut done = Done::new(id);
    let mut data = step.told(("contract_id", id), Some(contract.account_id));
    data["deal_id"] = json!(contract.deal_id);
    data["value_usd"] = json!(contract.value_usd);
    done.emit(tx, caller, kind::CRM_CONTRACT_SIGNED, &user, id, data).await?;
    deal::win(tx, caller, &user, &deal, &mut done).await?;
    let invoice_id = invoice::issue_first(tx, caller, &user, contract, &mut done).await?;
    done.tell("deal_id", contract.deal_id.to_string());
    done.tell("invoice_id", invoice_id.to_string());
    Ok(done)
}

fn within_value(input: &mut Input<'_>, first_invoice_usd: Decimal, value_usd: Decimal) {
    if first_invoice_usd > value_usd && !input.refused(FIRST_INVOICE) && !input.refused(VALUE) {
        input.refuse(FIRST_INVOICE[0], format!("must be at most the contract's value, {value_usd}"));
    }
}
