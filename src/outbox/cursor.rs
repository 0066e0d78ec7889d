//! The publisher's cursor: what is published, and who may say so.

use std::time::Duration;

use sqlx::{Connection, PgConnection};
use tokio::sync::{Mutex, MutexGuard};
use tokio::time::Instant;
use tracing::warn;

use super::history::{History, HistoryError};
use crate::db::{Db, WorkerTx};

/// The advisory lock of the leading publisher: "hi" and "pub" in ASCII.
pub(super) const LEADER_LOCK: (i32, i32) = (0x6869, 0x0070_7562);

/// The name of a leader that lets Debezium publish.
pub const OBSERVER: &str = "hashinsight observer";

/// SQLSTATE of a lock that was not to be had within lock_timeout.
const LOCK_NOT_AVAILABLE: &str = "55P03";

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
/// leader who lost it. What the leader writes goes through that session: without the lock there is
/// no way to write.
///
/// An epoch counts on one timeline: a standby that is promoted may not have heard of it, and give it to another.
#[derive(Debug)]
pub struct Leadership {
    session: Mutex<PgConnection>,
    epoch: i64,
    history: History,
    db: Db,
}

/// The database behind the URL is not the one the cursor was written in.
#[derive(Debug, thiserror::Error)]
pub enum LeadershipError {
    /// A restored dump, or another cluster: transaction ids mean something else here.
    #[error(
        "this database was restored from a dump or copied to another cluster (its cursor names system \
         {stored}, this is {actual}): new events would silently never be published. Publishing is refused until \
         `hashinsight publish --rebase` has repaired the cursor (see \"Restoring a backup\" in the README)"
    )]
    OtherCluster { stored: i64, actual: i64 },
    /// A statement failed.
    #[error(transparent)]
    Sql(#[from] sqlx::Error),
}

/// What a leader begins with.
#[derive(sqlx::FromRow)]
struct Begun {
    epoch: i64,
    published: String,
    reading: Option<String>,
    last_position: i64,
    floor_position: i64,
    system_identifier: i64,
    timeline: i32,
    /// Of whoever led before; `None` before the first leader.
    timeline_before: Option<i32>,
}

impl Leadership {
    /// Takes the lead if nobody has it.
    pub async fn acquire(db: &Db) -> Result<Option<(Self, Cursor)>, LeadershipError> {
        let mut session = db.worker_session(&[]).await?;
        let locked: bool = sqlx::query_scalar("select pg_try_advisory_lock($1, $2)")
            .bind(LEADER_LOCK.0)
            .bind(LEADER_LOCK.1)
            .fetch_one(&mut session)
            .await?;
        if !locked {
            session.close().await?;
            return Ok(None);
        }
        Self::begin(db, session).await.map(Some)
    }

    /// Takes the lead from whoever has it: the epoch fences him, and he lets go once what he has in flight has ended.
    /// `None`: not within `patience`. We stand first in the queue for the lock, so that nobody comes between.
    pub async fn take_over(db: &Db, patience: Duration) -> Result<Option<(Self, Cursor)>, LeadershipError> {
        let until = Instant::now() + patience;
        let mut session = db.worker_session(&[]).await?;
        let mut fenced: Option<i64> = None;
        while Instant::now() < until {
            // Another epoch than ours is one that has begun since. Ours stays as it is: a standby that sees neither it
            // nor the beat move ends a leader that is frozen.
            let epoch = sqlx::query_scalar(
                "update publisher_cursor set epoch = epoch + 1 where name = 'publisher' \
                 and epoch is distinct from $1 returning epoch",
            )
            .bind(fenced)
            .fetch_optional(&mut session)
            .await?;
            fenced = epoch.or(fenced);
            // In steps of the session's lock_timeout.
            let locked = sqlx::query("select pg_advisory_lock($1, $2)")
                .bind(LEADER_LOCK.0)
                .bind(LEADER_LOCK.1)
                .execute(&mut session)
                .await;
            match locked {
                Ok(_) => return Self::begin(db, session).await.map(Some),
                Err(sqlx::Error::Database(held)) if held.code().as_deref() == Some(LOCK_NOT_AVAILABLE) => {}
                Err(error) => return Err(error.into()),
            }
        }
        session.close().await?;
        Ok(None)
    }

    /// Begins to lead, with the lock in hand.
    async fn begin(db: &Db, mut session: PgConnection) -> Result<(Self, Cursor), LeadershipError> {
        let begun: Option<Begun> = sqlx::query_as(
            "update publisher_cursor c set epoch = c.epoch + 1, leader_pid = pg_backend_pid(), timeline = hi_timeline() \
             from (select timeline from publisher_cursor where name = 'publisher') before where c.name = 'publisher' \
             and c.system_identifier = (select system_identifier from pg_control_system()) \
             returning c.epoch, c.published::text, c.reading::text, c.last_position, c.floor_position, \
               c.system_identifier, c.timeline, before.timeline as timeline_before",
        )
        .fetch_optional(&mut session)
        .await?;
        let Some(begun) = begun else {
            let (stored, actual) = sqlx::query_as(
                "select c.system_identifier, s.system_identifier from publisher_cursor c, pg_control_system() s \
                 where c.name = 'publisher'",
            )
            .fetch_one(&mut session)
            .await?;
            give_back(session).await?;
            return Err(LeadershipError::OtherCluster { stored, actual });
        };
        // From here on a commit does not wait for the disk, and writers of events do not wait behind it: what a crash of
        // the server takes back is handed over again. The epoch is durable, or two leaders could have the same one.
        sqlx::query("select set_config('synchronous_commit', 'off', false)").execute(&mut session).await?;
        let history = History { system_identifier: begun.system_identifier, timeline: Some(begun.timeline) };
        if let Some(before) = begun.timeline_before.filter(|before| *before != begun.timeline) {
            warn!(
                from = before,
                to = begun.timeline,
                "the timeline is another: the server was promoted, or restored to a point in time, since somebody led. \
                 Publishing goes on from the cursor of this one. Events that were committed on the old one and are lost \
                 may be in the log all the same (see \"Failover\" in the README)"
            );
        }
        let cursor = Cursor {
            published: begun.published,
            reading: begun.reading,
            last_position: begun.last_position,
            floor_position: begun.floor_position,
        };
        let leadership = Self { session: Mutex::new(session), epoch: begun.epoch, history, db: db.clone() };
        Ok((leadership, cursor))
    }

    /// Refuses a session that is not of the server, or not of the timeline, that the lead is held on: what is read there
    /// and the cursor that is stored here would not belong together.
    pub async fn is_of(&self, session: &mut PgConnection) -> Result<(), HistoryError> {
        let actual = History::of(session).await?;
        if actual == self.history { Ok(()) } else { Err(HistoryError::Other { leads: self.history, actual }) }
    }

    /// Shows that the leader lives. `false`: another leads; an error: the session, and with it the lock, is gone.
    pub async fn beat(&self) -> Result<bool, sqlx::Error> {
        let beaten = sqlx::query_scalar(
            "update publisher_cursor set beat = beat + 1 where name = 'publisher' and epoch = $1 \
             returning clock_timestamp()",
        )
        .bind(self.epoch)
        .fetch_optional(&mut *self.session().await)
        .await?;
        if let Some(shown) = beaten {
            self.db.heard(shown);
        }
        Ok(beaten.is_some())
    }

    /// Shows under another name in `pg_stat_activity`, which begins with that of all our connections.
    pub async fn announce(&self, name: &str) -> Result<(), sqlx::Error> {
        sqlx::query("select set_config('application_name', $1, false)")
            .bind(name)
            .execute(&mut *self.session().await)
            .await
            .map(drop)
    }

    /// Stores the cursor. `false`: another leads, nothing was stored.
    pub async fn store(&self, cursor: &Cursor) -> Result<bool, sqlx::Error> {
        self.store_on(&mut *self.session().await, cursor).await
    }

    /// The cursor as it is stored.
    pub async fn cursor(&self) -> Result<Cursor, sqlx::Error> {
        let (published, reading, last_position, floor_position) = sqlx::query_as(
            "select published::text, reading::text, last_position, floor_position from publisher_cursor \
             where name = 'publisher'",
        )
        .fetch_one(&mut *self.session().await)
        .await?;
        Ok(Cursor { published, reading, last_position, floor_position })
    }

    /// Stores the cursor in the caller's transaction. `false`: another leads, nothing may be committed.
    pub async fn store_in(&self, tx: &mut WorkerTx, cursor: &Cursor) -> Result<bool, sqlx::Error> {
        self.store_on(tx.conn(), cursor).await
    }

    /// The caller's connection may be of a server that was promoted since: there another may have our epoch, and the
    /// ids of the snapshots may be those of other transactions.
    async fn store_on(&self, conn: &mut PgConnection, cursor: &Cursor) -> Result<bool, sqlx::Error> {
        let stored = sqlx::query(
            "update publisher_cursor set published = $3::text::pg_snapshot, reading = $4::text::pg_snapshot, \
             last_position = $5 where name = 'publisher' and epoch = $1 and timeline = $2 and hi_timeline() = $2",
        )
        .bind(self.epoch)
        .bind(self.history.timeline)
        .bind(&cursor.published)
        .bind(&cursor.reading)
        .bind(cursor.last_position)
        .execute(conn)
        .await?
        .rows_affected();
        Ok(stored == 1)
    }

    /// The session that holds the lock, for what only the leader writes.
    pub async fn session(&self) -> MutexGuard<'_, PgConnection> {
        self.session.lock().await
    }

    /// Gives the lead back.
    pub async fn release(self) -> Result<(), sqlx::Error> {
        give_back(self.session.into_inner()).await
    }
}

/// Unlocks before it closes: a closed session holds its locks until the server has noticed.
async fn give_back(mut session: PgConnection) -> Result<(), sqlx::Error> {
    sqlx::query("select pg_advisory_unlock($1, $2)")
        .bind(LEADER_LOCK.0)
        .bind(LEADER_LOCK.1)
        .execute(&mut session)
        .await?;
    session.close().await
}
