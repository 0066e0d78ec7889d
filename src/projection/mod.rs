//! Owns what events mean to the read models: one handler per consumer group.
//! Promises that a handler recomputes from the tables of record, so that order between aggregates and repetition do
//! not matter.
//! Called by the consumer, inside the transaction that admits the events.

use std::collections::BTreeSet;
use std::sync::Arc;

use async_trait::async_trait;
use chrono::NaiveDate;

use crate::db::{SqlFailure, WorkerTx, classify};
use crate::domain::CommandError;
use crate::economics::treasury::TreasuryError;
use crate::economics::{Assumptions, EconomicsError};
use crate::event::{AggregateType, Event};
use crate::identifier::{TenantId, UserId};
use crate::outbox::AppendError;
use crate::read_model;

mod crm;
pub mod intelligence;
mod portfolio;
mod treasury;

/// A row of a read model that changed: its cached copies are older than this version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dirty {
    pub tenant_id: TenantId,
    pub row: Row,
    pub version: i64,
}

/// A row of a tenant's read models of which copies are cached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Row {
    /// A user's portfolio.
    Portfolio(UserId),
    /// A user's schedule.
    Schedule(UserId),
    /// The forecast as it is read on this day.
    Forecast(NaiveDate),
}

/// A row of a read model, of one user, that events ask to recompute.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Owner {
    pub tenant_id: TenantId,
    pub user_id: UserId,
    /// Which read model.
    pub read_model: &'static str,
}

/// Why a handler could not apply.
#[derive(Debug, thiserror::Error)]
pub enum HandlerError {
    /// A statement failed.
    #[error(transparent)]
    Sql(#[from] sqlx::Error),
    /// The figures cannot be computed from what is stored.
    #[error(transparent)]
    Economics(#[from] EconomicsError),
    /// The figures of a treasury cannot be computed from what is stored.
    #[error(transparent)]
    Treasury(#[from] TreasuryError),
    /// What an event leads to was refused.
    #[error(transparent)]
    Command(CommandError),
    /// The handler has a bug.
    #[error("the handler panicked: {0}")]
    Panic(String),
}

impl From<CommandError> for HandlerError {
    fn from(error: CommandError) -> Self {
        match error {
            CommandError::Sql(error) => Self::Sql(error),
            other => Self::Command(other),
        }
    }
}

impl From<AppendError> for HandlerError {
    fn from(error: AppendError) -> Self {
        CommandError::from(error).into()
    }
}

impl HandlerError {
    /// Whether the same events may succeed later without anybody mending anything.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Sql(error) if classify(error) == SqlFailure::Transient)
    }

    /// The error class of a dead letter.
    pub fn class(&self) -> &'static str {
        match self {
            Self::Sql(_) => "database",
            Self::Economics(_) | Self::Treasury(_) => "economics",
            Self::Command(_) => "command",
            Self::Panic(_) => "panic",
        }
    }

    /// What failures of the same cause have in common: the class, and the database's code.
    pub fn signature(&self) -> String {
        match self {
            Self::Sql(sqlx::Error::Database(error)) => {
                format!("{} {}", self.class(), error.code().unwrap_or_default())
            }
            _ => self.class().to_owned(),
        }
    }
}

/// What one step of a rebuild did.
#[derive(Debug, Default)]
pub struct Rebuilt {
    pub dirty: Vec<Dirty>,
    pub rows: usize,
    /// The key of the last of them: the next step goes on behind it. `None`: the tenant has no more.
    pub last: Option<String>,
}

/// Applies events of one group.
#[async_trait]
pub trait EventHandler: Send + Sync {
    /// Whether a kind means anything here; others are acknowledged.
    fn consumes(&self, kind: &str) -> bool;

    /// Who is recomputed by a batch, as far as its events name anybody: what concerns a whole tenant names nobody.
    fn owners(&self, _events: &[&Event]) -> BTreeSet<Owner> {
        BTreeSet::new()
    }

    /// One query without parameters whose only column is the tenants of which there are, or should be, rows to rebuild,
    /// each once. `None`: there is nothing to rebuild.
    fn tenants(&self) -> Option<&'static str> {
        None
    }

    /// Recomputes some of the tenant's rows from the tables of record, those behind `after` in the order of their keys. A
    /// row keeps the event that it names; one that was lost names none.
    async fn rebuild(
        &self,
        _tx: &mut WorkerTx,
        _tenant: &TenantId,
        _after: Option<&str>,
    ) -> Result<Rebuilt, HandlerError> {
        Ok(Rebuilt::default())
    }

    /// Applies a batch in the consumer's transaction and returns what changed.
    async fn apply(&self, tx: &mut WorkerTx, events: &[&Event]) -> Result<Vec<Dirty>, HandlerError>;
}

/// Rows that one step of a rebuild recomputes at most.
const REBUILT_AT_ONCE: i64 = 50;

/// A consumer group: what it reads and who applies it.
#[derive(Clone)]
pub struct Group {
    pub name: &'static str,
    pub reads: &'static [AggregateType],
    pub handler: Arc<dyn EventHandler>,
}

/// Every group of this build.
pub fn groups(assumptions: Assumptions) -> Vec<Group> {
    vec![
        Group {
            name: read_model::portfolio::GROUP,
            reads: &[AggregateType::Miner, AggregateType::Ops],
            handler: Arc::new(portfolio::PortfolioHandler { assumptions: assumptions.clone() }),
        },
        Group {
            name: read_model::anomaly::GROUP,
            reads: &[AggregateType::Miner, AggregateType::Ops],
            handler: Arc::new(intelligence::IntelligenceHandler::new(assumptions)),
        },
        Group {
            name: read_model::crm::GROUP,
            reads: &[AggregateType::Crm],
            handler: Arc::new(crm::CrmHandler),
        },
        Group {
            name: read_model::treasury::GROUP,
            reads: &[AggregateType::Treasury, AggregateType::Ops],
            handler: Arc::new(treasury::TreasuryHandler),
        },
    ]
}
