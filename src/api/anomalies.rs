//! Owns the resource anomalies: what the checks found wrong with miners, open and resolved.
//! Promises that a user sees those of his own miners only, and the role admin all of its tenant.
//! Called by the router.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use uuid::Uuid;

use super::Api;
use super::auth::{Allowed, IntelligenceRead};
use super::extract::{DEFAULT_LIMIT, Page, Params};
use super::problem::Problem;
use super::visible::{After, ReadModel};
use crate::economics::anomaly::Severity;
use crate::economics::anomaly::severity::UnknownSeverity;
use crate::read_model::anomaly::{self, Filter, GROUP, KINDS};

const MODEL: ReadModel = ReadModel { group: GROUP, kinds: KINDS, name: "the anomalies" };

/// GET /api/intelligence/anomalies?state=open|resolved|all&miner_id=&user_id=&severity=&limit=&cursor=&after=&wait=:
/// {data, next}, the newest opened first. Open ones unless `state` says otherwise.
pub(super) async fn list(
    State(api): State<Api>,
    Allowed { who, .. }: Allowed<IntelligenceRead>,
    params: Params,
) -> Result<Response, Problem> {
    let limit = params.limit(DEFAULT_LIMIT)?;
    let state = params.one_of("state", &["open", "resolved", "all"])?.unwrap_or("open");
    let state = Some(state).filter(|state| *state != "all");
    let given = params.user("user_id")?;
    if given.as_ref().is_some_and(|user| *user != who.user) && !who.is_admin() {
        return Err(Problem::forbidden("reading another user's anomalies needs the role admin"));
    }
    let user = given.or_else(|| (!who.is_admin()).then(|| who.user.clone()));
    let severity = params.parsed::<Severity>("severity", &UnknownSeverity.to_string())?;
    let filter = Filter {
        user: user.as_ref(),
        state,
        severity: severity.map(Severity::as_str),
        miner_id: params.parsed("miner_id", "must be the id of a miner")?,
    };
    let behind: Option<Uuid> = params.cursor()?;
    After::of(&params)?.wait(&api, &who.tenant, &MODEL).await?;
    let mut tx = api.db.tenant(&who.tenant).await?;
    let rows = anomaly::list(&mut tx, filter, behind, limit as i64 + 1).await?;
    tx.commit().await?;
    Ok(Json(Page::new(rows, limit, |row| row.anomaly_id.to_string())).into_response())
}
