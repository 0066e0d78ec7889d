//! What intel-group keeps: anomalies of miners, miners that fall silent, the forecast of the network.

mod anomalies;
mod curtailed;
mod forecast;
mod pipeline;
mod silence;

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use hashinsight::economics::anomaly::detector::window_end;
use hashinsight::jobs::{Ended, Job, Runner, Settings, Step};
use hashinsight::read_model::anomaly::GROUP;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::support::pipeline::{apply, events_behind};
use crate::support::{TestApi, TestDb};

/// The price of the reference case: a dead S21 loses $7.511124 a day.
fn snapshot() -> Value {
    json!({"btc_price_usd": 90000, "difficulty": 150e12, "block_height": 900000, "fees_btc_per_block": 0.05})
}

fn text(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::AutoSi, true)
}

/// A tenant's miners, and a clock that tells windows: number 0 began 50 minutes ago.
struct Site {
    db: TestDb,
    api: TestApi,
    begin: DateTime<Utc>,
    /// What the group has applied.
    position: std::sync::atomic::AtomicI64,
}

impl Site {
    async fn open() -> Self {
        let db = TestDb::new().await;
        let api = TestApi::start(&db).await;
        let begin = window_end(db.db.now()) - TimeDelta::minutes(50);
        Self { db, api, begin, position: 0.into() }
    }

    async fn priced() -> Self {
        let site = Self::open().await;
        site.api.post("/api/network/snapshots", snapshot()).await.expect(201);
        site
    }

    async fn miner(&self, more: Value) -> String {
        let mut body = json!({"model": "S21", "status": "online", "location": "north"});
        let fields = more.as_object().expect("an object").clone();
        body.as_object_mut().expect("an object").extend(fields);
        self.api.add_miner(body).await
    }

    /// The minute of a window, which may be before the first.
    fn at(&self, window: i64, minute: i64) -> DateTime<Utc> {
        self.begin + TimeDelta::minutes(window * 5 + minute)
    }

    fn point(&self, miner: &str, window: i64, ths: f64) -> Value {
        json!({"miner_id": miner, "at": text(self.at(window, 1)), "hashrate_ths": ths})
    }

    async fn post(&self, points: &[Value]) {
        self.api.post("/api/miners/telemetry", json!({"points": points})).await.expect(201);
    }

    /// The group catches up, in one batch.
    async fn judge(&self) {
        use std::sync::atomic::Ordering::Relaxed;
        let (events, last) = events_behind(&self.db, self.position.load(Relaxed)).await;
        self.position.store(last, Relaxed);
        apply(&self.db, GROUP, &events).await;
    }

    /// An hour of 200 TH/s before window 0.
    async fn healthy_hour(&self, miner: &str) {
        let points: Vec<Value> = (-12..0).map(|window| self.point(miner, window, 200.0)).collect();
        self.post(&points).await;
    }

    /// Windows from a number on, one point and one batch each.
    async fn windows(&self, miner: &str, first: i64, figures: &[f64]) {
        for (window, ths) in (first..).zip(figures) {
            self.post(&[self.point(miner, window, *ths)]).await;
            self.judge().await;
        }
    }

    async fn anomalies(&self, query: &str) -> Vec<Value> {
        let list = self.api.get(&format!("/api/intelligence/anomalies?{query}")).await.expect(200).body;
        list["data"].as_array().expect("a list").clone()
    }

    /// Kind, check and loss of every event about an anomaly, in order.
    async fn told(&self) -> Vec<(String, String)> {
        sqlx::query_as(
            "select event_type, payload #>> '{data,kind}' from event_outbox where event_type like 'anomaly.%' \
             order by position",
        )
        .fetch_all(&self.db.admin)
        .await
        .expect("events")
    }
}

/// A process that may run a job.
fn runner(db: &TestDb, job: Arc<dyn Job>) -> Runner {
    let settings = Settings { poll: Duration::from_secs(1), lease: Duration::from_secs(60) };
    Runner::new(db.db.clone(), db.bells.clone(), job, settings)
}

/// Runs a job as a process does to which it is due, and returns for how many tenants; it fails for none.
async fn run_job(db: &TestDb, job: Arc<dyn Job>) -> usize {
    let name = job.name();
    let runner = runner(db, job);
    runner.register().await.expect("registered");
    db.execute(&format!("update scheduled_job set next_run_at = now() where name = '{name}'")).await;
    match runner.step(&CancellationToken::new()).await.expect("a step") {
        Step::Ran(Ended { tenants, tenants_failed: 0, error: None }) => tenants,
        other => panic!("{other:?}"),
    }
}

fn is_told(events: &[(String, String)], expected: &[(&str, &str)]) {
    let events: Vec<(&str, &str)> =
        events.iter().map(|(event, kind)| (event.as_str(), kind.as_str())).collect();
    assert_eq!(events, expected);
}

fn near(figure: &Value, expected: f64) {
    let figure = figure.as_f64().expect("a number");
    assert!((figure - expected).abs() < 1e-6 * expected.abs(), "{figure} is not {expected}");
}
