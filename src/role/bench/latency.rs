//! Runs a load through one source and measures how long after its commit each event was appended.
//!
//! Both times come from the services: PostgreSQL's commit time of the row's transaction, in microseconds and taken
//! before the commit is flushed, and the broker's time of the append, in whole milliseconds rounded down. So there is
//! no code of ours in any source, and the latency of an event lies between the figure and the figure plus 1 ms.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use anyhow::Context as _;
use hdrhistogram::Histogram;
use serde::Serialize;
use uuid::Uuid;

use super::database::{Database, DeadRows};
use super::destination::{Arrivals, Destination};
use super::drain::{Outcome, complete};
use super::load::{ALLOWED_BEHIND, Writer};
use super::source::Running;
use super::statistics::Quantiles;

/// One load through one source.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Latency {
    pub events: usize,
    pub duplicates: u64,
    pub commit_to_append_ms: Quantiles,
    /// Of the generator: a whole transaction as its client sees it.
    pub transaction_ms: Quantiles,
    pub generator_behind_ms: f64,
    pub cpu_seconds: Option<f64>,
    pub peak_rss_bytes: Option<u64>,
    /// Once the source has ended.
    pub dead_rows: DeadRows,
}

impl Latency {
    /// The price, warm-up included in both.
    pub fn cpu_seconds_per_1000(&self) -> Option<f64> {
        Some(self.cpu_seconds? * 1e3 / self.events as f64)
    }
}

/// A load: when each event is due, and until when it only warms up.
pub struct Load {
    pub schedule: Vec<Duration>,
    pub warm_up: Duration,
}

/// Measures a source that was just started.
pub async fn measure(
    running: &mut Running,
    database: &Database,
    destination: &Destination,
    writer: &Writer,
    load: &Load,
) -> anyhow::Result<Outcome<Latency>> {
    // Ahead of all: when these have arrived, the source is at work.
    let first = writer.warm_up().await?;
    if let Outcome::Void(reason) = complete(running, destination, &first).await? {
        return Ok(Outcome::Void(format!("before the load: {reason}")));
    }
    let before = running.usage()?;
    let written = writer.run(&load.schedule).await?;
    if written.behind > ALLOWED_BEHIND {
        return Ok(Outcome::Void(format!(
            "the generator was {} ms behind, {} are allowed",
            written.behind.as_millis(),
            ALLOWED_BEHIND.as_millis()
        )));
    }
    let expected: HashSet<Uuid> = written.events.iter().map(|(id, _)| *id).chain(first).collect();
    let complete = match complete(running, destination, &expected).await? {
        Outcome::Measured(complete) => complete,
        Outcome::Void(reason) => return Ok(Outcome::Void(reason)),
    };
    let after = complete.usage.1;
    let committed: HashMap<Uuid, i64> = database.commit_times().await?.into_iter().collect();
    let measured = written.events.iter().filter(|(_, due)| *due >= load.warm_up).map(|(id, _)| *id);
    let latency = commit_to_append(measured, &committed, &complete.arrivals)?;
    Ok(Outcome::Measured(Latency {
        events: written.events.len(),
        duplicates: complete.arrivals.duplicates,
        commit_to_append_ms: Quantiles::of(&latency),
        transaction_ms: Quantiles::of(&written.transactions),
        generator_behind_ms: written.behind.as_secs_f64() * 1e3,
        cpu_seconds: before
            .zip(after)
            .map(|(before, after)| (after.cpu.saturating_sub(before.cpu)).as_secs_f64()),
        peak_rss_bytes: after.map(|usage| usage.peak_rss_bytes),
        dead_rows: DeadRows::default(),
    }))
}

/// In microseconds. An append in the millisecond of the commit counts as nothing, not as less.
fn commit_to_append(
    measured: impl Iterator<Item = Uuid>,
    committed_us: &HashMap<Uuid, i64>,
    arrivals: &Arrivals,
) -> anyhow::Result<Histogram<u64>> {
    elapsed(measured, |id| committed_us.get(&id).copied(), |id| arrivals.at_us(id))
}

/// What lies between two times of each event, in microseconds, and never less than nothing.
pub fn elapsed(
    measured: impl Iterator<Item = Uuid>,
    from_us: impl Fn(Uuid) -> Option<i64>,
    to_us: impl Fn(Uuid) -> Option<i64>,
) -> anyhow::Result<Histogram<u64>> {
    let mut elapsed = Histogram::new(3)?;
    for id in measured {
        let (from, to) =
            from_us(id).zip(to_us(id)).with_context(|| format!("event {id} lacks one of its times"))?;
        elapsed.record(u64::try_from(to - from).unwrap_or_default())?;
    }
    Ok(elapsed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latency_is_append_less_commit_and_never_negative() {
        let ids = [1, 2].map(Uuid::from_u128);
        let committed = HashMap::from([(ids[0], 10_400), (ids[1], 20_700)]);
        let at_ms = HashMap::from([(ids[0], 13), (ids[1], 20)]);
        let latency = commit_to_append(ids.into_iter(), &committed, &Arrivals { at_ms, duplicates: 0 });
        let latency = latency.expect("complete");
        assert_eq!((latency.len(), latency.min()), (2, 0));
        assert!(latency.equivalent(latency.max(), 2_600), "{}", latency.max());
    }

    #[test]
    fn an_event_without_one_of_its_times_is_an_error() {
        let id = Uuid::from_u128(1);
        let none = commit_to_append([id].into_iter(), &HashMap::new(), &Arrivals::default());
        assert!(none.is_err());
    }
}
