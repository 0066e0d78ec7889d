//! Owns the property tests of plans, over sets, treasuries and markets from a fixed seed.
//! Promises that the caps hold for all signals together, that cuts are named, and that extremes give a typed answer.
//! May be called by the test runner only.

use super::super::strategy::properties::{any_market, any_state, any_strategy, money, sat};
use super::*;
use crate::economics::testing::Dice;

fn any_caps(dice: &mut Dice) -> Caps {
    let share = Decimal::from(dice.roll(101)) / Decimal::ONE_HUNDRED;
    Caps {
        max_share_day: if dice.roll(30) == 0 { money(dice) } else { share },
        min_reserve_sat: if dice.roll(3) == 0 { 0 } else { sat(dice) },
        min_order_sat: if dice.roll(3) == 0 { sat(dice) } else { dice.roll(100_000) },
    }
}

#[test]
fn all_together_keep_the_caps() {
    let mut dice = Dice(31);
    let (mut sales, mut cuts, mut errors, mut closes) = (0, 0, 0, Vec::new());
    for _ in 0..20_000 {
        let mut set = Vec::new();
        for kind in StrategyKind::ALL {
            if dice.roll(3) == 0 {
                let odd = dice.roll(20) == 0;
                set.push(if odd { any_strategy(&mut dice, kind) } else { Strategy::with_defaults(kind) });
            }
        }
        let (state, caps) = (any_state(&mut dice), any_caps(&mut dice));
        let market = any_market(&mut dice, &mut closes);
        let Ok(plan) = plan(&set, &caps, &state, &market) else {
            errors += 1;
            continue;
        };
        let total: u128 = plan.signals.iter().map(|signal| u128::from(signal.sat)).sum();
        let free = state.inventory_sat.saturating_sub(caps.min_reserve_sat);
        assert!(total <= u128::from(free), "{total} of {free}");
        let sold_today = state.progress.sold_on(market.date);
        let share = Decimal::from(state.opening_sat(market.date)) * caps.max_share_day;
        assert!(total == 0 || Decimal::from(total as u64) + Decimal::from(sold_today) <= share);
        assert!(plan.signals.is_sorted_by_key(|signal| signal.strategy.priority()));
        for signal in &plan.signals {
            assert!(signal.sat == 0 || signal.sat >= caps.min_order_sat);
            assert_eq!(signal.limit.is_some(), signal.sat < signal.wanted_sat, "{signal:?}");
            sales += u32::from(signal.sat > 0);
            cuts += u32::from(signal.limit.is_some());
        }
    }
    assert!(sales > 1_000 && cuts > 1_000 && errors > 1_000, "{sales} sales, {cuts} cuts, {errors} errors");
}
