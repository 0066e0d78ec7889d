//! The offsets of the database, copied to Kafka for those who look there. The database's are the truth: nothing here
//! moves one, and a copy that fails is made again later.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::{Instant, timeout};
use tracing::{debug, warn};

use super::coordinator::{Committed, Coordinator};
use crate::db::Db;
use crate::group::TopicPartition;

/// Between two copies.
const EVERY: Duration = Duration::from_secs(1);

/// A database that answers later is not waited for: heartbeats are more urgent than copies.
const PATIENCE: Duration = Duration::from_millis(500);

/// What was copied.
pub(super) struct Mirror {
    db: Db,
    /// The group as the database names it.
    consumer_name: String,
    copied: BTreeMap<TopicPartition, i64>,
    next_at: Instant,
    /// Whether the last copy failed: it is said once.
    failing: bool,
}

impl Mirror {
    pub(super) fn new(db: Db, consumer_name: &str, now: Instant) -> Self {
        Self {
            db,
            consumer_name: consumer_name.to_owned(),
            copied: BTreeMap::new(),
            next_at: now,
            failing: false,
        }
    }

    /// Copies what moved since the last copy, if that is long enough ago.
    pub(super) async fn copy_now_and_then(
        &mut self,
        coordinator: &mut Coordinator,
        member: (&str, i32),
        owned: &BTreeSet<TopicPartition>,
        now: Instant,
    ) {
        if now >= self.next_at {
            self.next_at = now + EVERY;
            self.copy(coordinator, member, owned).await;
        }
    }

    /// Copies the offsets of these partitions that moved since the last copy.
    pub(super) async fn copy(
        &mut self,
        coordinator: &mut Coordinator,
        (member_id, epoch): (&str, i32),
        partitions: &BTreeSet<TopicPartition>,
    ) {
        if partitions.is_empty() {
            return;
        }
        let mut offsets = self.stored().await;
        offsets.retain(|partition, offset| {
            partitions.contains(partition) && self.copied.get(partition) != Some(offset)
        });
        if offsets.is_empty() {
            return;
        }
        match coordinator.commit(member_id, epoch, &offsets).await {
            Ok(refused) => {
                // A rebalance is going on: with the next epoch they are taken.
                offsets.retain(|partition, _| !refused.contains(partition));
                self.copied.append(&mut offsets);
                self.failing = false;
            }
            Err(error) if self.failing => {
                debug!(group = self.consumer_name, %error, "offsets were not copied")
            }
            Err(error) => {
                self.failing = true;
                warn!(
                    group = self.consumer_name, %error,
                    "offsets cannot be copied to Kafka; its tools show old ones until they can"
                );
            }
        }
    }

    /// Says where Kafka's offset of a partition that we are about to work on is another than the database's.
    pub(super) async fn compare(&mut self, coordinator: &mut Coordinator, gained: &BTreeSet<TopicPartition>) {
        for partition in gained {
            self.copied.remove(partition);
        }
        let stored = self.stored().await;
        let Ok(in_kafka) = coordinator.committed().await else { return };
        for partition in gained {
            let (Some(stored), Some(found)) = (stored.get(partition), in_kafka.get(partition)) else {
                continue;
            };
            if differs(*stored, *found) {
                warn!(
                    group = self.consumer_name,
                    topic = partition.topic,
                    partition = partition.partition,
                    offset = stored,
                    kafka_offset = found.offset,
                    "Kafka has another offset: the database's counts (to use Kafka's, stop every member and run \
                     `hashinsight offsets adopt`)"
                );
            }
        }
    }

    /// The offsets of the database; none if it does not answer soon.
    async fn stored(&self) -> BTreeMap<TopicPartition, i64> {
        match timeout(PATIENCE, stored(&self.db, &self.consumer_name)).await {
            Ok(Ok(offsets)) => offsets,
            Ok(Err(_)) | Err(_) => BTreeMap::new(),
        }
    }
}

/// A copy of ours may lag behind; whatever else is different was set by somebody.
fn differs(stored: i64, found: Committed) -> bool {
    found.offset != stored && !(found.mirrored && found.offset < stored)
}

/// Each partition's next offset.
pub(super) async fn stored(
    db: &Db,
    consumer_name: &str,
) -> Result<BTreeMap<TopicPartition, i64>, sqlx::Error> {
    let mut tx = db.worker().await?;
    let rows: Vec<(String, i32, i64)> =
        sqlx::query_as("select topic, partition, next_offset from consumer_offset where consumer_name = $1")
            .bind(consumer_name)
            .fetch_all(tx.conn())
            .await?;
    tx.rollback().await?;
    Ok(rows.into_iter().map(|(topic, partition, next)| (TopicPartition { topic, partition }, next)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_copy_of_ours_may_lag_behind() {
        let found = |offset, mirrored| Committed { offset, mirrored };
        assert!(!differs(5, found(5, false)));
        assert!(!differs(5, found(3, true)), "the last second before a crash");
        assert!(differs(5, found(3, false)), "an operator's reset");
        assert!(differs(5, found(9, true)), "a database that was restored");
    }
}
