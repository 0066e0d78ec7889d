//! Owns the operations of a site: power prices, what it allows and costs, curtailment plans, the strike automation.
//! Promises that a plan changes by a move of [`PLAN_MOVES`] only, under the lock of its row, with event and audit row.
//! Called by the API; [`plan::PlanClock`], [`strike::StrikeAutomation`] and [`price::PriceRetention`] by the runner of
//! scheduled work.
//!
//! | file | content |
//! |---|---|
//! | [`price`] | the reception of prices, and how long they are kept |
//! | [`settings`] | what a site allows and costs, and when its automation switches |
//! | [`plan`] | plans: made, decided upon, carried out by the clock |
//! | [`cut`] | the miners of a manual cut |
//! | [`strike`] | the automation: off and on by the price of the running day |
//! | `curtailment` | telling that machines are to be off, or what still holds them |
//!
//! HashInsight tells when miners are to be off, by `ops.curtailment_started` and `ops.curtailment_ended`; whoever controls
//! the machines listens. A miner's own status is what its owner says it is, and stays.
//!
//! [`PLAN_MOVES`]: crate::economics::curtailment::PLAN_MOVES

mod curtailment;
pub mod cut;
pub mod plan;
pub mod price;
pub mod settings;
pub mod strike;

use crate::domain::input::Names;

pub use plan::Plan;
pub use settings::Settings;

/// Who the audit log says it was when the clock did it.
const CLOCK: &str = "system";
/// Whom a command is about.
pub const USER: Names = &["user_id"];
/// The name of a market.
const MARKET: Names = &["market"];
