//! Owns the temperature limits.
//! Promises limits for air-cooled machines only: hydro and immersion run in other bands, for which there are no figures.
//! May be called by every module; needs nothing but its arguments.

use super::super::exact::dec;
use rust_decimal::Decimal;
use serde::{Deserialize, Serialize};

/// From here on an air-cooled machine is too warm, degrees Celsius.
pub const WARN_C: Decimal = dec(75, 0);
/// From here on an air-cooled machine is being damaged, degrees Celsius.
pub const CRITICAL_C: Decimal = dec(85, 0);

/// How hot an air-cooled machine is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HeatLevel {
    /// At least 75 degrees Celsius.
    Warn,
    /// At least 85 degrees Celsius.
    Critical,
}

impl HeatLevel {
    /// The name used in JSON, SQL and events.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Warn => "warn",
            Self::Critical => "critical",
        }
    }
}

/// Level of an air-cooled machine at `temperature_c` degrees Celsius; `None` when it is cool enough.
#[must_use]
pub fn heat_level(temperature_c: Decimal) -> Option<HeatLevel> {
    if temperature_c >= CRITICAL_C {
        Some(HeatLevel::Critical)
    } else if temperature_c >= WARN_C {
        Some(HeatLevel::Warn)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::testing::d;
    use super::*;

    #[test]
    fn limits_belong_to_the_level_above() {
        let cases = [
            ("-40", None),
            ("74.9", None),
            ("75", Some(HeatLevel::Warn)),
            ("84.9", Some(HeatLevel::Warn)),
            ("85", Some(HeatLevel::Critical)),
            ("200", Some(HeatLevel::Critical)),
        ];
        for (celsius, expected) in cases {
            assert_eq!(heat_level(d(celsius)), expected, "{celsius} C");
        }
    }
}
