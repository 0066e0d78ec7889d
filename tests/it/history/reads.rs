//! I3, as a client sees it: a read after a write shows it, or something that came later; versions do not go back; and
//! what was acknowledged is there from then on.

use std::collections::BTreeMap;

use hashinsight::event::kind;
use serde_json::Value;

use super::fleet::{Shown, Step, lives};
use super::index::Index;
use super::tables::Event;
use super::{Action, History, Op, Outcome, Violation};

pub(super) fn check(history: &History, index: &Index<'_>, found: &mut Vec<Violation>) {
    let lives = lives(history, index);
    let mut versions: BTreeMap<(&str, &str), Vec<(&Op, i64)>> = BTreeMap::new();
    for op in &history.ops {
        match (&op.action, &op.outcome) {
            (Action::Read { owner, after: Some(after) }, Outcome::Ok { body, .. }) => {
                versions
                    .entry((&op.tenant, owner))
                    .or_default()
                    .push((op, body["data"]["version"].as_i64().unwrap_or(-1)));
                let Some(event) = index.events.get(after) else { continue };
                if event.event_type == kind::NETWORK_SNAPSHOT {
                    shows_snapshot(history, op, event, &body["data"], found);
                } else if let Some(life) = lives.get(event.aggregate_id.as_str()) {
                    shows(op, owner, event, life, &body["data"], index, found);
                }
            }
            (Action::Read { after: Some(after), .. }, Outcome::Fail { status: Some(_), why }) => {
                found.push(
                    Violation::new("I3", format!("a read after an acknowledged write was refused: {why}"))
                        .of([*after])
                        .because(op),
                );
            }
            (action, Outcome::Fail { status: Some(404), .. }) => {
                if let Some(life) = action.miner().and_then(|id| lives.get(id.to_string().as_str())) {
                    there(op, life, index, found);
                }
            }
            _ => {}
        }
    }
    for ((tenant, owner), mut reads) in versions {
        monotonic(tenant, owner, &mut reads, found);
    }
}

/// The row of the written miner is in one of the states from that write on, up to what was asked for before the answer.
fn shows(
    op: &Op,
    owner: &str,
    event: &Event,
    life: &[Step<'_>],
    data: &Value,
    index: &Index<'_>,
    found: &mut Vec<Violation>,
) {
    let rows = || data["by_model"].as_array().into_iter().flatten();
    let model = &life[0].state.model;
    let shown = rows().find(|row| row["model"] == model.as_str()).map(Shown::of);
    let asked_in_time = |step: &&Step<'_>| {
        index.ops.get(step.event.request_id()).is_some_and(|asked| asked.invoked <= op.completed)
    };
    let allowed: Vec<Option<Shown>> = life
        .iter()
        .skip_while(|step| step.event.id != event.id)
        .filter(asked_in_time)
        .map(|step| step.state.shown_to(owner))
        .collect();
    if !allowed.contains(&shown) {
        let what = format!(
            "a read after a write does not show it: the model {model} is {shown:?}, allowed {allowed:?}"
        );
        found.push(Violation::new("I3", what).of([event.id]).because(op).because(event));
    }
}

/// The snapshot of the answer is the written one or a newer one.
fn shows_snapshot(history: &History, op: &Op, event: &Event, data: &Value, found: &mut Vec<Violation>) {
    let of_tenant = history.tables.snapshots.iter().filter(|s| s.tenant_id == op.tenant);
    // The newest first.
    let place = |id: &str| of_tenant.clone().position(|s| s.id.to_string() == id);
    let shown = data["snapshot_id"].as_str();
    // An owner without miners and without a portfolio has nothing to recompute.
    let exists = data["version"].as_i64().is_some_and(|version| version > 0);
    let written = event.payload["data"]["snapshot_id"].as_str().and_then(place);
    if exists && shown.and_then(place).is_none_or(|shown| Some(shown) > written) {
        let what = format!("a read after a snapshot shows {shown:?}, which is older");
        found.push(Violation::new("I3", what).of([event.id]).because(op));
    }
}

/// A miner that was there before the request and not removed by any request until its answer is found.
fn there(op: &Op, life: &[Step<'_>], index: &Index<'_>, found: &mut Vec<Violation>) {
    let asked = |step: &Step<'_>| index.ops.get(step.event.request_id()).copied();
    let known =
        asked(&life[0]).is_some_and(|added| added.completed <= op.invoked && added.event_id().is_some());
    let removed =
        life.iter().any(|step| step.state.removed && asked(step).is_none_or(|by| by.invoked <= op.completed));
    if known && !removed {
        let events = life.iter().map(|s| s.event.id);
        found.push(Violation::new("I3", "a miner that was acknowledged is not found").of(events).because(op));
    }
}

/// Reads that do not overlap in time see versions that do not go back.
fn monotonic(tenant: &str, owner: &str, reads: &mut [(&Op, i64)], found: &mut Vec<Violation>) {
    reads.sort_by_key(|(op, _)| op.completed);
    let mut by_start: Vec<_> = reads.to_vec();
    by_start.sort_by_key(|(op, _)| op.invoked);
    let mut ended = reads.iter().peekable();
    let mut newest: Option<(&Op, i64)> = None;
    for (op, version) in by_start {
        while let Some(before) = ended.next_if(|(before, _)| before.completed < op.invoked) {
            newest = newest.filter(|(_, n)| *n >= before.1).or(Some(*before));
        }
        if let Some((before, newer)) = newest.filter(|(_, newest)| *newest > version) {
            let what =
                format!("the portfolio of {tenant}/{owner} went back from version {newer} to {version}");
            found.push(Violation::new("I3", what).because(before).because(op));
        }
    }
}
