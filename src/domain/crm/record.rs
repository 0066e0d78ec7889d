//! Owns what all entities share: how they are read, listed and locked, and what a command tells of itself.
//! Promises that a row is locked before it changes, and that every change of one has an event and an audit row.
//! Called by the entities of this folder, and by the API to read.

use serde::Serialize;
use serde_json::{Map, Value, json};
use sqlx::FromRow;
use sqlx::postgres::{PgConnection, PgRow};
use uuid::Uuid;

use super::machine::{State, Step};
use crate::db::TenantTx;
pub(super) use crate::domain::change::{broken, changes, object};
use crate::domain::{Caller, CommandError, emit};
use crate::identifier::UserId;

/// The statements that every entity has, for its own table.
#[derive(Debug)]
pub struct Statements {
    pub(super) get: &'static str,
    pub(super) lock: &'static str,
    pub(super) list: &'static str,
}

/// The statements of a table, with the columns its list is filtered by.
macro_rules! statements {
    ($table:literal, state: $state:literal, account: $account:literal) => {
        $crate::domain::crm::record::Statements {
            get: concat!("select * from ", $table, " where id = $1"),
            // Rows that refer to this one may be added meanwhile.
            lock: concat!("select * from ", $table, " where id = $1 for no key update"),
            list: concat!(
                "select * from ",
                $table,
                " where ($1::text is null or ",
                $state,
                " = $1) and ($2::uuid is null or ",
                $account,
                " = $2) and ($3::uuid is null or id > $3) order by id limit $4"
            ),
        }
    };
}
pub(super) use statements;

/// Something with a row of its own, that can be made.
pub trait Entity: Serialize + for<'r> FromRow<'r, PgRow> + Send + Sync + Unpin + Sized + 'static {
    /// In the singular, as in `<name>_id`.
    const NAME: &'static str;
    /// Under /api/crm/.
    const PATH: &'static str;
    /// What the filter `state` takes.
    const STATES: &'static [&'static str];
    const STATEMENTS: Statements;

    fn id(&self) -> Uuid;

    /// Makes one from the fields of a POST.
    fn create(
        tx: &mut TenantTx,
        caller: Caller<'_>,
        object: &Map<String, Value>,
    ) -> impl Future<Output = Result<Done, CommandError>> + Send;
}

/// An entity whose harmless fields can be changed.
pub trait Mutable: Entity {
    /// Changes the fields that are given; null clears an optional one.
    fn update(
        tx: &mut TenantTx,
        caller: Caller<'_>,
        id: Uuid,
        object: &Map<String, Value>,
    ) -> impl Future<Output = Result<Done, CommandError>> + Send;
}

/// An entity with a state.
pub trait Stateful: Entity {
    /// Stores the id's state, the reason for it, and when.
    const SET_STATE: &'static str;

    /// Moves it to the state `to`; `reason` and what else a move takes are fields, too.
    fn transition(
        tx: &mut TenantTx,
        caller: Caller<'_>,
        id: Uuid,
        object: &Map<String, Value>,
    ) -> impl Future<Output = Result<Done, CommandError>> + Send;
}

/// Which rows a list shows.
#[derive(Debug, Clone, Copy, Default)]
pub struct Filter<'a> {
    pub state: Option<&'a str>,
    pub account_id: Option<Uuid>,
}

/// An entity of the tenant.
pub async fn get<E: Entity>(tx: &mut TenantTx, id: Uuid) -> Result<E, CommandError> {
    let found = sqlx::query_as(E::STATEMENTS.get).bind(id).fetch_optional(tx.conn()).await?;
    found.ok_or(CommandError::NotFound)
}

/// Up to `limit` entities in the order they were made, behind `after`.
pub async fn list<E: Entity>(
    tx: &mut TenantTx,
    filter: Filter<'_>,
    after: Option<Uuid>,
    limit: i64,
) -> Result<Vec<E>, sqlx::Error> {
    sqlx::query_as(E::STATEMENTS.list)
        .bind(filter.state)
        .bind(filter.account_id)
        .bind(after)
        .bind(limit)
        .fetch_all(tx.conn())
        .await
}

/// The entity, kept from others until the end of the transaction: the position of its event is drawn after this.
pub(super) async fn lock<E: Entity>(conn: &mut PgConnection, id: Uuid) -> Result<E, CommandError> {
    let found = sqlx::query_as(E::STATEMENTS.lock).bind(id).fetch_optional(conn).await?;
    found.ok_or(CommandError::NotFound)
}

impl<S: State> Step<S> {
    /// Stores the state and the reason for it.
    pub(super) async fn store<E: Stateful>(
        &self,
        tx: &mut TenantTx,
        caller: Caller<'_>,
        id: Uuid,
    ) -> Result<(), sqlx::Error> {
        sqlx::query(E::SET_STATE)
            .bind(id)
            .bind(self.to.as_str())
            .bind(&self.reason)
            .bind(caller.now)
            .execute(tx.conn())
            .await
            .map(drop)
    }

    /// What an event tells of the move.
    pub(super) fn told(&self, id: (&str, Uuid), account_id: Option<Uuid>) -> Value {
        json!({
            id.0: id.1, "account_id": account_id, "from": self.from.as_str(), "to": self.to.as_str(),
            "reason": self.reason,
        })
    }
}

/// An event that a command emitted.
#[derive(Debug, Clone, Serialize)]
pub struct Emitted {
    pub kind: &'static str,
    pub event_id: Uuid,
}

/// What a command did.
#[derive(Debug)]
pub struct Done {
    pub id: Uuid,
    /// In the order they were emitted; none when nothing changed.
    pub events: Vec<Emitted>,
    /// What else there is to answer.
    pub more: Map<String, Value>,
}

impl Done {
    pub(super) fn new(id: Uuid) -> Self {
        Self { id, events: Vec::new(), more: Map::new() }
    }

    /// The event to wait for: all of a command's events were committed with it, so any will do for the account.
    pub fn event_id(&self) -> Option<Uuid> {
        self.events.first().map(|event| event.event_id)
    }

    /// Emits an event about an entity.
    pub(super) async fn emit(
        &mut self,
        tx: &mut TenantTx,
        caller: Caller<'_>,
        kind: &'static str,
        owner: &UserId,
        entity: Uuid,
        data: Value,
    ) -> Result<(), CommandError> {
        let event_id = emit(tx, caller, kind, owner, entity.into(), data).await?;
        self.events.push(Emitted { kind, event_id });
        Ok(())
    }

    /// Answers a field.
    pub(super) fn tell(&mut self, name: &str, value: impl Into<Value>) {
        self.more.insert(name.to_owned(), value.into());
    }
}
