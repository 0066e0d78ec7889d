//! Owns how a new miner is read from the fields of POST /api/miners, alone or as a row of a batch.
//! Promises the same rules for both; what the catalogue knows of a model fills in what was not given.
//! Called by the commands that add miners.

use uuid::Uuid;

use super::fields::{self, Fields};
use super::{Miner, STATUS, Status};
use crate::domain::miner_model::MinerModel;
use crate::domain::{Caller, FieldError, Input};
use crate::economics::MinerStatus;

/// What was given, before the catalogue is asked.
pub(super) struct NewMiner {
    given: Fields,
    /// Whose figures to look up.
    pub(super) model: Option<String>,
}

impl NewMiner {
    pub(super) fn read(input: &mut Input<'_>) -> Self {
        let given = Fields::read(input);
        let model = input.required(fields::MODEL, given.model.clone());
        Self { given, model }
    }

    /// The miner, pending, with what the catalogue says about its model; nothing where a field was refused.
    pub(super) fn complete(
        self,
        input: &mut Input<'_>,
        caller: Caller<'_>,
        known: Option<&MinerModel>,
    ) -> Option<Miner> {
        let Self { given, model } = self;
        let hashrate = fields::figure(input, fields::HASHRATE, &given.hashrate_ths, model.as_deref(), || {
            known.map(|m| m.hashrate_ths)
        });
        let power = fields::figure(input, fields::POWER, &given.power_w, model.as_deref(), || {
            known.map(|m| m.power_w)
        });
        Some(Miner {
            miner_id: Uuid::now_v7(),
            owner_id: given.owner_id.value().unwrap_or_else(|| caller.actor.clone()),
            model: model?,
            hashrate_ths: hashrate?,
            power_w: power?,
            quantity: given.quantity.value().unwrap_or(1),
            location: given.location.value(),
            purchase_price_usd: given.purchase_price_usd.value(),
            electricity_cost_usd_kwh: given.electricity_cost_usd_kwh.value(),
            status: Status(MinerStatus::Pending),
            status_reason: None,
            created_at: caller.now,
            updated_at: caller.now,
        })
    }
}

/// The miner with the status that was given, or every field at fault.
pub(super) fn finished(mut input: Input<'_>, miner: Option<Miner>) -> Result<Miner, Vec<FieldError>> {
    let status = input.choice(STATUS).value().unwrap_or(MinerStatus::Pending);
    input.finish()?;
    miner.map(|miner| Miner { status: Status(status), ..miner }).ok_or_else(Vec::new)
}
