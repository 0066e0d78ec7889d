//! Owns the tickets: what a customer wants mended.
//! Promises that a resolved ticket is opened again within 14 days by the database's clock, and not later.
//! Called by the API.

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::account;
use super::fields::{self, DESCRIPTION, OWNER};
use super::machine::{Machine, Rule, State, states};
use super::record::{Done, Entity, Mutable, Stateful, Statements, broken, changes, lock, object, statements};
use crate::db::TenantTx;
use crate::domain::input::Names;
use crate::domain::{Caller, CommandError, Input};
use crate::event::kind;
use crate::identifier::UserId;

const SUBJECT: Names = &["subject"];
const PRIORITY: Names = &["priority"];
const LONGEST_DESCRIPTION: usize = 2_000;
/// How long after its resolution a ticket may be opened again.
const REOPEN_DAYS: i32 = 14;

states! {
    /// The states of a ticket.
    TicketState {
        Open = "open",
        InProgress = "in_progress",
        Waiting = "waiting",
        Resolved = "resolved",
        Closed = "closed",
    }
}

states! {
    /// How urgent a ticket is.
    Priority {
        Low = "low",
        Normal = "normal",
        High = "high",
        Urgent = "urgent",
    }
}

use TicketState::{Closed, InProgress, Open, Resolved, Waiting};

/// A resolved ticket is closed or, for a while, opened again; closed is final.
pub const MACHINE: Machine<TicketState> = Machine {
    entity: "ticket",
    moves: &[
        (Open, InProgress, Rule::Asked),
        (Open, Waiting, Rule::Asked),
        (Open, Resolved, Rule::Asked),
        (InProgress, Waiting, Rule::Asked),
        (InProgress, Resolved, Rule::Asked),
        (Waiting, InProgress, Rule::Asked),
        (Waiting, Resolved, Rule::Asked),
        (Resolved, Open, Rule::InTime),
        (Resolved, Closed, Rule::Asked),
    ],
};

/// What a customer wants mended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, sqlx::FromRow)]
pub struct Ticket {
    #[sqlx(rename = "id")]
    pub ticket_id: Uuid,
    pub account_id: Uuid,
    pub subject: String,
    pub description: Option<String>,
    #[sqlx(try_from = "String")]
    pub priority: Priority,
    /// Who looks after it.
    pub owner_id: UserId,
    #[sqlx(try_from = "String")]
    pub state: TicketState,
    pub state_reason: Option<String>,
    pub resolved_at: Option<DateTime<Utc>>,
    pub created_at: DateTime<Utc>,
    pub updated_at: DateTime<Utc>,
}

impl Entity for Ticket {
    const NAME: &'static str = "ticket";
    const PATH: &'static str = "tickets";
    const STATES: &'static [&'static str] = TicketState::NAMES;
    const STATEMENTS: Statements = statements!("crm_ticket", state: "state", account: "account_id");

    fn id(&self) -> Uuid {
        self.ticket_id
    }

    async fn create(
        tx: &mut TenantTx,
        caller: Caller<'_>,
        given: &Map<String, Value>,
    ) -> Result<Done, CommandError> {
        let mut input = Input::new(given);
        let account = account::named(tx, &mut input).await?;
        let subject = fields::name(&mut input, SUBJECT);
        let subject = input.required(SUBJECT, subject);
        let description = input.text(DESCRIPTION, LONGEST_DESCRIPTION).value();
        let priority = input.choice(PRIORITY).value();
        let owner_id = fields::owner(&mut input).value();
        input.finish().map_err(CommandError::Invalid)?;
        let (Some(account), Some(subject)) = (account, subject) else {
            return Err(CommandError::Invalid(Vec::new()));
        };
        let ticket = Self {
            ticket_id: Uuid::now_v7(),
            account_id: account.account_id,
            subject,
            description,
            priority: priority.unwrap_or(Priority::Normal),
            owner_id: owner_id.unwrap_or_else(|| caller.actor.clone()),
            state: Open,
            state_reason: None,
            resolved_at: None,
            created_at: caller.now,
            updated_at: caller.now,
        };
        let tenant = tx.tenant().clone();
        sqlx::query(
            "insert into crm_ticket (tenant_id, id, account_id, subject, description, priority, owner_id, state, \
             created_at, updated_at) values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $9)",
        )
        .bind(tenant.as_str())
        .bind(ticket.ticket_id)
        .bind(ticket.account_id)
        .bind(&ticket.subject)
        .bind(&ticket.description)
        .bind(ticket.priority.as_str())
        .bind(&ticket.owner_id)
        .bind(ticket.state.as_str())
        .bind(ticket.created_at)
        .execute(tx.conn())
        .await?;
        let mut done = Done::new(ticket.ticket_id);
        let (user, data) = (&account.portfolio_user_id, object(&ticket)?.into());
        done.emit(tx, caller, kind::CRM_TICKET_CREATED, user, ticket.ticket_id, data).await?;
        Ok(done)
    }
}

impl Mutable for Ticket {
    async fn update(
        tx: &mut TenantTx,
        caller: Caller<'_>,
        id: Uuid,
        given: &Map<String, Value>,
    ) -> Result<Done, CommandError> {
        let old: Self = lock(tx.conn(), id).await?;
        let mut input = Input::new(given);
        let mut new = old.clone();
        let subject = fields::name(&mut input, SUBJECT);
        new.subject = input.kept(SUBJECT, subject, &old.subject);
        new.description = input.text(DESCRIPTION, LONGEST_DESCRIPTION).cleared(&old.description);
        let priority = input.choice(PRIORITY);
        new.priority = input.kept(PRIORITY, priority, &old.priority);
        let owner = fields::owner(&mut input);
        new.owner_id = input.kept(OWNER, owner, &old.owner_id);
        fields::keep_state(&mut input, given, fields::STATE, old.state.as_str(), Self::PATH);
        input.finish().map_err(CommandError::Invalid)?;
        let mut done = Done::new(id);
        let changes = changes(&old, &new)?;
        if changes.is_empty() {
            return Ok(done);
        }
        sqlx::query(
            "update crm_ticket set subject = $2, description = $3, priority = $4, owner_id = $5, updated_at = $6 \
             where id = $1",
        )
        .bind(id)
        .bind(&new.subject)
        .bind(&new.description)
        .bind(new.priority.as_str())
        .bind(&new.owner_id)
        .bind(caller.now)
        .execute(tx.conn())
        .await?;
        let user = account::user_of(tx, new.account_id).await?;
        let data = json!({"ticket_id": id, "account_id": new.account_id, "changes": changes});
        done.emit(tx, caller, kind::CRM_TICKET_UPDATED, &user, id, data).await?;
        Ok(done)
    }
}

impl Stateful for Ticket {
    const SET_STATE: &'static str =
        "update crm_ticket set state = $2, state_reason = $3, updated_at = $4 where id = $1";

    async fn transition(
        tx: &mut TenantTx,
        caller: Caller<'_>,
        id: Uuid,
        given: &Map<String, Value>,
    ) -> Result<Done, CommandError> {
        let ticket: Self = lock(tx.conn(), id).await?;
        let (input, step) = MACHINE.ask(given, ticket.state)?;
        input.finish().map_err(CommandError::Invalid)?;
        if step.rule == Rule::InTime && !in_time(tx, id).await? {
            let detail = format!("a ticket is opened again within {REOPEN_DAYS} days of its resolution");
            return Err(broken("reopened-too-late", detail));
        }
        step.store::<Self>(tx, caller, id).await?;
        // Kept while it is closed, for the record.
        if step.to != Closed {
            sqlx::query("update crm_ticket set resolved_at = case when $2 then now() end where id = $1")
                .bind(id)
                .bind(step.to == Resolved)
                .execute(tx.conn())
                .await?;
        }
        let kind =
            if step.to == Resolved { kind::CRM_TICKET_RESOLVED } else { kind::CRM_TICKET_STATUS_CHANGED };
        let user = account::user_of(tx, ticket.account_id).await?;
        let mut done = Done::new(id);
        let data = step.told(("ticket_id", id), Some(ticket.account_id));
        done.emit(tx, caller, kind, &user, id, data).await?;
        Ok(done)
    }
}

async fn in_time(tx: &mut TenantTx, id: Uuid) -> Result<bool, sqlx::Error> {
    let sql = "select coalesce(resolved_at + make_interval(days => $2) >= now(), false) from crm_ticket where id = $1";
    sqlx::query_scalar(sql).bind(id).bind(REOPEN_DAYS).fetch_one(tx.conn()).await
}
