//! Owns the HTTP API: routes, authentication, the shape of answers and errors.
//! Promises that tenant and actor come from the verified token only, and that a refused request leaves nothing behind.
//! Called by the roles `serve` and `standalone`.
//!
//! | file | content |
//! |---|---|
//! | [`server`] | sockets, connections, deadlines of the transport |
//! | [`token`] | signing and verifying JSON Web Tokens |
//! | `auth` | who asks, and what the scopes allow |
//! | `middleware` | what every request passes: id, metrics, panics, time-out, load |
//! | `extract` | bodies, path and query parameters |
//! | `problem` | the one error type |
//! | `command` | running a command in a transaction |
//! | `compute` | running what takes a processor for a while |
//! | `cached` | a user's row of a read model |
//! | `csv` | tables as CSV, for spreadsheets |
//! | `visible` | reading one's own write |
//! | one file per resource | `anomalies`, `bulk` (of miners), `crm`, `dead_letters`, `forecast`, `miners`, `miner_models`, `miner_telemetry`, `network`, `ops`, `portfolio`, `portfolio_history`, `probes`, `treasury`, `webhook`, `what_if` |

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::routing::{get, patch, post};
use chrono::TimeDelta;
use tokio::sync::Semaphore;

use crate::cache::Cache;
use crate::config::{Config, ConfigError};
use crate::db::Db;
use crate::domain::ops::settings::Defaults;
use crate::domain::webhook::{AllowedHosts, Vault};
use crate::doorbell::Doorbells;
use crate::economics::Assumptions;
use crate::read_model::portfolio as portfolio_figures;

mod anomalies;
mod auth;
mod bulk;
mod cached;
mod command;
mod compute;
mod crm;
mod csv;
mod dead_letters;
mod extract;
mod forecast;
mod middleware;
mod miner_models;
mod miner_telemetry;
mod miners;
mod network;
mod ops;
mod portfolio;
mod portfolio_history;
mod probes;
mod problem;
pub mod server;
pub mod token;
mod treasury;
mod visible;
mod webhook;
mod what_if;

use token::Verifier;

/// What the handlers share. Cheap to clone.
#[derive(Clone)]
pub struct Api {
    db: Db,
    cache: Arc<Cache>,
    bells: Doorbells,
    verifier: Arc<Verifier>,
    in_flight: Arc<Semaphore>,
    request_timeout: Duration,
    body_timeout: Duration,
    max_body_bytes: usize,
    max_upload_bytes: usize,
    telemetry_late: TimeDelta,
    vault: Option<Arc<Vault>>,
    webhook_hosts: Arc<AllowedHosts>,
    site_defaults: Defaults,
    computing: Arc<Semaphore>,
    assumptions: Assumptions,
}

impl Api {
    /// The API on these services.
    ///
    /// # Errors
    /// No secret to verify tokens with.
    pub fn new(config: &Config, db: Db, cache: Arc<Cache>, bells: Doorbells) -> Result<Self, ConfigError> {
        Ok(Self {
            db,
            cache,
            bells,
            verifier: Arc::new(Verifier::new(&config.auth)?),
            in_flight: Arc::new(Semaphore::new(config.server.max_in_flight)),
            request_timeout: Duration::from_millis(config.server.request_timeout_ms),
            body_timeout: Duration::from_millis(config.server.header_timeout_ms),
            max_body_bytes: config.server.max_body_bytes,
            max_upload_bytes: config.server.max_upload_bytes,
            telemetry_late: TimeDelta::days(config.miner_telemetry.late_days.into()),
            vault: Vault::new(&config.webhooks.key).map(Arc::new),
            webhook_hosts: Arc::new(AllowedHosts::parse(&config.webhooks.allowed_hosts)),
            site_defaults: Defaults { pool_fee: config.economics.pool_fee, pue: config.economics.pue },
            computing: Arc::new(Semaphore::new(compute::AT_ONCE)),
            assumptions: portfolio_figures::assumptions(&config.economics),
        })
    }

    /// The routes.
    pub fn router(self) -> Router {
        let resources = Router::new()
            .route("/api/miners", get(miners::list).post(miners::add))
            .route("/api/miners/bulk", post(bulk::import))
            .route("/api/miners/sync", post(miners::sync))
            .route("/api/miners/telemetry", post(miner_telemetry::take))
            .route("/api/miners/{id}/telemetry", get(miner_telemetry::list))
            .route("/api/miners/{id}", get(miners::get).patch(miners::update).delete(miners::remove))
            .route("/api/miners/{id}/status", patch(miners::change_status))
            .route("/api/miner-models", get(miner_models::list))
            .route("/api/network/snapshots", post(network::record))
            .route("/api/portfolio", get(portfolio::get))
            .route("/api/portfolio/history", get(portfolio_history::get))
            .route("/api/portfolio/what-if", get(what_if::get))
            .route("/api/intelligence/anomalies", get(anomalies::list))
            .route("/api/intelligence/forecast", get(forecast::get))
            .route("/api/dlq", get(dead_letters::list))
            .route("/api/dlq/replay", post(dead_letters::replay))
            .route("/api/dlq/{id}/discard", post(dead_letters::discard))
            .merge(crm::routes())
            .merge(webhook::routes())
            .merge(treasury::routes())
            .merge(ops::routes())
            .layer(axum::middleware::from_fn_with_state(self.clone(), middleware::limits));
        // Probes answer under load, too.
        Router::new()
            .route("/livez", get(probes::livez))
            .route("/readyz", get(probes::readyz))
            .merge(resources)
            .fallback(problem::unknown_route)
            .method_not_allowed_fallback(problem::wrong_method)
            .layer(axum::middleware::from_fn(middleware::every_request))
            .with_state(self)
    }
}
