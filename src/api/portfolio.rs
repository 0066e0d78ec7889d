//! Owns the resource portfolio: a user's figures, cached.
//! Promises that an answer to `after` holds the event, whatever the cache holds, and that figures of an old snapshot say so
//! at the moment they are read.
//! Called by the router.

use axum::extract::State;
use axum::response::Response;
use chrono::{DateTime, Utc};
use serde::Deserialize;

use super::Api;
use super::auth::{Allowed, PortfolioRead};
use super::cached::{self, View};
use super::extract::Params;
use super::problem::Problem;
use super::visible::ReadModel;
use crate::cache::Key;
use crate::db::TenantTx;
use crate::identifier::{TenantId, UserId};
use crate::read_model::portfolio::{self, GROUP, KINDS, PortfolioView};

/// GET /api/portfolio?user_id=&after=&wait=: {data, metadata}.
pub(super) async fn get(
    State(api): State<Api>,
    Allowed { who, .. }: Allowed<PortfolioRead>,
    params: Params,
) -> Result<Response, Problem> {
    let (entry, metadata) = cached::read::<PortfolioView>(&api, who, &params).await?;
    cached::dated(&entry, metadata, |Dated { as_of }| portfolio::stale(api.db.now(), as_of))
}

/// What the age of the figures is told from.
#[derive(Deserialize)]
struct Dated {
    as_of: Option<DateTime<Utc>>,
}

impl View for PortfolioView {
    const MODEL: ReadModel = ReadModel { group: GROUP, kinds: KINDS, name: "a portfolio" };

    fn key(tenant: &TenantId, user: &UserId) -> Key {
        Key::portfolio(tenant, user)
    }

    async fn load(tx: &mut TenantTx, user: &UserId) -> Result<Self, sqlx::Error> {
        portfolio::get(tx, user).await
    }

    fn version(&self) -> i64 {
        self.version
    }

    async fn newest(tx: &mut TenantTx, user: &UserId) -> Result<i64, sqlx::Error> {
        portfolio::version(tx, user).await
    }
}
