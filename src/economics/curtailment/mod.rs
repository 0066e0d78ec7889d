//! Owns curtailment: when which miners of a site run, what a manual cut switches off, what a price switches by itself.
//! Promises schedules that keep every limit, exact money, and for each plan a proven bound on what was left on the table.
//! May be called by every module; it imports nothing but the economics.
//!
//! | file | content |
//! |---|---|
//! | [`site`] | what a plan is made from: steps with prices and limits, classes of miners |
//! | [`series`], [`fleet`] | the site of a fleet: its prices from intervals, its classes from miners |
//! | [`plan`] | the plan of a site: value, bound, gap, baselines, who runs when |
//! | [`schedule`] | its rows, step by step |
//! | [`plan_status`] | the states of a plan and the moves between them |
//! | [`mod@cut`], [`cut_filter`] | manual cuts to a number of kilowatts |
//! | [`automation`] | the strike automation of the running day |
//! | `fixed`, `model`, `cohort` | the site in exact numbers, groups of miners that switch together, judging a schedule |
//! | `commitment` | the best path of one miner: the dynamic programme everything else is built on |
//! | `baseline` | always-on and the greedy cut |
//! | `joint` | the exact optimum of small sites |
//! | `relaxation` | the schedule of large sites, from the next five |
//! | `approximate`, `limits` | the site in floats, prices of its limits and the bound they prove |
//! | `dual` | the search for these prices |
//! | `augmented` | a schedule that answers them |
//! | `repair`, `renewal` | making it keep the limits, and better |
//!
//! Why large sites are solved this way: a class is not one switch but many equal miners that switch one by one. What one
//! miner may do is a path through a small graph, and what `n` of them may do together is exactly `n` times the convex
//! hull of these paths, rounded to whole miners. So the Lagrangian relaxation of the site's limits, with the dynamic
//! programme as its subproblem, is as strong as the linear programme over all paths, and what rounding costs shrinks with
//! the number of miners. The bound holds whatever the search does: it is recomputed exactly from the final prices.

mod approximate;
mod augmented;
pub mod automation;
mod baseline;
mod cohort;
mod commitment;
pub mod cut;
pub mod cut_filter;
mod dual;
mod fixed;
pub mod fleet;
mod joint;
mod limits;
mod model;
pub mod plan;
pub mod plan_status;
mod relaxation;
mod renewal;
mod repair;
pub mod schedule;
pub mod series;
pub mod site;

pub use automation::{PriceWindow, StrikeAction, StrikePhase, StrikeRule, StrikeState, observe};
pub use cut::{CustomerCut, CustomerTier, Cut, CutCandidate, CutStrategy, UnknownTier, cut};
pub use cut_filter::CutFilter;
pub use fleet::{FleetGroup, SiteTerms, fleet_site};
pub use plan::{
    CurtailmentPlan, PlanError, PlanGroup, PlanMethod, Run, class_plan, curtailment_plan, searched_plan,
};
pub use plan_status::{MoveNotAllowed, PLAN_MOVES, PlanStatus, UnknownPlanStatus};
pub use relaxation::Search;
pub use schedule::{ClassRow, ScheduleRow, peaks};
pub use series::{PriceInterval, PriceSeries, price_series};
pub use site::{MinerClass, Site, Step};
