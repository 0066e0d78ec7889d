//! A group under a steady load: how late an event is applied, and what the process takes that applies it.
//!
//! The load is an open loop: a record is appended when it is due, whether or not the earlier ones are applied. Like a
//! publisher under load the producer gathers for a moment, one append in flight a partition.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use serde::Serialize;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};
use tracing::info;

use super::{Bench, LOOK_EVERY, STALLED};
use crate::cli::ConsumeBench;
use crate::event::{AggregateType, header};
use crate::log::kafka::KafkaLog;
use crate::log::{EventLog, Record};
use crate::role::bench::child::OwnProcess;
use crate::role::bench::drain::{Drain, Outcome};
use crate::role::bench::latency::elapsed;
use crate::role::bench::load::ALLOWED_BEHIND;
use crate::role::bench::process::mib;
use crate::role::bench::statistics::{QuantileSpreads, Quantiles, Spread};

/// Ahead of what is measured, at the same rate.
const WARM_UP_SECONDS: u32 = 2;

/// An append takes what is due by then.
const GATHER: Duration = Duration::from_millis(5);

/// The rounds at one rate.
#[derive(Debug, Serialize)]
pub struct SteadyRow {
    pub events_per_second: u32,
    pub rounds: Vec<Option<Steady>>,
    pub append_to_applied_ms: Option<QuantileSpreads>,
    pub producer_behind_ms: Option<Spread>,
    pub cpu_seconds_per_1000: Option<Spread>,
    pub peak_rss_mib: Option<Spread>,
}

/// One load.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Steady {
    /// Warm-up included, as in the price.
    pub events: usize,
    pub append_to_applied_ms: Quantiles,
    pub producer_behind_ms: f64,
    pub cpu_seconds: f64,
    pub peak_rss_bytes: u64,
}

/// How many records a load has.
pub fn records_of(rate: u32, seconds: u32) -> u32 {
    rate.saturating_mul(seconds + WARM_UP_SECONDS)
}

/// The records of one partition, each with the time when it is due.
#[derive(Default)]
struct Lane {
    due: Vec<Duration>,
    records: Vec<Record>,
}

impl Bench {
    /// Measures the rounds at one rate; `number` tells them from those of others.
    pub(super) async fn steady(
        &self,
        number: usize,
        rate: u32,
        args: &ConsumeBench,
        report: &mut super::Report,
    ) -> anyhow::Result<()> {
        let mut rounds = Vec::new();
        for round in 1..=args.pairs {
            self.reset().await?;
            let prefix = format!("{}_{number}_{round}.", self.ground.name);
            let steady = match Box::pin(self.under_load(prefix, rate, args.seconds)).await? {
                Outcome::Measured(steady) => {
                    info!(round, rate, "p99 {:.1} ms", steady.append_to_applied_ms.p99);
                    Some(steady)
                }
                Outcome::Void(reason) => {
                    report.void.push(format!("round {round} of {rate} events/s: {reason}"));
                    None
                }
            };
            rounds.push(steady);
        }
        let figures = || rounds.iter().flatten();
        report.steady.push(SteadyRow {
            events_per_second: rate,
            append_to_applied_ms: QuantileSpreads::of(figures().map(|s| &s.append_to_applied_ms)),
            producer_behind_ms: Spread::of(figures().map(|s| s.producer_behind_ms)),
            cpu_seconds_per_1000: Spread::of(figures().map(|s| s.cpu_seconds * 1e3 / s.events as f64)),
            peak_rss_mib: Spread::of(figures().map(|s| mib(s.peak_rss_bytes))),
            rounds,
        });
        Ok(())
    }

    async fn under_load(&self, prefix: String, rate: u32, seconds: u32) -> anyhow::Result<Outcome<Steady>> {
        let broker = &self.ground.broker;
        let destination = broker.destination(prefix).await?;
        broker.create(&AggregateType::Ops.topic(&destination.prefix), broker.partitions).await?;
        let arguments = ["consume", "--group", self.group.name];
        let config = &self.ground.database.config;
        let mut child = OwnProcess::start(config, self.file.as_ref(), &destination.prefix, None, &arguments)?;
        self.at_work(&mut child, &destination.topic).await?;
        let records = &self.records[..records_of(rate, seconds) as usize];
        let before = child.usage()?;
        let behind = append(&broker.log, &destination.topic, lanes(records, rate)).await?;
        let applied = self.applied(&mut child, records.len()).await?;
        let after = child.usage()?;
        child.stop().await?;
        if applied < records.len() {
            return Ok(Outcome::Void(format!("{applied} of {} events were applied", records.len())));
        }
        if behind > ALLOWED_BEHIND {
            return Ok(Outcome::Void(format!(
                "the producer was {} ms behind, {} are allowed",
                behind.as_millis(),
                ALLOWED_BEHIND.as_millis()
            )));
        }
        let drain = Drain {
            events: records.len(),
            duplicates: 0,
            seconds: f64::from(seconds + WARM_UP_SECONDS),
            cpu_seconds: None,
            peak_rss_bytes: None,
        };
        if let Outcome::Void(reason) = self.checked(drain).await? {
            return Ok(Outcome::Void(reason));
        }
        let arrivals = destination.arrivals().await?;
        let applied: HashMap<_, _> = self.ground.database.applied_times().await?.into_iter().collect();
        let measured = records
            .iter()
            .skip((rate * WARM_UP_SECONDS) as usize)
            .filter_map(|(_, record)| std::str::from_utf8(record.header(header::ID)?).ok()?.parse().ok());
        let late = elapsed(measured, |id| arrivals.at_us(id), |id| applied.get(&id).copied())?;
        destination.delete().await?;
        Ok(Outcome::Measured(Steady {
            events: records.len(),
            append_to_applied_ms: Quantiles::of(&late),
            producer_behind_ms: behind.as_secs_f64() * 1e3,
            cpu_seconds: after.cpu.saturating_sub(before.cpu).as_secs_f64(),
            peak_rss_bytes: after.peak_rss_bytes,
        }))
    }

    /// Returns when every partition of the topic is owned.
    async fn at_work(&self, child: &mut OwnProcess, topic: &str) -> anyhow::Result<()> {
        let mut owner = self.ground.database.owner().await?;
        let until = Instant::now() + STALLED;
        loop {
            child.check()?;
            let owned: i64 = sqlx::query_scalar(
                "select count(*) from consumer_offset where consumer_name = $1 and topic = $2 and owner_id is not null",
            )
            .bind(self.group.name)
            .bind(topic)
            .fetch_one(&mut owner)
            .await?;
            if owned == i64::from(self.ground.broker.partitions) {
                return Ok(());
            }
            if Instant::now() > until {
                bail!("the consumer has {owned} partitions after {} s", STALLED.as_secs());
            }
            sleep(LOOK_EVERY).await;
        }
    }
}

/// The records by partition, the first due at once and each so much later than the one before.
fn lanes(records: &[(i32, Record)], rate: u32) -> BTreeMap<i32, Lane> {
    let mut lanes: BTreeMap<i32, Lane> = BTreeMap::new();
    for (n, (partition, record)) in (0_u32..).zip(records) {
        let lane = lanes.entry(*partition).or_default();
        lane.due.push(Duration::from_secs_f64(f64::from(n) / f64::from(rate)));
        lane.records.push(record.clone());
    }
    lanes
}

/// Appends each record when it is due. Returns the furthest that an append began after its first record was gathered.
async fn append(log: &Arc<KafkaLog>, topic: &str, lanes: BTreeMap<i32, Lane>) -> anyhow::Result<Duration> {
    let start = Instant::now();
    let mut appending = JoinSet::new();
    for (partition, lane) in lanes {
        let (log, topic) = (Arc::clone(log), topic.to_owned());
        appending.spawn(async move {
            let (mut next, mut behind) = (0, Duration::ZERO);
            while let Some(first) = lane.due.get(next) {
                let gathered = start + *first + GATHER;
                sleep_until(gathered).await;
                let now = Instant::now();
                behind = behind.max(now - gathered);
                let end = lane.due.partition_point(|due| start + *due <= now);
                log.append(&topic, partition, &lane.records[next..end]).await.map_err(|e| e.error)?;
                next = end;
            }
            anyhow::Ok(behind)
        });
    }
    let mut behind = Duration::ZERO;
    while let Some(done) = appending.join_next().await {
        behind = behind.max(done??);
    }
    Ok(behind)
}

#[cfg(test)]
mod tests {
    use chrono::Utc;

    use super::*;

    #[test]
    fn a_load_is_known_beforehand_and_spread_over_its_partitions() {
        let record =
            |n: u8| Record { key: Some(vec![n]), value: None, headers: Vec::new(), timestamp: Utc::now() };
        let records: Vec<(i32, Record)> = (0..4).map(|n| (i32::from(n % 2), record(n))).collect();
        let lanes = lanes(&records, 1_000);
        let due = |lane: &Lane| lane.due.iter().map(Duration::as_millis).collect::<Vec<_>>();
        assert_eq!((due(&lanes[&0]), due(&lanes[&1])), (vec![0, 2], vec![1, 3]));
        let keys = |lane: &Lane| lane.records.iter().filter_map(|r| r.key.clone()).collect::<Vec<_>>();
        assert_eq!((keys(&lanes[&0]), keys(&lanes[&1])), (vec![vec![0], vec![2]], vec![vec![1], vec![3]]));
    }
}
