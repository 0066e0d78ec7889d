//! A member of a group in this process, with a handler and a log of the test's own.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use hashinsight::config::{ConsumerConfig, EventLogKind};
use hashinsight::consumer::{self, Context};
use hashinsight::event::AggregateType;
use hashinsight::group::{LeaseMembership, Membership, TopicPartition};
use hashinsight::log::{
    AppendError, Bounds, EventLog, FetchLimits, Fetched, LogError, Record, Topic, TopicDescription, TopicSpec,
};
use hashinsight::projection::EventHandler;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::TestDb;
use crate::pipeline::member;

/// A running member of the group `picky`; stop it with [`Member::stop`].
pub(crate) struct Member {
    stop: CancellationToken,
    running: JoinHandle<anyhow::Result<()>>,
}

/// What to change before a member starts.
pub(crate) struct Setup {
    pub(crate) context: Context,
    pub(crate) partitions: Vec<TopicPartition>,
}

impl Setup {
    pub(crate) async fn of(test: &TestDb, handler: Arc<dyn EventHandler>) -> Self {
        let (context, partitions) = member(test, handler).await;
        Self { context: Arc::into_inner(context).expect("one holder"), partitions }
    }

    pub(crate) fn settings(mut self, change: impl FnOnce(&mut ConsumerConfig)) -> Self {
        change(&mut self.context.settings);
        self
    }

    pub(crate) fn log(mut self, log: Arc<dyn EventLog>) -> Self {
        self.context.log = log;
        self
    }

    pub(crate) fn start(self) -> Member {
        let name = uuid::Uuid::now_v7().to_string();
        let (db, every) = (self.context.db.clone(), Duration::from_millis(50));
        let topics = self.partitions.iter().map(|partition| partition.topic.clone()).collect();
        let membership = LeaseMembership::new(db, "picky", name, every, topics);
        self.start_as(Box::new(membership))
    }

    pub(crate) fn start_as(self, membership: Box<dyn Membership>) -> Member {
        let stop = CancellationToken::new();
        let running = consumer::run(Arc::new(self.context), membership, stop.clone());
        Member { running: tokio::spawn(running), stop }
    }
}

impl Member {
    pub(crate) async fn start(test: &TestDb, handler: Arc<dyn EventHandler>) -> Self {
        Setup::of(test, handler).await.start()
    }

    /// An orderly stop.
    pub(crate) async fn stop(self) {
        self.stop.cancel();
        self.running.await.expect("no panic").expect("clean");
    }

    /// As if the process had died: nothing is given back.
    pub(crate) async fn die(self) {
        self.running.abort();
        let _ = self.running.await;
    }
}

/// The topic of miners of a test, and its log.
pub(crate) async fn miners(test: &TestDb, kind: EventLogKind) -> (Arc<dyn EventLog>, String) {
    (test.log(kind).await, AggregateType::Miner.topic(&test.config.kafka.topic_prefix))
}

/// What a test sees of fetches, and may do to them.
#[async_trait]
pub(crate) trait Watch: Send + Sync {
    async fn before_fetch(&self, partition: i32, offset: i64, limits: FetchLimits);
}

/// A log with somebody who watches.
pub(crate) struct Watched<W> {
    pub(crate) log: Arc<dyn EventLog>,
    pub(crate) watch: Arc<W>,
}

#[async_trait]
impl<W: Watch> EventLog for Watched<W> {
    async fn topic(&self, name: &str) -> Result<Topic, LogError> {
        self.log.topic(name).await
    }

    async fn append(&self, topic: &str, partition: i32, records: &[Record]) -> Result<(), AppendError> {
        self.log.append(topic, partition, records).await
    }

    async fn append_one(&self, topic: &str, partition: i32, record: &Record) -> Result<i64, LogError> {
        self.log.append_one(topic, partition, record).await
    }

    async fn fetch(
        &self,
        topic: &str,
        partition: i32,
        offset: i64,
        limits: FetchLimits,
    ) -> Result<Fetched, LogError> {
        self.watch.before_fetch(partition, offset, limits).await;
        self.log.fetch(topic, partition, offset, limits).await
    }

    async fn bounds(&self, topic: &str, partition: i32) -> Result<Bounds, LogError> {
        self.log.bounds(topic, partition).await
    }

    async fn ensure_topics(&self, topics: &[TopicSpec]) -> Result<Vec<String>, LogError> {
        self.log.ensure_topics(topics).await
    }

    async fn grow_topics(&self, names: &[String], partitions: i32) -> Result<(), LogError> {
        self.log.grow_topics(names, partitions).await
    }

    fn forget_topics(&self) {
        self.log.forget_topics();
    }

    async fn describe_topics(&self, names: &[String]) -> Result<Vec<TopicDescription>, LogError> {
        self.log.describe_topics(names).await
    }
}
