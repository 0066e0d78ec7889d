//! Owns the telemetry of miners: points as they are reported, and the figures of each hour.
//! Promises that a point counts once however often it is sent, that the hour's figures include it from the same commit
//! on, and one event an owner and request.
//! Called by the API; [`Retention`] by the running roles.

use std::collections::{BTreeMap, HashMap};

use chrono::{DateTime, TimeDelta, Utc};
use rust_decimal::Decimal;
use rust_decimal::prelude::ToPrimitive;
use serde::Serialize;
use serde_json::{Value, json};
use sqlx::PgConnection;
use uuid::Uuid;

use super::{Caller, CommandError, Input, emit};
use crate::db::TenantTx;
use crate::domain::FieldError;
use crate::domain::input::Low;
use crate::event::kind;
use crate::identifier::{EntityId, UserId};

mod retention;

pub use retention::Retention;

/// The most points of a request.
pub const MOST_POINTS: usize = 10_000;

/// So many mistakes are listed; the others are counted.
const MOST_ERRORS: usize = 100;

/// How far a miner's clock may be ahead.
const MAX_AHEAD: TimeDelta = TimeDelta::minutes(5);

const MAX_HASHRATE_THS: Decimal = Decimal::from_parts(10_000, 0, 0, false, 0);
const MAX_POWER_W: Decimal = Decimal::from_parts(100_000, 0, 0, false, 0);
const MAX_TEMPERATURE_C: Decimal = Decimal::from_parts(300, 0, 0, false, 0);
const MIN_TEMPERATURE_C: Decimal = Decimal::from_parts(100, 0, 0, true, 0);

/// What a miner measured, of one machine: the mean where the miner stands for several.
#[derive(Debug, Clone, PartialEq, Serialize, sqlx::FromRow)]
pub struct Point {
    pub miner_id: Uuid,
    pub at: DateTime<Utc>,
    /// TH/s.
    pub hashrate_ths: f64,
    /// W.
    pub power_w: Option<f64>,
    /// Of the hottest chip, degrees Celsius.
    pub temperature_c: Option<f64>,
}

/// What became of a request.
#[derive(Debug)]
pub struct Taken {
    pub batch_id: EntityId,
    pub total_count: usize,
    /// Points that were not known before.
    pub accepted_count: usize,
    /// Points of which the miner and the moment were known: the earlier one stays.
    pub duplicate_count: usize,
    pub failed_count: usize,
    /// One for each owner of an accepted point.
    pub event_ids: Vec<Uuid>,
    /// The first of the mistakes, in the order of the points.
    pub errors: Vec<FieldError>,
}

/// What new points of one owner tell others.
#[derive(Debug, Default)]
struct News {
    points: i64,
    from: Option<DateTime<Utc>>,
    to: Option<DateTime<Utc>>,
}

/// Takes points in; none may be older than `late`. Emits `miner.telemetry` for each owner of points that are new.
///
/// # Errors
/// [`CommandError::Invalid`] if no point is good.
pub async fn take(
    tx: &mut TenantTx,
    caller: Caller<'_>,
    batch_id: Option<&EntityId>,
    items: &[Value],
    late: TimeDelta,
) -> Result<Taken, CommandError> {
    let (mut points, mut errors) = read(caller.now, items, late);
    let owners = owners(tx.conn(), points.iter().map(|(_, point)| point.miner_id)).await?;
    points.retain(|(row, point)| {
        let known = owners.contains_key(&point.miner_id);
        if !known {
            errors.push(FieldError::new("miner_id", "is no miner of this tenant").of_row(*row));
        }
        known
    });
    errors.sort_by_key(|error| error.row);
    if points.is_empty() {
        errors.truncate(MOST_ERRORS);
        return Err(CommandError::Invalid(errors));
    }
    let failed_count = items.len() - points.len();
    errors.truncate(MOST_ERRORS);
    // In one order everywhere: two requests with the same points wait for each other and do not lock each other out.
    let mut points: Vec<Point> = points.into_iter().map(|(_, point)| point).collect();
    points.sort_by_key(|point| (point.miner_id, point.at));
    let batch_id = batch_id.cloned().unwrap_or_else(|| Uuid::now_v7().into());
    let mut news: BTreeMap<&UserId, News> = BTreeMap::new();
    let mut accepted_count = 0;
    for (miner_id, count, first, last) in store(tx, &points).await? {
        accepted_count += usize::try_from(count).unwrap_or_default();
        if let Some(owner) = owners.get(&miner_id) {
            let of_owner = news.entry(owner).or_default();
            of_owner.points += count;
            of_owner.from = Some(of_owner.from.map_or(first, |from| from.min(first)));
            of_owner.to = Some(of_owner.to.map_or(last, |to| to.max(last)));
        }
    }
    let mut event_ids = Vec::with_capacity(news.len());
    for (owner, News { points, from, to }) in news {
        let data = json!({"batch_id": batch_id, "points": points, "from": from, "to": to});
        event_ids.push(emit(tx, caller, kind::MINER_TELEMETRY, owner, batch_id.clone(), data).await?);
    }
    Ok(Taken {
        batch_id,
        total_count: items.len(),
        accepted_count,
        duplicate_count: points.len() - accepted_count,
        failed_count,
        event_ids,
        errors,
    })
}

/// The good points with their numbers, counted from 1, and what is wrong with the others.
fn read(now: DateTime<Utc>, items: &[Value], late: TimeDelta) -> (Vec<(usize, Point)>, Vec<FieldError>) {
    let (mut points, mut errors) = (Vec::with_capacity(items.len()), Vec::new());
    for (row, item) in (1..).zip(items) {
        match read_one(now, item, late) {
            Ok(point) => points.push((row, point)),
            Err(of_row) => errors.extend(of_row.into_iter().map(|error| error.of_row(row))),
        }
    }
    (points, errors)
}

fn read_one(now: DateTime<Utc>, item: &Value, late: TimeDelta) -> Result<Point, Vec<FieldError>> {
    let Some(object) = item.as_object() else {
        return Err(vec![FieldError::new("row", "must be an object")]);
    };
    let mut input = Input::new(object);
    let miner_id = input.identifier::<EntityId>(&["miner_id"]);
    let miner_id = input.required(&["miner_id"], miner_id);
    let at = input.timestamp(&["at"]).value().unwrap_or(now);
    if at > now + MAX_AHEAD {
        input.refuse("at", "must not be more than 5 minutes in the future");
    } else if at < now - late {
        input.refuse("at", format!("must not be older than {} days", late.num_days()));
    }
    let zero = Low::From(Decimal::ZERO);
    let hashrate = input.decimal(&["hashrate_ths", "hashrate"], zero, MAX_HASHRATE_THS);
    let hashrate = input.required(&["hashrate_ths"], hashrate);
    let power = input.decimal(&["power_w", "power_consumption", "power"], zero, MAX_POWER_W).value();
    let coldest = Low::From(MIN_TEMPERATURE_C);
    let temperature = input.decimal(&["temperature_c", "temperature"], coldest, MAX_TEMPERATURE_C).value();
    input.finish()?;
    // An identifier that is no id of ours is no miner's.
    let miner_id = miner_id.and_then(|id| id.as_str().parse().ok()).unwrap_or_default();
    let float = |value: Decimal| value.to_f64();
    let Some(hashrate_ths) = hashrate.and_then(float) else { return Err(Vec::new()) };
    Ok(Point {
        miner_id,
        at,
        hashrate_ths,
        power_w: power.and_then(float),
        temperature_c: temperature.and_then(float),
    })
}

/// The owners of those miners that exist.
async fn owners(
    conn: &mut PgConnection,
    miners: impl Iterator<Item = Uuid>,
) -> Result<HashMap<Uuid, UserId>, sqlx::Error> {
    let mut miners: Vec<Uuid> = miners.collect();
    miners.sort_unstable();
    miners.dedup();
    let owners: Vec<(Uuid, UserId)> =
        sqlx::query_as("select id, owner_id from miners where id = any($1) and removed_at is null")
            .bind(miners)
            .fetch_all(conn)
            .await?;
    Ok(owners.into_iter().collect())
}

/// Stores points and adds those that are new to the figures of their hours. Returns, for each miner with new points,
/// how many, the first and the last.
async fn store(
    tx: &mut TenantTx,
    points: &[Point],
) -> Result<Vec<(Uuid, i64, DateTime<Utc>, DateTime<Utc>)>, sqlx::Error> {
    let tenant = tx.tenant().clone();
    fn column<T>(points: &[Point], of: impl Fn(&Point) -> T) -> Vec<T> {
        points.iter().map(of).collect()
    }
    sqlx::query_as(
        "with fresh as ( \
           insert into miner_telemetry (tenant_id, miner_id, at, hashrate_ths, power_w, temperature_c) \
           select $1, * from unnest($2::uuid[], $3::timestamptz[], $4::float8[], $5::float8[], $6::float8[]) \
           on conflict do nothing returning miner_id, at, hashrate_ths, power_w, temperature_c), \
         hourly as ( \
           insert into miner_telemetry_hourly as known (tenant_id, miner_id, hour, points, hashrate_ths_sum, \
             hashrate_ths_min, hashrate_ths_max, power_points, power_w_sum, temperature_c_max) \
           select $1, miner_id, date_trunc('hour', at, 'UTC') as hour, count(*), sum(hashrate_ths), \
             min(hashrate_ths), max(hashrate_ths), count(power_w), coalesce(sum(power_w), 0), max(temperature_c) \
           from fresh group by miner_id, hour order by miner_id, hour \
           on conflict (tenant_id, miner_id, hour) do update set \
             points = known.points + excluded.points, \
             hashrate_ths_sum = known.hashrate_ths_sum + excluded.hashrate_ths_sum, \
             hashrate_ths_min = least(known.hashrate_ths_min, excluded.hashrate_ths_min), \
             hashrate_ths_max = greatest(known.hashrate_ths_max, excluded.hashrate_ths_max), \
             power_points = known.power_points + excluded.power_points, \
             power_w_sum = known.power_w_sum + excluded.power_w_sum, \
             temperature_c_max = greatest(known.temperature_c_max, excluded.temperature_c_max)) \
         select miner_id, count(*), min(at), max(at) from fresh group by miner_id",
    )
    .bind(tenant.as_str())
    .bind(column(points, |p| p.miner_id))
    .bind(column(points, |p| p.at))
    .bind(column(points, |p| p.hashrate_ths))
    .bind(column(points, |p| p.power_w))
    .bind(column(points, |p| p.temperature_c))
    .fetch_all(tx.conn())
    .await
}

/// The figures of one hour.
#[derive(Debug, Clone, PartialEq, Serialize, sqlx::FromRow)]
pub struct Hour {
    /// Its start.
    pub hour: DateTime<Utc>,
    pub points: i32,
    /// Mean, TH/s.
    pub hashrate_ths: f64,
    pub hashrate_ths_min: f64,
    pub hashrate_ths_max: f64,
    /// Mean of the points that tell it, W.
    pub power_w: Option<f64>,
    /// Degrees Celsius.
    pub temperature_c_max: Option<f64>,
}

/// Up to `limit` points of a miner from `from` to before `to`, newest first.
pub async fn points(
    tx: &mut TenantTx,
    miner: Uuid,
    (from, to): (DateTime<Utc>, DateTime<Utc>),
    limit: i64,
) -> Result<Vec<Point>, CommandError> {
    super::get(tx, miner).await?;
    let points = sqlx::query_as(
        "select miner_id, at, hashrate_ths, power_w, temperature_c from miner_telemetry \
         where miner_id = $1 and at >= $2 and at < $3 order by at desc limit $4",
    )
    .bind(miner)
    .bind(from)
    .bind(to)
    .bind(limit)
    .fetch_all(tx.conn())
    .await?;
    Ok(points)
}

/// Up to `limit` hours of a miner that start from `from` to before `to`, newest first.
pub async fn hours(
    tx: &mut TenantTx,
    miner: Uuid,
    (from, to): (DateTime<Utc>, DateTime<Utc>),
    limit: i64,
) -> Result<Vec<Hour>, CommandError> {
    super::get(tx, miner).await?;
    let hours = sqlx::query_as(
        "select hour, points, hashrate_ths_sum / points as hashrate_ths, hashrate_ths_min, hashrate_ths_max, \
           power_w_sum / nullif(power_points, 0) as power_w, temperature_c_max from miner_telemetry_hourly \
         where miner_id = $1 and hour >= $2 and hour < $3 order by hour desc limit $4",
    )
    .bind(miner)
    .bind(from)
    .bind(to)
    .bind(limit)
    .fetch_all(tx.conn())
    .await?;
    Ok(hours)
}
