//! Owns the unit tests of payback.
//! Promises the specification's numbers, and that month steps give the same day as counting days.
//! May be called by the test runner only.

use super::super::mining::subsidy_btc;
use super::super::testing::{Dice, close, d, some_close};
use super::*;

/// Net revenue of the reference case, $7.511124 to all its digits.
const REVENUE: &str = "7.51112401485443115234375";

fn reference() -> DynamicCase {
    DynamicCase {
        capex_usd: d("3000"),
        revenue_usd_day: d(REVENUE),
        power_cost_usd_day: d("5.04"),
        degradation_month: d("0"),
        price_drift_month: d("0"),
        difficulty_drift_month: d("0"),
        halving: None,
    }
}

fn run(case: &DynamicCase) -> Payback {
    dynamic_payback(case).expect("in range").expect("a capex")
}

#[test]
fn static_figures_of_the_reference_case() {
    let profit = d(REVENUE) - d("5.04");
    some_close(static_payback_days(d("3000"), profit), "1214.022438");
    some_close(roi_percent(d("3000"), profit), "30.0653422");
    assert_eq!(static_payback_days(d("3000"), d("0")), None);
    assert_eq!(static_payback_days(d("0"), profit), None);
    assert_eq!(roi_percent(d("0"), profit), None);
    assert_eq!(roi_percent(d("365"), d("-1")), Some(d("-100")));
}

#[test]
fn falling_revenue_turns_unprofitable_before_it_pays() {
    let case = DynamicCase { degradation_month: d("0.015"), ..reference() };
    let Payback::Never { unprofitable_month, earned_usd } = run(&case) else {
        panic!("never pays back");
    };
    assert_eq!(unprofitable_month, Some(27));
    close(earned_usd, "964.921351");
}

#[test]
fn without_drift_the_day_is_the_static_one() {
    assert_eq!(run(&reference()), Payback::Day(1215));
    for (capex, day) in [("3", 1), ("3.01", 2), ("6", 2), ("3000", 1000)] {
        let case = DynamicCase { capex_usd: d(capex), revenue_usd_day: d("8.04"), ..reference() };
        assert_eq!(run(&case), Payback::Day(day), "capex {capex}");
    }
}

#[test]
fn a_division_that_does_not_end_adds_no_day() {
    // A third of it per day, cut off at the 28th decimal: by division the third day ends 4e-19 days too late.
    let case = DynamicCase {
        capex_usd: d("7e-10"),
        revenue_usd_day: d("7e-10") / d("3"),
        power_cost_usd_day: d("0"),
        ..reference()
    };
    assert_eq!(run(&case), Payback::Day(3));
}

#[test]
fn opposite_drifts_cancel() {
    let case = DynamicCase { price_drift_month: d("0.25"), difficulty_drift_month: d("0.25"), ..reference() };
    assert_eq!(run(&case), Payback::Day(1215));
    let case = DynamicCase { price_drift_month: d("0.02"), ..reference() };
    assert!(run(&case).day().expect("pays") < 1215);
}

#[test]
fn a_halving_inside_a_month_cuts_the_subsidy_from_its_day() {
    // 1,440 blocks are 10 days; before 10 * (10 - 1) = 90, after that a reward of 2 of 3.5 BTC.
    let case = DynamicCase {
        capex_usd: d("100"),
        revenue_usd_day: d("10"),
        power_cost_usd_day: d("1"),
        halving: Some(HalvingClock { block_height: 1_050_000 - 1_440, fees_btc_per_block: d("0") }),
        ..reference()
    };
    // 10 missing at 4 a day: three more days.
    assert_eq!(run(&case), Payback::Day(13));
    let with_fees = DynamicCase {
        halving: Some(HalvingClock { block_height: 1_050_000 - 1_440, fees_btc_per_block: d("3.125") }),
        ..case.clone()
    };
    // 10 missing at 10 * 0.75 - 1 = 6.5 a day.
    assert_eq!(run(&with_fees), Payback::Day(12));
    let unprofitable = DynamicCase { power_cost_usd_day: d("6"), ..case };
    assert_eq!(run(&unprofitable), Payback::Never { unprofitable_month: Some(0), earned_usd: d("40") });
}

#[test]
fn profitable_for_ever_but_too_slow() {
    let case = DynamicCase {
        capex_usd: d("1000000"),
        revenue_usd_day: d("2"),
        power_cost_usd_day: d("1"),
        ..reference()
    };
    let never = Payback::Never { unprofitable_month: None, earned_usd: d("18262.5") };
    assert_eq!(run(&case), never);
    let json = serde_json::to_string(&never).expect("serialisable");
    assert_eq!(json, r#"{"never":{"unprofitable_month":null,"earned_usd":18262.5}}"#);
    assert_eq!(serde_json::from_str::<Payback>(&json).ok(), Some(never));
}

#[test]
fn no_capex_is_no_payback_and_bad_drifts_are_named() {
    let free = DynamicCase { capex_usd: d("0"), ..reference() };
    assert_eq!(dynamic_payback(&free), Ok(None));
    let broken = DynamicCase { difficulty_drift_month: d("-1"), ..reference() };
    let field = "difficulty_drift_month";
    assert_eq!(dynamic_payback(&broken), Err(EconomicsError::OutOfRange { field }));
    let absurd = DynamicCase { price_drift_month: d("1e6"), power_cost_usd_day: d("1e26"), ..reference() };
    assert!(dynamic_payback(&absurd).is_err());
}

/// The slow way: one step per day, month and halving looked up anew each day.
fn by_days(case: &DynamicCase, halving_day: u32) -> Option<u32> {
    let factor = month_factor(case).expect("in range");
    let clock = case.halving.as_ref().expect("a clock");
    let reward = |height| subsidy_btc(height) + clock.fees_btc_per_block;
    let (mut earned, mut revenue, mut month) = (d("0"), case.revenue_usd_day, 0);
    for day in 0..18_262_u32 {
        // A month's end inside the day splits it; halvings of this test lie on whole days.
        let height = clock.block_height + u64::from(day) * 144;
        let share = reward(height) / reward(clock.block_height);
        assert!(day != halving_day || share < d("1"));
        let end = Decimal::from(month + 1) * MONTH_DAYS;
        let first = (end - Decimal::from(day)).min(d("1"));
        earned += (revenue * share - case.power_cost_usd_day) * first;
        if earned >= case.capex_usd {
            return Some(day + 1);
        }
        if first < d("1") || end == Decimal::from(day + 1) {
            revenue *= factor;
            month += 1;
            earned += (revenue * share - case.power_cost_usd_day) * (d("1") - first);
        }
        if earned >= case.capex_usd {
            return Some(day + 1);
        }
    }
    None
}

#[test]
fn month_steps_find_the_day_that_counting_days_finds() {
    let mut dice = Dice(7);
    let (mut paid, mut never) = (0, 0);
    for _ in 0..60 {
        let halving_day = dice.roll(1_400) + 1;
        let case = DynamicCase {
            capex_usd: Decimal::from(dice.roll(4_000) + 1),
            revenue_usd_day: Decimal::from(dice.roll(700) + 500) / d("100"),
            power_cost_usd_day: Decimal::from(dice.roll(500)) / d("100"),
            degradation_month: Decimal::from(dice.roll(20)) / d("1000"),
            price_drift_month: Decimal::from(dice.roll(40)) / d("1000") - d("0.01"),
            difficulty_drift_month: Decimal::from(dice.roll(30)) / d("1000"),
            halving: Some(HalvingClock {
                block_height: 1_050_000 - halving_day * 144,
                fees_btc_per_block: Decimal::from(dice.roll(10)) / d("100"),
            }),
        };
        let slow = by_days(&case, halving_day as u32);
        assert_eq!(run(&case).day(), slow, "{case:?}");
        if slow.is_some() { paid += 1 } else { never += 1 }
    }
    assert!(paid > 10 && never > 10, "{paid} paid, {never} never");
}
