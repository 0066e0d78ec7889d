//! I1: an acknowledged write is applied exactly once. I2: nothing is applied that was not committed, and nothing
//! committed that was refused. I8: however often a request is repeated under its key, it has one effect and one answer.

use std::collections::{BTreeMap, HashMap};

use uuid::Uuid;

use super::index::Index;
use super::tables::Event;
use super::{History, Op, Outcome, Violation};

pub(super) fn check(history: &History, index: &Index<'_>, found: &mut Vec<Violation>) {
    let by_key = by_key(history);
    for op in history.ops.iter().filter(|op| op.action.is_write()) {
        let caused = caused(op, index);
        match op.idempotency_key.as_deref().and_then(|key| by_key.get(&(op.tenant.as_str(), key))) {
            None => outcome(op, caused, found),
            Some(ops) => outcome_of_key(op, ops, index, found),
        }
        for event in caused {
            applied(event, op, index, found);
        }
    }
    nobody_asked(history, index, found);
    once(history, found);
    audited(history, index, found);
    for ((_, key), ops) in by_key {
        repeated(key, &ops, index, found);
    }
}

fn caused<'a>(op: &Op, index: &'a Index<'_>) -> &'a [&'a Event] {
    index.by_request.get(op.request_id.as_str()).map_or(&[], Vec::as_slice)
}

/// What the client was told against what was committed.
fn outcome(op: &Op, caused: &[&Event], found: &mut Vec<Violation>) {
    let ids = || caused.iter().map(|e| e.id);
    match &op.outcome {
        Outcome::Ok { .. } => match op.event_id() {
            Some(id) if caused.iter().all(|e| e.id != id) => found.push(
                Violation::new("I1", "an acknowledged write left no event").of([id]).of(ids()).because(op),
            ),
            None if !caused.is_empty() => found.push(
                Violation::new("I2", "a write that was said to change nothing left an event")
                    .of(ids())
                    .because(op),
            ),
            _ if caused.len() > 1 => found.push(
                Violation::new("I1", "an acknowledged write left several events").of(ids()).because(op),
            ),
            _ => {}
        },
        Outcome::Fail { .. } if !caused.is_empty() => {
            found.push(Violation::new("I2", "a failed write left an event").of(ids()).because(op));
        }
        Outcome::Info { .. } if caused.len() > 1 => found.push(
            Violation::new("I1", "a write of unknown outcome took effect several times")
                .of(ids())
                .because(op),
        ),
        Outcome::Fail { .. } | Outcome::Info { .. } => {}
    }
}

/// Committed is committed, whatever the client knows of it: the event must have been applied. No event of a run
/// deserves to die.
fn applied(event: &Event, op: &Op, index: &Index<'_>, found: &mut Vec<Violation>) {
    let what = match index.inbox.get(&event.id).map(|row| row.outcome.as_str()) {
        Some("applied" | "superseded") => return,
        Some("dead") => "a good event is a dead letter",
        Some(_) => "a committed event was not applied",
        None => "a committed event never reached the group",
    };
    found.push(
        Violation::new("I1", what)
            .of([event.id])
            .because(op)
            .because(event)
            .because(index.first.get(&event.id))
            .because(index.dead.get(&event.id))
            .because(index.parked.get(&event.id)),
    );
}

fn nobody_asked(history: &History, index: &Index<'_>, found: &mut Vec<Violation>) {
    for event in &history.tables.outbox {
        if !index.ops.get(event.request_id()).is_some_and(|op| op.action.is_write()) {
            found.push(
                Violation::new("I2", "an event that no request asked for").of([event.id]).because(event),
            );
        }
    }
    for (id, row) in &index.inbox {
        if !index.events.contains_key(id) {
            found.push(
                Violation::new("I2", "an applied event that was never committed").of([*id]).because(row),
            );
        }
    }
    for (id, record) in &index.first {
        if !index.events.contains_key(id) {
            found.push(
                Violation::new("I2", "a published event that was never committed").of([*id]).because(record),
            );
        }
    }
    for miner in &history.tables.miners {
        if !index.added.contains_key(miner.id.to_string().as_str()) {
            found.push(Violation::new("I2", "a miner without the event of its coming").because(miner));
        }
    }
}

/// The inbox has one row an event; the witness tells whether it had one all the time.
fn once(history: &History, found: &mut Vec<Violation>) {
    let mut times: BTreeMap<(&str, Uuid), usize> =
        history.tables.inbox.iter().map(|r| ((r.consumer_name.as_str(), r.event_id), 0)).collect();
    for admitted in &history.witness.admitted {
        *times.entry((&admitted.consumer_name, admitted.event_id)).or_default() += 1;
    }
    for ((consumer, id), times) in times {
        if times != 1 {
            let rows = history.witness.admitted.iter().filter(|a| a.event_id == id);
            let what = format!("an event was admitted {times} times to {consumer}");
            found.push(rows.fold(Violation::new("I1", what).of([id]), Violation::because));
        }
    }
}

/// State, event and audit row come and go together.
fn audited(history: &History, index: &Index<'_>, found: &mut Vec<Violation>) {
    let mut rows: HashMap<Uuid, usize> = HashMap::new();
    for row in &history.tables.audit {
        let event = row.event_id.and_then(|id| index.events.get(&id));
        match event {
            Some(event) if Some(event.request_id()) == row.request_id.as_deref() => {
                *rows.entry(event.id).or_default() += 1;
            }
            _ => found
                .push(Violation::new("I2", "an audit row without its event").of(row.event_id).because(row)),
        }
    }
    for event in &history.tables.outbox {
        if rows.get(&event.id) != Some(&1) {
            found.push(
                Violation::new("I2", "an event without its one audit row").of([event.id]).because(event),
            );
        }
    }
}

/// The requests of each tenant under each of its keys.
fn by_key(history: &History) -> BTreeMap<(&str, &str), Vec<&Op>> {
    let mut by_key: BTreeMap<(&str, &str), Vec<&Op>> = BTreeMap::new();
    for op in &history.ops {
        if let Some(key) = &op.idempotency_key {
            by_key.entry((&op.tenant, key)).or_default().push(op);
        }
    }
    by_key
}

/// The answer may name what an earlier request of the key did.
fn outcome_of_key(op: &Op, ops: &[&Op], index: &Index<'_>, found: &mut Vec<Violation>) {
    let caused = || ops.iter().flat_map(|op| caused(op, index));
    if let Some(id) = op.event_id().filter(|id| caused().all(|event| event.id != *id)) {
        found.push(Violation::new("I1", "an acknowledged write left no event").of([id]).because(op));
    }
}

fn repeated(key: &str, ops: &[&Op], index: &Index<'_>, found: &mut Vec<Violation>) {
    let caused: Vec<Uuid> = ops.iter().flat_map(|op| caused(op, index)).map(|event| event.id).collect();
    if caused.len() > 1 {
        let what = format!("{} effects of the idempotency key {key}", caused.len());
        found.push(ops.iter().fold(Violation::new("I8", what).of(caused), Violation::because));
    }
    let mut answers = ops.iter().filter(|op| matches!(op.outcome, Outcome::Ok { .. }));
    if let Some(one) = answers.next()
        && let Some(other) = answers.find(|other| other.outcome != one.outcome)
    {
        let what = format!("two answers to the idempotency key {key}");
        found.push(Violation::new("I8", what).because(one).because(other));
    }
}
