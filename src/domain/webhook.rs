//! Owns the webhook endpoints of a tenant: where its CRM's events are delivered, and with which secret they are signed.
//! Promises that a secret is shown once and stored sealed, and that a target is public unless the operator allows it.
//! Called by the API; disabling also by the sender.

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::input::{Given, Names};
use super::{Caller, CommandError, Input, emit};
use crate::db::TenantTx;
use crate::event::kind;
use crate::identifier::UserId;

mod delivery;
mod retention;
mod secret;
mod target;

pub use delivery::{DELIVERY_STATES, Delivery, deliveries, redeliver};
pub use retention::DeliveryRetention;
pub use secret::{Secret, Vault};
pub use target::{AllowedHosts, Target, is_public};

const URL: Names = &["url"];
const DESCRIPTION: Names = &["description"];
const ENABLED: Names = &["enabled"];
const OVERLAP: Names = &["overlap_hours"];

const LONGEST_URL: usize = 2_000;
const LONGEST_DESCRIPTION: usize = 200;
/// How many a tenant may have.
const MOST: i64 = 20;
/// How long the old secret signs beside the new one, hours, unless the caller says otherwise.
const DEFAULT_OVERLAP: i64 = 24;
const LONGEST_OVERLAP: i64 = 168;

/// After so many days without a success an endpoint is disabled.
pub const DISABLED_AFTER_DAYS: i32 = 5;

/// Where events are delivered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, sqlx::FromRow)]
pub struct Endpoint {
    #[sqlx(rename = "id")]
    pub webhook_id: Uuid,
    pub url: String,
    pub description: Option<String>,
    pub owner_id: UserId,
    pub enabled: bool,
    pub disabled_at: Option<DateTime<Utc>>,
    pub disabled_reason: Option<String>,
    /// Since when every attempt has failed.
    pub failing_since: Option<DateTime<Utc>>,
    /// Until when the old secret signs as well.
    pub previous_secret_until: Option<DateTime<Utc>>,
    pub created_at: DateTime<Utc>,
    pub updated_at: DateTime<Utc>,
}

/// What a command did.
#[derive(Debug)]
pub struct Written {
    pub webhook_id: Uuid,
    /// None when nothing changed.
    pub event_id: Option<Uuid>,
    /// A new secret, to be shown this once.
    pub secret: Option<Secret>,
}

/// An endpoint of the tenant.
pub async fn get(tx: &mut TenantTx, id: Uuid) -> Result<Endpoint, CommandError> {
    let query = sqlx::query_as("select * from webhook_endpoint where id = $1");
    query.bind(id).fetch_optional(tx.conn()).await?.ok_or(CommandError::NotFound)
}

/// Up to `limit` endpoints in the order they were made, behind `after`.
pub async fn list(tx: &mut TenantTx, after: Option<Uuid>, limit: i64) -> Result<Vec<Endpoint>, sqlx::Error> {
    sqlx::query_as("select * from webhook_endpoint where $1::uuid is null or id > $1 order by id limit $2")
        .bind(after)
        .bind(limit)
        .fetch_all(tx.conn())
        .await
}

/// Makes an endpoint from the fields `url` and `description`.
pub async fn add(
    tx: &mut TenantTx,
    caller: Caller<'_>,
    (vault, allowed): (Option<&Vault>, &AllowedHosts),
    given: &Map<String, Value>,
) -> Result<Written, CommandError> {
    let mut input = Input::new(given);
    let url = target_url(&mut input, allowed);
    let url = input.required(URL, url);
    let description = input.text(DESCRIPTION, LONGEST_DESCRIPTION).value();
    input.finish().map_err(CommandError::Invalid)?;
    let Some(url) = url else { return Err(CommandError::Invalid(Vec::new())) };
    let vault = vault.ok_or_else(no_key)?;
    let tenant = tx.tenant().clone();
    // Two that are made at once are counted one after the other: the count is a statement behind the lock.
    sqlx::query("select pg_advisory_xact_lock(hashtextextended($1 || ':webhooks', 0))")
        .bind(tenant.as_str())
        .execute(tx.conn())
        .await?;
    let count: i64 = sqlx::query_scalar("select count(*) from webhook_endpoint").fetch_one(tx.conn()).await?;
    if count >= MOST {
        return Err(broken("too-many-webhooks", format!("a tenant has at most {MOST}: remove one")));
    }
    let id = Uuid::now_v7();
    let secret = Secret::new()?;
    sqlx::query(
        "insert into webhook_endpoint (tenant_id, id, url, description, owner_id, secret, created_at, updated_at) \
         values ($1, $2, $3, $4, $5, $6, $7, $7)",
    )
    .bind(tenant.as_str())
    .bind(id)
    .bind(&url)
    .bind(&description)
    .bind(caller.actor)
    .bind(vault.seal(&secret, &tenant, id)?)
    .bind(caller.now)
    .execute(tx.conn())
    .await?;
    let data = json!({"webhook_id": id, "host": host_of(&url)});
    let event_id = emit(tx, caller, kind::CRM_WEBHOOK_CREATED, caller.actor, id.into(), data).await?;
    Ok(Written { webhook_id: id, event_id: Some(event_id), secret: Some(secret) })
}

/// Changes `url`, `description` and `enabled`. Switched off or on, what waits has failed: it starts with a clean sheet.
pub async fn update(
    tx: &mut TenantTx,
    caller: Caller<'_>,
    allowed: &AllowedHosts,
    id: Uuid,
    given: &Map<String, Value>,
) -> Result<Written, CommandError> {
    let old = lock(tx, id).await?;
    let mut input = Input::new(given);
    let url = target_url(&mut input, allowed);
    let url = input.kept(URL, url, &old.url);
    let description = input.text(DESCRIPTION, LONGEST_DESCRIPTION).cleared(&old.description);
    let enabled = input.boolean(ENABLED);
    let enabled = input.kept(ENABLED, enabled, &old.enabled);
    input.finish().map_err(CommandError::Invalid)?;
    // A URL may hold what is not for everybody who reads events: only its host is told.
    let mut changes = Map::new();
    if url != old.url {
        changes.insert("url".to_owned(), json!({"old": host_of(&old.url), "new": host_of(&url)}));
    }
    if description != old.description {
        changes.insert("description".to_owned(), json!({"old": old.description, "new": description}));
    }
    if enabled != old.enabled {
        changes.insert("enabled".to_owned(), json!({"old": old.enabled, "new": enabled}));
    }
    let mut written = Written { webhook_id: id, event_id: None, secret: None };
    if changes.is_empty() {
        return Ok(written);
    }
    sqlx::query(
        "update webhook_endpoint set url = $2, description = $3, updated_at = $4, enabled = $5, \
         disabled_at = case when $5 then null else coalesce(disabled_at, $4) end, \
         disabled_reason = case when $5 then null when enabled then 'switched off' else disabled_reason end, \
         failing_since = case when $5 and enabled and url = $2 then failing_since end where id = $1",
    )
    .bind(id)
    .bind(&url)
    .bind(&description)
    .bind(caller.now)
    .bind(enabled)
    .execute(tx.conn())
    .await?;
    if enabled != old.enabled {
        delivery::give_up(tx, id).await?;
    }
    let data = json!({"webhook_id": id, "changes": changes});
    let kind = kind::CRM_WEBHOOK_UPDATED;
    written.event_id = Some(emit(tx, caller, kind, caller.actor, id.into(), data).await?);
    Ok(written)
}

/// Removes an endpoint with its deliveries.
pub async fn remove(tx: &mut TenantTx, caller: Caller<'_>, id: Uuid) -> Result<Written, CommandError> {
    let old = lock(tx, id).await?;
    sqlx::query("delete from webhook_endpoint where id = $1").bind(id).execute(tx.conn()).await?;
    let data = json!({"webhook_id": id, "host": host_of(&old.url)});
    let event_id = emit(tx, caller, kind::CRM_WEBHOOK_REMOVED, caller.actor, id.into(), data).await?;
    Ok(Written { webhook_id: id, event_id: Some(event_id), secret: None })
}

/// Gives an endpoint a new secret; the old one signs as well for `overlap_hours`.
pub async fn rotate(
    tx: &mut TenantTx,
    caller: Caller<'_>,
    vault: Option<&Vault>,
    id: Uuid,
    given: &Map<String, Value>,
) -> Result<Written, CommandError> {
    lock(tx, id).await?;
    let mut input = Input::new(given);
    let overlap = input.integer(OVERLAP, 0..=LONGEST_OVERLAP).value().unwrap_or(DEFAULT_OVERLAP);
    input.finish().map_err(CommandError::Invalid)?;
    let secret = Secret::new()?;
    let sealed = vault.ok_or_else(no_key)?.seal(&secret, tx.tenant(), id)?;
    sqlx::query(
        "update webhook_endpoint set secret = $2, previous_secret = secret, \
         previous_secret_until = now() + $3 * interval '1 hour', updated_at = $4 where id = $1",
    )
    .bind(id)
    .bind(sealed)
    .bind(overlap as f64)
    .bind(caller.now)
    .execute(tx.conn())
    .await?;
    let data = json!({"webhook_id": id, "overlap_hours": overlap});
    let kind = kind::CRM_WEBHOOK_SECRET_ROTATED;
    let event_id = emit(tx, caller, kind, caller.actor, id.into(), data).await?;
    Ok(Written { webhook_id: id, event_id: Some(event_id), secret: Some(secret) })
}

/// Disables an endpoint that has failed for [`DISABLED_AFTER_DAYS`], by the database's clock; `false` where it has not,
/// or is disabled already.
pub async fn disable_failing(tx: &mut TenantTx, caller: Caller<'_>, id: Uuid) -> Result<bool, CommandError> {
    let reason = format!("every attempt has failed for {DISABLED_AFTER_DAYS} days");
    let disabled: Option<Endpoint> = sqlx::query_as(
        "update webhook_endpoint set enabled = false, disabled_at = now(), disabled_reason = $2, updated_at = now() \
         where id = $1 and enabled and failing_since <= now() - make_interval(days => $3) returning *",
    )
    .bind(id)
    .bind(&reason)
    .bind(DISABLED_AFTER_DAYS)
    .fetch_optional(tx.conn())
    .await?;
    let Some(endpoint) = disabled else { return Ok(false) };
    delivery::give_up(tx, id).await?;
    let data = json!({
        "webhook_id": id, "host": host_of(&endpoint.url), "reason": reason, "failing_since": endpoint.failing_since,
    });
    emit(tx, caller, kind::CRM_WEBHOOK_DISABLED, &endpoint.owner_id, id.into(), data).await?;
    Ok(true)
}

async fn lock(tx: &mut TenantTx, id: Uuid) -> Result<Endpoint, CommandError> {
    let query = sqlx::query_as("select * from webhook_endpoint where id = $1 for no key update");
    query.bind(id).fetch_optional(tx.conn()).await?.ok_or(CommandError::NotFound)
}

fn target_url(input: &mut Input<'_>, allowed: &AllowedHosts) -> Given<String> {
    let given = input.text(URL, LONGEST_URL);
    if let Given::Value(url) = &given
        && let Err(refused) = Target::parse(url, allowed)
    {
        input.refuse(URL[0], refused.to_string());
        return Given::Absent;
    }
    given
}

fn host_of(url: &str) -> Option<String> {
    url.parse::<hyper::Uri>().ok()?.host().map(str::to_owned)
}

fn broken(rule: &'static str, detail: String) -> CommandError {
    CommandError::Rule { rule, detail }
}

/// Without a key no secret is made, rather than one that lies open.
fn no_key() -> CommandError {
    broken(
        "webhooks-have-no-key",
        "the operator has not set webhooks.key: secrets could not be sealed".to_owned(),
    )
}
