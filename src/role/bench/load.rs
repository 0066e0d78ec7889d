//! The load of a latency run: an open loop, its schedule known beforehand, through the product's own way of writing.
//!
//! A generator that waited for its own slow writes would ask less of a system just when it is slow.

use std::collections::HashSet;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use hdrhistogram::Histogram;
use serde_json::json;
use tokio::sync::Barrier;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use uuid::Uuid;

use crate::db::Db;
use crate::doorbell::{Bell, Doorbells};
use crate::event::kind;
use crate::identifier::{TenantId, UserId};
use crate::outbox::{self, NewEvent};

/// A generator further behind measures itself.
pub const ALLOWED_BEHIND: Duration = Duration::from_millis(100);

/// Owners and aggregates of the load, as those of a backlog.
const TENANTS: usize = 4;
const USERS: usize = 97;
const ENTITIES: usize = 5_000;

/// The moments of a Poisson process from its start on.
pub fn poisson(per_second: f64, length: Duration, seed: u64) -> Vec<Duration> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut at = 0.0;
    std::iter::from_fn(|| {
        at += -(1.0 - random.f64()).ln() / per_second;
        (at < length.as_secs_f64()).then(|| Duration::from_secs_f64(at))
    })
    .collect()
}

/// What was written.
pub struct Written {
    /// Each event with the moment it was due.
    pub events: Vec<(Uuid, Duration)>,
    /// The furthest that a write began after it was due.
    pub behind: Duration,
    /// Of whole transactions, in microseconds.
    pub transactions: Histogram<u64>,
}

/// Writes one event.
#[derive(Clone)]
pub struct Writer {
    pub db: Db,
    pub bells: Doorbells,
    /// Carried by every event, as text.
    pub ballast: Arc<str>,
    /// Of the pool: as many events can be written at the same time.
    pub connections: usize,
}

impl Writer {
    /// Writes an event at each moment of the schedule.
    pub async fn run(&self, schedule: &[Duration]) -> anyhow::Result<Written> {
        let mut written = Written {
            events: Vec::with_capacity(schedule.len()),
            behind: Duration::ZERO,
            transactions: Histogram::new(3)?,
        };
        let mut open = JoinSet::new();
        let start = Instant::now();
        for (n, due) in schedule.iter().copied().enumerate() {
            sleep_until(start + due).await;
            let writer = self.clone();
            open.spawn(async move {
                let (id, began, took) = writer.write(n).await?;
                anyhow::Ok((id, due, began.saturating_duration_since(start + due), took))
            });
            while let Some(done) = open.try_join_next() {
                written.add(done??)?;
            }
        }
        while let Some(done) = open.join_next().await {
            written.add(done??)?;
        }
        Ok(written)
    }

    /// Opens every connection and writes an event on each: a new one reads the catalogue first, and a generator that does
    /// so in its first second falls behind.
    pub async fn warm_up(&self) -> anyhow::Result<HashSet<Uuid>> {
        let all_begun = Arc::new(Barrier::new(self.connections));
        let mut open = JoinSet::new();
        for n in 0..self.connections {
            let (writer, all_begun) = (self.clone(), Arc::clone(&all_begun));
            open.spawn(async move { writer.write_when(n, all_begun.wait()).await });
        }
        let mut written = HashSet::with_capacity(self.connections);
        while let Some(done) = open.join_next().await {
            written.insert(done??.0);
        }
        Ok(written)
    }

    /// One event in a transaction of its own; returns its id, when the transaction had begun, and how long it took.
    pub async fn write(&self, n: usize) -> anyhow::Result<(Uuid, Instant, Duration)> {
        self.write_when(n, std::future::ready(())).await
    }

    async fn write_when<T>(
        &self,
        n: usize,
        ready: impl Future<Output = T>,
    ) -> anyhow::Result<(Uuid, Instant, Duration)> {
        let tenant: TenantId = format!("tenant-{}", n % TENANTS).parse()?;
        let user: UserId = format!("user-{}", n % USERS).parse()?;
        let mut tx = self.db.tenant(&tenant).await.context("the generator cannot write")?;
        ready.await;
        let began = Instant::now();
        let event = NewEvent {
            kind: kind::MINER_UPDATED,
            user_id: &user,
            entity_id: format!("miner-{}", n % ENTITIES).parse()?,
            data: json!({"n": n, "hashrate_ths": "234.5", "ballast": &*self.ballast}),
            correlation_id: None,
            causation_id: None,
            traceparent: "",
            idempotency_key: None,
        };
        let id = outbox::append(&mut tx, event).await?;
        tx.commit().await?;
        self.bells.ring(Bell::Outbox);
        Ok((id, began, began.elapsed()))
    }
}

impl Written {
    fn add(&mut self, (id, due, behind, took): (Uuid, Duration, Duration, Duration)) -> anyhow::Result<()> {
        self.events.push((id, due));
        self.behind = self.behind.max(behind);
        self.transactions.record(took.as_micros() as u64)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_schedule_is_known_beforehand_and_has_its_rate() {
        let length = Duration::from_secs(100);
        let schedule = poisson(100.0, length, 7);
        assert_eq!(schedule, poisson(100.0, length, 7), "the same seed");
        assert_ne!(schedule, poisson(100.0, length, 8), "another seed");
        assert!(schedule.is_sorted() && schedule.last().is_some_and(|last| *last < length));
        // 10,000 expected; the standard deviation of a Poisson process is its root, 100.
        assert!((9_500..10_500).contains(&schedule.len()), "{}", schedule.len());
    }

    #[test]
    fn its_gaps_are_those_of_a_poisson_process() {
        let schedule = poisson(1_000.0, Duration::from_secs(50), 7);
        let gaps: Vec<f64> = schedule.windows(2).map(|w| (w[1] - w[0]).as_secs_f64()).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let variance = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
        // Of exponential gaps the standard deviation is the mean; of an even pace it would be nothing.
        assert!((variance.sqrt() / mean - 1.0).abs() < 0.05, "{}", variance.sqrt() / mean);
    }
}
