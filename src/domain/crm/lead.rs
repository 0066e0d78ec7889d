//! Owns the leads: who might become a customer.
//! Promises that conversion makes the account and the deal in the transaction that ends the lead.
//! Called by the API.

use chrono::{DateTime, Utc};
use rust_decimal::Decimal;
use serde::Serialize;
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::account::{self, Account};
use super::deal::{self, DealState};
use super::fields::{self, ACCOUNT, NAME, NOTES, OWNER, VALUE};
use super::machine::{Machine, Rule, State, Step, states};
use super::record::{Done, Entity, Mutable, Stateful, Statements, changes, lock, object, statements};
use crate::db::TenantTx;
use crate::domain::input::{Low, Names};
use crate::domain::{Caller, CommandError, Input};
use crate::event::kind;
use crate::identifier::UserId;

const COMPANY: Names = &["company"];
const SOURCE: Names = &["source"];
const ACCOUNT_NAME: Names = &["account_name"];
const DEAL_NAME: Names = &["deal_name"];
const LONGEST_SOURCE: usize = 100;

states! {
    /// The states of a lead.
    LeadState {
        New = "NEW",
        Contacted = "CONTACTED",
        Qualified = "QUALIFIED",
        Unqualified = "UNQUALIFIED",
        Converted = "CONVERTED",
        Lost = "LOST",
    }
}

use LeadState::{Contacted, Converted, Lost, New, Qualified, Unqualified};

/// Only a qualified lead converts; converted and lost are final.
pub const MACHINE: Machine<LeadState> = Machine {
    entity: "lead",
    moves: &[
        (New, Contacted, Rule::Asked),
        (New, Qualified, Rule::Asked),
        (New, Unqualified, Rule::Asked),
        (New, Lost, Rule::Asked),
        (Contacted, Qualified, Rule::Asked),
        (Contacted, Unqualified, Rule::Asked),
        (Contacted, Lost, Rule::Asked),
        (Qualified, Converted, Rule::Asked),
        (Qualified, Unqualified, Rule::Asked),
        (Qualified, Lost, Rule::Asked),
        (Unqualified, Contacted, Rule::Asked),
        (Unqualified, Qualified, Rule::Asked),
        (Unqualified, Lost, Rule::Asked),
    ],
};

/// Who might become a customer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, sqlx::FromRow)]
pub struct Lead {
    #[sqlx(rename = "id")]
    pub lead_id: Uuid,
    pub name: String,
    pub company: Option<String>,
    pub email: Option<String>,
    pub phone: Option<String>,
    /// Where it came from.
    pub source: Option<String>,
    pub notes: Option<String>,
    /// Who looks after it.
    pub owner_id: UserId,
    #[sqlx(try_from = "String")]
    pub state: LeadState,
    pub state_reason: Option<String>,
    /// What it became.
    pub account_id: Option<Uuid>,
    pub deal_id: Option<Uuid>,
    pub created_at: DateTime<Utc>,
    pub updated_at: DateTime<Utc>,
}

impl Entity for Lead {
    const NAME: &'static str = "lead";
    const PATH: &'static str = "leads";
    const STATES: &'static [&'static str] = LeadState::NAMES;
    const STATEMENTS: Statements = statements!("crm_lead", state: "state", account: "account_id");

    fn id(&self) -> Uuid {
        self.lead_id
    }

    async fn create(
        tx: &mut TenantTx,
        caller: Caller<'_>,
        given: &Map<String, Value>,
    ) -> Result<Done, CommandError> {
        let mut input = Input::new(given);
        let name = fields::name(&mut input, NAME);
        let name = input.required(NAME, name);
        let lead = Self {
            lead_id: Uuid::now_v7(),
            name: name.unwrap_or_default(),
            company: fields::name(&mut input, COMPANY).value(),
            email: fields::email(&mut input).value(),
            phone: fields::phone(&mut input).value(),
            source: input.text(SOURCE, LONGEST_SOURCE).value(),
            notes: fields::notes(&mut input, NOTES).value(),
            owner_id: fields::owner(&mut input).value().unwrap_or_else(|| caller.actor.clone()),
            state: New,
            state_reason: None,
            account_id: None,
            deal_id: None,
            created_at: caller.now,
            updated_at: caller.now,
        };
        input.finish().map_err(CommandError::Invalid)?;
        let tenant = tx.tenant().clone();
        sqlx::query(
            "insert into crm_lead (tenant_id, id, name, company, email, phone, source, notes, owner_id, state, \
             created_at, updated_at) values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $11)",
        )
        .bind(tenant.as_str())
        .bind(lead.lead_id)
        .bind(&lead.name)
        .bind(&lead.company)
        .bind(&lead.email)
        .bind(&lead.phone)
        .bind(&lead.source)
        .bind(&lead.notes)
        .bind(&lead.owner_id)
        .bind(lead.state.as_str())
        .bind(lead.created_at)
        .execute(tx.conn())
        .await?;
        let mut done = Done::new(lead.lead_id);
        let data = object(&lead)?.into();
        done.emit(tx, caller, kind::CRM_LEAD_CAPTURED, &lead.owner_id, lead.lead_id, data).await?;
        Ok(done)
    }
}

impl Mutable for Lead {
    async fn update(
        tx: &mut TenantTx,
        caller: Caller<'_>,
        id: Uuid,
        given: &Map<String, Value>,
    ) -> Result<Done, CommandError> {
        let old: Self = lock(tx.conn(), id).await?;
        let mut input = Input::new(given);
        let mut new = old.clone();
        let (name, owner) = (fields::name(&mut input, NAME), fields::owner(&mut input));
        new.name = input.kept(NAME, name, &old.name);
        new.company = fields::name(&mut input, COMPANY).cleared(&old.company);
        new.email = fields::email(&mut input).cleared(&old.email);
        new.phone = fields::phone(&mut input).cleared(&old.phone);
        new.source = input.text(SOURCE, LONGEST_SOURCE).cleared(&old.source);
        new.notes = fields::notes(&mut input, NOTES).cleared(&old.notes);
        new.owner_id = input.kept(OWNER, owner, &old.owner_id);
        fields::keep_state(&mut input, given, fields::STATE, old.state.as_str(), Self::PATH);
        input.finish().map_err(CommandError::Invalid)?;
        let mut done = Done::new(id);
        let changes = changes(&old, &new)?;
        if changes.is_empty() {
            return Ok(done);
        }
        sqlx::query(
            "update crm_lead set name = $2, company = $3, email = $4, phone = $5, source = $6, notes = $7, \
             owner_id = $8, updated_at = $9 where id = $1",
        )
        .bind(id)
        .bind(&new.name)
        .bind(&new.company)
        .bind(&new.email)
        .bind(&new.phone)
        .bind(&new.source)
        .bind(&new.notes)
        .bind(&new.owner_id)
        .bind(caller.now)
        .execute(tx.conn())
        .await?;
        let data = json!({"lead_id": id, "changes": changes});
        done.emit(tx, caller, kind::CRM_LEAD_UPDATED, &new.owner_id, id, data).await?;
        Ok(done)
    }
}

impl Stateful for Lead {
    const SET_STATE: &'static str =
        "update crm_lead set state = $2, state_reason = $3, updated_at = $4 where id = $1";

    async fn transition(
        tx: &mut TenantTx,
        caller: Caller<'_>,
        id: Uuid,
        given: &Map<String, Value>,
    ) -> Result<Done, CommandError> {
        let lead: Self = lock(tx.conn(), id).await?;
        let (input, step) = MACHINE.ask(given, lead.state)?;
        let kind = match step.to {
            Converted => return convert(tx, caller, &lead, input, &step).await,
            Qualified => kind::CRM_LEAD_QUALIFIED,
            Unqualified => kind::CRM_LEAD_DISQUALIFIED,
            New | Contacted | Lost => kind::CRM_LEAD_STATUS_CHANGED,
        };
        input.finish().map_err(CommandError::Invalid)?;
        step.store::<Self>(tx, caller, id).await?;
        let mut done = Done::new(id);
        let data = step.told(("lead_id", id), None);
        done.emit(tx, caller, kind, &lead.owner_id, id, data).await?;
        Ok(done)
    }
}

/// Makes the deal, and the account unless `account_id` names one, and ends the lead.
async fn convert(
    tx: &mut TenantTx,
    caller: Caller<'_>,
    lead: &Lead,
    mut input: Input<'_>,
    step: &Step<LeadState>,
) -> Result<Done, CommandError> {
    let called = lead.company.as_ref().unwrap_or(&lead.name);
    let named = fields::id(&mut input, ACCOUNT).value();
    let existing = match named {
        Some(id) => account::found(tx, &mut input, id).await?,
        None => None,
    };
    let name = fields::name(&mut input, ACCOUNT_NAME).value();
    let user = account::portfolio_user(&mut input);
    for (field, is_given) in [(ACCOUNT_NAME[0], name.is_some()), (account::PORTFOLIO_USER, user.is_some())] {
        if named.is_some() && is_given {
            input.refuse(field, "is of an account that is made: give account_id or this, not both");
        }
    }
    let deal_name = fields::name(&mut input, DEAL_NAME).value().unwrap_or_else(|| called.clone());
    let value_usd = fields::usd(&mut input, VALUE, Low::From(Decimal::ZERO)).value().unwrap_or_default();
    let (stage, probability) = deal::opening(&mut input, DealState::Prospecting);
    input.finish().map_err(CommandError::Invalid)?;

    let mut done = Done::new(lead.lead_id);
    let account = match existing {
        Some(account) => account,
        None => {
            let account_id = Uuid::now_v7();
            let account = Account {
                account_id,
                name: name.unwrap_or_else(|| called.clone()),
                email: lead.email.clone(),
                phone: lead.phone.clone(),
                notes: lead.notes.clone(),
                owner_id: lead.owner_id.clone(),
                portfolio_user_id: account::or_its_own(user, account_id),
                created_at: caller.now,
                updated_at: caller.now,
            };
            account.open(tx, caller, &mut done).await?;
            account
        }
    };
    let deal = deal::Deal {
        deal_id: Uuid::now_v7(),
        account_id: account.account_id,
        name: deal_name,
        value_usd,
        probability_percent: probability,
        notes: None,
        owner_id: lead.owner_id.clone(),
        state: stage,
        state_reason: None,
        closed_at: None,
        created_at: caller.now,
        updated_at: caller.now,
    };
    deal.open(tx, caller, &account.portfolio_user_id, &mut done).await?;
    sqlx::query(
        "update crm_lead set state = $2, state_reason = $3, updated_at = $4, account_id = $5, deal_id = $6 \
         where id = $1",
    )
    .bind(lead.lead_id)
    .bind(step.to.as_str())
    .bind(&step.reason)
    .bind(caller.now)
    .bind(account.account_id)
    .bind(deal.deal_id)
    .execute(tx.conn())
    .await?;
    let mut data = step.told(("lead_id", lead.lead_id), Some(account.account_id));
    data["deal_id"] = json!(deal.deal_id);
    let user = &account.portfolio_user_id;
    done.emit(tx, caller, kind::CRM_LEAD_CONVERTED, user, lead.lead_id, data).await?;
    done.tell("account_id", account.account_id.to_string());
    done.tell("deal_id", deal.deal_id.to_string());
    Ok(done)
}
