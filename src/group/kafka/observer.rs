//! Who among the others is dead, judged by what a look at the slots shows, look after look. Pure.
//!
//! Looks are counted, not time: while the database stands still nobody can look, and nobody who lives is evicted.

use std::collections::BTreeMap;

/// Looks in a row that see a held slot's counter stand still: a frozen process, or one cut off from the database.
const FROZEN: u32 = 4;

/// Looks in a row that see a slot's lock free. A process that comes back at once has it by then.
const DEAD: u32 = 3;

/// The same during our own first looks: after a restart of the database everybody takes his slot again.
const DEAD_AT_FIRST: u32 = 6;

/// So many looks are our first.
const FIRST: u32 = 10;

/// A slot as a look shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) slot_id: i32,
    pub(super) incarnation: i64,
    pub(super) counter: i64,
    /// Whether somebody holds the slot's lock.
    pub(super) held: bool,
}

/// What was seen of each other slot, and how often in a row.
#[derive(Debug, Default)]
pub(super) struct Observer {
    looks: u32,
    slots: BTreeMap<i32, Standstill>,
}

#[derive(Debug)]
struct Standstill {
    seen: Seen,
    /// Looks since the first that showed exactly this.
    unchanged: u32,
}

impl Observer {
    /// One look at the slots of the others that have a member; returns those whose holders are dead or frozen.
    pub(super) fn look(&mut self, others: Vec<Seen>) -> Vec<Seen> {
        self.looks = self.looks.saturating_add(1);
        let dead = if self.looks <= FIRST { DEAD_AT_FIRST } else { DEAD };
        let mut gone = Vec::new();
        let mut slots = BTreeMap::new();
        for seen in others {
            let before = self.slots.remove(&seen.slot_id).filter(|before| before.seen == seen);
            let unchanged = before.map_or(0, |before| before.unchanged + 1);
            if unchanged >= if seen.held { FROZEN } else { dead } {
                gone.push(seen.clone());
            }
            slots.insert(seen.slot_id, Standstill { seen, unchanged });
        }
        self.slots = slots;
        gone
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(counter: i64, held: bool) -> Seen {
        Seen { slot_id: 1, incarnation: 0, counter, held }
    }

    fn experienced() -> Observer {
        Observer { looks: FIRST, ..Observer::default() }
    }

    /// At which look the slot is taken for dead.
    fn looks_until_gone(mut observer: Observer, seen: &Seen) -> usize {
        (0..100).find(|_| !observer.look(vec![seen.clone()]).is_empty()).expect("at some time")
    }

    #[test]
    fn who_counts_lives() {
        let mut observer = experienced();
        for counter in 0..100 {
            // Each counts once in two looks: slow is not dead.
            assert_eq!(observer.look(vec![slot(counter / 2, true)]), []);
        }
    }

    #[test]
    fn a_free_slot_is_given_up_sooner_than_one_that_stands_still() {
        assert_eq!(looks_until_gone(experienced(), &slot(5, true)), FROZEN as usize);
        assert_eq!(looks_until_gone(experienced(), &slot(5, false)), DEAD as usize);
        assert_eq!(looks_until_gone(Observer::default(), &slot(5, false)), DEAD_AT_FIRST as usize);
    }

    #[test]
    fn whoever_takes_the_slot_is_observed_anew() {
        let mut observer = experienced();
        for _ in 0..DEAD {
            assert_eq!(observer.look(vec![slot(5, false)]), []);
        }
        assert_eq!(observer.look(vec![slot(6, true)]), [], "taken back at the last moment");
        for _ in 1..FROZEN {
            assert_eq!(observer.look(vec![slot(6, true)]), []);
        }
        let successor = Seen { incarnation: 1, ..slot(6, true) };
        assert_eq!(observer.look(vec![successor]), []);
    }

    #[test]
    fn a_slot_that_was_away_is_observed_anew() {
        let mut observer = experienced();
        for _ in 0..DEAD {
            observer.look(vec![slot(5, false)]);
        }
        observer.look(Vec::new());
        assert_eq!(observer.look(vec![slot(5, false)]), []);
    }
}
