//! One run from its plan to its verdict.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use hashinsight::read_model::portfolio;
use hashinsight::role::app::assumptions;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::evidence::Evidence;
use super::rest::come_to_rest;
use super::schedule::{GUEST, Kind, Planned, SERVER, schedule};
use super::stage::Stage;
use super::watch::{self, Seen, sample};
use super::workload::Load;
use super::{SHORT, check, nemesis};
use crate::history::{Evicted, History, Limits, Tables, Violation, Witness};
use crate::support::until;

/// The most of them that are printed; all are in the folder.
const PRINTED: usize = 12;

/// What to run.
pub(crate) struct Plan {
    pub(crate) seed: u64,
    length: Duration,
    kinds: Vec<Kind>,
    /// Where the publishers read.
    source: &'static str,
    schedule: Vec<Planned>,
    /// Whether the evidence stays although nothing was found.
    keep: bool,
}

impl Plan {
    /// As `dev/chaos` says through its variables; otherwise a short run of a seed that is always the same.
    pub(crate) fn of_environment() -> Self {
        let variable = |name: &str| std::env::var(format!("HASHINSIGHT_CHAOS_{name}")).ok();
        let number = |name: &str| variable(name).map(|text| text.parse::<u64>().expect("a whole number"));
        let seed = number("SEED").unwrap_or(1);
        let length = number("SECONDS").map_or(SHORT, Duration::from_secs);
        let kinds = variable("NEMESIS").map_or_else(
            || Kind::ALL.to_vec(),
            |names| names.split(',').map(|name| name.parse().expect("a kind of fault")).collect(),
        );
        let source = if seed % 2 == 0 { "wal" } else { "poll" };
        let schedule = schedule(seed, length, &kinds);
        Self { seed, length, kinds, source, schedule, keep: variable("KEEP").is_some() }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kinds: Vec<String> = self.kinds.iter().map(|kind| format!("{kind:?}").to_lowercase()).collect();
        let (seed, seconds, kinds) = (self.seed, self.length.as_secs(), kinds.join(","));
        writeln!(f, "again: dev/chaos --seed {seed} --seconds {seconds} --nemesis {kinds}")?;
        writeln!(f, "publishers read by {}", self.source)?;
        self.schedule.iter().try_for_each(|planned| writeln!(f, "{planned}"))
    }
}

/// A run that is over, and its stage at rest.
pub(crate) struct Done {
    plan: Plan,
    evidence: Evidence,
    stage: Arc<Stage>,
    history: History,
    found: Vec<Violation>,
}

pub(crate) async fn run(plan: Plan) -> Done {
    let evidence = Evidence::open(&plan);
    println!("{plan}");
    let stage = Arc::new(Box::pin(Stage::build(&evidence.folder, plan.source)).await);
    for (name, role) in &stage.roles {
        if *name != GUEST {
            role.lock().await.start();
        }
    }
    let working = async |name: &&str| {
        let ready = async || stage.role(name).lock().await.was_ready().then_some(());
        until(&format!("{name} works"), Duration::from_secs(60), ready).await;
    };
    for name in stage.roles.keys().filter(|name| **name != GUEST) {
        working(name).await;
    }

    let (began, wall) = (Instant::now(), chrono::Utc::now());
    let (seen, watching) = (Arc::new(Seen::default()), CancellationToken::new());
    let watch = tokio::spawn(watch::run(Arc::clone(&stage), Arc::clone(&seen), began, watching.clone()));
    let (load, loading) =
        (Load::new(&stage.test.config, &stage.api, plan.seed, began), CancellationToken::new());
    let clients = tokio::spawn(Arc::clone(&load).run(loading.clone()));
    let hindered = nemesis::run(&stage, &plan.schedule, began).await;
    sleep_until(began + plan.length).await;
    loading.cancel();
    clients.await.expect("the clients");

    let mut found = Vec::new();
    let mut rest = async |when: &str| match come_to_rest(&stage).await {
        Ok(took) => println!("at rest {took:.1?} after {when}"),
        Err(why) => found.push(Violation::liveness(why)),
    };
    rest("the load").await;
    load.read_at_rest().await;
    // A request that its client gave up may still be worked on: until its server is gone nothing is at rest.
    let mut stopped = vec![(SERVER, stage.role(SERVER).lock().await.terminate().await)];
    rest("the server").await;
    watching.cancel();
    watch.await.expect("the watch");
    let last = sample(&stage, began).await;
    seen.samples.lock().expect("no panic").push(last);
    let mut evicted = Vec::new();
    for (name, role) in &stage.roles {
        for at in role.lock().await.evictions() {
            let at = (at - wall).num_microseconds().and_then(|at| u64::try_from(at).ok()).unwrap_or_default();
            evicted.push(Evicted { role: (*name).to_owned(), at });
        }
        if ![SERVER, GUEST].contains(name) {
            stopped.push((name, role.lock().await.terminate().await));
        }
    }
    for (name, status) in stopped {
        if !status.is_some_and(|status| status.success()) {
            found.push(Violation::stop(name, status));
        }
    }

    let mut conn = PgConnection::connect(&stage.test.environment["DATABASE_URL"]).await.expect("connected");
    let history = History {
        group: portfolio::GROUP.to_owned(),
        assumptions: assumptions(&stage.test.config.economics),
        began: wall,
        ops: load.ops(),
        topics: stage.topics().await,
        tables: Tables::read(&mut conn).await.expect("the tables"),
        witness: Witness::read(&mut conn).await.expect("the witness"),
        samples: seen.samples.lock().expect("no panic").clone(),
        limits: Limits { memory: 256 << 20, disk: 2 << 30, backlog: 20_000 },
        ended: seen.ended.lock().expect("no panic").clone(),
        evicted,
        hindered,
    };
    found.extend(check(&history));
    println!("{}", history.summary());
    Done { plan, evidence, stage, history, found }
}

impl Done {
    /// Fails the test, with all there is to know, unless nothing was found.
    pub(crate) fn must_be_clean(&self) {
        if !self.found.is_empty() {
            self.evidence.keep(&self.plan, &self.history, &self.found);
            let lines: Vec<String> = self.found.iter().take(PRINTED).map(ToString::to_string).collect();
            let (count, folder) = (self.found.len(), self.evidence.folder.display());
            panic!(
                "{count} violations, the first of them:\n{}\n{}evidence: {folder}",
                lines.join("\n"),
                self.plan
            );
        }
        if self.plan.keep {
            self.evidence.keep(&self.plan, &self.history, &[]);
        } else {
            self.evidence.discard();
        }
    }

    /// The invariants that a statement breaks, each once; it is rolled back.
    pub(crate) async fn tampered(&self, sql: &str) -> Vec<&'static str> {
        let url = &self.stage.test.environment["DATABASE_URL"];
        let mut conn = PgConnection::connect(url).await.expect("connected");
        let mut tx = conn.begin().await.expect("begin");
        tx.execute(AssertSqlSafe(sql)).await.expect(sql);
        let tables = Tables::read(&mut tx).await.expect("the tables");
        let witness = Witness::read(&mut tx).await.expect("the witness");
        let found = check(&History { tables, witness, ..self.history.clone() });
        tx.rollback().await.expect("rolled back");
        let mut invariants: Vec<&str> = found.iter().map(|violation| violation.invariant).collect();
        invariants.sort_unstable();
        invariants.dedup();
        invariants
    }
}
