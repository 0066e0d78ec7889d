//! What is old goes: daily partitions of the outbox and the inbox whole, what has no partition in small batches.
//!
//! A partition is dropped in one READ COMMITTED transaction: a brief exclusive lock on the root, **then** the guard as
//! a statement of its own, then the drop. A guard that looks before the lock is granted misses the event that commits
//! while the drop waits. Appends queue behind the waiting lock, so the wait is short; it is tried again later.

use std::fmt;
use std::time::Duration;

use chrono::{Days, NaiveDateTime};
use sqlx::{AssertSqlSafe, PgConnection};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::partitions::{Attached, Daily, attached, first_id_at};
use crate::config::Config;
use crate::db::Db;

/// How long a drop waits for its lock, and appends behind it. The look at the rows under the lock has half of it.
const LOCK_WAIT: Duration = Duration::from_millis(200);

/// Rows deleted in one transaction.
const BATCH: i64 = 1_000;

/// How long each of the three is kept.
#[derive(Debug, Clone)]
pub struct Retention {
    pub outbox_days: u32,
    pub inbox_days: u32,
    pub idempotency_days: u32,
    pub lock_wait: Duration,
}

/// What became of a partition that is old enough to go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    Dropped,
    /// Something in it is still needed.
    Kept(Kept),
    /// Somebody holds a lock on the table: later again.
    Busy,
    /// Another role is at it, or was quicker.
    Elsewhere,
    /// A statement failed; it is in the log.
    Failed,
}

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
            outbox_days: config.outbox.retention_days,
            inbox_days: config.consumer.inbox_retention_days,
            idempotency_days: config.outbox.idempotency_retention_days,
            lock_wait: LOCK_WAIT,
        }
    }

    /// Drops and deletes what is older, by PostgreSQL's clock.
    pub async fn pass(&self, db: &Db, stopping: &CancellationToken) -> Result<Pass, sqlx::Error> {
        let mut pass = Pass::default();
        for table in [Daily::Outbox, Daily::Inbox] {
            self.drop_old(db, table, &mut pass, stopping).await?;
        }
        // A key outlives the event it stands for, even one whose partition is kept longer.
        let keys_before = oldest_event(db, self.idempotency_days).await?;
        pass.idempotency_keys = delete(db, OLD_KEYS, keys_before, stopping).await?;
        let ids_before = days_ago(db, self.inbox_days).await?;
        pass.foreign_ids = delete(db, OLD_FOREIGN_IDS, ids_before, stopping).await?;
        Ok(pass)
    }

    async fn drop_old(
        &self,
        db: &Db,
        table: Daily,
        pass: &mut Pass,
        stopping: &CancellationToken,
    ) -> Result<(), sqlx::Error> {
        let days = match table {
            Daily::Outbox => self.outbox_days,
            Daily::Inbox => self.inbox_days,
        };
        let before = days_ago(db, days).await?;
        let partitions = attached(db.owner().await?.conn(), table).await?;
        for partition in partitions.into_iter().filter(|p| p.to <= before) {
            if stopping.is_cancelled() {
                break;
            }
            let name = partition.name.as_str();
            let outcome = match self.drop_one(db, table, &partition).await {
                Ok(outcome) => outcome,
                Err(error) if is_busy(&error) => Outcome::Busy,
                Err(error) => {
                    warn!(partition = name, %error, "an old partition could not be dropped");
                    Outcome::Failed
                }
            };
            match &outcome {
                Outcome::Dropped => info!(partition = name, "dropped, older than its retention"),
                Outcome::Kept(why) => warn!(partition = name, "kept beyond its retention: {why}"),
                Outcome::Busy | Outcome::Elsewhere | Outcome::Failed => {}
            }
            let busy = outcome == Outcome::Busy;
            pass.partitions.push((partition.name, outcome));
            // Whoever is in the way of one is in the way of the next, and each attempt holds appends up.
            if busy {
                break;
            }
        }
        Ok(())
    }

    async fn drop_one(&self, db: &Db, table: Daily, partition: &Attached) -> Result<Outcome, sqlx::Error> {
        let mut tx = db.owner().await?;
        let outcome = self.drop_in(tx.conn(), table, partition).await;
        match outcome {
            Ok(Outcome::Dropped) => tx.commit().await?,
            _ => tx.rollback().await?,
        }
        outcome
    }

    async fn drop_in(
        &self,
        conn: &mut PgConnection,
        table: Daily,
        partition: &Attached,
    ) -> Result<Outcome, sqlx::Error> {
        let root = table.table();
        let alone: bool =
            sqlx::query_scalar("select pg_try_advisory_xact_lock(hashtextextended($1 || ' retention', 0))")
                .bind(root)
                .fetch_one(&mut *conn)
                .await?;
        if !alone {
            return Ok(Outcome::Elsewhere);
        }
        // A first look without the lock: what must be kept anyway holds up nobody.
        if let Some(why) = guard(conn, table, partition).await? {
            return Ok(Outcome::Kept(why));
        }
        limit(conn, self.lock_wait).await?;
        sqlx::raw_sql(AssertSqlSafe(format!("lock table {root} in access exclusive mode")))
            .execute(&mut *conn)
            .await?;
        limit(conn, self.lock_wait / 2).await?;
        if !attached(conn, table).await?.contains(partition) {
            return Ok(Outcome::Elsewhere);
        }
        if let Some(why) = guard(conn, table, partition).await? {
            return Ok(Outcome::Kept(why));
        }
        sqlx::raw_sql(AssertSqlSafe(format!("drop table {}", partition.name))).execute(conn).await?;
        Ok(Outcome::Dropped)
    }
}

/// Bounds the next statements: the wait for a lock, and the statement as a whole, which may wait for several.
async fn limit(conn: &mut PgConnection, time: Duration) -> Result<(), sqlx::Error> {
    sqlx::query("select set_config('lock_timeout', $1, true), set_config('statement_timeout', $1, true)")
        .bind(time.as_millis().to_string())
        .execute(conn)
        .await
        .map(drop)
}

/// A lock or statement time-out, or a deadlock with somebody else's lock.
fn is_busy(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|e| e.code());
    matches!(code.as_deref(), Some("55P03" | "57014" | "40P01"))
}

/// What in the partition is still needed.
async fn guard(
    conn: &mut PgConnection,
    table: Daily,
    partition: &Attached,
) -> Result<Option<Kept>, sqlx::Error> {
    if !sees_all(conn, table.table()).await? {
        return Ok(Some(Kept::Hidden));
    }
    match table {
        Daily::Outbox => outbox_guard(conn, partition).await,
        Daily::Inbox => inbox_guard(conn, partition).await,
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

async fn outbox_guard(conn: &mut PgConnection, partition: &Attached) -> Result<Option<Kept>, sqlx::Error> {
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

async fn inbox_guard(conn: &mut PgConnection, partition: &Attached) -> Result<Option<Kept>, sqlx::Error> {
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

async fn days_ago(db: &Db, days: u32) -> Result<NaiveDateTime, sqlx::Error> {
    let mut tx = db.owner().await?;
    let now: NaiveDateTime =
        sqlx::query_scalar("select now() at time zone 'UTC'").fetch_one(tx.conn()).await?;
    Ok(now - Days::new(u64::from(days)))
}

/// So many days ago, or the beginning of the outbox where that is earlier.
async fn oldest_event(db: &Db, days: u32) -> Result<NaiveDateTime, sqlx::Error> {
    let before = days_ago(db, days).await?;
    let outbox = attached(db.owner().await?.conn(), Daily::Outbox).await?;
    Ok(outbox.first().map_or(before, |oldest| oldest.from.min(before)))
}
