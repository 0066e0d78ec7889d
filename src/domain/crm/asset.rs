//! Owns the assets: machines on their way from the order to the scrap.
//! Promises that a deployed asset is a miner of its account's portfolio, made, switched and removed with it.
//! Called by the API.

use chrono::{DateTime, Utc};
use rust_decimal::Decimal;
use serde::Serialize;
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::account;
use super::fields::{self, NOTES};
use super::machine::{Machine, Rule, State, Step, states};
use super::record::{
    Done, Emitted, Entity, Mutable, Stateful, Statements, broken, changes, lock, object, statements,
};
use crate::db::TenantTx;
use crate::domain::input::Names;
use crate::domain::miner::{self, Miner, Status};
use crate::domain::{Caller, CommandError, Input};
use crate::economics::MinerStatus;
use crate::event::kind;
use crate::identifier::UserId;

const SERIAL: Names = &["serial_number"];
const LONGEST_SERIAL: usize = 100;

states! {
    /// The states of an asset.
    AssetState {
        Ordered = "ORDERED",
        InTransit = "IN_TRANSIT",
        Received = "RECEIVED",
        InStorage = "IN_STORAGE",
        Deployed = "DEPLOYED",
        Mining = "MINING",
        Maintenance = "MAINTENANCE",
        Delayed = "DELAYED",
        Cancelled = "CANCELLED",
        Decommissioned = "DECOMMISSIONED",
    }
}

use AssetState::{
    Cancelled, Decommissioned, Delayed, Deployed, InStorage, InTransit, Maintenance, Mining, Ordered,
    Received,
};

/// Deployed from received or stored, started from deployed or maintenance, stopped from mining; cancelled and
/// decommissioned are final.
pub const MACHINE: Machine<AssetState> = Machine {
    entity: "asset",
    moves: &[
        (Ordered, InTransit, Rule::Asked),
        (Ordered, Received, Rule::Asked),
        (Ordered, Delayed, Rule::Asked),
        (Ordered, Cancelled, Rule::Asked),
        (InTransit, Received, Rule::Asked),
        (InTransit, Delayed, Rule::Asked),
        (InTransit, Cancelled, Rule::Asked),
        (Delayed, InTransit, Rule::Asked),
        (Delayed, Received, Rule::Asked),
        (Delayed, Cancelled, Rule::Asked),
        (Received, InStorage, Rule::Asked),
        (Received, Deployed, Rule::Asked),
        (Received, Decommissioned, Rule::Asked),
        (InStorage, Deployed, Rule::Asked),
        (InStorage, Decommissioned, Rule::Asked),
        (Deployed, Mining, Rule::Asked),
        (Deployed, Maintenance, Rule::Asked),
        (Deployed, Decommissioned, Rule::Asked),
        (Mining, Deployed, Rule::Asked),
        (Mining, Maintenance, Rule::Asked),
        (Mining, Decommissioned, Rule::Asked),
        (Maintenance, Mining, Rule::Asked),
        (Maintenance, Decommissioned, Rule::Asked),
    ],
};

/// A number of equal machines of one customer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, sqlx::FromRow)]
pub struct Asset {
    #[sqlx(rename = "id")]
    pub asset_id: Uuid,
    pub account_id: Uuid,
    pub model: String,
    /// Rated hashrate of one machine, TH/s.
    pub hashrate_ths: Decimal,
    /// Nameplate power of one machine, W.
    pub power_w: Decimal,
    pub quantity: i32,
    pub serial_number: Option<String>,
    pub location: Option<String>,
    /// Of one machine, USD.
    pub purchase_price_usd: Option<Decimal>,
    /// Tariff, $/kWh.
    pub electricity_cost_usd_kwh: Option<Decimal>,
    pub notes: Option<String>,
    #[sqlx(try_from = "String")]
    pub state: AssetState,
    pub state_reason: Option<String>,
    /// The miner that deployment made.
    pub miner_id: Option<Uuid>,
    pub created_at: DateTime<Utc>,
    pub updated_at: DateTime<Utc>,
}

impl Entity for Asset {
    const NAME: &'static str = "asset";
    const PATH: &'static str = "assets";
    const STATES: &'static [&'static str] = AssetState::NAMES;
    const STATEMENTS: Statements = statements!("crm_asset", state: "state", account: "account_id");

    fn id(&self) -> Uuid {
        self.asset_id
    }

    async fn create(
        tx: &mut TenantTx,
        caller: Caller<'_>,
        given: &Map<String, Value>,
    ) -> Result<Done, CommandError> {
        let mut input = Input::new(given);
        let account = account::named(tx, &mut input).await?;
        let machine = miner::specified(tx.conn(), caller, &mut input).await?;
        let serial_number = input.text(SERIAL, LONGEST_SERIAL).value();
        let notes = fields::notes(&mut input, NOTES).value();
        input.finish().map_err(CommandError::Invalid)?;
        let (Some(account), Some(machine)) = (account, machine) else {
            return Err(CommandError::Invalid(Vec::new()));
        };
        let asset = Self {
            asset_id: Uuid::now_v7(),
            account_id: account.account_id,
            model: machine.model,
            hashrate_ths: machine.hashrate_ths,
            power_w: machine.power_w,
            quantity: machine.quantity,
            serial_number,
            location: machine.location,
            purchase_price_usd: machine.purchase_price_usd,
            electricity_cost_usd_kwh: machine.electricity_cost_usd_kwh,
            notes,
            state: Ordered,
            state_reason: None,
            miner_id: None,
            created_at: caller.now,
            updated_at: caller.now,
        };
        asset.store(tx).await?;
        let mut done = Done::new(asset.asset_id);
        let (user, data) = (&account.portfolio_user_id, object(&asset)?.into());
        done.emit(tx, caller, kind::CRM_ASSET_CREATED, user, asset.asset_id, data).await?;
        Ok(done)
    }
}

impl Mutable for Asset {
    async fn update(
        tx: &mut TenantTx,
        caller: Caller<'_>,
        id: Uuid,
        given: &Map<String, Value>,
    ) -> Result<Done, CommandError> {
        let old: Self = lock(tx.conn(), id).await?;
        let user = account::user_of(tx, old.account_id).await?;
        let mut input = Input::new(given);
        let was = old.as_miner(caller, &user);
        let is = miner::fields::Fields::read(&mut input).apply(&mut input, tx.conn(), &was).await?;
        let mut new = Self {
            model: is.model,
            hashrate_ths: is.hashrate_ths,
            power_w: is.power_w,
            quantity: is.quantity,
            location: is.location,
            purchase_price_usd: is.purchase_price_usd,
            electricity_cost_usd_kwh: is.electricity_cost_usd_kwh,
            ..old.clone()
        };
        let machine_changes = !changes(&old, &new)?.is_empty();
        new.serial_number = input.text(SERIAL, LONGEST_SERIAL).cleared(&old.serial_number);
        new.notes = fields::notes(&mut input, NOTES).cleared(&old.notes);
        fields::keep_state(&mut input, given, fields::STATE, old.state.as_str(), Self::PATH);
        input.finish().map_err(CommandError::Invalid)?;
        if machine_changes && old.miner_id.is_some() {
            let detail =
                "the asset is deployed: what the machine is changes with its miner, /api/miners/{id}";
            return Err(broken("asset-is-deployed", detail));
        }
        let mut done = Done::new(id);
        let changes = changes(&old, &new)?;
        if changes.is_empty() {
            return Ok(done);
        }
        new.overwrite(tx, caller).await?;
        let data = json!({"asset_id": id, "account_id": new.account_id, "changes": changes});
        done.emit(tx, caller, kind::CRM_ASSET_UPDATED, &user, id, data).await?;
        Ok(done)
    }
}

impl Stateful for Asset {
    const SET_STATE: &'static str =
        "update crm_asset set state = $2, state_reason = $3, updated_at = $4 where id = $1";

    async fn transition(
        tx: &mut TenantTx,
        caller: Caller<'_>,
        id: Uuid,
        given: &Map<String, Value>,
    ) -> Result<Done, CommandError> {
        let asset: Self = lock(tx.conn(), id).await?;
        let (input, step) = MACHINE.ask(given, asset.state)?;
        input.finish().map_err(CommandError::Invalid)?;
        let user = account::user_of(tx, asset.account_id).await?;
        let (miner_id, of_the_miner) = asset.follow(tx, caller, &user, &step).await?;
        if miner_id != asset.miner_id {
            sqlx::query("update crm_asset set miner_id = $2 where id = $1")
                .bind(id)
                .bind(miner_id)
                .execute(tx.conn())
                .await?;
        }
        step.store::<Self>(tx, caller, id).await?;
        let mut done = Done::new(id);
        let mut data = step.told(("asset_id", id), Some(asset.account_id));
        data["miner_id"] = json!(miner_id);
        done.emit(tx, caller, kind::CRM_ASSET_STATUS_CHANGED, &user, id, data).await?;
        done.events.extend(of_the_miner);
        done.tell("miner_id", json!(miner_id));
        Ok(done)
    }
}

impl Asset {
    /// The miner that it is, or will be.
    fn as_miner(&self, caller: Caller<'_>, user: &UserId) -> Miner {
        Miner {
            miner_id: self.miner_id.unwrap_or_else(Uuid::now_v7),
            owner_id: user.clone(),
            model: self.model.clone(),
            hashrate_ths: self.hashrate_ths,
            power_w: self.power_w,
            quantity: self.quantity,
            location: self.location.clone(),
            purchase_price_usd: self.purchase_price_usd,
            electricity_cost_usd_kwh: self.electricity_cost_usd_kwh,
            status: Status(MinerStatus::Pending),
            status_reason: None,
            created_at: caller.now,
            updated_at: caller.now,
        }
    }

    /// Lets the miner follow the asset; returns its id, and the event of what was done to it.
    async fn follow(
        &self,
        tx: &mut TenantTx,
        caller: Caller<'_>,
        user: &UserId,
        step: &Step<AssetState>,
    ) -> Result<(Option<Uuid>, Option<Emitted>), CommandError> {
        let emitted = |kind, event_id: Option<Uuid>| event_id.map(|event_id| Emitted { kind, event_id });
        let Some(miner_id) = self.miner_id else {
            if step.to != Deployed {
                return Ok((None, None));
            }
            let added = miner::admit(tx, caller, &self.as_miner(caller, user)).await?;
            return Ok((Some(added.miner_id), emitted(kind::MINER_ADDED, added.event_id)));
        };
        let status = match step.to {
            Mining => MinerStatus::Online,
            Maintenance => MinerStatus::Maintenance,
            Decommissioned => {
                let removed = match miner::remove(tx, caller, miner_id).await {
                    Ok(removed) => removed.event_id,
                    // Somebody removed it already.
                    Err(CommandError::NotFound) => None,
                    Err(error) => return Err(error),
                };
                return Ok((Some(miner_id), emitted(kind::MINER_REMOVED, removed)));
            }
            _ => MinerStatus::Offline,
        };
        let miner = match miner::lock(tx.conn(), miner_id).await {
            Ok(miner) => miner,
            Err(CommandError::NotFound) => {
                let detail = "the asset's miner was removed: the asset can only be decommissioned";
                return Err(broken("miner-is-removed", detail));
            }
            Err(error) => return Err(error),
        };
        let changed = miner::set_status(tx, caller, &miner, status, step.reason.clone()).await?;
        Ok((Some(miner_id), emitted(kind::MINER_STATUS_CHANGED, changed.event_id)))
    }

    async fn store(&self, tx: &mut TenantTx) -> Result<(), sqlx::Error> {
        let tenant = tx.tenant().clone();
        sqlx::query(
            "insert into crm_asset (tenant_id, id, account_id, model, hashrate_ths, power_w, quantity, serial_number, \
             location, purchase_price_usd, electricity_cost_usd_kwh, notes, state, created_at, updated_at) \
             values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $14)",
        )
        .bind(tenant.as_str())
        .bind(self.asset_id)
        .bind(self.account_id)
        .bind(&self.model)
        .bind(self.hashrate_ths)
        .bind(self.power_w)
        .bind(self.quantity)
        .bind(&self.serial_number)
        .bind(&self.location)
        .bind(self.purchase_price_usd)
        .bind(self.electricity_cost_usd_kwh)
        .bind(&self.notes)
        .bind(self.state.as_str())
        .bind(self.created_at)
        .execute(tx.conn())
        .await
        .map(drop)
    }

    async fn overwrite(&self, tx: &mut TenantTx, caller: Caller<'_>) -> Result<(), sqlx::Error> {
        sqlx::query(
            "update crm_asset set model = $2, hashrate_ths = $3, power_w = $4, quantity = $5, serial_number = $6, \
             location = $7, purchase_price_usd = $8, electricity_cost_usd_kwh = $9, notes = $10, updated_at = $11 \
             where id = $1",
        )
        .bind(self.asset_id)
        .bind(&self.model)
        .bind(self.hashrate_ths)
        .bind(self.power_w)
        .bind(self.quantity)
        .bind(&self.serial_number)
        .bind(&self.location)
        .bind(self.purchase_price_usd)
        .bind(self.electricity_cost_usd_kwh)
        .bind(&self.notes)
        .bind(caller.now)
        .execute(tx.conn())
        .await
        .map(drop)
    }
}
