//! Owns the way from the log to the read models: one supervisor per group, one worker per partition.
//! Promises that an event is applied once per group in effect, and that one that fails blocks only its key.
//! Called by the roles `consume` and `standalone`.
//!
//! ```text
//!  membership ─► supervisor ─► worker of a partition: retry what is parked, fetch, apply
//!                                                        one transaction a batch:
//!                                                        fence, inbox, handler, dead letters
//! ```

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use tokio::task::{Id, JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::backoff::Backoff;
use crate::cache::Cache;
use crate::config::ConsumerConfig;
use crate::db::Db;
use crate::dead_letter::{self, Relay};
use crate::doorbell::Doorbells;
use crate::group::{Membership, MembershipError, TopicPartition};
use crate::log::EventLog;
use crate::projection::Group;

mod apply;
mod fetcher;
mod health;
mod offset;
mod parked;
mod pause;
mod recovery;
mod redelivery;
mod suspect;
mod takeover;
mod transient;
mod trouble;
mod worker;

pub use offset::register;
use worker::Worker;

/// Pause after a worker ended, before the supervisor looks again.
const RESTART_PAUSE: Duration = Duration::from_millis(50);

/// What every worker of a group shares.
pub struct Context {
    pub db: Db,
    pub log: Arc<dyn EventLog>,
    pub bells: Doorbells,
    pub cache: Arc<Cache>,
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
    let mut workers = Workers::new(context);
    let mut backoff = Backoff::default();
    while !stopping.is_cancelled() {
        let pause = match membership.heartbeat(&workers.owned()).await {
            Ok(target) => {
                backoff.reset();
                workers.reconcile(&target, membership.member_id());
                membership.interval()
            }
            Err(MembershipError::Evicted) => {
                warn!(
                    group = workers.context.group.name,
                    "evicted: work stops, then this member joins again"
                );
                workers.stop_all().await;
                backoff.pause()
            }
            Err(MembershipError::Unavailable(cause)) => {
                if membership.expired() && !workers.running.is_empty() {
                    warn!(group = workers.context.group.name, %cause, "the lease has run out: work stops");
                    workers.stop_all().await;
                }
                backoff.pause()
            }
        };
        tokio::select! {
            () = stopping.cancelled() => {}
            () = tokio::time::sleep(pause) => {}
            () = workers.ended() => {}
        }
    }
    workers.stop_all().await;
    if let Err(cause) = membership.leave().await {
        warn!(%cause, "the group was not left; the lease will run out");
    }
    info!(group = workers.context.group.name, "left the group");
    Ok(())
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
    running: BTreeMap<TopicPartition, CancellationToken>,
    tasks: JoinSet<()>,
    partition_of: HashMap<Id, TopicPartition>,
}

impl Workers {
    fn new(context: Arc<Context>) -> Self {
        Self { context, running: BTreeMap::new(), tasks: JoinSet::new(), partition_of: HashMap::new() }
    }

    fn owned(&self) -> BTreeSet<TopicPartition> {
        self.running.keys().cloned().collect()
    }

    /// Starts what is missing and asks the rest to stop; a partition is owned until its worker has ended.
    fn reconcile(&mut self, target: &BTreeSet<TopicPartition>, member_id: &str) {
        for (partition, stop) in &self.running {
            if !target.contains(partition) {
                stop.cancel();
            }
        }
        for partition in target {
            if self.running.contains_key(partition) {
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
            self.running.insert(partition.clone(), stop);
        }
    }

    /// Returns when a worker has ended, also by a panic: the next heartbeat starts another where one is missing.
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
        if let Some(partition) = self.partition_of.remove(&id) {
            self.running.remove(&partition);
        }
        // So that a worker that ends at once does not spin.
        tokio::time::sleep(RESTART_PAUSE).await;
    }

    async fn stop_all(&mut self) {
        for stop in self.running.values() {
            stop.cancel();
        }
        while self.tasks.join_next().await.is_some() {}
        self.running.clear();
        self.partition_of.clear();
    }
}
