//! Owns the search for the prices of the site's limits: the dual of its Lagrangian relaxation, by a deflected subgradient.
//! Promises the best prices it has seen, and the same ones for the same site.
//! May be called by the files of this folder only.

use super::approximate::{Approximate, Class, FloatLoad};
use super::commitment::{Gain, best_path};
use super::limits::Rows;

/// Steps without a better bound after which the step length shrinks.
const PATIENCE: usize = 20;
/// Factor of the step length: where it starts, how it grows and shrinks, its range.
const FACTOR: f64 = 0.1;
const GROWTH: f64 = 1.1;
const SHRINKAGE: f64 = 0.66;
const FACTOR_RANGE: (f64, f64) = (1e-4, 2.0);
/// Weight of the newest load in the average: where it starts, its least value, and how often and when it is halved.
const WEIGHT: f64 = 0.1;
const LEAST_WEIGHT: f64 = 1e-3;
const WEIGHT_ROUNDS: usize = 100;
const SLOW_PROGRESS: f64 = 1e-3;
/// Least distance to the target that a step is computed from, relative to the bound: keeps steps alive near the end.
const LEAST_DISTANCE: f64 = 1e-4;
/// Distance assumed while no schedule is known that keeps the limits.
const UNKNOWN_DISTANCE: f64 = 0.05;

/// Every class on its best path at some prices.
struct Relaxed {
    bound: f64,
    load: FloatLoad,
    paths: Vec<Vec<bool>>,
}

/// The best prices found, and the path of each class at them.
pub(super) struct Dual {
    pub(super) prices: Rows,
    pub(super) paths: Vec<Vec<bool>>,
}

/// Searches prices whose bound comes close to `target`, the value of a schedule that keeps the limits if one is known.
///
/// The volume algorithm (Barahona and Anbil, 2000): steps go from the best prices so far along the limits' excess at an
/// average of the loads seen, which points much straighter than the newest load alone. Step length by Polyak's rule
/// against the target.
pub(super) fn search(site: &Approximate<'_>, rounds: usize, target: Option<f64>) -> Dual {
    let mut prices = marginal_prices(site);
    let Relaxed { mut bound, load: mut average, mut paths } = relax(site, &prices);
    let (mut factor, mut weight, mut waited, mut bound_before) = (FACTOR, WEIGHT, 0, bound);
    for round in 1..=rounds {
        let direction = site.excess(&average);
        let length: f64 = direction
            .all()
            .zip(prices.all())
            .filter(|(excess, price)| *excess > 0.0 || *price > 0.0)
            .map(|(excess, _)| excess * excess)
            .sum();
        let distance = target.map_or(bound.abs() * UNKNOWN_DISTANCE, |target| bound - target);
        let distance = distance.max(bound.abs() * LEAST_DISTANCE);
        let step = factor * distance / length;
        // No excess is left, or numbers have left their range: these prices are the answer.
        if !step.is_finite() {
            break;
        }
        let trial = prices.moved(step, &direction);
        let relaxed = relax(site, &trial);
        let excess = site.excess(&relaxed.load);
        blend(&mut average, &relaxed.load, best_weight(&excess, &direction, weight));
        if relaxed.bound < bound {
            let aligned: f64 = excess.all().zip(direction.all()).map(|(a, b)| a * b).sum();
            if aligned > 0.0 {
                factor = (factor * GROWTH).min(FACTOR_RANGE.1);
            }
            (bound, prices, paths, waited) = (relaxed.bound, trial, relaxed.paths, 0);
        } else {
            waited += 1;
            if waited == PATIENCE {
                (factor, waited) = ((factor * SHRINKAGE).max(FACTOR_RANGE.0), 0);
            }
        }
        if round % WEIGHT_ROUNDS == 0 {
            if bound_before - bound < SLOW_PROGRESS * bound.abs() {
                weight = (weight / 2.0).max(LEAST_WEIGHT);
            }
            bound_before = bound;
        }
    }
    Dual { prices, paths }
}

/// Prices of the cap if every step stood alone: the worth of a kW of the class that just does not fit.
fn marginal_prices(site: &Approximate<'_>) -> Rows {
    let mut prices = Rows::zero(site.steps());
    for (t, cap) in site.cap.iter().enumerate().filter(|(_, cap)| cap.is_finite()) {
        let mut by_worth: Vec<_> = site
            .classes
            .iter()
            .filter(|class| class.power > 0.0)
            .map(|class| (class.gain[t] / class.power, class.power * class.miners))
            .collect();
        by_worth.sort_by(|(a, _), (b, _)| b.total_cmp(a));
        let mut filled = 0.0;
        let marginal = by_worth.into_iter().find(|(_, power)| {
            filled += power;
            filled > *cap
        });
        prices.cap[t] = marginal.map_or(0.0, |(worth, _)| worth.max(0.0));
    }
    prices
}

fn relax(site: &Approximate<'_>, prices: &Rows) -> Relaxed {
    let of_power: Vec<f64> = (0..site.steps()).map(|t| prices.of_power(t)).collect();
    let mut relaxed = Relaxed { bound: 0.0, load: site.nothing_on(), paths: Vec::new() };
    for (class, unit) in site.classes.iter().zip(&site.model.units) {
        let best = best_path(&priced_gains(class, &of_power, &prices.floor), unit.switching);
        relaxed.bound += best.total * class.miners;
        relaxed.load.shift(class, &best.on, class.miners);
        relaxed.paths.push(best.on);
    }
    // What the limits are worth: minus the excess of a site that is off, whose change into the first step is a fall.
    let off = site.excess(&site.nothing_on());
    relaxed.bound -= prices.all().zip(off.all()).map(|(price, excess)| price * excess).sum::<f64>();
    relaxed
}

fn priced_gains(class: &Class, of_power: &[f64], of_miner: &[f64]) -> Vec<Gain<f64>> {
    class
        .gain
        .iter()
        .zip(of_power)
        .zip(of_miner)
        .map(|((gain, power), miner)| {
            let stay = gain - power * class.power + miner;
            [[0.0, stay - class.start_cost], [0.0, stay]]
        })
        .collect()
}

/// The weight of the newest load that leaves least excess in the average, at most `most` and at least a tenth of it.
fn best_weight(newest: &Rows, average: &Rows, most: f64) -> f64 {
    let (mut square, mut product) = (0.0_f64, 0.0);
    for (newest, average) in newest.all().zip(average.all()) {
        square += (newest - average) * (newest - average);
        product += average * (average - newest);
    }
    if square > 0.0 { (product / square).clamp(most / 10.0, most) } else { most }
}

fn blend(average: &mut FloatLoad, newest: &FloatLoad, weight: f64) {
    let rows = [(&mut average.power, &newest.power), (&mut average.online, &newest.online)];
    for (average, newest) in rows.into_iter().flat_map(|(a, n)| a.iter_mut().zip(n)) {
        *average += weight * (newest - *average);
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::testing::{Dice, d};
    use super::super::fixed::float;
    use super::super::limits::FixedPrices;
    use super::super::limits::tests::{prices, site};
    use super::super::model::Model;
    use super::*;

    #[test]
    fn the_search_and_the_proof_mean_the_same_bound() {
        let mut dice = Dice(51);
        for _ in 0..300 {
            // Every limit there: a price of no limit would count in the search and not in the proof.
            let mut site = site(&mut dice);
            site.ramp_kw = Some(d("1.5"));
            for step in &mut site.steps {
                (step.cap_kw, step.min_online_share) = (Some(d("4")), d("0.25"));
            }
            let model = Model::new(&site).expect("in range");
            let mut prices = prices(&mut dice, model.steps);
            if model.ramp_into(0).is_none() {
                (prices.rise[0], prices.fall[0]) = (0.0, 0.0);
            }
            let proven = float(FixedPrices::new(&model, &prices).bound(&model).expect("small numbers"));
            let searched = relax(&Approximate::new(&model), &prices).bound;
            assert!((proven - searched).abs() < 1e-6, "{proven} is not {searched}");
        }
    }

    #[test]
    fn the_search_lowers_the_bound() {
        let mut dice = Dice(52);
        let mut lower = 0;
        for _ in 0..100 {
            let model = Model::new(&site(&mut dice)).expect("in range");
            let approximate = Approximate::new(&model);
            let zero = relax(&approximate, &Rows::zero(model.steps)).bound;
            let first = relax(&approximate, &marginal_prices(&approximate)).bound;
            let last = relax(&approximate, &search(&approximate, 200, None).prices).bound;
            assert!(last <= first + 1e-9);
            lower += u32::from(last < zero.min(first) - 1e-9);
        }
        assert!(lower > 30, "{lower} of 100");
    }
}
