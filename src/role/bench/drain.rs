//! Drains a backlog by one source and measures it, from the first append to the last.

use std::collections::HashSet;
use std::time::Duration;

use serde::Serialize;
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use super::destination::{Arrivals, Destination};
use super::process::Usage;
use super::source::Running;
use crate::cli::Source;

/// How often the ends of the partitions are looked at: often enough to see the first record early, seldom enough to
/// leave the broker alone.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// A source that brings nothing more for so long has lost what is missing.
const STALLED: Duration = Duration::from_secs(60);

/// What a run came to: a figure, or why there is none.
#[derive(Debug, Clone)]
pub enum Outcome<T> {
    Measured(T),
    Void(String),
}

impl<T> Outcome<T> {
    /// The figure.
    pub fn measured(&self) -> Option<&T> {
        match self {
            Self::Measured(figure) => Some(figure),
            Self::Void(_) => None,
        }
    }
}

/// One drained backlog.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Drain {
    pub events: usize,
    pub duplicates: u64,
    pub seconds: f64,
    /// Unknown where the work is done in a process that is not watched.
    pub cpu_seconds: Option<f64>,
    pub peak_rss_bytes: Option<u64>,
}

impl Drain {
    /// The speed.
    pub fn events_per_second(&self) -> f64 {
        self.events as f64 / self.seconds
    }

    /// The price.
    pub fn cpu_seconds_per_1000(&self) -> Option<f64> {
        Some(self.cpu_seconds? * 1e3 / self.events as f64)
    }
}

/// What was there when every event had arrived.
pub struct Complete {
    pub arrivals: Arrivals,
    /// When the first record was seen, and when all were.
    pub usage: (Option<Usage>, Option<Usage>),
}

/// Waits until every expected event has arrived. Fails if the source does.
pub async fn complete(
    running: &mut Running,
    destination: &Destination,
    expected: &HashSet<Uuid>,
) -> anyhow::Result<Outcome<Complete>> {
    let mut first_usage = None;
    let (mut seen, mut progressed) = (0, Instant::now());
    loop {
        running.check().await?;
        let count = destination.count().await?;
        if count > seen {
            if seen == 0 {
                first_usage = running.usage()?;
            }
            (seen, progressed) = (count, Instant::now());
            if count >= expected.len() as u64 {
                // Taken first: reading the records is not the source's work.
                let usage = (first_usage, running.usage()?);
                let arrivals = destination.arrivals().await?;
                if arrivals.missing(expected) == 0 {
                    let foreign = arrivals.unexpected(expected);
                    return Ok(match foreign {
                        0 => Outcome::Measured(Complete { arrivals, usage }),
                        _ => Outcome::Void(format!("{foreign} events arrived that nobody committed")),
                    });
                }
            }
        }
        if progressed.elapsed() > STALLED {
            let missing = destination.arrivals().await?.missing(expected);
            let seconds = STALLED.as_secs();
            let all = expected.len();
            return Ok(Outcome::Void(format!(
                "{missing} of {all} events had not arrived when nothing came for {seconds} s"
            )));
        }
        sleep(LOOK_EVERY).await;
    }
}

/// Drains the backlog by a source that was just started.
pub async fn drain(
    source: Source,
    running: &mut Running,
    destination: &Destination,
    expected: &HashSet<Uuid>,
) -> anyhow::Result<Outcome<Drain>> {
    let complete = match complete(running, destination, expected).await? {
        Outcome::Measured(complete) => complete,
        Outcome::Void(reason) => return Ok(Outcome::Void(reason)),
    };
    let (first, last) = complete.usage;
    // Ours is charged from the start of its process. Connect has run before: it is charged from the first record on,
    // which leaves out how it starts a connector.
    let before = if source.is_peer() { first.map(|usage| usage.cpu) } else { Some(Duration::ZERO) };
    let cpu = last.zip(before).map(|(last, before)| last.cpu.saturating_sub(before));
    Ok(Outcome::Measured(Drain {
        events: expected.len(),
        duplicates: complete.arrivals.duplicates,
        seconds: complete.arrivals.span().as_secs_f64(),
        cpu_seconds: cpu.map(|cpu| cpu.as_secs_f64()),
        peak_rss_bytes: last.map(|usage| usage.peak_rss_bytes),
    }))
}
