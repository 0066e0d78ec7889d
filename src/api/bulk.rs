//! Owns the adding of many miners by one request.
//! Promises that what it answers with success is committed, with its events.
//! Called by the router.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::Api;
use super::auth::{Allowed, MinersWrite};
use super::extract::{Params, Trace, Upload};
use super::problem::Problem;
use crate::domain::miner::bulk::{self, MOST_ROWS, Row};
use crate::domain::{FieldError, Input};
use crate::identifier::{EntityId, InvalidIdentifier};

const MINERS: &str = "miners";
const BATCH: &str = "batch_id";

/// POST /api/miners/bulk, {miners: [...], batch_id} or CSV with ?batch_id=: 201 {success, batch_id, total_count,
/// imported_count, failed_count, event_id, event_ids, miner_ids, errors: [{row, field, message}]}.
pub(super) async fn import(
    State(api): State<Api>,
    Allowed { who, .. }: Allowed<MinersWrite>,
    trace: Trace,
    params: Params,
    upload: Upload,
) -> Result<Response, Problem> {
    let in_query = params.parsed::<EntityId>(BATCH, &InvalidIdentifier.to_string())?;
    let (rows, in_body) = read(&upload)?;
    let batch_id = in_body.or(in_query);
    if rows.is_empty() {
        return Err(Problem::invalid(vec![FieldError::new(MINERS, "must have at least one row")]));
    }
    if rows.len() > MOST_ROWS {
        return Err(Problem::too_many_rows(MOST_ROWS));
    }
    let (caller, rows, batch_id) = (trace.caller(&who.user), rows.as_slice(), batch_id.as_ref());
    let done = api
        .command(&who.tenant, |mut tx| async move {
            let done = bulk::import(&mut tx, caller, batch_id, rows).await?;
            Ok((tx, done))
        })
        .await?;
    let answer = json!({
        "success": true, "batch_id": done.batch_id, "total_count": done.total_count,
        "imported_count": done.miner_ids.len(), "failed_count": done.failed_count,
        "event_id": done.event_ids.first(), "event_ids": done.event_ids, "miner_ids": done.miner_ids,
        "errors": done.errors,
    });
    Ok((StatusCode::CREATED, Json(answer)).into_response())
}

/// The rows, and the batch's id where the body names it.
fn read(upload: &Upload) -> Result<(Vec<Row>, Option<EntityId>), Problem> {
    let refuse = |error| Problem::invalid(vec![error]);
    match upload {
        Upload::Csv(text) => Ok((bulk::rows_of_csv(text).map_err(refuse)?, None)),
        Upload::Json(body) => {
            let mut input = Input::new(body);
            let batch_id = input.identifier(&[BATCH]).value();
            input.finish().map_err(Problem::invalid)?;
            let Some(Value::Array(items)) = body.get(MINERS) else {
                return Err(refuse(FieldError::new(MINERS, "must be an array of objects")));
            };
            Ok((bulk::rows_of(items), batch_id))
        }
    }
}
