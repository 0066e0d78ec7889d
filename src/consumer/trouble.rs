//! What stands in the way of a partition: said once in the log, counted, and written where `hashinsight lag` reads it.

use std::time::Duration;

use tokio::time::Instant;
use tracing::{error, info, warn};

use super::offset::Claim;
use super::worker::Worker;
use crate::log::LogError;
use crate::metrics;

/// The same complaint is repeated after this time.
const REMIND: Duration = Duration::from_secs(60);

/// Why a partition stands still.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Trouble {
    /// Its events fail, and not by their own fault.
    Paused(String),
    /// The log gives nothing.
    Log(String),
}

impl Trouble {
    fn text(&self) -> &str {
        match self {
            Self::Paused(text) | Self::Log(text) => text,
        }
    }

    fn kind(&self) -> &'static str {
        match self {
            Self::Paused(_) => "paused",
            Self::Log(_) => "log",
        }
    }

    /// What the log gives cannot be read, or there is no such topic; `None` for what passes by itself.
    pub(super) fn of_log(error: &LogError, group: &str) -> Option<Self> {
        let remedy = match error {
            LogError::UnknownTopic { .. } => String::new(),
            LogError::Unreadable { topic, partition, .. } => format!(
                "; a transaction, or a codec other than gzip, lz4 and snappy: turn that off at the producer, then \
                 let the group go on behind it: update consumer_offset set next_offset = <the next offset that can be \
                 read> where consumer_name = '{group}' and topic = '{topic}' and partition = {partition}"
            ),
            _ => return None,
        };
        Some(Self::Log(format!("{error}{remedy}")))
    }
}

impl Worker {
    /// The partition stands still from now on. Says so unless that was said.
    pub(super) async fn stand_still(&mut self, claim: &Claim, trouble: Trouble) -> Result<(), sqlx::Error> {
        if self.trouble.as_ref() == Some(&trouble) {
            return Ok(());
        }
        let (group, topic, partition) =
            (self.context.group.name, &self.partition.topic, self.partition.partition);
        match &trouble {
            Trouble::Paused(text) => error!(group, topic, partition, "the partition is paused: {text}"),
            Trouble::Log(text) => warn!(group, topic, partition, "the partition stands still: {text}"),
        }
        metrics::consumer_alarm(group, topic, partition, trouble.kind());
        metrics::consumer_stalled(group, topic, partition, true);
        let text = trouble.text().to_owned();
        self.trouble = Some(trouble);
        self.write_trouble(claim, Some(&text)).await
    }

    /// The log can be read.
    pub(super) async fn log_is_well(&mut self, claim: &Claim) -> Result<(), sqlx::Error> {
        match self.trouble {
            Some(Trouble::Log(_)) => self.go_on(claim).await,
            _ => Ok(()),
        }
    }

    /// Nothing stands in the way any more.
    pub(super) async fn go_on(&mut self, claim: &Claim) -> Result<(), sqlx::Error> {
        let (group, topic, partition) =
            (self.context.group.name, &self.partition.topic, self.partition.partition);
        info!(group, topic, partition, "the partition goes on");
        metrics::consumer_stalled(group, topic, partition, false);
        self.write_trouble(claim, None).await?;
        self.trouble = None;
        Ok(())
    }

    async fn write_trouble(&self, claim: &Claim, text: Option<&str>) -> Result<(), sqlx::Error> {
        let mut tx = self.context.db.worker().await?;
        sqlx::query(
            "update consumer_offset set trouble = $5 where consumer_name = $1 and topic = $2 and partition = $3 \
             and owner_epoch = $4",
        )
        .bind(&claim.group)
        .bind(&claim.partition.topic)
        .bind(claim.partition.partition)
        .bind(claim.epoch)
        .bind(text)
        .execute(tx.conn())
        .await?;
        tx.commit().await
    }
}

/// What was complained about last.
#[derive(Debug, Default)]
pub(super) struct Complaint(Option<(String, Instant)>);

impl Complaint {
    /// Whether to say it: it is another than the last, or that was long ago.
    pub(super) fn is_news(&mut self, what: &str, now: Instant) -> bool {
        let known = self.0.as_ref().is_some_and(|(said, at)| said == what && now - *at < REMIND);
        if !known {
            self.0 = Some((what.to_owned(), now));
        }
        !known
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_is_said_once_a_minute() {
        let (mut complaint, now) = (Complaint::default(), Instant::now());
        assert!(complaint.is_news("a", now) && !complaint.is_news("a", now) && complaint.is_news("b", now));
        assert!(complaint.is_news("b", now + REMIND));
    }
}
