//! What the groups have yet to do on some topics: the records before them, and the events in their retry queues.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};

use super::AT_ONCE;
use crate::db::Db;
use crate::log::{EventLog, LogError};

/// What a group has yet to do in one partition; not nothing.
#[derive(Debug, PartialEq, Eq)]
pub struct Unapplied {
    pub group: String,
    pub topic: String,
    pub partition: i32,
    /// Records from its offset to the log's end.
    pub records: i64,
    /// Events in its retry queue.
    pub parked: i64,
}

/// Why it is not known.
#[derive(Debug, thiserror::Error)]
pub enum UnappliedError {
    #[error("database: {0}")]
    Database(#[from] sqlx::Error),
    #[error(transparent)]
    Log(#[from] LogError),
}

impl fmt::Display for Unapplied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { group, topic, partition, records, parked } = self;
        match (records, parked) {
            (_, 0) => write!(f, "group {group} has {records} records of {topic}/{partition} before it"),
            (0, _) => {
                write!(f, "group {group} has {parked} events of {topic}/{partition} in its retry queue")
            }
            _ => write!(
                f,
                "group {group} has {records} records of {topic}/{partition} before it and {parked} events in its retry \
                 queue"
            ),
        }
    }
}

/// Looks at every partition of the topics, for every group that ever read one of them.
pub async fn unapplied(
    db: &Db,
    log: &dyn EventLog,
    topics: &[String],
) -> Result<Vec<Unapplied>, UnappliedError> {
    // The ends first: an offset read later can only be further.
    let ends = ends(log, topics).await?;
    let mut tx = db.worker().await?;
    let offsets: Vec<(String, String, i32, i64)> = sqlx::query_as(
        "select consumer_name, topic, partition, next_offset from consumer_offset where topic = any($1)",
    )
    .bind(topics)
    .fetch_all(tx.conn())
    .await?;
    let parked: Vec<(String, String, i32, i64)> = sqlx::query_as(
        "select consumer_name, topic, partition, count(*) from parked_event where topic = any($1) group by 1, 2, 3",
    )
    .bind(topics)
    .fetch_all(tx.conn())
    .await?;
    tx.rollback().await?;
    let groups: BTreeSet<(String, String)> =
        offsets.iter().map(|(group, topic, ..)| (group.clone(), topic.clone())).collect();
    let by_place = |rows: Vec<(String, String, i32, i64)>| -> BTreeMap<(String, String, i32), i64> {
        rows.into_iter().map(|(group, topic, partition, count)| ((group, topic, partition), count)).collect()
    };
    let (offsets, mut parked) = (by_place(offsets), by_place(parked));
    let mut found = Vec::new();
    for (group, group_topic) in &groups {
        for ((topic, partition), end) in ends.iter().filter(|((topic, _), _)| topic == group_topic) {
            let place = (group.clone(), topic.clone(), *partition);
            // One without an offset begins at the beginning.
            let records = (end - offsets.get(&place).copied().unwrap_or_default()).max(0);
            let parked = parked.remove(&place).unwrap_or_default();
            let (group, topic, partition) = place;
            found.push(Unapplied { group, topic, partition, records, parked });
        }
    }
    // Queues of partitions that the log does not have any more.
    let left_over = parked.into_iter().map(|((group, topic, partition), parked)| Unapplied {
        group,
        topic,
        partition,
        records: 0,
        parked,
    });
    found.extend(left_over);
    found.retain(|unapplied| unapplied.records > 0 || unapplied.parked > 0);
    Ok(found)
}

async fn ends(log: &dyn EventLog, topics: &[String]) -> Result<BTreeMap<(String, i32), i64>, LogError> {
    let described = log.describe_topics(topics).await?;
    let places = described.into_iter().flat_map(|t| (0..t.partitions).map(move |p| (t.topic.clone(), p)));
    let ends = places.map(|place| async move {
        let end = log.bounds(&place.0, place.1).await?.end;
        Ok::<_, LogError>((place, end))
    });
    stream::iter(ends).buffer_unordered(AT_ONCE).try_collect().await
}
