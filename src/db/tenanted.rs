//! A transaction with the rows of one tenant in view, whoever began it: the API for a request, the pipeline for a batch.
//!
//! What both do alike, appending an event and executing a trade, takes this.

use chrono::{DateTime, Utc};
use sqlx::PgConnection;

use super::{TenantTx, WorkerTx};
use crate::identifier::TenantId;

/// One tenant's part of a transaction.
pub trait Tenanted: Send {
    /// The tenant whose rows are in view.
    fn tenant(&self) -> &TenantId;

    /// The time, as [`super::Db::now`].
    fn now(&self) -> DateTime<Utc>;

    /// The connection, for a statement.
    fn conn(&mut self) -> &mut PgConnection;

    /// An event was appended.
    fn appended(&mut self);
}

impl Tenanted for TenantTx {
    fn tenant(&self) -> &TenantId {
        TenantTx::tenant(self)
    }

    fn now(&self) -> DateTime<Utc> {
        TenantTx::now(self)
    }

    fn conn(&mut self) -> &mut PgConnection {
        TenantTx::conn(self)
    }

    /// Whoever runs commands tells the publisher after each of them.
    fn appended(&mut self) {}
}

/// A transaction of the pipeline while the rows of one tenant are in view.
#[derive(Debug)]
pub struct WorkerTenant<'a> {
    pub(super) tx: &'a mut WorkerTx,
    pub(super) tenant: &'a TenantId,
}

impl Tenanted for WorkerTenant<'_> {
    fn tenant(&self) -> &TenantId {
        self.tenant
    }

    fn now(&self) -> DateTime<Utc> {
        self.tx.clock.now()
    }

    fn conn(&mut self) -> &mut PgConnection {
        &mut self.tx.tx
    }

    fn appended(&mut self) {
        self.tx.appended = true;
    }
}
