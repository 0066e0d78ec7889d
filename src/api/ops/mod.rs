//! Owns the resources of operations: power prices, settings of a site, optimum, plans, schedule.
//! Promises that what it answers with success is committed, with its events, and that other users are for admins.
//! Called by the router.
//!
//! | file | content |
//! |---|---|
//! | `prices` | the reception of prices |
//! | `settings` | what a site allows and costs |
//! | `optimum` | the optimum over given or stored prices |
//! | `plans` | plans from an optimum or a cut, and what is decided about them |
//! | `schedule` | the read model |

use axum::Router;
use axum::routing::{get, post};

use super::Api;
use super::auth::about;
use super::problem::Problem;
use super::token::Principal;
use crate::identifier::UserId;

mod optimum;
mod plans;
mod prices;
mod schedule;
mod settings;

/// The routes under /api/ops/, and the optimum.
pub(super) fn routes() -> Router<Api> {
    Router::new()
        .route("/api/ops/prices", post(prices::receive))
        .route("/api/ops/settings", get(settings::get).put(settings::put))
        .route("/api/ops/schedule", get(schedule::get))
        .route("/api/intelligence/optimize/curtailment", post(optimum::compute))
        .route("/api/ops/plans", get(plans::list).post(plans::create))
        .route("/api/ops/plans/{id}", get(plans::one))
        .route("/api/ops/plans/{id}/approve", post(plans::approve))
        .route("/api/ops/plans/{id}/stop", post(plans::stop))
        .route("/api/ops/plans/{id}/cancel", post(plans::cancel))
}

/// The user whom a request is about: the caller, unless an admin names another.
fn user_of(who: &Principal, named: Option<UserId>) -> Result<UserId, Problem> {
    about(who, named, who.is_admin(), "the site of another user needs the role admin")
}
