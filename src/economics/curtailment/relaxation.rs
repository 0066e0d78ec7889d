//! Owns the schedule of a site too large for the exact programme: prices, an answer to them, repair, improvement.
//! Promises the best of all schedules it has seen, the given ones included, and a bound that holds for every schedule.
//! May be called by the files of this folder only.

use super::approximate::Approximate;
use super::augmented::{self, Effort};
use super::cohort::Cohort;
use super::dual;
use super::fixed::float;
use super::limits::{FixedPrices, Rows};
use super::model::Model;
use super::renewal::renew;
use super::repair::Repair;

/// Classes times steps that a thorough search for prices may visit, and its least and most rounds: 1,000 for 20 classes
/// of 288 steps. Work is counted, not timed, so that the same site always gets the same schedule.
const PRICE_CELLS: usize = 1_000 * 20 * 288;
const PRICE_ROUNDS: (usize, usize) = (50, 2_000);
/// Steps that thorough renewals may visit, and their least and most rounds.
const RENEWAL_CELLS: usize = 1_000 * 288;
const RENEWALS: (usize, usize) = (50, 2_000);
/// Turns of every group in a repair.
const TURNS: usize = 10;
/// The first try, and the finer one for a site where it leaves more than [`ENOUGH`].
const TRIES: [Effort; 2] =
    [Effort { groups: 40, stages: 8, answers: 2 }, Effort { groups: 80, stages: 12, answers: 3 }];
/// Gap, relative to the bound, at which a schedule is good enough.
const ENOUGH: f64 = 0.002;

/// A brief search does this part of the work of a thorough one, and makes the first try only.
const BRIEF: usize = 4;

/// How much work goes into the schedule of a large site. The bound holds either way; a brief search leaves a wider gap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Search {
    /// For a schedule that is computed again and again, in a transaction.
    Brief,
    /// For one that somebody asked for, and may carry out.
    Thorough,
}

impl Search {
    /// What it takes of the work that a thorough search may do.
    fn part(self, cells: usize) -> usize {
        match self {
            Self::Brief => cells / BRIEF,
            Self::Thorough => cells,
        }
    }

    fn tries(self) -> &'static [Effort] {
        match self {
            Self::Brief => &TRIES[..1],
            Self::Thorough => &TRIES,
        }
    }
}

/// A schedule and an upper bound on the value of all that keep the limits. `given` are schedules to do better than. If
/// none keeps the limits, the one comes back that breaks them least.
pub(super) fn schedule(model: &Model, given: Vec<Vec<Cohort>>, search: Search) -> (Vec<Cohort>, i128) {
    let mut best: Option<Repair<'_>> = None;
    for cohorts in given {
        let mut repair = Repair::new(model, cohorts);
        repair.improve(1);
        best = better(best, repair);
    }
    let target = best.as_ref().and_then(Repair::kept_value).map(float);

    let site = Approximate::new(model);
    let rounds = budget(search.part(PRICE_CELLS), model.steps * model.units.len(), PRICE_ROUNDS);
    let dual = dual::search(&site, rounds, target);
    let prices = FixedPrices::new(model, &dual.prices);
    let bound = prices.bound(model).map_or(free_bound(model), |bound| bound.min(free_bound(model)));

    for effort in search.tries() {
        let answer = augmented::schedule(&site, &dual.prices, &dual.paths, *effort);
        let mut repair = Repair::new(model, answer);
        repair.improve(TURNS);
        renew(&mut repair, model, &prices, budget(search.part(RENEWAL_CELLS), model.steps, RENEWALS));
        best = better(best, repair);
        let value = best.as_ref().and_then(Repair::kept_value);
        if value.is_some_and(|value| float(bound - value) <= ENOUGH * float(bound.abs())) {
            break;
        }
    }
    (best.map(Repair::into_cohorts).unwrap_or_default(), bound)
}

/// What all miners are worth without any limit.
fn free_bound(model: &Model) -> i128 {
    // Without prices nothing leaves 128 bits: the sum was checked when the model was made.
    FixedPrices::new(model, &Rows::zero(model.steps)).bound(model).unwrap_or(i128::MAX)
}

fn better<'a>(best: Option<Repair<'a>>, other: Repair<'a>) -> Option<Repair<'a>> {
    match best {
        Some(best) if best.merit() >= other.merit() => Some(best),
        _ => Some(other),
    }
}

/// Rounds that `cells` allow when each takes `round` of them.
fn budget(cells: usize, round: usize, (least, most): (usize, usize)) -> usize {
    (cells / round.max(1)).clamp(least, most)
}
