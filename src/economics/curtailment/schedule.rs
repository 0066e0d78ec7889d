//! Owns the rows of a schedule: step by step how many miners run, what they draw, cost and earn, and whether it is a peak.
//! Promises that the rows of a plan add up to its value to the last digit.
//! May be called by every module; needs nothing but its arguments.

use super::super::EconomicsError;
use super::cohort::Cohort;
use super::fixed::decimal;
use super::model::Model;
use super::site::{Site, Step};
use rust_decimal::Decimal;
use serde::{Deserialize, Serialize};

/// One step of a schedule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScheduleRow {
    /// Start of the step in seconds after the start of the horizon.
    pub offset_seconds: u64,
    /// Length in seconds.
    pub seconds: u32,
    /// Price of energy, $/MWh.
    pub price_usd_mwh: Decimal,
    /// Whether the price is in the top quarter of the horizon, see [`peaks`].
    pub is_peak: bool,
    /// Miners on.
    pub miners_online: u64,
    /// Miners off.
    pub miners_offline: u64,
    /// Power of the site, kW.
    pub kw: Decimal,
    /// Cost of the energy, USD; negative where the price is.
    pub power_cost_usd: Decimal,
    /// What the miners earn, USD: their energy at the strike price.
    pub revenue_usd: Decimal,
    /// Cost of the starts of this step, USD.
    pub start_cost_usd: Decimal,
    /// The same per class, in the order of the site.
    pub classes: Vec<ClassRow>,
}

/// One class in one step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClassRow {
    /// Name of the class.
    pub class: String,
    /// Miners on.
    pub online: u32,
    /// Miners off.
    pub offline: u32,
    /// Power, kW.
    pub kw: Decimal,
}

/// Which steps are peaks: those priced above the 75th percentile of the horizon, each step weighted by its length.
///
/// The percentile is the lowest price at or below which at least three quarters of the time lie, and a peak is strictly
/// above it: so at most a quarter of the time is peak, and a day of one price has none. It is relative to the horizon and
/// not to hours of a tariff, because what makes a step worth avoiding is that others are cheaper.
#[must_use]
pub fn peaks(steps: &[Step]) -> Vec<bool> {
    let mut by_price: Vec<&Step> = steps.iter().collect();
    by_price.sort_by_key(|step| step.price_usd_mwh);
    let all: u64 = steps.iter().map(|step| u64::from(step.seconds)).sum();
    let mut covered = 0;
    let percentile = by_price.iter().find_map(|step| {
        covered += u64::from(step.seconds);
        // Four times at most 2^32 seconds in 2^32 steps is the edge of 2^66: divide instead.
        (all - covered <= all / 4).then_some(step.price_usd_mwh)
    });
    steps.iter().map(|step| percentile.is_some_and(|p| step.price_usd_mwh > p)).collect()
}

/// The rows of a schedule.
pub(super) fn rows(
    site: &Site,
    model: &Model,
    cohorts: &[Cohort],
) -> Result<Vec<ScheduleRow>, EconomicsError> {
    let peaks = peaks(&site.steps);
    let mut offset = 0;
    let mut rows = Vec::with_capacity(model.steps);
    for (t, step) in site.steps.iter().enumerate() {
        let mut online = vec![0_u32; model.units.len()];
        let mut start_cost = 0;
        for cohort in cohorts.iter().filter(|cohort| cohort.on[t]) {
            let unit = &model.units[cohort.unit];
            online[cohort.unit] += cohort.miners;
            let was = if t == 0 { unit.switching.on } else { cohort.on[t - 1] };
            start_cost += if was { 0 } else { unit.start_cost * i128::from(cohort.miners) };
        }
        let (mut power, mut cost, mut revenue, mut off) = (0, 0, 0, 0_u64);
        let mut classes = Vec::with_capacity(online.len());
        for ((class, unit), online) in site.classes.iter().zip(&model.units).zip(online) {
            let on = i128::from(online);
            power += unit.power * on;
            cost += unit.cost[t] * on;
            revenue += (unit.gain[t] + unit.cost[t]) * on;
            off += u64::from(class.miners - online);
            classes.push(ClassRow {
                class: class.name.clone(),
                online,
                offline: class.miners - online,
                kw: decimal(unit.power * on, "kw")?,
            });
        }
        rows.push(ScheduleRow {
            offset_seconds: offset,
            seconds: step.seconds,
            price_usd_mwh: step.price_usd_mwh,
            is_peak: peaks[t],
            miners_online: classes.iter().map(|class| u64::from(class.online)).sum(),
            miners_offline: off,
            kw: decimal(power, "kw")?,
            power_cost_usd: decimal(cost, "power_cost_usd")?,
            revenue_usd: decimal(revenue, "revenue_usd")?,
            start_cost_usd: decimal(start_cost, "start_cost_usd")?,
            classes,
        });
        offset += u64::from(step.seconds);
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::super::super::testing::{Dice, d};
    use super::*;

    fn steps(of: &[(u32, i64)]) -> Vec<Step> {
        of.iter()
            .map(|(seconds, price)| Step {
                seconds: *seconds,
                price_usd_mwh: Decimal::from(*price),
                cap_kw: None,
                min_online_share: d("0"),
            })
            .collect()
    }

    #[test]
    fn peaks_are_strictly_above_the_third_quartile() {
        assert_eq!(peaks(&steps(&[(60, 10), (60, 30), (60, -5), (60, 20)])), [false, true, false, false]);
        assert_eq!(peaks(&steps(&[(60, 10); 4])), [false; 4], "a flat day has no peak");
        assert_eq!(peaks(&steps(&[(60, 10), (60, 30), (60, 30), (60, 20)])), [false; 4]);
        assert_eq!(peaks(&steps(&[(2700, 10), (900, 30)])), [false, true], "weighted by length");
        assert_eq!(peaks(&steps(&[(2699, 10), (901, 30)])), [false, false]);
        assert_eq!(peaks(&[]), [] as [bool; 0]);
    }

    #[test]
    fn at_most_a_quarter_of_the_time_is_peak() {
        let mut dice = Dice(21);
        for _ in 0..300 {
            let day: Vec<_> =
                (0..dice.roll(30)).map(|_| (dice.roll(9) as u32 + 1, dice.roll(12) as i64)).collect();
            let day = steps(&day);
            let peaks = peaks(&day);
            let seconds = |peak: bool| -> u32 {
                day.iter().zip(&peaks).filter(|(_, is)| **is == peak).map(|(step, _)| step.seconds).sum()
            };
            assert!(seconds(true) * 3 <= seconds(false));
            let least =
                day.iter().zip(&peaks).filter(|(_, is)| **is).map(|(step, _)| step.price_usd_mwh).min();
            let most =
                day.iter().zip(&peaks).filter(|(_, is)| !**is).map(|(step, _)| step.price_usd_mwh).max();
            assert!(least.is_none() || least > most);
        }
    }
}
