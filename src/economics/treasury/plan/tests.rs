//! Owns the unit tests of plans.
//! Promises the order of priorities and the name of each cap that binds.
//! May be called by the test runner only.

use super::super::strategy::tests::{date, state};
use super::super::strategy::{DcaOut, FixedShare, Layered, OpexCoverage, Step};
use super::*;
use crate::economics::testing::d;

const BTC: u64 = 100_000_000;

fn of(kind: StrategyKind) -> Strategy {
    Strategy::with_defaults(kind)
}

fn open() -> Caps {
    Caps { max_share_day: d("1"), min_reserve_sat: 0, min_order_sat: 0 }
}

/// 10 BTC that cost 50,000 each, 30 days of opex short by half a BTC at 92,000.
fn short() -> TreasuryState {
    TreasuryState { cash_usd: d("154000"), opex_usd_month: d("200000"), ..state(BTC * 10) }
}

/// 92,000, having fallen 8 % from 100,000.
fn market() -> Market<'static> {
    Market { high_usd: Some(d("100000")), production_sat: Some(BTC / 10), ..Market::at(date(0), d("92000")) }
}

fn summary(plan: &Plan) -> Vec<(StrategyKind, u64, Option<Limit>)> {
    plan.signals.iter().map(|signal| (signal.strategy, signal.sat, signal.limit)).collect()
}

#[track_caller]
fn planned(
    strategies: &[Strategy],
    caps: &Caps,
    state: &TreasuryState,
) -> Vec<(StrategyKind, u64, Option<Limit>)> {
    summary(&plan(strategies, caps, state, &market()).expect("in range"))
}

#[test]
fn opex_comes_before_stops_before_profit() {
    use StrategyKind::{FixedShare, Hodl, Layered, OpexCoverage, TrailingStop};
    let set = [of(FixedShare), of(Layered), of(TrailingStop), of(Hodl), of(OpexCoverage)];
    let expected = [
        (OpexCoverage, BTC / 2, None),
        (TrailingStop, BTC * 5, None),
        (FixedShare, BTC / 20, None),
        // 10 less the 5.55 that came before.
        (Layered, 445_000_000, Some(Limit::Inventory)),
    ];
    assert_eq!(planned(&set, &open(), &short()), expected);
    let sum: u64 = expected.iter().map(|(_, sat, _)| sat).sum();
    let all = plan(&set, &open(), &short(), &market()).expect("in range");
    assert_eq!((all.total_sat(), sum), (BTC * 10, BTC * 10));
    assert_eq!(all.signals[3].wanted_sat, BTC * 5);
}

#[test]
fn the_cap_that_binds_is_named() {
    use StrategyKind::{Layered, OpexCoverage};
    let set = [of(Layered), of(OpexCoverage)];
    let share = Caps { max_share_day: d("0.2"), ..open() };
    let expected = [(OpexCoverage, BTC / 2, None), (Layered, BTC * 3 / 2, Some(Limit::DayShare))];
    assert_eq!(planned(&set, &share, &short()), expected);
    let reserve = Caps { min_reserve_sat: BTC * 9, ..open() };
    let expected = [(OpexCoverage, BTC / 2, None), (Layered, BTC / 2, Some(Limit::Reserve))];
    assert_eq!(planned(&set, &reserve, &short()), expected);
    let both = Caps { max_share_day: d("0.1"), min_reserve_sat: BTC * 9, ..open() };
    assert_eq!(planned(&set, &both, &short())[1], (Layered, BTC / 2, Some(Limit::Reserve)), "both alike");
    let tight = Caps { min_reserve_sat: BTC * 10, ..open() };
    let expected = [(OpexCoverage, 0, Some(Limit::Reserve)), (Layered, 0, Some(Limit::Reserve))];
    assert_eq!(planned(&set, &tight, &short()), expected);
    assert_eq!(planned(&set, &Caps { min_reserve_sat: u64::MAX, ..open() }, &short()), expected);
}

#[test]
fn an_order_below_the_minimum_is_not_sold_and_leaves_its_share_to_others() {
    use StrategyKind::{FixedShare, Layered, OpexCoverage};
    let caps = Caps { max_share_day: d("0.2"), min_order_sat: BTC / 2 + 1, ..open() };
    let expected = [
        (OpexCoverage, 0, Some(Limit::MinimumOrder)),
        (FixedShare, 0, Some(Limit::MinimumOrder)),
        (Layered, BTC * 2, Some(Limit::DayShare)),
    ];
    assert_eq!(planned(&[of(FixedShare), of(Layered), of(OpexCoverage)], &caps, &short()), expected);
    let exact = Caps { min_order_sat: BTC / 2, ..caps };
    assert_eq!(planned(&[of(OpexCoverage)], &exact, &short()), [(OpexCoverage, BTC / 2, None)]);
}

#[test]
fn what_was_sold_today_counts_against_the_share_of_the_day() {
    let caps = Caps { max_share_day: d("0.2"), ..open() };
    let mut state = state(BTC * 9);
    state.progress.initial_sat = BTC * 10;
    state.progress.record(date(0), None, BTC);
    let layered = [of(StrategyKind::Layered)];
    // A fifth of the 10 BTC of this morning, less the 1 sold by hand.
    let expected = [(StrategyKind::Layered, BTC, Some(Limit::DayShare))];
    assert_eq!(planned(&layered, &caps, &state), expected);
    let tomorrow = Market { date: date(1), ..market() };
    let next = plan(&layered, &caps, &state, &tomorrow).expect("in range");
    assert_eq!(summary(&next), [(StrategyKind::Layered, BTC * 9 / 5, Some(Limit::DayShare))]);
}

#[test]
fn the_strategys_own_limit_stays_named_unless_a_cap_cuts_deeper() {
    let broke = TreasuryState { cash_usd: d("0"), ..short() };
    let opex = [of(StrategyKind::OpexCoverage)];
    let own = [(StrategyKind::OpexCoverage, BTC / 2, Some(Limit::Strategy))];
    assert_eq!(planned(&opex, &open(), &broke), own);
    let share = Caps { max_share_day: d("0.05"), ..open() };
    assert_eq!(planned(&opex, &share, &broke), own);
    let tighter = Caps { max_share_day: d("0.01"), ..open() };
    let cut = [(StrategyKind::OpexCoverage, BTC / 10, Some(Limit::DayShare))];
    assert_eq!(planned(&opex, &tighter, &broke), cut);
}

#[test]
fn a_strategy_that_lacks_an_input_is_told_and_the_others_go_on() {
    use StrategyKind::{FixedShare, HalvingCycle, HashpriceCycle, Layered};
    let set = [of(HalvingCycle), of(Layered), of(HashpriceCycle), of(FixedShare)];
    let plan = plan(&set, &open(), &short(), &market()).expect("in range");
    assert_eq!(summary(&plan).iter().map(|s| s.0).collect::<Vec<_>>(), [Layered, FixedShare]);
    let lacks = [(HalvingCycle, "block_height"), (HashpriceCycle, "hashprice_percentile")];
    assert_eq!(plan.unevaluated, lacks.map(|(strategy, field)| Unevaluated { strategy, field }));
}

/// One strategy's figures that are too large keep no other from its turn.
#[test]
fn a_figure_that_is_too_large_makes_its_strategy_unevaluated() {
    use StrategyKind::{FixedShare, StopLoss};
    let absurd = TreasuryState {
        opex_usd_month: Decimal::MAX,
        average_cost_usd: Some(Decimal::MAX / d("2")),
        ..short()
    };
    let stop = Strategy::StopLoss(super::super::strategy::StopLoss {
        cost_multiple: d("1000"),
        ..super::super::strategy::StopLoss::default()
    });
    let opex = Strategy::OpexCoverage(OpexCoverage::default());
    let plan = plan(&[opex, stop, of(FixedShare)], &open(), &absurd, &market()).expect("a plan");
    assert_eq!(summary(&plan), [(FixedShare, BTC / 20, None)]);
    let too_large = [(StrategyKind::OpexCoverage, "opex_gap_usd"), (StopLoss, "stop_usd")];
    assert_eq!(plan.unevaluated, too_large.map(|(strategy, field)| Unevaluated { strategy, field }));
}

#[test]
fn what_cannot_be_is_refused_by_name() {
    let refused = |strategies: &[Strategy], caps: &Caps| plan(strategies, caps, &short(), &market());
    let outside = |field| Err(TreasuryError::Economics(EconomicsError::OutOfRange { field }));
    let caps = Caps { max_share_day: d("1.1"), ..open() };
    assert_eq!(refused(&[], &caps), outside("caps.max_share_day"));
    let dca = Strategy::DcaOut(DcaOut { parts: 5, interval_days: 1 });
    assert_eq!(
        refused(&[dca.clone(), Strategy::Hodl, of(StrategyKind::DcaOut)], &open()),
        outside("strategies")
    );
    let fixed = Strategy::FixedShare(FixedShare { share: d("2") });
    assert_eq!(refused(&[dca, fixed], &open()), outside("fixed_share.share"));
    assert!(serde_json::from_str::<Caps>(r#"{"max_share":0.1}"#).is_err());
    let partial: Caps = serde_json::from_str(r#"{"min_reserve_sat":5}"#).expect("partial");
    assert_eq!(partial, Caps { min_reserve_sat: 5, ..Caps::default() });
}

#[test]
fn a_rung_cut_by_a_cap_goes_on_the_next_day() {
    let one_rung =
        Strategy::Layered(Layered { rungs: vec![Step { cost_multiple: d("1.5"), share: d("0.5") }] });
    let caps = Caps { max_share_day: d("0.2"), ..open() };
    let mut state = state(BTC * 10);
    let mut sold = Vec::new();
    for day in 0..5 {
        let market = Market { date: date(day), ..market() };
        let plan = plan(std::slice::from_ref(&one_rung), &caps, &state, &market).expect("in range");
        state.inventory_sat -= plan.total_sat();
        state.progress.record(date(day), Some(&one_rung), plan.total_sat());
        sold.push(plan.total_sat());
    }
    // 20 % of 10, of 8, and what the quota of 5 leaves.
    assert_eq!(sold, [BTC * 2, BTC * 8 / 5, BTC * 7 / 5 - BTC * 3 / 25, BTC * 3 / 25, 0]);
}
