//! The stream of committed rows, and the way back for what is confirmed.
//!
//! A task of its own reads, so that the server hears of us while the caller is busy. Between the two is room for one
//! batch: when the caller is slow, the next batch fills up to its bounds, then the socket, then the server waits.

use std::time::Duration;

use bytes::Bytes;
use chrono::Utc;
use pgwire_replication::protocol::framing::{write_copy_data, write_copy_done};
use pgwire_replication::protocol::replication::{
    ReplicationCopyData, encode_standby_status_update, parse_copy_data, unix_to_pg_timestamp,
};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tracing::debug;

use super::decode::{Decoder, Message};
use super::pace::Pace;
use super::wire::{Wire, interrupted};
use super::{Lsn, WalBatch, WalError, WalSettings};
use crate::lifecycle::Lifecycle;
use crate::outbox::OutboxRow;

/// A batch is handed out at this many bytes of payload, however few rows they are.
const BATCH_BYTES: usize = 4 << 20;

/// How long a closing stream waits for the server to take leave.
const FAREWELL: Duration = Duration::from_secs(1);

/// A server that is stopping waits until everything it sent is confirmed, and meanwhile asks again as soon as it is
/// answered. After so many times without anything new between them it is let go: what is not confirmed comes again.
const ASKED: u32 = 10;

/// The rows of the outbox as they are committed. One reader per slot.
#[derive(Debug)]
pub struct WalStream {
    batches: mpsc::Receiver<Result<WalBatch, WalError>>,
    confirmer: Confirmer,
    /// Resolves when the connection is closed.
    closed: oneshot::Receiver<()>,
}

/// Tells the server what it may forget. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Confirmer(watch::Sender<Lsn>);

impl Confirmer {
    /// Everything up to here is published, and is not sent again after a restart. Never goes back. Reported within
    /// the status interval.
    pub fn confirm(&self, lsn: Lsn) {
        self.0.send_if_modified(|confirmed| {
            let newer = lsn > *confirmed;
            *confirmed = (*confirmed).max(lsn);
            newer
        });
    }

    /// What was confirmed last.
    pub fn confirmed(&self) -> Lsn {
        *self.0.borrow()
    }
}

impl WalStream {
    /// Starts where the slot was last confirmed.
    pub async fn open(settings: &WalSettings, lifecycle: &Lifecycle) -> Result<Self, WalError> {
        let opened = tokio::time::timeout(settings.silence_timeout, Wire::open(settings)).await;
        let wire = opened.map_err(|_| WalError::Silent)??;
        let (out, batches) = mpsc::channel(1);
        let confirmer = Confirmer(watch::Sender::new(Lsn::default()));
        let (closing, closed) = oneshot::channel();
        let pump = Pump {
            wire,
            decoder: Decoder::default(),
            filling: Filling::default(),
            transaction: None,
            out,
            confirmer: confirmer.clone(),
            batch_rows: settings.batch_rows.max(1),
            status_interval: settings.status_interval,
            silence_timeout: settings.silence_timeout,
            status_due: Instant::now() + settings.status_interval,
            heard: Instant::now(),
            pace: Pace::new(Instant::now()),
            asked: 0,
        };
        lifecycle.spawn_brief(async move {
            pump.run().await;
            drop(closing);
        });
        Ok(Self { batches, confirmer, closed })
    }

    /// The next batch, as soon as there is one; everything that arrived meanwhile is in it. May be cancelled.
    pub async fn next(&mut self) -> Result<WalBatch, WalError> {
        let ended = || Err(WalError::Connection("the stream has ended".to_owned()));
        self.batches.recv().await.unwrap_or_else(ended)
    }

    /// The way back.
    pub fn confirmer(&self) -> Confirmer {
        self.confirmer.clone()
    }

    /// Reports what is confirmed and gives the slot back. Dropping the stream does the same without waiting for it.
    pub async fn close(self) {
        drop(self.batches);
        // An error says that the other end is gone: so it is closed.
        let _ = self.closed.await;
    }
}

/// A batch that is being gathered.
#[derive(Debug, Default)]
struct Filling {
    rows: Vec<OutboxRow>,
    bytes: usize,
    confirm: Option<Lsn>,
    /// Without rows a batch only moves the slot, which need not happen more often than it is reported.
    due: bool,
    /// Those of the rows.
    transactions: Vec<u32>,
    /// Where the last batch could be confirmed.
    handed: Lsn,
}

impl Filling {
    fn push(&mut self, row: OutboxRow, transaction: u32) {
        self.bytes += row.payload.len();
        self.rows.push(row);
        if self.transactions.last() != Some(&transaction) {
            self.transactions.push(transaction);
        }
    }

    /// No transaction that ends before this place is unread.
    fn whole_until(&mut self, lsn: Lsn) {
        if lsn > self.handed {
            self.confirm = self.confirm.max(Some(lsn));
        }
    }

    fn is_full(&self, batch_rows: usize) -> bool {
        self.rows.len() >= batch_rows || self.bytes >= BATCH_BYTES
    }

    fn take(&mut self) -> WalBatch {
        let batch = WalBatch {
            rows: std::mem::take(&mut self.rows),
            confirm: self.confirm.take(),
            transactions: std::mem::take(&mut self.transactions),
        };
        self.handed = batch.confirm.unwrap_or(self.handed);
        self.bytes = 0;
        self.due = false;
        batch
    }
}

/// Reads, decodes, hands over, and reports.
struct Pump {
    wire: Wire,
    decoder: Decoder,
    filling: Filling,
    /// Whose rows are arriving.
    transaction: Option<u32>,
    out: mpsc::Sender<Result<WalBatch, WalError>>,
    confirmer: Confirmer,
    batch_rows: usize,
    status_interval: Duration,
    silence_timeout: Duration,
    status_due: Instant,
    /// When something arrived last.
    heard: Instant,
    pace: Pace,
    /// How often an answer was wanted at once, with nothing new between.
    asked: u32,
}

impl Pump {
    async fn run(mut self) {
        match self.copy().await {
            Ok(()) => {
                if let Err(error) = self.take_leave().await {
                    debug!(%error, "the replication connection ended before it was closed");
                }
            }
            Err(error) => {
                // The connection ends now, however long the caller takes to ask.
                drop(self.wire);
                // The caller logs it, or is gone.
                let _ = self.out.send(Err(error)).await;
            }
        }
    }

    /// Until the stream is dropped.
    async fn copy(&mut self) -> Result<(), WalError> {
        loop {
            let full = loop {
                if self.filling.is_full(self.batch_rows) {
                    break true;
                }
                match self.wire.buffered()? {
                    Some((tag, payload)) => self.take_in(tag, payload)?,
                    None => break false,
                }
            };
            if Instant::now() >= self.status_due {
                self.report().await?;
                self.filling.due = true;
            }
            let something =
                !self.filling.rows.is_empty() || self.filling.due && self.filling.confirm.is_some();
            // The rest of a transaction is on its way: with it the rows can be confirmed.
            let ready = full || something && self.transaction.is_none();
            let paused = self.pace.paused_until(Instant::now());
            let resumed = async {
                match paused {
                    Some(until) => tokio::time::sleep_until(until).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = self.out.closed() => return Ok(()),
                // What has arrived goes into this batch: handing over each transaction by itself would cost more than
                // reading it.
                read = self.wire.fill(), if !full && paused.is_none() => {
                    self.heard = Instant::now();
                    self.pace.read(read?, self.heard);
                }
                () = resumed => {}
                permit = self.out.reserve(), if ready => match permit {
                    Ok(permit) => permit.send(Ok(self.filling.take())),
                    Err(_) => return Ok(()),
                },
                () = tokio::time::sleep_until(self.status_due) => {
                    self.asked = 0;
                    // Who does not listen cannot say that nobody speaks.
                    if full {
                        self.heard = Instant::now();
                    } else if self.heard.elapsed() >= self.silence_timeout {
                        return Err(WalError::Silent);
                    }
                }
            }
        }
    }

    fn take_in(&mut self, tag: u8, payload: Bytes) -> Result<(), WalError> {
        match tag {
            b'd' => {}
            b'E' => return Err(interrupted(&payload)),
            b'c' => return Err(WalError::Connection("the server ended the stream".to_owned())),
            _ => return Ok(()),
        }
        match parse_copy_data(payload)? {
            ReplicationCopyData::KeepAlive { wal_end, reply_requested, .. } => {
                if self.transaction.is_none() {
                    self.filling.whole_until(Lsn(wal_end.0));
                }
                if reply_requested {
                    self.asked += 1;
                    if self.asked > ASKED {
                        return Err(WalError::Connection("the server is stopping".to_owned()));
                    }
                    self.status_due = Instant::now();
                }
            }
            ReplicationCopyData::XLogData { data, .. } => {
                self.asked = 0;
                match self.decoder.decode(&data)? {
                    Message::Begin(transaction) => self.transaction = Some(transaction),
                    Message::Row(row) => self.filling.push(row, self.transaction.unwrap_or_default()),
                    Message::Commit(end) => {
                        self.transaction = None;
                        self.filling.whole_until(end);
                    }
                    Message::Other => {}
                }
            }
        }
        Ok(())
    }

    /// Says what is confirmed and asks for an answer, without which silence would mean nothing. Before the first
    /// confirmation the place is 0: the server takes that as none.
    async fn report(&mut self) -> Result<(), WalError> {
        let confirmed = pgwire_replication::Lsn(self.confirmer.confirmed().0);
        let now = unix_to_pg_timestamp(Utc::now().timestamp_micros());
        let status = encode_standby_status_update(confirmed, now, true);
        // A server that does not read must not hold us either.
        let written =
            tokio::time::timeout(self.silence_timeout, write_copy_data(self.wire.writer(), &status)).await;
        written.map_err(|_| WalError::Silent)??;
        self.status_due = Instant::now() + self.status_interval;
        Ok(())
    }

    /// The last report, and the end of the copy. What the server still sends is read: closing a socket with unread
    /// bytes would take the report with it.
    async fn take_leave(&mut self) -> Result<(), WalError> {
        self.report().await?;
        let leave = async {
            write_copy_done(self.wire.writer()).await?;
            loop {
                while let Some((tag, _)) = self.wire.buffered()? {
                    if tag == b'Z' {
                        return Ok(());
                    }
                }
                self.wire.fill().await?;
            }
        };
        tokio::time::timeout(FAREWELL, leave).await.unwrap_or(Err(WalError::Silent))
    }
}
