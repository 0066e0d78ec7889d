//! What is old goes: daily partitions of the outbox and the inbox whole, what has no partition in small batches.

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use chrono::NaiveDateTime;
use sqlx::PgConnection;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::db::Db;
use crate::partitions::{
    self, By, DailyTable, Guard, LOCK_WAIT, Partition, Upkeep, attached, days_ago, drop_before, first_id_at,
};

/// By `occurred_at`.
const OUTBOX: DailyTable = DailyTable { root: "event_outbox", by: By::Timestamp };
/// By the event's UUIDv7.
const INBOX: DailyTable = DailyTable { root: "event_inbox", by: By::Id };

/// Rows deleted in one transaction.
const BATCH: i64 = 1_000;

/// How far ahead partitions are made, and how long each of the three is kept.
#[derive(Debug, Clone)]
pub struct Retention {
    pub days_ahead: u32,
    pub outbox_days: u32,
    pub inbox_days: u32,
    pub idempotency_days: u32,
    pub lock_wait: Duration,
}

/// What became of a partition that is old enough to go.
pub type Outcome = partitions::Outcome<Kept>;

/// Why a partition is not dropped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kept {
    /// So many rows are not visible in the publisher's snapshot.
    Unpublished(i64),
    /// So many rows wait in outbox_stuck.
    Stuck(i64),
    /// So many events wait in the retry queue.
    Parked(i64),
    /// Transaction ids say nothing before the cursor is rebased.
    OtherCluster,
    /// Row security hides rows from the owner: what it does not see would count as published.
    Hidden,
}

impl fmt::Display for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unpublished(1) => write!(f, "1 row is not published yet"),
            Self::Unpublished(rows) => write!(f, "{rows} rows are not published yet"),
            Self::Stuck(rows) => write!(f, "{rows} of its rows wait in outbox_stuck"),
            Self::Parked(rows) => write!(f, "{rows} of its events wait in the retry queue"),
            Self::OtherCluster => {
                write!(f, "the cursor is of another cluster: run `hashinsight publish --rebase`")
            }
            Self::Hidden => {
                write!(f, "row security hides rows from hi_owner: its policy owner_all must show all")
            }
        }
    }
}

/// What one pass did.
#[derive(Debug, Default)]
pub struct Pass {
    /// Those that were old enough to go, by name.
    pub partitions: Vec<(String, Outcome)>,
    /// Idempotency keys deleted.
    pub idempotency_keys: u64,
    /// Inbox rows of foreign ids deleted.
    pub foreign_ids: u64,
}

impl Pass {
    /// Whether a lock was in the way.
    pub fn busy(&self) -> bool {
        self.partitions.iter().any(|(_, outcome)| *outcome == Outcome::Busy)
    }
}

impl Retention {
    /// As configured.
    pub fn of(config: &Config) -> Self {
        Self {
            days_ahead: config.outbox.partitions_ahead_days,
            outbox_days: config.outbox.retention_days,
            inbox_days: config.consumer.inbox_retention_days,
            idempotency_days: config.outbox.idempotency_retention_days,
            lock_wait: LOCK_WAIT,
        }
    }

    /// Drops and deletes what is older, by PostgreSQL's clock.
    pub async fn pass(&self, db: &Db, stopping: &CancellationToken) -> Result<Pass, sqlx::Error> {
        let mut pass = Pass::default();
        let before = days_ago(db, self.outbox_days).await?;
        pass.partitions = drop_before(db, OUTBOX, before, self.lock_wait, &Unpublished, stopping).await?;
        let before = days_ago(db, self.inbox_days).await?;
        pass.partitions.extend(drop_before(db, INBOX, before, self.lock_wait, &Parked, stopping).await?);
        // A key outlives the event it stands for, even one whose partition is kept longer.
        let keys_before = oldest_event(db, self.idempotency_days).await?;
        pass.idempotency_keys = delete(db, OLD_KEYS, keys_before, stopping).await?;
        let ids_before = days_ago(db, self.inbox_days).await?;
        pass.foreign_ids = delete(db, OLD_FOREIGN_IDS, ids_before, stopping).await?;
        Ok(pass)
    }
}

#[async_trait]
impl Upkeep for Retention {
    async fn make_ahead(&self, db: &Db) -> Result<usize, sqlx::Error> {
        // One day more than asked for at the near end: a clock that is set back still finds its partition.
        let days = || -1..=i64::from(self.days_ahead);
        Ok(partitions::ensure(db, OUTBOX, days()).await? + partitions::ensure(db, INBOX, days()).await?)
    }

    async fn remove_old(&self, db: &Db, stopping: &CancellationToken) -> Result<bool, sqlx::Error> {
        Ok(self.pass(db, stopping).await?.busy())
    }
}

/// A day of the outbox is needed while one of its rows is not published.
struct Unpublished;

/// A day of the inbox is needed while one of its events waits in the retry queue.
struct Parked;

#[async_trait]
impl Guard for Unpublished {
    type Why = Kept;

    async fn why_keep(
        &self,
        conn: &mut PgConnection,
        partition: &Partition,
    ) -> Result<Option<Kept>, sqlx::Error> {
        if !sees_all(conn, OUTBOX.root).await? {
            return Ok(Some(Kept::Hidden));
        }
        outbox_guard(conn, partition).await
    }
}

#[async_trait]
impl Guard for Parked {
    type Why = Kept;

    async fn why_keep(
        &self,
        conn: &mut PgConnection,
        partition: &Partition,
    ) -> Result<Option<Kept>, sqlx::Error> {
        if !sees_all(conn, INBOX.root).await? {
            return Ok(Some(Kept::Hidden));
        }
        inbox_guard(conn, partition).await
    }
}

/// Row security is forced on the owner too; rows it hides would look like rows that are not there.
async fn sees_all(conn: &mut PgConnection, root: &str) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar(
        "select coalesce(bool_or(polpermissive and polqual_all) and not bool_or(not polpermissive), false) from ( \
           select polpermissive, polcmd in ('r', '*') and pg_get_expr(polqual, polrelid) = 'true' \
             and 'hi_owner'::regrole = any (polroles) as polqual_all \
           from pg_policy where polrelid = $1::text::regclass) policy",
    )
    .bind(root)
    .fetch_one(conn)
    .await
}

/// The rows of a partition that are not visible in P, found by the index on xid as the reader finds its window. `$1`
/// P, `$2` and `$3` the bounds, `$4` the floor: rows at or below it were handled in another space of transaction ids.
const UNPUBLISHED: &str = "select count(*) from ( \
       select position, xid from event_outbox where occurred_at >= $2 and occurred_at < $3 \
         and xid >= pg_snapshot_xmax($1::text::pg_snapshot) \
       union all \
       select position, xid from event_outbox where occurred_at >= $2 and occurred_at < $3 \
         and xid = any (array(select pg_snapshot_xip($1::text::pg_snapshot))) \
       offset 0) candidate \
     where position > $4 and not pg_visible_in_snapshot(xid, $1::text::pg_snapshot)";

async fn outbox_guard(conn: &mut PgConnection, partition: &Partition) -> Result<Option<Kept>, sqlx::Error> {
    let (published, floor, same_cluster, stuck): (String, i64, bool, i64) = sqlx::query_as(
        "select published::text, floor_position, \
           system_identifier = (select system_identifier from pg_control_system()), \
           (select count(*) from outbox_stuck where occurred_at >= $1 and occurred_at < $2) \
         from publisher_cursor where name = 'publisher'",
    )
    .bind(partition.from)
    .bind(partition.to)
    .fetch_one(&mut *conn)
    .await?;
    if !same_cluster {
        return Ok(Some(Kept::OtherCluster));
    }
    let unpublished: i64 = sqlx::query_scalar(UNPUBLISHED)
        .bind(published)
        .bind(partition.from)
        .bind(partition.to)
        .bind(floor)
        .fetch_one(conn)
        .await?;
    Ok(match (unpublished, stuck) {
        (0, 0) => None,
        (0, stuck) => Some(Kept::Stuck(stuck)),
        (unpublished, _) => Some(Kept::Unpublished(unpublished)),
    })
}

async fn inbox_guard(conn: &mut PgConnection, partition: &Partition) -> Result<Option<Kept>, sqlx::Error> {
    let parked: i64 = sqlx::query_scalar(
        "select count(*) from event_inbox where event_id >= $1 and event_id < $2 and outcome = 'parked'",
    )
    .bind(first_id_at(partition.from.and_utc()))
    .bind(first_id_at(partition.to.and_utc()))
    .fetch_one(conn)
    .await?;
    Ok((parked > 0).then_some(Kept::Parked(parked)))
}

const OLD_KEYS: &str = "delete from event_idempotency where (tenant_id, idempotency_key) in ( \
     select tenant_id, idempotency_key from event_idempotency where created_at < $1 \
     order by created_at limit $2 for update skip locked)";

const OLD_FOREIGN_IDS: &str = "delete from event_inbox_default where (consumer_name, event_id) in ( \
     select consumer_name, event_id from event_inbox_default where processed_at < $1 and outcome <> 'parked' \
     order by processed_at limit $2 for update skip locked)";

/// Deletes in batches, each a transaction of its own, until nothing older is left.
async fn delete(
    db: &Db,
    statement: &'static str,
    before: NaiveDateTime,
    stopping: &CancellationToken,
) -> Result<u64, sqlx::Error> {
    let mut deleted = 0;
    while !stopping.is_cancelled() {
        let mut tx = db.owner().await?;
        let batch = sqlx::query(statement)
            .bind(before.and_utc())
            .bind(BATCH)
            .execute(tx.conn())
            .await?
            .rows_affected();
        tx.commit().await?;
        deleted += batch;
        if batch < BATCH.unsigned_abs() {
            break;
        }
    }
    Ok(deleted)
}

/// So many days ago, or the beginning of the outbox where that is earlier.
async fn oldest_event(db: &Db, days: u32) -> Result<NaiveDateTime, sqlx::Error> {
    let before = days_ago(db, days).await?;
    let outbox = attached(db.owner().await?.conn(), OUTBOX).await?;
    Ok(outbox.first().map_or(before, |oldest| oldest.from.min(before)))
}
