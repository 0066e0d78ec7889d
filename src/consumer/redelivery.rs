//! Replays: letters that somebody asked for go to the tail of their keys in the retry queue, under the fence of the
//! partition's owner.

use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::PgConnection;
use tokio::time::Instant;
use tracing::{info, warn};
use uuid::Uuid;

use super::apply::decode;
use super::offset::Claim;
use super::parked::{self, Head};
use super::worker::{StepError, Worker};
use crate::backoff::jittered;
use crate::db::{SqlFailure, classify};
use crate::dead_letter::{self, Cause, Requested};
use crate::doorbell::{Bell, Doorbells, Listener};
use crate::inbox;
use crate::log::{Record, partition_of};

/// How often it is looked when no bell rings.
const POLL: Duration = Duration::from_secs(5);

/// Letters looked at in one step: between two of them the partition's own records are fetched.
const PAGE: i64 = 100;

/// Replays in the queue of a partition at once. The others wait as letters, where they are no load.
const MOST_QUEUED: i64 = 500;

/// When the queue has no room: how soon it is looked again.
const ROOM_POLL: Duration = Duration::from_millis(200);

/// When to look for replays, and where the last look ended.
pub(super) struct Replays {
    bell: Listener,
    look_at: Instant,
    after: Option<(DateTime<Utc>, Uuid)>,
}

impl Replays {
    /// Looks at once, then when the bell rings.
    pub(super) fn new(bells: &Doorbells) -> Self {
        Self { bell: bells.listen(Bell::Letters), look_at: Instant::now(), after: None }
    }

    /// Whether it is time to look.
    pub(super) fn due(&self) -> bool {
        self.bell.has_rung() || self.look_at <= Instant::now()
    }

    /// Returns when somebody may have asked for a replay; then one is due.
    pub(super) async fn rung(&mut self) {
        self.bell.rung().await;
        self.look_at = Instant::now();
    }

    fn look_in(&mut self, pause: Duration) {
        self.look_at = Instant::now() + jittered(pause);
    }
}

impl Worker {
    /// Picks up a page of what was asked for. `false`: another member has the partition.
    pub(super) async fn pick_up(&mut self, claim: &Claim) -> Result<bool, StepError> {
        self.replays.bell.arm();
        let mut tx = self.context.db.worker().await?;
        let (group, topic) = (self.context.group.name, self.partition.topic.as_str());
        let page = dead_letter::requested(tx.conn(), group, Some(topic), self.replays.after, PAGE).await?;
        let full = !page.is_empty() && self.queued_replays(tx.conn()).await? >= MOST_QUEUED;
        tx.rollback().await?;
        if full {
            self.replays.look_in(ROOM_POLL);
            return Ok(true);
        }
        if !page.is_empty() {
            // A topic may have grown since: the key's partition of today decides, as it does for the key's new events.
            let partitions = match self.context.log.topic(topic).await {
                Ok(topic) => topic.partitions,
                Err(error) => {
                    warn!(group, topic, %error, "replays wait: the partitions of the topic are not known");
                    self.replays.look_in(POLL);
                    return Ok(true);
                }
            };
            let here = self.partition.partition;
            let ours: Vec<Uuid> = page
                .iter()
                .filter(|letter| owner(letter, partitions) == here)
                .map(|letter| letter.id)
                .collect();
            for id in &ours {
                if !self.redeliver_or_give_back(claim, *id).await? {
                    return Ok(false);
                }
            }
            if !ours.is_empty() {
                self.look_at_queue(claim).await?;
                self.context.bells.ring(Bell::Applied);
            }
        }
        match page.last().filter(|_| page.len() as i64 == PAGE) {
            Some(last) => self.replays.after = Some((last.requested_at, last.id)),
            None => {
                self.replays.after = None;
                self.replays.look_in(POLL);
            }
        }
        Ok(true)
    }

    async fn queued_replays(&self, conn: &mut PgConnection) -> Result<i64, sqlx::Error> {
        sqlx::query_scalar(
            "select count(*) from parked_event where consumer_name = $1 and topic = $2 and partition = $3 \
             and letter_id is not null",
        )
        .bind(self.context.group.name)
        .bind(&self.partition.topic)
        .bind(self.partition.partition)
        .fetch_one(conn)
        .await
    }

    /// Gives up the head of a key. What is a replay goes back into its letter.
    pub(super) async fn bury_head(
        &self,
        conn: &mut PgConnection,
        head: &Head,
        record: &Record,
        cause: Cause<'_>,
    ) -> Result<(), sqlx::Error> {
        if let Some(letter) = head.letter_id {
            return dead_letter::died_again(conn, letter, cause).await;
        }
        let (group, place) = (self.context.group.name, self.place(head.log_offset));
        dead_letter::bury(conn, group, place, record, head.known(), cause).await
    }

    /// A letter that cannot be picked up is dead again, so that it holds nothing up.
    async fn redeliver_or_give_back(&self, claim: &Claim, id: Uuid) -> Result<bool, StepError> {
        let error = match self.redeliver(claim, id).await {
            Err(error) if classify(&error) == SqlFailure::Permanent => error,
            done => return Ok(done?),
        };
        warn!(group = self.context.group.name, %id, %error, "a dead letter cannot be replayed");
        let mut tx = self.context.db.worker().await?;
        if !claim.hold(tx.conn()).await? {
            tx.rollback().await?;
            return Ok(false);
        }
        let message = error.to_string();
        let cause = Cause { class: "replay", message: &message, attempts: 1, first_failed_at: None };
        dead_letter::died_again(tx.conn(), id, cause).await?;
        tx.commit().await?;
        Ok(true)
    }

    /// Moves one letter to the tail of its key. Its bytes are decoded again: a newer build may read them.
    async fn redeliver(&self, claim: &Claim, id: Uuid) -> Result<bool, sqlx::Error> {
        let group = self.context.group.name;
        let mut tx = self.context.db.worker().await?;
        if !claim.hold(tx.conn()).await? {
            tx.rollback().await?;
            return Ok(false);
        }
        let Some(letter) = dead_letter::take(tx.conn(), id).await? else {
            tx.rollback().await?;
            return Ok(true);
        };
        match decode(&letter.record) {
            Err(bad) => {
                info!(group, %id, reason = bad.reason.as_str(), "a replayed record is still no event");
                let cause = Cause {
                    class: bad.reason.as_str(),
                    message: &bad.message,
                    attempts: 1,
                    first_failed_at: None,
                };
                dead_letter::died_again(tx.conn(), id, cause).await?;
            }
            Ok(event) if inbox::readmit(tx.conn(), group, &event).await? => {
                let (partition, record) = (&self.partition, &letter.record);
                let place =
                    parked::park(tx.conn(), group, partition, letter.offset, record, &event, None).await?;
                sqlx::query("update parked_event set letter_id = $2 where queue_position = $1")
                    .bind(place)
                    .bind(id)
                    .execute(tx.conn())
                    .await?;
            }
            // Another record brought the event: there is nothing left to do.
            Ok(_) => dead_letter::resolved(tx.conn(), id).await?,
        }
        tx.commit().await?;
        Ok(true)
    }
}

/// The partition whose owner picks a letter up.
fn owner(letter: &Requested, partitions: i32) -> i32 {
    match &letter.raw_key {
        Some(key) => partition_of(key, partitions),
        None => letter.partition.rem_euclid(partitions.max(1)),
    }
}
