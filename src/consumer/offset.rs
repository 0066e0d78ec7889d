//! The row of `consumer_offset` of one partition: claim, fence, release.

use sqlx::PgConnection;

use crate::db::Db;
use crate::group::TopicPartition;

/// Makes the offset rows of a group that do not exist yet: it starts at the beginning of the log.
pub async fn register(db: &Db, group: &str, partitions: &[TopicPartition]) -> Result<(), sqlx::Error> {
    let mut tx = db.worker().await?;
    sqlx::query(
        "insert into consumer_offset (consumer_name, topic, partition) \
         select $1, p.topic, p.partition from unnest($2::text[], $3::int[]) p(topic, partition) \
         order by 2, 3 on conflict do nothing",
    )
    .bind(group)
    .bind(partitions.iter().map(|p| p.topic.as_str()).collect::<Vec<_>>())
    .bind(partitions.iter().map(|p| p.partition).collect::<Vec<_>>())
    .execute(tx.conn())
    .await?;
    tx.commit().await
}

/// The right to move one partition's offset: an epoch that every claim increases.
#[derive(Debug, Clone)]
pub(super) struct Claim {
    group: String,
    partition: TopicPartition,
    epoch: i64,
    pub(super) next_offset: i64,
}

impl Claim {
    /// Takes the partition over; whoever had it before is fenced from now on.
    pub(super) async fn take(
        db: &Db,
        group: &str,
        partition: &TopicPartition,
        member_id: &str,
    ) -> Result<Self, sqlx::Error> {
        let mut tx = db.worker().await?;
        let (epoch, next_offset) = sqlx::query_as(
            "update consumer_offset set owner_epoch = owner_epoch + 1, owner_id = $4 \
             where consumer_name = $1 and topic = $2 and partition = $3 returning owner_epoch, next_offset",
        )
        .bind(group)
        .bind(&partition.topic)
        .bind(partition.partition)
        .bind(member_id)
        .fetch_one(tx.conn())
        .await?;
        tx.commit().await?;
        Ok(Self { group: group.to_owned(), partition: partition.clone(), epoch, next_offset })
    }

    /// The first statement of a batch: moves the offset if the partition is still ours.
    pub(super) async fn advance(&self, conn: &mut PgConnection, end: i64) -> Result<bool, sqlx::Error> {
        let moved = sqlx::query(
            "update consumer_offset set next_offset = $6 where consumer_name = $1 and topic = $2 and partition = $3 \
             and owner_epoch = $4 and next_offset = $5",
        )
        .bind(&self.group)
        .bind(&self.partition.topic)
        .bind(self.partition.partition)
        .bind(self.epoch)
        .bind(self.next_offset)
        .bind(end)
        .execute(conn)
        .await?
        .rows_affected();
        Ok(moved == 1)
    }

    /// The first statement of a retry: the same fence, the offset stays.
    pub(super) async fn hold(&self, conn: &mut PgConnection) -> Result<bool, sqlx::Error> {
        let held: Option<i32> = sqlx::query_scalar(
            "select 1 from consumer_offset where consumer_name = $1 and topic = $2 and partition = $3 \
             and owner_epoch = $4 for no key update",
        )
        .bind(&self.group)
        .bind(&self.partition.topic)
        .bind(self.partition.partition)
        .bind(self.epoch)
        .fetch_optional(conn)
        .await?;
        Ok(held.is_some())
    }

    /// Lets the partition go, so that its next owner need not wait.
    pub(super) async fn release(self, db: &Db) -> Result<(), sqlx::Error> {
        let mut tx = db.worker().await?;
        sqlx::query(
            "update consumer_offset set owner_id = null where consumer_name = $1 and topic = $2 and partition = $3 \
             and owner_epoch = $4",
        )
        .bind(&self.group)
        .bind(&self.partition.topic)
        .bind(self.partition.partition)
        .bind(self.epoch)
        .execute(tx.conn())
        .await?;
        tx.commit().await
    }
}
