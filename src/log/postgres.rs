//! The log in PostgreSQL: what `standalone` uses without a broker.
//!
//! Offsets come from the partition's row: `end_offset` moves in the transaction of the records, and the lock of that
//! row makes commit order offset order. An identity column would let a reader pass an uncommitted record.

use std::time::{Duration, Instant};

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use sqlx::PgConnection;
use sqlx::postgres::types::PgInterval;
use tokio_util::sync::CancellationToken;
use tracing::warn;
use uuid::Uuid;

use super::topic_cache::TopicCache;
use super::{
    AppendError, Bounds, EventLog, FetchLimits, Fetched, LogError, Record, Topic, TopicDescription, TopicSpec,
};
use crate::db::Db;
use crate::doorbell::{Bell, Doorbells};

/// Records deleted by one statement of the retention.
const RETENTION_BATCH: i64 = 5_000;

/// How often retention runs.
const RETAIN_EVERY: Duration = Duration::from_secs(600);

/// The log in the tables `log_partition` and `log_record`.
pub struct PostgresLog {
    db: Db,
    bells: Doorbells,
    topics: TopicCache,
}

/// A record beside the bounds of its partition; the bounds alone where there is no record.
#[derive(sqlx::FromRow)]
struct ReadRow {
    start_offset: i64,
    end_offset: i64,
    log_offset: Option<i64>,
    key: Option<Vec<u8>>,
    value: Option<Vec<u8>>,
    header_names: Option<Vec<String>>,
    header_values: Option<Vec<Vec<u8>>>,
    record_time: Option<DateTime<Utc>>,
}

impl ReadRow {
    fn record(self) -> Option<(i64, Record)> {
        let headers = self.header_names?.into_iter().zip(self.header_values?).collect();
        Some((
            self.log_offset?,
            Record { key: self.key, value: self.value, headers, timestamp: self.record_time? },
        ))
    }
}

impl PostgresLog {
    /// The log in this database.
    pub fn new(db: Db, bells: Doorbells) -> Self {
        Self { db, bells, topics: TopicCache::default() }
    }

    /// Appends inside the caller's transaction and returns the offset of the first record; the caller rings [`Bell::Log`]
    /// after the commit.
    pub async fn append_in(
        &self,
        conn: &mut PgConnection,
        topic: &str,
        partition: i32,
        records: &[Record],
    ) -> Result<i64, LogError> {
        let count = records.len() as i64;
        let end: Option<i64> = sqlx::query_scalar(
            "update log_partition set end_offset = end_offset + $3 where topic = $1 and partition = $2 \
             returning end_offset",
        )
        .bind(topic)
        .bind(partition)
        .bind(count)
        .fetch_optional(&mut *conn)
        .await?;
        let end = end
            .ok_or_else(|| LogError::UnknownTopic { topic: topic.to_owned() })
            .inspect_err(|error| self.topics.forget_if_unknown(error))?;
        // Headers travel as one JSON array a record: PostgreSQL has no arrays of arrays of unequal length.
        let headers: Vec<serde_json::Value> = records
            .iter()
            .map(|r| r.headers.iter().map(|(name, value)| serde_json::json!([name, hex(value)])).collect())
            .collect();
        sqlx::query(
            "insert into log_record (topic, partition, log_offset, key, value, header_names, header_values, record_time) \
             select $1, $2, $3 + r.n - 1, r.key, r.value, \
               array(select h ->> 0 from jsonb_array_elements(r.headers) with ordinality e(h, i) order by i), \
               array(select decode(h ->> 1, 'hex') from jsonb_array_elements(r.headers) with ordinality e(h, i) order by i), \
               r.record_time \
             from unnest($4::bytea[], $5::bytea[], $6::jsonb[], $7::timestamptz[]) with ordinality \
               r(key, value, headers, record_time, n)",
        )
        .bind(topic)
        .bind(partition)
        .bind(end - count)
        .bind(records.iter().map(|r| r.key.as_deref()).collect::<Vec<_>>())
        .bind(records.iter().map(|r| r.value.as_deref()).collect::<Vec<_>>())
        .bind(headers)
        .bind(records.iter().map(|r| r.timestamp).collect::<Vec<_>>())
        .execute(conn)
        .await?;
        Ok(end - count)
    }

    /// Appends in a transaction of its own and returns the offset of the first record.
    async fn append_all(&self, topic: &str, partition: i32, records: &[Record]) -> Result<i64, LogError> {
        let mut tx = self.db.worker().await?;
        let first = self.append_in(tx.conn(), topic, partition, records).await?;
        tx.commit().await?;
        self.bells.ring(Bell::Log);
        Ok(first)
    }

    async fn read(
        &self,
        topic: &str,
        partition: i32,
        offset: i64,
        limits: FetchLimits,
    ) -> Result<Fetched, LogError> {
        // One statement, one snapshot: the records are those below the end that it sees.
        let mut tx = self.db.worker().await?;
        let rows: Vec<ReadRow> = sqlx::query_as(
            "select p.start_offset, p.end_offset, r.* from log_partition p left join lateral ( \
               select log_offset, key, value, header_names, header_values, record_time from log_record \
               where topic = p.topic and partition = p.partition and log_offset >= $3 order by log_offset limit $4) r \
             on true where p.topic = $1 and p.partition = $2",
        )
        .bind(topic)
        .bind(partition)
        .bind(offset)
        .bind(i64::try_from(limits.max_records).unwrap_or(i64::MAX))
        .fetch_all(tx.conn())
        .await?;
        tx.rollback().await?;
        let Some(first) = rows.first() else {
            return Err(LogError::UnknownTopic { topic: topic.to_owned() });
        };
        let bounds = Bounds { start: first.start_offset, end: first.end_offset };
        if offset < bounds.start || offset > bounds.end {
            return Err(LogError::OffsetOutOfRange { topic: topic.to_owned(), partition, offset });
        }
        let mut bytes = 0;
        let within = |(_, row): &(i64, Record)| {
            let first = bytes == 0;
            bytes += row.value.as_ref().map_or(0, Vec::len) + row.key.as_ref().map_or(0, Vec::len) + 1;
            first || bytes <= limits.max_bytes as usize
        };
        let records = rows.into_iter().filter_map(ReadRow::record).take_while(within).collect();
        Ok(Fetched { records, end: bounds.end })
    }
}

async fn bounds(conn: &mut PgConnection, topic: &str, partition: i32) -> Result<Bounds, LogError> {
    let row: Option<(i64, i64)> = sqlx::query_as(
        "select start_offset, end_offset from log_partition where topic = $1 and partition = $2",
    )
    .bind(topic)
    .bind(partition)
    .fetch_optional(conn)
    .await?;
    let (start, end) = row.ok_or_else(|| LogError::UnknownTopic { topic: topic.to_owned() })?;
    Ok(Bounds { start, end })
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[async_trait]
impl EventLog for PostgresLog {
    async fn topic(&self, name: &str) -> Result<Topic, LogError> {
        let now = Instant::now();
        if let Some(known) = self.topics.get(name, now) {
            return Ok(known);
        }
        let found = self.describe_topics(&[name.to_owned()]).await?;
        let Some(found) = found.first() else {
            return Err(LogError::UnknownTopic { topic: name.to_owned() });
        };
        let topic = Topic { partitions: found.partitions, retention: found.retention() };
        self.topics.learn(name, topic, now);
        Ok(topic)
    }

    async fn append(&self, topic: &str, partition: i32, records: &[Record]) -> Result<(), AppendError> {
        let all_or_nothing = self.append_all(topic, partition, records).await;
        all_or_nothing.map(drop).map_err(|error| AppendError { appended: 0, error })
    }

    async fn append_one(&self, topic: &str, partition: i32, record: &Record) -> Result<i64, LogError> {
        self.append_all(topic, partition, std::slice::from_ref(record)).await
    }

    async fn fetch(
        &self,
        topic: &str,
        partition: i32,
        offset: i64,
        limits: FetchLimits,
    ) -> Result<Fetched, LogError> {
        let mut bell = self.bells.listen(Bell::Log);
        let deadline = tokio::time::Instant::now() + limits.max_wait;
        loop {
            bell.arm();
            let fetched = self.read(topic, partition, offset, limits).await?;
            if !fetched.records.is_empty() {
                return Ok(fetched);
            }
            if tokio::time::timeout_at(deadline, bell.rung()).await.is_err() {
                return Ok(fetched);
            }
        }
    }

    async fn bounds(&self, topic: &str, partition: i32) -> Result<Bounds, LogError> {
        let mut tx = self.db.worker().await?;
        let found = bounds(tx.conn(), topic, partition).await;
        tx.rollback().await?;
        found
    }

    async fn ensure_topics(&self, topics: &[TopicSpec]) -> Result<Vec<String>, LogError> {
        let mut created = Vec::new();
        let mut tx = self.db.worker().await?;
        for spec in topics {
            let retention = PgInterval::try_from(spec.retention)
                .map_err(|e| LogError::Refused(format!("retention of {}: {e}", spec.name)))?;
            let new = sqlx::query(
                "insert into log_partition (topic, partition, topic_id, retention) \
                 select $1, n, $2, $3 from generate_series(0, $4 - 1) n \
                 where not exists (select from log_partition where topic = $1) on conflict do nothing",
            )
            .bind(&spec.name)
            .bind(Uuid::now_v7())
            .bind(retention)
            .bind(spec.partitions)
            .execute(tx.conn())
            .await?
            .rows_affected();
            if new > 0 {
                created.push(spec.name.clone());
            }
        }
        tx.commit().await?;
        Ok(created)
    }

    async fn describe_topics(&self, names: &[String]) -> Result<Vec<TopicDescription>, LogError> {
        let mut tx = self.db.worker().await?;
        let rows: Vec<(String, i64, i64, Uuid)> = sqlx::query_as(
            "select topic, count(*), (extract(epoch from min(retention)) * 1000)::bigint, \
               (array_agg(topic_id order by partition))[1] from log_partition \
             where topic = any($1) group by topic order by topic",
        )
        .bind(names)
        .fetch_all(tx.conn())
        .await?;
        tx.rollback().await?;
        let described =
            rows.into_iter().map(|(topic, partitions, retention_ms, topic_id)| TopicDescription {
                topic,
                partitions: i32::try_from(partitions).unwrap_or(i32::MAX),
                replication_factor: None,
                retention_ms: Some(retention_ms),
                topic_id: Some(topic_id),
            });
        Ok(described.collect())
    }

    async fn grow_topics(&self, names: &[String], partitions: i32) -> Result<(), LogError> {
        let mut tx = self.db.worker().await?;
        sqlx::query(
            "insert into log_partition (topic, partition, topic_id, retention) \
             select p.topic, n, p.topic_id, p.retention from log_partition p cross join generate_series(1, $2 - 1) n \
             where p.topic = any($1) and p.partition = 0 on conflict do nothing",
        )
        .bind(names)
        .bind(partitions)
        .execute(tx.conn())
        .await?;
        tx.commit().await?;
        self.forget_topics();
        Ok(())
    }

    fn forget_topics(&self) {
        self.topics.forget_all();
    }

    fn transactional(&self) -> Option<&PostgresLog> {
        Some(self)
    }
}

/// Deletes records past their topic's retention, never one that a group has yet to read; returns how many.
pub async fn retain(db: &Db) -> Result<i64, LogError> {
    let mut deleted = 0;
    loop {
        let mut tx = db.worker().await?;
        let batch: i64 = sqlx::query_scalar(
            "with expired as (select r.topic, r.partition, r.log_offset from log_record r \
               join log_partition p using (topic, partition) \
               where r.appended_at < now() - p.retention and not exists (select from consumer_offset o \
                 where o.topic = r.topic and o.partition = r.partition and o.next_offset <= r.log_offset) \
               order by r.topic, r.partition, r.log_offset limit $1), \
             gone as (delete from log_record r using expired e where r.topic = e.topic \
               and r.partition = e.partition and r.log_offset = e.log_offset returning r.topic, r.partition, r.log_offset), \
             moved as (update log_partition p set start_offset = greatest(p.start_offset, g.upto + 1) \
               from (select topic, partition, max(log_offset) as upto from gone group by 1, 2) g \
               where p.topic = g.topic and p.partition = g.partition) \
             select count(*) from gone",
        )
        .bind(RETENTION_BATCH)
        .fetch_one(tx.conn())
        .await?;
        tx.commit().await?;
        deleted += batch;
        if batch == 0 {
            return Ok(deleted);
        }
    }
}

/// Deletes what is past its retention, time and again, until the stop.
pub async fn run_retention(db: Db, stopping: CancellationToken) -> anyhow::Result<()> {
    loop {
        if let Err(error) = retain(&db).await {
            warn!(%error, "retention of the log failed; trying again later");
        }
        tokio::select! {
            () = stopping.cancelled() => return Ok(()),
            () = tokio::time::sleep(RETAIN_EVERY) => {}
        }
    }
}
