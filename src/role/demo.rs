//! The simulated fleet of `standalone --demo`: one tenant whose miners, price and difficulty keep changing.
//!
//! It writes through the same commands as the API and waits for each event as a client with `after=` does, so what it
//! measures is what a client of the API would see.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hdrhistogram::Histogram;
use rust_decimal::Decimal;
use serde::Serialize;
use serde_json::{Map, Value, json};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tracing::warn;
use uuid::Uuid;

use crate::api::token::{Grant, sign};
use crate::config::{Config, EconomicsConfig};
use crate::db::{Db, TenantTx};
use crate::domain::{Caller, CommandError, miner, miner_model, network};
use crate::doorbell::{Bell, Doorbells};
use crate::identifier::{TenantId, UserId};
use crate::lag;
use crate::log::EventLog;
use crate::read_model::{portfolio, visibility};

mod scene;

const TENANT: &str = "demo";
const OWNERS: [&str; 5] = ["alice", "bob", "carol", "dave", "erin"];
const SITES: [&str; 4] = ["Reykjavik", "Paraguay North", "Texas West", "Quebec"];
const STATUSES: [&str; 5] = ["online", "online", "online", "offline", "maintenance"];
/// Miners at the start, and the most there will be.
const FLEET: std::ops::Range<usize> = 40..200;
/// One write every so often: about 20 events a second, since a status that stays as it was is no event.
const PACE: Duration = Duration::from_millis(37);
/// Every so many writes the network moves.
const SNAPSHOT_EVERY: u64 = 40;
/// The failing miner reports every so many writes: about each half minute.
const REPORT_EVERY: u64 = 800;
/// Writes whose visibility is awaited at once; beyond, the simulation itself waits.
const WATCHED: usize = 256;
/// A write that is not visible by then counts as that late.
const LONGEST_WAIT: Duration = Duration::from_secs(10);
/// The token of the welcome lives as long as a working day.
const TOKEN_TTL: Duration = Duration::from_secs(12 * 3_600);

/// The simulation.
pub struct Demo {
    db: Db,
    bells: Doorbells,
    log: Arc<dyn EventLog>,
    tenant: TenantId,
    owners: Vec<UserId>,
    models: Vec<String>,
    miners: Vec<Uuid>,
    /// The one that fails, which the simulation leaves alone.
    failing: Option<Uuid>,
    walk: Walk,
    writes: u64,
    events: u64,
    /// From the start of the write until the portfolio shows it, in microseconds.
    latency: Histogram<u64>,
    waiting: JoinSet<Duration>,
    shown: (Instant, u64),
}

/// Price and difficulty of the simulated network.
struct Walk {
    btc_price_usd: f64,
    difficulty: f64,
    block_height: u64,
}

/// What `--for` prints at its end.
#[derive(Debug, Serialize)]
pub struct Summary {
    /// Events written, all of them seen in a portfolio.
    pub events: u64,
    pub write_to_visible_ms: Percentiles,
    /// Records that the groups have yet to apply; null if unknown.
    pub lag: Option<i64>,
    pub dead_letters: i64,
}

/// Milliseconds.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Percentiles {
    pub p50: f64,
    pub p95: f64,
    pub p99: f64,
}

impl Demo {
    /// Prepares the simulation on what the tenant already has from an earlier one.
    pub async fn new(
        db: Db,
        bells: Doorbells,
        log: Arc<dyn EventLog>,
        economics: &EconomicsConfig,
    ) -> anyhow::Result<Self> {
        let tenant: TenantId = TENANT.parse()?;
        let owners: Vec<UserId> = OWNERS.iter().map(|o| o.parse()).collect::<Result<_, _>>()?;
        let mut walk = Walk { btc_price_usd: 90_000.0, difficulty: 150e12, block_height: 925_000 };
        let mut tx = db.tenant(&tenant).await?;
        scene::set(&mut tx, &owners[0], &owners[1], &walk.step(), economics.pue).await?;
        tx.commit().await?;
        let mut tx = db.tenant(&tenant).await?;
        let models = miner_model::list(tx.conn(), None, i64::MAX).await?;
        let miners = miner::list(&mut tx, None, None, FLEET.end as i64).await?;
        tx.commit().await?;
        bells.ring(Bell::Outbox);
        // It is left alone; the others change like all of the fleet.
        let (failing, miners): (Vec<_>, Vec<_>) =
            miners.into_iter().partition(|miner| miner.location.as_deref() == Some(scene::FAILING_HALL));
        Ok(Self {
            db,
            bells,
            log,
            tenant,
            owners,
            models: models.into_iter().filter(|m| m.core).map(|m| m.name).collect(),
            miners: miners.into_iter().map(|m| m.miner_id).collect(),
            failing: failing.first().map(|miner| miner.miner_id),
            walk,
            writes: 0,
            events: 0,
            latency: Histogram::new_with_max(2 * LONGEST_WAIT.as_micros() as u64, 3)?,
            waiting: JoinSet::new(),
            shown: (Instant::now(), 0),
        })
    }

    /// The address, a token, and calls to try.
    pub fn welcome(&self, address: SocketAddr, config: &Config) -> anyhow::Result<String> {
        let admin = Some("admin");
        let grant = Grant { tenant_id: &self.tenant, user_id: &self.owners[0], scopes: &[], role: admin };
        let jwt = sign(&config.auth, &grant, TOKEN_TTL)?;
        Ok(format!(
            "HashInsight is listening on http://{address}; the tenant is \"{TENANT}\", the user \"{owner}\".\n\n\
             export TOKEN={jwt}\n\n\
             curl -s -H \"Authorization: Bearer $TOKEN\" 'http://{address}/api/portfolio'\n\
             curl -s -H \"Authorization: Bearer $TOKEN\" 'http://{address}/api/treasury/overview'\n\
             curl -s -H \"Authorization: Bearer $TOKEN\" 'http://{address}/api/intelligence/anomalies'\n\
             curl -s -H \"Authorization: Bearer $TOKEN\" 'http://{address}/api/ops/schedule'\n\
             curl -s -H \"Authorization: Bearer $TOKEN\" 'http://{address}/api/crm/invoices?state=OVERDUE'\n\
             curl -s -H \"Authorization: Bearer $TOKEN\" -H 'Content-Type: application/json' \\\n     \
             -d '{{\"model\":\"S21\",\"quantity\":10,\"status\":\"online\"}}' 'http://{address}/api/miners'\n",
            owner = self.owners[0],
        ))
    }

    /// Writes until the stop or the end of the time, telling `status` now and then; returns when everything written is
    /// visible.
    pub async fn run(
        mut self,
        stopping: &CancellationToken,
        run_for: Option<Duration>,
        status_every: Duration,
        status: impl Fn(&str),
    ) -> anyhow::Result<Summary> {
        let end = run_for.map(|time| Instant::now() + time);
        let mut pace = tokio::time::interval(PACE);
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut show = tokio::time::interval_at(Instant::now() + status_every, status_every);
        loop {
            tokio::select! {
                () = stopping.cancelled() => break,
                () = until(end) => break,
                Some(seen) = self.waiting.join_next() => self.record(seen?),
                _ = show.tick() => {
                    let line = self.status_line().await;
                    status(&line);
                }
                _ = pace.tick(), if self.waiting.len() < WATCHED => {
                    if let Err(error) = self.write().await {
                        warn!(%error, "the simulation could not write; it goes on");
                    }
                }
            }
        }
        while let Some(seen) = self.waiting.join_next().await {
            self.record(seen?);
        }
        self.settle().await;
        self.summary().await
    }

    /// Waits for the groups whose read models nobody waited for.
    async fn settle(&self) {
        let mut bell = self.bells.listen(Bell::Applied);
        let applied = async {
            loop {
                bell.arm();
                if self.lag().await == Some(0) {
                    return;
                }
                bell.rung().await;
            }
        };
        // What is left after that is told.
        let _ = tokio::time::timeout(LONGEST_WAIT, applied).await;
    }

    fn record(&mut self, seen: Duration) {
        let micros = seen.min(LONGEST_WAIT).as_micros() as u64;
        self.latency.saturating_record(micros);
    }

    /// One change of the fleet or of the network.
    async fn write(&mut self) -> Result<(), CommandError> {
        self.writes += 1;
        let started = Instant::now();
        let owner = self.owners[fastrand::usize(..self.owners.len())].clone();
        let mut tx = self.db.tenant(&self.tenant).await?;
        let caller = Caller { actor: &owner, request_id: "demo", traceparent: "", now: tx.now() };
        if let Some(failing) = self.failing.filter(|_| self.writes.is_multiple_of(REPORT_EVERY)) {
            scene::go_on(&mut tx, caller, failing).await?;
        }
        let event_id = if self.writes % SNAPSHOT_EVERY == 1 {
            Some(network::record(&mut tx, caller, &self.walk.step()).await?.event_id)
        } else {
            self.change_fleet(&mut tx, caller).await?
        };
        tx.commit().await?;
        self.bells.ring(Bell::Outbox);
        let Some(event_id) = event_id else { return Ok(()) };
        self.events += 1;
        let (db, tenant, bells) = (self.db.clone(), self.tenant.clone(), self.bells.clone());
        self.waiting.spawn(async move {
            let deadline = started + LONGEST_WAIT;
            match visibility::wait(
                &db,
                &tenant,
                portfolio::GROUP,
                portfolio::KINDS,
                event_id,
                deadline,
                &bells,
            )
            .await
            {
                Ok(visibility::Visibility::Visible) => started.elapsed(),
                _ => LONGEST_WAIT,
            }
        });
        Ok(())
    }

    async fn change_fleet(
        &mut self,
        tx: &mut TenantTx,
        caller: Caller<'_>,
    ) -> Result<Option<Uuid>, CommandError> {
        let count = self.miners.len();
        if count < FLEET.start || (count < FLEET.end && fastrand::u8(..10) == 0) {
            let added = miner::add(tx, caller, &self.new_miner()).await?;
            self.miners.push(added.miner_id);
            return Ok(added.event_id);
        }
        let chosen = fastrand::usize(..count);
        let id = self.miners[chosen];
        match fastrand::u8(..20) {
            0 => {
                self.miners.swap_remove(chosen);
                Ok(miner::remove(tx, caller, id).await?.event_id)
            }
            1..=5 => {
                let cents = 300 + fastrand::i64(0..700);
                let body = object(
                    json!({"electricity_cost_usd_kwh": Decimal::new(cents, 4), "location": any(&SITES)}),
                );
                Ok(miner::update(tx, caller, id, &body).await?.event_id)
            }
            _ => {
                let body = object(json!({"status": any(&STATUSES), "reason": "simulation"}));
                Ok(miner::change_status(tx, caller, id, &body).await?.event_id)
            }
        }
    }

    fn new_miner(&self) -> Map<String, Value> {
        object(json!({
            "model": self.models[fastrand::usize(..self.models.len())],
            "quantity": 1 + fastrand::u32(..20),
            "status": any(&STATUSES),
            "location": any(&SITES),
            "purchase_price_usd": 1_500 + fastrand::u32(..4_000),
            "electricity_cost_usd_kwh": Decimal::new(300 + fastrand::i64(0..700), 4),
        }))
    }

    async fn status_line(&mut self) -> String {
        let (since, before) = self.shown;
        let rate = (self.events - before) as f64 / since.elapsed().as_secs_f64();
        self.shown = (Instant::now(), self.events);
        let ms = self.percentiles();
        let lag = self.lag().await.map_or_else(|| "unknown".to_owned(), |n| n.to_string());
        let dead = self.dead_letters().await.map_or_else(|_| "unknown".to_owned(), |n| n.to_string());
        format!(
            "{rate:5.1} events/s   write to visible p50 {:.1} ms  p95 {:.1} ms  p99 {:.1} ms   lag {lag}   dead letters {dead}",
            ms.p50, ms.p95, ms.p99
        )
    }

    fn percentiles(&self) -> Percentiles {
        let ms = |quantile| self.latency.value_at_quantile(quantile) as f64 / 1e3;
        Percentiles { p50: ms(0.50), p95: ms(0.95), p99: ms(0.99) }
    }

    async fn lag(&self) -> Option<i64> {
        let report = lag::measure(&self.db, &*self.log, None).await.ok()?;
        report.groups.iter().map(|g| g.lag).sum()
    }

    async fn dead_letters(&self) -> Result<i64, sqlx::Error> {
        let mut tx = self.db.worker().await?;
        let count = crate::dead_letter::open(tx.conn()).await?;
        tx.rollback().await?;
        Ok(count)
    }

    async fn summary(&self) -> anyhow::Result<Summary> {
        Ok(Summary {
            events: self.events,
            write_to_visible_ms: self.percentiles(),
            lag: self.lag().await,
            dead_letters: self.dead_letters().await?,
        })
    }
}

impl Walk {
    /// A step of the random walk, as the body of a network snapshot.
    fn step(&mut self) -> Map<String, Value> {
        self.btc_price_usd =
            (self.btc_price_usd * (1.0 + (fastrand::f64() - 0.5) * 0.004)).clamp(20e3, 400e3);
        self.block_height += 1;
        if self.block_height.is_multiple_of(2_016) {
            self.difficulty =
                (self.difficulty * (1.0 + (fastrand::f64() - 0.45) * 0.06)).clamp(50e12, 500e12);
        }
        object(json!({
            "btc_price_usd": format!("{:.2}", self.btc_price_usd),
            "difficulty": format!("{:.0}", self.difficulty),
            "block_height": self.block_height,
            "fees_btc_per_block": "0.05",
        }))
    }
}

async fn until(end: Option<Instant>) {
    match end {
        Some(end) => tokio::time::sleep_until(end).await,
        None => std::future::pending().await,
    }
}

fn any<T: Copy>(list: &[T]) -> T {
    list[fastrand::usize(..list.len())]
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}
