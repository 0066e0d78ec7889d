//! The life of each miner, told by its events in the order of position.

use std::collections::BTreeMap;

use hashinsight::event::kind;
use rust_decimal::Decimal;
use serde_json::Value;

use super::index::Index;
use super::tables::{Event, Miner};
use super::{Action, History};

/// A miner after one of its events.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct State {
    pub(super) owner: String,
    pub(super) model: String,
    pub(super) quantity: Option<i64>,
    pub(super) hashrate_ths: Option<Decimal>,
    pub(super) power_w: Option<Decimal>,
    pub(super) status: String,
    pub(super) removed: bool,
}

/// What one owner's portfolio shows of a miner: how many there are, how many are online, and their hashrate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Shown {
    pub(super) total: Option<i64>,
    pub(super) online: Option<i64>,
    pub(super) hashrate_ths: Option<Decimal>,
}

/// An event and the state it left, or what in it contradicts the state before.
pub(super) struct Step<'a> {
    pub(super) event: &'a Event,
    pub(super) state: State,
    pub(super) contradiction: Option<String>,
}

/// Every miner's life, by its id.
pub(super) fn lives<'a>(history: &'a History, index: &Index<'a>) -> BTreeMap<&'a str, Vec<Step<'a>>> {
    let mut lives: BTreeMap<&str, Vec<Step<'_>>> = BTreeMap::new();
    let about_a_miner =
        |e: &&Event| e.event_type.starts_with("miner.") && e.event_type != kind::MINER_SYNC_REQUESTED;
    for event in history.tables.outbox.iter().filter(about_a_miner) {
        let life = lives.entry(&event.aggregate_id).or_default();
        let step = match life.last() {
            None => first(event, index),
            Some(before) => next(event, &before.state),
        };
        life.push(step);
    }
    lives
}

fn first<'a>(event: &'a Event, index: &Index<'a>) -> Step<'a> {
    let data = &event.payload["data"];
    // The event does not tell the status: the request did.
    let asked = match index.ops.get(event.request_id()).map(|op| &op.action) {
        Some(Action::Add { body }) => body["status"].as_str(),
        _ => None,
    };
    let state = State {
        owner: event.user_id.clone(),
        model: data["model"].as_str().unwrap_or_default().to_owned(),
        quantity: data["quantity"].as_i64(),
        hashrate_ths: decimal(&data["hashrate_ths"]),
        power_w: decimal(&data["power_w"]),
        status: asked.unwrap_or("pending").to_owned(),
        removed: false,
    };
    let contradiction = (event.event_type != kind::MINER_ADDED).then(|| "it was never added".to_owned());
    Step { event, state, contradiction }
}

fn next<'a>(event: &'a Event, before: &State) -> Step<'a> {
    let (data, mut state, mut contradiction) = (&event.payload["data"], before.clone(), None);
    let mut must = |what: &str, holds: bool| {
        if !holds && contradiction.is_none() {
            contradiction = Some(format!("{what} before is another: {before:?}"));
        }
    };
    must("what was removed", !before.removed);
    match event.event_type.as_str() {
        kind::MINER_STATUS_CHANGED => {
            must("the status", data["old_status"] == before.status.as_str());
            state.status = data["new_status"].as_str().unwrap_or_default().to_owned();
        }
        kind::MINER_REMOVED => state.removed = true,
        kind::MINER_UPDATED => {
            for (field, change) in data["changes"].as_object().into_iter().flatten() {
                let (old, new) = (&change["old"], &change["new"]);
                match field.as_str() {
                    "owner_id" => {
                        must("the owner", *old == before.owner.as_str());
                        state.owner = new.as_str().unwrap_or_default().to_owned();
                    }
                    "quantity" => {
                        must("the quantity", old.as_i64() == before.quantity);
                        state.quantity = new.as_i64();
                    }
                    "hashrate_ths" => {
                        must("the hashrate", decimal(old) == before.hashrate_ths);
                        state.hashrate_ths = decimal(new);
                    }
                    "power_w" => {
                        must("the power", decimal(old) == before.power_w);
                        state.power_w = decimal(new);
                    }
                    _ => {}
                }
            }
        }
        other => must(&format!("a miner that has the event {other}"), false),
    }
    Step { event, state, contradiction }
}

/// A number of any length, without its trailing zeros.
pub(super) fn decimal(value: &Value) -> Option<Decimal> {
    let text = match value {
        Value::Number(number) => number.to_string(),
        Value::String(text) => text.clone(),
        _ => return None,
    };
    let exact = text.parse::<Decimal>().or_else(|_| Decimal::from_scientific(&text));
    exact.ok().map(|d| d.normalize())
}

impl State {
    pub(super) fn of(row: &Miner) -> Self {
        Self {
            owner: row.owner_id.clone(),
            model: row.model.clone(),
            quantity: Some(row.quantity.into()),
            hashrate_ths: Some(row.hashrate_ths.normalize()),
            power_w: Some(row.power_w.normalize()),
            status: row.status.clone(),
            removed: row.removed,
        }
    }

    /// What the portfolio of an owner shows of it.
    pub(super) fn shown_to(&self, owner: &str) -> Option<Shown> {
        if self.removed || self.owner != owner || self.status == "decommissioned" {
            return None;
        }
        let online = self.status == "online";
        let hashrate = self.hashrate_ths.zip(self.quantity).map(|(each, n)| each * Decimal::from(n));
        Some(Shown {
            total: self.quantity,
            online: if online { self.quantity } else { Some(0) },
            hashrate_ths: if online { hashrate.map(|h| h.normalize()) } else { Some(Decimal::ZERO) },
        })
    }
}

impl Shown {
    /// A row of by_model.
    pub(super) fn of(row: &Value) -> Self {
        Self {
            total: row["miners_total"].as_i64(),
            online: row["miners_online"].as_i64(),
            hashrate_ths: decimal(&row["hashrate_ths"]),
        }
    }
}
