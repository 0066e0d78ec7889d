//! Owns the site in floats, for the searches whose result is judged exactly afterwards.
//! Promises dollars, kilowatts and miners, and the amounts by which a load exceeds the limits.
//! May be called by the files of this folder only.

use super::fixed::float;
use super::limits::Rows;
use super::model::Model;

/// A class. Money and power are those of one miner.
pub(super) struct Class {
    pub(super) miners: f64,
    pub(super) power: f64,
    pub(super) gain: Vec<f64>,
    pub(super) start_cost: f64,
}

/// A site; a limit that is none is infinite, a floor that is none is 0.
pub(super) struct Approximate<'a> {
    pub(super) model: &'a Model,
    pub(super) classes: Vec<Class>,
    pub(super) cap: Vec<f64>,
    pub(super) floor: Vec<f64>,
    /// Into each step.
    pub(super) ramp: Vec<f64>,
    pub(super) power_before: f64,
}

/// Power and miners on, per step.
#[derive(Debug, Clone)]
pub(super) struct FloatLoad {
    pub(super) power: Vec<f64>,
    pub(super) online: Vec<f64>,
}

impl FloatLoad {
    /// Adds (or, negative, takes away) `miners` of a class on a path.
    pub(super) fn shift(&mut self, class: &Class, on: &[bool], miners: f64) {
        let power = class.power * miners;
        for (t, _) in on.iter().enumerate().filter(|(_, on)| **on) {
            self.power[t] += power;
            self.online[t] += miners;
        }
    }
}

impl<'a> Approximate<'a> {
    pub(super) fn new(model: &'a Model) -> Self {
        let class = |unit: &super::model::Unit| Class {
            miners: f64::from(unit.miners),
            power: float(unit.power),
            gain: unit.gain.iter().map(|gain| float(*gain)).collect(),
            start_cost: float(unit.start_cost),
        };
        let limit = |limit: Option<i128>| limit.map_or(f64::INFINITY, float);
        Self {
            classes: model.units.iter().map(class).collect(),
            cap: model.cap.iter().map(|cap| limit(*cap)).collect(),
            floor: model.floor.iter().map(|floor| *floor as f64).collect(),
            ramp: (0..model.steps).map(|t| limit(model.ramp_into(t))).collect(),
            power_before: float(model.power_before),
            model,
        }
    }

    pub(super) fn steps(&self) -> usize {
        self.model.steps
    }

    pub(super) fn nothing_on(&self) -> FloatLoad {
        FloatLoad { power: vec![0.0; self.steps()], online: vec![0.0; self.steps()] }
    }

    /// By how much a load exceeds each limit, negative where it stays below; 0 where there is none.
    pub(super) fn excess(&self, load: &FloatLoad) -> Rows {
        let mut excess = Rows::zero(self.steps());
        let mut before = self.power_before;
        for t in 0..self.steps() {
            let power = load.power[t];
            if self.cap[t].is_finite() {
                excess.cap[t] = power - self.cap[t];
            }
            if self.floor[t] > 0.0 {
                excess.floor[t] = self.floor[t] - load.online[t];
            }
            if self.ramp[t].is_finite() {
                excess.rise[t] = power - before - self.ramp[t];
                excess.fall[t] = before - power - self.ramp[t];
            }
            before = power;
        }
        excess
    }
}
