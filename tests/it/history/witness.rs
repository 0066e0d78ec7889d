//! A witness in the database: triggers of the test that write down, in the transaction of each change, who moved an
//! offset, admitted an event, settled one or recomputed a portfolio. What was rolled back leaves nothing here either.
//!
//! Who it was is told by the login: each process of a chaos run connects as one of its own.

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::Value;
use sqlx::postgres::{PgConnection, PgPool};
use uuid::Uuid;

#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Witness {
    pub(crate) moved: Vec<Moved>,
    pub(crate) admitted: Vec<Admitted>,
    pub(crate) settled: Vec<Settled>,
    pub(crate) recomputed: Vec<Recomputed>,
}

/// An update of consumer_offset. Per partition they are in the order of their commits, which the row's lock makes.
#[derive(Debug, Clone, Serialize, sqlx::FromRow)]
pub(crate) struct Moved {
    pub(crate) xid: String,
    pub(crate) login: String,
    pub(crate) consumer_name: String,
    pub(crate) topic: String,
    pub(crate) partition: i32,
    pub(crate) old_offset: i64,
    pub(crate) new_offset: i64,
    pub(crate) old_epoch: i64,
    pub(crate) new_epoch: i64,
}

/// A row that came into the inbox, in the order of the batch.
#[derive(Debug, Clone, Serialize, sqlx::FromRow)]
pub(crate) struct Admitted {
    pub(crate) xid: String,
    pub(crate) login: String,
    pub(crate) consumer_name: String,
    pub(crate) event_id: Uuid,
    pub(crate) outcome: String,
}

/// An outcome that changed later.
#[derive(Debug, Clone, Serialize, sqlx::FromRow)]
pub(crate) struct Settled {
    pub(crate) xid: String,
    pub(crate) consumer_name: String,
    pub(crate) event_id: Uuid,
    pub(crate) old_outcome: String,
    pub(crate) new_outcome: String,
}

/// A version of a portfolio.
#[derive(Debug, Clone, Serialize, sqlx::FromRow)]
pub(crate) struct Recomputed {
    /// When it was written, after what it follows from was read.
    pub(crate) at: DateTime<Utc>,
    pub(crate) xid: String,
    pub(crate) login: String,
    pub(crate) tenant_id: String,
    pub(crate) user_id: String,
    pub(crate) version: i64,
    pub(crate) event_id: Uuid,
    pub(crate) snapshot_id: Option<Uuid>,
    pub(crate) by_model: Value,
}

impl Witness {
    /// Puts the triggers in place, before the first role starts.
    pub(crate) async fn install(admin: &PgPool) -> Result<(), sqlx::Error> {
        sqlx::raw_sql(include_str!("witness.sql")).execute(admin).await.map(drop)
    }

    pub(crate) async fn read(admin: &mut PgConnection) -> Result<Self, sqlx::Error> {
        Ok(Self {
            moved: sqlx::query_as("select * from witness.moved order by seq").fetch_all(&mut *admin).await?,
            admitted: sqlx::query_as("select * from witness.admitted order by seq")
                .fetch_all(&mut *admin)
                .await?,
            settled: sqlx::query_as("select * from witness.settled order by seq")
                .fetch_all(&mut *admin)
                .await?,
            recomputed: sqlx::query_as("select * from witness.recomputed order by seq")
                .fetch_all(&mut *admin)
                .await?,
        })
    }
}
