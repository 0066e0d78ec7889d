//! Owns the schedules a plan is measured against: always on, and the greedy cut.
//! Promises paths that respect every minimum up and down time; whether they keep the site's limits is judged outside.
//! May be called by the files of this folder only.

use super::cohort::{Cohort, merged};
use super::model::Model;

/// Every miner on as soon as it may.
pub(super) fn always_on(model: &Model) -> Vec<Cohort> {
    let path = |unit: usize| {
        let switching = model.units[unit].switching;
        let off = if switching.on { 0 } else { switching.locked.min(model.steps) };
        (0..model.steps).map(|t| t >= off).collect()
    };
    let all =
        (0..model.units.len()).map(|unit| Cohort { unit, miners: model.units[unit].miners, on: path(unit) });
    merged(all.collect())
}

/// Run when the price is below the strike, highest strike first as far as cap and ramp allow, more only for the floor
/// or the ramp; each step for itself, without looking ahead.
pub(super) fn greedy(model: &Model) -> Vec<Cohort> {
    let mut site = Greedy {
        model,
        groups: (0..model.units.len())
            .map(|unit| Group {
                cohort: Cohort {
                    unit,
                    miners: model.units[unit].miners,
                    on: Vec::with_capacity(model.steps),
                },
                was_on: model.units[unit].switching.on,
                free_at: model.units[unit].switching.locked,
            })
            .collect(),
        power: 0,
        online: 0,
    };
    let mut power_before = model.power_before;
    for t in 0..model.steps {
        site.step(t, power_before);
        power_before = site.power;
    }
    merged(site.groups.into_iter().map(|group| group.cohort).collect())
}

/// Miners that have switched together so far.
struct Group {
    cohort: Cohort,
    was_on: bool,
    /// First step in which they may switch again.
    free_at: usize,
}

struct Greedy<'a> {
    model: &'a Model,
    groups: Vec<Group>,
    power: i128,
    online: i128,
}

impl Greedy<'_> {
    fn step(&mut self, t: usize, power_before: i128) {
        let model = self.model;
        (self.power, self.online) = (0, 0);
        let (mut free, bound): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.groups).into_iter().partition(|group| group.free_at <= t);
        for group in bound {
            let is = group.was_on;
            self.place(t, group, is);
        }
        // Stable: of one class, those that run keep running.
        free.sort_by_key(|group| (model.units[group.cohort.unit].rank, !group.was_on));
        let ramp = model.ramp_into(t);
        let most = [model.cap[t], ramp.map(|ramp| power_before + ramp)].into_iter().flatten().min();
        let room = |site: &Self| most.map_or(i128::MAX, |most| most - site.power);
        let wanted = |site: &Self, group: &Group| {
            let unit = &model.units[group.cohort.unit];
            if unit.gain[t] > 0 { room(site).checked_div(unit.power).unwrap_or(i128::MAX) } else { 0 }
        };
        let missing = |site: &Self, group: &Group| {
            let unit = &model.units[group.cohort.unit];
            let fits = room(site).checked_div(unit.power).unwrap_or(i128::MAX);
            (model.floor[t] - site.online).min(fits)
        };
        let falling = |site: &Self, group: &Group| {
            let unit = &model.units[group.cohort.unit];
            let least = ramp.map_or(0, |ramp| power_before - ramp);
            let power = unit.power.max(1);
            if group.was_on { (least - site.power + power - 1) / power } else { 0 }
        };
        let free = self.take(t, free, wanted);
        let free = self.take(t, free, missing);
        let free = self.take(t, free, falling);
        for group in free {
            self.place(t, group, false);
        }
    }

    /// Puts of each group as many on as `count` says; the rest is given back.
    fn take(&mut self, t: usize, groups: Vec<Group>, count: impl Fn(&Self, &Group) -> i128) -> Vec<Group> {
        let mut left = Vec::new();
        for mut group in groups {
            let miners = i128::from(group.cohort.miners);
            let on = count(self, &group).clamp(0, miners);
            // At most as many as the group has, so it is a u32.
            let on = on as u32;
            let rest = Group {
                cohort: Cohort { miners: group.cohort.miners - on, ..group.cohort.clone() },
                was_on: group.was_on,
                free_at: group.free_at,
            };
            group.cohort.miners = on;
            if on > 0 {
                self.place(t, group, true);
            }
            if rest.cohort.miners > 0 {
                left.push(rest);
            }
        }
        left
    }

    fn place(&mut self, t: usize, mut group: Group, is: bool) {
        let unit = &self.model.units[group.cohort.unit];
        if is != group.was_on {
            let minimum = if is { unit.switching.min_up } else { unit.switching.min_down };
            group.free_at = t.saturating_add(minimum);
            group.was_on = is;
        }
        group.cohort.on.push(is);
        if is {
            self.power += unit.power * i128::from(group.cohort.miners);
            self.online += i128::from(group.cohort.miners);
        }
        self.groups.push(group);
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::testing::d;
    use super::super::site::{MinerClass, Site, Step};
    use super::*;

    fn class(strike: &str) -> MinerClass {
        MinerClass {
            name: String::new(),
            miners: 4,
            power_w: d("1000"),
            strike_usd_mwh: d(strike),
            start_cost_usd: d("0"),
            min_up_steps: 1,
            min_down_steps: 1,
            on: true,
            held_steps: None,
        }
    }

    fn step(price: &str, cap_kw: Option<&str>) -> Step {
        Step { seconds: 3600, price_usd_mwh: d(price), cap_kw: cap_kw.map(d), min_online_share: d("0") }
    }

    /// Miners on per class and step.
    fn online(cohorts: &[Cohort], classes: usize, steps: usize) -> Vec<Vec<u32>> {
        let count = |class, t: usize| {
            cohorts.iter().filter(|c| c.unit == class && c.on[t]).map(|c| c.miners).sum::<u32>()
        };
        (0..classes).map(|class| (0..steps).map(|t| count(class, t)).collect()).collect()
    }

    fn greedy_of(site: &Site) -> Vec<Vec<u32>> {
        let model = Model::new(site).expect("in range");
        online(&greedy(&model), site.classes.len(), site.steps.len())
    }

    #[test]
    fn greedy_runs_below_the_strike_and_fills_the_cap_from_the_top() {
        let steps = vec![step("50", None), step("70", None), step("50", Some("6")), step("95", None)];
        let site = Site { steps, classes: vec![class("60"), class("90")], ramp_kw: None };
        assert_eq!(greedy_of(&site), [[4, 0, 2, 0], [4, 4, 4, 0]]);
    }

    #[test]
    fn greedy_pays_for_minima_that_it_did_not_foresee() {
        let stuck = MinerClass { min_up_steps: 2, min_down_steps: 3, on: false, ..class("60") };
        let steps = vec![
            step("50", None),
            step("70", None),
            step("70", None),
            step("50", None),
            step("50", None),
            step("50", None),
        ];
        let site = Site { steps, classes: vec![stuck], ramp_kw: None };
        assert_eq!(greedy_of(&site), [[4, 4, 0, 0, 0, 4]]);
    }

    #[test]
    fn greedy_keeps_floor_and_ramp_as_far_as_it_sees() {
        let dear = vec![step("99", None); 3];
        let site = Site { steps: dear, classes: vec![class("60"), class("90")], ramp_kw: Some(d("3")) };
        assert_eq!(greedy_of(&site), [[1, 0, 0], [4, 2, 0]]);
        let mut site = Site { ramp_kw: None, ..site };
        site.steps[1].min_online_share = d("0.3");
        assert_eq!(greedy_of(&site), [[0, 0, 0], [0, 3, 0]]);
    }

    #[test]
    fn always_on_starts_when_it_may() {
        let off = MinerClass { on: false, min_down_steps: 3, held_steps: Some(1), ..class("60") };
        let site = Site { steps: vec![step("99", None); 4], classes: vec![off, class("90")], ramp_kw: None };
        let model = Model::new(&site).expect("in range");
        assert_eq!(online(&always_on(&model), 2, 4), [[0, 0, 4, 4], [4; 4]]);
    }
}
