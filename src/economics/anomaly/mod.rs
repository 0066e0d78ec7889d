//! Owns the statistics that tell a failing miner from a healthy one, and the judgement of when to say so.
//! Promises pure, total functions: a score is finite or `None`, never NaN; thresholds against a rating are exact decimals.
//! May be called by every module; needs nothing but its arguments.
//!
//! | file | content |
//! |---|---|
//! | [`rating`] | hashrate of an hour against the rating: low, medium, high, zero |
//! | [`robust`] | median, MAD and the robust z score |
//! | [`peers`] | robust z among machines of one site and model |
//! | [`ewma`] | a machine against its own past, one step ahead |
//! | [`power`] | power against the nameplate for more than half an hour |
//! | [`heat`] | temperature limits of air-cooled machines |
//! | [`silence`] | telemetry that no longer comes |
//! | [`duty`] | whether a machine ought to be hashing at all |
//! | [`hysteresis`] | from single observations to opened and resolved anomalies |
//! | [`loss`] | what an anomaly costs, $/day |
//! | [`severity`] | low, medium, high, critical, from that |
//! | [`detector`] | all checks of one machine, window by window |
//!
//! The path of one reading: a check of [`AnomalyKind`] says bad or good, [`duty`] says whether it counts, and the
//! [`hysteresis::Watch`] of that miner and kind says whether an anomaly opens or resolves; [`Detector`] does that for
//! every kind that readings tell. Scores and moving averages
//! are `f64`: they are estimates with a few significant digits, and square roots have no exact decimal.

pub mod detector;
pub mod duty;
pub mod ewma;
pub mod heat;
pub mod hysteresis;
pub mod loss;
pub mod peers;
pub mod power;
#[cfg(test)]
mod properties;
pub mod rating;
pub mod robust;
pub mod severity;
pub mod silence;

pub use detector::{Detector, Finding, Nameplate, Reading};
pub use duty::Duty;
pub use ewma::Ewma;
pub use heat::HeatLevel;
pub use hysteresis::{Change, Observation, Watch};
pub use loss::lost_usd_day;
pub use power::PowerBand;
pub use rating::RatingClass;
pub use severity::Severity;

use serde::{Deserialize, Serialize};

/// Which check an anomaly comes from; a miner has at most one open anomaly of each kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AnomalyKind {
    /// Hashrate below the rating ([`rating`]).
    Hashrate,
    /// Unlike the machines of its site and model ([`peers`]).
    Peers,
    /// Unlike its own recent past ([`ewma`]).
    Drift,
    /// Power outside the band around the nameplate ([`power`]).
    Power,
    /// Too hot ([`heat`]).
    Heat,
    /// No telemetry ([`silence`]).
    Offline,
}

impl AnomalyKind {
    /// Every kind, in the order of the checks.
    pub const ALL: [Self; 6] =
        [Self::Hashrate, Self::Peers, Self::Drift, Self::Power, Self::Heat, Self::Offline];

    /// The name used in JSON, SQL and events.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Hashrate => "hashrate",
            Self::Peers => "peers",
            Self::Drift => "drift",
            Self::Power => "power",
            Self::Heat => "heat",
            Self::Offline => "offline",
        }
    }

    /// The kind of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_have_one_name() {
        for kind in AnomalyKind::ALL {
            assert_eq!(serde_json::to_value(kind).expect("a string"), kind.as_str());
            assert_eq!(AnomalyKind::named(kind.as_str()), Some(kind));
        }
        assert_eq!(AnomalyKind::named("Hashrate"), None);
    }
}
