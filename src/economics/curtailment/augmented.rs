//! Owns the way from prices to a schedule: groups of miners answer prices that rise with the load, one after the other.
//! Promises paths that respect every minimum; the limits are kept nearly, what is left is for the repair.
//! May be called by the files of this folder only.

use super::approximate::{Approximate, FloatLoad};
use super::cohort::Cohort;
use super::commitment::{Gain, best_path, collect};
use super::limits::Rows;

/// Share of the site's power over a limit at which its price rises by the mean worth of a kW, in the first stage.
const WIDTH: f64 = 0.1;
/// How much steeper prices get from stage to stage.
const STEEPER: f64 = 1.6;
/// A path must be better by this share to replace another: more than the noise of sums.
const NOISE: f64 = 1e-9;

/// How much work goes into a schedule.
#[derive(Debug, Clone, Copy)]
pub(super) struct Effort {
    /// Groups a class is divided into: finer follows a limit closer.
    pub(super) groups: u32,
    /// Stages of ever steeper prices.
    pub(super) stages: usize,
    /// How often each group answers in a stage.
    pub(super) answers: usize,
}

/// Prices and how they rise: a limit exceeded by `x` has the price `max(0, price + slope * x)`.
struct Response<'a> {
    site: &'a Approximate<'a>,
    prices: &'a Rows,
    of_power: f64,
    of_miner: f64,
}

/// What a limit costs at this excess: the integral of its price, (1 / 2 slope) * max(0, price + slope * excess)^2.
fn penalty(price: f64, slope: f64, excess: f64) -> f64 {
    let risen = (price + slope * excess).max(0.0);
    risen * risen / (2.0 * slope)
}

/// A schedule close to the limits, from their prices and the paths of the classes at them.
///
/// The augmented Lagrangian of the site, lowered one group at a time: with all others fixed, a group's best answer is
/// again the dynamic programme of one miner, since what it adds to a limit's cost depends on one step (cap, floor) or on
/// two neighbours (ramp). Many groups with gentle prices come close to the relaxation's divisible optimum; the stages
/// make prices steeper until the limits are nearly kept.
pub(super) fn schedule(
    site: &Approximate<'_>,
    prices: &Rows,
    paths: &[Vec<bool>],
    effort: Effort,
) -> Vec<Cohort> {
    let mut cohorts = divided(site, paths, effort.groups);
    let mut load = site.nothing_on();
    for cohort in &cohorts {
        load.shift(&site.classes[cohort.unit], &cohort.on, f64::from(cohort.miners));
    }
    let Some(mut response) = Response::new(site, prices) else {
        return cohorts;
    };
    for _ in 0..effort.stages {
        for _ in 0..effort.answers {
            let mut moved = false;
            for cohort in &mut cohorts {
                moved |= response.answer(cohort, &mut load);
            }
            if !moved {
                break;
            }
        }
        response.of_power *= STEEPER;
        response.of_miner *= STEEPER;
    }
    cohorts
}

/// Every class in at most `most` groups of nearly the same size, all on the class's path.
fn divided(site: &Approximate<'_>, paths: &[Vec<bool>], most: u32) -> Vec<Cohort> {
    let mut cohorts = Vec::new();
    for (unit, (class, on)) in site.model.units.iter().zip(paths).enumerate() {
        let groups = class.miners.min(most);
        for group in 0..groups {
            let miners = class.miners / groups + u32::from(group < class.miners % groups);
            cohorts.push(Cohort { unit, miners, on: on.clone() });
        }
    }
    cohorts
}

impl<'a> Response<'a> {
    /// `None` for a site without power or worth, where no price could rise.
    fn new(site: &'a Approximate<'a>, prices: &'a Rows) -> Option<Self> {
        let (mut power, mut miners, mut worth, mut kw_steps) = (0.0, 0.0, 0.0, 0.0);
        for class in &site.classes {
            power += class.power * class.miners;
            miners += class.miners;
            worth += class.gain.iter().map(|gain| gain.abs()).sum::<f64>() * class.miners;
            kw_steps += class.power * class.miners * site.steps() as f64;
        }
        let of_power = worth / kw_steps / (power * WIDTH);
        // The same for a miner of mean power.
        let of_miner = of_power * (power / miners) * (power / miners);
        let usable = |slope: f64| slope.is_finite() && slope > 0.0;
        (usable(of_power) && usable(of_miner)).then_some(Self { site, prices, of_power, of_miner })
    }

    /// What cap and floor cost in step `t`.
    fn level(&self, t: usize, power: f64, online: f64) -> f64 {
        let (cap, floor) = (self.site.cap[t], self.site.floor[t]);
        let cap = if cap.is_finite() { penalty(self.prices.cap[t], self.of_power, power - cap) } else { 0.0 };
        let floor =
            if floor > 0.0 { penalty(self.prices.floor[t], self.of_miner, floor - online) } else { 0.0 };
        cap + floor
    }

    /// What the ramp costs for a change into step `t`.
    fn jump(&self, t: usize, change: f64) -> f64 {
        let ramp = self.site.ramp[t];
        if !ramp.is_finite() {
            return 0.0;
        }
        penalty(self.prices.rise[t], self.of_power, change - ramp)
            + penalty(self.prices.fall[t], self.of_power, -change - ramp)
    }

    fn gains(&self, cohort: &Cohort, rest: &FloatLoad) -> Vec<Gain<f64>> {
        let class = &self.site.classes[cohort.unit];
        let miners = f64::from(cohort.miners);
        let power = class.power * miners;
        let was_on = self.site.model.units[cohort.unit].switching.on;
        let mut before = self.site.power_before - if was_on { power } else { 0.0 };
        (0..self.site.steps())
            .map(|t| {
                let change = rest.power[t] - before;
                before = rest.power[t];
                let off = -self.level(t, rest.power[t], rest.online[t]);
                let stay =
                    class.gain[t] * miners - self.level(t, rest.power[t] + power, rest.online[t] + miners);
                let start = stay - class.start_cost * miners;
                let same = self.jump(t, change);
                [
                    [off - same, start - self.jump(t, change + power)],
                    [off - self.jump(t, change - power), stay - same],
                ]
            })
            .collect()
    }

    /// Puts a group on its best path beside all others; whether it moved.
    fn answer(&self, cohort: &mut Cohort, load: &mut FloatLoad) -> bool {
        let class = &self.site.classes[cohort.unit];
        let miners = f64::from(cohort.miners);
        load.shift(class, &cohort.on, -miners);
        let gains = self.gains(cohort, load);
        let switching = self.site.model.units[cohort.unit].switching;
        let best = best_path(&gains, switching);
        let now = collect(&gains, switching.on, &cohort.on);
        let better = best.total > now + NOISE * now.abs();
        if better {
            cohort.on = best.on;
        }
        load.shift(class, &cohort.on, miners);
        better
    }
}
