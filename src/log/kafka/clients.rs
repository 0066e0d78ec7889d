//! Owns the clients of the data plane: who builds them, who uses which, when they are thrown away.
//! Promises that a call ends by its deadline and that what hung, or failed three times in a row, is built anew.
//! Called by `log::kafka` for everything about a partition.

use std::collections::HashMap;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use rskafka::BackoffConfig;
use rskafka::client::error::Error;
use rskafka::client::partition::{PartitionClient, UnknownTopicHandling};
use rskafka::client::{Client, ClientBuilder, Credentials, SaslConfig};
use secrecy::ExposeSecret;
use tokio::time::timeout;
use tracing::warn;

use super::errors::retry_helps;
use crate::config::SaslMechanism;
use crate::log::security::{Cluster, Sasl};
use crate::log::wire::{CLIENT_ID, Connection, WireError};

/// rskafka tries again by itself, without a limit unless told: after about a second it is the caller's turn.
const BACKOFF: BackoffConfig = BackoffConfig {
    init_backoff: Duration::from_millis(50),
    max_backoff: Duration::from_secs(1),
    base: 3.0,
    deadline: Some(Duration::from_secs(1)),
};

/// Failures in a row of one partition after which the client goes: its view of the leaders may be stale for good.
const FAILURES: u32 = 3;

/// Why a call has no result.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// What was asked for may still happen.
    #[error("no answer from Kafka within {} ms", .0.as_millis())]
    Deadline(Duration),
    /// An answer that the client did not expect must not take the process with it.
    #[error("the Kafka client panicked: its message is in the log")]
    Panic,
    #[error(transparent)]
    Client(#[from] Error),
    #[error(transparent)]
    Wire(#[from] WireError),
}

impl Failure {
    /// Whether it stays until somebody changes the configuration, ours or the broker's.
    pub(super) fn is_final(&self) -> bool {
        matches!(self, Self::Wire(WireError::Tls { .. } | WireError::Authentication { .. }))
    }
}

/// The current client and what hangs on it.
pub(super) struct Clients {
    cluster: Arc<Cluster>,
    current: Mutex<Option<Arc<Session>>>,
    building: tokio::sync::Mutex<()>,
}

/// One client and its connections to partitions. An old one lives until its last call has ended.
pub(super) struct Session {
    client: Client,
    lanes: Mutex<HashMap<(String, i32), Lane>>,
}

/// Each call has a connection of its own while it runs: a broker answers one connection in order, so a
/// parked fetch would hold up an append, and a fetch that was given up would hold up the next one.
#[derive(Default)]
struct Lane {
    idle: Vec<Arc<PartitionClient>>,
    failures: u32,
}

impl Clients {
    pub(super) fn new(cluster: Arc<Cluster>) -> Self {
        Self { cluster, current: Mutex::default(), building: tokio::sync::Mutex::default() }
    }

    /// The current session, or a new one.
    pub(super) async fn session(&self, deadline: Duration) -> Result<Arc<Session>, Failure> {
        if let Some(session) = lock(&self.current).clone() {
            return Ok(session);
        }
        let _one_builds = self.building.lock().await;
        if let Some(session) = lock(&self.current).clone() {
            return Ok(session);
        }
        // rskafka asks the brokers one after the other and would wait for ever for one that hangs.
        let answering = Connection::open_any(&self.cluster, deadline).await?;
        let mut builder = ClientBuilder::new(vec![answering.broker().to_owned()])
            .client_id(CLIENT_ID)
            .backoff_config(BACKOFF);
        if let Some(tls) = &self.cluster.security.tls {
            builder = builder.tls_config(Arc::clone(tls));
        }
        if let Some(sasl) = &self.cluster.security.sasl {
            builder = builder.sasl_config(sasl_config(sasl));
        }
        let session = Arc::new(Session { client: survive(builder.build()).await??, lanes: Mutex::default() });
        *lock(&self.current) = Some(Arc::clone(&session));
        Ok(session)
    }

    /// Runs a request against a partition within `deadline`.
    pub(super) async fn call<T, F>(
        &self,
        topic: &str,
        partition: i32,
        deadline: Duration,
        request: impl FnOnce(Arc<PartitionClient>) -> F + Send,
    ) -> Result<T, Failure>
    where
        T: Send,
        F: Future<Output = Result<T, Error>> + Send,
    {
        let lane = (topic.to_owned(), partition);
        let mut used = None;
        let outcome = timeout(deadline, async {
            let session = used.insert(self.session(deadline).await?);
            let client = match survive(session.take(&lane)).await? {
                // Its view of the topics may be from before this one grew, and it never asks again.
                Err(Error::InvalidResponse(_)) => {
                    self.retire(session);
                    *session = self.session(deadline).await?;
                    survive(session.take(&lane)).await??
                }
                taken => taken?,
            };
            let result = survive(request(Arc::clone(&client))).await?;
            if result.as_ref().err().is_none_or(|error| !retry_helps(error)) {
                session.give_back(&lane, client);
            }
            result.map_err(Failure::Client)
        })
        .await;
        let (failure, failures) = match outcome {
            Ok(Ok(result)) => return Ok(result),
            Ok(Err(Failure::Client(error))) if !retry_helps(&error) => return Err(Failure::Client(error)),
            Ok(Err(Failure::Panic)) => (Failure::Panic, FAILURES),
            Ok(Err(failure)) => {
                let failures = used.as_ref().map_or(0, |session| session.failed(&lane));
                (failure, failures)
            }
            Err(_) => (Failure::Deadline(deadline), FAILURES),
        };
        if let Some(session) = used.filter(|_| failures >= FAILURES) {
            warn!(topic, partition, "the connections to Kafka are built anew");
            self.retire(&session);
        }
        Err(failure)
    }

    /// The next call builds a new session, unless that has happened already.
    fn retire(&self, session: &Arc<Session>) {
        let mut current = lock(&self.current);
        if current.as_ref().is_some_and(|current| Arc::ptr_eq(current, session)) {
            *current = None;
        }
    }
}

impl Session {
    async fn take(&self, lane: &(String, i32)) -> Result<Arc<PartitionClient>, Error> {
        let idle = lock(&self.lanes).get_mut(lane).and_then(|lane| lane.idle.pop());
        if let Some(client) = idle {
            return Ok(client);
        }
        let (topic, partition) = lane;
        let client = self.client.partition_client(topic, *partition, UnknownTopicHandling::Error).await?;
        Ok(Arc::new(client))
    }

    fn give_back(&self, lane: &(String, i32), client: Arc<PartitionClient>) {
        let mut lanes = lock(&self.lanes);
        let lane = lanes.entry(lane.clone()).or_default();
        lane.failures = 0;
        lane.idle.push(client);
    }

    /// How many calls in a row have failed, this one included.
    fn failed(&self, lane: &(String, i32)) -> u32 {
        let mut lanes = lock(&self.lanes);
        let lane = lanes.entry(lane.clone()).or_default();
        lane.failures += 1;
        lane.failures
    }
}

/// Runs a piece of the client; what it leaves behind when it panics is not used again.
async fn survive<T>(work: impl Future<Output = T>) -> Result<T, Failure> {
    AssertUnwindSafe(work).catch_unwind().await.map_err(|_| Failure::Panic)
}

fn sasl_config(sasl: &Sasl) -> SaslConfig {
    let credentials = Credentials::new(sasl.username.clone(), sasl.password.expose_secret().to_owned());
    match sasl.mechanism {
        SaslMechanism::Plain => SaslConfig::Plain(credentials),
        SaslMechanism::ScramSha256 => SaslConfig::ScramSha256(credentials),
        SaslMechanism::ScramSha512 => SaslConfig::ScramSha512(credentials),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
