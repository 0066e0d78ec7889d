//! The publisher's cursor: who leads, and what is published.

use sqlx::{Connection, PgConnection};

use crate::db::{Db, WorkerTx};

/// The advisory lock of the leading publisher: "hi" and "pub" in ASCII.
const LEADER_LOCK: (i32, i32) = (0x6869, 0x0070_7562);

/// The cursor as it is stored. Snapshots are kept in their text form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cursor {
    /// Everything visible in it is in the log.
    pub published: String,
    /// A window that was begun and is finished before another is opened.
    pub reading: Option<String>,
    /// How far that window was handed over.
    pub last_position: i64,
    /// Rows at or below are never read.
    pub floor_position: i64,
}

/// The right to publish: an advisory lock of a session of its own, and an epoch that fences a
/// leader who lost it.
#[derive(Debug)]
pub struct Leadership {
    session: PgConnection,
    epoch: i64,
}

/// The database behind the URL is not the one the cursor was written in.
#[derive(Debug, thiserror::Error)]
pub enum LeadershipError {
    /// A restored dump, or another cluster: transaction ids mean something else here.
    #[error(
        "this database was restored from a dump or copied to another cluster (its cursor names system \
         {stored}, this is {actual}): new events would silently never be published. Publishing is refused until the \
         cursor has been rebased"
    )]
    OtherCluster { stored: i64, actual: i64 },
    /// A statement failed.
    #[error(transparent)]
    Sql(#[from] sqlx::Error),
}

impl Leadership {
    /// Takes the lead if nobody has it.
    pub async fn acquire(db: &Db) -> Result<Option<(Self, Cursor)>, LeadershipError> {
        let mut session = db.session().await?;
        let locked: bool = sqlx::query_scalar("select pg_try_advisory_lock($1, $2)")
            .bind(LEADER_LOCK.0)
            .bind(LEADER_LOCK.1)
            .fetch_one(&mut session)
            .await?;
        if !locked {
            session.close().await?;
            return Ok(None);
        }
        let pid: i32 = sqlx::query_scalar("select pg_backend_pid()").fetch_one(&mut session).await?;
        let mut tx = db.worker().await?;
        let row: (i64, String, Option<String>, i64, i64, i64, i64) = sqlx::query_as(
            "update publisher_cursor set epoch = epoch + 1, leader_pid = $1 where name = 'publisher' \
             returning epoch, published::text, reading::text, last_position, floor_position, system_identifier, \
             (select system_identifier from pg_control_system())",
        )
        .bind(pid)
        .fetch_one(tx.conn())
        .await?;
        let (epoch, published, reading, last_position, floor_position, stored, actual) = row;
        if stored != actual {
            return Err(LeadershipError::OtherCluster { stored, actual });
        }
        tx.commit().await?;
        Ok(Some((Self { session, epoch }, Cursor { published, reading, last_position, floor_position })))
    }

    /// Fails when the session, and with it the lock, is gone.
    pub async fn confirm(&mut self) -> Result<(), sqlx::Error> {
        self.session.ping().await
    }

    /// Stores the cursor in the caller's transaction. `false`: another leads, nothing may be committed.
    pub async fn store(&self, tx: &mut WorkerTx, cursor: &Cursor) -> Result<bool, sqlx::Error> {
        let stored = sqlx::query(
            "update publisher_cursor set published = $2::text::pg_snapshot, reading = $3::text::pg_snapshot, \
             last_position = $4 where name = 'publisher' and epoch = $1",
        )
        .bind(self.epoch)
        .bind(&cursor.published)
        .bind(&cursor.reading)
        .bind(cursor.last_position)
        .execute(tx.conn())
        .await?
        .rows_affected();
        Ok(stored == 1)
    }

    /// Gives the lead back.
    pub async fn release(self) -> Result<(), sqlx::Error> {
        self.session.close().await
    }
}
