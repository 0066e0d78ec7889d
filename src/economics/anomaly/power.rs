//! Owns the check of measured power against the nameplate.
//! Promises that only a deviation seen without a hole for more than half an hour is reported.
//! May be called by every module; times are arguments.

use super::super::exact::dec;
use super::silence::STALE_AFTER;
use chrono::{DateTime, TimeDelta, Utc};
use rust_decimal::Decimal;
use serde::{Deserialize, Serialize};

/// Smallest and largest healthy share of the nameplate.
pub const BAND: (Decimal, Decimal) = (dec(95, 2), dec(105, 2));
/// A deviation is reported once it has lasted longer than this.
pub const TOLERATED: TimeDelta = TimeDelta::minutes(30);

/// Since when the power of one machine has been outside the band: kept from one reading to the next.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PowerBand {
    /// First reading of the deviation that still lasts; `None` while power is inside.
    outside_since: Option<DateTime<Utc>>,
    /// Newest reading.
    last_at: Option<DateTime<Utc>>,
}

impl PowerBand {
    /// Takes a reading of `measured_w` for a machine of `nameplate_w`, both W per miner, and says whether power has now
    /// been outside 0.95..=1.05 of the nameplate for more than 30 minutes.
    ///
    /// A reading no newer than the last changes nothing. A hole longer than ten minutes breaks the run: what happened
    /// in it is not known. A machine without a nameplate is never outside.
    #[must_use]
    pub fn observe(self, at: DateTime<Utc>, measured_w: Decimal, nameplate_w: Decimal) -> (Self, bool) {
        if self.last_at.is_some_and(|last| at <= last) {
            return (self, self.is_bad());
        }
        let unbroken = self.last_at.is_some_and(|last| at.signed_duration_since(last) <= STALE_AFTER);
        let outside_since =
            outside(measured_w, nameplate_w).then(|| self.outside_since.filter(|_| unbroken).unwrap_or(at));
        let next = Self { outside_since, last_at: Some(at) };
        (next, next.is_bad())
    }

    fn is_bad(&self) -> bool {
        let lasted =
            self.last_at.zip(self.outside_since).map(|(last, since)| last.signed_duration_since(since));
        lasted.is_some_and(|lasted| lasted > TOLERATED)
    }
}

fn outside(measured_w: Decimal, nameplate_w: Decimal) -> bool {
    let (low, high) = BAND;
    nameplate_w > Decimal::ZERO
        && (measured_w < nameplate_w.saturating_mul(low) || measured_w > nameplate_w.saturating_mul(high))
}

#[cfg(test)]
mod tests {
    use super::super::super::testing::d;
    use super::*;

    fn minute(minutes: i64) -> DateTime<Utc> {
        DateTime::UNIX_EPOCH + TimeDelta::minutes(minutes)
    }

    /// The verdicts on readings of (minute, W) for a machine of 3500 W.
    fn verdicts(readings: &[(i64, &str)]) -> Vec<bool> {
        let mut band = PowerBand::default();
        let mut verdicts = Vec::new();
        for (at, watt) in readings {
            let (next, bad) = band.observe(minute(*at), d(watt), d("3500"));
            verdicts.push(bad);
            band = next;
        }
        verdicts
    }

    #[test]
    fn the_edges_of_the_band_are_inside() {
        for (watt, expected) in
            [("3325", false), ("3324.9", true), ("3675", false), ("3675.1", true), ("0", true)]
        {
            assert_eq!(outside(d(watt), d("3500")), expected, "{watt} W");
        }
    }

    #[test]
    fn more_than_half_an_hour_is_reported() {
        assert_eq!(
            verdicts(&[(0, "3000"), (10, "3000"), (20, "3900"), (30, "3000"), (31, "3000"), (36, "3500")]),
            [false, false, false, false, true, false]
        );
    }

    #[test]
    fn a_healthy_reading_starts_the_half_hour_anew() {
        let readings = [(0, "3000"), (10, "3000"), (20, "3500"), (30, "3000"), (40, "3000")];
        assert!(verdicts(&readings).iter().all(|bad| !bad));
    }

    #[test]
    fn a_hole_in_the_readings_breaks_the_run() {
        assert!(verdicts(&[(0, "3000"), (60, "3000"), (70, "3000")]).iter().all(|bad| !bad));
    }

    #[test]
    fn late_and_repeated_readings_change_nothing() {
        let bad = [(0, "3000"), (10, "3000"), (20, "3000"), (30, "3000"), (35, "3000")];
        assert_eq!(verdicts(&bad).last(), Some(&true));
        let with_late = [&bad[..], &[(35, "3500"), (12, "3500")]].concat();
        assert_eq!(verdicts(&with_late)[4..], [true, true, true]);
    }

    #[test]
    fn without_a_nameplate_nothing_is_outside() {
        assert!(!outside(d("3000"), Decimal::ZERO));
        assert!(!outside(Decimal::MIN, d("-1")));
        assert!(outside(Decimal::MIN, Decimal::MAX));
        assert!(!outside(Decimal::MAX, Decimal::MAX));
    }
}
