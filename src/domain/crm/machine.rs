//! Owns what a move of the CRM asks beyond being in its table.
//! Promises that a move which payments or the clock cause cannot be asked for.
//! Called by the entities of this folder.

use crate::domain::machine;
pub use crate::domain::machine::State;
pub(super) use crate::domain::machine::states;

/// What a move asks beyond being in the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// Nothing: a caller may ask for it.
    Asked,
    /// A caller may ask for it with a reason.
    Reason,
    /// A caller may ask for it while nothing is paid.
    Unpaid,
    /// A caller may ask for it within 14 days, by the database's clock.
    InTime,
    /// Only payments cause it.
    Payment,
    /// Only the clock causes it.
    Clock,
}

impl machine::Rule for Rule {
    fn can_be_asked(self) -> bool {
        match self {
            Self::Asked | Self::Reason | Self::Unpaid | Self::InTime => true,
            Self::Payment | Self::Clock => false,
        }
    }

    fn needs_reason(self) -> bool {
        self == Self::Reason
    }
}

/// The moves of one entity of the CRM.
pub type Machine<S> = machine::Machine<S, Rule>;

/// A move that a table of the CRM allows.
pub(super) type Step<S> = machine::Step<S, Rule>;
