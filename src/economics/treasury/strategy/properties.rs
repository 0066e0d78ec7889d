//! Owns the property tests of the strategies, over treasuries and markets from a fixed seed.
//! Promises that no strategy sells more than there is or more than it wants, and that extremes give a typed answer.
//! May be called by the test runner only.

use super::tests::date;
use super::*;
use crate::economics::testing::{Dice, d};

/// Figures a treasury could have, with the odd extreme among them.
pub(in super::super) fn money(dice: &mut Dice) -> Decimal {
    let extremes = [d("0"), d("1e-28"), Decimal::MAX, Decimal::MIN, d("-1"), d("7.9e20")];
    match dice.roll(24) as usize {
        at @ 0..6 => extremes[at],
        _ => Decimal::from(dice.roll(30_000_000)) / d("100"),
    }
}

pub(in super::super) fn sat(dice: &mut Dice) -> u64 {
    match dice.roll(12) {
        0 => 0,
        1 => 1,
        2 => u64::MAX,
        _ => dice.roll(200_000_000_000),
    }
}

pub(in super::super) fn any_state(dice: &mut Dice) -> TreasuryState {
    let mut progress = Progress::new(date(dice.roll(40)), sat(dice));
    for _ in 0..dice.roll(6) {
        let strategy = Strategy::with_defaults(StrategyKind::ALL[dice.roll(11) as usize]);
        progress.record(date(dice.roll(60)), Some(&strategy).filter(|_| dice.roll(4) > 0), sat(dice) / 50);
    }
    TreasuryState {
        inventory_sat: sat(dice),
        average_cost_usd: (dice.roll(5) > 0).then(|| money(dice).abs()),
        cash_usd: money(dice),
        incoming_usd: if dice.roll(3) == 0 { money(dice).abs() } else { Decimal::ZERO },
        opex_usd_month: money(dice).abs(),
        progress,
    }
}

pub(in super::super) fn any_market<'a>(dice: &mut Dice, closes: &'a mut Vec<Decimal>) -> Market<'a> {
    closes.clear();
    for _ in 0..dice.roll(2) * dice.roll(40) {
        closes.push(if dice.roll(99) == 0 { money(dice) } else { Decimal::from(dice.roll(300_000) + 1) });
    }
    let some = |dice: &mut Dice| dice.roll(4) > 0;
    let price_usd = if dice.roll(9) == 0 { money(dice) } else { Decimal::from(dice.roll(300_000) + 1) };
    Market {
        date: date(dice.roll(80)),
        price_usd,
        fee: if dice.roll(9) == 0 { money(dice) } else { Decimal::from(dice.roll(100)) / d("1000") },
        high_usd: some(dice).then(|| Decimal::from(dice.roll(400_000) + 1)),
        production_sat: some(dice).then(|| sat(dice)),
        block_height: some(dice).then(|| sat(dice)),
        hashprice_percentile: some(dice).then(|| Decimal::from(dice.roll(101))),
        puell_multiple: some(dice).then(|| Decimal::from(dice.roll(40)) / d("10")),
        closes_usd: closes,
    }
}

/// Shares and counts of any size in place of the defaults, in range or not.
pub(in super::super) fn any_strategy(dice: &mut Dice, kind: StrategyKind) -> Strategy {
    let share = |dice: &mut Dice| {
        if dice.roll(20) == 0 { money(dice) } else { Decimal::from(dice.roll(1_001)) / d("1000") }
    };
    let count = |dice: &mut Dice| match dice.roll(40) {
        39 => u32::MAX,
        days => days as u32,
    };
    match Strategy::with_defaults(kind) {
        Strategy::Hodl => Strategy::Hodl,
        Strategy::OpexCoverage(_) => {
            Strategy::OpexCoverage(OpexCoverage { days: count(dice), max_share_day: share(dice) })
        }
        Strategy::Layered(mut rule) => {
            rule.rungs[dice.roll(4) as usize].share = share(dice);
            Strategy::Layered(rule)
        }
        Strategy::TrailingStop(_) => {
            Strategy::TrailingStop(TrailingStop { trail: share(dice), reserve_share: share(dice) })
        }
        Strategy::StopLoss(_) => {
            let multiple = Decimal::from(dice.roll(1_000) + 1) / d("100");
            let cost_multiple = if dice.roll(8) == 0 { money(dice) } else { multiple };
            Strategy::StopLoss(StopLoss { cost_multiple, share: share(dice) })
        }
        Strategy::FixedShare(_) => Strategy::FixedShare(FixedShare { share: share(dice) }),
        Strategy::DcaOut(_) => Strategy::DcaOut(DcaOut { parts: count(dice), interval_days: count(dice) }),
        Strategy::HalvingCycle(mut rule) => {
            rule.phases[dice.roll(4) as usize].share_week = share(dice);
            Strategy::HalvingCycle(rule)
        }
        Strategy::VolatilityTrigger(_) => Strategy::VolatilityTrigger(VolatilityTrigger {
            threshold: share(dice),
            share: share(dice),
            every_days: count(dice),
        }),
        Strategy::HashpriceCycle(rule) => {
            Strategy::HashpriceCycle(HashpriceCycle { share: share(dice), every_days: count(dice), ..rule })
        }
        Strategy::NextSellLayers(rule) => {
            Strategy::NextSellLayers(NextSellLayers { quota: share(dice), cap: share(dice), ..rule })
        }
    }
}

#[test]
fn no_strategy_sells_more_than_there_is() {
    let mut dice = Dice(21);
    let mut sold = [0; StrategyKind::ALL.len()];
    let (mut errors, mut closes) = (0, Vec::new());
    for _ in 0..4_000 {
        for (at, kind) in StrategyKind::ALL.into_iter().enumerate() {
            let strategy = any_strategy(&mut dice, kind);
            let state = any_state(&mut dice);
            let market = any_market(&mut dice, &mut closes);
            let proposed = strategy.propose(&state, &market);
            assert_eq!(proposed, strategy.propose(&state, &market), "the same answer again");
            match proposed {
                Ok(None) => {}
                Ok(Some(signal)) => {
                    assert_eq!(signal.strategy, kind);
                    assert!(signal.sat <= state.inventory_sat, "{signal:?} of {state:?}");
                    assert!(signal.sat <= signal.wanted_sat);
                    assert_eq!(signal.limit.is_some(), signal.sat < signal.wanted_sat, "{signal:?}");
                    sold[at] += 1;
                }
                Err(_) => errors += 1,
            }
        }
    }
    // Every strategy but hodl was seen selling.
    assert_eq!(sold[0], 0);
    assert!(sold[1..].iter().all(|count| *count > 50) && errors > 1_000, "{sold:?} sold, {errors} errors");
}

#[test]
fn a_strategy_that_is_asked_again_after_its_fill_sells_no_more_that_day() {
    let mut dice = Dice(22);
    let (mut repeated, mut closes) = (0, Vec::new());
    for _ in 0..3_000 {
        // Opex coverage looks at the cash, which a fill raises: it is not part of this.
        let kind = StrategyKind::ALL[dice.roll(9) as usize + 2];
        let strategy = Strategy::with_defaults(kind);
        let mut state = any_state(&mut dice);
        let market = any_market(&mut dice, &mut closes);
        let Ok(Some(signal)) = strategy.propose(&state, &market) else { continue };
        if signal.limit.is_some() || kind == StrategyKind::NextSellLayers {
            continue;
        }
        state.inventory_sat -= signal.sat;
        state.progress.record(market.date, Some(&strategy), signal.sat);
        let again = strategy.propose(&state, &market).expect("as before");
        assert_eq!(again, None, "after {signal:?}");
        repeated += 1;
    }
    assert!(repeated > 300, "{repeated} repeated");
}
