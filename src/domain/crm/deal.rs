//! Owns the deals: what a customer may buy, how likely, and for how much.
//! Promises that the stage sets the probability unless it is given, and that a closed deal does not move.
//! Called by the API, by the conversion of a lead, and by the signing of a contract.

use chrono::{DateTime, Utc};
use rust_decimal::Decimal;
use serde::Serialize;
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::account;
use super::fields::{self, NAME, NOTES, OWNER, VALUE};
use super::machine::{Machine, Rule, State, Step, states};
use super::record::{Done, Entity, Mutable, Stateful, Statements, broken, changes, lock, object, statements};
use crate::db::TenantTx;
use crate::domain::input::{Given, Low, Names};
use crate::domain::machine::Rule as _;
use crate::domain::{Caller, CommandError, Input};
use crate::event::kind;
use crate::identifier::UserId;

const STAGE: Names = &["state", "stage"];
const PROBABILITY: Names = &["probability_percent", "probability"];

states! {
    /// The stages of a deal.
    DealState {
        Prospecting = "PROSPECTING",
        Qualification = "QUALIFICATION",
        Proposal = "PROPOSAL",
        Negotiation = "NEGOTIATION",
        Won = "CLOSED_WON",
        Lost = "CLOSED_LOST",
    }
}

use DealState::{Lost, Negotiation, Proposal, Prospecting, Qualification, Won};

/// An open deal goes to any other stage; losing it needs a reason; a closed deal does not move.
pub const MACHINE: Machine<DealState> = Machine {
    entity: "deal",
    moves: &[
        (Prospecting, Qualification, Rule::Asked),
        (Prospecting, Proposal, Rule::Asked),
        (Prospecting, Negotiation, Rule::Asked),
        (Prospecting, Won, Rule::Asked),
        (Prospecting, Lost, Rule::Reason),
        (Qualification, Prospecting, Rule::Asked),
        (Qualification, Proposal, Rule::Asked),
        (Qualification, Negotiation, Rule::Asked),
        (Qualification, Won, Rule::Asked),
        (Qualification, Lost, Rule::Reason),
        (Proposal, Prospecting, Rule::Asked),
        (Proposal, Qualification, Rule::Asked),
        (Proposal, Negotiation, Rule::Asked),
        (Proposal, Won, Rule::Asked),
        (Proposal, Lost, Rule::Reason),
        (Negotiation, Prospecting, Rule::Asked),
        (Negotiation, Qualification, Rule::Asked),
        (Negotiation, Proposal, Rule::Asked),
        (Negotiation, Won, Rule::Asked),
        (Negotiation, Lost, Rule::Reason),
    ],
};

impl DealState {
    /// How likely a deal in this stage is won, %.
    pub fn probability_percent(self) -> i32 {
        match self {
            Prospecting => 10,
            Qualification => 25,
            Proposal => 50,
            Negotiation => 75,
            Won => 100,
            Lost => 0,
        }
    }

    /// Whether a deal does not move any more.
    pub fn is_closed(self) -> bool {
        matches!(self, Won | Lost)
    }
}

/// What a customer may buy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, sqlx::FromRow)]
pub struct Deal {
    #[sqlx(rename = "id")]
    pub deal_id: Uuid,
    pub account_id: Uuid,
    pub name: String,
    pub value_usd: Decimal,
    pub probability_percent: i32,
    pub notes: Option<String>,
    /// Who looks after it.
    pub owner_id: UserId,
    #[sqlx(try_from = "String")]
    pub state: DealState,
    /// Why it is in this stage, or was lost.
    pub state_reason: Option<String>,
    pub closed_at: Option<DateTime<Utc>>,
    pub created_at: DateTime<Utc>,
    pub updated_at: DateTime<Utc>,
}

impl Entity for Deal {
    const NAME: &'static str = "deal";
    const PATH: &'static str = "deals";
    const STATES: &'static [&'static str] = DealState::NAMES;
    const STATEMENTS: Statements = statements!("crm_deal", state: "state", account: "account_id");

    fn id(&self) -> Uuid {
        self.deal_id
    }

    async fn create(
        tx: &mut TenantTx,
        caller: Caller<'_>,
        given: &Map<String, Value>,
    ) -> Result<Done, CommandError> {
        let mut input = Input::new(given);
        let account = account::named(tx, &mut input).await?;
        let name = fields::name(&mut input, NAME);
        let name = input.required(NAME, name);
        let value_usd = fields::usd(&mut input, VALUE, Low::From(Decimal::ZERO));
        let value_usd = input.required(VALUE, value_usd);
        let notes = fields::notes(&mut input, NOTES).value();
        let owner_id = fields::owner(&mut input).value();
        let (state, probability_percent) = opening(&mut input, Prospecting);
        input.finish().map_err(CommandError::Invalid)?;
        let (Some(account), Some(name), Some(value_usd)) = (account, name, value_usd) else {
            return Err(CommandError::Invalid(Vec::new()));
        };
        let deal = Self {
            deal_id: Uuid::now_v7(),
            account_id: account.account_id,
            name,
            value_usd,
            probability_percent,
            notes,
            owner_id: owner_id.unwrap_or_else(|| caller.actor.clone()),
            state,
            state_reason: None,
            closed_at: None,
            created_at: caller.now,
            updated_at: caller.now,
        };
        let mut done = Done::new(deal.deal_id);
        deal.open(tx, caller, &account.portfolio_user_id, &mut done).await?;
        Ok(done)
    }
}

impl Mutable for Deal {
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
        new.owner_id = input.kept(OWNER, owner, &old.owner_id);
        new.notes = fields::notes(&mut input, NOTES).cleared(&old.notes);
        let value = fields::usd(&mut input, VALUE, Low::From(Decimal::ZERO));
        new.value_usd = input.kept(VALUE, value, &old.value_usd);
        let probability = probability(&mut input);
        new.probability_percent = input.kept(PROBABILITY, probability, &old.probability_percent);
        fields::keep_state(&mut input, given, STAGE, old.state.as_str(), Self::PATH);
        input.finish().map_err(CommandError::Invalid)?;
        let figures_change =
            (new.value_usd, new.probability_percent) != (old.value_usd, old.probability_percent);
        if old.state.is_closed() && figures_change {
            let detail = format!("the deal is {}: its value and probability stand", old.state.as_str());
            return Err(broken("closed-deal", detail));
        }
        let mut done = Done::new(id);
        let changes = changes(&old, &new)?;
        if changes.is_empty() {
            return Ok(done);
        }
        sqlx::query(
            "update crm_deal set name = $2, owner_id = $3, notes = $4, value_usd = $5, probability_percent = $6, \
             updated_at = $7 where id = $1",
        )
        .bind(id)
        .bind(&new.name)
        .bind(&new.owner_id)
        .bind(&new.notes)
        .bind(new.value_usd)
        .bind(new.probability_percent)
        .bind(caller.now)
        .execute(tx.conn())
        .await?;
        let user = account::user_of(tx, new.account_id).await?;
        let data = json!({"deal_id": id, "account_id": new.account_id, "changes": changes});
        done.emit(tx, caller, kind::CRM_DEAL_UPDATED, &user, id, data).await?;
        Ok(done)
    }
}

impl Stateful for Deal {
    const SET_STATE: &'static str =
        "update crm_deal set state = $2, state_reason = $3, updated_at = $4 where id = $1";

    async fn transition(
        tx: &mut TenantTx,
        caller: Caller<'_>,
        id: Uuid,
        given: &Map<String, Value>,
    ) -> Result<Done, CommandError> {
        let deal: Self = lock(tx.conn(), id).await?;
        let (mut input, step) = MACHINE.ask(given, deal.state)?;
        let by_stage = step.to.probability_percent();
        let probability = match probability(&mut input).value() {
            Some(given) if step.to.is_closed() && given != by_stage => {
                input.refuse(PROBABILITY[0], format!("is {by_stage} in {}", step.to.as_str()));
                by_stage
            }
            given => given.unwrap_or(by_stage),
        };
        input.finish().map_err(CommandError::Invalid)?;
        let user = account::user_of(tx, deal.account_id).await?;
        let mut done = Done::new(id);
        deal.go(tx, caller, &user, &step, probability, &mut done).await?;
        Ok(done)
    }
}

impl Deal {
    /// Stores a new deal; emits `crm.deal_created`.
    pub(super) async fn open(
        &self,
        tx: &mut TenantTx,
        caller: Caller<'_>,
        user: &UserId,
        done: &mut Done,
    ) -> Result<(), CommandError> {
        let tenant = tx.tenant().clone();
        sqlx::query(
            "insert into crm_deal (tenant_id, id, account_id, name, value_usd, probability_percent, notes, owner_id, \
             state, created_at, updated_at) values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $10)",
        )
        .bind(tenant.as_str())
        .bind(self.deal_id)
        .bind(self.account_id)
        .bind(&self.name)
        .bind(self.value_usd)
        .bind(self.probability_percent)
        .bind(&self.notes)
        .bind(&self.owner_id)
        .bind(self.state.as_str())
        .bind(self.created_at)
        .execute(tx.conn())
        .await?;
        done.emit(tx, caller, kind::CRM_DEAL_CREATED, user, self.deal_id, object(self)?.into()).await
    }

    /// Moves the deal, which is locked.
    async fn go(
        &self,
        tx: &mut TenantTx,
        caller: Caller<'_>,
        user: &UserId,
        step: &Step<DealState>,
        probability_percent: i32,
        done: &mut Done,
    ) -> Result<(), CommandError> {
        let closed_at = step.to.is_closed().then_some(caller.now);
        step.store::<Self>(tx, caller, self.deal_id).await?;
        sqlx::query("update crm_deal set probability_percent = $2, closed_at = $3 where id = $1")
            .bind(self.deal_id)
            .bind(probability_percent)
            .bind(closed_at)
            .execute(tx.conn())
            .await?;
        let kind = match step.to {
            Won => kind::CRM_DEAL_WON,
            Lost => kind::CRM_DEAL_LOST,
            Prospecting | Qualification | Proposal | Negotiation => kind::CRM_DEAL_STAGE_CHANGED,
        };
        let mut data = step.told(("deal_id", self.deal_id), Some(self.account_id));
        data["value_usd"] = json!(self.value_usd);
        data["probability_percent"] = json!(probability_percent);
        done.emit(tx, caller, kind, user, self.deal_id, data).await
    }
}

/// Closes the deal of a contract that is signed. A deal that is won already stays so; one that was lost refuses.
pub(super) async fn win(
    tx: &mut TenantTx,
    caller: Caller<'_>,
    user: &UserId,
    deal: &Deal,
    done: &mut Done,
) -> Result<(), CommandError> {
    if deal.state == Won {
        return Ok(());
    }
    let rule = MACHINE.check(deal.state, Won, Rule::can_be_asked)?;
    let step = Step { from: deal.state, to: Won, rule, reason: Some("contract signed".to_owned()) };
    deal.go(tx, caller, user, &step, Won.probability_percent(), done).await
}

/// The stage and the probability of a new deal.
pub(super) fn opening(input: &mut Input<'_>, default: DealState) -> (DealState, i32) {
    let stage = input.choice(STAGE).value().unwrap_or(default);
    if stage.is_closed() {
        input.refuse(STAGE[0], "must be an open stage: a deal is closed by a transition");
    }
    let probability = probability(input).value().unwrap_or(stage.probability_percent());
    (stage, probability)
}

fn probability(input: &mut Input<'_>) -> Given<i32> {
    match input.integer(PROBABILITY, 0..=100) {
        Given::Value(n) => i32::try_from(n).map_or(Given::Absent, Given::Value),
        Given::Null => Given::Null,
        Given::Absent => Given::Absent,
    }
}
