//! events.dlq: the letters as records, for tools that read topics.
//!
//! A letter is produced from its row, after the commit that buried it, and marked with its offset once the log has
//! acknowledged it: at least once. Whatever the topic does, nobody waits for it.

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde_json::Value;
use sqlx::PgConnection;
use tracing::warn;
use uuid::Uuid;

use super::content::{cut, headers_from_json};
use crate::backoff::jittered;
use crate::db::Db;
use crate::doorbell::{Bell, Doorbells};
use crate::event::AggregateType;
use crate::log::{EventLog, LogError, Record, partition_of};

/// How often it is looked when no bell rings, and the pause after a failure.
const POLL: Duration = Duration::from_secs(5);

/// A letter that the topic refuses, for instance because it is too large with its headers, is tried again this much
/// later: somebody may raise the limit.
const REFUSED_SECONDS: f64 = 3_600.0;

/// Letters in memory at once.
const PAGE: i64 = 16;

/// Longest error message in a header, in bytes. The whole one is in the table.
const MAX_MESSAGE: usize = 1_024;

/// The topic of the dead letters beside the topic of an aggregate.
pub fn topic(beside: &str) -> String {
    let prefix = AggregateType::ALL.iter().find_map(|aggregate| beside.strip_suffix(aggregate.as_str()));
    format!("{}dlq", prefix.unwrap_or_default())
}

/// Puts the letters of one group on events.dlq.
pub struct Relay {
    pub db: Db,
    pub log: Arc<dyn EventLog>,
    pub bells: Doorbells,
    pub group: &'static str,
    /// Those of this topic and partition; all of the group, if none.
    pub source: Option<(String, i32)>,
    /// Where they go.
    pub topic: String,
}

/// A letter that is not on events.dlq yet.
#[derive(sqlx::FromRow)]
struct Row {
    id: Uuid,
    topic: String,
    partition: i32,
    log_offset: i64,
    raw_key: Option<Vec<u8>>,
    raw_value: Option<Vec<u8>>,
    headers: Value,
    error_message: String,
    retry_count: i32,
}

#[derive(Debug, thiserror::Error)]
enum RelayError {
    #[error("database: {0}")]
    Sql(#[from] sqlx::Error),
    #[error(transparent)]
    Log(#[from] LogError),
}

impl Relay {
    /// Relays for as long as it runs.
    pub async fn run(self) {
        let mut bell = self.bells.listen(Bell::Letters);
        let mut failing = false;
        loop {
            bell.arm();
            match self.pass().await {
                Ok(()) => {
                    failing = false;
                    let _ = tokio::time::timeout(jittered(POLL), bell.rung()).await;
                }
                Err(error) => {
                    if !std::mem::replace(&mut failing, true) {
                        warn!(group = self.group, topic = self.topic, %error,
                            "dead letters do not get to their topic; they wait in event_dlq");
                    }
                    tokio::time::sleep(jittered(POLL)).await;
                }
            }
        }
    }

    /// Relays what there is.
    async fn pass(&self) -> Result<(), RelayError> {
        loop {
            let mut tx = self.db.worker().await?;
            let rows = self.unrelayed(tx.conn()).await?;
            tx.rollback().await?;
            if rows.is_empty() {
                return Ok(());
            }
            let partitions = self.log.topic(&self.topic).await?.partitions;
            for row in rows {
                self.relay(row, partitions).await?;
            }
        }
    }

    async fn unrelayed(&self, conn: &mut PgConnection) -> Result<Vec<Row>, sqlx::Error> {
        let (topic, partition) = self.source.as_ref().map(|(t, p)| (t.as_str(), *p)).unzip();
        sqlx::query_as(
            "select id, topic, partition, log_offset, raw_key, raw_value, headers, error_message, retry_count \
             from event_dlq where consumer_name = $1 and dlq_offset is null \
             and ($2::text is null or (topic = $2 and partition = $3)) \
             and (dlq_retry_at is null or dlq_retry_at <= now()) order by created_at, id limit $4",
        )
        .bind(self.group)
        .bind(topic)
        .bind(partition)
        .bind(PAGE)
        .fetch_all(conn)
        .await
    }

    async fn relay(&self, row: Row, partitions: i32) -> Result<(), RelayError> {
        let partition = match &row.raw_key {
            Some(key) => partition_of(key, partitions),
            None => row.partition.rem_euclid(partitions.max(1)),
        };
        let id = row.id;
        let appended =
            self.log.append_one(&self.topic, partition, &record(self.group, row, self.db.now())).await;
        let mut tx = self.db.worker().await?;
        let update = match appended {
            Ok(offset) => {
                sqlx::query("update event_dlq set dlq_offset = $2 where id = $1 and dlq_offset is null")
                    .bind(id)
                    .bind(offset)
            }
            Err(LogError::Rejected { message, .. }) => {
                warn!(group = self.group, topic = self.topic, %id, message,
                    "a dead letter is not taken by its topic; it stays in event_dlq and is tried again in an hour");
                sqlx::query(
                    "update event_dlq set dlq_retry_at = now() + $2 * interval '1 second' where id = $1",
                )
                .bind(id)
                .bind(REFUSED_SECONDS)
            }
            Err(error) => return Err(error.into()),
        };
        update.execute(tx.conn()).await?;
        tx.commit().await?;
        Ok(())
    }
}

/// The original bytes, and what went wrong in the headers of KIP-1191 and of Spring. The time is now: Kafka would
/// delete a record that is older than the topic's retention within minutes.
fn record(group: &str, row: Row, now: DateTime<Utc>) -> Record {
    let message = cut(&row.error_message, MAX_MESSAGE).as_bytes();
    let ours = [
        ("__dlq.errors.topic", row.topic.as_bytes().to_vec()),
        ("__dlq.errors.partition", row.partition.to_string().into_bytes()),
        ("__dlq.errors.offset", row.log_offset.to_string().into_bytes()),
        ("__dlq.errors.group", group.as_bytes().to_vec()),
        ("__dlq.errors.delivery.count", row.retry_count.to_string().into_bytes()),
        ("__dlq.errors.message", message.to_vec()),
        // Spring writes numbers as Java does: big-endian.
        ("kafka_dlt-original-topic", row.topic.as_bytes().to_vec()),
        ("kafka_dlt-original-partition", row.partition.to_be_bytes().to_vec()),
        ("kafka_dlt-original-offset", row.log_offset.to_be_bytes().to_vec()),
        ("kafka_dlt-exception-message", message.to_vec()),
    ];
    // A name stands once: of a record that was a dead letter before, ours is the news.
    let mut headers = headers_from_json(&row.headers);
    headers.retain(|(name, _)| ours.iter().all(|(our_name, _)| name != our_name));
    headers.extend(ours.map(|(name, value)| (name.to_owned(), value)));
    headers.sort_by(|a, b| a.0.cmp(&b.0));
    Record { key: row.raw_key, value: row.raw_value, headers, timestamp: now }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_topic_stands_beside_those_of_the_aggregates() {
        assert_eq!(topic("events.miner"), "events.dlq");
        assert_eq!(topic("test.x.ops"), "test.x.dlq");
    }

    #[test]
    fn both_families_of_headers_stand_beside_the_original_ones() {
        let row = Row {
            id: Uuid::nil(),
            topic: "events.miner".to_owned(),
            partition: 2,
            log_offset: 258,
            raw_key: Some(b"t:u".to_vec()),
            raw_value: None,
            headers: json!([{"name": "id", "value": "x"}, {"name": "__dlq.errors.group", "value": "earlier"}]),
            error_message: "é".repeat(2_000),
            retry_count: 3,
        };
        let record = record("g", row, Utc::now());
        let text = |name| std::str::from_utf8(record.header(name).expect(name)).expect("text");
        assert_eq!((text("id"), text("__dlq.errors.group"), text("__dlq.errors.offset")), ("x", "g", "258"));
        assert_eq!(record.header("kafka_dlt-original-partition"), Some(&[0, 0, 0, 2][..]));
        assert_eq!(record.header("kafka_dlt-original-offset"), Some(&[0, 0, 0, 0, 0, 0, 1, 2][..]));
        assert_eq!(text("__dlq.errors.message").len(), MAX_MESSAGE);
        assert_eq!(record.headers.len(), 11);
        assert!(record.headers.is_sorted_by(|a, b| a.0 < b.0));
    }
}
