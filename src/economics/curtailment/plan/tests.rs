//! Owns the unit tests of curtailment plans.
//! Promises the specification's numbers (section 4, the curtailment day of section 1) and each limit on a case by hand.
//! May be called by the test runner only.

use super::super::super::testing::d;
use super::*;

/// Net revenue per day in USD of the reference S21, to all its digits.
const REVENUE_DAY: &str = "7.51112401485443115234375";

/// One S21 of the reference case: 3,500 W, on before the horizon with its minimum served.
pub(super) fn s21() -> MinerClass {
    MinerClass {
        name: "S21".to_owned(),
        miners: 1,
        power_w: d("3500"),
        strike_usd_mwh: d(REVENUE_DAY) * d("1000") / d("84"),
        start_cost_usd: d("0"),
        min_up_steps: 1,
        min_down_steps: 1,
        on: true,
        held_steps: None,
    }
}

/// Steps of an hour at these prices in $/kWh.
fn hours(prices: &[&str]) -> Vec<Step> {
    let step = |price: &&str| Step {
        seconds: 3600,
        price_usd_mwh: d(price) * d("1000"),
        cap_kw: None,
        min_online_share: d("0"),
    };
    prices.iter().map(step).collect()
}

fn twelve_hours() -> Vec<Step> {
    let prices = "0.05 0.05 0.10 0.06 0.12 0.30 0.30 0.10 0.05 0.095 0.05 0.05";
    hours(&prices.split(' ').collect::<Vec<_>>())
}

/// When the first group is on.
fn pattern(plan: &CurtailmentPlan) -> String {
    plan.rows.iter().map(|row| if row.miners_online > 0 { '1' } else { '0' }).collect()
}

#[track_caller]
fn worth(plan: &CurtailmentPlan, expected: &str) {
    assert!((plan.value_usd - d(expected)).abs() <= d("0.00001"), "{} is not {expected}", plan.value_usd);
}

fn day(class: &MinerClass) -> CurtailmentPlan {
    class_plan(class, &twelve_hours()).expect("in range")
}

#[test]
fn commitment_of_the_specification() {
    let free = day(&s21());
    worth(&free, "0.792781");
    assert_eq!(pattern(&free), "110100001011");
    let always_on = free.always_on_usd.expect("nothing limits it");
    assert!((always_on - d("-0.881938")).abs() <= d("0.00001"));
    assert_eq!(free.gain_over_always_on_usd, Some(free.value_usd - always_on));

    let bound = MinerClass { min_up_steps: 2, min_down_steps: 2, ..s21() };
    let plan = day(&bound);
    worth(&plan, "0.736208");
    assert_eq!(pattern(&plan), "111100001111");

    let paid = day(&MinerClass { start_cost_usd: d("0.05"), ..bound });
    worth(&paid, "0.686208");
    assert_eq!((pattern(&paid).as_str(), paid.starts), ("111100001111", 1));
    for plan in [free, plan, paid] {
        assert_eq!((plan.method, plan.gap, plan.bound_usd), (PlanMethod::Exact, d("0"), plan.value_usd));
    }
}

#[test]
fn curtailment_day_of_the_reference_case() {
    let prices = [["0.05"; 20].as_slice(), ["0.30"; 4].as_slice()].concat();
    let plan = class_plan(&s21(), &hours(&prices)).expect("in range");
    worth(&plan, "2.759270");
    let always_on = plan.always_on_usd.expect("nothing limits it");
    assert!((always_on - d("-0.188876")).abs() <= d("0.00001"));
    assert_eq!(plan.rows.iter().map(|row| row.miners_online).sum::<u64>(), 20);
    assert!(plan.rows.iter().enumerate().all(|(t, row)| row.is_peak == (t >= 20)));
}

#[test]
fn strikes_of_the_specification_decide() {
    use super::super::super::mining::strike_usd_mwh;
    for (j_th, strike) in [
        ("9.5", "167.543860"),
        ("13.5", "117.901235"),
        ("17.5", "90.952381"),
        ("21.5", "74.031008"),
        ("29.5", "53.954802"),
        ("38", "41.885965"),
    ] {
        let computed = strike_usd_mwh(d("38.2"), d(j_th), d("0")).expect("an efficiency");
        let class = MinerClass { strike_usd_mwh: computed, ..s21() };
        let at = |offset: &str| {
            let price = ((d(strike) + d(offset)) / d("1000")).to_string();
            pattern(&class_plan(&class, &hours(&[&price])).expect("in range"))
        };
        assert_eq!((at("-0.00001"), at("0.00001")), ("1".to_owned(), "0".to_owned()), "{j_th} J/TH");
    }
}

#[test]
fn five_minutes_are_a_twelfth_of_an_hour() {
    let hour = twelve_hours();
    let fine: Vec<_> = hour.iter().flat_map(|step| vec![Step { seconds: 300, ..step.clone() }; 12]).collect();
    let plan = class_plan(&s21(), &fine).expect("in range");
    assert!((plan.value_usd - day(&s21()).value_usd).abs() < d("1e-9"));
    assert_eq!(plan.rows[143].offset_seconds, 42_900);
    let slow = MinerClass { min_up_steps: 24, min_down_steps: 24, ..s21() };
    worth(&class_plan(&slow, &fine).expect("in range"), "0.736208");
    let mixed = [&fine[..12], &hour[1..]].concat();
    assert!((class_plan(&s21(), &mixed).expect("in range").value_usd - plan.value_usd).abs() < d("1e-9"));
}

#[test]
fn a_state_whose_minimum_is_not_served_is_kept() {
    let dear = hours(&["0.5"; 6]);
    let on = |held_steps| MinerClass { min_up_steps: 4, held_steps, ..s21() };
    let plan = |class: &MinerClass, steps: &[Step]| pattern(&class_plan(class, steps).expect("in range"));
    assert_eq!(plan(&on(None), &dear), "000000");
    assert_eq!(plan(&on(Some(4)), &dear), "000000");
    assert_eq!(plan(&on(Some(1)), &dear), "111000");
    assert_eq!(plan(&on(Some(0)), &dear), "111100");
    let cheap = hours(&["0.01"; 6]);
    let off = |held_steps| MinerClass { on: false, min_down_steps: 4, held_steps, ..s21() };
    assert_eq!(plan(&off(None), &cheap), "111111");
    assert_eq!(plan(&off(Some(1)), &cheap), "000111");
    let endless = MinerClass { min_up_steps: u32::MAX, held_steps: Some(7), ..s21() };
    assert_eq!(plan(&endless, &dear), "111111");
}

#[test]
fn ties_take_fewest_starts_then_running() {
    // At the strike itself running is worth nothing: no start is made for it, and no stop.
    let even = MinerClass { strike_usd_mwh: d("50"), ..s21() };
    let steps = hours(&["0.05", "0.05", "0.05"]);
    assert_eq!(pattern(&class_plan(&even, &steps).expect("in range")), "111");
    let off = MinerClass { on: false, ..even.clone() };
    assert_eq!(pattern(&class_plan(&off, &steps).expect("in range")), "000");
    // One start is needed; before the cheap step it may come at no cost, and comes as early as that.
    let one = hours(&["0.05", "0.05", "0.04", "0.05", "0.06"]);
    let plan = class_plan(&off, &one).expect("in range");
    assert_eq!((pattern(&plan).as_str(), plan.starts), ("11110", 1));
    // A break that saves nothing is no reason to start again.
    let dip = hours(&["0.04", "0.05", "0.04"]);
    assert_eq!(pattern(&class_plan(&even, &dip).expect("in range")), "111");
}

#[test]
fn a_cap_is_filled_miner_by_miner() {
    let weak = MinerClass { name: "S19".to_owned(), strike_usd_mwh: d("60"), miners: 10, ..s21() };
    let strong = MinerClass { miners: 10, ..s21() };
    let mut steps = hours(&["0.05", "0.05"]);
    steps[1].cap_kw = Some(d("41"));
    let site = Site { steps, classes: vec![weak, strong], ramp_kw: None };
    let plan = curtailment_plan(&site).expect("feasible");
    let online = |t: usize| plan.rows[t].classes.iter().map(|c| c.online).collect::<Vec<_>>();
    assert_eq!((online(0), online(1)), (vec![10, 10], vec![1, 10]));
    assert_eq!((plan.rows[1].kw, plan.rows[1].miners_offline), (d("38.5"), 9));
    assert_eq!(plan.always_on_usd, None, "it breaks the cap");
    assert_eq!(plan.gain_over_greedy_usd, Some(d("0")));
    let weak_runs: Vec<_> = plan.groups.iter().filter(|g| g.class == 0).collect();
    assert_eq!(weak_runs.len(), 2);
    assert_eq!(weak_runs[0].runs, [Run { from: 0, to: 1 }]);
}

#[test]
fn a_floor_keeps_miners_on_at_a_loss() {
    let mut steps = hours(&["0.5", "0.5"]);
    steps[1].min_online_share = d("0.25");
    let site = Site { steps, classes: vec![MinerClass { miners: 10, ..s21() }], ramp_kw: None };
    let plan = curtailment_plan(&site).expect("feasible");
    assert_eq!((plan.rows[0].miners_online, plan.rows[1].miners_online), (0, 3));
    assert!(plan.value_usd < d("0"));
}

#[test]
fn a_ramp_counts_from_the_power_before() {
    let class = MinerClass { miners: 10, ..s21() };
    let site = Site { steps: hours(&["0.5"; 4]), classes: vec![class], ramp_kw: Some(d("14")) };
    let plan = curtailment_plan(&site).expect("feasible");
    let online: Vec<_> = plan.rows.iter().map(|row| row.miners_online).collect();
    assert_eq!(online, [6, 2, 0, 0]);
}

/// 21 kW cannot have run under a cap of 8: the change into the first step is free, those behind it are not.
#[test]
fn a_cap_under_what_runs_before_does_not_contradict_the_ramp() {
    for miners in [6, 600] {
        let mut steps = hours(&["0.05", "0.05", "0.05", "0.10"]);
        for step in &mut steps {
            step.cap_kw = Some(Decimal::from(miners * 4 / 3));
        }
        let site = Site { steps, classes: vec![MinerClass { miners, ..s21() }], ramp_kw: Some(d("0")) };
        let plan = curtailment_plan(&site).expect("feasible");
        let online: Vec<_> = plan.rows.iter().map(|row| row.miners_online).collect();
        assert_eq!(online, [u64::from(miners) * 8 / 21; 4], "up to the cap, and no change from there");
        assert_eq!(plan.greedy_usd, Some(plan.value_usd));
    }
}

#[test]
fn limits_that_contradict_each_other_are_proven_to() {
    let mut steps = hours(&["0.05"]);
    steps[0].cap_kw = Some(d("3.4"));
    steps[0].min_online_share = d("0.01");
    let site = Site { steps, classes: vec![s21()], ramp_kw: None };
    assert_eq!(curtailment_plan(&site), Err(PlanError::Infeasible));
}

#[test]
fn nothing_is_planned_for_nothing() {
    let empty = Site { steps: vec![], classes: vec![], ramp_kw: None };
    let plan = curtailment_plan(&empty).expect("nothing to do");
    assert_eq!((plan.value_usd, plan.gap, plan.rows.len()), (d("0"), d("0"), 0));
    let no_miners = Site {
        steps: hours(&["0.05"]),
        classes: vec![MinerClass { miners: 0, ..s21() }],
        ramp_kw: Some(d("0")),
    };
    let plan = curtailment_plan(&no_miners).expect("nothing to do");
    assert_eq!((plan.rows[0].miners_online, plan.groups.len()), (0, 0));
    let no_steps = Site { steps: vec![], ..no_miners };
    assert_eq!(curtailment_plan(&no_steps).map(|p| p.value_usd), Ok(d("0")));
}

#[test]
fn fields_outside_their_range_are_named() {
    type Change = fn(&mut Site);
    let cases: [(&str, Change); 8] = [
        ("seconds", |s| s.steps[0].seconds = 0),
        ("cap_kw", |s| s.steps[0].cap_kw = Some(d("-1"))),
        ("min_online_share", |s| s.steps[0].min_online_share = d("1.1")),
        ("min_online_share", |s| s.steps[0].min_online_share = d("-0.1")),
        ("ramp_kw", |s| s.ramp_kw = Some(d("-1"))),
        ("power_w", |s| s.classes[0].power_w = d("-1")),
        ("strike_usd_mwh", |s| s.classes[0].strike_usd_mwh = d("-1")),
        ("start_cost_usd", |s| s.classes[0].start_cost_usd = d("-1")),
    ];
    for (field, change) in cases {
        let mut site = Site { steps: hours(&["0.05"]), classes: vec![s21()], ramp_kw: None };
        change(&mut site);
        let outside = PlanError::Economics(EconomicsError::OutOfRange { field });
        assert_eq!(curtailment_plan(&site), Err(outside));
    }
}

#[test]
fn a_plan_survives_json() {
    let plan = day(&s21());
    let json = serde_json::to_string(&plan).expect("serializable");
    assert_eq!(serde_json::from_str::<CurtailmentPlan>(&json).expect("the same shape"), plan);
}
