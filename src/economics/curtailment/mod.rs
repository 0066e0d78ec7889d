//! Owns curtailment: what a manual cut switches off, what a price switches by itself, and the life of a plan.
//! Promises pure functions whose order, counts and moves are fixed, so that the same input gives the same answer.
//! May be called by every module; it imports nothing but the economics.
//!
//! | file | content |
//! |---|---|
//! | [`plan_status`] | the states of a plan and the moves between them |
//! | [`mod@cut`], [`cut_filter`] | manual cuts to a number of kilowatts |
//! | [`automation`] | the strike automation of the running day |

pub mod automation;
pub mod cut;
pub mod cut_filter;
pub mod plan_status;

pub use automation::{PriceWindow, StrikeAction, StrikePhase, StrikeRule, StrikeState, observe};
pub use cut::{CustomerCut, CustomerTier, Cut, CutCandidate, CutStrategy, cut};
pub use cut_filter::CutFilter;
pub use plan_status::{MoveNotAllowed, PLAN_MOVES, PlanStatus, UnknownPlanStatus};
