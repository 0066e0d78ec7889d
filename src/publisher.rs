//! Owns the way from the outbox to the log.
//! Promises that every committed event is appended at least once, and per aggregate in order of first occurrence.
//! Called by the roles `publish` and `standalone`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use chrono::Utc;
use futures_util::future::try_join_all;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::backoff::Backoff;
use crate::db::Db;
use crate::doorbell::{Bell, Doorbells};
use crate::log::{EventLog, LogError, Record, partition_of};
use crate::metrics;
use crate::outbox::{Leadership, LeadershipError, OutboxRow, Page, Reader};

/// How often a publisher that does not lead asks for the lead.
const STAND_BY: Duration = Duration::from_millis(500);

/// How often an idle leader makes sure that its lock is still held.
const CONFIRM: Duration = Duration::from_secs(1);

/// What the publisher needs.
#[derive(Clone)]
pub struct Publisher {
    pub db: Db,
    pub log: Arc<dyn EventLog>,
    pub bells: Doorbells,
    pub topic_prefix: String,
    pub page_size: u32,
    pub poll_interval: Duration,
}

/// What one step did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// So many events were handed over; there may be more.
    Published(usize),
    /// Everything committed is published.
    Idle,
    /// Another publisher leads now: nothing was stored.
    Fenced,
}

/// Why a step failed; the same page is read again.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    #[error("outbox: {0}")]
    Outbox(#[from] sqlx::Error),
    #[error(transparent)]
    Log(#[from] LogError),
}

impl Publisher {
    /// Leads when nobody else does, until the stop.
    pub async fn run(self, stopping: CancellationToken) -> anyhow::Result<()> {
        let mut waiting = false;
        while !stopping.is_cancelled() {
            match Leadership::acquire(&self.db).await {
                Ok(Some((leadership, cursor))) => {
                    info!("this publisher leads");
                    waiting = false;
                    self.lead(leadership, Reader::new(cursor, self.page_size), &stopping).await;
                    continue;
                }
                Ok(None) if !waiting => {
                    info!("another publisher leads; standing by");
                    waiting = true;
                }
                Ok(None) => {}
                Err(refused @ LeadershipError::OtherCluster { .. }) => return Err(refused.into()),
                Err(LeadershipError::Sql(error)) => {
                    warn!(%error, "the lead cannot be asked for; trying again")
                }
            }
            tokio::select! {
                () = stopping.cancelled() => {}
                () = tokio::time::sleep(STAND_BY) => {}
            }
        }
        Ok(())
    }

    /// Publishes until the stop or until the lead is lost.
    async fn lead(&self, mut leadership: Leadership, mut reader: Reader, stopping: &CancellationToken) {
        let mut bell = self.bells.listen(Bell::Outbox);
        let mut backoff = Backoff::default();
        let mut polled_at = tokio::time::Instant::now();
        while !stopping.is_cancelled() {
            bell.arm();
            let pause = match self.step(&leadership, &mut reader).await {
                Ok(Step::Published(_)) => {
                    backoff.reset();
                    continue;
                }
                Ok(Step::Idle) => {
                    backoff.reset();
                    polled_at = tokio::time::Instant::now();
                    None
                }
                Ok(Step::Fenced) => {
                    warn!("another publisher has taken the lead");
                    return;
                }
                Err(error) => {
                    warn!(%error, "publishing failed; the same events are tried again");
                    Some(backoff.pause())
                }
            };
            let fallback = polled_at + self.poll_interval;
            loop {
                tokio::select! {
                    () = stopping.cancelled() => break,
                    () = bell.rung(), if pause.is_none() => break,
                    () = tokio::time::sleep(pause.unwrap_or(CONFIRM)) => {}
                }
                if let Err(error) = leadership.confirm().await {
                    warn!(%error, "the lead is lost with its connection");
                    return;
                }
                if pause.is_some() || tokio::time::Instant::now() >= fallback {
                    break;
                }
            }
        }
        if let Err(error) = leadership.release().await {
            warn!(%error, "the lead was not given back; it ends with the connection");
        }
    }

    /// Hands over one page and stores the cursor.
    pub async fn step(&self, leadership: &Leadership, reader: &mut Reader) -> Result<Step, PublishError> {
        let mut tx = self.db.worker().await?;
        let Some(page) = reader.next(tx.conn()).await? else {
            tx.rollback().await?;
            return Ok(Step::Idle);
        };
        let lanes = self.lanes(&page).await?;
        if let Some(log) = self.log.transactional() {
            // Records, offsets and cursor become visible in one commit.
            if !leadership.store(&mut tx, &page.after).await? {
                tx.rollback().await?;
                return Ok(Step::Fenced);
            }
            for ((topic, partition), records) in &lanes {
                log.append_in(tx.conn(), topic, *partition, records).await?;
            }
            tx.commit().await?;
            self.bells.ring(Bell::Log);
        } else {
            // No transaction stays open while a broker may keep us waiting.
            tx.rollback().await?;
            let appends =
                lanes.iter().map(|((topic, partition), records)| self.log.append(topic, *partition, records));
            try_join_all(appends).await?;
            let mut tx = self.db.worker().await?;
            if !leadership.store(&mut tx, &page.after).await? {
                tx.rollback().await?;
                return Ok(Step::Fenced);
            }
            tx.commit().await?;
        }
        for ((topic, _), records) in &lanes {
            metrics::events_published(topic, records.len());
        }
        let now = Utc::now().naive_utc();
        for row in &page.rows {
            metrics::stage_latency("write_to_log", "", (now - row.occurred_at).as_seconds_f64());
        }
        let published = page.rows.len();
        reader.advance(page);
        Ok(Step::Published(published))
    }

    /// The page's records by topic and partition, each lane in the order of position.
    async fn lanes(&self, page: &Page) -> Result<BTreeMap<(String, i32), Vec<Record>>, LogError> {
        let mut lanes: BTreeMap<(String, i32), Vec<Record>> = BTreeMap::new();
        for row in &page.rows {
            let topic = format!("{}{}", self.topic_prefix, row.aggregate_type);
            let partitions = self.log.partitions(&topic).await?;
            let partition = partition_of(row.event_key.as_bytes(), partitions);
            lanes.entry((topic, partition)).or_default().push(record(row));
        }
        Ok(lanes)
    }
}

/// The record of a row: the bytes that Debezium's EventRouter would write.
fn record(row: &OutboxRow) -> Record {
    let header = |name: &str, value: &str| (name.to_owned(), value.as_bytes().to_vec());
    Record {
        key: Some(row.event_key.as_bytes().to_vec()),
        value: Some(row.payload.as_bytes().to_vec()),
        headers: vec![
            header("id", &row.id.to_string()),
            header("position", &row.position.to_string()),
            header("tenantId", &row.tenant_id),
            header("traceparent", &row.traceparent),
            header("type", &row.event_type),
            header("version", &row.schema_version.to_string()),
        ],
        timestamp: row.occurred_at.and_utc(),
    }
}
