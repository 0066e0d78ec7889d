//! Publishing behind a replication slot, and from the table whenever the slot is not to be had.
//!
//! ```text
//!            ┌──────────────── slot lost, missing or taken; connection lost ───────────────┐
//!            ▼                                                                             │
//!  poll from P, while the slot is made ──► poll until nothing that was open then is open ──► stream,
//!                                                                             or let Debezium stream
//! ```
//!
//! A slot delivers what commits after it was made, the table what is not in P. Between the two stands a snapshot S
//! taken once the slot exists: what is open in S may commit on either side, so the table is read until none of it is
//! open any more, and once to its end. Every start goes this way, since nothing tells what an earlier publisher left
//! behind the slot.

use std::future::Future;
use std::time::Duration;

use sqlx::PgConnection;
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::pipeline::Pipeline;
use super::poll::Poll;
use super::source::{Batch, Keeper, Source};
use super::{PublishError, Publisher, beat};
use crate::backoff::Backoff;
use crate::db;
use crate::outbox::wal::{
    APPLICATION_NAME, Confirmer, Lsn, SlotState, Visibility, WalError, WalSettings, WalStream, slot,
};
use crate::outbox::{Cursor, Leadership, OBSERVER};

/// How often P moves while streaming.
const SNAPSHOT_EVERY: Duration = Duration::from_secs(1);

/// How often it is looked whether transactions have ended, or a slot is free.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Before the slot is asked for again after it could not be had.
const ASK_AGAIN: Duration = Duration::from_secs(5);

/// Whose slot it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SlotOwner {
    /// Ours: we stream.
    Us,
    /// Debezium's: it streams, and P moves behind it.
    Debezium,
}

/// Publishes, or sees to it, until the stop or until the lead is lost.
pub(super) async fn run(
    publisher: &Publisher,
    leadership: &Leadership,
    settings: &WalSettings,
    owner: SlotOwner,
    stopping: &CancellationToken,
) -> Result<(), PublishError> {
    let mut backoff = Backoff::default();
    let mut pause = Duration::ZERO;
    loop {
        let slot = slot_ready(leadership, settings, owner, pause);
        let bridged = Box::pin(bridge(publisher, leadership, slot, stopping)).await?;
        let Some(settings) = bridged else { return Ok(()) };
        let streaming_since = Instant::now();
        let ended = match owner {
            SlotOwner::Us => stream(publisher, leadership, &settings, stopping).await,
            SlotOwner::Debezium => observe(leadership, &settings, stopping).await,
        };
        match ended {
            Ok(()) => return Ok(()),
            Err(PublishError::Wal(error)) => {
                warn!(slot = settings.slot, %error, "the write-ahead log cannot be read; the table is polled");
            }
            Err(error) => return Err(error),
        }
        if streaming_since.elapsed() > SNAPSHOT_EVERY {
            backoff.reset();
        }
        pause = backoff.pause();
    }
}

/// Polls until the stream can take over; `None`: until the stop.
async fn bridge(
    publisher: &Publisher,
    leadership: &Leadership,
    slot: impl Future<Output = WalSettings> + Send,
    stopping: &CancellationToken,
) -> Result<Option<WalSettings>, PublishError> {
    leadership.announce(db::APPLICATION_NAME).await?;
    let mut ready = None;
    let until = async {
        tokio::select! {
            settings = slot => ready = Some(settings),
            () = stopping.cancelled() => {}
        }
    };
    let poll = Poll::open(publisher, leadership, leadership.cursor().await?).await?;
    Pipeline::new(publisher, leadership).await?.run(poll, leadership, until).await?;
    let Some(ready) = ready else { return Ok(None) };
    // Everything that the slot may not deliver is visible now.
    let rest = Poll::open(publisher, leadership, leadership.cursor().await?).await?.that_ends();
    Pipeline::new(publisher, leadership).await?.run(rest, leadership, stopping.cancelled()).await?;
    Ok(Some(ready).filter(|_| !stopping.is_cancelled()))
}

/// Returns when a slot exists, nobody reads it, and nothing is open that was open when this was first so.
async fn slot_ready(
    leadership: &Leadership,
    settings: &WalSettings,
    owner: SlotOwner,
    pause: Duration,
) -> WalSettings {
    sleep(pause).await;
    loop {
        match try_slot(leadership, settings, owner).await {
            Ok(settings) => return settings,
            Err(error) => {
                error!(%error, "the write-ahead log cannot be read; the table is polled meanwhile");
                sleep(ASK_AGAIN).await;
            }
        }
    }
}

async fn try_slot(
    leadership: &Leadership,
    settings: &WalSettings,
    owner: SlotOwner,
) -> Result<WalSettings, PublishError> {
    let mut conn = settings.connect().await?;
    // It has an address of its own, which may still lead to the old server after a failover.
    leadership.is_of(&mut conn).await?;
    let name = match owner {
        SlotOwner::Us => slot::name(&mut conn, &settings.slot).await?,
        SlotOwner::Debezium => settings.slot.clone(),
    };
    match slot::state(&mut conn, &name).await? {
        SlotState::Healthy(_) => {}
        SlotState::Missing => warn!(slot = name, "the replication slot is missing: it is made"),
        SlotState::Lost(_) => {
            error!(slot = name, "the replication slot is lost: another is made, the table has what it lacks");
            slot::drop(&mut conn, &name, true).await?;
        }
    }
    slot::create(&mut conn, &name).await?;
    if owner == SlotOwner::Us {
        free(&mut conn, &name).await?;
    }
    settle(&mut conn).await?;
    info!(slot = name, "the replication slot is ready");
    Ok(WalSettings { slot: name, ..settings.clone() })
}

/// Ends an earlier reader of ours: whoever reads without the lead is frozen. Waits for one that is not ours.
async fn free(conn: &mut PgConnection, name: &str) -> Result<(), sqlx::Error> {
    let mut told = false;
    while let SlotState::Healthy(slot) = slot::state(conn, name).await?
        && let Some(pid) = slot.active_pid
    {
        let reader = slot.application_name.unwrap_or_default();
        if reader.starts_with(APPLICATION_NAME) {
            warn!(slot = name, pid, "a reader without the lead is ended");
            slot::terminate_reader(conn, name, pid).await?;
        } else if !told {
            error!(slot = name, pid, reader, "somebody else reads the replication slot; the table is polled");
            told = true;
        }
        sleep(LOOK_EVERY).await;
    }
    Ok(())
}

/// Waits until no transaction is open that is open now.
async fn settle(conn: &mut PgConnection) -> Result<(), sqlx::Error> {
    // A snapshot lists what is open only below the newest id whose transaction has ended. One of our own that has ended, and
    // not by a commit, which might have to wait: then everything that is open now is listed.
    sqlx::raw_sql("begin; select pg_current_xact_id(); rollback").execute(&mut *conn).await?;
    let snapshot: String =
        sqlx::query_scalar("select pg_current_snapshot()::text").fetch_one(&mut *conn).await?;
    loop {
        let open: bool = sqlx::query_scalar(
            "select exists (select from pg_snapshot_xip($1::text::pg_snapshot) x \
             where not pg_visible_in_snapshot(x, pg_current_snapshot()))",
        )
        .bind(&snapshot)
        .fetch_one(&mut *conn)
        .await?;
        if !open {
            return Ok(());
        }
        sleep(LOOK_EVERY).await;
    }
}

async fn stream(
    publisher: &Publisher,
    leadership: &Leadership,
    settings: &WalSettings,
    stopping: &CancellationToken,
) -> Result<(), PublishError> {
    let stream = WalStream::open(settings, &publisher.lifecycle).await?;
    info!(slot = settings.slot, "streaming from the write-ahead log");
    let keeper = Confirming { confirmer: stream.confirmer(), behind: Behind::new(leadership).await? };
    let mut session = publisher.db.worker_session(&[]).await?;
    leadership.is_of(&mut session).await?;
    let visibility = Visibility::of(session);
    let source = Following { stream, visibility, confirm: Lsn::default() };
    Pipeline::new(publisher, leadership).await?.run(source, keeper, stopping.cancelled()).await
}

/// Watches the slot that Debezium reads. What it has confirmed is in Kafka.
async fn observe(
    leadership: &Leadership,
    settings: &WalSettings,
    stopping: &CancellationToken,
) -> Result<(), PublishError> {
    let mut conn = settings.connect().await?;
    leadership.announce(OBSERVER).await?;
    info!(slot = settings.slot, "Debezium publishes; the cursor follows it");
    let behind = Behind::new(leadership).await?;
    let mut looks = tokio::time::interval(SNAPSHOT_EVERY);
    loop {
        tokio::select! {
            () = stopping.cancelled() => return Ok(()),
            _ = looks.tick() => beat(leadership).await?,
        }
        match slot::state(&mut conn, &settings.slot).await? {
            SlotState::Missing => return Err(WalError::SlotMissing.into()),
            SlotState::Lost(_) => return Err(WalError::SlotLost.into()),
            SlotState::Healthy(slot) => behind.reached(slot.confirmed_flush_lsn.unwrap_or_default()).await?,
        }
    }
}

/// Rows as they are committed and visible, marked with the place to confirm.
struct Following {
    stream: WalStream,
    visibility: Visibility,
    confirm: Lsn,
}

impl Source for Following {
    type Mark = Lsn;

    async fn next(&mut self) -> Result<Option<Batch<Lsn>>, PublishError> {
        let batch = self.stream.next().await?;
        self.visibility.wait(&batch.transactions).await?;
        // Within a transaction there is no new place: the last one holds.
        self.confirm = batch.confirm.unwrap_or(self.confirm);
        Ok(Some(Batch { rows: batch.rows, mark: self.confirm }))
    }
}

/// Confirms to the slot, and moves P behind it.
struct Confirming<'a> {
    confirmer: Confirmer,
    behind: Behind<'a>,
}

impl Keeper for Confirming<'_> {
    type Mark = Lsn;

    async fn keep(&self, confirmed: Lsn) -> Result<(), PublishError> {
        self.confirmer.confirm(confirmed);
        self.behind.reached(confirmed).await
    }
}

/// Moves P behind what is confirmed: backlog, retention and the way back to polling rest on P alone.
struct Behind<'a> {
    leadership: &'a Leadership,
    floor_position: i64,
    next: Mutex<Next>,
}

/// A snapshot and the place that was written when it was taken: once that is confirmed, P is the snapshot.
struct Next {
    due: Instant,
    waiting: Option<(String, Lsn)>,
}

impl<'a> Behind<'a> {
    async fn new(leadership: &'a Leadership) -> Result<Self, PublishError> {
        let floor_position = leadership.cursor().await?.floor_position;
        let next = Mutex::new(Next { due: Instant::now(), waiting: None });
        Ok(Self { leadership, floor_position, next })
    }

    async fn reached(&self, confirmed: Lsn) -> Result<(), PublishError> {
        let mut next = self.next.lock().await;
        if let Some((snapshot, _)) = next.waiting.take_if(|(_, written)| confirmed >= *written) {
            let floor_position = self.floor_position;
            let cursor = Cursor { published: snapshot, reading: None, last_position: 0, floor_position };
            if !self.leadership.store(&cursor).await? {
                return Err(PublishError::Fenced);
            }
        }
        if next.waiting.is_none() && Instant::now() >= next.due {
            next.waiting = Some(self.snapshot().await?);
            next.due = Instant::now() + SNAPSHOT_EVERY;
        }
        Ok(())
    }

    /// The snapshot is the statement's own, so it is taken before the place is read.
    async fn snapshot(&self) -> Result<(String, Lsn), sqlx::Error> {
        let (snapshot, written): (String, String) =
            sqlx::query_as("select pg_current_snapshot()::text, pg_current_wal_insert_lsn()::text")
                .fetch_one(&mut *self.leadership.session().await)
                .await?;
        Ok((snapshot, written.parse().map_err(|e| sqlx::Error::Decode(Box::new(e)))?))
    }
}
