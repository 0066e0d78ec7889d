//! Operations over HTTP and by the clock: prices, settings, the optimum, plans, the strike automation, the schedule.

mod clock;
mod cuts;
mod left;
mod optimum;
mod plans;
mod prices;
mod schedule;
mod strike;

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use hashinsight::domain::Caller;
use hashinsight::identifier::{TenantId, UserId};
use hashinsight::jobs::{Job, Progress, Run};
use serde_json::{Value, json};

use crate::support::{Answer, TestApi, TestDb, until};

const MARKET: &str = "ERCOT_WEST";

/// The hourly prices of the specification's day, $/MWh.
const DAY: [i64; 12] = [50, 50, 100, 60, 120, 300, 300, 100, 50, 95, 50, 50];

/// The network of the reference case.
fn snapshot() -> Value {
    json!({"btc_price_usd": 90000, "difficulty": 150e12, "block_height": 925000, "fees_btc_per_block": 0.05})
}

/// The start of the hour that is running. A test asks once, and what it expects holds in the next hour, too.
fn this_hour() -> DateTime<Utc> {
    DateTime::from_timestamp(Utc::now().timestamp() / 3_600 * 3_600, 0).expect("a time")
}

/// Intervals that follow each other.
fn intervals(start: DateTime<Utc>, seconds: i64, prices: &[i64]) -> Vec<Value> {
    (0..)
        .zip(prices)
        .map(|(n, price)| {
            json!({"start": start + TimeDelta::seconds(n * seconds), "seconds": seconds, "price_usd_mwh": price})
        })
        .collect()
}

async fn receive(api: &TestApi, start: DateTime<Utc>, seconds: i64, prices: &[i64]) -> Answer {
    let body = json!({"market": MARKET, "prices": intervals(start, seconds, prices)});
    api.post("/api/ops/prices", body).await.expect(201)
}

async fn optimum(api: &TestApi, body: Value) -> Answer {
    api.post("/api/intelligence/optimize/curtailment", body).await
}

/// Runs a command of the clock at a moment, in a transaction of the API's tenant.
async fn at<T>(
    (db, api): (&TestDb, &TestApi),
    now: DateTime<Utc>,
    command: impl AsyncFnOnce(&mut hashinsight::db::TenantTx, Caller<'_>) -> T,
) -> T {
    let actor: UserId = "clock".parse().expect("a user");
    let caller = Caller { actor: &actor, request_id: "sweep", traceparent: "", now };
    let mut tx = db.db.tenant(&api.tenant.parse().expect("a tenant")).await.expect("begin");
    let done = command(&mut tx, caller).await;
    tx.commit().await.expect("commit");
    done
}

/// One transaction of a job in the tenant that it lists, which is the API's.
async fn work((db, api): (&TestDb, &TestApi), job: &dyn Job) {
    let listed: Vec<(TenantId,)> = db.db.across_tenants(job.tenants(), &[]).await.expect("tenants");
    assert_eq!(listed, [(api.tenant.parse().expect("a tenant"),)]);
    let mut tx = db.db.tenant(&listed[0].0).await.expect("begin");
    let progress = job.run(&mut tx, &Run { id: "run".to_owned() }).await.expect("run");
    assert_eq!(progress, Progress::Done);
    tx.commit().await.expect("commit");
}

/// The kinds of the tenant's events that begin so, in order.
async fn kinds(db: &TestDb, prefix: &str) -> Vec<String> {
    sqlx::query_scalar(
        "select event_type from event_outbox where event_type like $1 || '%' order by position",
    )
    .bind(prefix)
    .fetch_all(&db.admin)
    .await
    .expect("events")
}

/// The data of the newest event of a kind.
async fn told(db: &TestDb, kind: &str) -> Value {
    sqlx::query_scalar(
        "select payload -> 'data' from event_outbox where event_type = $1 order by position desc limit 1",
    )
    .bind(kind)
    .fetch_one(&db.admin)
    .await
    .expect("an event")
}

/// Waits until somebody waits for a turn that another transaction has.
async fn somebody_waits(db: &TestDb) {
    until("the later one waits", Duration::from_secs(60), async || {
        let waits = "select count(*) from pg_stat_activity \
                     where datname = current_database() and wait_event_type = 'Lock' and wait_event = 'advisory'";
        (db.scalar::<i64>(waits).await > 0).then_some(())
    })
    .await;
}

fn close(actual: &Value, expected: f64) {
    let number = actual.as_f64().unwrap_or(f64::NAN);
    assert!((number - expected).abs() < 1e-5, "{actual} is not {expected}");
}
