//! Owns the way from the log to the read models: one supervisor per group, one worker per partition.
//! Promises that an event is applied once per group in effect, and that one that fails blocks only its key.
//! Called by the roles `consume` and `standalone`.
//!
//! ```text
//!  membership ─► supervisor ─► worker of a partition: retry what is parked, fetch, apply
//!                                                        locks of the owners, one transaction a batch:
//!                                                        fence, inbox, handler, dead letters
//! ```

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use tokio::task::{Id, JoinSet};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::backoff::Backoff;
use crate::cache::Cache;
use crate::config::ConsumerConfig;
use crate::db::Db;
use crate::dead_letter::{self, Relay};
use crate::doorbell::Doorbells;
use crate::group::{Membership, MembershipError, TopicPartition};
use crate::lock::Locks;
use crate::log::EventLog;
use crate::projection::Group;

mod apply;
mod fetcher;
mod health;
mod locks;
mod offset;
mod parked;
mod pause;
mod recovery;
mod redelivery;
mod suspect;
mod takeover;
mod topics;
mod transient;
mod trouble;
mod worker;

pub use offset::{register, register_grown};
pub use topics::follow_topics;
use worker::Worker;
pub use worker::copies;

/// A worker that ran for so long did not end because it was started too early.
const LASTED: Duration = Duration::from_secs(30);

/// Longer than a step takes, shorter than the process has for its own stop.
const STOP_PATIENCE: Duration = Duration::from_secs(8);

/// What every worker of a group shares.
pub struct Context {
    pub db: Db,
    pub log: Arc<dyn EventLog>,
    pub bells: Doorbells,
    pub cache: Arc<Cache>,
    pub locks: Arc<Locks>,
    pub group: Group,
    pub settings: ConsumerConfig,
}

/// The partitions a group reads, in a fixed order.
pub async fn partitions_of(
    log: &dyn EventLog,
    group: &Group,
    topic_prefix: &str,
) -> Result<Vec<TopicPartition>, crate::log::LogError> {
    let mut all = Vec::new();
    for aggregate in group.reads {
        let topic = aggregate.topic(topic_prefix);
        for partition in 0..log.topic(&topic).await?.partitions {
            all.push(TopicPartition { topic: topic.clone(), partition });
        }
    }
    Ok(all)
}

/// Works on the partitions that the membership assigns, until the stop.
pub async fn run(
    context: Arc<Context>,
    mut membership: Box<dyn Membership>,
    stopping: CancellationToken,
) -> anyhow::Result<()> {
    let group = context.group.name;
    let mut workers = Workers::new(context);
    let mut backoff = Backoff::default();
    let ended = loop {
        let owned = workers.owned();
        let beat = tokio::select! {
            () = stopping.cancelled() => break Ok(()),
            beat = membership.heartbeat(&owned) => beat,
        };
        let pause = match beat {
            Ok(target) => {
                backoff.reset();
                workers.reconcile(&target, membership.member_id());
                membership.interval()
            }
            Err(MembershipError::Evicted) => {
                warn!(
                    group,
                    "the group does not count on this member: work stops, then this member joins again"
                );
                workers.stop_all().await;
                backoff.pause()
            }
            Err(MembershipError::Unavailable(cause)) => {
                if membership.expired() && !workers.running.is_empty() {
                    warn!(group, %cause, "the lease has run out: work stops");
                    workers.stop_all().await;
                }
                backoff.pause()
            }
            Err(refused @ MembershipError::Refused(_)) => break Err(refused.into()),
        };
        tokio::select! {
            () = stopping.cancelled() => break Ok(()),
            () = tokio::time::sleep(pause) => {}
            () = workers.ended() => {}
            () = membership.nudged() => {}
        }
    };
    workers.stop_all().await;
    match membership.leave().await {
        Ok(()) => info!(group, "left the group"),
        Err(cause) => warn!(group, %cause, "the group was not left; the others will notice"),
    }
    ended
}

/// What puts the dead letters of a partition on events.dlq.
fn relay(context: &Context, partition: &TopicPartition) -> Relay {
    Relay {
        db: context.db.clone(),
        log: Arc::clone(&context.log),
        bells: context.bells.clone(),
        group: context.group.name,
        source: Some((partition.topic.clone(), partition.partition)),
        topic: dead_letter::relay_topic(&partition.topic),
    }
}

/// The running workers, by partition.
struct Workers {
    context: Arc<Context>,
    running: BTreeMap<TopicPartition, Running>,
    /// Partitions whose worker ended without being asked to.
    resting: BTreeMap<TopicPartition, Resting>,
    tasks: JoinSet<()>,
    partition_of: HashMap<Id, TopicPartition>,
}

struct Running {
    stop: CancellationToken,
    since: Instant,
}

struct Resting {
    until: Instant,
    ends_in_a_row: u32,
}

impl Resting {
    /// One second, doubled each time, up to five: two members that both think a partition is theirs must not take it
    /// from each other all the time, and a rightful owner must not give up.
    fn after(ends_in_a_row: u32, now: Instant) -> Self {
        let pause = Duration::from_secs(1 << ends_in_a_row.min(2)).mul_f64(1.0 + 0.25 * fastrand::f64());
        Self { until: now + pause, ends_in_a_row: ends_in_a_row + 1 }
    }
}

impl Workers {
    fn new(context: Arc<Context>) -> Self {
        Self {
            context,
            running: BTreeMap::new(),
            resting: BTreeMap::new(),
            tasks: JoinSet::new(),
            partition_of: HashMap::new(),
        }
    }

    fn owned(&self) -> BTreeSet<TopicPartition> {
        self.running.keys().cloned().collect()
    }

    /// Starts what is missing and asks the rest to stop; a partition is owned until its worker has ended.
    fn reconcile(&mut self, target: &BTreeSet<TopicPartition>, member_id: &str) {
        for (partition, running) in &self.running {
            if !target.contains(partition) {
                running.stop.cancel();
            }
        }
        self.resting.retain(|partition, _| target.contains(partition));
        let now = Instant::now();
        for partition in target {
            let rests = self.resting.get(partition).is_some_and(|resting| now < resting.until);
            if rests || self.running.contains_key(partition) {
                continue;
            }
            let stop = CancellationToken::new();
            let worker = Worker::new(Arc::clone(&self.context), partition.clone(), member_id.to_owned());
            let (work, relay) = (worker.run(stop.clone()), relay(&self.context, partition).run());
            // What a partition buries goes on to events.dlq beside its worker, which does not wait for it.
            let task = self.tasks.spawn(async move {
                tokio::select! {
                    () = work => {}
                    () = relay => {}
                }
            });
            self.partition_of.insert(task.id(), partition.clone());
            self.running.insert(partition.clone(), Running { stop, since: now });
        }
    }

    /// Returns when a worker has ended, also by a panic: a later heartbeat starts another where one is missing.
    async fn ended(&mut self) {
        let id = match self.tasks.join_next_with_id().await {
            Some(Ok((id, ()))) => id,
            Some(Err(panic)) => {
                let partition = self.partition_of.get(&panic.id());
                error!(group = self.context.group.name, ?partition, %panic, "worker panicked");
                panic.id()
            }
            None => return std::future::pending().await,
        };
        let Some(partition) = self.partition_of.remove(&id) else { return };
        let Some(running) = self.running.remove(&partition) else { return };
        if !running.stop.is_cancelled() {
            let lasted = running.since.elapsed() >= LASTED;
            let before = self.resting.get(&partition).filter(|_| !lasted);
            let ends_in_a_row = before.map_or(0, |resting| resting.ends_in_a_row);
            self.resting.insert(partition, Resting::after(ends_in_a_row, Instant::now()));
        }
    }

    /// Stops every worker; one that does not end in time is cut off: its transaction is rolled back.
    async fn stop_all(&mut self) {
        for running in self.running.values() {
            running.stop.cancel();
        }
        let all_ended = async { while self.tasks.join_next().await.is_some() {} };
        if timeout(STOP_PATIENCE, all_ended).await.is_err() {
            warn!(group = self.context.group.name, "workers that did not stop in time are cut off");
            self.tasks.shutdown().await;
        }
        self.running.clear();
        self.resting.clear();
        self.partition_of.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_that_ends_by_itself_rests_for_one_to_five_seconds() {
        let now = Instant::now();
        let pause = |ends| (Resting::after(ends, now).until - now).as_secs_f64();
        for (ends, least) in [(0, 1.0), (1, 2.0), (2, 4.0), (9, 4.0)] {
            assert!((least..=least * 1.25).contains(&pause(ends)), "{ends}: {}", pause(ends));
        }
        assert_eq!(Resting::after(3, now).ends_in_a_row, 4);
    }
}
