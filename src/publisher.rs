//! Owns the way from the outbox to the log.
//! Promises that every committed event is appended at least once, and per aggregate in order of first occurrence.
//! Called by the roles `publish` and `standalone`.
//!
//! ```text
//!  outbox ──► source ──► lanes, one append in flight each ──► log
//!               ▲          │ failing for long: outbox_stuck    │ never taken: event_dlq
//!               └── keep ◄─┴── settled, in the order read ◄────┘
//! ```
//!
//! The source is the table ([`poll`]) or the write-ahead log ([`follow`]). The log in PostgreSQL needs no lanes: it takes
//! a page in the transaction of the cursor.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::backoff::Backoff;
use crate::db::Db;
use crate::doorbell::Doorbells;
use crate::lifecycle::Lifecycle;
use crate::log::{EventLog, LogError};
use crate::outbox::wal::{SlotError, WalError, WalSettings};
use crate::outbox::{Cursor, HistoryError, Leadership, LeadershipError, Standby};

mod embedded;
mod follow;
mod hand_over;
mod lanes;
mod letters;
mod pipeline;
mod poll;
mod record;
mod source;
mod watch;

pub use self::follow::SlotOwner;
use self::pipeline::Pipeline;
use self::poll::Poll;
pub use self::record::of_row as record;

/// How often a publisher that does not lead looks for the lead.
const STAND_BY: Duration = Duration::from_millis(500);

/// How often the leader shows that it lives.
pub(crate) const BEAT: Duration = Duration::from_secs(1);

/// A beat that takes longer means that the session, and with it the lead, is lost.
const BEAT_DEADLINE: Duration = Duration::from_secs(3);

/// What the publisher needs.
#[derive(Clone)]
pub struct Publisher {
    pub db: Db,
    pub log: Arc<dyn EventLog>,
    pub bells: Doorbells,
    pub topic_prefix: String,
    pub page_size: u32,
    pub poll_interval: Duration,
    /// A lane that fails for longer leaves its rows behind, so that the others flow.
    pub lane_patience: Duration,
    /// Publishes behind a slot instead of from the table. The log in PostgreSQL is always fed from the table.
    pub slot: Option<(SlotOwner, WalSettings)>,
    /// The slots that are watched, and from how many bytes kept for one on there is a warning.
    pub wal_slot: String,
    pub debezium_slot: String,
    pub slot_alarm_bytes: u64,
    pub lifecycle: Lifecycle,
}

/// Why publishing stopped; it goes on where the stored cursor stands.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    #[error("outbox: {0}")]
    Outbox(#[from] sqlx::Error),
    #[error(transparent)]
    Log(#[from] LogError),
    #[error(transparent)]
    Wal(#[from] WalError),
    #[error(transparent)]
    Slot(#[from] SlotError),
    #[error(transparent)]
    Elsewhere(#[from] HistoryError),
    #[error("another publisher has taken the lead, or the server was promoted")]
    Fenced,
    #[error("the database did not answer within {} s: the lead is given up", BEAT_DEADLINE.as_secs())]
    Silent,
}

impl Publisher {
    /// Leads when nobody else does, until the stop.
    pub async fn run(self, stopping: CancellationToken) -> anyhow::Result<()> {
        let (mut standby, mut backoff) = (Standby::default(), Backoff::default());
        let mut waiting = false;
        while !stopping.is_cancelled() {
            let pause = match standby.look(&self.db).await {
                Ok(Some((leadership, cursor))) => {
                    info!("this publisher leads");
                    waiting = false;
                    let led = tokio::select! {
                        led = self.lead(&leadership, cursor, &stopping) => led,
                        () = self.watch() => Ok(()),
                        () = self.letters(&leadership) => Ok(()),
                    };
                    if let Err(error) = leadership.release().await {
                        warn!(%error, "the lead was not given back; it ends with the connection");
                    }
                    match led {
                        Ok(()) => {
                            backoff.reset();
                            continue;
                        }
                        Err(error) => {
                            warn!(%error, "publishing was interrupted; it goes on where the cursor stands")
                        }
                    }
                    backoff.pause()
                }
                Ok(None) => {
                    if !waiting {
                        info!("another publisher leads; standing by");
                        waiting = true;
                    }
                    STAND_BY
                }
                Err(refused @ LeadershipError::OtherCluster { .. }) => return Err(refused.into()),
                Err(LeadershipError::Sql(error)) => {
                    warn!(%error, "the lead cannot be asked for; trying again");
                    STAND_BY
                }
            };
            tokio::select! {
                () = stopping.cancelled() => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
        Ok(())
    }

    /// Publishes until the stop or until the lead is lost.
    async fn lead(
        &self,
        leadership: &Leadership,
        cursor: Cursor,
        stopping: &CancellationToken,
    ) -> Result<(), PublishError> {
        // Whoever led before us may have been `topics alter`.
        self.log.forget_topics();
        if let Some(log) = self.log.transactional() {
            let poll = Poll::open(self, leadership, cursor).await?;
            return embedded::run(self, leadership, log, poll, stopping).await;
        }
        if let Some((owner, settings)) = &self.slot {
            return Box::pin(follow::run(self, leadership, settings, *owner, stopping)).await;
        }
        let poll = Poll::open(self, leadership, cursor).await?;
        Pipeline::new(self, leadership).await?.run(poll, leadership, stopping.cancelled()).await
    }

    /// The topic of a row.
    fn topic_of(&self, aggregate_type: &str) -> String {
        format!("{}{aggregate_type}", self.topic_prefix)
    }
}

/// One beat within its deadline.
pub(crate) async fn beat(leadership: &Leadership) -> Result<(), PublishError> {
    match tokio::time::timeout(BEAT_DEADLINE, leadership.beat()).await {
        Ok(Ok(true)) => Ok(()),
        Ok(Ok(false)) => Err(PublishError::Fenced),
        Ok(Err(error)) => Err(error.into()),
        Err(_) => Err(PublishError::Silent),
    }
}
