//! Owns the accounts: customers, what everything else here hangs on.
//! Promises that an account has one portfolio user for good, so that all its events share a partition, in order.
//! Called by the API, and by the conversion of a lead.

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::fields::{self, ACCOUNT, NAME, NOTES, OWNER};
use super::record::{Done, Entity, Mutable, Statements, changes, lock, object, statements};
use crate::db::TenantTx;
use crate::domain::input::Names;
use crate::domain::{Caller, CommandError, Input};
use crate::event::kind;
use crate::identifier::UserId;

/// The field that names an account's portfolio user.
pub const PORTFOLIO_USER: &str = "portfolio_user_id";
const USER: Names = &[PORTFOLIO_USER];

/// A customer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, sqlx::FromRow)]
pub struct Account {
    #[sqlx(rename = "id")]
    pub account_id: Uuid,
    pub name: String,
    pub email: Option<String>,
    pub phone: Option<String>,
    pub notes: Option<String>,
    /// Who looks after the customer.
    pub owner_id: UserId,
    /// Whose portfolio holds the customer's miners: of the account alone, unless an admin named another.
    pub portfolio_user_id: UserId,
    pub created_at: DateTime<Utc>,
    pub updated_at: DateTime<Utc>,
}

impl Entity for Account {
    const NAME: &'static str = "account";
    const PATH: &'static str = "accounts";
    const STATES: &'static [&'static str] = &[];
    const STATEMENTS: Statements = statements!("crm_account", state: "null", account: "id");

    fn id(&self) -> Uuid {
        self.account_id
    }

    async fn create(
        tx: &mut TenantTx,
        caller: Caller<'_>,
        given: &Map<String, Value>,
    ) -> Result<Done, CommandError> {
        let mut input = Input::new(given);
        let name = fields::name(&mut input, NAME);
        let name = input.required(NAME, name);
        let email = fields::email(&mut input).value();
        let phone = fields::phone(&mut input).value();
        let notes = fields::notes(&mut input, NOTES).value();
        let owner_id = fields::owner(&mut input).value();
        let user = portfolio_user(&mut input);
        input.finish().map_err(CommandError::Invalid)?;
        let account_id = Uuid::now_v7();
        let account = Account {
            account_id,
            name: name.unwrap_or_default(),
            email,
            phone,
            notes,
            owner_id: owner_id.unwrap_or_else(|| caller.actor.clone()),
            portfolio_user_id: or_its_own(user, account_id),
            created_at: caller.now,
            updated_at: caller.now,
        };
        let mut done = Done::new(account_id);
        account.open(tx, caller, &mut done).await?;
        Ok(done)
    }
}

impl Mutable for Account {
    async fn update(
        tx: &mut TenantTx,
        caller: Caller<'_>,
        id: Uuid,
        given: &Map<String, Value>,
    ) -> Result<Done, CommandError> {
        let old: Self = lock(tx.conn(), id).await?;
        let mut input = Input::new(given);
        let mut new = old.clone();
        let name = fields::name(&mut input, NAME);
        new.name = input.kept(NAME, name, &old.name);
        new.email = fields::email(&mut input).cleared(&old.email);
        new.phone = fields::phone(&mut input).cleared(&old.phone);
        new.notes = fields::notes(&mut input, NOTES).cleared(&old.notes);
        let owner = fields::owner(&mut input);
        new.owner_id = input.kept(OWNER, owner, &old.owner_id);
        if portfolio_user(&mut input).is_some_and(|user| user != old.portfolio_user_id) {
            input.refuse(PORTFOLIO_USER, "cannot be changed");
        }
        input.finish().map_err(CommandError::Invalid)?;
        let mut done = Done::new(id);
        let changes = changes(&old, &new)?;
        if changes.is_empty() {
            return Ok(done);
        }
        sqlx::query(
            "update crm_account set name = $2, email = $3, phone = $4, notes = $5, owner_id = $6, updated_at = $7 \
             where id = $1",
        )
        .bind(id)
        .bind(&new.name)
        .bind(&new.email)
        .bind(&new.phone)
        .bind(&new.notes)
        .bind(&new.owner_id)
        .bind(caller.now)
        .execute(tx.conn())
        .await?;
        let data = json!({"account_id": id, "changes": changes});
        done.emit(tx, caller, kind::CRM_ACCOUNT_UPDATED, &new.portfolio_user_id, id, data).await?;
        Ok(done)
    }
}

impl Account {
    /// Stores a new account; emits `crm.account_created`.
    pub(super) async fn open(
        &self,
        tx: &mut TenantTx,
        caller: Caller<'_>,
        done: &mut Done,
    ) -> Result<(), CommandError> {
        let tenant = tx.tenant().clone();
        sqlx::query(
            "insert into crm_account (tenant_id, id, name, email, phone, notes, owner_id, portfolio_user_id, \
             created_at, updated_at) values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $9)",
        )
        .bind(tenant.as_str())
        .bind(self.account_id)
        .bind(&self.name)
        .bind(&self.email)
        .bind(&self.phone)
        .bind(&self.notes)
        .bind(&self.owner_id)
        .bind(&self.portfolio_user_id)
        .bind(self.created_at)
        .execute(tx.conn())
        .await?;
        let (user, data) = (&self.portfolio_user_id, object(self)?.into());
        done.emit(tx, caller, kind::CRM_ACCOUNT_CREATED, user, self.account_id, data).await
    }
}

/// Reads the field [`PORTFOLIO_USER`].
pub(super) fn portfolio_user(input: &mut Input<'_>) -> Option<UserId> {
    input.identifier(USER).value()
}

/// The user as given, or one that has the account's id for a name: nobody else's portfolio.
pub(super) fn or_its_own(given: Option<UserId>, account_id: Uuid) -> UserId {
    given.unwrap_or_else(|| account_id.into())
}

/// The portfolio user of an account that a row refers to.
pub(super) async fn user_of(tx: &mut TenantTx, account_id: Uuid) -> Result<UserId, CommandError> {
    Ok(super::record::get::<Account>(tx, account_id).await?.portfolio_user_id)
}

/// Reads the required field `account_id`: the account, if there is one.
pub(super) async fn named(tx: &mut TenantTx, input: &mut Input<'_>) -> Result<Option<Account>, CommandError> {
    let id = fields::id(input, ACCOUNT);
    match input.required(ACCOUNT, id) {
        Some(id) => found(tx, input, id).await,
        None => Ok(None),
    }
}

/// The account of the field `account_id`; records that there is none.
pub(super) async fn found(
    tx: &mut TenantTx,
    input: &mut Input<'_>,
    id: Uuid,
) -> Result<Option<Account>, CommandError> {
    match super::record::get(tx, id).await {
        Ok(account) => Ok(Some(account)),
        Err(CommandError::NotFound) => {
            input.refuse(ACCOUNT[0], "must be the id of one that exists");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}
