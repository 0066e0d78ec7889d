//! Owns the resource portfolio: cached reads, and reads that wait for an event of one's own.
//! Promises that an answer to `after` holds the event, whatever the cache holds.
//! Called by the router.

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderValue, header};
use axum::response::Response;

use super::Api;
use super::auth::{Allowed, PortfolioRead};
use super::extract::Params;
use super::problem::Problem;
use super::visible::{After, ReadModel};
use crate::cache::{Entry, Key, Metadata, Origin};
use crate::db::Db;
use crate::identifier::{TenantId, UserId};
use crate::read_model::portfolio::{self, GROUP, KINDS};

const MODEL: ReadModel = ReadModel { group: GROUP, kinds: KINDS, name: "a portfolio" };

/// GET /api/portfolio?user_id=&after=&wait=: {data, metadata}.
pub(super) async fn get(
    State(api): State<Api>,
    Allowed { who, .. }: Allowed<PortfolioRead>,
    params: Params,
) -> Result<Response, Problem> {
    let user = params.user("user_id")?.unwrap_or_else(|| who.user.clone());
    let after = After::of(&params)?;
    if user != who.user && !who.is_admin() {
        return Err(Problem::forbidden("reading another user's portfolio needs the role admin"));
    }
    let key = Key::portfolio(&who.tenant, &user);
    let row = Row { db: api.db.clone(), tenant: who.tenant, user };
    if after.event_id.is_none() {
        let (entry, metadata) = api.cache.read(&key, row).await?;
        return Ok(answer(&entry, metadata));
    }
    after.wait(&api, &row.tenant, &MODEL).await?;
    let entry = row.load().await?;
    api.cache.put(&key, &entry).await;
    Ok(answer(&entry, Metadata::LOADED))
}

/// The cached text goes out as it is.
fn answer(entry: &Entry, metadata: Metadata) -> Response {
    let metadata = serde_json::to_string(&metadata).unwrap_or_default();
    let body = format!("{{\"data\":{},\"metadata\":{metadata}}}", entry.json);
    let mut response = Response::new(Body::from(body));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// A row of the read model, as the origin of a cached value.
struct Row {
    db: Db,
    tenant: TenantId,
    user: UserId,
}

impl Origin for Row {
    type Error = sqlx::Error;

    async fn load(&self) -> Result<Entry, sqlx::Error> {
        let mut tx = self.db.tenant(&self.tenant).await?;
        let view = portfolio::get(&mut tx, &self.user).await?;
        tx.commit().await?;
        let json = serde_json::to_string(&view).map_err(|e| sqlx::Error::Encode(Box::new(e)))?;
        Ok(Entry { json: json.into(), version: view.version })
    }

    async fn version(&self) -> Result<i64, sqlx::Error> {
        let mut tx = self.db.tenant(&self.tenant).await?;
        let version = portfolio::version(&mut tx, &self.user).await?;
        tx.commit().await?;
        Ok(version)
    }
}
