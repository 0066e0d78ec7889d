//! Owns the site in fixed-point numbers, and the judgement of a schedule: does it keep the limits, what is it worth.
//! Promises that values are exact and that none of its sums can overflow, whatever the schedule.
//! May be called by the files of this folder only.

use super::super::exact::{div, product};
use super::super::{EconomicsError, exact};
use super::cohort::Cohort;
use super::commitment::{Gain, Switching};
use super::fixed::fixed;
use super::site::{MinerClass, Site, Step};
use rust_decimal::Decimal;
use rust_decimal::prelude::ToPrimitive;
use std::cmp::Reverse;
use std::ops::{Add, Sub};

/// $/MWh * W * s in a dollar: 1e6 W/MW * 3,600 s/h.
const USD_MWH_W_S: Decimal = exact::dec(3_600_000_000, 0);
/// Sums of money and of power stay below 2^120: seven doublings of room for differences and weights.
const ROOM: i128 = 1 << 120;

/// A class in fixed-point numbers. Money ($) and power (kW) are those of one miner.
#[derive(Debug, Clone)]
pub(super) struct Unit {
    pub(super) miners: u32,
    /// Place in the order of strikes, highest first; equal ones in the order of the site.
    pub(super) rank: usize,
    pub(super) power: i128,
    /// Revenue less energy cost per step.
    pub(super) gain: Vec<i128>,
    /// Energy cost per step.
    pub(super) cost: Vec<i128>,
    pub(super) start_cost: i128,
    pub(super) switching: Switching,
}

/// A site in fixed-point numbers.
#[derive(Debug, Clone)]
pub(super) struct Model {
    pub(super) units: Vec<Unit>,
    pub(super) steps: usize,
    /// Power limit per step; a cap that can never bind is `None`.
    pub(super) cap: Vec<Option<i128>>,
    /// Miners that must be on per step.
    pub(super) floor: Vec<i128>,
    /// Largest change of power between two steps; one that can never bind is `None`. See [`Model::ramp_into`].
    pub(super) ramp: Option<i128>,
    pub(super) power_before: i128,
    /// Power of one miner in the mean: what a missing miner weighs against power over the cap.
    pub(super) mean_power: i128,
}

/// Value of a path, then its tie-breaks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Score {
    pub(super) value: i128,
    /// Starts, negative: fewer is better.
    pub(super) fewer_starts: i128,
    pub(super) steps_on: i128,
}

impl Add for Score {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            value: self.value + other.value,
            fewer_starts: self.fewer_starts + other.fewer_starts,
            steps_on: self.steps_on + other.steps_on,
        }
    }
}

impl Sub for Score {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        Self {
            value: self.value - other.value,
            fewer_starts: self.fewer_starts - other.fewer_starts,
            steps_on: self.steps_on - other.steps_on,
        }
    }
}

/// Energy of one miner in one step at a price, USD.
fn money(
    class: &MinerClass,
    step: &Step,
    usd_mwh: Decimal,
    figure: &'static str,
) -> Result<i128, EconomicsError> {
    let scaled = product([usd_mwh, class.power_w, Decimal::from(step.seconds)], figure)?;
    fixed(div(scaled, USD_MWH_W_S, figure)?, figure)
}

impl Unit {
    fn new(class: &MinerClass, steps: &[Step]) -> Result<Self, EconomicsError> {
        let (mut gain, mut cost) = (Vec::with_capacity(steps.len()), Vec::with_capacity(steps.len()));
        for step in steps {
            let earned = money(class, step, class.strike_usd_mwh, "revenue_usd")?;
            let paid = money(class, step, step.price_usd_mwh, "power_cost_usd")?;
            gain.push(earned.checked_sub(paid).ok_or(EconomicsError::Overflow { figure: "value_usd" })?);
            cost.push(paid);
        }
        Ok(Self {
            miners: class.miners,
            rank: 0,
            power: fixed(div(class.power_w, Decimal::ONE_THOUSAND, "kw")?, "kw")?,
            gain,
            cost,
            start_cost: fixed(class.start_cost_usd, "start_cost_usd")?,
            switching: Switching {
                min_up: class.min_up_steps as usize,
                min_down: class.min_down_steps as usize,
                on: class.on,
                locked: class.locked_steps() as usize,
            },
        })
    }

    /// What one miner collects per step.
    pub(super) fn gains(&self) -> Vec<Gain<Score>> {
        let off = Score::default();
        self.gain
            .iter()
            .map(|value| {
                let stay = Score { value: *value, fewer_starts: 0, steps_on: 1 };
                let start = Score { value: value - self.start_cost, fewer_starts: -1, steps_on: 1 };
                [[off, start], [off, stay]]
            })
            .collect()
    }

    /// The largest sum of money one miner can move.
    fn magnitude(&self) -> Option<i128> {
        self.gain.iter().zip(&self.cost).try_fold(0_i128, |sum, (gain, cost)| {
            // Revenue is the sum of the two.
            let step = gain.checked_abs()?.checked_add(cost.checked_abs()?)?;
            sum.checked_add(step)?.checked_add(self.start_cost)
        })
    }
}

impl Model {
    pub(super) fn new(site: &Site) -> Result<Self, EconomicsError> {
        site.check()?;
        let mut units =
            site.classes.iter().map(|c| Unit::new(c, &site.steps)).collect::<Result<Vec<_>, _>>()?;
        let mut by_strike: Vec<usize> = (0..units.len()).collect();
        by_strike.sort_by_key(|k| Reverse(site.classes[*k].strike_usd_mwh));
        for (rank, k) in by_strike.into_iter().enumerate() {
            units[k].rank = rank;
        }
        let overflow = |figure| EconomicsError::Overflow { figure };
        let (mut money, mut total, mut before, mut miners) = (0_i128, 0_i128, 0_i128, 0_i128);
        for unit in &units {
            let count = i128::from(unit.miners);
            let worth = unit.magnitude().and_then(|m| m.checked_mul(count));
            money = worth.and_then(|w| money.checked_add(w)).ok_or(overflow("value_usd"))?;
            let power = unit.power.checked_mul(count);
            total = power.and_then(|p| total.checked_add(p)).ok_or(overflow("kw"))?;
            miners += count;
            before += if unit.switching.on { unit.power * count } else { 0 };
        }
        let steps = site.steps.len();
        if money >= ROOM {
            return Err(overflow("value_usd"));
        }
        if total.checked_mul(steps as i128 + 1).is_none_or(|sum| sum >= ROOM) {
            return Err(overflow("kw"));
        }
        // A limit beyond the site's whole power is none: this also keeps absurd limits out of the sums.
        let binding = |limit: Decimal| {
            let limit = fixed(limit, "cap_kw").unwrap_or(i128::MAX);
            (limit < total).then_some(limit)
        };
        let floor = site
            .steps
            .iter()
            .map(|step| {
                let share = product([step.min_online_share, Decimal::from(miners)], "min_online_share")?;
                share.ceil().to_i128().ok_or(overflow("min_online_share"))
            })
            .collect::<Result<_, EconomicsError>>()?;
        Ok(Self {
            steps,
            cap: site.steps.iter().map(|step| step.cap_kw.and_then(binding)).collect(),
            floor,
            ramp: site.ramp_kw.and_then(binding),
            power_before: before,
            mean_power: total.checked_div(miners).unwrap_or(0).max(1),
            units,
        })
    }

    /// Power and miners on, per step.
    pub(super) fn load(&self, cohorts: &[Cohort]) -> Load {
        let mut load = Load { power: vec![0; self.steps], online: vec![0; self.steps] };
        for cohort in cohorts {
            load.shift(self, cohort, i128::from(cohort.miners));
        }
        load
    }

    /// By how much a schedule misses the limits, in power; 0 when it keeps them.
    pub(super) fn violation(&self, load: &Load) -> i128 {
        let mut before = self.power_before;
        let mut sum = 0;
        for t in 0..self.steps {
            sum += self.over(t, load.power[t], load.online[t]) + self.jump(t, load.power[t] - before);
            before = load.power[t];
        }
        sum
    }

    /// Power over the cap, and miners under the floor at their mean power.
    pub(super) fn over(&self, t: usize, power: i128, online: i128) -> i128 {
        let cap = self.cap[t].map_or(0, |cap| (power - cap).max(0));
        cap + (self.floor[t] - online).max(0) * self.mean_power
    }

    /// Largest change of power into step `t`. A site that may not draw what runs before the first step cannot have drawn
    /// it: the change into that step is then free, or cap and ramp would contradict each other.
    pub(super) fn ramp_into(&self, t: usize) -> Option<i128> {
        let unknown =
            t == 0 && self.cap.first().is_some_and(|cap| cap.is_some_and(|cap| self.power_before > cap));
        self.ramp.filter(|_| !unknown)
    }

    /// Change of power over the ramp, into step `t`.
    pub(super) fn jump(&self, t: usize, change: i128) -> i128 {
        self.ramp_into(t).map_or(0, |ramp| (change.abs() - ramp).max(0))
    }

    /// What a schedule is worth, start costs paid.
    pub(super) fn value(&self, cohorts: &[Cohort]) -> i128 {
        cohorts
            .iter()
            .map(|cohort| self.units[cohort.unit].value(&cohort.on) * i128::from(cohort.miners))
            .sum()
    }
}

impl Unit {
    /// What one miner on this path is worth.
    pub(super) fn value(&self, on: &[bool]) -> i128 {
        let mut was = self.switching.on;
        let mut sum = 0;
        for (gain, is) in self.gain.iter().zip(on) {
            if *is {
                sum += gain - if was { 0 } else { self.start_cost };
            }
            was = *is;
        }
        sum
    }
}

/// Power and miners on, per step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Load {
    pub(super) power: Vec<i128>,
    pub(super) online: Vec<i128>,
}

impl Load {
    /// Adds (or, negative, takes away) `miners` on the path of a cohort.
    pub(super) fn shift(&mut self, model: &Model, cohort: &Cohort, miners: i128) {
        let power = model.units[cohort.unit].power * miners;
        for t in (0..model.steps).filter(|t| cohort.on[*t]) {
            self.power[t] += power;
            self.online[t] += miners;
        }
    }
}
