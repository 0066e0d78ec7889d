//! The row of `consumer_offset` of one partition: claim, fence, release.

use chrono::{DateTime, Utc};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::db::Db;
use crate::group::TopicPartition;

/// Makes the offset rows of a group that do not exist yet: it starts at the beginning of the log. Those that exist are
/// left out beforehand: a conflict would wait for an owner that is frozen inside a transaction.
pub async fn register(db: &Db, group: &str, partitions: &[TopicPartition]) -> Result<(), sqlx::Error> {
    let mut tx = db.worker().await?;
    sqlx::query(
        "insert into consumer_offset (consumer_name, topic, partition) \
         select $1, p.topic, p.partition from unnest($2::text[], $3::int[]) p(topic, partition) \
         where not exists (select from consumer_offset o \
           where o.consumer_name = $1 and o.topic = p.topic and o.partition = p.partition) \
         order by 2, 3 on conflict do nothing",
    )
    .bind(group)
    .bind(partitions.iter().map(|p| p.topic.as_str()).collect::<Vec<_>>())
    .bind(partitions.iter().map(|p| p.partition).collect::<Vec<_>>())
    .execute(tx.conn())
    .await?;
    tx.commit().await
}

/// Makes the offset rows that the groups of topics lack: these have so many partitions now. Returns how many it made.
pub async fn register_grown(
    conn: &mut PgConnection,
    topics: &[String],
    partitions: i32,
) -> Result<u64, sqlx::Error> {
    let made = sqlx::query(
        "insert into consumer_offset (consumer_name, topic, partition) \
         select g.consumer_name, g.topic, n from (select distinct consumer_name, topic from consumer_offset \
           where topic = any($1)) g cross join generate_series(0, $2 - 1) n \
         where not exists (select from consumer_offset o \
           where o.consumer_name = g.consumer_name and o.topic = g.topic and o.partition = n) \
         order by 1, 2, 3 on conflict do nothing",
    )
    .bind(topics)
    .bind(partitions)
    .execute(conn)
    .await?;
    Ok(made.rows_affected())
}

/// The right to move one partition's offset: an epoch that every claim increases.
#[derive(Debug, Clone)]
pub(super) struct Claim {
    pub(super) group: String,
    pub(super) partition: TopicPartition,
    pub(super) epoch: i64,
    pub(super) next_offset: i64,
    /// The topic that `next_offset` counts in; `None` as long as nobody has asked.
    pub(super) topic_id: Option<Uuid>,
    pub(super) before: Before,
}

/// What the previous owner left behind.
#[derive(Debug, Clone, sqlx::FromRow)]
pub(super) struct Before {
    /// It did not let the partition go: it died, or was taken for dead.
    pub(super) unreleased: bool,
    pub(super) trouble: Option<String>,
    /// When the partition was claimed, by the database's clock.
    pub(super) until: DateTime<Utc>,
}

impl Claim {
    /// Takes the partition over in the caller's transaction; whoever had it before is fenced from its commit on.
    pub(super) async fn take(
        conn: &mut PgConnection,
        group: &str,
        partition: &TopicPartition,
        member_id: &str,
    ) -> Result<Self, sqlx::Error> {
        // A partition that the topic got while we ran has no row yet.
        sqlx::query(
            "insert into consumer_offset (consumer_name, topic, partition) values ($1, $2, $3) on conflict do nothing",
        )
        .bind(group)
        .bind(&partition.topic)
        .bind(partition.partition)
        .execute(&mut *conn)
        .await?;
        let before = sqlx::query_as(
            "select owner_id is not null as unreleased, trouble, clock_timestamp() as until from consumer_offset \
             where consumer_name = $1 and topic = $2 and partition = $3 for no key update",
        )
        .bind(group)
        .bind(&partition.topic)
        .bind(partition.partition)
        .fetch_one(&mut *conn)
        .await?;
        let (epoch, next_offset, topic_id) = sqlx::query_as(
            "update consumer_offset set owner_epoch = owner_epoch + 1, owner_id = $4 \
             where consumer_name = $1 and topic = $2 and partition = $3 \
             returning owner_epoch, next_offset, topic_id",
        )
        .bind(group)
        .bind(&partition.topic)
        .bind(partition.partition)
        .bind(member_id)
        .fetch_one(conn)
        .await?;
        Ok(Self {
            group: group.to_owned(),
            partition: partition.clone(),
            epoch,
            next_offset,
            topic_id,
            before,
        })
    }

    /// The first statement of a batch: moves the offset if the partition is still ours, and says what the database's
    /// clock shows.
    pub(super) async fn advance(
        &self,
        conn: &mut PgConnection,
        end: i64,
    ) -> Result<Option<DateTime<Utc>>, sqlx::Error> {
        fail::fail_point!("consumer.before_fence");
        sqlx::query_scalar(
            "update consumer_offset set next_offset = $6 where consumer_name = $1 and topic = $2 and partition = $3 \
             and owner_epoch = $4 and next_offset = $5 returning clock_timestamp()",
        )
        .bind(&self.group)
        .bind(&self.partition.topic)
        .bind(self.partition.partition)
        .bind(self.epoch)
        .bind(self.next_offset)
        .bind(end)
        .fetch_optional(conn)
        .await
    }

    /// The first statement of a retry: the same fence, the offset stays.
    pub(super) async fn hold(&self, conn: &mut PgConnection) -> Result<bool, sqlx::Error> {
        let held: Option<i32> = sqlx::query_scalar(
            "select 1 from consumer_offset where consumer_name = $1 and topic = $2 and partition = $3 \
             and owner_epoch = $4 and next_offset = $5 for no key update",
        )
        .bind(&self.group)
        .bind(&self.partition.topic)
        .bind(self.partition.partition)
        .bind(self.epoch)
        .bind(self.next_offset)
        .fetch_optional(conn)
        .await?;
        Ok(held.is_some())
    }

    /// The offset as it is stored; `None` if another member has the partition.
    pub(super) async fn stored_offset(&self, conn: &mut PgConnection) -> Result<Option<i64>, sqlx::Error> {
        sqlx::query_scalar(
            "select next_offset from consumer_offset where consumer_name = $1 and topic = $2 and partition = $3 \
             and owner_epoch = $4",
        )
        .bind(&self.group)
        .bind(&self.partition.topic)
        .bind(self.partition.partition)
        .bind(self.epoch)
        .fetch_optional(conn)
        .await
    }

    /// Lets the partition go, so that its next owner need not wait, and need not suspect any event.
    pub(super) async fn release(self, db: &Db) -> Result<(), sqlx::Error> {
        let mut tx = db.worker().await?;
        sqlx::query(
            "update consumer_offset set owner_id = null, suspect_offset = null, suspect_attempts = 0 \
             where consumer_name = $1 and topic = $2 and partition = $3 and owner_epoch = $4",
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
