//! Owns the running of a command: one transaction, committed before the answer, and the bell after the commit.
//! Promises that a command which met a deadlock or a serialisation failure is tried once more, from its start.
//! Called by the handlers that write.

use tracing::warn;

use super::Api;
use super::problem::Problem;
use crate::db::TenantTx;
use crate::domain::CommandError;
use crate::doorbell::Bell;
use crate::identifier::TenantId;

/// SQLSTATEs that say "this transaction lost to another: repeat it".
const REPEAT: [&str; 2] = ["40001", "40P01"];

impl Api {
    /// Runs a command in a transaction of the tenant and commits it. The command gives the transaction back with its
    /// result; dropping it rolls back.
    pub(super) async fn command<T, F, R>(&self, tenant: &TenantId, command: F) -> Result<T, Problem>
    where
        F: Fn(TenantTx) -> R,
        R: Future<Output = Result<(TenantTx, T), CommandError>>,
    {
        let done = match self.attempt(tenant, &command).await {
            Err(CommandError::Sql(error)) if lost(&error) => {
                warn!(%error, "a command lost to another transaction; trying it again");
                self.attempt(tenant, &command).await?
            }
            done => done?,
        };
        self.bells.ring(Bell::Outbox);
        Ok(done)
    }

    async fn attempt<T, F, R>(&self, tenant: &TenantId, command: &F) -> Result<T, CommandError>
    where
        F: Fn(TenantTx) -> R,
        R: Future<Output = Result<(TenantTx, T), CommandError>>,
    {
        let tx = self.db.tenant(tenant).await?;
        let (tx, done) = command(tx).await?;
        tx.commit().await?;
        Ok(done)
    }
}

fn lost(error: &sqlx::Error) -> bool {
    error.as_database_error().and_then(|e| e.code()).is_some_and(|code| REPEAT.contains(&code.as_ref()))
}
