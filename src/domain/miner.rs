//! Owns the miners: adding, changing, removing and reading them.
//! Promises that a miner's row is locked before it changes, so that its events stand in the order of its changes.
//! Called by the API and by the simulated fleet of the demo.

use chrono::{DateTime, Utc};
use rust_decimal::Decimal;
use serde::Serialize;
use serde_json::{Map, Value, json};
use sqlx::PgConnection;
use uuid::Uuid;

use super::input::{Given, Names};
use super::{Caller, CommandError, Input, emit, miner_model};
use crate::db::TenantTx;
use crate::economics::MinerStatus;
use crate::event::kind;
use crate::identifier::{EntityId, UserId};

pub mod bulk;
pub(super) mod fields;
mod new;
pub mod telemetry;

use fields::Fields;
use new::NewMiner;

const STATUS: Names = &["status"];
const REASON: Names = &["reason"];
const USER: Names = &["user_id"];
const LONGEST_REASON: usize = 500;

/// A miner as it is stored: a number of equal machines of one owner.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, sqlx::FromRow)]
pub struct Miner {
    #[sqlx(rename = "id")]
    pub miner_id: Uuid,
    pub owner_id: UserId,
    pub model: String,
    /// Rated hashrate of one machine, TH/s.
    pub hashrate_ths: Decimal,
    /// Nameplate power of one machine, W.
    pub power_w: Decimal,
    pub quantity: i32,
    pub location: Option<String>,
    /// Of one machine, USD.
    pub purchase_price_usd: Option<Decimal>,
    /// Tariff, $/kWh; none takes the default of the economics.
    pub electricity_cost_usd_kwh: Option<Decimal>,
    #[sqlx(try_from = "String")]
    pub status: Status,
    /// Why it has this status.
    pub status_reason: Option<String>,
    pub created_at: DateTime<Utc>,
    pub updated_at: DateTime<Utc>,
}

/// [`MinerStatus`] as a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Status(pub MinerStatus);

impl TryFrom<String> for Status {
    type Error = crate::economics::UnknownStatus;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse().map(Self)
    }
}

/// The answer to a command on one miner.
#[derive(Debug, Clone, Copy)]
pub struct Changed {
    pub miner_id: Uuid,
    /// Nothing, when nothing changed.
    pub event_id: Option<Uuid>,
}

/// The answer to a change of status.
#[derive(Debug, Clone, Copy)]
pub struct StatusChanged {
    pub old_status: MinerStatus,
    pub new_status: MinerStatus,
    /// Nothing, when the status was the same.
    pub event_id: Option<Uuid>,
}

/// Adds a miner from the fields of POST /api/miners; emits `miner.added`.
pub async fn add(
    tx: &mut TenantTx,
    caller: Caller<'_>,
    object: &Map<String, Value>,
) -> Result<Changed, CommandError> {
    let mut input = Input::new(object);
    let miner = specified(tx.conn(), caller, &mut input).await?;
    let miner = new::finished(input, miner).map_err(CommandError::Invalid)?;
    admit(tx, caller, &miner).await
}

/// The miner that the fields of POST /api/miners describe, pending; nothing where one of them was refused.
pub(super) async fn specified(
    conn: &mut PgConnection,
    caller: Caller<'_>,
    input: &mut Input<'_>,
) -> Result<Option<Miner>, sqlx::Error> {
    let new = NewMiner::read(input);
    let known = match &new.model {
        Some(model) => miner_model::find(conn, model).await?,
        None => None,
    };
    Ok(new.complete(input, caller, known.as_ref()))
}

/// Stores a new miner; emits `miner.added`.
pub(super) async fn admit(
    tx: &mut TenantTx,
    caller: Caller<'_>,
    miner: &Miner,
) -> Result<Changed, CommandError> {
    insert(tx, std::slice::from_ref(miner)).await?;
    let data = json!({
        "miner_id": miner.miner_id, "model": miner.model, "hashrate_ths": miner.hashrate_ths,
        "power_w": miner.power_w, "quantity": miner.quantity, "owner_id": miner.owner_id,
    });
    let event_id = emit(tx, caller, kind::MINER_ADDED, &miner.owner_id, miner.miner_id.into(), data).await?;
    Ok(Changed { miner_id: miner.miner_id, event_id: Some(event_id) })
}

/// Changes the fields that are given: null clears an optional one and takes hashrate and power from the catalogue.
/// Emits `miner.updated` with each change as `{"old", "new"}`, for the new owner when the owner changes.
pub async fn update(
    tx: &mut TenantTx,
    caller: Caller<'_>,
    id: Uuid,
    object: &Map<String, Value>,
) -> Result<Changed, CommandError> {
    let old = lock(tx.conn(), id).await?;
    let mut input = Input::new(object);
    let given = Fields::read(&mut input);
    if let Given::Value(status) = input.choice::<MinerStatus>(STATUS)
        && status != old.status.0
    {
        input.refuse("status", "is changed through PATCH /api/miners/{id}/status");
    }
    let new = given.apply(&mut input, tx.conn(), &old).await?;
    input.finish().map_err(CommandError::Invalid)?;
    let changes = fields::changes(&old, &new);
    if changes.is_empty() {
        return Ok(Changed { miner_id: id, event_id: None });
    }
    sqlx::query(
        "update miners set owner_id = $2, model = $3, hashrate_ths = $4, power_w = $5, quantity = $6, location = $7, \
         purchase_price_usd = $8, electricity_cost_usd_kwh = $9, updated_at = $10 where id = $1",
    )
    .bind(id)
    .bind(&new.owner_id)
    .bind(&new.model)
    .bind(new.hashrate_ths)
    .bind(new.power_w)
    .bind(new.quantity)
    .bind(&new.location)
    .bind(new.purchase_price_usd)
    .bind(new.electricity_cost_usd_kwh)
    .bind(caller.now)
    .execute(tx.conn())
    .await?;
    let data = json!({"miner_id": id, "changes": changes});
    let event_id = emit(tx, caller, kind::MINER_UPDATED, &new.owner_id, id.into(), data).await?;
    Ok(Changed { miner_id: id, event_id: Some(event_id) })
}

/// Changes the status from `status` and `reason`; emits `miner.status_changed` unless the status is the same.
pub async fn change_status(
    tx: &mut TenantTx,
    caller: Caller<'_>,
    id: Uuid,
    object: &Map<String, Value>,
) -> Result<StatusChanged, CommandError> {
    let miner = lock(tx.conn(), id).await?;
    let mut input = Input::new(object);
    let status = input.choice::<MinerStatus>(STATUS);
    let status = input.required(STATUS, status);
    let reason = input.text(REASON, LONGEST_REASON).value();
    input.finish().map_err(CommandError::Invalid)?;
    set_status(tx, caller, &miner, status.unwrap_or(miner.status.0), reason).await
}

/// Changes the status of a miner that is locked.
pub(super) async fn set_status(
    tx: &mut TenantTx,
    caller: Caller<'_>,
    miner: &Miner,
    new_status: MinerStatus,
    reason: Option<String>,
) -> Result<StatusChanged, CommandError> {
    let (id, old_status) = (miner.miner_id, miner.status.0);
    if old_status == new_status {
        return Ok(StatusChanged { old_status, new_status, event_id: None });
    }
    sqlx::query("update miners set status = $2, status_reason = $3, updated_at = $4, status_changed_at = $4 where id = $1")
        .bind(id)
        .bind(new_status.as_str())
        .bind(&reason)
        .bind(caller.now)
        .execute(tx.conn())
        .await?;
    let data = json!({"miner_id": id, "old_status": old_status, "new_status": new_status, "reason": reason});
    let event_id = emit(tx, caller, kind::MINER_STATUS_CHANGED, &miner.owner_id, id.into(), data).await?;
    Ok(StatusChanged { old_status, new_status, event_id: Some(event_id) })
}

/// Removes a miner: its row stays for the record, nobody meets it again. Emits `miner.removed`.
pub async fn remove(tx: &mut TenantTx, caller: Caller<'_>, id: Uuid) -> Result<Changed, CommandError> {
    let miner = lock(tx.conn(), id).await?;
    sqlx::query("update miners set removed_at = $2, updated_at = $2 where id = $1")
        .bind(id)
        .bind(caller.now)
        .execute(tx.conn())
        .await?;
    let data = json!({"miner_id": id});
    let event_id = emit(tx, caller, kind::MINER_REMOVED, &miner.owner_id, id.into(), data).await?;
    Ok(Changed { miner_id: id, event_id: Some(event_id) })
}

/// Whom a sync is asked for: `user_id`, or the caller.
pub fn sync_user(caller: Caller<'_>, object: &Map<String, Value>) -> Result<UserId, CommandError> {
    let mut input = Input::new(object);
    let user = input.identifier::<UserId>(USER).value();
    input.finish().map_err(CommandError::Invalid)?;
    Ok(user.unwrap_or_else(|| caller.actor.clone()))
}

/// Asks for a recalculation of a user's portfolio; emits `miner.sync_requested`.
pub async fn request_sync(
    tx: &mut TenantTx,
    caller: Caller<'_>,
    user: &UserId,
) -> Result<Uuid, CommandError> {
    let data = json!({"user_id": user});
    emit(tx, caller, kind::MINER_SYNC_REQUESTED, user, EntityId::from(user), data).await
}

/// A miner that was not removed.
pub async fn get(tx: &mut TenantTx, id: Uuid) -> Result<Miner, CommandError> {
    sqlx::query_as("select * from miners where id = $1 and removed_at is null")
        .bind(id)
        .fetch_optional(tx.conn())
        .await?
        .ok_or(CommandError::NotFound)
}

/// Up to `limit` miners in the order they were added, behind the miner `after`, of one owner or of all.
pub async fn list(
    tx: &mut TenantTx,
    owner: Option<&UserId>,
    after: Option<Uuid>,
    limit: i64,
) -> Result<Vec<Miner>, sqlx::Error> {
    sqlx::query_as(
        "select * from miners where removed_at is null and ($1::text is null or owner_id = $1) \
         and ($2::uuid is null or id > $2) order by id limit $3",
    )
    .bind(owner)
    .bind(after)
    .bind(limit)
    .fetch_all(tx.conn())
    .await
}

/// The miner, kept from others until the end of the transaction: the position of its event is drawn after this.
pub(super) async fn lock(conn: &mut PgConnection, id: Uuid) -> Result<Miner, CommandError> {
    sqlx::query_as("select * from miners where id = $1 and removed_at is null for update")
        .bind(id)
        .fetch_optional(conn)
        .await?
        .ok_or(CommandError::NotFound)
}

/// All in one statement.
async fn insert(tx: &mut TenantTx, miners: &[Miner]) -> Result<(), sqlx::Error> {
    let tenant = tx.tenant().clone();
    fn column<'a, T>(miners: &'a [Miner], of: impl Fn(&'a Miner) -> T) -> Vec<T> {
        miners.iter().map(of).collect()
    }
    sqlx::query(
        "insert into miners (tenant_id, id, owner_id, model, hashrate_ths, power_w, quantity, location, \
         purchase_price_usd, electricity_cost_usd_kwh, status, created_at, updated_at) \
         select $1, id, owner_id, model, hashrate_ths, power_w, quantity, location, purchase_price_usd, \
           electricity_cost_usd_kwh, status, created_at, created_at \
         from unnest($2::uuid[], $3::text[], $4::text[], $5::numeric[], $6::numeric[], $7::int[], $8::text[], \
           $9::numeric[], $10::numeric[], $11::text[], $12::timestamptz[]) \
         as row (id, owner_id, model, hashrate_ths, power_w, quantity, location, purchase_price_usd, \
           electricity_cost_usd_kwh, status, created_at)",
    )
    .bind(tenant.as_str())
    .bind(column(miners, |m| m.miner_id))
    .bind(column(miners, |m| m.owner_id.as_str()))
    .bind(column(miners, |m| m.model.as_str()))
    .bind(column(miners, |m| m.hashrate_ths))
    .bind(column(miners, |m| m.power_w))
    .bind(column(miners, |m| m.quantity))
    .bind(column(miners, |m| m.location.as_deref()))
    .bind(column(miners, |m| m.purchase_price_usd))
    .bind(column(miners, |m| m.electricity_cost_usd_kwh))
    .bind(column(miners, |m| m.status.0.as_str()))
    .bind(column(miners, |m| m.created_at))
    .execute(tx.conn())
    .await
    .map(drop)
}
