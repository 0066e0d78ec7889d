//! The statements of the queue. Every time in it is the database's.

use std::time::Duration;

use sqlx::PgConnection;
use uuid::Uuid;

use super::share::Lane;
use crate::db::{Db, WorkerTx};
use crate::event::Event;
use crate::identifier::TenantId;

/// The pause after each failed attempt; after one more it is given up.
pub(super) const RETRIES: [Duration; 6] = [
    Duration::from_secs(5),
    Duration::from_secs(5 * 60),
    Duration::from_secs(30 * 60),
    Duration::from_secs(2 * 3_600),
    Duration::from_secs(5 * 3_600),
    Duration::from_secs(10 * 3_600),
];

/// Puts events into the queue of every endpoint of their tenant that is enabled, once each.
pub async fn enqueue(
    conn: &mut PgConnection,
    tenant: &TenantId,
    events: &[&Event],
) -> Result<(), sqlx::Error> {
    sqlx::query(
        // An endpoint that is being removed is waited for: the row would refer to nothing. So is one that is being switched
        // off or on: who switches gives up what waits, and nothing comes in behind that.
        "with e as materialized ( \
           select id from webhook_endpoint where tenant_id = $1 and enabled for share) \
         insert into webhook_delivery (tenant_id, endpoint_id, event_id, event_kind, body) \
         select $1, e.id, u.event_id, u.kind, u.body from e \
         cross join unnest($2::uuid[], $3::text[], $4::text[]) u (event_id, kind, body) on conflict do nothing",
    )
    .bind(tenant.as_str())
    .bind(events.iter().map(|event| event.event_id).collect::<Vec<_>>())
    .bind(events.iter().map(|event| event.kind.as_str()).collect::<Vec<_>>())
    .bind(events.iter().map(|event| event.text.as_str()).collect::<Vec<_>>())
    .execute(conn)
    .await
    .map(drop)
}

/// Whether the delivery `d` is due and nobody is at it.
macro_rules! waits {
    () => {
        "d.state = 'pending' and d.next_attempt_at <= statement_timestamp() \
         and (d.lease_until is null or d.lease_until < statement_timestamp())"
    };
}

/// What is due that nobody is at, by tenant, the one that waits longest first. One look into the queue of each endpoint,
/// however long it is.
pub(super) async fn due(db: &Db) -> Result<Vec<Lane>, sqlx::Error> {
    let statement = concat!(
        "select e.tenant_id, e.failing_since is not null, count(*) from webhook_endpoint e \
         cross join lateral ( \
           select d.next_attempt_at from webhook_delivery d \
           where d.tenant_id = e.tenant_id and d.endpoint_id = e.id and ",
        waits!(),
        " order by d.next_attempt_at limit 1) d \
         where e.enabled group by 1, 2 order by min(d.next_attempt_at)"
    );
    let rows: Vec<(TenantId, bool, i64)> = db.across_tenants(statement, &[]).await?;
    let lane = |(tenant, failing, endpoints)| Lane {
        tenant,
        failing,
        endpoints: usize::try_from(endpoints).unwrap_or(usize::MAX),
    };
    Ok(rows.into_iter().map(lane).collect())
}

/// A delivery that is ours to attempt.
#[derive(Debug, sqlx::FromRow)]
pub(super) struct Claimed {
    pub(super) endpoint_id: Uuid,
    pub(super) event_id: Uuid,
    /// This one included.
    pub(super) attempts: i32,
    /// Which claim this is.
    pub(super) claims: i64,
    pub(super) url: String,
    pub(super) body: String,
    pub(super) secret: Vec<u8>,
    /// While it signs as well.
    pub(super) previous_secret: Option<Vec<u8>>,
}

/// Claims up to `most` deliveries of a lane for a lease, and so many of an endpoint that it has at most
/// `most_of_endpoint` in flight, in all processes together.
pub(super) async fn claim(
    tx: &mut WorkerTx,
    lane: &Lane,
    most: usize,
    most_of_endpoint: usize,
    lease: Duration,
) -> Result<Vec<Claimed>, sqlx::Error> {
    let tenant = &lane.tenant;
    let conn = tx.for_tenant(tenant).await?;
    // Who counts what an endpoint has in flight counts alone. Not by a lock of its row, which the batches of the group share.
    let endpoints: Vec<Uuid> = sqlx::query_scalar(concat!(
        "with waiting as materialized ( \
           select id from webhook_endpoint e where tenant_id = $1 and enabled and (failing_since is not null) = $2 \
             and exists (select from webhook_delivery d where d.tenant_id = $1 and d.endpoint_id = e.id and ",
        waits!(),
        ")) select id from waiting \
         where pg_try_advisory_xact_lock(hashtextextended('webhook:' || $1 || ':' || id, 0))"
    ))
    .bind(tenant.as_str())
    .bind(lane.failing)
    .fetch_all(&mut *conn)
    .await?;
    sqlx::query_as(concat!(
        "with picked as ( \
           select d.endpoint_id, d.event_id from unnest($2::uuid[]) e (id) cross join lateral ( \
             select d.endpoint_id, d.event_id, d.next_attempt_at from webhook_delivery d \
             where d.tenant_id = $1 and d.endpoint_id = e.id and ",
        waits!(),
        " order by d.next_attempt_at limit greatest($3 - ( \
               select count(*) from webhook_delivery b where b.tenant_id = $1 and b.endpoint_id = e.id \
               and b.state = 'pending' and b.lease_until >= statement_timestamp()), 0) \
             for no key update skip locked) d \
           order by d.next_attempt_at limit $4) \
         update webhook_delivery d set attempts = d.attempts + 1, claims = d.claims + 1, \
           last_attempt_at = statement_timestamp(), \
           lease_until = statement_timestamp() + $5 * interval '1 ms' \
         from picked p join webhook_endpoint e on e.tenant_id = $1 and e.id = p.endpoint_id \
         where d.tenant_id = $1 and d.endpoint_id = p.endpoint_id and d.event_id = p.event_id \
         returning d.endpoint_id, d.event_id, d.attempts, d.claims, e.url, d.body, e.secret, \
           case when e.previous_secret_until > statement_timestamp() then e.previous_secret end as previous_secret"
    ))
    .bind(tenant.as_str())
    .bind(endpoints)
    .bind(i64::try_from(most_of_endpoint).unwrap_or(i64::MAX))
    .bind(i64::try_from(most).unwrap_or(i64::MAX))
    .bind(lease.as_secs_f64() * 1_000.0)
    .fetch_all(conn)
    .await
}

/// Writes down that a delivery arrived; nothing where somebody else has claimed or settled it since.
///
/// As everywhere, the endpoint is locked before its deliveries: two that settle do not wait for each other.
pub(super) async fn delivered(
    tx: &mut WorkerTx,
    tenant: &TenantId,
    claimed: &Claimed,
    status: u16,
) -> Result<(), sqlx::Error> {
    let conn = tx.for_tenant(tenant).await?;
    sqlx::query(
        "update webhook_endpoint set failing_since = null \
         where tenant_id = $1 and id = $2 and failing_since is not null",
    )
    .bind(tenant.as_str())
    .bind(claimed.endpoint_id)
    .execute(&mut *conn)
    .await?;
    sqlx::query(
        "update webhook_delivery set state = 'delivered', delivered_at = statement_timestamp(), lease_until = null, \
         last_status = $5, last_error = null \
         where tenant_id = $1 and endpoint_id = $2 and event_id = $3 and claims = $4 and state = 'pending'",
    )
    .bind(tenant.as_str())
    .bind(claimed.endpoint_id)
    .bind(claimed.event_id)
    .bind(claimed.claims)
    .bind(i32::from(status))
    .execute(conn)
    .await
    .map(drop)
}

/// Writes down that an attempt failed, and when the next one is, if there is one; `true`: the endpoint has failed for so
/// many days that it is to be disabled.
pub(super) async fn failed(
    tx: &mut WorkerTx,
    tenant: &TenantId,
    claimed: &Claimed,
    (status, error): (Option<u16>, &str),
    pause: Option<Duration>,
    days: i32,
) -> Result<bool, sqlx::Error> {
    let conn = tx.for_tenant(tenant).await?;
    let failing: Option<bool> = sqlx::query_scalar(
        "update webhook_endpoint set failing_since = coalesce(failing_since, statement_timestamp()) \
         where tenant_id = $1 and id = $2 and enabled \
         returning failing_since <= statement_timestamp() - make_interval(days => $3)",
    )
    .bind(tenant.as_str())
    .bind(claimed.endpoint_id)
    .bind(days)
    .fetch_optional(&mut *conn)
    .await?;
    sqlx::query(
        "update webhook_delivery set state = case when $5::float8 is null then 'failed' else 'pending' end, \
         next_attempt_at = coalesce(statement_timestamp() + $5 * interval '1 s', next_attempt_at), \
         lease_until = null, last_status = $6, last_error = left($7, 500) \
         where tenant_id = $1 and endpoint_id = $2 and event_id = $3 and claims = $4 and state = 'pending'",
    )
    .bind(tenant.as_str())
    .bind(claimed.endpoint_id)
    .bind(claimed.event_id)
    .bind(claimed.claims)
    .bind(pause.map(|pause| pause.as_secs_f64()))
    .bind(status.map(i32::from))
    .bind(error)
    .execute(conn)
    .await?;
    Ok(failing == Some(true))
}
