//! `hashinsight bench consume`: from the log to the read model, by our consumer, by its SQL alone, and by the
//! predecessor's three transactions an event.
//!
//! ```text
//!   drain   topic with a backlog, written once ─► our process applies it ─► the SQL alone ─► ...    next round: another order
//!   steady  new topic, our process at work ─► a load, each record when it is due
//! ```

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use serde::Serialize;
use tokio::time::{Instant, sleep};
use tracing::info;

use super::applying::{self, Lane, Way};
use super::child::OwnProcess;
use super::drain::{Drain, Outcome};
use super::ground::{self, Ground};
use super::machine::{self, Machine, Service};
use super::process::mib;
use super::statistics::{Spread, pair_ratios, rotated};
use super::{backlog, ceilings};
use crate::cli::{Case, ConsumeBench};
use crate::config::{Config, Origin};
use crate::db::Db;
use crate::event::{self, AggregateType, Event, header};
use crate::log::{EventLog, Record, partition_of};
use crate::projection::{self, Group};
use crate::publisher::record;
use crate::read_model::portfolio;
use crate::role::app::assumptions;
use crate::role::print_json;

use self::steady::SteadyRow;

mod steady;
mod text;

/// How often it is looked how many events are applied.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// A consumer that applies nothing more for so long has lost what is missing.
const STALLED: Duration = Duration::from_secs(60);

/// The predecessor gets so many times fewer events: it would take as many times longer.
const FEWER: usize = 20;

/// Records of one append.
const PER_APPEND: usize = 1_000;

/// Who applies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Who {
    /// `consume` as a process of its own.
    Consumer,
    /// The statements of its batches, from memory.
    BareSql,
    /// The predecessor's way, from memory.
    ThreeTransactions,
}

impl Who {
    const ALL: [Self; 3] = [Self::Consumer, Self::BareSql, Self::ThreeTransactions];

    fn name(self) -> &'static str {
        match self {
            Self::Consumer => "consume",
            Self::BareSql => "bare SQL",
            Self::ThreeTransactions => "three transactions",
        }
    }
}

#[derive(Debug, Serialize)]
struct Report {
    /// What was made for it, and taken away again, was named so.
    name: String,
    machine: Machine,
    services: Vec<Service>,
    events: u32,
    owners: u32,
    pairs: u32,
    batch_size: u32,
    rows: Vec<Row>,
    steady: Vec<SteadyRow>,
    void: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Row {
    who: Who,
    rounds: Vec<Option<Drain>>,
    events_per_second: Option<Spread>,
    cpu_seconds_per_1000: Option<Spread>,
    peak_rss_mib: Option<Spread>,
    /// Our consumer's speed over this one's, within each round.
    consumer_ratio: Option<Spread>,
}

/// Measures and prints the report.
pub async fn run(
    config: Config,
    origins: &[Origin],
    file: Option<PathBuf>,
    args: ConsumeBench,
) -> anyhow::Result<()> {
    let (machine, json) = (machine::machine(), args.json.json);
    let mut services = vec![machine::ours(origins)];
    let report = ground::measured(config, async move |ground| {
        if args.rates.iter().flatten().next().is_some() {
            ground.database.check_commit_times().await?;
        }
        services.push(machine::postgres(&ground.database).await?);
        services.push(machine::kafka(&ground.broker).await?);
        let mut report = Report {
            name: ground.name.clone(),
            machine,
            services,
            events: args.events,
            owners: args.owners.next_multiple_of(backlog::TENANTS),
            pairs: args.pairs,
            batch_size: ground.database.config.consumer.batch_size,
            rows: Vec::new(),
            steady: Vec::new(),
            void: Vec::new(),
        };
        let bench = Bench::prepare(ground, &args, file).await?;
        Box::pin(bench.measure(&args, &mut report)).await?;
        bench.db.close().await;
        Ok(report)
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
    ground: Ground,
    file: Option<PathBuf>,
    /// As the product connects.
    db: Db,
    group: Group,
    prefix: String,
    topic: String,
    /// The backlog, decoded.
    lanes: Vec<Lane>,
    /// As many records as the largest load has, in their order, each with its partition.
    records: Vec<(i32, Record)>,
}

impl Bench {
    /// Writes owners with a miner each, and the backlog.
    async fn prepare(ground: Ground, args: &ConsumeBench, file: Option<PathBuf>) -> anyhow::Result<Self> {
        let database = &ground.database;
        backlog::prepare(database).await?;
        let before = database.snapshot().await?;
        let users = args.owners.div_ceil(backlog::TENANTS);
        let loaded = args.rates.iter().flatten().map(|rate| steady::records_of(*rate, args.seconds)).max();
        let loaded = loaded.unwrap_or_default();
        backlog::fill(database, Case::Thousand, args.events.max(loaded), 0, users).await?;
        let mut owner = database.owner().await?;
        sqlx::query(
            "insert into miners (tenant_id, id, owner_id, model, hashrate_ths, power_w, quantity, status) \
             select o.tenant_id, gen_random_uuid(), o.user_id, 'Antminer S21', 200, 3500, 10, 'online' \
             from (select distinct tenant_id, user_id from event_outbox) o",
        )
        .execute(&mut owner)
        .await?;
        let db = Db::open(&database.config).await?;
        let rows = ceilings::rows(&db, &before, database.config.publisher.batch_size).await?;
        let prefix = format!("{}.", ground.name);
        let destination = ground.broker.destination(prefix.clone()).await?;
        let mut records: Vec<(i32, Record)> = rows
            .into_iter()
            .map(|row| (partition_of(row.event_key.as_bytes(), ground.broker.partitions), record(row)))
            .collect();
        let mut backlog: BTreeMap<i32, Vec<Record>> = BTreeMap::new();
        for (partition, record) in &records[..args.events as usize] {
            backlog.entry(*partition).or_default().push(record.clone());
        }
        records.truncate(loaded as usize);
        let mut lanes = Vec::new();
        for (partition, records) in backlog {
            for records in records.chunks(PER_APPEND) {
                ground
                    .broker
                    .log
                    .append(&destination.topic, partition, records)
                    .await
                    .map_err(|e| e.error)?;
            }
            let events: Vec<Event> = records.iter().map(decode).collect::<anyhow::Result<_>>()?;
            lanes.push((partition, events.into()));
        }
        // The group reads this topic as well, which stays empty.
        ground.broker.create(&AggregateType::Ops.topic(&prefix), ground.broker.partitions).await?;
        let group = projection::groups(assumptions(&database.config.economics))
            .into_iter()
            .find(|group| group.name == portfolio::GROUP)
            .context("the group is not of this build")?;
        Ok(Self { topic: destination.topic, ground, file, db, group, prefix, lanes, records })
    }

    async fn measure(&self, args: &ConsumeBench, report: &mut Report) -> anyhow::Result<()> {
        self.drains(args, report).await?;
        for (n, rate) in args.rates.iter().flatten().enumerate() {
            self.steady(n, *rate, args, report).await?;
        }
        Ok(())
    }

    async fn drains(&self, args: &ConsumeBench, report: &mut Report) -> anyhow::Result<()> {
        let mut rounds: BTreeMap<Who, Vec<Option<Drain>>> = BTreeMap::new();
        // The first round only warms up.
        for round in 0..=args.pairs as usize {
            for who in rotated(&Who::ALL, round) {
                self.reset().await?;
                let drain = match Box::pin(self.applied_by(who)).await? {
                    Outcome::Measured(drain) => Some(drain),
                    Outcome::Void(reason) => {
                        report.void.push(format!("round {round} of {}: {reason}", who.name()));
                        None
                    }
                };
                let shown = drain.as_ref().map_or(0.0, Drain::events_per_second);
                info!(round, who = who.name(), "{shown:.0} events/s");
                if round > 0 {
                    rounds.entry(who).or_default().push(drain);
                }
            }
        }
        let speed = |who| -> Vec<Option<f64>> {
            rounds.get(&who).into_iter().flatten().map(|d| d.as_ref().map(Drain::events_per_second)).collect()
        };
        report.rows = Who::ALL
            .map(|who| {
                let measured = rounds.get(&who).cloned().unwrap_or_default();
                let figures = || measured.iter().flatten();
                Row {
                    who,
                    events_per_second: Spread::of(figures().map(Drain::events_per_second)),
                    cpu_seconds_per_1000: Spread::of(figures().filter_map(Drain::cpu_seconds_per_1000)),
                    peak_rss_mib: Spread::of(figures().filter_map(|d| d.peak_rss_bytes).map(mib)),
                    consumer_ratio: pair_ratios(&speed(Who::Consumer), &speed(who)),
                    rounds: measured,
                }
            })
            .into();
        Ok(())
    }

    /// As if nothing had been applied yet.
    async fn reset(&self) -> anyhow::Result<()> {
        let mut owner = self.ground.database.owner().await?;
        sqlx::raw_sql(
            "truncate event_inbox, parked_event, event_dlq, consumer_offset, group_member, portfolio, \
             portfolio_history",
        )
        .execute(&mut owner)
        .await?;
        sqlx::raw_sql("vacuum analyze portfolio").execute(&mut owner).await?;
        Ok(())
    }

    async fn applied_by(&self, who: Who) -> anyhow::Result<Outcome<Drain>> {
        let batch = usize::try_from(self.ground.database.config.consumer.batch_size)?;
        let drain = match who {
            Who::Consumer => return self.consume().await,
            Who::BareSql => {
                self.register().await?;
                applying::apply(&self.db, &self.group, &self.topic, &self.lanes, Way::Batches(batch)).await?
            }
            Who::ThreeTransactions => {
                let part = |(partition, events): &Lane| {
                    (*partition, Arc::from(&events[..events.len().div_ceil(FEWER)]))
                };
                let lanes: Vec<Lane> = self.lanes.iter().map(part).collect();
                applying::apply(&self.db, &self.group, &self.topic, &lanes, Way::ThreeTransactions).await?
            }
        };
        self.checked(drain).await
    }

    /// A consumer finds its offsets, or makes them; the others start with them.
    async fn register(&self) -> anyhow::Result<()> {
        let mut owner = self.ground.database.owner().await?;
        sqlx::query(
            "insert into consumer_offset (consumer_name, topic, partition) select $1, $2, n from generate_series(0, $3 - 1) n",
        )
        .bind(self.group.name)
        .bind(&self.topic)
        .bind(self.ground.broker.partitions)
        .execute(&mut owner)
        .await?;
        Ok(())
    }

    async fn consume(&self) -> anyhow::Result<Outcome<Drain>> {
        let config = &self.ground.database.config;
        let arguments = ["consume", "--group", self.group.name];
        let mut child = OwnProcess::start(config, self.file.as_ref(), &self.prefix, None, &arguments)?;
        let events: usize = self.lanes.iter().map(|(_, events)| events.len()).sum();
        let applied = self.applied(&mut child, events).await?;
        let usage = child.usage()?;
        child.stop().await?;
        if applied < events {
            return Ok(Outcome::Void(format!("{applied} of {events} events were applied")));
        }
        let mut owner = self.ground.database.owner().await?;
        // From the first batch to the last, by PostgreSQL's clock; the first one's own time is not in it.
        let seconds: f64 = sqlx::query_scalar(
            "select extract(epoch from max(processed_at) - min(processed_at))::float8 from event_inbox",
        )
        .fetch_one(&mut owner)
        .await?;
        let drain = Drain {
            events,
            duplicates: 0,
            seconds,
            cpu_seconds: Some(usage.cpu.as_secs_f64()),
            peak_rss_bytes: Some(usage.peak_rss_bytes),
        };
        self.checked(drain).await
    }

    /// Waits until a consumer has applied so many events, or applies nothing more; returns how many.
    async fn applied(&self, child: &mut OwnProcess, events: usize) -> anyhow::Result<usize> {
        let mut owner = self.ground.database.owner().await?;
        let (mut seen, mut progressed) = (0, Instant::now());
        loop {
            child.check()?;
            let applied: i64 = sqlx::query_scalar(
                "select coalesce(sum(next_offset), 0)::bigint from consumer_offset where consumer_name = $1",
            )
            .bind(self.group.name)
            .fetch_one(&mut owner)
            .await?;
            let applied = usize::try_from(applied)?;
            if applied > seen {
                (seen, progressed) = (applied, Instant::now());
            }
            if applied >= events || progressed.elapsed() > STALLED {
                return Ok(applied);
            }
            sleep(LOOK_EVERY).await;
        }
    }

    /// Each event once, each owner's portfolio there: or the run is void.
    async fn checked(&self, drain: Drain) -> anyhow::Result<Outcome<Drain>> {
        let mut owner = self.ground.database.owner().await?;
        let (applied, owners, portfolios): (i64, i64, i64) = sqlx::query_as(
            "select (select count(*) from event_inbox where outcome = 'applied'), \
               (select count(distinct (o.tenant_id, o.user_id)) from event_outbox o \
                join event_inbox i on i.event_id = o.id), (select count(*) from portfolio)",
        )
        .fetch_one(&mut owner)
        .await?;
        if applied != i64::try_from(drain.events)? || owners != portfolios {
            return Ok(Outcome::Void(format!(
                "{applied} of {} events are applied, {portfolios} of {owners} portfolios are there",
                drain.events
            )));
        }
        Ok(Outcome::Measured(drain))
    }
}

fn decode(record: &Record) -> anyhow::Result<Event> {
    let event =
        event::decode(record.key.as_deref(), record.value.as_deref(), record.header(header::TENANT_ID));
    let Ok(event) = event else { bail!("the backlog holds a record that is no event") };
    Ok(event)
}
