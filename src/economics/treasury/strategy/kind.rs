//! Owns the names of the strategies and their order of priority.
//! Promises one name per strategy, the same in JSON, SQL and events.
//! May be called by every module; needs nothing but its arguments.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// The name of a strategy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StrategyKind {
    /// Never sells.
    Hodl,
    /// [`super::OpexCoverage`]
    OpexCoverage,
    /// [`super::Layered`]
    Layered,
    /// [`super::TrailingStop`]
    TrailingStop,
    /// [`super::StopLoss`]
    StopLoss,
    /// [`super::FixedShare`]
    FixedShare,
    /// [`super::DcaOut`]
    DcaOut,
    /// [`super::HalvingCycle`]
    HalvingCycle,
    /// [`super::VolatilityTrigger`]
    VolatilityTrigger,
    /// [`super::HashpriceCycle`]
    HashpriceCycle,
    /// [`super::NextSellLayers`]
    NextSellLayers,
}

/// What comes first when several strategies sell on the same day.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Priority {
    /// The gap in the cash for opex.
    Opex,
    /// Stops.
    Stop,
    /// Everything else.
    ProfitTaking,
}

impl StrategyKind {
    /// Every strategy, in the order of the specification.
    pub const ALL: [Self; 11] = [
        Self::Hodl,
        Self::OpexCoverage,
        Self::Layered,
        Self::TrailingStop,
        Self::StopLoss,
        Self::FixedShare,
        Self::DcaOut,
        Self::HalvingCycle,
        Self::VolatilityTrigger,
        Self::HashpriceCycle,
        Self::NextSellLayers,
    ];

    /// The name used in JSON, SQL and events.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Hodl => "hodl",
            Self::OpexCoverage => "opex_coverage",
            Self::Layered => "layered",
            Self::TrailingStop => "trailing_stop",
            Self::StopLoss => "stop_loss",
            Self::FixedShare => "fixed_share",
            Self::DcaOut => "dca_out",
            Self::HalvingCycle => "halving_cycle",
            Self::VolatilityTrigger => "volatility_trigger",
            Self::HashpriceCycle => "hashprice_cycle",
            Self::NextSellLayers => "next_sell_layers",
        }
    }

    /// Its place when several strategies sell on the same day.
    #[must_use]
    pub const fn priority(self) -> Priority {
        match self {
            Self::OpexCoverage => Priority::Opex,
            Self::TrailingStop | Self::StopLoss => Priority::Stop,
            _ => Priority::ProfitTaking,
        }
    }
}

impl fmt::Display for StrategyKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The text names no [`StrategyKind`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("there is no strategy of this name")]
pub struct UnknownStrategy;

impl FromStr for StrategyKind {
    type Err = UnknownStrategy;

    fn from_str(text: &str) -> Result<Self, UnknownStrategy> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == text).ok_or(UnknownStrategy)
    }
}
