//! What an operator does with a group's offsets in Kafka: make them count, once.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use super::coordinator::{Coordinator, CoordinatorError};
use super::{mirror, slot};
use crate::config::Config;
use crate::db::Db;
use crate::group::TopicPartition;
use crate::log::security::{Cluster, Security};
use crate::log::{EventLog, LogError};

/// Renewals of a lease during which a member that lives is seen to move.
const RENEWALS: u32 = 3;

/// An offset that was, or would be, adopted.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Adopted {
    pub topic: String,
    pub partition: i32,
    pub from: i64,
    pub to: i64,
}

/// Why no offset was adopted.
#[derive(Debug, thiserror::Error)]
pub enum AdoptError {
    #[error("group {group} has members ({members}): stop every one of them first")]
    Active { group: String, members: String },
    #[error("Kafka has no offsets of group {0}: set them with kafka-consumer-groups.sh --reset-offsets")]
    Nothing(String),
    #[error(
        "Kafka's offset {offset} of {topic}/{partition} is not in the log, which has {start} to {end}: set another \
         with kafka-consumer-groups.sh --reset-offsets"
    )]
    OutOfRange { topic: String, partition: i32, offset: i64, start: i64, end: i64 },
    #[error("group coordinator: {0}")]
    Coordinator(String),
    #[error(transparent)]
    Log(#[from] LogError),
    #[error(transparent)]
    Sql(#[from] sqlx::Error),
}

impl From<CoordinatorError> for AdoptError {
    fn from(error: CoordinatorError) -> Self {
        Self::Coordinator(error.to_string())
    }
}

/// Makes Kafka's offsets those of the database, all or none, unless `dry_run`; whoever still works is fenced.
pub async fn adopt(
    config: &Config,
    db: &Db,
    log: &dyn EventLog,
    consumer_name: &str,
    dry_run: bool,
) -> Result<Vec<Adopted>, AdoptError> {
    let group = config.kafka.group_id(consumer_name);
    let cluster =
        Arc::new(Cluster { brokers: config.kafka.broker_list(), security: Security::of(&config.kafka)? });
    let deadline = Duration::from_millis(config.kafka.metadata_timeout_ms);
    let mut coordinator = Coordinator::new(cluster, &group, deadline);
    refuse_while_active(config, db, &mut coordinator, &group, consumer_name).await?;

    let in_kafka = coordinator.committed().await?;
    let stored = mirror::stored(db, consumer_name).await?;
    let mut adopted = BTreeMap::new();
    for (partition, found) in in_kafka {
        let Some(from) = stored.get(&partition).copied() else { continue };
        let bounds = log.bounds(&partition.topic, partition.partition).await?;
        if !(bounds.start..=bounds.end).contains(&found.offset) {
            return Err(AdoptError::OutOfRange {
                topic: partition.topic,
                partition: partition.partition,
                offset: found.offset,
                start: bounds.start,
                end: bounds.end,
            });
        }
        adopted.insert(partition, (from, found.offset));
    }
    if adopted.is_empty() {
        return Err(AdoptError::Nothing(group));
    }
    adopted.retain(|_, (from, to)| from != to);
    if !dry_run {
        store(db, consumer_name, &adopted).await?;
    }
    let adopted = adopted.into_iter().map(|(TopicPartition { topic, partition }, (from, to))| Adopted {
        topic,
        partition,
        from,
        to,
    });
    Ok(adopted.collect())
}

/// The fence keeps a member that joins meanwhile from harm; this keeps people from surprises.
async fn refuse_while_active(
    config: &Config,
    db: &Db,
    coordinator: &mut Coordinator,
    group: &str,
    consumer_name: &str,
) -> Result<(), AdoptError> {
    let mut members = coordinator.members().await?;
    let held = slot::held(db, group).await?;
    if members.is_empty() && held > 0 {
        members.push(format!("{held} about to join"));
    }
    if members.is_empty() {
        members = leased(config, db, consumer_name).await?;
    }
    if members.is_empty() {
        return Ok(());
    }
    Err(AdoptError::Active { group: group.to_owned(), members: members.join(", ") })
}

/// Members by lease that renew; a dead one's row may stand until somebody joins.
async fn leased(config: &Config, db: &Db, consumer_name: &str) -> Result<Vec<String>, sqlx::Error> {
    let before = counters(db, consumer_name).await?;
    if before.is_empty() {
        return Ok(Vec::new());
    }
    tokio::time::sleep(Duration::from_millis(config.group.renew_interval_ms) * RENEWALS).await;
    let mut now = counters(db, consumer_name).await?;
    now.retain(|member, counter| before.get(member) != Some(counter));
    Ok(now.into_keys().collect())
}

async fn counters(db: &Db, consumer_name: &str) -> Result<BTreeMap<String, i64>, sqlx::Error> {
    let mut tx = db.worker().await?;
    let rows: Vec<(String, i64)> =
        sqlx::query_as("select member_id, counter from group_member where consumer_name = $1")
            .bind(consumer_name)
            .fetch_all(tx.conn())
            .await?;
    tx.rollback().await?;
    Ok(rows.into_iter().collect())
}

async fn store(
    db: &Db,
    consumer_name: &str,
    adopted: &BTreeMap<TopicPartition, (i64, i64)>,
) -> Result<(), sqlx::Error> {
    let mut tx = db.worker().await?;
    sqlx::query(
        "update consumer_offset o set next_offset = n.next, owner_epoch = owner_epoch + 1, owner_id = null \
         from unnest($2::text[], $3::int[], $4::bigint[]) n(topic, partition, next) \
         where o.consumer_name = $1 and o.topic = n.topic and o.partition = n.partition",
    )
    .bind(consumer_name)
    .bind(adopted.keys().map(|p| p.topic.as_str()).collect::<Vec<_>>())
    .bind(adopted.keys().map(|p| p.partition).collect::<Vec<_>>())
    .bind(adopted.values().map(|(_, to)| *to).collect::<Vec<_>>())
    .execute(tx.conn())
    .await?;
    tx.commit().await
}
