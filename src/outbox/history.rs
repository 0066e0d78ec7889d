//! Which server, and which of its histories.
//!
//! A standby that is promoted, and a server restored to a point in time, go on under the same system identifier without
//! what they had not received, and give the transaction ids of the lost to new transactions. Each begins a timeline.
//!
//! The cursor in the database has gone back with the rows, and means what it meant: whatever was finished when a snapshot
//! was taken stands before it in the write-ahead log, so who has the snapshot has that too, and gives none of the ids below
//! its upper bound again. A snapshot that a process remembers may be ahead of its server: it says of new rows that they are
//! published.

use std::fmt;

use sqlx::PgConnection;

/// A timeline of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, sqlx::FromRow)]
pub struct History {
    pub system_identifier: i64,
    /// `None`: a standby, which has none of its own.
    pub timeline: Option<i32>,
}

/// A session is not of the server that the lead is held on.
#[derive(Debug, thiserror::Error)]
pub enum HistoryError {
    #[error(
        "the address leads to another server than the one on which this publisher leads ({leads}): {actual}. Nothing is \
         read there"
    )]
    Other { leads: History, actual: History },
    #[error(transparent)]
    Sql(#[from] sqlx::Error),
}

impl History {
    /// The one that a session is in.
    pub async fn of(session: &mut PgConnection) -> Result<Self, sqlx::Error> {
        sqlx::query_as("select system_identifier, hi_timeline() as timeline from pg_control_system()")
            .fetch_one(session)
            .await
    }
}

impl fmt::Display for History {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "system {}, ", self.system_identifier)?;
        match self.timeline {
            Some(timeline) => write!(f, "timeline {timeline}"),
            None => write!(f, "a standby"),
        }
    }
}
