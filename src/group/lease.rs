//! Membership by leases in PostgreSQL.
//!
//! A lease is a counter, not a time: clocks of hosts differ, and a database that stalls would expire everybody. A
//! member is taken for dead when its counter stood still while the observer renewed its own four times, an interval
//! apart: a heartbeat that comes early, because a worker ended, says nothing about the others. The member itself stops working earlier, by its own monotonic clock, measured from before the last renewal was sent.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::Instant;
use tracing::{info, warn};

use super::{Membership, MembershipError, TopicPartition};
use crate::db::Db;

/// Renewals of our own during which another's counter must stand still before it is evicted.
const PATIENCE: u32 = 4;

/// A member's lease.
pub struct LeaseMembership {
    db: Db,
    group: String,
    member_id: String,
    host: String,
    interval: Duration,
    /// The topics the group reads. Their partitions are those that have an offset: there may be more tomorrow.
    topics: Vec<String>,
    /// The counter of each member as last seen, and how many of our renewals ago it moved.
    observed: BTreeMap<String, (i64, u32)>,
    /// When a renewal was last counted against the others.
    counted_at: Option<Instant>,
    joined: bool,
    renewed_at: Instant,
}

impl LeaseMembership {
    /// A member that joins with its first heartbeat.
    pub fn new(db: Db, group: &str, member_id: String, interval: Duration, topics: BTreeSet<String>) -> Self {
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned();
        Self {
            db,
            group: group.to_owned(),
            member_id,
            host,
            interval,
            topics: topics.into_iter().collect(),
            observed: BTreeMap::new(),
            counted_at: None,
            joined: false,
            renewed_at: Instant::now(),
        }
    }

    /// Renews our lease and reads everybody's; removes those that stood still.
    async fn renew(&mut self) -> Result<BTreeSet<String>, MembershipError> {
        let mut tx = self.db.worker().await?;
        let renewed = if self.joined {
            sqlx::query(
                "update group_member set counter = counter + 1 where consumer_name = $1 and member_id = $2",
            )
            .bind(&self.group)
            .bind(&self.member_id)
            .execute(tx.conn())
            .await?
            .rows_affected()
        } else {
            sqlx::query(
                "insert into group_member (consumer_name, member_id, host) values ($1, $2, $3) \
                 on conflict (consumer_name, member_id) do update set counter = group_member.counter + 1",
            )
            .bind(&self.group)
            .bind(&self.member_id)
            .bind(&self.host)
            .execute(tx.conn())
            .await?
            .rows_affected()
        };
        tx.commit().await?;
        if renewed == 0 {
            self.joined = false;
            self.observed.clear();
            self.counted_at = None;
            warn!(group = self.group, member = self.member_id, "this member stood still and was evicted");
            return Err(MembershipError::Evicted);
        }
        self.joined = true;

        let mut tx = self.db.worker().await?;
        let members: Vec<(String, i64)> =
            sqlx::query_as("select member_id, counter from group_member where consumer_name = $1")
                .bind(&self.group)
                .fetch_all(tx.conn())
                .await?;
        let now = Instant::now();
        let counts = self.counted_at.is_none_or(|before| now - before >= self.interval);
        let mut alive = BTreeSet::new();
        let mut observed = BTreeMap::new();
        for (member, counter) in members {
            let stood_still = match self.observed.get(&member) {
                Some((seen, renewals)) if *seen == counter && member != self.member_id => {
                    renewals + u32::from(counts)
                }
                _ => 0,
            };
            if stood_still < PATIENCE {
                observed.insert(member.clone(), (counter, stood_still));
                alive.insert(member);
                continue;
            }
            // Unless it has moved since: then it lives.
            let evicted = sqlx::query(
                "delete from group_member where consumer_name = $1 and member_id = $2 and counter = $3",
            )
            .bind(&self.group)
            .bind(&member)
            .bind(counter)
            .execute(tx.conn())
            .await?
            .rows_affected();
            if evicted == 1 {
                warn!(
                    group = self.group,
                    member, "a member stood still and was evicted; its partitions are dealt anew"
                );
            }
        }
        tx.commit().await?;
        self.observed = observed;
        if counts {
            self.counted_at = Some(now);
        }
        Ok(alive)
    }

    /// The partitions of our share that nobody else alive still works on.
    async fn free_share(
        &self,
        alive: &BTreeSet<String>,
        owned: &BTreeSet<TopicPartition>,
    ) -> Result<BTreeSet<TopicPartition>, MembershipError> {
        let mut tx = self.db.worker().await?;
        let rows: Vec<(String, i32, Option<String>)> = sqlx::query_as(
            "select topic, partition, owner_id from consumer_offset where consumer_name = $1 and topic = any($2) \
             order by topic, partition",
        )
        .bind(&self.group)
        .bind(&self.topics)
        .fetch_all(tx.conn())
        .await?;
        tx.rollback().await?;
        let (mut partitions, mut held_elsewhere) = (Vec::new(), BTreeSet::new());
        for (topic, partition, owner) in rows {
            let partition = TopicPartition { topic, partition };
            if owner.is_some_and(|o| o != self.member_id && alive.contains(&o)) {
                held_elsewhere.insert(partition.clone());
            }
            partitions.push(partition);
        }
        let share = share_of(&self.member_id, alive, &partitions);
        Ok(share.into_iter().filter(|p| owned.contains(p) || !held_elsewhere.contains(p)).collect())
    }
}

/// Deals partitions round-robin to the members in the order of their names: everybody computes the same.
fn share_of(
    member: &str,
    members: &BTreeSet<String>,
    partitions: &[TopicPartition],
) -> BTreeSet<TopicPartition> {
    let Some(position) = members.iter().position(|m| m == member) else { return BTreeSet::new() };
    partitions.iter().skip(position).step_by(members.len()).cloned().collect()
}

#[async_trait]
impl Membership for LeaseMembership {
    fn member_id(&self) -> &str {
        &self.member_id
    }

    fn interval(&self) -> Duration {
        self.interval
    }

    async fn heartbeat(
        &mut self,
        owned: &BTreeSet<TopicPartition>,
    ) -> Result<BTreeSet<TopicPartition>, MembershipError> {
        let sent_at = Instant::now();
        let joining = !self.joined;
        let alive = self.renew().await?;
        if joining {
            info!(group = self.group, member = self.member_id, members = alive.len(), "joined the group");
        }
        let target = self.free_share(&alive, owned).await?;
        self.renewed_at = sent_at;
        Ok(target)
    }

    fn expired(&self) -> bool {
        self.renewed_at.elapsed() >= self.interval * (PATIENCE - 1)
    }

    async fn leave(&mut self) -> Result<(), MembershipError> {
        let mut tx = self.db.worker().await?;
        sqlx::query("delete from group_member where consumer_name = $1 and member_id = $2")
            .bind(&self.group)
            .bind(&self.member_id)
            .execute(tx.conn())
            .await?;
        tx.commit().await?;
        self.joined = false;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn partitions(n: i32) -> Vec<TopicPartition> {
        (0..n).map(|partition| TopicPartition { topic: "t".to_owned(), partition }).collect()
    }

    #[test]
    fn every_partition_is_dealt_once() {
        for members in 1..5 {
            let names: BTreeSet<String> = (0..members).map(|m| format!("m{m}")).collect();
            let all = partitions(6);
            let dealt: Vec<TopicPartition> = names.iter().flat_map(|m| share_of(m, &names, &all)).collect();
            assert_eq!(dealt.len(), 6);
            assert_eq!(dealt.into_iter().collect::<BTreeSet<_>>().len(), 6);
        }
        assert!(share_of("stranger", &BTreeSet::from(["m".to_owned()]), &partitions(3)).is_empty());
    }
}
