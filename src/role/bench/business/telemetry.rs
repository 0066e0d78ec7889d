//! Telemetry as it comes in: a steady load, and what it takes of the processors.
//!
//! An open loop: a request is begun when it is due, whether or not the earlier ones are done. A request is what the API does
//! with its body, parsed, checked, stored and told of in one transaction; HTTP itself is left out.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use chrono::{TimeDelta, Utc};
use hdrhistogram::Histogram;
use serde::Serialize;
use serde_json::{Map, Value};
use sqlx::Connection;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use uuid::Uuid;

use super::recalculation::TENANT;
use crate::cli::BusinessBench;
use crate::db::Db;
use crate::domain::Caller;
use crate::domain::miner::telemetry;
use crate::identifier::{TenantId, UserId};
use crate::role::bench::database::Database;
use crate::role::bench::process::{family_cpu, listening_on, own_usage};
use crate::role::bench::statistics::Quantiles;

/// Points of a request.
const PER_REQUEST: u32 = 1_000;

/// One load.
#[derive(Debug, Serialize)]
pub struct TelemetryRow {
    pub points_per_second: u32,
    pub seconds: u32,
    pub points_per_request: u32,
    pub points: u64,
    /// From when a request was due to its commit.
    pub request_ms: Quantiles,
    /// Of this process, the making of the requests included; 1 is a core.
    pub cores: f64,
    /// Of PostgreSQL with all its processes; unknown where it runs elsewhere.
    pub postgres_cores: Option<f64>,
}

/// As many miners as points a second, each with one point a second.
pub async fn taken(database: &Database, db: &Db, args: &BusinessBench) -> anyhow::Result<TelemetryRow> {
    let tenant: TenantId = TENANT.parse()?;
    let mut conn = database.owner().await?;
    let miners: Vec<Uuid> = sqlx::query_scalar(
        "insert into miners (tenant_id, id, owner_id, model, hashrate_ths, power_w, quantity, status) \
         select $1, gen_random_uuid(), 'reporting-' || n % 10, 'Antminer S21', 200, 3500, 1, 'online' \
         from generate_series(1, $2) n returning id",
    )
    .bind(TENANT)
    .bind(i32::try_from(args.points)?)
    .fetch_all(&mut conn)
    .await?;
    sqlx::raw_sql("vacuum analyze miners").execute(&mut conn).await?;
    let postgres = listening_on(database.options().get_port());
    let pages: Vec<&[Uuid]> = miners.chunks(PER_REQUEST as usize).collect();
    let every = Duration::from_secs(1) / u32::try_from(pages.len())?;
    let requests = u32::try_from(pages.len())? * args.seconds;
    let first = Utc::now() - TimeDelta::hours(1);
    let cpu = || -> anyhow::Result<_> { Ok((own_usage()?.cpu, postgres.and_then(family_cpu))) };
    let (before, began) = (cpu()?, Instant::now());
    let mut running = JoinSet::new();
    for number in 0..requests {
        let due = began + every * number;
        let second = number as usize / pages.len();
        let at = first + TimeDelta::seconds(i64::try_from(second)?);
        let page = pages.get(number as usize % pages.len()).context("a page")?;
        let points: Vec<String> = page
            .iter()
            .map(|id| {
                format!(r#"{{"miner_id":"{id}","at":"{}","hashrate_ths":198.5,"power_w":3480,"temperature_c":61}}"#, at.to_rfc3339())
            })
            .collect();
        let body = format!(r#"{{"points":[{}]}}"#, points.join(","));
        sleep_until(due).await;
        let (db, tenant) = (db.clone(), tenant.clone());
        running.spawn(async move {
            let stored = take(&db, &tenant, &body).await?;
            anyhow::Ok((stored, due.elapsed()))
        });
    }
    let (mut points, mut took) = (0, Histogram::<u64>::new(3)?);
    while let Some(done) = running.join_next().await {
        let (stored, elapsed) = done??;
        points += stored as u64;
        took.record(u64::try_from(elapsed.as_micros())?)?;
    }
    let (after, seconds) = (cpu()?, began.elapsed().as_secs_f64());
    let stored: i64 = sqlx::query_scalar("select count(*) from miner_telemetry").fetch_one(&mut conn).await?;
    conn.close().await?;
    ensure!(u64::try_from(stored)? == points, "{stored} of {points} points are stored");
    Ok(TelemetryRow {
        points_per_second: args.points,
        seconds: args.seconds,
        points_per_request: PER_REQUEST,
        points,
        request_ms: Quantiles::of(&took),
        cores: (after.0 - before.0).as_secs_f64() / seconds,
        postgres_cores: after.1.zip(before.1).map(|(after, before)| (after - before).as_secs_f64() / seconds),
    })
}

async fn take(db: &Db, tenant: &TenantId, body: &str) -> anyhow::Result<usize> {
    let body: Map<String, Value> = serde_json::from_str(body)?;
    let points = body.get("points").and_then(Value::as_array).context("points")?;
    let mut tx = db.tenant(tenant).await?;
    let actor: UserId = TENANT.parse()?;
    let caller = Caller { actor: &actor, request_id: TENANT, traceparent: "", now: tx.now() };
    let taken = telemetry::take(&mut tx, caller, None, points, TimeDelta::days(1)).await?;
    tx.commit().await?;
    Ok(taken.accepted_count)
}
