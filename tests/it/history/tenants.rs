//! I7: the tenant of an effect is the tenant of its event.

use uuid::Uuid;

use super::index::Index;
use super::{Action, History, Outcome, Violation};

pub(super) fn check(history: &History, index: &Index<'_>, found: &mut Vec<Violation>) {
    let tables = &history.tables;
    let mut effect = |what: &str, event: Option<Uuid>, tenant: &str| {
        let of = event.and_then(|id| index.events.get(&id));
        if let Some(of) = of.filter(|of| of.tenant_id != tenant) {
            let what = format!("{what} of the tenant {tenant} comes from an event of {}", of.tenant_id);
            found.push(Violation::new("I7", what).of(event).because(of));
        }
    };
    for row in &tables.inbox {
        effect("a row of the inbox", Some(row.event_id), &row.tenant_id);
    }
    for row in &tables.parked {
        effect("a waiting event", Some(row.event_id), &row.tenant_id);
    }
    for row in &tables.dead {
        if let Some(tenant) = &row.tenant_id {
            effect("a dead letter", row.event_id, tenant);
        }
    }
    for row in &tables.audit {
        effect("an audit row", row.event_id, &row.tenant_id);
    }
    for record in history.topics.0.values().flatten() {
        let of_key = record.key.as_deref().and_then(|key| key.split(':').next());
        for tenant in
            [of_key, record.tenant_id.as_deref(), record.value_tenant_id.as_deref()].into_iter().flatten()
        {
            effect("a record", record.event_id, tenant);
        }
    }
    for row in &history.witness.recomputed {
        effect("a portfolio", Some(row.event_id), &row.tenant_id);
    }
    for op in &history.ops {
        // Whom the client was shown.
        if let (Action::Read { .. }, Outcome::Ok { body, .. }) = (&op.action, &op.outcome) {
            effect("an answer", body["data"]["event_id"].as_str().and_then(|t| t.parse().ok()), &op.tenant);
        }
    }
    asked_by_another(history, index, found);
    owners(history, index, found);
}

/// The tenant of an event is the tenant of whoever asked for it.
fn asked_by_another(history: &History, index: &Index<'_>, found: &mut Vec<Violation>) {
    for event in &history.tables.outbox {
        let op = index.ops.get(event.request_id());
        if let Some(op) = op.filter(|op| op.tenant != event.tenant_id) {
            found.push(
                Violation::new("I7", "an event of a tenant that did not ask")
                    .of([event.id])
                    .because(op)
                    .because(event),
            );
        }
    }
    for miner in &history.tables.miners {
        let added = index.added.get(miner.id.to_string().as_str());
        if let Some(added) = added.filter(|added| added.tenant_id != miner.tenant_id) {
            found.push(
                Violation::new("I7", "a miner in another tenant than its event")
                    .of([added.id])
                    .because(miner),
            );
        }
    }
}

/// A portfolio follows from an event about its owner, or about the network.
fn owners(history: &History, index: &Index<'_>, found: &mut Vec<Violation>) {
    for row in &history.witness.recomputed {
        let Some(event) = index.events.get(&row.event_id) else { continue };
        let concerns =
            event.event_type == "network.snapshot" || event.owners().any(|owner| owner == row.user_id);
        if !concerns {
            let what = format!("the portfolio of {} follows from an event about another", row.user_id);
            found.push(Violation::new("I7", what).of([event.id]).because(row).because(event));
        }
    }
}
