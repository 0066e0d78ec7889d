//! Owns the commands: what a caller may change, and by which rules.
//! Promises that state, event and audit row commit together, and that a refusal names every field at fault.
//! Called by the API inside a [`TenantTx`] which the caller commits; the execution of trades also by a projection.

use chrono::{DateTime, Utc};

use serde_json::Value;
use uuid::Uuid;

use crate::db::{TenantTx, Tenanted};
use crate::identifier::{EntityId, UserId};
use crate::outbox::{self, AppendError, NewEvent};

mod amount;
mod audit;
mod change;
pub mod crm;
pub mod input;
pub mod machine;
pub mod miner;
pub mod miner_model;
pub mod network;
pub mod ops;
pub mod treasury;
pub mod webhook;

pub use input::{FieldError, Input};

/// Who asks, through which request, and when.
#[derive(Debug, Clone, Copy)]
pub struct Caller<'a> {
    /// The user the token names: recorded in the audit log.
    pub actor: &'a UserId,
    /// Correlates the audit log and the event with the request.
    pub request_id: &'a str,
    /// W3C trace context of the request, empty when there is none.
    pub traceparent: &'a str,
    /// The moment of the request, by the database's clock: what is newest is decided by it.
    pub now: DateTime<Utc>,
}

/// Why a command was refused or failed; the transaction must be rolled back.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// Fields that break a rule, all of them.
    #[error("{}", .0.iter().map(|e| format!("{} {}", e.field, e.message)).collect::<Vec<_>>().join("; "))]
    Invalid(Vec<FieldError>),
    /// The entity does not exist in this tenant, or was removed.
    #[error("no such entity in this tenant")]
    NotFound,
    /// The state machine has no such move.
    #[error(transparent)]
    Transition(#[from] machine::IllegalMove),
    /// The fields are well, but a rule of the business forbids it as things stand.
    #[error("{detail}")]
    Rule {
        /// The name of the rule.
        rule: &'static str,
        /// What contradicts it.
        detail: String,
    },
    /// The event was refused.
    #[error(transparent)]
    Event(AppendError),
    /// A statement failed.
    #[error(transparent)]
    Sql(#[from] sqlx::Error),
}

impl From<AppendError> for CommandError {
    fn from(error: AppendError) -> Self {
        match error {
            AppendError::Sql(error) => Self::Sql(error),
            other => Self::Event(other),
        }
    }
}

/// Appends the event of a change and its audit row; returns the event's id.
async fn emit(
    tx: &mut TenantTx,
    caller: Caller<'_>,
    kind: &str,
    owner: &UserId,
    entity: EntityId,
    data: Value,
) -> Result<Uuid, CommandError> {
    follow_up(tx, caller, None, (kind, owner, entity), data).await
}

/// As [`emit`], of what an event caused.
async fn follow_up<T: Tenanted>(
    tx: &mut T,
    caller: Caller<'_>,
    cause: Option<Uuid>,
    (kind, owner, entity): (&str, &UserId, EntityId),
    data: Value,
) -> Result<Uuid, CommandError> {
    let event = NewEvent {
        kind,
        user_id: owner,
        entity_id: entity.clone(),
        data: data.clone(),
        correlation_id: Some(caller.request_id).filter(|id| !id.is_empty()),
        causation_id: cause,
        traceparent: caller.traceparent,
        idempotency_key: None,
    };
    let event_id = outbox::append(tx, event).await?;
    audit::record(tx, caller, kind, &entity, event_id, &data).await?;
    Ok(event_id)
}
