//! Owns the unit tests that all strategies share, and the treasuries and markets that tests of this folder use.
//! Promises one name per strategy, ranges that name their field, and progress per day, window and cycle.
//! May be called by the test runner only.

use super::*;
use crate::economics::testing::d;
use chrono::{Days, NaiveDate};

const BTC: u64 = 100_000_000;

pub(in super::super) fn date(day: u64) -> NaiveDate {
    NaiveDate::from_ymd_opt(2026, 1, 1).expect("a date") + Days::new(day)
}

/// `sat` that cost 50,000 a BTC, a cycle that began with them on day 0, no cash and no opex.
pub(in super::super) fn state(sat: u64) -> TreasuryState {
    TreasuryState {
        inventory_sat: sat,
        average_cost_usd: Some(d("50000")),
        cash_usd: d("0"),
        incoming_usd: d("0"),
        opex_usd_month: d("0"),
        progress: Progress::new(date(0), sat),
    }
}

pub(super) fn market(price: &str) -> Market<'static> {
    Market::at(date(0), d(price))
}

#[track_caller]
pub(super) fn sold(
    strategy: &Strategy,
    state: &TreasuryState,
    market: &Market<'_>,
) -> Option<(u64, Option<Limit>)> {
    let signal = strategy.propose(state, market).expect("in range");
    signal.map(|signal| (signal.sat, signal.limit))
}

/// The treasury after a fill on that day, all of the inventory still there but what was sold.
pub(super) fn after(state: &TreasuryState, strategy: &Strategy, day: u64, sat: u64) -> TreasuryState {
    let mut state = state.clone();
    state.inventory_sat -= sat;
    state.progress.record(date(day), Some(strategy), sat);
    state
}

pub(super) fn of(kind: StrategyKind) -> Strategy {
    Strategy::with_defaults(kind)
}

#[test]
fn names_agree_everywhere() {
    for kind in StrategyKind::ALL {
        assert_eq!(kind.as_str().parse(), Ok(kind));
        assert_eq!(serde_json::to_value(kind).expect("a string"), kind.as_str());
        let strategy = of(kind);
        assert_eq!((strategy.kind(), strategy.check()), (kind, Ok(())));
        let json = serde_json::to_string(&strategy).expect("serialisable");
        assert!(json.contains(kind.as_str()));
        assert_eq!(serde_json::from_str::<Strategy>(&json).ok(), Some(strategy));
    }
    assert_eq!("buy".parse::<StrategyKind>(), Err(UnknownStrategy));
}

#[test]
fn parameters_may_be_partial_but_not_misspelt() {
    let opex: Strategy = serde_json::from_str(r#"{"opex_coverage":{"days":45}}"#).expect("partial");
    assert_eq!(opex, Strategy::OpexCoverage(OpexCoverage { days: 45, ..OpexCoverage::default() }));
    assert!(serde_json::from_str::<Strategy>(r#"{"opex_coverage":{"day":45}}"#).is_err());
    assert!(serde_json::from_str::<Strategy>(r#"{"layered":{"rungs":[{"cost_multiple":2}]}}"#).is_err());
    assert!(serde_json::from_str::<Strategy>(r#"{"sell_all":{}}"#).is_err());
}

#[test]
fn every_parameter_outside_its_range_is_named() {
    let cases = [
        (r#"{"opex_coverage":{"days":0}}"#, "opex_coverage.days"),
        (r#"{"opex_coverage":{"max_share_day":1.1}}"#, "opex_coverage.max_share_day"),
        (
            r#"{"layered":{"rungs":[{"cost_multiple":2,"share":0.6},{"cost_multiple":3,"share":0.5}]}}"#,
            "layered.rungs",
        ),
        (
            r#"{"layered":{"rungs":[{"cost_multiple":2,"share":0.1},{"cost_multiple":2,"share":0.1}]}}"#,
            "layered.rungs",
        ),
        (r#"{"layered":{"rungs":[{"cost_multiple":0,"share":0.1}]}}"#, "layered.rungs"),
        (r#"{"layered":{"rungs":[{"cost_multiple":2,"share":-0.1}]}}"#, "layered.rungs"),
        (r#"{"trailing_stop":{"trail":1}}"#, "trailing_stop.trail"),
        (r#"{"trailing_stop":{"reserve_share":2}}"#, "trailing_stop.reserve_share"),
        (r#"{"layered":{"rungs":[{"cost_multiple":1000.1,"share":0.1}]}}"#, "layered.rungs"),
        (r#"{"stop_loss":{"cost_multiple":0}}"#, "stop_loss.cost_multiple"),
        (r#"{"stop_loss":{"cost_multiple":1000.1}}"#, "stop_loss.cost_multiple"),
        (r#"{"stop_loss":{"share":-1}}"#, "stop_loss.share"),
        (r#"{"fixed_share":{"share":1.5}}"#, "fixed_share.share"),
        (r#"{"dca_out":{"parts":0}}"#, "dca_out.parts"),
        (r#"{"dca_out":{"interval_days":0}}"#, "dca_out.interval_days"),
        (r#"{"halving_cycle":{"phases":[{"from":1,"share_week":0}]}}"#, "halving_cycle.phases"),
        (r#"{"halving_cycle":{"phases":[{"from":0,"share_week":2}]}}"#, "halving_cycle.phases"),
        (
            r#"{"halving_cycle":{"phases":[{"from":0.5,"share_week":0},{"from":0.5,"share_week":0}]}}"#,
            "halving_cycle.phases",
        ),
        (r#"{"volatility_trigger":{"threshold":-1}}"#, "volatility_trigger.threshold"),
        (r#"{"volatility_trigger":{"share":2}}"#, "volatility_trigger.share"),
        (r#"{"volatility_trigger":{"every_days":0}}"#, "volatility_trigger.every_days"),
        (r#"{"hashprice_cycle":{"percentile_above":101}}"#, "hashprice_cycle.percentile_above"),
        (r#"{"hashprice_cycle":{"puell_above":-1}}"#, "hashprice_cycle.puell_above"),
        (r#"{"hashprice_cycle":{"share":2}}"#, "hashprice_cycle.share"),
        (r#"{"hashprice_cycle":{"every_days":0}}"#, "hashprice_cycle.every_days"),
        (r#"{"next_sell_layers":{"cost_multiples":[2,1]}}"#, "next_sell_layers.cost_multiples"),
        (r#"{"next_sell_layers":{"cost_multiples":[1,1000.1]}}"#, "next_sell_layers.cost_multiples"),
        (r#"{"next_sell_layers":{"quota":2}}"#, "next_sell_layers.quota"),
        (r#"{"next_sell_layers":{"cap":2}}"#, "next_sell_layers.cap"),
    ];
    for (json, field) in cases {
        let strategy: Strategy = serde_json::from_str(json).expect("well formed");
        let error = EconomicsError::OutOfRange { field };
        assert_eq!(strategy.check(), Err(error), "{json}");
        assert_eq!(strategy.propose(&state(BTC), &market("1")), Err(error.into()), "{json}");
        assert!(range::range_of(field).is_some(), "{field}");
    }
    assert!(range::range_of("strategies").is_some() && range::range_of("strategy").is_none());
}

#[test]
fn a_ladder_has_so_many_rungs_and_no_more() {
    let multiples = |count: u32| -> Vec<Decimal> { (1..=count).map(Decimal::from).collect() };
    let layers = |count| {
        Strategy::NextSellLayers(NextSellLayers {
            cost_multiples: multiples(count),
            ..NextSellLayers::default()
        })
    };
    assert_eq!(layers(100).check(), Ok(()));
    assert!(layers(101).check().is_err());
    let rung = |cost_multiple| Step { cost_multiple, share: d("0.001") };
    let ladder =
        |count| Strategy::Layered(Layered { rungs: multiples(count).into_iter().map(rung).collect() });
    assert_eq!(ladder(100).check(), Ok(()));
    assert!(ladder(101).check().is_err());
}

#[test]
fn inputs_outside_their_range_are_named() {
    let refused = |state: &TreasuryState, market: &Market<'_>| of(StrategyKind::Hodl).propose(state, market);
    let outside = |field| Err(TreasuryError::Economics(EconomicsError::OutOfRange { field }));
    let (holding, calm) = (state(BTC), market("1"));
    assert_eq!(refused(&holding, &calm), Ok(None));
    assert_eq!(refused(&holding, &market("0")), outside("price_usd"));
    assert_eq!(refused(&holding, &Market { fee: d("1"), ..calm.clone() }), outside("fee"));
    assert_eq!(refused(&holding, &Market { high_usd: Some(d("0")), ..calm.clone() }), outside("high_usd"));
    let odd = Market { hashprice_percentile: Some(d("101")), ..calm.clone() };
    assert_eq!(refused(&holding, &odd), outside("hashprice_percentile"));
    let odd = Market { puell_multiple: Some(d("-1")), ..calm.clone() };
    assert_eq!(refused(&holding, &odd), outside("puell_multiple"));
    let odd = TreasuryState { opex_usd_month: d("-1"), ..holding.clone() };
    assert_eq!(refused(&odd, &calm), outside("opex_usd_month"));
    let odd = TreasuryState { incoming_usd: d("-1"), ..holding.clone() };
    assert_eq!(refused(&odd, &calm), outside("incoming_usd"));
    let odd = TreasuryState { average_cost_usd: Some(d("-1")), ..holding };
    assert_eq!(refused(&odd, &calm), outside("average_cost_usd"));
}

#[test]
fn hodl_never_sells_and_nothing_is_sold_of_nothing() {
    let full = Market {
        high_usd: Some(d("200000")),
        production_sat: Some(BTC),
        block_height: Some(900_000),
        hashprice_percentile: Some(d("100")),
        puell_multiple: Some(d("9")),
        ..market("150000")
    };
    assert_eq!(sold(&Strategy::Hodl, &state(BTC), &full), None);
    for kind in StrategyKind::ALL {
        let broke = TreasuryState { opex_usd_month: d("1000"), ..state(0) };
        assert_eq!(sold(&of(kind), &broke, &full), None, "{kind}");
    }
}

#[test]
fn progress_counts_fills_of_the_day_the_window_and_the_cycle() {
    let (fixed, halving, layered) =
        (of(StrategyKind::FixedShare), of(StrategyKind::HalvingCycle), of(StrategyKind::Layered));
    let mut progress = Progress::new(date(0), 100);
    for (day, strategy, sat) in
        [(0, Some(&fixed), 1), (0, None, 2), (0, Some(&halving), 4), (0, Some(&layered), 8)]
    {
        progress.record(date(day), strategy, sat);
    }
    assert_eq!((progress.sold_on(date(0)), progress.sold_on(date(1))), (15, 0));
    progress.record(date(6), Some(&halving), 16);
    progress.record(date(6), Some(&layered), 32);
    assert_eq!(progress.sold_on(date(6)), 48);
    assert_eq!((progress.sold_sat(&fixed, date(0)), progress.sold_sat(&fixed, date(1))), (1, 0));
    assert_eq!((progress.sold_sat(&halving, date(6)), progress.sold_sat(&halving, date(7))), (20, 0));
    assert_eq!(progress.sold_sat(&layered, date(999)), 40);
    let json = serde_json::to_string(&progress).expect("serialisable");
    assert_eq!(serde_json::from_str::<Progress>(&json).ok(), Some(progress.clone()));
    // A fill that is told late counts into the newest day and window, never into a new one.
    progress.record(date(5), Some(&halving), 1);
    assert_eq!((progress.sold_on(date(6)), progress.sold_sat(&halving, date(6))), (49, 21));
    progress.renew(date(7), 60);
    assert_eq!((progress.sold_sat(&layered, date(7)), progress.sold_sat(&halving, date(6))), (0, 21));
    assert_eq!((progress.sold_on(date(6)), progress.initial_sat), (49, 60));
}
