//! Owns one line of a fleet: a number of equal miners, their terms and their status.
//! Promises status names that are the same in JSON, in SQL and in events.
//! May be called by every module.

use super::EconomicsError;
use super::exact;
use rust_decimal::Decimal;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// Where a miner stands in its life. Only `online` miners earn; all but `decommissioned` count as owned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MinerStatus {
    /// Hashing.
    Online,
    /// Off without a stated reason.
    Offline,
    /// Off for repair.
    Maintenance,
    /// Bought, not yet started.
    Pending,
    /// Gone for good: counts nowhere.
    Decommissioned,
}

impl MinerStatus {
    /// Every status, in the order of the specification.
    pub const ALL: [Self; 5] =
        [Self::Online, Self::Offline, Self::Maintenance, Self::Pending, Self::Decommissioned];

    /// The name used in JSON, SQL and events.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Online => "online",
            Self::Offline => "offline",
            Self::Maintenance => "maintenance",
            Self::Pending => "pending",
            Self::Decommissioned => "decommissioned",
        }
    }
}

impl fmt::Display for MinerStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The text names no [`MinerStatus`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("status must be online, offline, maintenance, pending or decommissioned")]
pub struct UnknownStatus;

impl FromStr for MinerStatus {
    type Err = UnknownStatus;

    fn from_str(text: &str) -> Result<Self, UnknownStatus> {
        Self::ALL.into_iter().find(|status| status.as_str() == text).ok_or(UnknownStatus)
    }
}

/// `quantity` equal miners of one model, owner, place and status.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MinerLine {
    /// Name of the model, catalogue or custom.
    pub model: String,
    /// Rated hashrate of one miner in TH/s, >= 0.
    pub hashrate_ths: Decimal,
    /// Nameplate power of one miner in W, >= 0.
    pub power_w: Decimal,
    /// How many of them.
    pub quantity: u64,
    /// Purchase price of one miner in USD, >= 0; `None` when unknown.
    pub purchase_price_usd: Option<Decimal>,
    /// Tariff in $/kWh; `None` takes the default of the assumptions. Any sign: energy can have a negative price.
    pub tariff_usd_kwh: Option<Decimal>,
    /// Status of all of them.
    pub status: MinerStatus,
    /// Site; `None` when unassigned.
    pub location: Option<String>,
}

impl MinerLine {
    /// Checks the figures against the ranges given at their definition.
    ///
    /// # Errors
    /// [`EconomicsError::OutOfRange`] naming the first field that is outside.
    pub fn check(&self) -> Result<(), EconomicsError> {
        exact::not_negative(self.hashrate_ths, "hashrate_ths")?;
        exact::not_negative(self.power_w, "power_w")?;
        exact::not_negative(self.purchase_price_usd.unwrap_or_default(), "purchase_price_usd")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_names_agree_everywhere() {
        for status in MinerStatus::ALL {
            assert_eq!(status.as_str().parse(), Ok(status));
            assert_eq!(status.to_string(), status.as_str());
            let json = serde_json::to_value(status).expect("a string");
            assert_eq!(json, status.as_str());
        }
        for unknown in ["Online", "", "retired"] {
            assert_eq!(unknown.parse::<MinerStatus>(), Err(UnknownStatus));
        }
    }
}
