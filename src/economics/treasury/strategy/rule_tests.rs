//! Owns the unit tests of the ten rules.
//! Promises the specification's numbers, the edges of each rule, and a named input where one is missing.
//! May be called by the test runner only.

use super::tests::{after, date, market, of, sold, state};
use super::*;
use crate::economics::testing::d;

const BTC: u64 = 100_000_000;

#[track_caller]
fn lacks(strategy: &Strategy, state: &TreasuryState, market: &Market<'_>, field: &'static str) {
    let missing = TreasuryError::MissingInput { strategy: strategy.kind(), field };
    assert_eq!(strategy.propose(state, market), Err(missing));
}

#[test]
fn opex_coverage_sells_the_gap_before_and_after_the_fee() {
    let opex = of(StrategyKind::OpexCoverage);
    let short = TreasuryState { cash_usd: d("150000"), opex_usd_month: d("200000"), ..state(BTC * 25 / 2) };
    assert_eq!(sold(&opex, &short, &market("90000")), Some((55_555_556, None)));
    let venue = Market { fee: d("0.001"), ..market("90000") };
    assert_eq!(sold(&opex, &short, &venue), Some((55_611_167, None)));
    let reason = opex.propose(&short, &venue).expect("in range").expect("a gap").reason;
    assert_eq!(reason, "cash of 150000 USD is 50000 USD short of 30 days of opex");
    // An open sale of exactly the gap closes it; one of less leaves the rest.
    let waits = TreasuryState { incoming_usd: d("50000.0004"), ..short.clone() };
    assert_eq!(sold(&opex, &waits, &market("90000")), None);
    let half = TreasuryState { incoming_usd: d("5000"), ..short.clone() };
    assert_eq!(sold(&opex, &half, &market("90000")), Some((BTC / 2, None)));
    let reason = opex.propose(&half, &market("90000")).expect("in range").expect("a gap").reason;
    assert_eq!(
        reason,
        "cash of 150000 USD with 5000 USD of open sales is 45000 USD short of 30 days of opex"
    );
    let covered = TreasuryState { cash_usd: d("200000"), ..short.clone() };
    assert_eq!(sold(&opex, &covered, &venue), None);
    let idle = TreasuryState { opex_usd_month: d("0"), cash_usd: d("-5"), ..short.clone() };
    assert_eq!(sold(&opex, &idle, &venue), None, "without opex there is nothing to cover");
    let longer = Strategy::OpexCoverage(OpexCoverage { days: 45, ..OpexCoverage::default() });
    // 300,000 less 150,000 of cash is 1.67 BTC, of which 5 % of 12.5 may go today.
    assert_eq!(sold(&longer, &short, &venue), Some((62_500_000, Some(Limit::Strategy))));
}

#[test]
fn opex_coverage_sells_its_share_once_a_day() {
    let opex = of(StrategyKind::OpexCoverage);
    let broke = TreasuryState { opex_usd_month: d("900000"), ..state(BTC * 10) };
    assert_eq!(sold(&opex, &broke, &market("90000")), Some((BTC / 2, Some(Limit::Strategy))));
    let part = after(&broke, &opex, 0, BTC / 5);
    assert_eq!(sold(&opex, &part, &market("90000")), Some((BTC * 3 / 10, Some(Limit::Strategy))));
    let all = after(&broke, &opex, 0, BTC / 2);
    assert_eq!(sold(&opex, &all, &market("90000")), Some((0, Some(Limit::Strategy))));
    let tomorrow = Market::at(date(1), d("90000"));
    assert_eq!(sold(&opex, &all, &tomorrow), Some((47_500_000, Some(Limit::Strategy))));
}

#[test]
fn layered_sells_every_rung_that_is_reached() {
    let layered = of(StrategyKind::Layered);
    let ten = state(BTC * 10);
    assert_eq!(sold(&layered, &ten, &market("92000")), Some((BTC * 5, None)));
    for (price, sat) in
        [("59999", 0), ("60000", 15), ("75000", 30), ("89999", 30), ("90000", 50), ("110000", 100)]
    {
        let expected = (sat > 0).then_some((BTC / 10 * sat, None));
        assert_eq!(sold(&layered, &ten, &market(price)), expected, "{price}");
    }
    lacks(
        &layered,
        &TreasuryState { average_cost_usd: None, ..ten.clone() },
        &market("1"),
        "average_cost_usd",
    );
    let free = TreasuryState { average_cost_usd: Some(d("0")), ..ten };
    lacks(&layered, &free, &market("1"), "average_cost_usd");
}

#[test]
fn a_rung_fires_once_per_cycle_however_many_fills_it_takes() {
    let layered = of(StrategyKind::Layered);
    let ten = state(BTC * 10);
    let fired = after(&ten, &layered, 0, BTC * 3 / 2);
    assert_eq!(sold(&layered, &fired, &market("60000")), None);
    assert_eq!(sold(&layered, &fired, &market("92000")), Some((BTC * 7 / 2, None)));
    // A fill that stopped inside the second rung.
    let part = after(&fired, &layered, 1, BTC);
    assert_eq!(sold(&layered, &part, &market("80000")), Some((BTC / 2, None)));
    assert_eq!(sold(&layered, &part, &market("60000")), None, "the price is below the second rung again");
    let Strategy::Layered(rungs) = &layered else { panic!("layered") };
    let stand: Vec<_> =
        rungs.rungs(&part).expect("a cost").iter().map(|rung| (rung.quota_sat, rung.sold_sat)).collect();
    let half = BTC / 2;
    assert_eq!(stand, [(half * 3, half * 3), (half * 3, BTC), (half * 4, 0), (half * 10, 0)]);
    let mut renewed = part;
    renewed.progress.renew(date(365), renewed.inventory_sat);
    assert_eq!(sold(&layered, &renewed, &market("60000")), Some((BTC * 9 / 8, None)));
    // The reserve is more than is left when something else sold meanwhile.
    let mut poorer = state(BTC * 10);
    poorer.inventory_sat = BTC;
    assert_eq!(sold(&layered, &poorer, &market("200000")), Some((BTC, Some(Limit::Inventory))));
}

#[test]
fn next_sell_layers_sells_one_layer_after_the_other() {
    let layers = of(StrategyKind::NextSellLayers);
    let holding = TreasuryState { average_cost_usd: Some(d("95000")), ..state(BTC * 25 / 2) };
    let Strategy::NextSellLayers(rule) = &layers else { panic!("layers") };
    let targets: Vec<_> =
        rule.layers(&holding).expect("a cost").iter().map(|l| (l.target_usd, l.quota_sat)).collect();
    let expected = [("118750", BTC), ("144400", BTC), ("175750", BTC), ("209000", BTC / 8)];
    assert_eq!(targets, expected.map(|(target, sat)| (d(target), sat)));

    assert_eq!(sold(&layers, &holding, &market("118749")), None);
    assert_eq!(sold(&layers, &holding, &market("300000")), Some((BTC, None)), "one layer at a time");
    let first = after(&holding, &layers, 0, BTC);
    let second = rule.next_layer(&first).expect("a cost").expect("a layer");
    assert_eq!((second.number, second.target_usd, second.left_sat()), (2, d("144400"), BTC));
    assert_eq!(sold(&layers, &first, &market("144400")), Some((BTC, None)));
    assert_eq!(sold(&layers, &first, &market("144399")), None);
    let third = after(&first, &layers, 1, BTC * 2);
    assert_eq!(sold(&layers, &third, &market("209000")), Some((BTC / 8, Some(Limit::Strategy))));
    let all = after(&third, &layers, 2, BTC / 8);
    assert_eq!(rule.next_layer(&all), Ok(None));
    assert_eq!(sold(&layers, &all, &market("999999")), None);
}

#[test]
fn trailing_stop_guards_the_reserve_below_the_high() {
    let stop = of(StrategyKind::TrailingStop);
    assert_eq!(TrailingStop::default().stop_usd(d("100000")), Ok(d("92000")));
    let ten = state(BTC * 10);
    let fallen = |price: &str| Market { high_usd: Some(d("100000")), ..market(price) };
    assert_eq!(sold(&stop, &ten, &fallen("92000.01")), None);
    assert_eq!(sold(&stop, &ten, &fallen("92000")), Some((BTC * 5, None)));
    assert_eq!(sold(&stop, &after(&ten, &stop, 0, BTC), &fallen("80000")), Some((BTC * 4, None)));
    assert_eq!(sold(&stop, &after(&ten, &stop, 0, BTC * 5), &fallen("80000")), None);
    lacks(&stop, &ten, &market("80000"), "high_usd");
}

#[test]
fn stop_loss_sells_below_the_cost() {
    let stop = of(StrategyKind::StopLoss);
    let ten = state(BTC * 10);
    assert_eq!(sold(&stop, &ten, &market("40000")), None);
    assert_eq!(sold(&stop, &ten, &market("39999.99")), Some((BTC * 5 / 2, None)));
    assert_eq!(sold(&stop, &after(&ten, &stop, 0, BTC * 5 / 2), &market("10000")), None);
    lacks(&stop, &TreasuryState { average_cost_usd: None, ..ten }, &market("1"), "average_cost_usd");
}

#[test]
fn fixed_share_sells_a_share_of_what_the_day_brought() {
    let fixed = of(StrategyKind::FixedShare);
    let ten = state(BTC * 10);
    let mined = |sat| Market { production_sat: Some(sat), ..market("90000") };
    assert_eq!(sold(&fixed, &ten, &mined(1_001)), Some((500, None)));
    assert_eq!(sold(&fixed, &ten, &mined(0)), None);
    let today = after(&ten, &fixed, 0, 500);
    assert_eq!(sold(&fixed, &today, &mined(1_001)), None);
    assert_eq!(sold(&fixed, &today, &mined(3_000)), Some((1_000, None)), "more was mined since");
    let tomorrow = Market { date: date(1), ..mined(1_001) };
    assert_eq!(sold(&fixed, &today, &tomorrow), Some((500, None)));
    lacks(&fixed, &ten, &market("90000"), "production_sat");
}

#[test]
fn dca_out_sells_equal_parts_and_catches_up() {
    let weekly = Strategy::DcaOut(DcaOut { parts: 3, interval_days: 7 });
    let ten = state(1_000);
    let on = |day| Market::at(date(day), d("90000"));
    assert_eq!(sold(&weekly, &ten, &on(0)), Some((333, None)));
    let first = after(&ten, &weekly, 0, 333);
    assert_eq!(sold(&weekly, &first, &on(6)), None);
    assert_eq!(sold(&weekly, &first, &on(7)), Some((333, None)));
    assert_eq!(sold(&weekly, &first, &on(14)), Some((667, None)), "one part was missed");
    assert_eq!(sold(&weekly, &first, &on(700)), Some((667, None)));
    assert_eq!(sold(&weekly, &after(&first, &weekly, 14, 667), &on(700)), None);
    let mut future = ten;
    future.progress.started_on = date(5);
    assert_eq!(sold(&weekly, &future, &on(4)), None, "the cycle has not begun");
}

#[test]
fn halving_cycle_sells_by_phase_once_a_week() {
    let halving = of(StrategyKind::HalvingCycle);
    let ten = state(BTC * 10);
    let at = |blocks: u64, day| Market {
        block_height: Some(840_000 + blocks),
        ..Market::at(date(day), d("90000"))
    };
    for (blocks, permille) in [(0, 5), (52_499, 5), (52_500, 30), (84_000, 10), (157_500, 0), (210_000, 5)] {
        let expected = (permille > 0).then_some((BTC / 100 * permille, None));
        assert_eq!(sold(&halving, &ten, &at(blocks, 0)), expected, "{blocks}");
    }
    let this_week = after(&ten, &halving, 0, BTC * 3 / 10);
    assert_eq!(sold(&halving, &this_week, &at(60_000, 6)), None);
    assert_eq!(sold(&halving, &this_week, &at(60_000, 7)), Some((29_100_000, None)));
    let part = after(&ten, &halving, 0, BTC / 10);
    assert_eq!(sold(&halving, &part, &at(60_000, 3)), Some((BTC / 5, None)));
    lacks(&halving, &ten, &market("1"), "block_height");
    let late =
        Strategy::HalvingCycle(HalvingCycle { phases: vec![Phase { from: d("0.5"), share_week: d("1") }] });
    assert_eq!(sold(&late, &ten, &at(104_999, 0)), None);
}

#[test]
fn volatility_trigger_needs_movement_and_a_price_above_the_cost() {
    let trigger = of(StrategyKind::VolatilityTrigger);
    let ten = state(BTC * 10);
    let closes = |step: &str| -> Vec<Decimal> {
        (0..31).map(|day| if day % 2 == 0 { d("60000") } else { d("60000") * d(step) }).collect()
    };
    // 5 % a day is about 95 % a year, 4 % about 76 %.
    let (wild, calm) = (closes("1.05"), closes("1.04"));
    let after_closes = |closes_usd, price: &str| -> Option<(u64, Option<Limit>)> {
        sold(&trigger, &ten, &Market { closes_usd, ..market(price) })
    };
    assert_eq!(after_closes(&wild, "60000"), Some((BTC, None)));
    assert_eq!(after_closes(&calm, "60000"), None);
    assert_eq!(after_closes(&wild, "50000"), None, "at the cost there is no profit");
    let month = after(&ten, &trigger, 0, BTC);
    let later = |day| Market { closes_usd: &wild, ..Market::at(date(day), d("60000")) };
    assert_eq!(sold(&trigger, &month, &later(29)), None);
    assert_eq!(sold(&trigger, &month, &later(30)), Some((BTC * 9 / 10, None)));
    lacks(&trigger, &ten, &Market { closes_usd: &wild[1..], ..market("60000") }, "closes_usd");
    let unknown = TreasuryState { average_cost_usd: None, ..ten };
    lacks(&trigger, &unknown, &later(0), "average_cost_usd");
}

#[test]
fn hashprice_cycle_needs_both_figures_above() {
    let cycle = of(StrategyKind::HashpriceCycle);
    let ten = state(BTC * 10);
    let rich = |percentile: &str, puell: &str| Market {
        hashprice_percentile: Some(d(percentile)),
        puell_multiple: Some(d(puell)),
        ..market("90000")
    };
    assert_eq!(sold(&cycle, &ten, &rich("70.1", "1.81")), Some((BTC * 3 / 2, None)));
    assert_eq!(sold(&cycle, &ten, &rich("70", "1.81")), None);
    assert_eq!(sold(&cycle, &ten, &rich("70.1", "1.8")), None);
    assert_eq!(sold(&cycle, &after(&ten, &cycle, 0, BTC * 3 / 2), &rich("99", "3")), None);
    lacks(&cycle, &ten, &Market { hashprice_percentile: None, ..rich("99", "3") }, "hashprice_percentile");
    lacks(&cycle, &ten, &Market { puell_multiple: None, ..rich("99", "3") }, "puell_multiple");
}
