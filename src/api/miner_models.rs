//! Owns the resource miner models: the catalogue.
//! Promises nothing that needs a token: it holds no tenant's data.
//! Called by the router.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};

use super::Api;
use super::extract::{MAX_LIMIT, Page, Params};
use super::problem::Problem;
use crate::domain::miner_model;

/// GET /api/miner-models?limit=&cursor=: {data, next}. Without a limit as many as a page can hold: all of them.
pub(super) async fn list(State(api): State<Api>, params: Params) -> Result<Response, Problem> {
    let limit = params.limit(MAX_LIMIT)?;
    let after = params.text("cursor")?;
    let mut tx = api.db.without_tenant().await?;
    let rows = miner_model::list(tx.conn(), after, limit as i64 + 1).await?;
    tx.commit().await?;
    Ok(Json(Page::new(rows, limit, |model| model.name.clone())).into_response())
}
