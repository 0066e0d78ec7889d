//! Owns the step from single observations to anomalies: opened by two bad of three, resolved by three good in a row.
//! Promises that openings and resolutions alternate, whatever is observed.
//! May be called by every module; keep one watch per miner and kind, and feed it each evaluation once.
//!
//! ```text
//!            bad, and one of the two before was bad: opened
//!   closed ──────────────────────────────────────────────────► open
//!          ◄──────────────────────────────────────────────────
//!                      third good in a row: resolved
//! ```

use super::duty::Duty;
use serde::{Deserialize, Serialize};

/// Good observations in a row that resolve an anomaly.
pub const RESOLVE_AFTER: u8 = 3;

/// What a check says about a machine at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Observation {
    /// The check found nothing.
    Good,
    /// The check found a deviation.
    Bad,
    /// The machine is not there to be judged.
    Suppressed,
}

impl Observation {
    /// The observation of a check on a machine with this duty.
    #[must_use]
    pub const fn new(bad: bool, duty: Duty) -> Self {
        match (duty.is_judged(), bad) {
            (false, _) => Self::Suppressed,
            (true, true) => Self::Bad,
            (true, false) => Self::Good,
        }
    }
}

/// What an observation led to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// An anomaly begins.
    Opened,
    /// The open anomaly is over.
    Resolved,
}

/// State of one check on one machine; the default has seen nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum Watch {
    /// No anomaly.
    Closed {
        /// Whether the last two judged observations were bad, newest first; unseen ones were not.
        last_two_bad: [bool; 2],
    },
    /// An anomaly is open.
    Open {
        /// Good observations since the last bad one, below three.
        good_in_a_row: u8,
    },
}

impl Default for Watch {
    fn default() -> Self {
        Self::Closed { last_two_bad: [false; 2] }
    }
}

impl Watch {
    /// Whether an anomaly is open.
    #[must_use]
    pub const fn is_open(&self) -> bool {
        matches!(self, Self::Open { .. })
    }

    /// This watch, or one that begins anew if the record of open anomalies contradicts it.
    #[must_use]
    pub const fn agreeing_with(self, open: bool) -> Self {
        match (self, open) {
            (Self::Closed { .. }, true) => Self::Open { good_in_a_row: 0 },
            (Self::Open { .. }, false) => Self::Closed { last_two_bad: [false; 2] },
            (agreed, _) => agreed,
        }
    }

    /// Takes the next observation in time.
    ///
    /// A suppressed one neither opens nor resolves, and what was observed before it counts no more: two bad readings
    /// around a curtailment are not two of three, and an anomaly that was open before a repair stays open until three
    /// good observations after it.
    #[must_use]
    pub const fn step(self, observation: Observation) -> (Self, Option<Change>) {
        match (self, observation) {
            (Self::Closed { .. }, Observation::Suppressed) => {
                (Self::Closed { last_two_bad: [false; 2] }, None)
            }
            (Self::Closed { last_two_bad: [newest, _] }, Observation::Good) => {
                (Self::Closed { last_two_bad: [false, newest] }, None)
            }
            (Self::Closed { last_two_bad: [false, false] }, Observation::Bad) => {
                (Self::Closed { last_two_bad: [true, false] }, None)
            }
            (Self::Closed { .. }, Observation::Bad) => {
                (Self::Open { good_in_a_row: 0 }, Some(Change::Opened))
            }
            (Self::Open { .. }, Observation::Bad | Observation::Suppressed) => {
                (Self::Open { good_in_a_row: 0 }, None)
            }
            (Self::Open { good_in_a_row }, Observation::Good)
                if good_in_a_row.saturating_add(1) < RESOLVE_AFTER =>
            {
                (Self::Open { good_in_a_row: good_in_a_row + 1 }, None)
            }
            (Self::Open { .. }, Observation::Good) => {
                (Self::Closed { last_two_bad: [false; 2] }, Some(Change::Resolved))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::testing::Dice;
    use super::*;

    /// The changes after each observation: `b` bad, `g` good, `s` suppressed; `O` opened, `R` resolved, `.` neither.
    fn changes(observations: &str) -> String {
        let mut watch = Watch::default();
        observations
            .chars()
            .map(|letter| {
                let observation = match letter {
                    'b' => Observation::Bad,
                    'g' => Observation::Good,
                    _ => Observation::Suppressed,
                };
                let (next, change) = watch.step(observation);
                watch = next;
                match change {
                    Some(Change::Opened) => 'O',
                    Some(Change::Resolved) => 'R',
                    None => '.',
                }
            })
            .collect()
    }

    #[test]
    fn two_bad_of_three_open_and_three_good_resolve() {
        assert_eq!(changes("bb"), ".O");
        assert_eq!(changes("bgb"), "..O");
        assert_eq!(changes("bggb"), "....");
        assert_eq!(changes("gggb"), "....");
        assert_eq!(changes("bbggg"), ".O..R");
        assert_eq!(changes("bbggbgg"), ".O.....");
        assert_eq!(changes("bbggbggg"), ".O.....R");
        assert_eq!(changes("bbbbbb"), ".O....");
    }

    #[test]
    fn after_a_resolution_everything_begins_anew() {
        assert_eq!(changes("bbgggb"), ".O..R.");
        assert_eq!(changes("bbgggbb"), ".O..R.O");
    }

    #[test]
    fn suppression_opens_nothing_resolves_nothing_and_forgets() {
        assert_eq!(changes("ssss"), "....");
        assert_eq!(changes("bsb"), "...");
        assert_eq!(changes("bsbb"), "...O");
        assert_eq!(changes("bbgsgg"), ".O....");
        assert_eq!(changes("bbsssggg"), ".O.....R");
    }

    #[test]
    fn duty_decides_whether_a_verdict_counts() {
        assert_eq!(Observation::new(true, Duty::Hashing), Observation::Bad);
        assert_eq!(Observation::new(false, Duty::Hashing), Observation::Good);
        for duty in [Duty::Curtailed, Duty::Maintenance, Duty::Starting, Duty::OutOfService] {
            assert_eq!(Observation::new(true, duty), Observation::Suppressed);
            assert_eq!(Observation::new(false, duty), Observation::Suppressed);
        }
    }

    #[test]
    fn openings_and_resolutions_alternate_and_need_their_evidence() {
        let mut dice = Dice(7);
        for _ in 0..300 {
            let letters: String = (0..60).map(|_| ['b', 'g', 's', 'g', 'b'][dice.roll(5) as usize]).collect();
            let happened = changes(&letters);
            let mut open = false;
            for (at, change) in happened.char_indices().filter(|(_, c)| *c != '.') {
                assert_eq!(change, if open { 'R' } else { 'O' }, "{letters} {happened}");
                open = change == 'O';
                let last_three = &letters[at.saturating_sub(2)..=at];
                let seen = |letter| last_three.chars().filter(|c| *c == letter).count();
                assert!(if open { seen('b') >= 2 } else { seen('g') == 3 }, "{letters} {happened}");
            }
        }
    }

    #[test]
    fn a_watch_survives_its_table() {
        for letters in ["", "b", "bg", "bb", "bbg", "bbgg"] {
            let mut watch = Watch::default();
            for letter in letters.chars() {
                watch = watch.step(if letter == 'b' { Observation::Bad } else { Observation::Good }).0;
            }
            let stored = serde_json::to_string(&watch).expect("serialisable");
            assert_eq!(serde_json::from_str::<Watch>(&stored).expect("readable"), watch);
        }
        let stored = serde_json::to_value(Watch::Open { good_in_a_row: 2 }).expect("serialisable");
        assert_eq!(stored, serde_json::json!({"state": "open", "good_in_a_row": 2}));
        // A count that no fold produces resolves instead of overflowing.
        let odd = Watch::Open { good_in_a_row: u8::MAX };
        assert_eq!(odd.step(Observation::Good), (Watch::default(), Some(Change::Resolved)));
    }
}
