//! `hashinsight bench publish`: from the outbox to the log, every source in its turn, round after round.
//!
//! ```text
//!   drain    slots ─► backlog, written once ─► A drains it ─► B drains it ─► C ...    next round: B C A
//!   latency  A: empty outbox, new topic ─► load ─► B: the same ...                    next round: B ... A
//! ```

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use hdrhistogram::Histogram;
use sqlx::Connection;
use tracing::info;
use uuid::Uuid;

use super::database::Database;
use super::destination::{Broker, Destination};
use super::drain::{Drain, Outcome, drain};
use super::ground::{self, Ground};
use super::latency::{self, Latency, Load};
use super::load::{Writer, poisson};
use super::report::{Floor, LeftOut, Report, Rounds, Workload, name_of};
use super::source::{Running, Starter};
use super::statistics::{Quantiles, rotated};
use super::{backlog, ceilings, machine, text};
use crate::cli::{Case, PublishBench, Source};
use crate::config::{Config, Origin};
use crate::db::Db;
use crate::doorbell::Doorbells;
use crate::role::print_json;

/// A load before the measured one: the share of it, and the least.
const WARM_UP_SHARE: u32 = 10;
const WARM_UP_LEAST: Duration = Duration::from_secs(1);

/// Connections of the generator: while a flush of PostgreSQL takes its time, the load goes on.
const GENERATOR_CONNECTIONS: u32 = 64;

/// A backlog before the measured ones: the share of them.
const WARM_UP_EVENTS: u32 = 4;

/// Measures and prints the report.
pub async fn run(
    config: Config,
    origins: &[Origin],
    file: Option<PathBuf>,
    args: PublishBench,
) -> anyhow::Result<()> {
    let (machine, json) = (machine::machine(), args.json.json);
    let mut services = vec![machine::ours(origins)];
    let report = ground::measured(config, async move |ground| {
        if let Some(connect) = &ground.connect {
            services.push(machine::kafka_connect(connect).await?);
        }
        ground.database.check_commit_times().await?;
        services.push(machine::postgres(&ground.database).await?);
        services.push(machine::kafka(&ground.broker).await?);
        let mut bench = Bench::open(ground, args, file).await?;
        let report = Report {
            name: bench.name.clone(),
            machine,
            services,
            workload: Workload {
                events: bench.args.events,
                pairs: bench.args.pairs,
                seconds: bench.args.seconds,
                transaction_held: bench.args.hold_transaction,
                payload_bytes: 0,
            },
            left_out: Vec::new(),
            floor: None,
            drains: Vec::new(),
            latencies: Vec::new(),
            void: Vec::new(),
        };
        let measured = Box::pin(bench.measure(report)).await;
        bench.db.close().await;
        measured
    })
    .await?;
    if json {
        return print_json(&report);
    }
    print!("{}", text::text(&report));
    Ok(())
}

/// A bench at work.
struct Bench {
    /// Everything that is made is named after it.
    name: String,
    args: PublishBench,
    database: Arc<Database>,
    /// As the product connects.
    db: Db,
    broker: Broker,
    starter: Starter,
    writer: Writer,
    recvlogical: Option<PathBuf>,
    /// Counts runs, so that each has names of its own.
    runs: usize,
}

impl Bench {
    async fn open(ground: Ground, args: PublishBench, file: Option<PathBuf>) -> anyhow::Result<Self> {
        let Ground { name, database, broker, connect, lifecycle } = ground;
        backlog::prepare(&database).await?;
        let mut config = database.config.clone();
        config.database.max_connections = GENERATOR_CONNECTIONS;
        let db = Db::open(&config).await?;
        let bells = Doorbells::default();
        lifecycle.spawn("doorbells", bells.clone().run(db.clone(), lifecycle.stopping().clone()));
        let mut random = fastrand::Rng::with_seed(0);
        let ballast: String = (0..args.ballast).map(|_| random.alphanumeric()).collect();
        Ok(Self {
            name,
            writer: Writer {
                db: db.clone(),
                bells,
                ballast: ballast.into(),
                connections: GENERATOR_CONNECTIONS as usize,
            },
            starter: Starter { file, connect, broker: broker.clone() },
            recvlogical: ceilings::find_recvlogical().await,
            args,
            database,
            db,
            broker,
            runs: 0,
        })
    }

    async fn measure(&mut self, mut report: Report) -> anyhow::Result<Report> {
        let mut sources = Vec::new();
        for source in self.args.sources.clone() {
            match self.why_not(source).await? {
                Some(reason) => report.left_out.push(LeftOut { source, reason }),
                None => sources.push(source),
            }
        }
        for case in self.args.cases.clone().into_iter().flatten() {
            // Just-in-time compilers and caches get their chance before anything counts.
            self.drain_round(case, &sources, self.args.events.div_ceil(WARM_UP_EVENTS)).await?;
            report.workload.payload_bytes = self.database.payload_bytes().await?;
            let mut rounds = Rounds::default();
            for round in 0..self.args.pairs as usize {
                let order = rotated(&sources, round);
                for (source, outcome) in self.drain_round(case, &order, self.args.events).await? {
                    let shown = outcome.measured().map_or(0.0, Drain::events_per_second);
                    info!(
                        round = round + 1,
                        case = name_of(case),
                        source = source.name(),
                        "{shown:.0} events/s"
                    );
                    rounds.entry(source).or_default().push(outcome);
                }
            }
            report.add_drains(case, &rounds);
        }
        sources.retain(|source| source.delivers());
        let rates: Vec<u32> = self.args.rates.iter().copied().flatten().collect();
        if !rates.is_empty() {
            report.floor = Some(self.floor().await?);
        }
        for rate in rates {
            let mut rounds = Rounds::default();
            for round in 0..self.args.pairs as usize {
                let load = self.load(rate, round);
                for source in rotated(&sources, round) {
                    let outcome = Box::pin(self.latency_run(source, &load)).await?;
                    let shown = outcome.measured().map_or(0.0, |latency| latency.commit_to_append_ms.p50);
                    info!(round = round + 1, rate, source = source.name(), "p50 {shown:.1} ms");
                    rounds.entry(source).or_default().push(outcome);
                }
            }
            report.workload.payload_bytes = self.database.payload_bytes().await?;
            report.add_latencies(rate, &rounds);
        }
        Ok(report)
    }

    /// What a source lacks here.
    async fn why_not(&self, source: Source) -> anyhow::Result<Option<String>> {
        if source.is_peer() && self.starter.connect.is_none() {
            return Ok(Some("KAFKA_CONNECT_URL is not set".to_owned()));
        }
        if source == Source::PgRecvlogical && self.recvlogical.is_none() {
            return Ok(Some(
                "pg_recvlogical was not found in /usr/lib/postgresql nor on the path".to_owned(),
            ));
        }
        if source.reads_slot() && !self.database.is_logical().await? {
            return Ok(Some("PostgreSQL does not run with wal_level = logical".to_owned()));
        }
        Ok(None)
    }

    fn next_name(&mut self) -> String {
        self.runs += 1;
        format!("{}_{}", self.name, self.runs)
    }

    /// One backlog, drained by each source in this order.
    async fn drain_round(
        &mut self,
        case: Case,
        order: &[Source],
        events: u32,
    ) -> anyhow::Result<Vec<(Source, Outcome<Drain>)>> {
        self.database.drop_slots().await?;
        self.database.empty().await?;
        // A slot keeps what is written after it.
        let mut runs = Vec::new();
        for source in order.iter().copied() {
            let name = self.next_name();
            if source.reads_slot() {
                self.database.create_slot(&name).await?;
            }
            runs.push((source, name));
        }
        let snapshot = self.database.snapshot().await?;
        backlog::fill(&self.database, case, events, self.args.ballast, backlog::USERS).await?;
        let backlog = Backlog {
            snapshot,
            ids: self.database.ids().await?.into_iter().collect(),
            wal_end: self.database.wal_end().await?,
        };
        let mut outcomes = Vec::new();
        for (source, name) in runs {
            outcomes.push((source, Box::pin(self.drain_run(source, &name, &backlog)).await?));
        }
        Ok(outcomes)
    }

    async fn drain_run(
        &self,
        source: Source,
        name: &str,
        backlog: &Backlog,
    ) -> anyhow::Result<Outcome<Drain>> {
        let page_size = self.database.config.publisher.batch_size;
        let config = &self.database.config;
        let drained = match source {
            Source::PagedRead => ceilings::paged_read(&self.db, &backlog.snapshot, page_size, |_| ()).await?,
            Source::Rskafka => {
                let rows = ceilings::rows(&self.db, &backlog.snapshot, page_size).await?;
                ceilings::produce(config, &self.broker, name, &rows).await?
            }
            Source::PgRecvlogical => {
                let program = self.recvlogical.as_ref().context("pg_recvlogical was not found")?;
                let (end, events) = (backlog.wal_end.as_str(), backlog.ids.len());
                ceilings::recvlogical(program, &self.database, name, end, events).await?
            }
            Source::Poll | Source::Wal | Source::DebeziumDefault | Source::DebeziumTuned => {
                // The source that reads the WAL polls first: it is to find nothing in the table.
                let published = match source {
                    Source::Wal => self.database.snapshot().await?,
                    _ => backlog.snapshot.clone(),
                };
                self.database.rewind(&published).await?;
                let (mut running, destination) = self.start(source, name).await?;
                let outcome = drain(source, &mut running, &destination, &backlog.ids).await?;
                self.stop(running, destination, name).await?;
                return Ok(outcome);
            }
        };
        let (events, expected) = (drained.events, backlog.ids.len());
        Ok(if events == expected {
            Outcome::Measured(drained)
        } else {
            Outcome::Void(format!("{events} of {expected} events were read"))
        })
    }

    /// One load through one source.
    async fn latency_run(&mut self, source: Source, load: &Load) -> anyhow::Result<Outcome<Latency>> {
        self.database.drop_slots().await?;
        self.database.empty().await?;
        let name = self.next_name();
        if source.reads_slot() {
            self.database.create_slot(&name).await?;
        }
        self.database.rewind(&self.database.snapshot().await?).await?;
        let (mut running, destination) = self.start(source, &name).await?;
        let held = match self.args.hold_transaction {
            true => Some(self.database.hold().await?),
            false => None,
        };
        let mut outcome =
            latency::measure(&mut running, &self.database, &destination, &self.writer, load).await?;
        self.stop(running, destination, &name).await?;
        if let Outcome::Measured(latency) = &mut outcome {
            latency.dead_rows = self.database.dead_rows().await?;
        }
        if let Some(held) = held {
            held.close().await?;
        }
        Ok(outcome)
    }

    async fn start(&self, source: Source, name: &str) -> anyhow::Result<(Running, Destination)> {
        let destination = self.broker.destination(format!("{name}.")).await?;
        let slot = source.reads_slot().then_some(name);
        let running = self.starter.start(source, &self.database, &destination.prefix, slot).await?;
        Ok((running, destination))
    }

    async fn stop(&self, running: Running, destination: Destination, name: &str) -> anyhow::Result<()> {
        running.stop().await?;
        // What still winds down would take time from the next one.
        self.database.released(name).await?;
        destination.delete().await
    }

    /// The same for every source of a round.
    fn load(&self, rate: u32, round: usize) -> Load {
        let measured = Duration::from_secs(self.args.seconds.into());
        let warm_up = (measured / WARM_UP_SHARE).max(WARM_UP_LEAST);
        let seed = u64::from(rate) << 32 | round as u64;
        Load { schedule: poisson(rate.into(), warm_up + measured, seed), warm_up }
    }

    /// What no source can be faster than.
    async fn floor(&mut self) -> anyhow::Result<Floor> {
        let name = self.next_name();
        self.database.empty().await?;
        let snapshot = self.database.snapshot().await?;
        self.writer.write(0).await?;
        let rows = ceilings::rows(&self.db, &snapshot, 1).await?;
        let row = rows.first().context("the event that was just written is not there")?;
        let mut trips = Histogram::new(3)?;
        for took in ceilings::round_trips(&self.database.config, &self.broker, &name, row).await? {
            trips.record(took.as_micros() as u64)?;
        }
        Ok(Floor { produce_round_trip_ms: Quantiles::of(&trips) })
    }
}

/// A backlog as it was written.
struct Backlog {
    /// Before it.
    snapshot: String,
    ids: HashSet<Uuid>,
    /// Behind it.
    wal_end: String,
}
