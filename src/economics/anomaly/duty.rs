//! Owns the judgement whether a machine ought to be hashing, so that what is off on purpose is no anomaly.
//! Promises that curtailed, maintained and starting machines are left alone, and those not in service at all.
//! May be called by every module; the time now is an argument.

use super::super::MinerStatus;
use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};

/// How long a machine counts as starting: until a mean over one hour holds nothing from before the start.
pub const START_UP: TimeDelta = TimeDelta::hours(1);

/// What a machine is there for at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Duty {
    /// Ought to hash: what it does is judged. A machine reported offline without a reason is here, too.
    Hashing,
    /// Switched off for the price of power.
    Curtailed,
    /// Off for repair.
    Maintenance,
    /// Switched on less than an hour ago.
    Starting,
    /// Not yet started, or gone for good.
    OutOfService,
}

impl Duty {
    /// Duty of a machine with this status. `curtailed` is whether a curtailment holds it off now; `on_since` is when it
    /// was last switched on (status change or end of a curtailment), `None` if that is long ago or unknown.
    #[must_use]
    pub fn of(
        status: MinerStatus,
        curtailed: bool,
        on_since: Option<DateTime<Utc>>,
        now: DateTime<Utc>,
    ) -> Self {
        match status {
            MinerStatus::Pending | MinerStatus::Decommissioned => Self::OutOfService,
            MinerStatus::Maintenance => Self::Maintenance,
            MinerStatus::Online | MinerStatus::Offline if curtailed => Self::Curtailed,
            MinerStatus::Online | MinerStatus::Offline => match on_since {
                Some(since) if now.signed_duration_since(since) < START_UP => Self::Starting,
                _ => Self::Hashing,
            },
        }
    }

    /// Whether observations of the machine count.
    #[must_use]
    pub const fn is_judged(self) -> bool {
        matches!(self, Self::Hashing)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: DateTime<Utc> = DateTime::UNIX_EPOCH;

    #[test]
    fn only_machines_that_ought_to_hash_are_judged() {
        let duty = |status, curtailed| Duty::of(status, curtailed, None, NOW);
        assert_eq!(duty(MinerStatus::Online, false), Duty::Hashing);
        assert_eq!(duty(MinerStatus::Offline, false), Duty::Hashing);
        assert_eq!(duty(MinerStatus::Online, true), Duty::Curtailed);
        assert_eq!(duty(MinerStatus::Maintenance, true), Duty::Maintenance);
        assert_eq!(duty(MinerStatus::Pending, false), Duty::OutOfService);
        assert_eq!(duty(MinerStatus::Decommissioned, false), Duty::OutOfService);
        let all = [Duty::Hashing, Duty::Curtailed, Duty::Maintenance, Duty::Starting, Duty::OutOfService];
        assert_eq!(all.map(Duty::is_judged), [true, false, false, false, false]);
    }

    #[test]
    fn a_start_takes_an_hour() {
        let after =
            |minutes| Duty::of(MinerStatus::Online, false, Some(NOW - TimeDelta::minutes(minutes)), NOW);
        assert_eq!(after(0), Duty::Starting);
        assert_eq!(after(59), Duty::Starting);
        assert_eq!(after(60), Duty::Hashing);
        assert_eq!(after(-5), Duty::Starting, "a clock that runs ahead");
        let curtailed = Duty::of(MinerStatus::Online, true, Some(NOW), NOW);
        assert_eq!(curtailed, Duty::Curtailed);
    }
}
