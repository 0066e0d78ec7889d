//! Owns the life of a curtailment plan: its states and the moves between them.
//! Promises status names that are the same in JSON, in SQL and in events, and one table that every move is judged by.
//! May be called by every module.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// Where a plan stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PlanStatus {
    /// Computed, nobody has agreed to it.
    Pending,
    /// Agreed to, not begun.
    Approved,
    /// Miners are being switched by it.
    Executing,
    /// Its last step is past or it was stopped; the miners it switched off are not all back.
    RecoveryPending,
    /// Carried out, every miner back.
    Completed,
    /// Given up, every miner back.
    Cancelled,
}

/// The allowed moves. A plan that executes cannot be cancelled at once: its miners are off, so it is stopped into
/// `recovery_pending` and cancelled from there when they are back.
pub const PLAN_MOVES: [(PlanStatus, &[PlanStatus]); 6] = [
    (PlanStatus::Pending, &[PlanStatus::Approved, PlanStatus::Cancelled]),
    (PlanStatus::Approved, &[PlanStatus::Executing, PlanStatus::Cancelled]),
    (PlanStatus::Executing, &[PlanStatus::RecoveryPending]),
    (PlanStatus::RecoveryPending, &[PlanStatus::Completed, PlanStatus::Cancelled]),
    (PlanStatus::Completed, &[]),
    (PlanStatus::Cancelled, &[]),
];

/// A move that [`PLAN_MOVES`] does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a plan that is {from} cannot become {to}")]
pub struct MoveNotAllowed {
    /// Status the plan has.
    pub from: PlanStatus,
    /// Status it was to get.
    pub to: PlanStatus,
}

impl PlanStatus {
    /// Every status, in the order of the specification.
    pub const ALL: [Self; 6] = [
        Self::Pending,
        Self::Approved,
        Self::Executing,
        Self::RecoveryPending,
        Self::Completed,
        Self::Cancelled,
    ];

    /// The name used in JSON, SQL and events.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Approved => "approved",
            Self::Executing => "executing",
            Self::RecoveryPending => "recovery_pending",
            Self::Completed => "completed",
            Self::Cancelled => "cancelled",
        }
    }

    /// What a plan of this status may become; nothing for one that is over.
    #[must_use]
    pub fn next(self) -> &'static [Self] {
        PLAN_MOVES.iter().find(|(from, _)| *from == self).map_or(&[], |(_, next)| next)
    }

    /// Whether the plan is over.
    #[must_use]
    pub fn is_final(self) -> bool {
        self.next().is_empty()
    }

    /// Moves to another status.
    ///
    /// # Errors
    /// [`MoveNotAllowed`] if [`PLAN_MOVES`] does not have the move; staying is not a move.
    pub fn move_to(self, to: Self) -> Result<Self, MoveNotAllowed> {
        if self.next().contains(&to) { Ok(to) } else { Err(MoveNotAllowed { from: self, to }) }
    }
}

impl fmt::Display for PlanStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The text names no [`PlanStatus`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("status must be pending, approved, executing, recovery_pending, completed or cancelled")]
pub struct UnknownPlanStatus;

impl FromStr for PlanStatus {
    type Err = UnknownPlanStatus;

    fn from_str(text: &str) -> Result<Self, UnknownPlanStatus> {
        Self::ALL.into_iter().find(|status| status.as_str() == text).ok_or(UnknownPlanStatus)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_names_agree_everywhere() {
        for status in PlanStatus::ALL {
            assert_eq!(status.as_str().parse(), Ok(status));
            assert_eq!(serde_json::to_value(status).expect("a string"), status.as_str());
            assert!(UnknownPlanStatus.to_string().contains(status.as_str()));
        }
        assert_eq!("done".parse::<PlanStatus>(), Err(UnknownPlanStatus));
    }

    #[test]
    fn exactly_the_moves_of_the_table_are_allowed() {
        use PlanStatus::*;
        let allowed = [
            (Pending, Approved),
            (Pending, Cancelled),
            (Approved, Executing),
            (Approved, Cancelled),
            (Executing, RecoveryPending),
            (RecoveryPending, Completed),
            (RecoveryPending, Cancelled),
        ];
        for from in PlanStatus::ALL {
            for to in PlanStatus::ALL {
                let expected =
                    if allowed.contains(&(from, to)) { Ok(to) } else { Err(MoveNotAllowed { from, to }) };
                assert_eq!(from.move_to(to), expected);
            }
            assert_eq!(from.is_final(), matches!(from, Completed | Cancelled));
        }
        assert_eq!(PLAN_MOVES.map(|(from, _)| from), PlanStatus::ALL);
        let refused = Executing.move_to(Cancelled).expect_err("miners are off");
        assert_eq!(refused.to_string(), "a plan that is executing cannot become cancelled");
    }
}
