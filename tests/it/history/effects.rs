//! I3: every event adds its element to the set of its owner, and nothing else does. Each miner of a run has a model of
//! its own, so a portfolio is such a set. The miners follow from the events, the portfolios from the miners.

use std::collections::{BTreeMap, BTreeSet};

use hashinsight::economics::{MinerLine, Network, portfolio};
use rust_decimal::Decimal;
use serde_json::{Value, json};
use uuid::Uuid;

use super::fleet::{State, decimal, lives};
use super::index::Index;
use super::tables::{Miner, Snapshot};
use super::{History, Violation};

/// The figures of a portfolio, under the names of their columns.
const FIGURES: [&str; 18] = [
    "miners_total",
    "miners_online",
    "hashrate_ths",
    "effective_hashrate_ths",
    "power_kw",
    "efficiency_j_th",
    "gross_btc_day",
    "net_btc_day",
    "revenue_usd_day",
    "power_cost_usd_day",
    "profit_usd_day",
    "hashprice_usd_ph_day",
    "break_even_tariff_usd_kwh",
    "break_even_btc_price_usd",
    "capex_usd",
    "payback_days",
    "dynamic_payback_days",
    "roi_percent",
];

pub(super) fn check(history: &History, index: &Index<'_>, found: &mut Vec<Violation>) {
    miners(history, index, found);
    let stored: BTreeMap<(&str, &str), &Value> = history
        .tables
        .portfolios
        .iter()
        .map(|row| ((text(row, "tenant_id"), text(row, "user_id")), row))
        .collect();
    let mut owners: BTreeSet<(&str, &str)> = stored.keys().copied().collect();
    for event in history.tables.outbox.iter().filter(|e| e.event_type.starts_with("miner.")) {
        owners.extend(event.owners().map(|owner| (event.tenant_id.as_str(), owner)));
    }
    for owner in owners {
        match stored.get(&owner) {
            Some(row) => figures(history, owner, row, found),
            None => found.push(Violation::new("I3", format!("{owner:?} has no portfolio"))),
        }
    }
}

/// The rows of record against the story of the events.
fn miners(history: &History, index: &Index<'_>, found: &mut Vec<Violation>) {
    let mut lives = lives(history, index);
    for step in lives.values().flatten() {
        if let Some(contradiction) = &step.contradiction {
            found.push(Violation::new("I3", contradiction.as_str()).of([step.event.id]).because(step.event));
        }
    }
    for row in &history.tables.miners {
        let life = lives.remove(row.id.to_string().as_str()).unwrap_or_default();
        let told = life.last().map(|step| &step.state);
        if told != Some(&State::of(row)) {
            found.push(
                Violation::new("I3", "a miner is not what its events tell")
                    .of(life.iter().map(|s| s.event.id))
                    .because(row)
                    .because(told),
            );
        }
    }
    for (miner, life) in lives {
        let events = life.iter().map(|s| s.event.id);
        found.push(
            Violation::new("I3", format!("the miner {miner} is gone, its events are there")).of(events),
        );
    }
}

/// A stored portfolio against one computed from the miners and the newest snapshot.
fn figures(history: &History, owner: (&str, &str), row: &Value, found: &mut Vec<Violation>) {
    let mine = |m: &&Miner| (m.tenant_id.as_str(), m.owner_id.as_str()) == owner && !m.removed;
    let lines: Vec<MinerLine> = history.tables.miners.iter().filter(mine).map(line).collect();
    let newest = history.tables.snapshots.iter().find(|s| s.tenant_id == owner.0);
    let computed = match portfolio(&lines, newest.map(network).as_ref(), &history.assumptions) {
        Ok(computed) => json!(computed),
        Err(error) => {
            found.push(Violation::new("I3", format!("the portfolio of {owner:?}: {error}")));
            return;
        }
    };
    let mut differ = |what: &str, stored: &Value, expected: &Value| {
        let what = format!("{what} of {owner:?} is {stored}, and {expected} by its {} miners", lines.len());
        found.push(Violation::new("I3", what).of(event_of(row)).because(text(row, "version")));
    };
    for figure in FIGURES {
        if decimal(&row[figure]) != decimal(&computed[figure]) {
            differ(figure, &row[figure], &computed[figure]);
        }
    }
    for set in ["by_model", "by_location", "warnings"] {
        if normal(&row[set]) != normal(&computed[set]) {
            differ(set, &row[set], &computed[set]);
        }
    }
    let snapshot = newest.map_or(Value::Null, |s| json!(s.id));
    if row["snapshot_id"] != snapshot {
        differ("snapshot_id", &row["snapshot_id"], &snapshot);
    }
}

fn line(row: &Miner) -> MinerLine {
    MinerLine {
        model: row.model.clone(),
        hashrate_ths: row.hashrate_ths,
        power_w: row.power_w,
        quantity: u64::try_from(row.quantity).unwrap_or_default(),
        purchase_price_usd: row.purchase_price_usd,
        tariff_usd_kwh: row.electricity_cost_usd_kwh,
        status: row.status.parse().expect("the table checks it"),
        location: row.location.clone(),
    }
}

fn network(row: &Snapshot) -> Network {
    Network {
        btc_price_usd: row.btc_price_usd,
        difficulty: row.difficulty,
        block_height: row.block_height.unsigned_abs(),
        fees_btc_per_block: row.fees_btc_per_block,
    }
}

fn text<'a>(row: &'a Value, name: &str) -> &'a str {
    row[name].as_str().unwrap_or_default()
}

fn event_of(row: &Value) -> Option<Uuid> {
    text(row, "event_id").parse().ok()
}

/// The same JSON with every number without its trailing zeros: 5 and 5.0 are one number.
fn normal(value: &Value) -> Value {
    match value {
        Value::Array(list) => list.iter().map(normal).collect(),
        Value::Object(fields) => fields.iter().map(|(name, value)| (name.clone(), normal(value))).collect(),
        Value::Number(_) => decimal(value).map_or_else(|| value.clone(), |d: Decimal| json!(d.to_string())),
        other => other.clone(),
    }
}
