//! I6: applied + dead + waiting = published, pairwise disjoint; published + set aside = committed.

use std::collections::HashSet;

use hashinsight::dead_letter::PUBLISHER;

use super::index::Index;
use super::{History, Violation};

pub(super) fn check(history: &History, index: &Index<'_>, found: &mut Vec<Violation>) {
    committed(history, index, found);
    let tables = &history.tables;
    let lanes: HashSet<(&str, i32)> = tables
        .offsets
        .iter()
        .filter(|o| o.consumer_name == history.group)
        .map(|o| (o.topic.as_str(), o.partition))
        .collect();
    for ((topic, partition), records) in &history.topics.0 {
        if !lanes.contains(&(topic.as_str(), *partition)) {
            continue;
        }
        for record in records {
            let Some(id) = record.event_id.filter(|id| record.value_event_id == Some(*id)) else {
                let buried = tables.dead.iter().any(|d| {
                    (&d.topic, d.partition, d.log_offset) == (topic, *partition, record.offset)
                        && d.consumer_name == history.group
                });
                if !buried {
                    let what = format!("a record of {topic}/{partition} is no event and no dead letter");
                    found.push(Violation::new("I6", what).because(record));
                }
                continue;
            };
            if !index.inbox.contains_key(&id) {
                let what = format!("a record of {topic}/{partition} was passed over");
                found.push(Violation::new("I6", what).of([id]).because(record));
            }
        }
    }
    for (id, row) in &index.inbox {
        let (waits, dead) = (index.parked.get(id), index.dead.get(id));
        let open = dead.is_some_and(|d| ["dead", "replaying"].contains(&d.status.as_str()));
        let agrees = match row.outcome.as_str() {
            "applied" | "superseded" => waits.is_none() && !open,
            "parked" => waits.is_some() && dead.is_none_or(|d| d.status != "dead"),
            "dead" => waits.is_none() && open,
            _ => waits.is_none() && dead.is_some_and(|d| d.status == "discarded"),
        };
        if !agrees {
            let what = format!(
                "an event is {} in the inbox and elsewhere in another place, or in none",
                row.outcome
            );
            found.push(Violation::new("I6", what).of([*id]).because(row).because(waits).because(dead));
        }
        if !index.first.contains_key(id) {
            found.push(
                Violation::new("I6", "an event was received that is not in the log").of([*id]).because(row),
            );
        }
    }
    for id in index.parked.keys().chain(index.dead.keys()).filter(|id| !index.inbox.contains_key(id)) {
        found.push(Violation::new("I6", "an event waits or is dead and is not in the inbox").of([*id]));
    }
}

/// Nothing that was committed is missing from the log, and nothing that is there was also set aside.
fn committed(history: &History, index: &Index<'_>, found: &mut Vec<Violation>) {
    let tables = &history.tables;
    let stuck: HashSet<i64> = tables.stuck.iter().copied().collect();
    let refused: HashSet<_> =
        tables.dead.iter().filter(|d| d.consumer_name == PUBLISHER).filter_map(|d| d.event_id).collect();
    for event in &tables.outbox {
        let places = [
            index.first.contains_key(&event.id),
            stuck.contains(&event.position),
            refused.contains(&event.id),
        ];
        let what = match places.iter().filter(|there| **there).count() {
            1 => continue,
            0 => "a committed event was not published",
            _ => "an event was published and also set aside",
        };
        found.push(Violation::new("I6", what).of([event.id]).because(event));
    }
}
