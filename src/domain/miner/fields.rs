//! Owns the fields of a miner: their names, limits, defaults, and how two states of one differ.
//! Promises the same rules for every command that takes them.
//! Called by the commands on miners, and on the assets that become miners.

use rust_decimal::Decimal;
use serde_json::{Map, Value, json};
use sqlx::PgConnection;

use super::Miner;
use crate::domain::input::{Given, Low, Names};
use crate::domain::{Input, miner_model};
use crate::identifier::UserId;

pub(super) const MODEL: Names = &["model", "model_name"];
pub(super) const HASHRATE: Names = &["hashrate_ths", "hashrate"];
pub(super) const POWER: Names = &["power_w", "power_consumption", "power"];
const QUANTITY: Names = &["quantity"];
const OWNER: Names = &["owner_id"];
const LOCATION: Names = &["location"];
const PRICE: Names = &["purchase_price_usd", "purchase_price"];
const TARIFF: Names = &["electricity_cost_usd_kwh", "electricity_cost"];

const MAX_HASHRATE_THS: Decimal = whole(10_000);
const MAX_POWER_W: Decimal = whole(100_000);
const MAX_QUANTITY: i64 = 100_000;
const MAX_PRICE_USD: Decimal = whole(1_000_000_000);
const MAX_TARIFF_USD_KWH: Decimal = Decimal::TEN;
const LONGEST_MODEL: usize = 100;
const LONGEST_LOCATION: usize = 200;

const fn whole(n: u32) -> Decimal {
    Decimal::from_parts(n, 0, 0, false, 0)
}

/// The fields that POST and PATCH share, as they were given.
pub(in crate::domain) struct Fields {
    pub(super) model: Given<String>,
    pub(super) hashrate_ths: Given<Decimal>,
    pub(super) power_w: Given<Decimal>,
    pub(super) quantity: Given<i32>,
    pub(super) owner_id: Given<UserId>,
    pub(super) location: Given<String>,
    pub(super) purchase_price_usd: Given<Decimal>,
    pub(super) electricity_cost_usd_kwh: Given<Decimal>,
}

impl Fields {
    pub(in crate::domain) fn read(input: &mut Input<'_>) -> Self {
        let zero = Decimal::ZERO;
        Self {
            model: input.text(MODEL, LONGEST_MODEL),
            hashrate_ths: input.decimal(HASHRATE, Low::Above(zero), MAX_HASHRATE_THS),
            power_w: input.decimal(POWER, Low::Above(zero), MAX_POWER_W),
            quantity: match input.integer(QUANTITY, 1..=MAX_QUANTITY) {
                Given::Value(n) => i32::try_from(n).map_or(Given::Absent, Given::Value),
                Given::Null => Given::Null,
                Given::Absent => Given::Absent,
            },
            owner_id: input.identifier(OWNER),
            location: input.text(LOCATION, LONGEST_LOCATION),
            purchase_price_usd: input.decimal(PRICE, Low::From(zero), MAX_PRICE_USD),
            electricity_cost_usd_kwh: input.decimal(TARIFF, Low::From(zero), MAX_TARIFF_USD_KWH),
        }
    }

    /// The miner after the change.
    pub(in crate::domain) async fn apply(
        self,
        input: &mut Input<'_>,
        conn: &mut PgConnection,
        old: &Miner,
    ) -> Result<Miner, sqlx::Error> {
        let mut new = old.clone();
        new.model = input.kept(MODEL, self.model, &old.model);
        new.quantity = input.kept(QUANTITY, self.quantity, &old.quantity);
        new.owner_id = input.kept(OWNER, self.owner_id, &old.owner_id);
        new.location = self.location.cleared(&old.location);
        new.purchase_price_usd = self.purchase_price_usd.cleared(&old.purchase_price_usd);
        new.electricity_cost_usd_kwh = self.electricity_cost_usd_kwh.cleared(&old.electricity_cost_usd_kwh);
        let from_catalogue = self.hashrate_ths == Given::Null || self.power_w == Given::Null;
        let known = if from_catalogue { miner_model::find(conn, &new.model).await? } else { None };
        if self.hashrate_ths != Given::Absent {
            let rated = || known.as_ref().map(|m| m.hashrate_ths);
            let hashrate = figure(input, HASHRATE, &self.hashrate_ths, Some(&new.model), rated);
            new.hashrate_ths = hashrate.unwrap_or(old.hashrate_ths);
        }
        if self.power_w != Given::Absent {
            let rated = || known.as_ref().map(|m| m.power_w);
            let power = figure(input, POWER, &self.power_w, Some(&new.model), rated);
            new.power_w = power.unwrap_or(old.power_w);
        }
        Ok(new)
    }
}

/// A figure as given, or else from the catalogue; a model that the catalogue does not know needs it given.
pub(super) fn figure(
    input: &mut Input<'_>,
    names: Names,
    given: &Given<Decimal>,
    model: Option<&str>,
    rated: impl Fn() -> Option<Decimal>,
) -> Option<Decimal> {
    match given {
        Given::Value(value) => Some(*value),
        // What is wrong with the figure or the model was said already.
        _ if input.refused(names) => None,
        _ => {
            let rated = rated();
            if let (None, Some(model)) = (rated, model) {
                let message = format!(
                    "is required: the catalogue has no model {model:?} (GET /api/miner-models lists those it has)"
                );
                input.refuse(names[0], message);
            }
            rated
        }
    }
}

/// Each field that differs, as `{"old", "new"}`.
pub(super) fn changes(old: &Miner, new: &Miner) -> Map<String, Value> {
    let mut changes = Map::new();
    let mut compare = |name: &str, old: Value, new: Value| {
        if old != new {
            changes.insert(name.to_owned(), json!({"old": old, "new": new}));
        }
    };
    // Through `normalize`, because 5 and 5.0 are the same value and different JSON.
    let decimal = |d: Decimal| json!(d.normalize());
    let optional = |d: Option<Decimal>| json!(d.map(|d| d.normalize()));
    compare("model", json!(old.model), json!(new.model));
    compare("hashrate_ths", decimal(old.hashrate_ths), decimal(new.hashrate_ths));
    compare("power_w", decimal(old.power_w), decimal(new.power_w));
    compare("quantity", json!(old.quantity), json!(new.quantity));
    compare("owner_id", json!(old.owner_id), json!(new.owner_id));
    compare("location", json!(old.location), json!(new.location));
    compare("purchase_price_usd", optional(old.purchase_price_usd), optional(new.purchase_price_usd));
    compare(
        "electricity_cost_usd_kwh",
        optional(old.electricity_cost_usd_kwh),
        optional(new.electricity_cost_usd_kwh),
    );
    changes
}
