//! Owns the property tests of curtailment plans, over random sites from a fixed seed.
//! Promises equality with brute force on small sites, limits kept, baselines never better, and no panic at extremes.
//! May be called by the test runner only.

use super::super::super::testing::{Dice, d};
use super::tests::s21;
use super::*;

fn random_step(dice: &mut Dice, limited: bool) -> Step {
    Step {
        seconds: [900, 1800, 3600][dice.roll(3) as usize],
        // Few different prices, so that ties are common.
        price_usd_mwh: Decimal::from(dice.roll(14) * 10) - d("20"),
        cap_kw: (limited && dice.roll(2) == 0).then(|| Decimal::from(dice.roll(16))),
        min_online_share: if limited && dice.roll(4) == 0 { d("0.25") } else { d("0") },
    }
}

fn random_class(dice: &mut Dice, miners: u32) -> MinerClass {
    MinerClass {
        name: String::new(),
        miners,
        power_w: [d("3500"), d("3000"), d("5360"), d("0")][dice.roll(8).saturating_sub(4) as usize],
        strike_usd_mwh: Decimal::from(dice.roll(12) * 10),
        start_cost_usd: Decimal::from(dice.roll(3)) / d("20"),
        min_up_steps: dice.roll(4) as u32,
        min_down_steps: dice.roll(4) as u32,
        on: dice.roll(2) == 0,
        held_steps: (dice.roll(2) == 0).then(|| dice.roll(4) as u32),
    }
}

fn kw(class: &MinerClass) -> Decimal {
    class.power_w / d("1000")
}

/// Whether one miner may follow a path: the rule itself, run by run.
fn allowed(class: &MinerClass, on: &[bool]) -> bool {
    let (mut was, mut left) = (class.on, class.locked_steps());
    on.iter().all(|is| {
        if *is == was {
            left = left.saturating_sub(1);
            return true;
        }
        let minimum = if *is { class.min_up_steps } else { class.min_down_steps };
        let free = left == 0;
        (was, left) = (*is, minimum.saturating_sub(1));
        free
    })
}

/// Every path one miner may follow.
fn paths(class: &MinerClass, steps: usize) -> Vec<Vec<bool>> {
    (0..1_u32 << steps)
        .map(|bits| (0..steps).map(|t| bits >> t & 1 == 1).collect::<Vec<_>>())
        .filter(|on| allowed(class, on))
        .collect()
}

/// Value, starts and steps on of one miner, computed from the definition.
fn judge(class: &MinerClass, steps: &[Step], on: &[bool]) -> (Decimal, u64, u64) {
    let (mut value, mut starts, mut steps_on, mut was) = (d("0"), 0, 0, class.on);
    for (step, is) in steps.iter().zip(on) {
        if *is {
            let kwh = kw(class) * Decimal::from(step.seconds) / d("3600");
            value += kwh * (class.strike_usd_mwh - step.price_usd_mwh) / d("1000");
            steps_on += 1;
            if !was {
                value -= class.start_cost_usd;
                starts += 1;
            }
        }
        was = *is;
    }
    (value, starts, steps_on)
}

/// Whether miners on these paths together keep the site's limits. What runs before above the first cap did not run: no ramp
/// leads from it.
fn keeps(site: &Site, miners: &[(&MinerClass, &Vec<bool>)]) -> bool {
    let total: u32 = site.classes.iter().map(|c| c.miners).sum();
    let mut before: Decimal = miners.iter().filter(|(c, _)| c.on).map(|(c, _)| kw(c)).sum();
    let unknown = site.steps.first().is_some_and(|step| step.cap_kw.is_some_and(|cap| before > cap));
    site.steps.iter().enumerate().all(|(t, step)| {
        let on = miners.iter().filter(|(_, path)| path[t]);
        let kw: Decimal = on.clone().map(|(c, _)| kw(c)).sum();
        let change = (kw - before).abs();
        before = kw;
        step.cap_kw.is_none_or(|cap| kw <= cap)
            && Decimal::from(on.count()) >= step.min_online_share * Decimal::from(total)
            && site.ramp_kw.is_none_or(|ramp| change <= ramp || (t == 0 && unknown))
    })
}

/// Checks a plan against its site, from the definitions.
pub(super) fn check(site: &Site, plan: &CurtailmentPlan) {
    let mut members = Vec::new();
    let mut paths = Vec::new();
    for group in &plan.groups {
        let mut on = vec![false; site.steps.len()];
        for run in &group.runs {
            assert!(run.from < run.to);
            on[run.from..run.to].fill(true);
        }
        paths.push((group, on));
    }
    let (mut value, mut starts) = (d("0"), 0);
    for (group, on) in &paths {
        let class = &site.classes[group.class];
        assert!(allowed(class, on), "a minimum is broken");
        let (worth, begun, _) = judge(class, &site.steps, on);
        value += worth * Decimal::from(group.miners);
        starts += begun * u64::from(group.miners);
        members.extend(std::iter::repeat_n((class, on), group.miners as usize));
    }
    let miners = |class| plan.groups.iter().filter(|g| g.class == class).map(|g| g.miners).sum::<u32>();
    assert!(site.classes.iter().enumerate().all(|(i, class)| miners(i) == class.miners));
    assert!(keeps(site, &members), "a limit is broken");
    assert!((value - plan.value_usd).abs() < d("1e-6"));
    assert_eq!(starts, plan.starts);

    let rows: Decimal =
        plan.rows.iter().map(|row| row.revenue_usd - row.power_cost_usd - row.start_cost_usd).sum();
    assert_eq!(rows, plan.value_usd, "rows add up");
    for (t, row) in plan.rows.iter().enumerate() {
        assert_eq!(row.miners_online, members.iter().filter(|(_, on)| on[t]).count() as u64);
        assert_eq!(row.miners_online + row.miners_offline, members.len() as u64);
        assert_eq!(row.kw, row.classes.iter().map(|class| class.kw).sum());
    }
    assert!(plan.bound_usd >= plan.value_usd);
    for baseline in [plan.always_on_usd, plan.greedy_usd].into_iter().flatten() {
        assert!(plan.value_usd >= baseline);
    }
}

#[test]
fn one_class_equals_brute_force_ties_included() {
    let mut dice = Dice(1);
    for _ in 0..400 {
        let steps: Vec<_> = (0..dice.roll(10)).map(|_| random_step(&mut dice, false)).collect();
        let class = random_class(&mut dice, 1);
        let plan = class_plan(&class, &steps).expect("in range");
        check(&Site { steps: steps.clone(), classes: vec![class.clone()], ramp_kw: None }, &plan);
        let best = paths(&class, steps.len())
            .into_iter()
            .max_by_key(|on| {
                let (value, starts, steps_on) = judge(&class, &steps, on);
                (value.round_dp(9), std::cmp::Reverse(starts), steps_on, on.clone())
            })
            .expect("staying is allowed");
        let on: Vec<_> = plan.rows.iter().map(|row| row.miners_online == 1).collect();
        assert_eq!(on, best, "{class:?} {steps:?}");
    }
}

fn random_site(dice: &mut Dice) -> Site {
    let steps = (0..dice.roll(4) + 1).map(|_| random_step(dice, true)).collect();
    let sizes = [vec![1, 1, 1], vec![2, 1], vec![3], vec![2, 2], vec![4]];
    let classes = sizes[dice.roll(5) as usize].iter().map(|miners| random_class(dice, *miners)).collect();
    let ramp_kw = (dice.roll(3) == 0).then(|| Decimal::from(dice.roll(12)));
    Site { steps, classes, ramp_kw }
}

/// The best value over all assignments of paths to miners; `None` if none keeps the limits.
fn brute_force(site: &Site) -> Option<Decimal> {
    let each: Vec<(&MinerClass, Vec<Vec<bool>>)> = site
        .classes
        .iter()
        .flat_map(|class| {
            std::iter::repeat_with(move || (class, paths(class, site.steps.len())))
                .take(class.miners as usize)
        })
        .collect();
    let mut best = None;
    let mut chosen = vec![0; each.len()];
    loop {
        let members: Vec<_> =
            each.iter().zip(&chosen).map(|((class, paths), k)| (*class, &paths[*k])).collect();
        if keeps(site, &members) {
            let value = members.iter().map(|(class, on)| judge(class, &site.steps, on).0).sum();
            best = best.max(Some(value));
        }
        let Some(k) = (0..chosen.len()).find(|k| chosen[*k] + 1 < each[*k].1.len()) else {
            return best;
        };
        chosen[k] += 1;
        chosen[..k].fill(0);
    }
}

#[test]
fn small_sites_equal_brute_force() {
    let mut dice = Dice(2);
    let (mut solved, mut refused) = (0, 0);
    for _ in 0..300 {
        let site = random_site(&mut dice);
        let best = brute_force(&site);
        match curtailment_plan(&site) {
            Ok(plan) => {
                check(&site, &plan);
                let best = best.expect("a plan exists");
                assert!(
                    (plan.value_usd - best).abs() < d("1e-9"),
                    "{} is not {best}: {site:?}",
                    plan.value_usd
                );
                assert_eq!(plan.method, PlanMethod::Exact);
                solved += 1;
            }
            Err(error) => {
                assert_eq!((error, best), (PlanError::Infeasible, None), "{site:?}");
                refused += 1;
            }
        }
    }
    assert!(solved > 100 && refused > 30, "{solved} solved, {refused} refused");
}

#[test]
fn the_relaxation_brackets_the_optimum() {
    let mut dice = Dice(3);
    let (mut found, mut hit) = (0, 0);
    for _ in 0..150 {
        let site = random_site(&mut dice);
        let model = Model::new(&site).expect("in range");
        let Some(best) = joint::best_schedule(&model) else { continue };
        let best = model.value(&best);
        let (cohorts, bound) = relaxation::schedule(&model, vec![uncoupled(&model)], Search::Thorough);
        assert!(bound >= best, "the bound is below the optimum: {site:?}");
        if model.violation(&model.load(&cohorts)) == 0 {
            found += 1;
            let value = model.value(&cohorts);
            assert!(value <= best);
            hit += u32::from(value == best);
        }
    }
    assert!(found > 80 && hit * 10 > found * 8, "{found} found, {hit} of them optimal");
}

#[test]
fn no_threshold_cut_beats_the_optimum() {
    let mut dice = Dice(4);
    for _ in 0..200 {
        let site = random_site(&mut dice);
        let Ok(plan) = curtailment_plan(&site) else { continue };
        for threshold in 0..16 {
            let below = Decimal::from(threshold * 10) - d("20");
            let on: Vec<_> = site.steps.iter().map(|step| step.price_usd_mwh < below).collect();
            let members: Vec<_> = site
                .classes
                .iter()
                .flat_map(|class| std::iter::repeat_n((class, &on), class.miners as usize))
                .collect();
            if members.iter().all(|(class, on)| allowed(class, on)) && keeps(&site, &members) {
                let value: Decimal = members.iter().map(|(c, on)| judge(c, &site.steps, on).0).sum();
                assert!(plan.value_usd >= value - d("1e-9"));
            }
        }
    }
}

#[test]
fn dearer_power_never_raises_the_value() {
    let mut dice = Dice(5);
    for _ in 0..200 {
        let site = random_site(&mut dice);
        let Ok(plan) = curtailment_plan(&site) else { continue };
        let mut dearer = site.clone();
        for step in &mut dearer.steps {
            step.price_usd_mwh += Decimal::from(dice.roll(40));
        }
        let dear = curtailment_plan(&dearer).expect("limits are the same");
        assert!(dear.value_usd <= plan.value_usd);
        // The first cap stays: one that what runs before keeps to brings the ramp into the first step.
        let mut looser = site;
        for step in looser.steps.iter_mut().skip(1) {
            step.cap_kw = step.cap_kw.map(|cap| cap + Decimal::from(dice.roll(5)));
        }
        let loose = curtailment_plan(&looser).expect("limits are looser");
        assert!(loose.value_usd >= plan.value_usd);
    }
}

#[test]
fn extremes_give_a_plan_or_a_typed_error() {
    let extremes = ["0", "1e-28", "1", "1e12", "7.9e28", "-7.9e28", "-1e-28"].map(d);
    let mut dice = Dice(6);
    let mut pick = || extremes[dice.roll(7) as usize];
    let (mut plans, mut errors) = (0, 0);
    for round in 0..2_000_u32 {
        let mut value = |usual: &str| if round % 3 == 0 { d(usual) } else { pick() };
        let steps = vec![
            Step {
                seconds: if round % 5 == 0 { u32::MAX } else { 300 },
                price_usd_mwh: value("50"),
                cap_kw: Some(value("5")),
                min_online_share: d("0"),
            };
            3
        ];
        let class = MinerClass {
            miners: [1, 3, u32::MAX][round as usize % 3],
            power_w: pick(),
            strike_usd_mwh: pick(),
            start_cost_usd: pick(),
            min_up_steps: u32::MAX * (round % 2),
            held_steps: (round % 7 == 0).then_some(u32::MAX),
            ..s21()
        };
        let ramp_kw = (round % 2 == 0).then(&mut pick);
        match curtailment_plan(&Site { steps, classes: vec![class.clone(), class], ramp_kw }) {
            Ok(plan) => {
                assert!(plan.bound_usd >= plan.value_usd && (d("0")..=d("2")).contains(&plan.gap));
                plans += 1;
            }
            Err(_) => errors += 1,
        }
    }
    assert!(plans > 20 && errors > 20, "{plans} plans, {errors} errors");
}
