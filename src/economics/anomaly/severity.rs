//! Owns the severity of an anomaly: how much a repair is worth a day.
//! Promises that dearer is never less severe.
//! May be called by every module; needs nothing but its arguments.

use super::super::exact::dec;
use rust_decimal::Decimal;
use serde::{Deserialize, Serialize};
use std::str::FromStr;

/// From here on medium, $/day: a dead machine of the reference case loses 7.51.
pub const MEDIUM_USD_DAY: Decimal = dec(2, 0);
/// From here on high, $/day: a few dead machines.
pub const HIGH_USD_DAY: Decimal = dec(20, 0);
/// From here on critical, $/day: a rack of them.
pub const CRITICAL_USD_DAY: Decimal = dec(200, 0);

/// How much an anomaly matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Less than $2 a day.
    Low,
    /// At least $2.
    Medium,
    /// At least $20.
    High,
    /// At least $200.
    Critical,
}

impl Severity {
    /// Every severity, the least first.
    pub const ALL: [Self; 4] = [Self::Low, Self::Medium, Self::High, Self::Critical];

    /// Severity of a loss in $/day, see [`super::lost_usd_day`].
    #[must_use]
    pub fn of(lost_usd_day: Decimal) -> Self {
        if lost_usd_day >= CRITICAL_USD_DAY {
            Self::Critical
        } else if lost_usd_day >= HIGH_USD_DAY {
            Self::High
        } else if lost_usd_day >= MEDIUM_USD_DAY {
            Self::Medium
        } else {
            Self::Low
        }
    }

    /// The name used in JSON, SQL and events.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Low => "low",
            Self::Medium => "medium",
            Self::High => "high",
            Self::Critical => "critical",
        }
    }
}

/// The text names no [`Severity`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must be low, medium, high or critical")]
pub struct UnknownSeverity;

impl FromStr for Severity {
    type Err = UnknownSeverity;

    fn from_str(text: &str) -> Result<Self, UnknownSeverity> {
        Self::ALL.into_iter().find(|severity| severity.as_str() == text).ok_or(UnknownSeverity)
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::testing::d;
    use super::*;

    #[test]
    fn limits_belong_to_the_severity_above() {
        let cases = [
            ("0", Severity::Low),
            ("1.99999999", Severity::Low),
            ("2", Severity::Medium),
            ("7.511124", Severity::Medium),
            ("19.99", Severity::Medium),
            ("20", Severity::High),
            ("199.99", Severity::High),
            ("200", Severity::Critical),
            ("1e12", Severity::Critical),
        ];
        for (lost, expected) in cases {
            assert_eq!(Severity::of(d(lost)), expected, "${lost} a day");
        }
    }

    #[test]
    fn names_agree_everywhere() {
        for severity in Severity::ALL {
            assert_eq!(severity.as_str().parse(), Ok(severity));
            assert_eq!(serde_json::to_value(severity).expect("a string"), severity.as_str());
        }
        assert_eq!("info".parse::<Severity>(), Err(UnknownSeverity));
    }
}
