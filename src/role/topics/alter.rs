//! `hashinsight topics alter`: more partitions for topics that are in use.
//!
//! With more partitions a key may belong to another one, and what it has in its old one must be applied before anything
//! newer of it stands in the new one. So publishing pauses, the groups catch up, and only then the topics grow.
//!
//! ```text
//!  refuse what cannot be ─► take the lead ─► wait for the groups ─► grow ─► offsets for the groups ─► give it back
//!  └──────────────── whatever fails here has changed nothing ─────┘  └── again: finishes what is missing ──┘
//! ```

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::pin::pin;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use sqlx::Connection as _;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};
use tracing::{info, warn};

use crate::cli::TopicsAlter;
use crate::config::{Config, ConfigError};
use crate::connector;
use crate::consumer;
use crate::db::Db;
use crate::doorbell::Doorbells;
use crate::event::AggregateType;
use crate::lag::{Unapplied, unapplied};
use crate::log::EventLog;
use crate::outbox::wal::{SlotState, slot};
use crate::outbox::{Leadership, stuck};
use crate::publisher::{BEAT, beat};
use crate::role::app::open_log;
use crate::role::print_json;

/// How often it is looked whether the groups have caught up.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// How often it is said what they have yet to do, where lines cannot be overwritten.
const TELL_EVERY: Duration = Duration::from_secs(5);

/// What was done.
#[derive(Debug, serde::Serialize)]
struct Altered {
    topics: Vec<Grown>,
    /// Rows of `consumer_offset` that were made.
    offsets: u64,
    /// How long nothing was published.
    paused_seconds: f64,
}

/// A topic that grew.
#[derive(Debug, serde::Serialize)]
struct Grown {
    topic: String,
    before: i32,
    after: i32,
}

/// Alters the topics and prints what was done.
pub async fn run(config: &Config, args: &TopicsAlter) -> anyhow::Result<()> {
    let topics = chosen(config, args.topic.as_deref())?;
    let kind = config.event_log_kind(true)?;
    let db = Db::open(config).await?;
    let log = open_log(config, kind, &db, &Doorbells::default()).await?;
    let alter = Alter {
        db: &db,
        log: &*log,
        debezium_slot: &config.debezium.slot,
        topics,
        partitions: args.partitions,
        patience: Duration::from_secs(args.wait),
    };
    let altered = alter.run().await;
    db.close().await;
    let altered = altered?;
    if args.partitions != config.kafka.partitions {
        info!(
            "set kafka.partitions = {} in the configuration: `topics describe` and `doctor` compare with it",
            args.partitions
        );
    }
    if args.json.json {
        return print_json(&altered);
    }
    for Grown { topic, before, after } in &altered.topics {
        println!("{topic}: {after} partitions, {before} before");
    }
    println!("{} offsets made; publishing paused for {:.1} s", altered.offsets, altered.paused_seconds);
    Ok(())
}

/// The topics of events: others have no order to keep.
fn chosen(config: &Config, topic: Option<&str>) -> Result<Vec<String>, ConfigError> {
    let all: Vec<String> =
        AggregateType::ALL.iter().map(|aggregate| aggregate.topic(&config.kafka.topic_prefix)).collect();
    match topic {
        None => Ok(all),
        Some(topic) if all.iter().any(|known| known == topic) => Ok(vec![topic.to_owned()]),
        Some(topic) => {
            Err(ConfigError(format!("--topic {topic:?} is no topic of events: {}", all.join(", "))))
        }
    }
}

struct Alter<'a> {
    db: &'a Db,
    log: &'a dyn EventLog,
    debezium_slot: &'a str,
    topics: Vec<String>,
    partitions: i32,
    patience: Duration,
}

impl Alter<'_> {
    async fn run(&self) -> anyhow::Result<Altered> {
        let growing = self.growing().await?;
        if growing.is_empty() {
            // An earlier run may have been cut off between the topics and the offsets.
            let offsets = self.register().await?;
            if offsets == 0 {
                bail!(
                    "{} partitions is what {} has already: ask for more",
                    self.partitions,
                    self.topics.join(", ")
                );
            }
            return Ok(Altered { topics: Vec::new(), offsets, paused_seconds: 0.0 });
        }
        let names: Vec<String> = growing.keys().cloned().collect();
        self.refuse_debezium().await?;

        let since = Instant::now();
        info!(topics = names.join(", "), "publishing pauses until the groups have caught up");
        let Some((leadership, _)) = Leadership::take_over(self.db, self.patience).await? else {
            bail!(
                "the leading publisher did not let go within {} s: it is frozen, or its log does not answer. Stop it, or \
                 see to what its log complains about, and run this again; nothing was changed",
                self.patience.as_secs()
            );
        };
        let altered = self.alter(&leadership, &names, since + self.patience).await;
        if let Err(error) = leadership.release().await {
            warn!(%error, "the lead was not given back; it ends with the connection");
        }
        let offsets = altered?;
        let after = self.partitions;
        let topics = growing.into_iter().map(|(topic, before)| Grown { topic, before, after });
        Ok(Altered { topics: topics.collect(), offsets, paused_seconds: since.elapsed().as_secs_f64() })
    }

    /// The topics that have fewer partitions than asked for, and how many.
    async fn growing(&self) -> anyhow::Result<BTreeMap<String, i32>> {
        let described = self.log.describe_topics(&self.topics).await?;
        if let Some(missing) = self.topics.iter().find(|name| !described.iter().any(|t| t.topic == **name)) {
            bail!("topic {missing} does not exist: run `hashinsight topics ensure`");
        }
        if let Some(larger) = described.iter().find(|t| t.partitions > self.partitions) {
            bail!(
                "topic {} has {} partitions and a topic cannot shrink to {}: ask for more than it has, or name another \
                 with --topic",
                larger.topic,
                larger.partitions,
                self.partitions
            );
        }
        let smaller = described.into_iter().filter(|t| t.partitions < self.partitions);
        Ok(smaller.map(|t| (t.topic, t.partitions)).collect())
    }

    /// The connector publishes without the lead: it cannot be paused from here.
    async fn refuse_debezium(&self) -> anyhow::Result<()> {
        let mut session = self.db.session().await?;
        let state = slot::state(&mut session, self.debezium_slot).await?;
        session.close().await?;
        match state {
            SlotState::Healthy(slot) if slot.here && slot.active_pid.is_some() => bail!(
                "somebody reads the slot {}: Debezium publishes, and would go on while the topics grow. Stop the connector \
                 (PUT /connectors/{}/stop at Kafka Connect), run this again, and resume it; nothing was changed",
                slot.name,
                connector::NAME
            ),
            _ => Ok(()),
        }
    }

    /// With the lead in hand: waits, grows, registers. Returns how many offsets were made.
    async fn alter(&self, leadership: &Leadership, names: &[String], until: Instant) -> anyhow::Result<u64> {
        let mut beats = interval(BEAT);
        beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        {
            let mut caught_up = pin!(self.caught_up(names, until));
            loop {
                tokio::select! {
                    done = &mut caught_up => break done?,
                    _ = beats.tick() => beat(leadership).await.context("nothing was changed")?,
                }
            }
        }
        self.refuse_debezium().await?;
        beat(leadership).await.context("nothing was changed")?;
        // From here on nothing is cut off: what was begun is finished.
        let mut lost = None;
        let mut growing = pin!(self.grow(names));
        let offsets = loop {
            tokio::select! {
                grown = &mut growing => break grown?,
                _ = beats.tick(), if lost.is_none() => lost = beat(leadership).await.err(),
            }
        };
        if let Some(error) = lost {
            warn!(%error, "publishing did not pause to the end: events of one miner may be applied out of order");
        }
        Ok(offsets)
    }

    /// Returns when every group has applied everything of these topics.
    async fn caught_up(&self, names: &[String], until: Instant) -> anyhow::Result<()> {
        let mut tx = self.db.worker().await?;
        let stuck = stuck::count(tx.conn(), names).await?;
        tx.rollback().await?;
        if stuck > 0 {
            bail!(
                "{stuck} events of these topics wait in outbox_stuck, and newer ones would pass them: let the publisher \
                 hand them over first (its log says what is in the way); nothing was changed"
            );
        }
        let mut progress = Progress::new();
        loop {
            let rest = unapplied(self.db, self.log, names).await.context("nothing was changed")?;
            progress.show(&rest);
            if rest.is_empty() {
                return Ok(());
            }
            if Instant::now() >= until {
                return Err(anyhow!(
                    "not everything is applied within {} s: {}. See that the members of the group run and what they log, \
                     or wait longer with --wait; nothing was changed",
                    self.patience.as_secs(),
                    listed(&rest)
                ));
            }
            sleep(LOOK_EVERY).await;
        }
    }

    async fn grow(&self, names: &[String]) -> anyhow::Result<u64> {
        self.log.grow_topics(names, self.partitions).await.context("run this again to finish")?;
        info!(partitions = self.partitions, "the topics have grown");
        fail::fail_point!("alter.after_grow");
        self.register().await.context("the topics have grown; run this again to finish")
    }

    async fn register(&self) -> anyhow::Result<u64> {
        let mut tx = self.db.worker().await?;
        let made = consumer::register_grown(tx.conn(), &self.topics, self.partitions).await?;
        tx.commit().await?;
        Ok(made)
    }
}

/// The first of them, and how many more there are.
fn listed(rest: &[Unapplied]) -> String {
    const MOST: usize = 3;
    let mut listed: Vec<String> = rest.iter().take(MOST).map(Unapplied::to_string).collect();
    if rest.len() > MOST {
        listed.push(format!("and {} more", rest.len() - MOST));
    }
    listed.join("; ")
}

/// Says how much is left: in one line on a terminal, now and then elsewhere.
struct Progress {
    terminal: bool,
    shown: bool,
    tell_at: Instant,
}

impl Progress {
    fn new() -> Self {
        let terminal = std::io::stderr().is_terminal();
        Self { terminal, shown: false, tell_at: Instant::now() + TELL_EVERY }
    }

    fn show(&mut self, rest: &[Unapplied]) {
        if self.terminal && (self.shown || !rest.is_empty()) {
            let (records, parked) =
                rest.iter().fold((0, 0), |(records, parked), r| (records + r.records, parked + r.parked));
            let end = if rest.is_empty() { "\n" } else { "" };
            eprint!("\r\x1b[K{records} records to apply, {parked} in retry queues{end}");
            self.shown = true;
        } else if !rest.is_empty() && Instant::now() >= self.tell_at {
            info!("waiting: {}", listed(rest));
            self.tell_at = Instant::now() + TELL_EVERY;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    #[test]
    fn only_topics_of_events_are_altered() {
        let config = config::load_from(None, &BTreeMap::new()).expect("defaults").config;
        assert_eq!(chosen(&config, None).expect("all").len(), 4);
        assert_eq!(chosen(&config, Some("events.miner")).expect("one"), ["events.miner"]);
        let refused = chosen(&config, Some("events.dlq")).expect_err("no events").0;
        assert!(refused.contains("--topic \"events.dlq\"") && refused.contains("events.miner"), "{refused}");
    }

    #[test]
    fn what_is_left_is_named() {
        let left = |partition, records, parked| Unapplied {
            group: "g".to_owned(),
            topic: "t".to_owned(),
            partition,
            records,
            parked,
        };
        let said = listed(&[left(0, 2, 0), left(1, 0, 3), left(2, 4, 5), left(3, 1, 0), left(4, 1, 0)]);
        assert_eq!(
            said,
            "group g has 2 records of t/0 before it; group g has 3 events of t/1 in its retry queue; \
             group g has 4 records of t/2 before it and 5 events in its retry queue; and 2 more"
        );
    }
}
