//! Repairs the cursor after a restore: `hashinsight publish --rebase`.
//!
//! A dump carries the rows' transaction ids and the cursor's snapshots as values, and both still agree with each other.
//! The new cluster counts transactions from the beginning, so a row written there looks published, or never is. In one
//! transaction, with writers locked out, everything unpublished is inserted again under ids of this cluster, and what
//! is older is set aside below a floor:
//!
//! ```text
//!   position   1 ─────────────────────────────── floor │ floor + 1 ──────────►
//!              restored, and written since the restore  │ inserted again: not visible in the new P
//!              never read again                         │
//! ```

use serde::Serialize;
use sqlx::PgConnection;

use super::cursor::LEADER_LOCK;
use crate::db::Db;

/// How long writers may take to finish what they have begun.
const LOCK_WAIT_MS: &str = "10000";

/// What was done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Rebased {
    /// The system the cursor was of. Text: the number is larger than what JSON readers take exactly.
    pub stored_system: String,
    /// The system it is of now.
    pub actual_system: String,
    /// Rows that were not published, now to be published.
    pub inserted_again: u64,
    /// Rows at or below this position are never read again.
    pub floor_position: i64,
}

/// Why nothing was done.
#[derive(Debug, thiserror::Error)]
pub enum RebaseError {
    #[error("a publisher leads, or another rebase runs, on this database: stop it first")]
    Leading,
    #[error(
        "writers hold event_outbox for longer than 10 s: stop `serve` and `standalone` and run this again"
    )]
    Writers,
    #[error(
        "{0} is not attached to event_outbox, so its events would silently never be published: attach it with `alter \
         table event_outbox attach partition ...`, or rename or drop it if its events are not wanted"
    )]
    Detached(String),
    #[error(
        "outbox_stuck names {rows} events that event_outbox does not hold, of {days}: restore the partitions of those \
         days, or delete the rows from outbox_stuck if their events are not wanted"
    )]
    StuckWithout { rows: i64, days: String },
    #[error(
        "the transaction ids were not preserved: rows of event_outbox were loaded from a dump or carry ids this cluster \
         has not reached. Run it without --xids-preserved, which is for pg_upgrade alone"
    )]
    NotPreserved,
    #[error("the transaction had an id before its snapshot was taken: this is a defect, please report it")]
    Assigned,
    #[error(transparent)]
    Sql(#[from] sqlx::Error),
}

/// The cursor as it was restored.
#[derive(sqlx::FromRow)]
struct Restored {
    published: String,
    reading: Option<String>,
    last_position: i64,
    floor_position: i64,
    stored: i64,
    actual: i64,
}

/// Rebases the cursor on this cluster; `None` when it is of this cluster already.
pub async fn rebase(db: &Db, xids_preserved: bool) -> Result<Option<Rebased>, RebaseError> {
    let mut tx = db.owner().await?;
    let rebased = rebase_in(tx.conn(), xids_preserved).await;
    if matches!(rebased, Ok(Some(_))) {
        tx.commit().await?;
    } else {
        // Waited for: whoever tries next must not find the lock still held. What went wrong first is what is told.
        let _ = tx.rollback().await;
    }
    rebased
}

async fn rebase_in(conn: &mut PgConnection, xids_preserved: bool) -> Result<Option<Rebased>, RebaseError> {
    // The lock of the leader itself: until the end nobody leads.
    let alone: bool = sqlx::query_scalar(
        "select set_config('lock_timeout', $3, true) <> '' and set_config('statement_timeout', '0', true) <> '' \
         and pg_try_advisory_xact_lock($1, $2)",
    )
    .bind(LEADER_LOCK.0)
    .bind(LEADER_LOCK.1)
    .bind(LOCK_WAIT_MS)
    .fetch_one(&mut *conn)
    .await?;
    if !alone {
        return Err(RebaseError::Leading);
    }
    let restored: Restored = sqlx::query_as(
        "select published::text, reading::text, last_position, floor_position, system_identifier as stored, \
         (select system_identifier from pg_control_system()) as actual from publisher_cursor where name = 'publisher'",
    )
    .fetch_one(&mut *conn)
    .await?;
    if restored.stored == restored.actual {
        return Ok(None);
    }
    lock_out_writers(conn).await?;
    check_partitions(conn).await?;
    let (inserted_again, floor_position) = if xids_preserved {
        check_preserved(conn).await?;
        (0, restored.floor_position)
    } else {
        insert_again(conn, &restored).await?
    };
    sqlx::query(
        "update publisher_cursor set system_identifier = $1, timeline = hi_timeline(), epoch = epoch + 1, \
         leader_pid = null where name = 'publisher'",
    )
    .bind(restored.actual)
    .execute(&mut *conn)
    .await?;
    Ok(Some(Rebased {
        stored_system: restored.stored.to_string(),
        actual_system: restored.actual.to_string(),
        inserted_again,
        floor_position,
    }))
}

/// Of the locks that keep writers out this is one that draws no transaction id, as an access exclusive one would: an id
/// drawn before the snapshot can look finished in it.
async fn lock_out_writers(conn: &mut PgConnection) -> Result<(), RebaseError> {
    let locked = sqlx::query("lock table event_outbox in share row exclusive mode").execute(conn).await;
    match locked {
        Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some("55P03") => {
            Err(RebaseError::Writers)
        }
        other => Ok(other.map(drop)?),
    }
}

/// Rows that are not read through the root would be left out without a word.
async fn check_partitions(conn: &mut PgConnection) -> Result<(), RebaseError> {
    let detached: Option<String> = sqlx::query_scalar(
        "select string_agg(c.oid::regclass::text, ', ' order by c.relname) from pg_class c \
         where c.relkind = 'r' and c.relname ~ '^event_outbox_p[0-9]{8}$' \
         and c.relnamespace = (select relnamespace from pg_class where oid = 'event_outbox'::regclass) \
         and not exists (select from pg_inherits i where i.inhrelid = c.oid \
           and i.inhparent = 'event_outbox'::regclass and not i.inhdetachpending)",
    )
    .fetch_one(&mut *conn)
    .await?;
    if let Some(detached) = detached {
        return Err(RebaseError::Detached(detached));
    }
    let (rows, days): (i64, Option<String>) = sqlx::query_as(
        "select count(*), string_agg(distinct occurred_at::date::text, ', ') from outbox_stuck s \
         where not exists (select from event_outbox o where o.position = s.position and o.occurred_at = s.occurred_at)",
    )
    .fetch_one(conn)
    .await?;
    match days {
        Some(days) => Err(RebaseError::StuckWithout { rows, days }),
        None => Ok(()),
    }
}

/// Tuples that hold rows of several transactions were written by none of them: COPY loaded them from a dump.
macro_rules! loaded {
    () => {
        "loaded as materialized \
           (select xmin::text as loader from event_outbox group by xmin::text having count(distinct xid) > 1)"
    };
}

/// Preserved ids are below the next one, and each tuple's own transaction is the row's.
async fn check_preserved(conn: &mut PgConnection) -> Result<(), RebaseError> {
    let broken: bool = sqlx::query_scalar(concat!(
        "with ",
        loaded!(),
        " select exists (select from loaded) \
           or exists (select from event_outbox where xid >= pg_snapshot_xmax(pg_current_snapshot())) \
           or (select pg_snapshot_xmax(published) > pg_snapshot_xmax(pg_current_snapshot()) from publisher_cursor \
               where name = 'publisher')"
    ))
    .fetch_one(conn)
    .await?;
    if broken { Err(RebaseError::NotPreserved) } else { Ok(()) }
}

/// Inserts again what is not published, in the order of position. `$1` P, `$2` C, `$3` how far C was handed over, `$4`
/// the floor, all as restored; `$5` the snapshot of now, for the upper half of a tuple's xmin.
///
/// Whether a row is visible in the restored P means something only for a restored row. One written here since then has
/// the id of its own transaction, or of a parent of it, and so has every row of that transaction; it was never
/// published. A row that only looks like it is published twice, which is allowed; losing one is not.
const INSERT_AGAIN: &str = concat!(
    "with ",
    loaded!(),
    ", known as ( \
       select o.*, xid <= (pg_snapshot_xmax($5::text::pg_snapshot)::text::numeric - mod( \
           4294967296 + mod(pg_snapshot_xmax($5::text::pg_snapshot)::text::numeric, 4294967296) \
           - o.xmin::text::numeric, 4294967296))::text::xid8 \
         and not exists (select from loaded where loader = o.xmin::text) as written_here \
       from event_outbox o) \
     insert into event_outbox (id, aggregate_type, aggregate_id, event_key, event_type, tenant_id, user_id, payload, \
       schema_version, traceparent, occurred_at, idempotency_key) \
     select id, aggregate_type, aggregate_id, event_key, event_type, tenant_id, user_id, payload, \
       schema_version, traceparent, occurred_at, idempotency_key from ( \
         select * from known where written_here or not (position <= $4 \
           or pg_visible_in_snapshot(xid, $1::text::pg_snapshot) \
           or coalesce(position <= $3 and pg_visible_in_snapshot(xid, $2::text::pg_snapshot), false)) \
         order by written_here, position offset 0) again"
);

async fn insert_again(conn: &mut PgConnection, restored: &Restored) -> Result<(u64, i64), RebaseError> {
    // Taken before anything is written: whatever gets an id from now on is not visible in it.
    let (snapshot, unassigned, floor): (String, bool, i64) = sqlx::query_as(
        "select pg_current_snapshot()::text, pg_current_xact_id_if_assigned() is null, \
         (select coalesce(max(position), 0) from event_outbox)",
    )
    .fetch_one(&mut *conn)
    .await?;
    if !unassigned {
        return Err(RebaseError::Assigned);
    }
    let floor = floor.max(restored.floor_position);
    // A dump restores the sequence, a load of the data alone does not.
    sqlx::query(
        "select setval(sequence, greatest($1, coalesce(pg_sequence_last_value(sequence), 1))) \
         from (select pg_get_serial_sequence('event_outbox', 'position')::regclass as sequence) s",
    )
    .bind(floor)
    .execute(&mut *conn)
    .await?;
    let inserted = sqlx::query(INSERT_AGAIN)
        .bind(&restored.published)
        .bind(&restored.reading)
        .bind(restored.last_position)
        .bind(restored.floor_position)
        .bind(&snapshot)
        .execute(&mut *conn)
        .await?
        .rows_affected();
    sqlx::query(
        "update publisher_cursor set published = $1::text::pg_snapshot, reading = null, last_position = 0, \
         floor_position = $2 where name = 'publisher'",
    )
    .bind(snapshot)
    .bind(floor)
    .execute(conn)
    .await?;
    Ok((inserted, floor))
}
