//! Owns the probes: does the process live, can it serve?
//! Promises an answer under any load and no side effect.
//! Called by the router.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};

use super::Api;
use super::problem::Problem;

/// The database must answer within this.
const DEADLINE: Duration = Duration::from_secs(1);

/// GET /livez: the process answers.
pub(super) async fn livez() -> Json<Value> {
    Json(json!({"status": "alive"}))
}

/// GET /readyz: the database answers.
pub(super) async fn readyz(State(api): State<Api>) -> Result<Json<Value>, Problem> {
    match tokio::time::timeout(DEADLINE, api.db.ping()).await {
        Ok(Ok(())) => Ok(Json(json!({"status": "ready"}))),
        Ok(Err(_)) | Err(_) => {
            Err(Problem::unavailable("database-unavailable", "The database does not answer"))
        }
    }
}
