//! Suspect mode: after an owner that never let its partition go, one of the events it was at may have killed it.
//!
//! Those events are tried one by one, and each attempt is written down before it begins. An attempt that never ends
//! leaves its count behind; after so many the event becomes a dead letter without another.

use std::time::Instant;

use tokio::sync::{Mutex, MutexGuard};
use tracing::{error, info};
use uuid::Uuid;

use super::apply::{decode, known};
use super::offset::Claim;
use super::parked::Head;
use super::worker::{Step, StepError, Worker};
use crate::dead_letter::{self, Cause, Known};
use crate::doorbell::Bell;
use crate::inbox::{self, Outcome};
use crate::log::Record;

/// One suspect is tried at a time in a process: what kills it is then known.
static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());

/// The error class of a dead letter that killed the process.
pub(super) const CRASH: &str = "crash";

/// What is under suspicion in one partition.
#[derive(Debug)]
pub(super) struct Suspicion {
    /// Events of the log from here on were never begun by the previous owner.
    until: i64,
    /// The offset whose attempt is written down already: an attempt that failed in peace is no crash.
    counted: Option<i64>,
    since: Instant,
}

/// What to do with a suspect.
pub(super) enum Verdict {
    /// Try it, while nothing else is tried.
    Try(MutexGuard<'static, ()>),
    /// So many attempts at it never ended.
    Deadly(i32),
    /// Another member has the partition.
    Fenced,
}

impl Suspicion {
    /// After this claim; `None` if the previous owner let go.
    pub(super) fn after(claim: &Claim, batch_size: u32) -> Option<Self> {
        let until = claim.next_offset + i64::from(batch_size);
        claim.before.unreleased.then(|| Self { until, counted: None, since: Instant::now() })
    }
}

impl Worker {
    /// Whether events of the log are tried one by one.
    pub(super) fn suspects(&self) -> bool {
        self.suspicion.is_some()
    }

    /// Ends the suspicion where it has no object any more: the log has no further event, or those that come are new.
    pub(super) fn clear_suspicion(&mut self, claim: &Claim, log_is_read: bool) {
        let over = |s: &mut Suspicion| log_is_read || claim.next_offset >= s.until;
        if let Some(suspicion) = self.suspicion.take_if(over) {
            info!(
                group = self.context.group.name,
                topic = self.partition.topic,
                partition = self.partition.partition,
                after_ms = suspicion.since.elapsed().as_millis(),
                "the events that the previous owner may have died of are through"
            );
        }
    }

    /// Applies one event under suspicion.
    pub(super) async fn apply_suspect(
        &mut self,
        claim: &mut Claim,
        records: &[(i64, Record)],
    ) -> Result<Step, StepError> {
        let [(offset, record)] = records else { return self.apply_all(claim, records).await };
        match self.judge(claim, *offset).await? {
            Verdict::Fenced => Ok(Step::Fenced),
            Verdict::Try(_alone) => self.apply_all(claim, records).await,
            Verdict::Deadly(attempts) => {
                if !self.bury_deadly(claim, *offset, record, attempts).await? {
                    return Ok(Step::Fenced);
                }
                claim.next_offset = offset + 1;
                Ok(Step::Worked)
            }
        }
    }

    /// Writes down that an attempt at this offset begins.
    async fn judge(&mut self, claim: &Claim, offset: i64) -> Result<Verdict, StepError> {
        let alone = ONE_AT_A_TIME.lock().await;
        if self.suspicion.as_ref().is_some_and(|s| s.counted == Some(offset)) {
            return Ok(Verdict::Try(alone));
        }
        let mut tx = self.context.db.worker().await?;
        let begun: Option<i32> = sqlx::query_scalar(
            "update consumer_offset set suspect_offset = $5, \
             suspect_attempts = case when suspect_offset = $5 then suspect_attempts + 1 else 1 end \
             where consumer_name = $1 and topic = $2 and partition = $3 and owner_epoch = $4 returning suspect_attempts",
        )
        .bind(&claim.group)
        .bind(&claim.partition.topic)
        .bind(claim.partition.partition)
        .bind(claim.epoch)
        .bind(offset)
        .fetch_optional(tx.conn())
        .await?;
        tx.commit().await?;
        let verdict = self.verdict(begun, alone);
        if let (Verdict::Try(_), Some(suspicion)) = (&verdict, &mut self.suspicion) {
            suspicion.counted = Some(offset);
        }
        Ok(verdict)
    }

    /// The same for the head of a key's queue, if the previous owner may have been at it.
    pub(super) async fn judge_head(
        &mut self,
        claim: &Claim,
        head: &Head,
    ) -> Result<Option<Verdict>, StepError> {
        if !claim.before.unreleased || head.parked_at > claim.before.until {
            return Ok(None);
        }
        let alone = ONE_AT_A_TIME.lock().await;
        let mut tx = self.context.db.worker().await?;
        if !claim.hold(tx.conn()).await? {
            tx.rollback().await?;
            return Ok(Some(Verdict::Fenced));
        }
        let begun: Option<i32> = sqlx::query_scalar(
            "update parked_event set crashes = crashes + 1 where queue_position = $1 returning crashes",
        )
        .bind(head.queue_position)
        .fetch_optional(tx.conn())
        .await?;
        tx.commit().await?;
        Ok(Some(self.verdict(begun, alone)))
    }

    fn verdict(&self, begun: Option<i32>, alone: MutexGuard<'static, ()>) -> Verdict {
        match begun {
            None => Verdict::Fenced,
            Some(begun) if begun > self.attempts() => Verdict::Deadly(begun - 1),
            Some(_) => Verdict::Try(alone),
        }
    }

    /// Gives an event up that was begun so often and never ended. `false`: another member has the partition.
    async fn bury_deadly(
        &mut self,
        claim: &Claim,
        offset: i64,
        record: &Record,
        attempts: i32,
    ) -> Result<bool, StepError> {
        let group = self.context.group.name;
        let event = decode(record).ok();
        let mut tx = self.context.db.worker().await?;
        if claim.advance(tx.conn(), offset + 1).await?.is_none() {
            tx.rollback().await?;
            return Ok(false);
        }
        // An event that was settled before stays so.
        let fresh = match &event {
            Some(event) => !inbox::admit(tx.conn(), group, &[(event, Outcome::Dead)]).await?.is_empty(),
            None => true,
        };
        if fresh {
            let known = event.as_ref().map_or_else(Known::default, known);
            let message = self.deadly(offset, known.event_id, attempts);
            let cause = Cause { class: CRASH, message: &message, attempts, first_failed_at: None };
            dead_letter::bury(tx.conn(), group, self.place(offset), record, known, cause).await?;
        }
        tx.commit().await?;
        self.context.bells.ring(Bell::Letters);
        Ok(true)
    }

    /// Says that an event kills the process; returns the reason of its dead letter.
    pub(super) fn deadly(&self, offset: i64, event_id: Option<Uuid>, attempts: i32) -> String {
        error!(
            group = self.context.group.name,
            topic = self.partition.topic,
            partition = self.partition.partition,
            offset,
            event = ?event_id,
            attempts,
            "every attempt at this event ended the process; it becomes a dead letter"
        );
        format!("{attempts} attempts began and none ended: the process died each time")
    }
}
