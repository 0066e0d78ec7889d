//! Owns the reading of a user's row of a read model: cached, or past the cache as soon as an event is in it.
//! Promises that an answer to `after` holds the event, whatever the cache holds, and that other users are for admins.
//! Called by the handlers of read models.

use std::borrow::Cow;
use std::marker::PhantomData;

use axum::body::Body;
use axum::http::{HeaderValue, header};
use axum::response::Response;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tracing::error;

use super::Api;
use super::auth::about;
use super::extract::Params;
use super::problem::Problem;
use super::token::Principal;
use super::visible::{self, After, ReadModel};
use crate::cache::{Entry, Key, Metadata, Origin};
use crate::db::{Db, TenantTx};
use crate::identifier::{TenantId, UserId};

/// A read model with a row per user.
pub(super) trait View: Serialize + Send + Sync + Sized + 'static {
    const MODEL: ReadModel;

    fn key(tenant: &TenantId, user: &UserId) -> Key;

    fn load(tx: &mut TenantTx, user: &UserId) -> impl Future<Output = Result<Self, sqlx::Error>> + Send;

    fn version(&self) -> i64;

    /// The version that [`View::load`] would give.
    fn newest(tx: &mut TenantTx, user: &UserId) -> impl Future<Output = Result<i64, sqlx::Error>> + Send;

    /// Whether the row holds what every applied event asked for.
    fn is_caught_up(
        _tx: &mut TenantTx,
        _user: &UserId,
    ) -> impl Future<Output = Result<bool, sqlx::Error>> + Send {
        std::future::ready(Ok(true))
    }
}

/// Whose row is asked for: the caller's own, or as the role admin that of `user_id`.
pub(super) fn whose(who: &Principal, params: &Params, what: &str) -> Result<UserId, Problem> {
    let refusal = format!("reading {what} of another user needs the role admin");
    about(who, params.user("user_id")?, who.is_admin(), refusal)
}

/// Reads the row of `user_id` (the caller), which `after` and `wait` may ask to hold an event.
pub(super) async fn read<V: View>(
    api: &Api,
    who: Principal,
    params: &Params,
) -> Result<(Entry, Metadata), Problem> {
    let user = whose(&who, params, V::MODEL.name)?;
    let after = After::of(params)?;
    let key = V::key(&who.tenant, &user);
    let row = Row::<V> { db: api.db.clone(), tenant: who.tenant, user, view: PhantomData };
    if after.event_id.is_none() {
        // On the heap: the future of a handler is moved about whole.
        return Ok(Box::pin(api.cache.read(&key, row)).await?);
    }
    let deadline = after.wait(api, &row.tenant, &V::MODEL).await?;
    while !row.is_caught_up().await? {
        visible::again(deadline, &V::MODEL).await?;
    }
    let entry = row.load().await?;
    api.cache.put(&key, &entry).await;
    Ok((entry, Metadata::LOADED))
}

/// {data, metadata}: the text goes out as it is.
pub(super) fn answer(data: &str, metadata: Metadata) -> Response {
    let metadata = serde_json::to_string(&metadata).unwrap_or_default();
    let body = format!("{{\"data\":{data},\"metadata\":{metadata}}}");
    let mut response = Response::new(Body::from(body));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// {data, metadata} of a row whose age is told when it is read, see [`aged`].
pub(super) fn dated<'a, T: Deserialize<'a>>(
    entry: &'a Entry,
    metadata: Metadata,
    old: impl FnOnce(T) -> Vec<String>,
) -> Result<Response, Problem> {
    Ok(answer(&aged(entry, old)?, metadata))
}

/// The text of a row, with what `old` says of its age at this moment among its `warnings`.
pub(super) fn aged<'a, T: Deserialize<'a>>(
    entry: &'a Entry,
    old: impl FnOnce(T) -> Vec<String>,
) -> Result<Cow<'a, str>, Problem> {
    let old = old(part(&entry.json)?);
    if old.is_empty() {
        return Ok(Cow::Borrowed(&entry.json));
    }
    let mut data: Value = part(&entry.json)?;
    if let Some(warnings) = data.get_mut("warnings").and_then(Value::as_array_mut) {
        warnings.extend(old.into_iter().map(Value::from));
    }
    Ok(Cow::Owned(data.to_string()))
}

/// A part of what was stored in the cache.
pub(super) fn part<'a, T: Deserialize<'a>>(json: &'a str) -> Result<T, Problem> {
    serde_json::from_str(json).map_err(|error| {
        error!(%error, "a cached row cannot be read");
        Problem::internal()
    })
}

/// A row of the read model, as the origin of a cached value.
struct Row<V> {
    db: Db,
    tenant: TenantId,
    user: UserId,
    view: PhantomData<V>,
}

impl<V: View> Row<V> {
    async fn is_caught_up(&self) -> Result<bool, sqlx::Error> {
        let mut tx = self.db.tenant(&self.tenant).await?;
        let caught_up = V::is_caught_up(&mut tx, &self.user).await?;
        tx.commit().await?;
        Ok(caught_up)
    }
}

impl<V: View> Origin for Row<V> {
    type Error = sqlx::Error;

    async fn load(&self) -> Result<Entry, sqlx::Error> {
        let mut tx = self.db.tenant(&self.tenant).await?;
        let view = V::load(&mut tx, &self.user).await?;
        tx.commit().await?;
        let json = serde_json::to_string(&view).map_err(|e| sqlx::Error::Encode(Box::new(e)))?;
        Ok(Entry { json: json.into(), version: view.version() })
    }

    async fn version(&self) -> Result<i64, sqlx::Error> {
        let mut tx = self.db.tenant(&self.tenant).await?;
        let version = V::newest(&mut tx, &self.user).await?;
        tx.commit().await?;
        Ok(version)
    }
}
