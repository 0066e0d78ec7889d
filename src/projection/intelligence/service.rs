//! What a miner is there for at a moment, by what is on record.

use chrono::{DateTime, Utc};

use crate::economics::MinerStatus;
use crate::economics::anomaly::Duty;
use crate::read_model::curtailed::Off;
use crate::read_model::portfolio_write;

/// The status of a miner, when it was switched on, and when plans and the strike automation hold it off.
pub(super) struct Service {
    status: MinerStatus,
    /// `None`: long ago, or unknown.
    on_since: Option<DateTime<Utc>>,
    off: Vec<Off>,
}

impl Service {
    /// From the columns of a miner.
    pub(super) fn of(
        status: &str,
        changed_at: Option<DateTime<Utc>>,
        off: Vec<Off>,
    ) -> Result<Self, sqlx::Error> {
        let status = portfolio_write::status(status)?;
        Ok(Self { status, on_since: changed_at.filter(|_| status == MinerStatus::Online), off })
    }

    /// Whether it ought to hash at this moment.
    pub(super) fn duty(&self, at: DateTime<Utc>) -> Duty {
        let curtailed = self.off.iter().any(|off| (off.from..off.to).contains(&at));
        let released = self.off.iter().map(|off| off.to).filter(|to| *to <= at).max();
        Duty::of(self.status, curtailed, self.on_since.max(released), at)
    }
}
