//! Owns what a state machine is: its states, and one table of the moves between them.
//! Promises that a command, the text of its refusal and the tests speak of the same table.
//! Called by the commands of every entity that has states.

use std::fmt::Display;
use std::str::FromStr;

use serde_json::{Map, Value};

use super::input::Names;
use super::{CommandError, Input};

const TO: Names = &["to"];
const REASON: Names = &["reason"];
const LONGEST_REASON: usize = 500;

/// The states of one entity.
pub trait State: Copy + Eq + 'static {
    /// All of them, in the order of the specification.
    const ALL: &'static [Self];

    /// The name in JSON, SQL and events.
    fn as_str(self) -> &'static str;
}

/// What a move asks beyond being in the table: each set of entities has its own.
pub trait Rule: Copy + Eq + 'static {
    /// Whether a caller may ask for such a move, or else something of its own causes it.
    fn can_be_asked(self) -> bool;

    /// Whether it takes a reason.
    fn needs_reason(self) -> bool;
}

/// A move that the table does not have, or not for a caller to ask for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the {entity} cannot go from {from} to {to}; {}", self.remedy())]
pub struct IllegalMove {
    pub entity: &'static str,
    pub from: &'static str,
    pub to: &'static str,
    /// What may be asked for instead.
    pub allowed: Vec<&'static str>,
}

impl IllegalMove {
    fn remedy(&self) -> String {
        if self.allowed.is_empty() {
            format!("nothing can be asked for in {}", self.from)
        } else {
            format!("allowed: {}", self.allowed.join(", "))
        }
    }
}

/// The moves of one entity: from, to, rule. What is not here does not happen.
#[derive(Debug)]
pub struct Machine<S: 'static, R: 'static> {
    pub entity: &'static str,
    pub moves: &'static [(S, S, R)],
}

/// A move that the table allows, with the reason the caller gave.
#[derive(Debug)]
pub(super) struct Step<S, R> {
    pub(super) from: S,
    pub(super) to: S,
    pub(super) rule: R,
    pub(super) reason: Option<String>,
}

impl<S: State, R: Rule> Machine<S, R> {
    /// The rule of a move, if the table has it.
    pub fn rule(&self, from: S, to: S) -> Option<R> {
        self.moves.iter().find(|(f, t, _)| *f == from && *t == to).map(|(.., rule)| *rule)
    }

    /// The rule of a move, or why there is none.
    pub fn check(&self, from: S, to: S, causes: impl Fn(R) -> bool) -> Result<R, IllegalMove> {
        self.rule(from, to).filter(|rule| causes(*rule)).ok_or_else(|| IllegalMove {
            entity: self.entity,
            from: from.as_str(),
            to: to.as_str(),
            allowed: self.allowed(from),
        })
    }

    /// What a caller may ask for in this state.
    pub fn allowed(&self, from: S) -> Vec<&'static str> {
        let asked = self.moves.iter().filter(|(f, _, rule)| *f == from && rule.can_be_asked());
        asked.map(|(_, to, _)| to.as_str()).collect()
    }

    /// The states that something other than a caller moves to `to`.
    pub fn sources(&self, to: S, rule: R) -> Vec<&'static str> {
        let caused = self.moves.iter().filter(|(_, t, r)| *t == to && *r == rule);
        caused.map(|(from, ..)| from.as_str()).collect()
    }

    /// Reads `to` and `reason`, and refuses a move that may not be asked for. The input is given back for the fields
    /// that a move takes beyond these.
    pub(super) fn ask<'a>(
        &self,
        object: &'a Map<String, Value>,
        from: S,
    ) -> Result<(Input<'a>, Step<S, R>), CommandError>
    where
        S: FromStr,
        S::Err: Display,
    {
        let mut input = Input::new(object);
        let to = input.choice(TO);
        let Some(to) = input.required(TO, to) else {
            return Err(CommandError::Invalid(input.finish().err().unwrap_or_default()));
        };
        let rule = self.check(from, to, R::can_be_asked)?;
        let reason = input.text(REASON, LONGEST_REASON);
        let reason = if rule.needs_reason() { input.required(REASON, reason) } else { reason.value() };
        Ok((input, Step { from, to, rule, reason }))
    }
}

/// Defines the states of an entity, or another closed set of its words: an enum with the names of JSON, SQL and events.
macro_rules! states {
    ($(#[$doc:meta])* $name:ident { $($variant:ident = $text:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $name {
            $(#[doc = $text] $variant),+
        }

        impl $name {
            /// The names of all states.
            pub const NAMES: &'static [&'static str] = &[$($text),+];
        }

        impl $crate::domain::machine::State for $name {
            const ALL: &'static [Self] = &[$(Self::$variant),+];

            fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $text),+
                }
            }
        }

        impl std::str::FromStr for $name {
            type Err = String;

            fn from_str(text: &str) -> Result<Self, String> {
                match text {
                    $($text => Ok(Self::$variant),)+
                    _ => Err(format!("must be one of {}", Self::NAMES.join(", "))),
                }
            }
        }

        impl TryFrom<String> for $name {
            type Error = String;

            fn try_from(text: String) -> Result<Self, String> {
                text.parse()
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str($crate::domain::machine::State::as_str(*self))
            }
        }
    };
}
pub(super) use states;
