//! Owns the rows of the site's limits: one number per step for cap, floor, rise and fall, and the bound their prices prove.
//! Promises that any prices give a valid upper bound, computed exactly with roundings upwards.
//! May be called by the files of this folder only.

use super::commitment::best_path;
use super::fixed::ONE;
use super::model::Model;

/// Prices beyond this ($ per kW and step) are no help to the search and could overflow the bound.
const MOST: f64 = 1e9;

/// One number per step and limit: prices ($ per kW or per miner, >= 0), or by how much a limit is exceeded.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Rows {
    /// Power under the cap.
    pub(super) cap: Vec<f64>,
    /// Miners over the floor.
    pub(super) floor: Vec<f64>,
    /// Power gained since the step before.
    pub(super) rise: Vec<f64>,
    /// Power lost since the step before.
    pub(super) fall: Vec<f64>,
}

impl Rows {
    pub(super) fn zero(steps: usize) -> Self {
        let zero = vec![0.0; steps];
        Self { cap: zero.clone(), floor: zero.clone(), rise: zero.clone(), fall: zero }
    }

    /// All numbers, limit after limit.
    pub(super) fn all(&self) -> impl Iterator<Item = f64> {
        [&self.cap, &self.floor, &self.rise, &self.fall].into_iter().flatten().copied()
    }

    /// All numbers, to be changed.
    pub(super) fn all_mut(&mut self) -> impl Iterator<Item = &mut f64> {
        [&mut self.cap, &mut self.floor, &mut self.rise, &mut self.fall].into_iter().flatten()
    }

    /// As prices: moved by `step` along `excess`, none below 0.
    pub(super) fn moved(&self, step: f64, excess: &Self) -> Self {
        let mut prices = self.clone();
        for (price, excess) in prices.all_mut().zip(excess.all()) {
            *price = (*price + step * excess).clamp(0.0, MOST);
        }
        prices
    }

    /// As prices: what a kW costs in step `t`. Power in a step is part of the change into it and out of it.
    pub(super) fn of_power(&self, t: usize) -> f64 {
        let into = |t: usize| self.rise.get(t).unwrap_or(&0.0) - self.fall.get(t).unwrap_or(&0.0);
        self.cap[t] + into(t) - into(t + 1)
    }
}

/// Prices in fixed-point numbers.
pub(super) struct FixedPrices {
    cap: Vec<i128>,
    floor: Vec<i128>,
    rise: Vec<i128>,
    fall: Vec<i128>,
}

impl FixedPrices {
    /// Rounded to fixed point. A price of no limit, or one that is no number in 0..=1e9, is 0: that only loosens the bound.
    pub(super) fn new(model: &Model, prices: &Rows) -> Self {
        let whole = |row: &[f64], limited: &dyn Fn(usize) -> bool| -> Vec<i128> {
            let usable = |t: usize, p: &f64| limited(t) && (0.0..=MOST).contains(p);
            row.iter()
                .enumerate()
                .map(|(t, p)| if usable(t, p) { (p * ONE as f64) as i128 } else { 0 })
                .collect()
        };
        Self {
            cap: whole(&prices.cap, &|t| model.cap[t].is_some()),
            floor: whole(&prices.floor, &|t| model.floor[t] > 0),
            rise: whole(&prices.rise, &|t| model.ramp_into(t).is_some()),
            fall: whole(&prices.fall, &|t| model.ramp_into(t).is_some()),
        }
    }

    /// What one miner of a class collects per step when it pays for its power and is paid for being on. The rent of its
    /// power is rounded down, so the miner never collects less than it should. `None` where sums could leave 128 bits.
    pub(super) fn gain(&self, model: &Model, unit: usize) -> Option<Vec<i128>> {
        let unit = &model.units[unit];
        let room = i128::MAX.unsigned_abs() / 8 / (model.steps as u128 + 1);
        let into = |t: usize| self.rise.get(t).unwrap_or(&0) - self.fall.get(t).unwrap_or(&0);
        (0..model.steps)
            .map(|t| {
                let rent = unit.power.checked_mul(self.cap[t] + into(t) - into(t + 1))?.div_euclid(ONE);
                let gain = unit.gain[t].checked_sub(rent)?.checked_add(self.floor[t])?;
                (gain.unsigned_abs() < room).then_some(gain)
            })
            .collect()
    }

    /// What the limits are worth at these prices, rounded up. `None` beyond 128 bits.
    fn of_limits(&self, model: &Model) -> Option<i128> {
        let mut sum: i128 = 0;
        for t in 0..model.steps {
            let change = self.rise[t] + self.fall[t];
            sum = sum
                .checked_add(self.cap[t].checked_mul(model.cap[t].unwrap_or(0))?)?
                .checked_sub(self.floor[t].checked_mul(model.floor[t].checked_mul(ONE)?)?)?
                .checked_add(change.checked_mul(model.ramp_into(t).unwrap_or(0))?)?;
        }
        if let (Some(rise), Some(fall)) = (self.rise.first(), self.fall.first()) {
            sum = sum.checked_add((rise - fall).checked_mul(model.power_before)?)?;
        }
        Some(-(-sum).div_euclid(ONE))
    }

    /// The upper bound that these prices prove: no schedule that keeps the limits is worth more than what all miners
    /// collect on their best paths at these prices plus what the limits are worth. `None` beyond 128 bits.
    pub(super) fn bound(&self, model: &Model) -> Option<i128> {
        let mut sum = self.of_limits(model)?;
        for (k, unit) in model.units.iter().enumerate() {
            let gains: Vec<_> = self
                .gain(model, k)?
                .into_iter()
                .map(|stay| [[0, stay - unit.start_cost], [0, stay]])
                .collect();
            let best = best_path(&gains, unit.switching).total;
            sum = sum.checked_add(best.checked_mul(i128::from(unit.miners))?)?;
        }
        Some(sum)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::super::testing::{Dice, d};
    use super::super::joint;
    use super::super::site::{MinerClass, Site, Step};
    use super::*;
    use rust_decimal::Decimal;

    /// A small site with every kind of limit.
    pub(in super::super) fn site(dice: &mut Dice) -> Site {
        let steps = (0..4)
            .map(|_| Step {
                seconds: 3600,
                price_usd_mwh: Decimal::from(dice.roll(200)) - d("40"),
                cap_kw: (dice.roll(2) == 0).then(|| Decimal::from(dice.roll(15))),
                min_online_share: Decimal::from(dice.roll(2)) / d("4"),
            })
            .collect();
        let classes = (0..2)
            .map(|_| MinerClass {
                name: String::new(),
                miners: 2,
                power_w: Decimal::from(3_000 + dice.roll(3_000)),
                strike_usd_mwh: Decimal::from(dice.roll(150)),
                start_cost_usd: Decimal::from(dice.roll(3)) / d("10"),
                min_up_steps: dice.roll(3) as u32,
                min_down_steps: dice.roll(3) as u32,
                on: dice.roll(2) == 0,
                held_steps: None,
            })
            .collect();
        Site { steps, classes, ramp_kw: (dice.roll(2) == 0).then(|| Decimal::from(dice.roll(12))) }
    }

    /// Prices of which half are 0.
    pub(in super::super) fn prices(dice: &mut Dice, steps: usize) -> Rows {
        let mut prices = Rows::zero(steps);
        for price in prices.all_mut() {
            *price = if dice.roll(2) == 0 { 0.0 } else { dice.roll(1_000) as f64 / 3_000.0 };
        }
        prices
    }

    #[test]
    fn any_prices_prove_a_bound() {
        let mut dice = Dice(41);
        let mut feasible = 0;
        for _ in 0..300 {
            let model = Model::new(&site(&mut dice)).expect("in range");
            let Some(best) = joint::best_schedule(&model) else { continue };
            feasible += 1;
            let best = model.value(&best);
            for _ in 0..20 {
                let prices = prices(&mut dice, model.steps);
                let bound = FixedPrices::new(&model, &prices).bound(&model).expect("small numbers");
                assert!(bound >= best, "{bound} is below {best}");
            }
        }
        assert!(feasible > 100, "{feasible} feasible");
    }

    #[test]
    fn prices_that_are_none_loosen_the_bound_only() {
        let model = Model::new(&site(&mut Dice(42))).expect("in range");
        let free = FixedPrices::new(&model, &Rows::zero(model.steps)).bound(&model);
        for absurd in [f64::NAN, f64::INFINITY, -1.0, 1e300] {
            let mut prices = Rows::zero(model.steps);
            prices.all_mut().for_each(|price| *price = absurd);
            assert_eq!(FixedPrices::new(&model, &prices).bound(&model), free);
        }
    }
}
