//! What a miner is there for at a moment, by what is on record.

use chrono::{DateTime, Utc};

use crate::economics::MinerStatus;
use crate::economics::anomaly::Duty;
use crate::read_model::portfolio_write;

/// The status of a miner and when it was switched on.
pub(super) struct Service {
    status: MinerStatus,
    /// `None`: long ago, or unknown.
    on_since: Option<DateTime<Utc>>,
}

impl Service {
    /// From the columns of a miner.
    pub(super) fn of(status: &str, changed_at: Option<DateTime<Utc>>) -> Result<Self, sqlx::Error> {
        let status = portfolio_write::status(status)?;
        Ok(Self { status, on_since: changed_at.filter(|_| status == MinerStatus::Online) })
    }

    /// Whether it ought to hash at this moment.
    pub(super) fn duty(&self, at: DateTime<Utc>) -> Duty {
        // Curtailments are not on record by miner: this is where they come in once they are.
        Duty::of(self.status, false, self.on_since, at)
    }
}
