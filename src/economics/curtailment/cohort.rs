//! Owns cohorts: the miners of a class that switch together, and how a class falls into them.
//! Promises that numbers of switches that are feasible for a class become paths that are feasible for each miner.
//! May be called by the files of this folder only.

use super::model::Model;
use std::collections::{BTreeMap, VecDeque};

/// Miners of one class that switch together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Cohort {
    /// Position of the class.
    pub(super) unit: usize,
    pub(super) miners: u32,
    /// On or off, per step.
    pub(super) on: Vec<bool>,
}

/// Cohorts of the same class and path made one, by class and then path; empty ones are dropped.
pub(super) fn merged(cohorts: Vec<Cohort>) -> Vec<Cohort> {
    let mut paths: BTreeMap<(usize, Vec<bool>), u32> = BTreeMap::new();
    for cohort in cohorts.into_iter().filter(|cohort| cohort.miners > 0) {
        *paths.entry((cohort.unit, cohort.on)).or_default() += cohort.miners;
    }
    paths.into_iter().map(|((unit, on), miners)| Cohort { unit, miners, on }).collect()
}

/// The cohorts behind the numbers of (stops, starts) per step and class: whoever has been longest in a state leaves it
/// first, so if anybody's minimum is served, theirs is.
pub(super) fn cohorts_of(model: &Model, switches: &[&[(u32, u32)]]) -> Vec<Cohort> {
    let mut cohorts = Vec::new();
    for (unit, class) in model.units.iter().enumerate() {
        let all = Cohort { unit, miners: class.miners, on: Vec::with_capacity(model.steps) };
        let (mut on, mut off) = (VecDeque::new(), VecDeque::new());
        if class.switching.on {
            on.push_back(all)
        } else {
            off.push_back(all)
        }
        for step in switches {
            let (stops, starts) = step[unit];
            let (stopped, started) = (oldest(&mut on, stops), oldest(&mut off, starts));
            on.extend(started);
            off.extend(stopped);
            on.iter_mut().for_each(|cohort| cohort.on.push(true));
            off.iter_mut().for_each(|cohort| cohort.on.push(false));
        }
        cohorts.extend(on);
        cohorts.extend(off);
    }
    merged(cohorts)
}

/// Takes the first `miners` out of a queue, dividing the cohort that is only partly needed.
fn oldest(queue: &mut VecDeque<Cohort>, mut miners: u32) -> Vec<Cohort> {
    let mut taken = Vec::new();
    while miners > 0 {
        let Some(mut first) = queue.pop_front() else { break };
        if first.miners > miners {
            let rest = Cohort { miners: first.miners - miners, ..first.clone() };
            first.miners = miners;
            queue.push_front(rest);
        }
        miners -= first.miners;
        taken.push(first);
    }
    taken
}

#[cfg(test)]
mod tests {
    use super::super::super::testing::d;
    use super::super::site::{MinerClass, Site, Step};
    use super::*;

    fn cohort(unit: usize, miners: u32, on: &[u8]) -> Cohort {
        Cohort { unit, miners, on: on.iter().map(|on| *on == 1).collect() }
    }

    #[test]
    fn equal_paths_merge_and_empty_groups_go() {
        let parts = vec![
            cohort(1, 2, &[0, 1]),
            cohort(0, 1, &[1, 1]),
            cohort(1, 3, &[0, 1]),
            cohort(1, 0, &[1, 1]),
            cohort(1, 4, &[0, 0]),
        ];
        assert_eq!(merged(parts), [cohort(0, 1, &[1, 1]), cohort(1, 4, &[0, 0]), cohort(1, 5, &[0, 1])]);
    }

    #[test]
    fn who_is_longest_in_a_state_leaves_it_first() {
        let step = Step { seconds: 60, price_usd_mwh: d("1"), cap_kw: None, min_online_share: d("0") };
        let class = MinerClass {
            name: String::new(),
            miners: 5,
            power_w: d("1"),
            strike_usd_mwh: d("1"),
            start_cost_usd: d("0"),
            min_up_steps: 2,
            min_down_steps: 1,
            on: false,
            held_steps: None,
        };
        let site = Site { steps: vec![step; 4], classes: vec![class], ramp_kw: None };
        let model = Model::new(&site).expect("in range");
        // Three start, then two; the two that stop in the third step are of the first three.
        let switches: [&[(u32, u32)]; 4] = [&[(0, 3)], &[(0, 2)], &[(2, 0)], &[(3, 0)]];
        let cohorts = cohorts_of(&model, &switches);
        assert_eq!(
            cohorts,
            [cohort(0, 2, &[0, 1, 1, 0]), cohort(0, 2, &[1, 1, 0, 0]), cohort(0, 1, &[1, 1, 1, 0])]
        );
    }
}
