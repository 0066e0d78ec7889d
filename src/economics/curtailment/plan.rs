//! Owns the curtailment plan of a site: the best schedule it can find, the bound that says how good it is, the baselines.
//! Promises a schedule that keeps every limit and is never worse than always-on or the greedy cut where those keep them.
//! May be called by every module; needs nothing but its arguments.

use super::super::EconomicsError;
use super::baseline;
use super::cohort::{Cohort, merged};
use super::commitment::best_path;
use super::fixed::decimal;
use super::joint;
use super::model::Model;
use super::relaxation::{self, Search};
use super::schedule::{ScheduleRow, rows};
use super::site::{MinerClass, Site, Step};
use rust_decimal::Decimal;
use serde::{Deserialize, Serialize};

/// How a plan was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PlanMethod {
    /// By dynamic programme: it is the optimum.
    Exact,
    /// By relaxation and repair: at most the gap away from the optimum.
    Relaxation,
}

/// Why there is no plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// The input is outside what the economics are defined for.
    #[error(transparent)]
    Economics(#[from] EconomicsError),
    /// Proven: cap, floor, ramp and minimum times contradict each other.
    #[error("no schedule keeps the limits of the site")]
    Infeasible,
    /// Not proven: the site is too large for the exact programme and the search found nothing.
    #[error("no schedule that keeps the limits of the site was found")]
    NotFound,
}

/// A schedule for a site. Money is relative to a site that is off: revenue less energy and start costs over the horizon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CurtailmentPlan {
    /// What the schedule is worth, USD.
    pub value_usd: Decimal,
    /// No schedule is worth more, USD.
    pub bound_usd: Decimal,
    /// (bound - value) / the larger of their amounts; 0 for an optimum, 0.005 is 0.5 %.
    pub gap: Decimal,
    /// How it was found.
    pub method: PlanMethod,
    /// What it is worth to leave every miner on, USD; `None` where that breaks a limit.
    pub always_on_usd: Option<Decimal>,
    /// What the greedy cut is worth, USD: run when the price is below the strike, highest strike first; `None` where
    /// that breaks a limit.
    pub greedy_usd: Option<Decimal>,
    /// Value over always-on, USD, >= 0.
    pub gain_over_always_on_usd: Option<Decimal>,
    /// Value over the greedy cut, USD, >= 0.
    pub gain_over_greedy_usd: Option<Decimal>,
    /// Starts of miners.
    pub starts: u64,
    /// Who runs when: miners of one class that switch together.
    pub groups: Vec<PlanGroup>,
    /// The schedule step by step.
    pub rows: Vec<ScheduleRow>,
}

/// Miners of one class that switch together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanGroup {
    /// Position of the class in the site.
    pub class: usize,
    /// How many miners.
    pub miners: u32,
    /// When they are on; off in between.
    pub runs: Vec<Run>,
}

/// Steps in which a group is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// First step.
    pub from: usize,
    /// Step after the last.
    pub to: usize,
}

/// A schedule that was found, and the bound on all of them.
struct Found {
    cohorts: Vec<Cohort>,
    bound: i128,
    method: PlanMethod,
}

/// The optimal commitment of one class that no limit of a site couples to others.
///
/// # Errors
/// [`PlanError::Economics`] as [`curtailment_plan`].
pub fn class_plan(class: &MinerClass, steps: &[Step]) -> Result<CurtailmentPlan, PlanError> {
    let steps = steps
        .iter()
        .map(|step| Step { cap_kw: None, min_online_share: Decimal::ZERO, ..step.clone() })
        .collect();
    curtailment_plan(&Site { steps, classes: vec![class.clone()], ramp_kw: None })
}

/// The plan of a site, by a thorough search: [`searched_plan`].
///
/// # Errors
/// As [`searched_plan`].
pub fn curtailment_plan(site: &Site) -> Result<CurtailmentPlan, PlanError> {
    searched_plan(site, Search::Thorough)
}

/// The plan of a site.
///
/// Where no limit binds, each class has its own exact optimum. Where one does, small sites get the exact optimum of all
/// classes together; larger ones a schedule from a Lagrangian relaxation: `search` says how much work goes into it, and its
/// bound how far it can be from the optimum. Miners of a class switch one by one, so a cap can be used to within one miner.
///
/// # Errors
/// [`PlanError::Economics`] for a field outside its range or sums beyond 7.9e16, [`PlanError::Infeasible`] or
/// [`PlanError::NotFound`] where no schedule keeps the limits.
pub fn searched_plan(site: &Site, search: Search) -> Result<CurtailmentPlan, PlanError> {
    const FIGURE: &str = "value_usd";
    let model = Model::new(site)?;
    let keeps = |cohorts: &[Cohort]| model.violation(&model.load(cohorts)) == 0;
    let (always_on, greedy) = (baseline::always_on(&model), baseline::greedy(&model));
    let baselines = [&always_on, &greedy].map(|cohorts| keeps(cohorts).then(|| model.value(cohorts)));

    let free = uncoupled(&model);
    let found = if keeps(&free) {
        Found { bound: model.value(&free), cohorts: free, method: PlanMethod::Exact }
    } else if joint::is_small(&model) {
        let cohorts = joint::best_schedule(&model).ok_or(PlanError::Infeasible)?;
        Found { bound: model.value(&cohorts), cohorts, method: PlanMethod::Exact }
    } else {
        let (cohorts, bound) = relaxation::schedule(&model, vec![free, always_on, greedy], search);
        if !keeps(&cohorts) {
            return Err(PlanError::NotFound);
        }
        Found { cohorts, bound, method: PlanMethod::Relaxation }
    };

    let value = model.value(&found.cohorts);
    let amount = |value: i128| decimal(value, FIGURE);
    let over = |baseline: Option<i128>| baseline.map(|b| amount(value - b)).transpose();
    let cohorts = merged(found.cohorts);
    Ok(CurtailmentPlan {
        value_usd: amount(value)?,
        bound_usd: amount(found.bound)?,
        gap: gap(amount(value)?, amount(found.bound)?),
        method: found.method,
        always_on_usd: baselines[0].map(amount).transpose()?,
        greedy_usd: baselines[1].map(amount).transpose()?,
        gain_over_always_on_usd: over(baselines[0])?,
        gain_over_greedy_usd: over(baselines[1])?,
        starts: cohorts.iter().map(|c| u64::from(c.miners) * starts(&model, c)).sum(),
        groups: cohorts.iter().map(group).collect(),
        rows: rows(site, &model, &cohorts)?,
    })
}

/// Every class on its own best path, the site's limits left aside.
fn uncoupled(model: &Model) -> Vec<Cohort> {
    let path = |unit: usize| {
        let class = &model.units[unit];
        Cohort { unit, miners: class.miners, on: best_path(&class.gains(), class.switching).on }
    };
    merged((0..model.units.len()).map(path).collect())
}

/// Relative to the larger amount, so that it stays within 0..=2 whatever the signs.
fn gap(value: Decimal, bound: Decimal) -> Decimal {
    let larger = value.abs().max(bound.abs());
    // Both fit 7.9e16 and the quotient is at most 2: nothing here can overflow.
    bound.checked_sub(value).and_then(|d| d.checked_div(larger)).unwrap_or_default().normalize()
}

fn starts(model: &Model, cohort: &Cohort) -> u64 {
    let before = std::iter::once(&model.units[cohort.unit].switching.on).chain(&cohort.on);
    before.zip(&cohort.on).filter(|(was, is)| !**was && **is).count() as u64
}

fn group(cohort: &Cohort) -> PlanGroup {
    let mut runs: Vec<Run> = Vec::new();
    for (t, _) in cohort.on.iter().enumerate().filter(|(_, on)| **on) {
        match runs.last_mut() {
            Some(run) if run.to == t => run.to = t + 1,
            _ => runs.push(Run { from: t, to: t + 1 }),
        }
    }
    PlanGroup { class: cohort.unit, miners: cohort.miners, runs }
}

#[cfg(test)]
mod large;
#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;
