//! What the projection reads and writes to keep anomalies: miners, their telemetry by window, their detectors.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use chrono::{DateTime, TimeDelta, Utc};
use rust_decimal::Decimal;
use serde::Serialize;
use sqlx::PgConnection;
use sqlx::types::Json;
use uuid::Uuid;

use crate::db::serial;
use crate::economics::anomaly::Detector;
use crate::identifier::{TenantId, UserId};
use crate::read_model::anomaly::Anomaly;

/// Waits until nobody else judges the miners of one of these owners; held to the end of the transaction.
pub async fn lock(
    conn: &mut PgConnection,
    tenant: &TenantId,
    owners: impl Iterator<Item = &UserId>,
) -> Result<(), sqlx::Error> {
    serial::take_turns(conn, &format!("anomaly:{tenant}"), owners).await
}

/// Those of the tenant who have miners, in order: those behind `after`, at most so many.
pub async fn owners(
    conn: &mut PgConnection,
    after: Option<&str>,
    limit: i64,
) -> Result<Vec<UserId>, sqlx::Error> {
    sqlx::query_scalar(
        "select distinct owner_id from miners where removed_at is null and ($1 is null or owner_id > $1) \
         order by owner_id limit $2",
    )
    .bind(after)
    .bind(limit)
    .fetch_all(conn)
    .await
}

/// The names, as the catalogue keys them, of models that are not cooled by air.
pub async fn other_cooling(conn: &mut PgConnection) -> Result<Vec<String>, sqlx::Error> {
    sqlx::query_scalar("select name_key from miner_model where cooling <> 'air'").fetch_all(conn).await
}

/// What a check has to know of a miner.
#[derive(Debug, sqlx::FromRow)]
pub struct MinerRow {
    pub id: Uuid,
    pub model: String,
    pub location: Option<String>,
    pub hashrate_ths: Decimal,
    pub power_w: Decimal,
    pub quantity: i32,
    pub status: String,
    pub status_changed_at: Option<DateTime<Utc>>,
}

/// Points and the sum of their TH/s, by the start of the window.
pub type Hour = BTreeMap<DateTime<Utc>, (i64, f64)>;

/// A miner with windows that nobody has judged.
#[derive(Debug, sqlx::FromRow)]
pub struct DueRow {
    #[sqlx(flatten)]
    pub miner: MinerRow,
    /// End of the newest judged window.
    pub judged_to: Option<DateTime<Utc>>,
    pub state: Option<Json<Detector>>,
    /// The windows of the hour up to there; none, where they are to be read.
    pub hour: Option<Json<Hour>>,
    /// Its newest point.
    pub last_point_at: DateTime<Utc>,
}

/// Which points count.
#[derive(Debug, Clone, Copy)]
pub struct Span {
    /// Points before this are history.
    pub since: DateTime<Utc>,
    /// The newest point that was told of.
    pub to: DateTime<Utc>,
}

/// Up to `limit` miners of an owner for which a window of this length is over: a point has come from behind its end.
pub async fn due(
    conn: &mut PgConnection,
    owner: &UserId,
    span: Span,
    window: TimeDelta,
    limit: i64,
) -> Result<Vec<DueRow>, sqlx::Error> {
    // The time of the event spares the look for a newer point wherever there can be none.
    sqlx::query_as(
        "select m.id, m.model, m.location, m.hashrate_ths, m.power_w, m.quantity, m.status, m.status_changed_at, \
           d.judged_to, d.state, d.hour, t.at as last_point_at \
         from miners m left join miner_detector d on d.tenant_id = m.tenant_id and d.miner_id = m.id \
         cross join lateral (select max(at) as at from miner_telemetry \
           where tenant_id = m.tenant_id and miner_id = m.id and at >= $2) t \
         where m.owner_id = $1 and m.removed_at is null \
           and (d.judged_to is null or d.judged_to + make_interval(secs => $4) <= $3) \
           and t.at >= greatest(d.judged_to + make_interval(secs => $4), $2) \
         order by m.id limit $5",
    )
    .bind(owner)
    .bind(span.since)
    .bind(span.to)
    .bind(window.as_seconds_f64())
    .bind(limit)
    .fetch_all(conn)
    .await
}

/// The points of one machine in one window.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct Bucket {
    pub points: i64,
    /// TH/s.
    pub hashrate_ths_sum: f64,
    /// Of the points that tell it, W.
    pub power_w_mean: Option<f64>,
    pub power_at: Option<DateTime<Utc>>,
    /// Degrees Celsius.
    pub temperature_c_max: Option<f64>,
}

#[derive(sqlx::FromRow)]
struct BucketRow {
    miner_id: Uuid,
    starts_at: DateTime<Utc>,
    #[sqlx(flatten)]
    bucket: Bucket,
}

/// The windows of miners by their start, each miner from one time to before another.
pub async fn buckets(
    conn: &mut PgConnection,
    spans: &[(Uuid, DateTime<Utc>, DateTime<Utc>)],
    window: TimeDelta,
) -> Result<HashMap<Uuid, BTreeMap<DateTime<Utc>, Bucket>>, sqlx::Error> {
    // The outer bounds leave the few days that are asked for.
    let rows: Vec<BucketRow> = sqlx::query_as(
        "select t.miner_id, date_bin(make_interval(secs => $4), t.at, 'epoch') as starts_at, count(*) as points, \
           sum(t.hashrate_ths) as hashrate_ths_sum, avg(t.power_w) as power_w_mean, \
           max(t.at) filter (where t.power_w is not null) as power_at, max(t.temperature_c) as temperature_c_max \
         from unnest($1::uuid[], $2::timestamptz[], $3::timestamptz[]) s (miner_id, starts_at, ends_at) \
         join miner_telemetry t on t.miner_id = s.miner_id and t.at >= s.starts_at and t.at < s.ends_at \
         where t.at >= $5 and t.at < $6 group by 1, 2",
    )
    .bind(spans.iter().map(|(miner, ..)| *miner).collect::<Vec<_>>())
    .bind(spans.iter().map(|(_, from, _)| *from).collect::<Vec<_>>())
    .bind(spans.iter().map(|(.., to)| *to).collect::<Vec<_>>())
    .bind(window.as_seconds_f64())
    .bind(spans.iter().map(|(_, from, _)| *from).min())
    .bind(spans.iter().map(|(.., to)| *to).max())
    .fetch_all(conn)
    .await?;
    let mut buckets: HashMap<Uuid, BTreeMap<DateTime<Utc>, Bucket>> = HashMap::new();
    for row in rows {
        buckets.entry(row.miner_id).or_default().insert(row.starts_at, row.bucket);
    }
    Ok(buckets)
}

/// What a miner that is not judged now did when it was judged last: its peers are compared with it.
#[derive(Debug, sqlx::FromRow)]
pub struct PeerRow {
    pub location: Option<String>,
    pub model: String,
    /// Rated, TH/s.
    pub hashrate_ths: Decimal,
    pub hour_mean_ths: f64,
    pub judged_to: DateTime<Utc>,
}

/// The miners of an owner beside these and at the same locations that were judged since.
pub async fn others(
    conn: &mut PgConnection,
    owner: &UserId,
    judged_now: &[DueRow],
    since: DateTime<Utc>,
) -> Result<Vec<PeerRow>, sqlx::Error> {
    let locations: BTreeSet<&str> =
        judged_now.iter().filter_map(|row| row.miner.location.as_deref()).collect();
    sqlx::query_as(
        "select m.location, m.model, m.hashrate_ths, d.hour_mean_ths, d.judged_to \
         from miners m join miner_detector d on d.tenant_id = m.tenant_id and d.miner_id = m.id \
         where m.owner_id = $1 and m.removed_at is null and m.location = any($2) and d.judged_to >= $3 \
           and d.hour_mean_ths is not null and m.id <> all($4)",
    )
    .bind(owner)
    .bind(locations.into_iter().collect::<Vec<_>>())
    .bind(since)
    .bind(judged_now.iter().map(|row| row.miner.id).collect::<Vec<_>>())
    .fetch_all(conn)
    .await
}

/// The open anomalies of miners, kept from others until the end of the transaction. Silence is the sweep's.
pub async fn open(conn: &mut PgConnection, miners: &[Uuid]) -> Result<Vec<Anomaly>, sqlx::Error> {
    sqlx::query_as(
        "select * from anomaly where miner_id = any($1) and state = 'open' and kind <> 'offline' \
         order by id for no key update",
    )
    .bind(miners)
    .fetch_all(conn)
    .await
}

/// Stores anomalies that are new, and what changed of the others.
pub async fn store(
    conn: &mut PgConnection,
    tenant: &TenantId,
    anomalies: &[Anomaly],
) -> Result<(), sqlx::Error> {
    if anomalies.is_empty() {
        return Ok(());
    }
    sqlx::query(
        "insert into anomaly (tenant_id, id, user_id, miner_id, kind, level, state, severity, opened_at, last_seen_at, \
         resolved_at, resolution, measured, expected, score, lost_usd_day, snapshot_id, price_as_of, warnings) \
         select $1, a.* from jsonb_to_recordset($2) as a (anomaly_id uuid, user_id text, miner_id uuid, kind text, \
           level text, state text, severity text, opened_at timestamptz, last_seen_at timestamptz, \
           resolved_at timestamptz, resolution text, measured numeric, expected numeric, score float8, \
           lost_usd_day numeric, snapshot_id uuid, price_as_of timestamptz, warnings jsonb) \
         on conflict (tenant_id, id) do update set level = excluded.level, state = excluded.state, \
           severity = excluded.severity, last_seen_at = excluded.last_seen_at, resolved_at = excluded.resolved_at, \
           resolution = excluded.resolution, measured = excluded.measured, expected = excluded.expected, \
           score = excluded.score, lost_usd_day = excluded.lost_usd_day, snapshot_id = excluded.snapshot_id, \
           price_as_of = excluded.price_as_of, warnings = excluded.warnings",
    )
    .bind(tenant.as_str())
    .bind(Json(anomalies))
    .execute(conn)
    .await
    .map(drop)
}

/// What is remembered of a miner after its windows were judged.
#[derive(Debug, Serialize)]
pub struct Judged<'a> {
    pub miner_id: Uuid,
    pub judged_to: DateTime<Utc>,
    pub last_point_at: DateTime<Utc>,
    pub hour_mean_ths: Option<f64>,
    pub state: &'a Detector,
    pub hour: Hour,
}

/// Stores detectors.
pub async fn remember(
    conn: &mut PgConnection,
    tenant: &TenantId,
    judged: &[Judged<'_>],
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "insert into miner_detector as known (tenant_id, miner_id, judged_to, last_point_at, hour_mean_ths, state, hour) \
         select $1, d.* from jsonb_to_recordset($2) as d (miner_id uuid, judged_to timestamptz, \
           last_point_at timestamptz, hour_mean_ths float8, state jsonb, hour jsonb) order by d.miner_id \
         on conflict (tenant_id, miner_id) do update set judged_to = excluded.judged_to, \
           last_point_at = excluded.last_point_at, hour_mean_ths = excluded.hour_mean_ths, state = excluded.state, \
           hour = excluded.hour",
    )
    .bind(tenant.as_str())
    .bind(Json(judged))
    .execute(conn)
    .await
    .map(drop)
}
