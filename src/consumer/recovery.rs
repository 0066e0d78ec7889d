//! What to do when the offset is not in the log any more, or the log is another one under the same name.
//!
//! Never a silent reset. Records that the log lost are in the outbox: those that were published and that the group has
//! not seen go through the retry queue, ahead of everything that is still to come. Then reading goes on where the log
//! begins; what is read twice is found in the inbox.

use std::collections::HashSet;
use std::time::Duration;

use sqlx::PgConnection;
use tokio::time::Instant;
use tracing::{error, warn};
use uuid::Uuid;

use super::apply::decode;
use super::fetcher::Fetcher;
use super::offset::Claim;
use super::parked;
use super::worker::{Step, StepError, Worker};
use crate::backoff::jittered;
use crate::event::Event;
use crate::inbox::{self, Outcome};
use crate::log::{LogError, Record, partition_of};
use crate::metrics;
use crate::outbox;
use crate::publisher;

/// How often the topic is asked whether it is still the same: one that was made anew has records at our offset as well.
const LOOK_AT_TOPIC: Duration = Duration::from_secs(10);

/// The publisher's cursor may be behind what it handed over: after so long the outbox is looked through once more.
const LOOK_AGAIN: Duration = Duration::from_secs(10);

/// Rows of the outbox looked at in one statement.
const PAGE: i64 = 5_000;

/// Offsets of what is not in the log start here, far from zero.
const OUT_OF_LOG: i64 = -(1 << 40);

/// How the place in the log was lost.
#[derive(Debug)]
struct Loss {
    how: String,
    /// Where reading goes on.
    next: i64,
    /// Offsets from here on mean other records now.
    reused_from: Option<i64>,
}

impl Worker {
    /// Looks whether the topic is the one that the offset counts in; finds the place anew if not.
    /// `false`: another member has the partition.
    pub(super) async fn check_topic(&mut self, claim: &mut Claim) -> Result<bool, StepError> {
        let topic = &self.partition.topic;
        let described = self.context.log.describe_topics(std::slice::from_ref(topic)).await?;
        let Some(described) = described.first() else {
            return Err(LogError::UnknownTopic { topic: topic.clone() }.into());
        };
        let now = described.topic_id;
        let kept = match (claim.topic_id, now) {
            (Some(before), Some(id)) if before != id => {
                let bounds = self.context.log.bounds(topic, self.partition.partition).await?;
                let how = format!("the topic was deleted and made anew: it was {before} and is {id}");
                let loss = Loss { how, next: bounds.start, reused_from: Some(0) };
                self.recover(claim, loss, Some(id)).await?
            }
            (None, Some(id)) => self.learn_topic(claim, id).await?,
            (_, None) | (Some(_), Some(_)) => self.follow_stored_offset(claim).await? != Step::Fenced,
        };
        self.look_at_topic = Instant::now() + jittered(LOOK_AT_TOPIC);
        Ok(kept)
    }

    /// The log does not have the offset. `false`: another member has the partition.
    pub(super) async fn find_place(&mut self, claim: &mut Claim) -> Result<bool, StepError> {
        let before = claim.next_offset;
        if !self.check_topic(claim).await? {
            return Ok(false);
        }
        let bounds = self.context.log.bounds(&self.partition.topic, self.partition.partition).await?;
        let next = claim.next_offset;
        if next != before || (bounds.start..=bounds.end).contains(&next) {
            self.fetcher = Fetcher::at(next);
            return Ok(true);
        }
        let loss = if next < bounds.start {
            let how = format!("the log begins at {}: {} records are gone", bounds.start, bounds.start - next);
            Loss { how, next: bounds.start, reused_from: None }
        } else {
            // How far it was cut off before it grew again is not known: everything is read again.
            let how = format!("the log ends at {}: it was cut off", bounds.end);
            Loss { how, next: bounds.start, reused_from: Some(bounds.end) }
        };
        self.recover(claim, loss, None).await
    }

    /// A look through the outbox that was put off, once the log is read to its end.
    pub(super) async fn look_again(&mut self, claim: &Claim) -> Result<bool, StepError> {
        if self.look_again_at.is_none_or(|at| at > Instant::now())
            || self.fetcher.end != Some(claim.next_offset)
        {
            return Ok(true);
        }
        let mut tx = self.context.db.worker().await?;
        if !claim.hold(tx.conn()).await? {
            tx.rollback().await?;
            return Ok(false);
        }
        let found = self.redrive(tx.conn()).await?;
        tx.commit().await?;
        self.look_again_at = None;
        if found > 0 {
            warn!(
                group = self.context.group.name,
                topic = self.partition.topic,
                partition = self.partition.partition,
                events = found,
                "further events that the log has lost are taken from the outbox"
            );
            self.look_at_queue(claim).await?;
        }
        Ok(true)
    }

    /// In one transaction: takes what is missing from the outbox, and moves the offset to where the log can be read.
    async fn recover(
        &mut self,
        claim: &mut Claim,
        loss: Loss,
        topic_id: Option<Uuid>,
    ) -> Result<bool, StepError> {
        let group = self.context.group.name;
        let mut tx = self.context.db.worker().await?;
        if !claim.hold(tx.conn()).await? {
            tx.rollback().await?;
            return Ok(false);
        }
        if let Some(from) = loss.reused_from {
            self.move_letters_out_of_log(tx.conn(), from).await?;
        }
        let redriven = self.redrive(tx.conn()).await?;
        sqlx::query(
            "update consumer_offset set next_offset = $4, topic_id = coalesce($5, topic_id) \
             where consumer_name = $1 and topic = $2 and partition = $3",
        )
        .bind(group)
        .bind(&self.partition.topic)
        .bind(self.partition.partition)
        .bind(loss.next)
        .bind(topic_id)
        .execute(tx.conn())
        .await?;
        tx.commit().await?;
        error!(
            group,
            topic = self.partition.topic,
            partition = self.partition.partition,
            offset = claim.next_offset,
            next = loss.next,
            events = redriven,
            "the log has lost the place of the group: {}. Events that the group has not seen are taken from the outbox, \
             then reading goes on",
            loss.how
        );
        metrics::consumer_alarm(group, &self.partition.topic, self.partition.partition, "gap");
        claim.next_offset = loss.next;
        claim.topic_id = topic_id.or(claim.topic_id);
        self.fetcher = Fetcher::at(loss.next);
        self.look_again_at = Some(Instant::now() + jittered(LOOK_AGAIN));
        self.look_at_queue(claim).await?;
        Ok(true)
    }

    async fn learn_topic(&self, claim: &mut Claim, id: Uuid) -> Result<bool, StepError> {
        let mut tx = self.context.db.worker().await?;
        let learned = sqlx::query(
            "update consumer_offset set topic_id = $5 where consumer_name = $1 and topic = $2 and partition = $3 \
             and owner_epoch = $4",
        )
        .bind(&claim.group)
        .bind(&claim.partition.topic)
        .bind(claim.partition.partition)
        .bind(claim.epoch)
        .bind(id)
        .execute(tx.conn())
        .await?
        .rows_affected();
        tx.commit().await?;
        claim.topic_id = Some(id);
        Ok(learned == 1)
    }

    /// Puts events of this partition that were published and that the group has not seen into the retry queue, in their
    /// order. Returns how many.
    async fn redrive(&self, conn: &mut PgConnection) -> Result<usize, StepError> {
        let group = &self.context.group;
        let topic = &self.partition.topic;
        let Some(aggregate) = group.reads.iter().copied().find(|a| topic.ends_with(a.as_str())) else {
            return Ok(0);
        };
        let partitions = self.context.log.topic(topic).await?.partitions;
        let (mut after, mut offset, mut count) = (i64::MIN, self.free_offset(conn).await?, 0);
        loop {
            let page = outbox::handed_over(conn, aggregate, after, PAGE).await?;
            let Some(last) = page.last() else { return Ok(count) };
            after = last.position;
            let ours = |key: &str| partition_of(key.as_bytes(), partitions) == self.partition.partition;
            let ours: Vec<_> = page.into_iter().filter(|row| ours(&row.event_key)).collect();
            let ids: Vec<Uuid> = ours.iter().map(|row| row.id).collect();
            let unseen: HashSet<Uuid> = inbox::unseen(conn, group.name, &ids).await?.into_iter().collect();
            let positions: Vec<i64> =
                ours.iter().filter(|row| unseen.contains(&row.id)).map(|row| row.position).collect();
            for row in outbox::rows_at(conn, &positions).await? {
                count += usize::from(self.redrive_one(conn, offset, &publisher::record(row)).await?);
                offset += 1;
            }
        }
    }

    async fn redrive_one(
        &self,
        conn: &mut PgConnection,
        offset: i64,
        record: &Record,
    ) -> Result<bool, StepError> {
        let group = self.context.group.name;
        let event: Event = match decode(record) {
            Ok(event) => event,
            Err(bad) => {
                self.bury_undecodable(conn, offset, record, &bad).await?;
                return Ok(true);
            }
        };
        // Rebasing leaves an event in the outbox twice.
        let fresh = !inbox::admit(conn, group, &[(&event, Outcome::Parked)]).await?.is_empty();
        if fresh {
            parked::park(conn, group, &self.partition, offset, record, &event, None).await?;
        }
        Ok(fresh)
    }

    /// The first offset below zero that is above all that are in use.
    async fn free_offset(&self, conn: &mut PgConnection) -> Result<i64, sqlx::Error> {
        sqlx::query_scalar(
            "select coalesce(max(log_offset) + 1, $4) from ( \
               select log_offset from parked_event where consumer_name = $1 and topic = $2 and partition = $3 \
               union all \
               select log_offset from event_dlq where consumer_name = $1 and topic = $2 and partition = $3) used \
             where log_offset < 0",
        )
        .bind(self.context.group.name)
        .bind(&self.partition.topic)
        .bind(self.partition.partition)
        .bind(OUT_OF_LOG)
        .fetch_one(conn)
        .await
    }

    /// Gives letters from an offset on others below zero, under all that are in use and in the same order: the old ones
    /// will come again with other records.
    async fn move_letters_out_of_log(&self, conn: &mut PgConnection, from: i64) -> Result<(), sqlx::Error> {
        sqlx::query(
            "with lowest as (select least(min(log_offset), $5) as log_offset from event_dlq \
               where consumer_name = $1 and topic = $2 and partition = $3), \
             moved as (select m.log_offset, \
                 l.log_offset - count(*) over () - 1 + row_number() over (order by m.log_offset) as target \
               from event_dlq m, lowest l \
               where consumer_name = $1 and topic = $2 and partition = $3 and m.log_offset >= $4) \
             update event_dlq t set log_offset = moved.target from moved \
             where t.consumer_name = $1 and t.topic = $2 and t.partition = $3 and t.log_offset = moved.log_offset",
        )
        .bind(self.context.group.name)
        .bind(&self.partition.topic)
        .bind(self.partition.partition)
        .bind(from)
        .bind(OUT_OF_LOG)
        .execute(conn)
        .await
        .map(drop)
    }
}
