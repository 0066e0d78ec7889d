//! Owns the tests of plans at full size: 20 classes over a volatile day of 288 five-minute steps.
//! Promises a gap of at most 0.5 % under a cap, every limit kept, and the same plan for the same site.
//! May be called by the test runner only.

use super::super::super::mining::strike_usd_mwh;
use super::super::super::testing::{Dice, d};
use super::properties::check;
use super::*;

/// Hashrate in TH/s and power in W of 20 models of the catalogue.
const MODELS: [(u32, u32); 20] = [
    (860, 11180),
    (500, 5500),
    (270, 3645),
    (234, 3510),
    (216, 3564),
    (200, 3500),
    (335, 5360),
    (255, 5304),
    (140, 3010),
    (104, 3068),
    (120, 3300),
    (120, 2760),
    (110, 3250),
    (95, 3250),
    (190, 3610),
    (212, 3600),
    (172, 3422),
    (212, 5550),
    (114, 3306),
    (100, 3400),
];

/// $/MWh by hour: two peaks and a solar noon below zero.
const DAY: [i64; 24] =
    [34, 31, 29, 28, 30, 36, 48, 55, 47, 30, 12, -4, -15, -18, -10, 6, 28, 62, 88, 79, 64, 52, 44, 38];

/// What varies between the sites of the tests.
#[derive(Clone, Copy)]
pub(super) struct Shape {
    /// Most miners of a class.
    pub(super) miners: u64,
    /// Cap as percent of the site's power.
    pub(super) cap_percent: u64,
    /// Least share of miners online, percent.
    pub(super) floor_percent: u64,
    /// Ramp as percent of the site's power.
    pub(super) ramp_percent: Option<u64>,
}

/// A site over a day with noise, spikes up to $2,000/MWh, and demand response that lowers the cap for half an hour to
/// two and a half.
pub(super) fn volatile_day(seed: u64, shape: Shape) -> Site {
    let mut dice = Dice(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
    let hashprice = Decimal::from(36 + dice.roll(20));
    let classes: Vec<_> = MODELS
        .iter()
        .map(|(ths, power)| {
            let (ths, power_w) = (Decimal::from(*ths), Decimal::from(*power));
            MinerClass {
                name: format!("{power} W"),
                miners: 1 + dice.roll(shape.miners) as u32,
                power_w,
                strike_usd_mwh: strike_usd_mwh(hashprice, power_w / ths, d("0.02")).expect("an efficiency"),
                start_cost_usd: Decimal::from(dice.roll(20)) / d("200"),
                min_up_steps: [1, 2, 3, 6, 12][dice.roll(5) as usize],
                min_down_steps: [1, 2, 3, 6, 12][dice.roll(5) as usize],
                // Off before the day, so that a low cap at its beginning is no contradiction.
                on: false,
                held_steps: None,
            }
        })
        .collect();
    let total: Decimal =
        classes.iter().map(|class| class.power_w * Decimal::from(class.miners) / d("1000")).sum();
    let percent = |percent: u64| (total * Decimal::from(percent) / d("100")).round_dp(3);
    let (mut noise, mut spike, mut event_steps, mut event_percent) = (0_i64, 0_i64, 0, 100);
    let steps = (0..288)
        .map(|t| {
            noise = (noise * 9 + dice.roll(161) as i64 - 80) / 10;
            spike = if dice.roll(60) == 0 { 100 + dice.roll(1_900) as i64 } else { spike * 6 / 10 };
            if dice.roll(40) == 0 {
                (event_steps, event_percent) = (6 + dice.roll(24), 50 + dice.roll(50));
            }
            event_steps = event_steps.saturating_sub(1);
            let share = if event_steps > 0 { event_percent } else { 100 };
            let start_of_day = shape.floor_percent > 0 && t < 24;
            Step {
                seconds: 300,
                price_usd_mwh: Decimal::from(DAY[t / 12] + noise + spike),
                cap_kw: Some(percent(shape.cap_percent) * Decimal::from(share) / d("100")),
                min_online_share: if start_of_day {
                    d("0")
                } else {
                    Decimal::from(shape.floor_percent) / d("100")
                },
            }
        })
        .collect();
    Site { steps, classes, ramp_kw: shape.ramp_percent.map(percent) }
}

const CAPPED: Shape = Shape { miners: 500, cap_percent: 70, floor_percent: 0, ramp_percent: None };

fn plan(site: &Site) -> CurtailmentPlan {
    let plan = curtailment_plan(site).expect("feasible");
    check(site, &plan);
    plan
}

#[test]
fn a_capped_day_is_within_half_a_percent_of_the_bound() {
    for (seed, cap_percent) in [(1, 40), (2, 60), (3, 80)] {
        let site = volatile_day(seed, Shape { cap_percent, ..CAPPED });
        let plan = plan(&site);
        assert_eq!(plan.method, PlanMethod::Relaxation);
        assert!(plan.gap <= d("0.005"), "seed {seed}: gap {}", plan.gap);
        assert!(plan.gain_over_greedy_usd > Some(d("0")), "looking ahead pays");
        if seed == 1 {
            assert_eq!(curtailment_plan(&site), Ok(plan), "the same again");
        }
    }
}

#[test]
fn a_brief_search_keeps_every_limit_and_its_bound_holds() {
    let site = volatile_day(1, Shape { cap_percent: 40, ..CAPPED });
    let (brief, thorough) = (searched_plan(&site, Search::Brief).expect("feasible"), plan(&site));
    check(&site, &brief);
    assert!(brief.gap <= d("0.005"), "gap {}", brief.gap);
    assert!(brief.bound_usd >= thorough.value_usd && thorough.bound_usd >= brief.value_usd);
    assert!(brief.bound_usd > thorough.bound_usd, "less work, a wider bound");
}

#[test]
fn floor_and_ramp_are_kept_at_full_size() {
    let shape = Shape { miners: 60, cap_percent: 75, floor_percent: 20, ramp_percent: Some(15) };
    let plan = plan(&volatile_day(4, shape));
    assert_eq!(plan.method, PlanMethod::Relaxation);
    assert!(plan.gap <= d("0.02"), "gap {}", plan.gap);
}

#[test]
fn without_a_binding_limit_every_class_is_exact() {
    let mut site = volatile_day(5, Shape { cap_percent: 200, ..CAPPED });
    let free = plan(&site);
    assert_eq!((free.method, free.gap), (PlanMethod::Exact, d("0")));
    let alone: Decimal =
        site.classes.iter().map(|class| class_plan(class, &site.steps).expect("in range").value_usd).sum();
    assert_eq!(free.value_usd, alone);
    site.steps[100].cap_kw = Some(d("0"));
    assert!(plan(&site).value_usd < alone);
}
