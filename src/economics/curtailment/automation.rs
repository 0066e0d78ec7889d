//! Owns the strike automation: when a price of the running day switches a site off and on without a plan.
//! Promises a pure step from one state to the next; a missing, late or repeated window never counts towards a switch.
//! May be called by every module; needs nothing but its arguments.

use super::super::{EconomicsError, exact};
use rust_decimal::Decimal;
use serde::{Deserialize, Serialize};

/// Length of a window in seconds.
pub const WINDOW_SECONDS: u64 = 300;
/// Windows above the low strike, one after the other, until the site is curtailed.
pub const WINDOWS_ABOVE: u8 = 2;
/// Windows below the low strike, one after the other, until the site resumes.
pub const WINDOWS_BELOW: u8 = 4;

/// The two prices of the automation, $/MWh of any sign.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StrikeRule {
    /// Above it for [`WINDOWS_ABOVE`] windows: curtail. Below it for [`WINDOWS_BELOW`] windows: resume.
    pub low_usd_mwh: Decimal,
    /// Above it: curtail at once.
    pub high_usd_mwh: Decimal,
}

/// The price of one window.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PriceWindow {
    /// Number of the window: its start in Unix seconds / [`WINDOW_SECONDS`].
    pub index: u64,
    /// Price of energy in $/MWh.
    pub price_usd_mwh: Decimal,
}

/// Whether the site runs, and how far it is towards the next switch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StrikePhase {
    /// Miners run.
    Running {
        /// Windows above the low strike so far.
        above: u8,
    },
    /// Miners are off.
    Curtailed {
        /// Windows below the low strike so far.
        below: u8,
    },
}

/// What the automation remembers between two windows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct StrikeState {
    /// Running or curtailed.
    pub phase: StrikePhase,
    /// Number of the newest window seen; `None` before the first.
    pub last_window: Option<u64>,
}

/// What is to be done now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StrikeAction {
    /// Nothing.
    Hold,
    /// Switch off.
    Curtail,
    /// Switch on.
    Resume,
}

impl StrikeRule {
    /// Checks that the low strike is not above the high one.
    ///
    /// # Errors
    /// [`EconomicsError::OutOfRange`] naming `low_usd_mwh`.
    pub fn check(&self) -> Result<(), EconomicsError> {
        exact::within(self.low_usd_mwh <= self.high_usd_mwh, "low_usd_mwh")
    }
}

impl Default for StrikeState {
    /// Running, nothing seen.
    fn default() -> Self {
        Self { phase: StrikePhase::Running { above: 0 }, last_window: None }
    }
}

/// The state after a window, and what it asks for.
///
/// Above and below are strict: a price equal to the low strike is neither and ends both counts. A window that does not
/// follow the newest one counts as the first; one that is not newer changes nothing. The high strike needs no count, so
/// no gap delays it.
#[must_use]
pub fn observe(rule: &StrikeRule, state: StrikeState, window: &PriceWindow) -> (StrikeState, StrikeAction) {
    if state.last_window.is_some_and(|last| window.index <= last) {
        return (state, StrikeAction::Hold);
    }
    let follows = state.last_window.and_then(|last| last.checked_add(1)) == Some(window.index);
    let count = |before: u8, holds: bool| match (holds, follows) {
        (false, _) => 0,
        (true, true) => before.saturating_add(1),
        (true, false) => 1,
    };
    let price = window.price_usd_mwh;
    let (phase, action) = match state.phase {
        StrikePhase::Running { above } => {
            let above = count(above, price > rule.low_usd_mwh);
            if above >= WINDOWS_ABOVE || price > rule.high_usd_mwh {
                (StrikePhase::Curtailed { below: 0 }, StrikeAction::Curtail)
            } else {
                (StrikePhase::Running { above }, StrikeAction::Hold)
            }
        }
        StrikePhase::Curtailed { below } => {
            let below = count(below, price < rule.low_usd_mwh);
            if below >= WINDOWS_BELOW {
                (StrikePhase::Running { above: 0 }, StrikeAction::Resume)
            } else {
                (StrikePhase::Curtailed { below }, StrikeAction::Hold)
            }
        }
    };
    (StrikeState { phase, last_window: Some(window.index) }, action)
}

#[cfg(test)]
mod tests {
    use super::super::super::testing::{Dice, d};
    use super::StrikeAction::{Curtail, Hold, Resume};
    use super::*;

    fn rule() -> StrikeRule {
        StrikeRule { low_usd_mwh: d("60"), high_usd_mwh: d("200") }
    }

    /// The actions over a sequence of (window, price).
    fn run(windows: &[(u64, i64)]) -> Vec<StrikeAction> {
        let mut state = StrikeState::default();
        windows
            .iter()
            .map(|(index, price)| {
                let window = PriceWindow { index: *index, price_usd_mwh: Decimal::from(*price) };
                let (next, action) = observe(&rule(), state, &window);
                state = next;
                action
            })
            .collect()
    }

    #[test]
    fn two_windows_above_the_low_strike_curtail() {
        assert_eq!(run(&[(1, 61), (2, 61)]), [Hold, Curtail]);
        assert_eq!(run(&[(1, 61), (2, 60), (3, 61), (4, 61)]), [Hold, Hold, Hold, Curtail]);
        assert_eq!(run(&[(1, 60), (2, 60), (3, 60)]), [Hold, Hold, Hold]);
    }

    #[test]
    fn one_window_above_the_high_strike_curtails_at_once() {
        assert_eq!(run(&[(1, 201)]), [Curtail]);
        assert_eq!(run(&[(1, 200), (2, 201)]), [Hold, Curtail]);
        assert_eq!(run(&[(1, 50), (9, 201)]), [Hold, Curtail]);
        assert_eq!(run(&[(1, 200), (9, 200)]), [Hold, Hold]);
    }

    #[test]
    fn four_windows_below_resume() {
        let resumed = run(&[(1, 201), (2, 59), (3, 59), (4, 59), (5, 59), (6, 61), (7, 61)]);
        assert_eq!(resumed, [Curtail, Hold, Hold, Hold, Resume, Hold, Curtail]);
        let interrupted = run(&[(1, 201), (2, 59), (3, 59), (4, 59), (5, 60), (6, 59), (7, 59), (8, 59)]);
        assert_eq!(interrupted, [Curtail, Hold, Hold, Hold, Hold, Hold, Hold, Hold]);
    }

    #[test]
    fn a_gap_starts_the_count_again() {
        assert_eq!(run(&[(1, 61), (3, 61), (4, 61)]), [Hold, Hold, Curtail]);
        let resumed = run(&[(1, 201), (2, 59), (3, 59), (4, 59), (6, 59), (7, 59), (8, 59), (9, 59)]);
        assert_eq!(resumed, [Curtail, Hold, Hold, Hold, Hold, Hold, Hold, Resume]);
    }

    #[test]
    fn late_and_repeated_windows_change_nothing() {
        assert_eq!(run(&[(5, 61), (5, 61), (4, 999), (6, 61)]), [Hold, Hold, Hold, Curtail]);
        assert_eq!(run(&[(u64::MAX, 61), (u64::MAX, 61), (0, 999)]), [Hold, Hold, Hold]);
    }

    #[test]
    fn switches_alternate_and_states_survive_json() {
        let mut dice = Dice(5);
        let (mut state, mut index, mut running) = (StrikeState::default(), 0, true);
        for _ in 0..5_000 {
            index += u64::from(dice.roll(10) > 0) + u64::from(dice.roll(10) == 0);
            let price = Decimal::from(dice.roll(100)) + d("20");
            let (next, action) = observe(&rule(), state, &PriceWindow { index, price_usd_mwh: price });
            match action {
                Hold => {}
                Curtail => assert!(std::mem::replace(&mut running, false)),
                Resume => assert!(!std::mem::replace(&mut running, true)),
            }
            let json = serde_json::to_string(&next).expect("serializable");
            state = serde_json::from_str(&json).expect("the same shape");
            assert_eq!(state, next);
            assert_eq!(running, matches!(state.phase, StrikePhase::Running { .. }));
        }
    }

    #[test]
    fn strikes_in_the_wrong_order_are_refused() {
        assert_eq!(rule().check(), Ok(()));
        let swapped = StrikeRule { low_usd_mwh: d("200.01"), high_usd_mwh: d("200") };
        assert_eq!(swapped.check(), Err(EconomicsError::OutOfRange { field: "low_usd_mwh" }));
    }
}
