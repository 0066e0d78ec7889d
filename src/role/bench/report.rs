//! The report: every round that counts, gathered by source; and what did not count, with the reason.

use std::collections::BTreeMap;

use serde::Serialize;

use super::drain::{Drain, Outcome};
use super::latency::Latency;
use super::machine::{Machine, Service};
use super::process::mib;
use super::statistics::{QuantileSpreads, Quantiles, Spread, pair_ratios};
use crate::cli::{Case, Source};

/// Everything `bench publish` has to say.
#[derive(Debug, Serialize)]
pub struct Report {
    /// What was made for it, and taken away again, was named so.
    pub name: String,
    pub machine: Machine,
    pub services: Vec<Service>,
    pub workload: Workload,
    pub left_out: Vec<LeftOut>,
    pub floor: Option<Floor>,
    pub drains: Vec<DrainRow>,
    pub latencies: Vec<LatencyRow>,
    pub void: Vec<Void>,
}

/// What was asked for.
#[derive(Debug, Serialize)]
pub struct Workload {
    pub events: u32,
    pub pairs: u32,
    pub seconds: u32,
    /// Whether a transaction was held open during each load.
    pub transaction_held: bool,
    /// As PostgreSQL's text form has them, on average.
    pub payload_bytes: i64,
}

/// A source that was asked for and not measured.
#[derive(Debug, Serialize)]
pub struct LeftOut {
    pub source: Source,
    pub reason: String,
}

/// A round that does not count.
#[derive(Debug, Serialize)]
pub struct Void {
    pub round: usize,
    pub source: Source,
    pub run: String,
    pub reason: String,
}

/// What no source can be faster than.
#[derive(Debug, Serialize)]
pub struct Floor {
    /// rskafka alone, one record in a request.
    pub produce_round_trip_ms: Quantiles,
}

/// A source compared with another one.
#[derive(Debug, Serialize)]
pub struct Ratio {
    pub to: String,
    pub of: &'static str,
    pub ratio: Spread,
}

/// A source's drains of one case.
#[derive(Debug, Serialize)]
pub struct DrainRow {
    pub case: Case,
    pub source: Source,
    pub rounds: Vec<Option<Drain>>,
    pub events_per_second: Option<Spread>,
    pub cpu_seconds_per_1000: Option<Spread>,
    pub peak_rss_mib: Option<Spread>,
    pub duplicates: u64,
    pub ratios: Vec<Ratio>,
}

/// A source's latencies at one load.
#[derive(Debug, Serialize)]
pub struct LatencyRow {
    pub events_per_second: u32,
    pub source: Source,
    pub rounds: Vec<Option<Latency>>,
    pub commit_to_append_ms: Option<QuantileSpreads>,
    /// The generator's own transactions: what a commit costs here.
    pub transaction_ms_p50: Option<Spread>,
    pub generator_behind_ms: Option<Spread>,
    pub cpu_seconds_per_1000: Option<Spread>,
    pub peak_rss_mib: Option<Spread>,
    /// Dead rows left behind in the outbox and in the cursor's table.
    pub dead_outbox_rows: Option<Spread>,
    pub dead_cursor_rows: Option<Spread>,
    pub duplicates: u64,
    pub ratios: Vec<Ratio>,
}

/// The rounds of one run, by source.
pub type Rounds<T> = BTreeMap<Source, Vec<Outcome<T>>>;

/// What our drains are held against beside the peer: the slower of what the way there consists of.
const POLL_CEILINGS: [Source; 2] = [Source::Rskafka, Source::PagedRead];

impl Report {
    /// Adds the drains of a case.
    pub fn add_drains(&mut self, case: Case, rounds: &Rounds<Drain>) {
        self.void(rounds, &format!("drain {}", name_of(case)));
        let speed = |source| per_round(rounds, source, |drain| Some(drain.events_per_second()));
        let cpu = |source| per_round(rounds, source, Drain::cpu_seconds_per_1000);
        for (source, outcomes) in rounds {
            let mut ratios = Vec::new();
            if *source != Source::DebeziumTuned && source.delivers() {
                let peer = Source::DebeziumTuned;
                push(&mut ratios, peer.name(), "events/s", pair_ratios(&speed(*source), &speed(peer)));
                push(&mut ratios, peer.name(), "CPU", pair_ratios(&cpu(*source), &cpu(peer)));
            }
            if *source == Source::Poll {
                let [produce, read] = POLL_CEILINGS.map(speed);
                let slower: Vec<Option<f64>> =
                    produce.iter().zip(&read).map(|(p, r)| Some(p.as_ref()?.min(*r.as_ref()?))).collect();
                let name = "the slower of rskafka and paged-read";
                push(&mut ratios, name, "events/s", pair_ratios(&speed(*source), &slower));
            }
            if *source == Source::Wal {
                let ceiling = Source::PgRecvlogical;
                push(&mut ratios, ceiling.name(), "events/s", pair_ratios(&speed(*source), &speed(ceiling)));
            }
            let measured: Vec<Option<Drain>> = outcomes.iter().map(|o| o.measured().copied()).collect();
            let figures = || measured.iter().flatten();
            self.drains.push(DrainRow {
                case,
                source: *source,
                events_per_second: Spread::of(figures().map(Drain::events_per_second)),
                cpu_seconds_per_1000: Spread::of(figures().filter_map(Drain::cpu_seconds_per_1000)),
                peak_rss_mib: Spread::of(figures().filter_map(|d| d.peak_rss_bytes).map(mib)),
                duplicates: figures().map(|d| d.duplicates).sum(),
                ratios,
                rounds: measured,
            });
        }
    }

    /// Adds the latencies at a load.
    pub fn add_latencies(&mut self, rate: u32, rounds: &Rounds<Latency>) {
        self.void(rounds, &format!("{rate} events/s"));
        let quantile = |source, of: fn(&Quantiles) -> f64| {
            per_round(rounds, source, |latency: &Latency| Some(of(&latency.commit_to_append_ms)))
        };
        for (source, outcomes) in rounds {
            let mut ratios = Vec::new();
            if *source != Source::DebeziumTuned {
                let peer = Source::DebeziumTuned;
                let mut ratio = |name, of: fn(&Quantiles) -> f64| {
                    let spread = pair_ratios(&quantile(*source, of), &quantile(peer, of));
                    push(&mut ratios, peer.name(), name, spread);
                };
                ratio("p50", |q| q.p50);
                ratio("p99", |q| q.p99);
            }
            let measured: Vec<Option<Latency>> = outcomes.iter().map(|o| o.measured().copied()).collect();
            let figures = || measured.iter().flatten();
            self.latencies.push(LatencyRow {
                events_per_second: rate,
                source: *source,
                commit_to_append_ms: QuantileSpreads::of(figures().map(|l| &l.commit_to_append_ms)),
                transaction_ms_p50: Spread::of(figures().map(|l| l.transaction_ms.p50)),
                generator_behind_ms: Spread::of(figures().map(|l| l.generator_behind_ms)),
                cpu_seconds_per_1000: Spread::of(figures().filter_map(Latency::cpu_seconds_per_1000)),
                peak_rss_mib: Spread::of(figures().filter_map(|l| l.peak_rss_bytes).map(mib)),
                dead_outbox_rows: Spread::of(figures().map(|l| l.dead_rows.outbox as f64)),
                dead_cursor_rows: Spread::of(figures().map(|l| l.dead_rows.cursor as f64)),
                duplicates: figures().map(|l| l.duplicates).sum(),
                ratios,
                rounds: measured,
            });
        }
    }

    fn void<T>(&mut self, rounds: &Rounds<T>, run: &str) {
        for (source, outcomes) in rounds {
            for (round, outcome) in (1..).zip(outcomes) {
                if let Outcome::Void(reason) = outcome {
                    let (run, reason) = (run.to_owned(), reason.clone());
                    self.void.push(Void { round, source: *source, run, reason });
                }
            }
        }
    }
}

fn per_round<T>(rounds: &Rounds<T>, source: Source, of: impl Fn(&T) -> Option<f64>) -> Vec<Option<f64>> {
    let outcomes = rounds.get(&source).map_or(&[][..], Vec::as_slice);
    outcomes.iter().map(|outcome| of(outcome.measured()?)).collect()
}

fn push(ratios: &mut Vec<Ratio>, to: &str, of: &'static str, spread: Option<Spread>) {
    ratios.extend(spread.map(|ratio| Ratio { to: to.to_owned(), of, ratio }));
}

/// The name of a case on the command line.
pub fn name_of(case: Case) -> &'static str {
    match case {
        Case::Single => "single",
        Case::Thousand => "thousand",
    }
}
