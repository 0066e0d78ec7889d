//! One transaction of a batch: fence, inbox, handler, dead letters, offset.

use std::any::Any;
use std::collections::{BTreeMap, HashSet};
use std::panic::AssertUnwindSafe;

use chrono::{DateTime, Utc};
use futures_util::FutureExt;
use uuid::Uuid;

use super::offset::Claim;
use super::parked;
use super::worker::Worker;
use crate::db::WorkerTx;
use crate::dead_letter::{self, Cause, Known, Place};
use crate::doorbell::Bell;
use crate::event::{self, Event, Reason, Undecodable};
use crate::inbox::{self, Outcome};
use crate::log::Record;
use crate::metrics;
use crate::projection::{Dirty, HandlerError};

/// What a committed batch did.
#[derive(Debug, Default)]
pub(super) struct Applied {
    pub(super) dirty: Vec<Dirty>,
    pub(super) by_kind: BTreeMap<String, usize>,
    pub(super) duplicates: usize,
    /// When each applied event was written.
    pub(super) written_at: Vec<DateTime<Utc>>,
    /// Whether the retry queue grew.
    pub(super) parked: bool,
    /// Whether there are new events for the publisher.
    pub(super) appended: bool,
    /// The keys that fare well, where that is asked.
    pub(super) keys: Vec<Vec<u8>>,
}

impl Applied {
    /// Counts it, as of now by the database's clock.
    pub(super) fn count(&self, group: &str, now: DateTime<Utc>) {
        for (kind, count) in &self.by_kind {
            metrics::events_applied(group, kind, *count);
        }
        for written_at in &self.written_at {
            metrics::stage_latency("write_to_visible", group, (now - written_at).as_seconds_f64());
        }
        if self.duplicates > 0 {
            metrics::events_duplicate(group, self.duplicates);
        }
    }
}

/// Why a batch was rolled back.
#[derive(Debug)]
pub(super) enum Failure {
    /// The database is away or busy: the same again, and no attempt is counted.
    Transient(HandlerError),
    /// An event of the batch is at fault.
    Batch(HandlerError),
}

impl From<HandlerError> for Failure {
    fn from(error: HandlerError) -> Self {
        if error.is_transient() { Self::Transient(error) } else { Self::Batch(error) }
    }
}

impl From<sqlx::Error> for Failure {
    fn from(error: sqlx::Error) -> Self {
        HandlerError::Sql(error).into()
    }
}

/// A record of the batch and what it decoded to.
struct Decoded<'a> {
    offset: i64,
    record: &'a Record,
    event: Result<Event, Box<Undecodable>>,
}

impl Worker {
    /// Applies records up to offset `end`. `None`: another member has the partition.
    pub(super) async fn apply(
        &self,
        claim: &Claim,
        batch: &[(i64, Record)],
        end: i64,
    ) -> Result<Option<Applied>, Failure> {
        let decoded: Vec<Decoded<'_>> = batch
            .iter()
            .map(|(offset, record)| Decoded { offset: *offset, record, event: decode(record) })
            .collect();

        let events: Vec<&Event> = decoded.iter().filter_map(|d| d.event.as_ref().ok()).collect();
        let mut held = self.lock_owners(&events).await;
        loop {
            let mut tx = self.context.db.worker().await?;
            let Some(filled) = held.guard(self.fill(&mut tx, claim, &decoded, end)).await else {
                tx.rollback().await?;
                held = self.without_locks().await;
                continue;
            };
            let Some(applied) = filled? else {
                tx.rollback().await?;
                return Ok(None);
            };
            fail::fail_point!("consume.before_commit");
            tx.commit().await?;
            if decoded.iter().any(|d| d.event.is_err()) {
                self.context.bells.ring(Bell::Letters);
            }
            return Ok(Some(applied));
        }
    }

    /// Does the work of a batch in its transaction. `None`: another member has the partition.
    async fn fill(
        &self,
        tx: &mut WorkerTx,
        claim: &Claim,
        decoded: &[Decoded<'_>],
        end: i64,
    ) -> Result<Option<Applied>, Failure> {
        let group = &self.context.group;
        let Some(shown) = claim.advance(tx.conn(), end).await? else { return Ok(None) };
        self.context.db.heard(shown);
        let waiting = parked::keys(tx.conn(), group.name, &self.partition).await?;
        let is_parked = |record: &Record| record.key.as_ref().is_some_and(|key| waiting.contains(key));

        // A redelivered event is in the inbox already; one that comes twice in this batch counts once.
        let mut seen = HashSet::new();
        let events: Vec<(&Decoded<'_>, &Event)> = decoded
            .iter()
            .filter_map(|d| Some((d, d.event.as_ref().ok()?)))
            .filter(|(_, event)| seen.insert(event.event_id))
            .collect();
        let entries: Vec<(&Event, Outcome)> = events
            .iter()
            .map(|(d, e)| (*e, if is_parked(d.record) { Outcome::Parked } else { Outcome::Applied }))
            .collect();
        let admitted: HashSet<Uuid> =
            inbox::admit(tx.conn(), group.name, &entries).await?.into_iter().collect();
        let fresh = events.iter().filter(|(_, e)| admitted.contains(&e.event_id));
        let (behind, now): (Vec<_>, Vec<_>) = fresh.partition(|(d, _)| is_parked(d.record));
        for (d, event) in &behind {
            parked::park(tx.conn(), group.name, &self.partition, d.offset, d.record, event, None).await?;
        }
        for d in decoded {
            if let Err(reason) = &d.event {
                self.bury_undecodable(tx.conn(), d.offset, d.record, reason).await?;
            }
        }
        let keys = now.iter().filter(|_| self.health.is_watching()).filter_map(|(d, _)| d.record.key.clone());
        let keys: Vec<Vec<u8>> = keys.collect();
        let now: Vec<&Event> = now.iter().map(|(_, event)| *event).collect();
        let dirty = if now.is_empty() { Vec::new() } else { self.handle(tx, &now).await? };

        let mut by_kind = BTreeMap::new();
        for event in &now {
            // Kinds come from outside: only those that mean something here become a label.
            let label = if group.handler.consumes(&event.kind) { event.kind.as_str() } else { "other" };
            *by_kind.entry(label.to_owned()).or_default() += 1;
        }
        let duplicates = decoded.iter().filter(|d| d.event.is_ok()).count() - admitted.len();
        let written_at = now.iter().map(|event| event.occurred_at).collect();
        Ok(Some(Applied {
            dirty,
            by_kind,
            duplicates,
            written_at,
            parked: !behind.is_empty(),
            appended: tx.appended(),
            keys,
        }))
    }

    /// Runs the handler; a panic of it is a failure like any other.
    pub(super) async fn handle(
        &self,
        tx: &mut WorkerTx,
        events: &[&Event],
    ) -> Result<Vec<Dirty>, HandlerError> {
        die_of(events);
        let handled = AssertUnwindSafe(self.context.group.handler.apply(tx, events)).catch_unwind().await;
        handled.unwrap_or_else(|panic| Err(HandlerError::Panic(panic_message(&*panic))))
    }

    pub(super) async fn bury_undecodable(
        &self,
        conn: &mut sqlx::PgConnection,
        offset: i64,
        record: &Record,
        bad: &Undecodable,
    ) -> Result<(), sqlx::Error> {
        // Bytes that contradict themselves prove nothing about the event whose id they carry.
        let trusted = bad.reason != Reason::TenantMismatch;
        let known = Known {
            event_id: bad.event_id.filter(|_| trusted),
            kind: bad.kind.as_deref(),
            tenant_id: bad.tenant_id.as_ref().filter(|_| trusted).map(|t| t.as_str()),
            user_id: bad.user_id.as_ref().filter(|_| trusted).map(|u| u.as_str()),
        };
        let cause =
            Cause { class: bad.reason.as_str(), message: &bad.message, attempts: 1, first_failed_at: None };
        let group = self.context.group.name;
        tracing::warn!(
            group,
            topic = self.partition.topic,
            partition = self.partition.partition,
            offset,
            reason = bad.reason.as_str(),
            "a record is no event; it becomes a dead letter"
        );
        dead_letter::bury(conn, group, self.place(offset), record, known, cause).await
    }

    pub(super) fn place(&self, offset: i64) -> Place<'_> {
        Place { topic: &self.partition.topic, partition: self.partition.partition, offset }
    }
}

/// What is known of an event that can be read.
pub(super) fn known(event: &Event) -> Known<'_> {
    Known {
        event_id: Some(event.event_id),
        kind: Some(&event.kind),
        tenant_id: Some(event.tenant_id.as_str()),
        user_id: Some(event.user_id.as_str()),
    }
}

fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().or(panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("no message").to_owned()
}

/// In tests: the event about an entity that takes the process with it.
fn die_of(events: &[&Event]) {
    let _ = events;
    fail::fail_point!("consume.die_of", |entity| {
        if events.iter().any(|event| Some(event.entity_id.as_str()) == entity.as_deref()) {
            std::process::abort();
        }
    });
}

/// Decodes a record as an event of ours.
pub(super) fn decode(record: &Record) -> Result<Event, Box<Undecodable>> {
    event::decode(record.key.as_deref(), record.value.as_deref(), record.header(event::header::TENANT_ID))
}
