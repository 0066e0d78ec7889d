//! Owns scheduled work: what a job is, when it is due, who runs it, how it went.
//! Promises that a due job is run by one process of all, by the database's clock; that a run which its process does not
//! survive is begun again by another; and that a tenant for which a job fails holds up no other.
//! Called by the roles that run jobs; a room that has one implements [`Job`], and the list of them is in `role::jobs`.
//!
//! A job is a name, a schedule, a statement that lists the tenants with something to do, and what is done for one of
//! them:
//!
//! ```ignore
//! pub struct StrikeAutomation;
//!
//! #[async_trait]
//! impl Job for StrikeAutomation {
//!     fn name(&self) -> &'static str { "ops-strikes" }
//!     fn schedule(&self) -> Schedule { Schedule::Every(Duration::from_secs(300)) }
//!     fn tenants(&self) -> &'static str { "select distinct tenant_id from ops_strike where armed" }
//!     async fn run(&self, tx: &mut TenantTx, run: &Run) -> Result<Progress, JobError> {
//!         let again = strike::advance(tx, run, 100).await? == 100;
//!         Ok(if again { Progress::More } else { Progress::Done })
//!     }
//! }
//! ```
//!
//! and one line in the list. The transaction is committed after each call, and the publisher is woken. Work must bear to
//! be done again: a run that was cut off begins anew with every tenant. What is asked across tenants is asked with the
//! owner's eyes in a transaction that cannot write, see [`crate::db::Db::across_tenants`]; what is done is done with the
//! rights of the API in one tenant.
//!
//! | file | content |
//! |---|---|
//! | `schedule` | when a job is due |
//! | `ledger` | the tables: claims, leases, failures |
//! | `runner` | the loop: due or not, whose, how it ended |
//! | `visit` | one run: the lease, the tenants |

use async_trait::async_trait;

use crate::db::TenantTx;

mod ledger;
mod runner;
mod schedule;
mod visit;

pub use ledger::{Entry, entry};
pub use runner::{Ended, Runner, Settings, Step};
pub use schedule::Schedule;

/// Why a job failed for a tenant.
pub type JobError = Box<dyn std::error::Error + Send + Sync>;

/// Work that is done at its time, tenant by tenant.
#[async_trait]
pub trait Job: Send + Sync {
    /// Of lower-case letters, digits and '-'; for good, since the table knows the job by it.
    fn name(&self) -> &'static str;

    fn schedule(&self) -> Schedule;

    /// One query without parameters whose only column is the tenants that may have something to do, each once.
    fn tenants(&self) -> &'static str;

    /// Does what is due in this tenant, or a part of it that fits in one transaction.
    async fn run(&self, tx: &mut TenantTx, run: &Run) -> Result<Progress, JobError>;
}

/// One run of a job.
#[derive(Debug, Clone)]
pub struct Run {
    /// What the audit log has as the request.
    pub id: String,
}

/// Whether a tenant's work is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// Call again, in another transaction, when the other tenants have had their turn.
    More,
    Done,
}
