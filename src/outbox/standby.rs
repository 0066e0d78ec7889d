//! The wait for the lead, and its takeover from a leader that stands still.
//!
//! A frozen process keeps its session, and with it the lock. So the leader counts up each second, and whoever looks
//! often enough without seeing it move ends the leader's backend. Looks are counted, not time: while the database
//! stands still nobody can look, and nobody who lives is ended.

use sqlx::PgConnection;

use super::cursor::{Cursor, LEADER_LOCK, Leadership, LeadershipError};
use crate::db::{APPLICATION_NAME, Db};

/// A publisher that waits for the lead; to be asked every half second.
#[derive(Debug, Default)]
pub struct Standby {
    session: Option<PgConnection>,
    seen: Option<(i64, i64)>,
    unchanged: u32,
}

/// Looks in a row that see the same beat before the leader counts as frozen: three seconds.
const PATIENCE: u32 = 6;

impl Standby {
    /// The lead, if it is free or was freed by ending a leader that stands still.
    pub async fn look(&mut self, db: &Db) -> Result<Option<(Leadership, Cursor)>, LeadershipError> {
        let looked = self.try_look(db).await;
        if looked.is_err() {
            self.session = None;
        }
        looked
    }

    async fn try_look(&mut self, db: &Db) -> Result<Option<(Leadership, Cursor)>, LeadershipError> {
        let session = match &mut self.session {
            Some(session) => session,
            none => none.insert(db.session().await?),
        };
        let (held, epoch, beat): (bool, i64, i64) = sqlx::query_as(
            "select exists (select from pg_locks where locktype = 'advisory' and granted \
               and database = (select oid from pg_database where datname = current_database()) \
               and classid = $1::int::oid and objid = $2::int::oid and objsubid = 2), epoch, beat \
             from publisher_cursor where name = 'publisher'",
        )
        .bind(LEADER_LOCK.0)
        .bind(LEADER_LOCK.1)
        .fetch_one(&mut *session)
        .await?;
        if !held {
            *self = Self::default();
            return Leadership::acquire(db).await;
        }
        let now = Some((epoch, beat));
        self.unchanged = if self.seen == now { self.unchanged + 1 } else { 0 };
        self.seen = now;
        if self.unchanged < PATIENCE {
            return Ok(None);
        }
        tracing::warn!("the leading publisher stands still: its session is ended");
        end_leader(session).await?;
        *self = Self::default();
        Leadership::acquire(db).await
    }
}

/// Ends the session that holds the lead, and transactions of ours that a frozen process left open on the cursor.
async fn end_leader(session: &mut PgConnection) -> Result<(), sqlx::Error> {
    sqlx::query(
        "select pg_terminate_backend(a.pid, 1000) from pg_stat_activity a \
         where a.datname = current_database() and a.application_name like $3 || '%' and a.pid <> pg_backend_pid() \
         and exists (select from pg_locks l where l.pid = a.pid and l.granted \
           and l.database = (select oid from pg_database where datname = current_database()) \
           and (l.locktype = 'advisory' and l.classid = $1::int::oid and l.objid = $2::int::oid and l.objsubid = 2 \
             or l.locktype = 'relation' and l.relation = 'publisher_cursor'::regclass \
               and l.mode = 'RowExclusiveLock' and a.state like 'idle in transaction%'))",
    )
    .bind(LEADER_LOCK.0)
    .bind(LEADER_LOCK.1)
    .bind(APPLICATION_NAME)
    .execute(session)
    .await
    .map(drop)
}
