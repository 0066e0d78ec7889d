//! Owns the checks of one machine taken together: what each says of a window of readings, and what they remember.
//! Promises that windows in order give the same findings however they come in batches, and that a window counts once.
//! May be called by every module; times are arguments.

use super::hysteresis::{Change, Observation, Watch};
use super::robust::is_outlier;
use super::silence::STALE_AFTER;
use super::{AnomalyKind, Duty, Ewma, PowerBand};
use super::{ewma, heat, rating};
use chrono::{DateTime, DurationRound, TimeDelta, Utc};
use rust_decimal::Decimal;
use rust_decimal::prelude::ToPrimitive;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Length of a window: each is one observation for the hysteresis.
pub const WINDOW: TimeDelta = TimeDelta::minutes(5);
/// What the mean against the rating, and among peers, reaches back.
pub const HOUR: TimeDelta = TimeDelta::hours(1);

/// The end of the newest window that is over at `at`; windows begin at whole multiples of five minutes.
#[must_use]
pub fn window_end(at: DateTime<Utc>) -> DateTime<Utc> {
    // Only times at the ends of the calendar have no such multiple.
    at.duration_trunc(WINDOW).unwrap_or(at)
}

/// What a machine should do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nameplate {
    /// Rated hashrate, TH/s.
    pub hashrate_ths: Decimal,
    /// Nameplate power, W.
    pub power_w: Decimal,
    /// Whether the temperature limits hold for it.
    pub air_cooled: bool,
}

/// What a machine did in one window.
#[derive(Debug, Clone, PartialEq)]
pub struct Reading {
    /// End of the window, which it does not belong to.
    pub end: DateTime<Utc>,
    /// Mean of the window, TH/s.
    pub hashrate_ths: f64,
    /// Mean of the hour up to the end, TH/s.
    pub hour_mean_ths: f64,
    /// When power was read last, and its mean over the window, W.
    pub power: Option<(DateTime<Utc>, f64)>,
    /// Highest of the window, degrees Celsius.
    pub temperature_c: Option<f64>,
    /// Robust z among its peers, see [`super::peers`].
    pub peer_z: Option<f64>,
}

/// What one check says of one window.
#[derive(Debug, Clone, PartialEq)]
pub struct Finding {
    /// The check.
    pub kind: AnomalyKind,
    /// Whether it found a deviation.
    pub bad: bool,
    /// What that led to.
    pub change: Option<Change>,
    /// What was compared: TH/s, W or degrees Celsius.
    pub measured: Decimal,
    /// What it was compared with, in the same unit.
    pub expected: Option<Decimal>,
    /// How far apart they are: a share for hashrate and power, z for peers and drift.
    pub score: Option<f64>,
    /// The class that the check has for it.
    pub level: Option<&'static str>,
}

/// What is known of a machine's own past.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Past {
    /// Values of the warm-up so far, TH/s.
    Learning(Vec<f64>),
    /// What is usual.
    Known(Ewma),
}

impl Default for Past {
    fn default() -> Self {
        Self::Learning(Vec::new())
    }
}

/// What the checks of one machine remember from window to window; the default has seen nothing. The check for silence is
/// not among them: it needs a clock, not readings.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Detector {
    /// End of the newest window with a reading.
    last: Option<DateTime<Utc>>,
    /// The rating under which the past was learnt.
    rated_ths: Option<Decimal>,
    past: Past,
    power: PowerBand,
    watches: BTreeMap<AnomalyKind, Watch>,
}

/// The verdict of a check before hysteresis.
struct Verdict {
    kind: AnomalyKind,
    bad: bool,
    measured: Decimal,
    expected: Option<Decimal>,
    score: Option<f64>,
    level: Option<&'static str>,
}

impl Detector {
    /// Takes the next window and returns what each check that could judge it found; nothing for a window no newer than the
    /// last, and for a machine that is off on purpose.
    ///
    /// A hole of more than ten minutes, and any time off on purpose, breaks what was observed before it. What is usual is
    /// learnt anew under another rating and after maintenance: the machine may be another one.
    pub fn step(&mut self, nameplate: &Nameplate, reading: &Reading, duty: Duty) -> Vec<Finding> {
        if self.last.is_some_and(|last| reading.end <= last) {
            return Vec::new();
        }
        let hole = self.last.is_some_and(|last| reading.end.signed_duration_since(last) > STALE_AFTER);
        self.last = Some(reading.end);
        if hole || !duty.is_judged() {
            self.watches.values_mut().for_each(|watch| *watch = watch.step(Observation::Suppressed).0);
        }
        let repaired = matches!(duty, Duty::Maintenance | Duty::OutOfService);
        if repaired || self.rated_ths != Some(nameplate.hashrate_ths) {
            self.past = Past::default();
            self.rated_ths = Some(nameplate.hashrate_ths);
        }
        if !duty.is_judged() {
            self.power = PowerBand::default();
            return Vec::new();
        }
        let verdicts = [
            rating(nameplate, reading),
            peers(reading),
            self.drift(reading),
            self.power(nameplate, reading),
            heat(nameplate, reading),
        ];
        verdicts.into_iter().flatten().map(|verdict| self.observe(verdict)).collect()
    }

    /// Makes the hysteresis agree with the record of what is open, which others may have closed.
    pub fn reconcile(&mut self, open: impl Fn(AnomalyKind) -> bool) {
        for kind in AnomalyKind::ALL {
            let watch = self.watches.get(&kind).copied().unwrap_or_default();
            let agreed = watch.agreeing_with(open(kind));
            if agreed != watch {
                self.watches.insert(kind, agreed);
            }
        }
    }

    fn observe(&mut self, verdict: Verdict) -> Finding {
        let Verdict { kind, bad, measured, expected, score, level } = verdict;
        let watch = self.watches.entry(kind).or_default();
        let (next, change) = watch.step(if bad { Observation::Bad } else { Observation::Good });
        *watch = next;
        Finding { kind, bad, change, measured, expected, score, level }
    }

    fn drift(&mut self, reading: &Reading) -> Option<Verdict> {
        let value = reading.hashrate_ths;
        match &mut self.past {
            Past::Learning(values) => {
                values.push(value);
                if values.len() >= ewma::MIN_WARM_UP {
                    self.past = Ewma::warm_up(values).map_or_else(Past::default, Past::Known);
                }
                None
            }
            Past::Known(usual) => {
                let (next, z) = usual.step(value);
                let expected = decimal(usual.mean);
                *usual = next;
                Some(Verdict {
                    kind: AnomalyKind::Drift,
                    bad: z.is_some_and(is_outlier),
                    measured: decimal(value)?,
                    expected,
                    score: z,
                    level: None,
                })
            }
        }
    }

    fn power(&mut self, nameplate: &Nameplate, reading: &Reading) -> Option<Verdict> {
        let (at, watt) = reading.power?;
        let measured = decimal(watt)?;
        let (next, bad) = self.power.observe(at, measured, nameplate.power_w);
        self.power = next;
        Some(Verdict {
            kind: AnomalyKind::Power,
            bad,
            measured,
            expected: Some(nameplate.power_w),
            score: share(measured, nameplate.power_w),
            level: None,
        })
    }
}

fn rating(nameplate: &Nameplate, reading: &Reading) -> Option<Verdict> {
    let measured = decimal(reading.hour_mean_ths)?;
    let class = rating::rating_class(measured, nameplate.hashrate_ths);
    Some(Verdict {
        kind: AnomalyKind::Hashrate,
        bad: class.is_some(),
        measured,
        expected: Some(nameplate.hashrate_ths),
        score: share(measured, nameplate.hashrate_ths),
        level: class.map(rating::RatingClass::as_str),
    })
}

fn peers(reading: &Reading) -> Option<Verdict> {
    let z = reading.peer_z?;
    Some(Verdict {
        kind: AnomalyKind::Peers,
        bad: is_outlier(z),
        measured: decimal(reading.hour_mean_ths)?,
        expected: None,
        score: Some(z),
        level: None,
    })
}

fn heat(nameplate: &Nameplate, reading: &Reading) -> Option<Verdict> {
    let measured = decimal(reading.temperature_c?)?;
    let level = heat::heat_level(measured);
    nameplate.air_cooled.then_some(Verdict {
        kind: AnomalyKind::Heat,
        bad: level.is_some(),
        measured,
        expected: Some(heat::WARN_C),
        score: None,
        level: level.map(heat::HeatLevel::as_str),
    })
}

/// A reading as a decimal of at most 15 digits; nothing for what is no number.
fn decimal(value: f64) -> Option<Decimal> {
    Decimal::try_from(value).ok()
}

fn share(measured: Decimal, of: Decimal) -> Option<f64> {
    measured.checked_div(of)?.to_f64()
}

#[cfg(test)]
mod tests;
