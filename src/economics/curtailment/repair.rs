//! Owns the exact repair and improvement of a schedule: groups of miners take their best path beside all others.
//! Promises that each accepted change lowers the violation of the limits or, at equal violation, raises the value.
//! May be called by the files of this folder only.

use super::cohort::{Cohort, merged};
use super::commitment::{Best, Gain, best_path, collect};
use super::model::{Load, Model};
use std::ops::{Add, Sub};

/// A group tries to move as a whole, then by a third of it, down to one miner.
const PART: u32 = 3;
/// Moves in a turn per group at its beginning: far more than happen, but an end.
const MOVES_PER_GROUP: usize = 50;

/// Violation of the limits first (negative, 0 when they are kept), then value.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Merit {
    kept: i128,
    value: i128,
}

impl Add for Merit {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { kept: self.kept + other.kept, value: self.value + other.value }
    }
}

impl Sub for Merit {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        Self { kept: self.kept - other.kept, value: self.value - other.value }
    }
}

/// A schedule under repair.
pub(super) struct Repair<'a> {
    model: &'a Model,
    cohorts: Vec<Cohort>,
    load: Load,
}

impl<'a> Repair<'a> {
    pub(super) fn new(model: &'a Model, cohorts: Vec<Cohort>) -> Self {
        let cohorts = merged(cohorts);
        Self { load: model.load(&cohorts), cohorts, model }
    }

    pub(super) fn merit(&self) -> Merit {
        Merit { kept: -self.model.violation(&self.load), value: self.model.value(&self.cohorts) }
    }

    /// The value of a schedule that keeps the limits.
    pub(super) fn kept_value(&self) -> Option<i128> {
        let merit = self.merit();
        (merit.kept == 0).then_some(merit.value)
    }

    /// The merit of the load, with the value of some of the groups only.
    pub(super) fn merit_of(&self, groups: &[usize]) -> Merit {
        let value = |k: &usize| {
            let cohort = &self.cohorts[*k];
            self.model.units[cohort.unit].value(&cohort.on) * i128::from(cohort.miners)
        };
        Merit { kept: -self.model.violation(&self.load), value: groups.iter().map(value).sum() }
    }

    pub(super) fn into_cohorts(self) -> Vec<Cohort> {
        self.cohorts
    }

    /// What `miners` of a class would collect per step beside the load, which does not contain them. `value` is what one
    /// of them earns when it is on.
    fn gains(&self, unit: usize, miners: u32, value: &[i128]) -> Vec<Gain<Merit>> {
        let (model, load, miners) = (self.model, &self.load, i128::from(miners));
        let unit = &model.units[unit];
        let (power, start_cost) = (unit.power * miners, unit.start_cost * miners);
        let mut before = model.power_before - if unit.switching.on { power } else { 0 };
        (0..model.steps)
            .map(|t| {
                let change = load.power[t] - before;
                before = load.power[t];
                let off = -model.over(t, load.power[t], load.online[t]);
                let on = -model.over(t, load.power[t] + power, load.online[t] + miners);
                let stay = value[t] * miners;
                let merit = |kept: i128, value: i128| Merit { kept, value };
                if model.ramp.is_none() {
                    return [[merit(off, 0), merit(on, stay - start_cost)], [merit(off, 0), merit(on, stay)]];
                }
                let same = model.jump(t, change);
                let (rise, fall) = (model.jump(t, change + power), model.jump(t, change - power));
                [
                    [merit(off - same, 0), merit(on - rise, stay - start_cost)],
                    [merit(off - fall, 0), merit(on - same, stay)],
                ]
            })
            .collect()
    }

    /// The best path for `miners` of a group beside all others, and by how much it is better than the present one.
    fn better(&mut self, k: usize, miners: u32) -> Best<Merit> {
        let cohort = &self.cohorts[k];
        let unit = &self.model.units[cohort.unit];
        self.load.shift(self.model, cohort, -i128::from(miners));
        let gains = self.gains(cohort.unit, miners, &unit.gain);
        let cohort = &self.cohorts[k];
        self.load.shift(self.model, cohort, i128::from(miners));
        let best = best_path(&gains, unit.switching);
        Best { total: best.total - collect(&gains, unit.switching.on, &cohort.on), on: best.on }
    }

    /// Lets every group move, as a whole or in part, until none gets better or all had `sweeps` turns.
    pub(super) fn improve(&mut self, sweeps: usize) {
        for _ in 0..sweeps {
            let most = MOVES_PER_GROUP * self.cohorts.len();
            let (mut moves, mut k) = (0, 0);
            while k < self.cohorts.len() && moves < most {
                match self.best_move(k) {
                    Some((miners, on)) => {
                        self.split(k, miners, on);
                        moves += 1;
                    }
                    None => k += 1,
                }
            }
            self.cohorts = merged(std::mem::take(&mut self.cohorts));
            if moves == 0 {
                return;
            }
        }
    }

    fn best_move(&mut self, k: usize) -> Option<(u32, Vec<bool>)> {
        let mut miners = self.cohorts[k].miners;
        let mut best: Option<(Merit, u32, Vec<bool>)> = None;
        while miners > 0 {
            let path = self.better(k, miners);
            let gain = best.as_ref().map_or(Merit::default(), |(gain, _, _)| *gain);
            if path.total > gain {
                best = Some((path.total, miners, path.on));
            }
            miners = if miners == 1 { 0 } else { miners.div_ceil(PART) };
        }
        best.map(|(_, miners, on)| (miners, on))
    }

    /// Moves `miners` of a group to another path: the whole group, or a new one.
    fn split(&mut self, k: usize, miners: u32, on: Vec<bool>) {
        let moved = Cohort { unit: self.cohorts[k].unit, miners, on };
        self.load.shift(self.model, &self.cohorts[k], -i128::from(miners));
        self.load.shift(self.model, &moved, i128::from(miners));
        if self.cohorts[k].miners == miners {
            self.cohorts[k] = moved;
        } else {
            self.cohorts[k].miners -= miners;
            self.cohorts.push(moved);
        }
    }

    pub(super) fn groups(&self) -> usize {
        self.cohorts.len()
    }

    pub(super) fn path(&self, k: usize) -> &[bool] {
        &self.cohorts[k].on
    }

    /// Takes a group out of the load; its path stays remembered.
    pub(super) fn take_out(&mut self, k: usize) {
        let cohort = &self.cohorts[k];
        self.load.shift(self.model, cohort, -i128::from(cohort.miners));
    }

    /// Puts a group that was taken out back on a path.
    pub(super) fn put_on(&mut self, k: usize, on: Vec<bool>) {
        self.cohorts[k].on = on;
        let cohort = &self.cohorts[k];
        self.load.shift(self.model, cohort, i128::from(cohort.miners));
    }

    /// Puts a group that was taken out back on its best path, by its true value or by another per class.
    pub(super) fn put_back(&mut self, k: usize, values: Option<&[Vec<i128>]>) {
        let Cohort { unit, miners, .. } = self.cohorts[k];
        let class = &self.model.units[unit];
        let value = values.map_or(&class.gain, |values| &values[unit]);
        let on = best_path(&self.gains(unit, miners, value), class.switching).on;
        self.put_on(k, on);
    }
}
