//! The retry queue: an event that failed waits here, and later events of its key behind it. Other keys flow.

use std::collections::HashSet;
use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::PgConnection;
use tokio::time::Instant;
use tracing::warn;
use uuid::Uuid;

use super::apply::{Applied, Failure, decode, known};
use super::offset::Claim;
use super::suspect::{CRASH, Verdict};
use super::worker::{Step, StepError, Worker};
use crate::backoff::jittered;
use crate::dead_letter::{self, Cause, Known};
use crate::doorbell::Bell;
use crate::event::Event;
use crate::group::TopicPartition;
use crate::inbox::{self, Outcome};
use crate::log::Record;
use crate::metrics;
use crate::projection::HandlerError;

/// Each further pause is this many times longer.
const BACKOFF_FACTOR: u32 = 5;

/// Between two tries of a head that fails for a passing reason: half as long as it has failed, within these.
const POSTPONE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// The head of a key's queue.
#[derive(sqlx::FromRow)]
pub(super) struct Head {
    pub(super) queue_position: i64,
    /// The dead letter that this is a replay of.
    pub(super) letter_id: Option<Uuid>,
    pub(super) log_offset: i64,
    event_id: Uuid,
    event_kind: String,
    tenant_id: String,
    user_id: String,
    raw_key: Vec<u8>,
    raw_value: Vec<u8>,
    headers: serde_json::Value,
    record_time: DateTime<Utc>,
    attempts: i32,
    first_failed_at: Option<DateTime<Utc>>,
    pub(super) parked_at: DateTime<Utc>,
}

/// What became of a head that was tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tried {
    Applied,
    /// It waits, or is a dead letter.
    Failed,
    /// Another member has the partition.
    Fenced,
}

/// A failed attempt: what is written beside the event.
pub(super) struct Failed<'a> {
    pub(super) cause: &'a HandlerError,
    pub(super) next_attempt: Duration,
}

/// The keys that have events waiting.
pub(super) async fn keys(
    conn: &mut PgConnection,
    group: &str,
    partition: &TopicPartition,
) -> Result<HashSet<Vec<u8>>, sqlx::Error> {
    let keys: Vec<Vec<u8>> = sqlx::query_scalar(
        "select distinct raw_key from parked_event where consumer_name = $1 and topic = $2 and partition = $3",
    )
    .bind(group)
    .bind(&partition.topic)
    .bind(partition.partition)
    .fetch_all(conn)
    .await?;
    Ok(keys.into_iter().collect())
}

/// Puts an event at the tail of its key: after a failed attempt, or behind one that waits. Returns its place in the queue.
pub(super) async fn park(
    conn: &mut PgConnection,
    group: &str,
    partition: &TopicPartition,
    offset: i64,
    record: &Record,
    event: &Event,
    failed: Option<Failed<'_>>,
) -> Result<i64, sqlx::Error> {
    let error_message = failed.as_ref().map(|f| dead_letter::storable_text(&f.cause.to_string()));
    sqlx::query_scalar(
        "insert into parked_event (consumer_name, topic, partition, log_offset, event_id, event_kind, tenant_id, \
         user_id, raw_key, raw_value, headers, record_time, attempts, next_attempt_at, error_class, error_message, \
         first_failed_at, last_failed_at) values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, \
         case when $13::text is null then 0 else 1 end, statement_timestamp() + $14 * interval '1 millisecond', $13, \
         $15, case when $13 is not null then statement_timestamp() end, \
         case when $13 is not null then statement_timestamp() end) returning queue_position",
    )
    .bind(group)
    .bind(&partition.topic)
    .bind(partition.partition)
    .bind(offset)
    .bind(event.event_id)
    .bind(&event.kind)
    .bind(event.tenant_id.as_str())
    .bind(event.user_id.as_str())
    .bind(record.key.as_deref().unwrap_or_default())
    .bind(record.value.as_deref().unwrap_or_default())
    .bind(dead_letter::headers_json(record))
    .bind(dead_letter::storable_time(record.timestamp).unwrap_or_default())
    .bind(failed.as_ref().map(|f| f.cause.class()))
    .bind(failed.as_ref().map_or(0.0, |f| f.next_attempt.as_secs_f64() * 1e3))
    .bind(error_message)
    .fetch_one(conn)
    .await
}

impl Worker {
    /// Sets when the next retry is due, and whether the partition pauses.
    pub(super) async fn look_at_queue(&mut self, claim: &Claim) -> Result<(), sqlx::Error> {
        let mut tx = self.context.db.worker().await?;
        // Of each key only the head can be due.
        let (seconds, parked): (Option<f64>, i64) = sqlx::query_as(
            "select extract(epoch from min(next_attempt_at) - clock_timestamp())::float8, coalesce(sum(count), 0)::bigint \
             from ( \
               select distinct on (raw_key) next_attempt_at, count(*) over (partition by raw_key) as count \
               from parked_event \
               where consumer_name = $1 and topic = $2 and partition = $3 order by raw_key, queue_position) head",
        )
        .bind(self.context.group.name)
        .bind(&self.partition.topic)
        .bind(self.partition.partition)
        .fetch_one(tx.conn())
        .await?;
        tx.rollback().await?;
        self.retry_at = seconds.map(|s| Instant::now() + Duration::from_secs_f64(s.clamp(0.0, 86_400.0)));
        self.parked = parked;
        self.pause_or_go_on(claim).await
    }

    /// The first failed attempt: parks the event and moves past it, or gives it up if its key is beyond help.
    /// `false`: another member has the partition.
    pub(super) async fn park_failed(
        &mut self,
        claim: &Claim,
        offset: i64,
        record: &Record,
        cause: &HandlerError,
    ) -> Result<bool, StepError> {
        let Ok(event) = decode(record) else {
            // What cannot be decoded never reaches a handler; the batch failed on the dead letter itself.
            return Err(StepError::Transient(format!("dead letter at offset {offset}: {cause}")));
        };
        let group = self.context.group.name;
        let key = record.key.as_deref().unwrap_or_default();
        self.health.failed(key, &cause.signature());
        let dead = self.health.is_hopeless(key) && self.reason_to_pause().is_none();
        let mut tx = self.context.db.worker().await?;
        if claim.advance(tx.conn(), offset + 1).await?.is_none() {
            tx.rollback().await?;
            return Ok(false);
        }
        warn!(group, event = %event.event_id, kind = event.kind, %cause, attempt = 1, dead, "an event failed");
        metrics::retry(group, cause.class());
        let outcome = if dead { Outcome::Dead } else { Outcome::Parked };
        let admitted = inbox::admit(tx.conn(), group, &[(&event, outcome)]).await?;
        if admitted.is_empty() {
            // It was settled before.
        } else if dead {
            let message = cause.to_string();
            let cause = Cause { class: cause.class(), message: &message, attempts: 1, first_failed_at: None };
            dead_letter::bury(tx.conn(), group, self.place(offset), record, known(&event), cause).await?;
        } else {
            let failed = Failed { cause, next_attempt: self.pause_after(1) };
            park(tx.conn(), group, &self.partition, offset, record, &event, Some(failed)).await?;
        }
        tx.commit().await?;
        if dead {
            self.health.died(key);
            self.context.bells.ring(Bell::Applied);
            self.context.bells.ring(Bell::Letters);
        }
        self.look_at_queue(claim).await?;
        Ok(true)
    }

    /// Moves past an event that alone keeps failing for a passing reason: no attempt is counted, and its key waits for
    /// it. `false`: another member has the partition.
    pub(super) async fn set_aside(
        &mut self,
        claim: &Claim,
        offset: i64,
        record: &Record,
        cause: &HandlerError,
    ) -> Result<bool, StepError> {
        let Ok(event) = decode(record) else {
            return Err(StepError::Transient(format!("dead letter at offset {offset}: {cause}")));
        };
        let group = self.context.group.name;
        let mut tx = self.context.db.worker().await?;
        if claim.advance(tx.conn(), offset + 1).await?.is_none() {
            tx.rollback().await?;
            return Ok(false);
        }
        warn!(group, event = %event.event_id, kind = event.kind, %cause, "an event that holds up all others makes way");
        if !inbox::admit(tx.conn(), group, &[(&event, Outcome::Parked)]).await?.is_empty() {
            park(tx.conn(), group, &self.partition, offset, record, &event, None).await?;
        }
        tx.commit().await?;
        self.look_at_queue(claim).await?;
        Ok(true)
    }

    /// Tries the heads that are due, each in a transaction of its own, until none is.
    pub(super) async fn retry_due(&mut self, claim: &Claim) -> Result<Step, StepError> {
        for head in self.heads(true, i64::MAX).await? {
            if self.retry(claim, &head).await? == Tried::Fenced {
                return Ok(Step::Fenced);
            }
            if self.reason_to_pause().is_some() {
                break;
            }
        }
        self.look_at_queue(claim).await?;
        Ok(Step::Worked)
    }

    /// The head that was to be tried first, due or not.
    pub(super) async fn next_head(&self) -> Result<Option<Head>, sqlx::Error> {
        Ok(self.heads(false, 1).await?.pop())
    }

    async fn heads(&self, due: bool, limit: i64) -> Result<Vec<Head>, sqlx::Error> {
        let mut tx = self.context.db.worker().await?;
        let heads = sqlx::query_as(
            "select queue_position, letter_id, log_offset, event_id, event_kind, tenant_id, user_id, raw_key, \
             raw_value, headers, record_time, attempts, first_failed_at, parked_at from ( \
               select distinct on (raw_key) * from parked_event \
               where consumer_name = $1 and topic = $2 and partition = $3 order by raw_key, queue_position) head \
             where not $4 or next_attempt_at <= clock_timestamp() \
             order by case when $4 then queue_position end, next_attempt_at limit $5",
        )
        .bind(self.context.group.name)
        .bind(&self.partition.topic)
        .bind(self.partition.partition)
        .bind(due)
        .bind(limit)
        .fetch_all(tx.conn())
        .await?;
        tx.rollback().await?;
        Ok(heads)
    }

    /// One attempt.
    pub(super) async fn retry(&mut self, claim: &Claim, head: &Head) -> Result<Tried, StepError> {
        let record = head.record();
        let _alone = match self.judge_head(claim, head).await? {
            None => None,
            Some(Verdict::Try(alone)) => Some(alone),
            Some(Verdict::Fenced) => return Ok(Tried::Fenced),
            Some(Verdict::Deadly(attempts)) => {
                let message = self.deadly(head.log_offset, Some(head.event_id), attempts);
                return self.give_up(claim, head, &record, (CRASH, &message), attempts).await;
            }
        };
        let event = match decode(&record) {
            Ok(event) => event,
            // It could be read when it was parked: by a newer build, which may replay it.
            Err(bad) => {
                let why = (bad.reason.as_str(), bad.message.as_str());
                return self.give_up(claim, head, &record, why, head.attempts + 1).await;
            }
        };
        let mut tx = self.context.db.worker().await?;
        if !claim.hold(tx.conn()).await? {
            tx.rollback().await?;
            return Ok(Tried::Fenced);
        }
        match self.handle(&mut tx, &[&event]).await {
            Ok(dirty) => {
                if !self.unpark(tx.conn(), head, Outcome::Applied).await? {
                    tx.rollback().await?;
                    return Ok(Tried::Fenced);
                }
                let appended = tx.appended();
                tx.commit().await?;
                self.patience.head_is_done(head.queue_position);
                let by_kind = [(head.event_kind.clone(), 1)].into();
                let keys = vec![head.raw_key.clone()];
                let applied = Applied { dirty, by_kind, keys, appended, ..Applied::default() };
                self.after_commit(claim, applied).await?;
                Ok(Tried::Applied)
            }
            Err(cause) => {
                tx.rollback().await?;
                match Failure::from(cause) {
                    Failure::Transient(cause) => self.postpone(claim, head, &record, &cause).await,
                    Failure::Batch(cause) => self.record_failure(claim, head, &record, &cause).await,
                }
            }
        }
    }

    /// A failure that is not held against the event, unless it alone has failed so for long.
    async fn postpone(
        &mut self,
        claim: &Claim,
        head: &Head,
        record: &Record,
        cause: &HandlerError,
    ) -> Result<Tried, StepError> {
        let (tolerance, now) = (self.tolerance(), Instant::now());
        metrics::retry(self.context.group.name, "transient");
        let failing_for = self.patience.head_failed(head.queue_position, now);
        if self.patience.head_is_at_fault(head.queue_position, tolerance, now) {
            return self.record_failure(claim, head, record, cause).await;
        }
        let mut tx = self.context.db.worker().await?;
        if !claim.hold(tx.conn()).await? {
            tx.rollback().await?;
            return Ok(Tried::Fenced);
        }
        let pause = jittered((failing_for / 2).clamp(POSTPONE.0, POSTPONE.1).min(tolerance));
        self.wait_again(tx.conn(), head, pause).await?;
        tx.commit().await?;
        Ok(Tried::Failed)
    }

    /// A further failed attempt: wait longer, or give up. While the partition pauses none is counted.
    async fn record_failure(
        &mut self,
        claim: &Claim,
        head: &Head,
        record: &Record,
        cause: &HandlerError,
    ) -> Result<Tried, StepError> {
        let group = self.context.group.name;
        self.patience.head_is_done(head.queue_position);
        self.health.failed(&head.raw_key, &cause.signature());
        let counts = self.pause.is_none() && self.reason_to_pause().is_none();
        let attempts = head.attempts + i32::from(counts);
        let dead = counts && (attempts >= self.attempts() || self.health.is_hopeless(&head.raw_key));
        warn!(group, event = %head.event_id, kind = head.event_kind, %cause, attempt = attempts, dead,
            "a parked event failed again");
        metrics::retry(group, cause.class());
        let mut tx = self.context.db.worker().await?;
        if !claim.hold(tx.conn()).await? {
            tx.rollback().await?;
            return Ok(Tried::Fenced);
        }
        if dead {
            if !self.unpark(tx.conn(), head, Outcome::Dead).await? {
                tx.rollback().await?;
                return Ok(Tried::Fenced);
            }
            let message = cause.to_string();
            let first_failed_at = head.first_failed_at;
            let cause = Cause { class: cause.class(), message: &message, attempts, first_failed_at };
            self.bury_head(tx.conn(), head, record, cause).await?;
        } else {
            sqlx::query(
                "update parked_event set attempts = $2, error_class = $3, error_message = $4, \
                 first_failed_at = coalesce(first_failed_at, statement_timestamp()), \
                 last_failed_at = statement_timestamp() where queue_position = $1 and event_id = $5",
            )
            .bind(head.queue_position)
            .bind(attempts)
            .bind(cause.class())
            .bind(dead_letter::storable_text(&cause.to_string()))
            .bind(head.event_id)
            .execute(tx.conn())
            .await?;
            self.wait_again(tx.conn(), head, self.pause_after(attempts.max(1))).await?;
        }
        tx.commit().await?;
        if dead {
            self.health.died(&head.raw_key);
        }
        self.context.bells.ring(Bell::Applied);
        if dead {
            self.context.bells.ring(Bell::Letters);
        }
        Ok(Tried::Failed)
    }

    /// The head is not tried again: it killed the process too often, or is no event to this build.
    async fn give_up(
        &mut self,
        claim: &Claim,
        head: &Head,
        record: &Record,
        (class, message): (&'static str, &str),
        attempts: i32,
    ) -> Result<Tried, StepError> {
        let mut tx = self.context.db.worker().await?;
        if !claim.hold(tx.conn()).await? {
            tx.rollback().await?;
            return Ok(Tried::Fenced);
        }
        if !self.unpark(tx.conn(), head, Outcome::Dead).await? {
            tx.rollback().await?;
            return Ok(Tried::Fenced);
        }
        let cause = Cause { class, message, attempts, first_failed_at: head.first_failed_at };
        self.bury_head(tx.conn(), head, record, cause).await?;
        tx.commit().await?;
        self.context.bells.ring(Bell::Applied);
        self.context.bells.ring(Bell::Letters);
        Ok(Tried::Failed)
    }

    /// The head is tried again after a pause. The attempt ended: whatever it did, it did not kill the process.
    async fn wait_again(
        &self,
        conn: &mut PgConnection,
        head: &Head,
        pause: Duration,
    ) -> Result<(), sqlx::Error> {
        sqlx::query(
            "update parked_event set crashes = 0, next_attempt_at = statement_timestamp() + $2 * interval '1 millisecond' \
             where queue_position = $1 and event_id = $3",
        )
        .bind(head.queue_position)
        .bind(pause.as_secs_f64() * 1e3)
        .bind(head.event_id)
        .execute(conn)
        .await
        .map(drop)
    }

    /// Takes the head from the queue; the next event of its key becomes the head. `false`: it is not in the queue, since
    /// the database has failed over to one that never had it, and nothing may be committed.
    async fn unpark(
        &self,
        conn: &mut PgConnection,
        head: &Head,
        outcome: Outcome,
    ) -> Result<bool, sqlx::Error> {
        let group = self.context.group.name;
        // Places are given again after a failover.
        let taken = sqlx::query("delete from parked_event where queue_position = $1 and event_id = $2")
            .bind(head.queue_position)
            .bind(head.event_id)
            .execute(&mut *conn)
            .await?
            .rows_affected();
        if taken == 0 {
            return Ok(false);
        }
        if let Some(letter) = head.letter_id.filter(|_| outcome == Outcome::Applied) {
            dead_letter::resolved(conn, letter).await?;
        }
        inbox::settle(conn, group, head.event_id, Outcome::Parked, outcome).await?;
        Ok(true)
    }

    /// The pause after so many failed attempts.
    fn pause_after(&self, attempts: i32) -> Duration {
        let exponent = u32::try_from(attempts - 1).unwrap_or(0).min(6);
        let first = Duration::from_millis(self.context.settings.retry_backoff_ms);
        jittered(first.saturating_mul(BACKOFF_FACTOR.saturating_pow(exponent)))
    }
}

impl Head {
    pub(super) fn known(&self) -> Known<'_> {
        Known {
            event_id: Some(self.event_id),
            kind: Some(&self.event_kind),
            tenant_id: Some(&self.tenant_id),
            user_id: Some(&self.user_id),
        }
    }

    fn record(&self) -> Record {
        Record {
            key: Some(self.raw_key.clone()),
            value: Some(self.raw_value.clone()),
            headers: dead_letter::headers_from_json(&self.headers),
            timestamp: self.record_time,
        }
    }
}
