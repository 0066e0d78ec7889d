//! I5: `next_offset` never goes back, has no gap and ends at the end of the log. I9: no offset is moved, and nothing
//! applied, but by the process that claimed the epoch.

use std::collections::{BTreeMap, HashSet};

use super::witness::Moved;
use super::{History, Violation};

pub(super) fn check(history: &History, found: &mut Vec<Violation>) {
    let mut moves: BTreeMap<(&str, &str, i32), Vec<&Moved>> = BTreeMap::new();
    for moved in &history.witness.moved {
        moves.entry((&moved.consumer_name, &moved.topic, moved.partition)).or_default().push(moved);
    }
    for offset in &history.tables.offsets {
        let lane = (offset.consumer_name.as_str(), offset.topic.as_str(), offset.partition);
        let moves = moves.get(&lane).map_or(&[][..], Vec::as_slice);
        chain(moves, found);
        let (next, epoch) = moves.last().map_or((0, 0), |last| (last.new_offset, last.new_epoch));
        if (next, epoch) != (offset.next_offset, offset.owner_epoch) {
            let what =
                format!("an offset that nobody moved there: offset {next} of epoch {epoch} is expected");
            found.push(Violation::new("I5", what).because(offset).because(moves.last()));
        }
        let records = history.topics.0.get(&(offset.topic.clone(), offset.partition));
        let end = records.and_then(|r| r.last()).map_or(0, |last| last.offset + 1);
        if offset.next_offset != end {
            let what = format!("at rest the next offset is not behind the last record, whose end is {end}");
            found.push(Violation::new("I5", what).because(offset));
        }
    }
    fenced(history, found);
}

fn chain(moves: &[&Moved], found: &mut Vec<Violation>) {
    let (mut next, mut epoch, mut owner) = (0, 0, "");
    for moved in moves {
        if moved.new_offset < moved.old_offset || moved.old_offset != next {
            let what =
                format!("an offset went from {next} by way of {} to {}", moved.old_offset, moved.new_offset);
            found.push(Violation::new("I5", what).because(moved));
        }
        if moved.old_epoch != epoch {
            let what = format!("epoch {} followed {epoch} without a claim", moved.old_epoch);
            found.push(Violation::new("I9", what).because(moved));
        }
        if moved.new_epoch != moved.old_epoch {
            if moved.new_epoch != moved.old_epoch + 1 || moved.new_offset != moved.old_offset {
                found.push(Violation::new("I9", "a claim that is no step of one epoch").because(moved));
            }
            owner = &moved.login;
        } else if moved.new_offset != moved.old_offset && moved.login != owner {
            let what = format!("an offset was moved by {} in the epoch of {owner}", moved.login);
            found.push(Violation::new("I9", what).because(moved));
        }
        (next, epoch) = (moved.new_offset, moved.new_epoch);
    }
}

/// Whatever a group writes, it writes in a transaction that moved the offset or settled what was parked.
fn fenced(history: &History, found: &mut Vec<Violation>) {
    let witness = &history.witness;
    let moved: HashSet<(&str, &str)> = witness
        .moved
        .iter()
        .filter(|m| m.new_offset > m.old_offset)
        .map(|m| (m.xid.as_str(), m.consumer_name.as_str()))
        .collect();
    for admitted in &witness.admitted {
        if !moved.contains(&(&admitted.xid, &admitted.consumer_name)) {
            found.push(
                Violation::new("I9", "an event was admitted without the fence")
                    .of([admitted.event_id])
                    .because(admitted),
            );
        }
    }
    let settled: HashSet<&str> = witness.settled.iter().map(|s| s.xid.as_str()).collect();
    for written in &witness.recomputed {
        let group = (written.xid.as_str(), history.group.as_str());
        if !moved.contains(&group) && !settled.contains(written.xid.as_str()) {
            found.push(
                Violation::new("I9", "a portfolio was written without the fence")
                    .of([written.event_id])
                    .because(written),
            );
        }
    }
}
