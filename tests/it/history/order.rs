//! I4: per aggregate the log (first occurrences) and the applied sequence go by position. Replayed dead letters and
//! superseded outcomes are aside; so is an aggregate that changed its key, see [`Event::aggregate`].
//!
//! [`Event::aggregate`]: super::tables::Event::aggregate

use std::collections::{HashMap, HashSet};

use uuid::Uuid;

use super::index::Index;
use super::{History, Violation};

pub(super) fn check(history: &History, index: &Index<'_>, found: &mut Vec<Violation>) {
    for (lane, records) in &history.topics.0 {
        let mut seen = HashSet::new();
        let first = records.iter().filter_map(|r| r.event_id).filter(|id| seen.insert(*id));
        increasing(&format!("in the log {}/{}", lane.0, lane.1), first, index, found);
    }
    let aside: HashSet<Uuid> = history.witness.settled.iter().map(|s| s.event_id).collect();
    let applied = history.witness.admitted.iter().filter(|a| a.consumer_name == history.group);
    let in_order = applied.map(|a| a.event_id).filter(|id| {
        !aside.contains(id) && index.inbox.get(id).is_none_or(|row| row.outcome != "superseded")
    });
    increasing("as applied", in_order, index, found);
}

fn increasing(place: &str, ids: impl Iterator<Item = Uuid>, index: &Index<'_>, found: &mut Vec<Violation>) {
    let mut last = HashMap::new();
    for event in ids.filter_map(|id| index.events.get(&id)) {
        if let Some(before) = last.insert(event.aggregate(), *event)
            && before.position >= event.position
        {
            let what = format!("{place}, position {} comes before {}", before.position, event.position);
            found.push(Violation::new("I4", what).of([before.id, event.id]).because(before).because(event));
        }
    }
}
