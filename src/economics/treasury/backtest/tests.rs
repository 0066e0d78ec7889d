//! Owns the unit tests of the backtest.
//! Promises its books by hand-made series: what is mined, sold, paid, owed, and how it compares with holding.
//! May be called by the test runner only.

use super::super::strategy::tests::date;
use super::super::strategy::{DcaOut, FixedShare, HashpriceCycle, Layered, OpexCoverage, Step, TrailingStop};
use super::*;
use crate::economics::testing::d;
use chrono::DateTime;
use uuid::Uuid;

const BTC: u64 = 100_000_000;

pub(super) fn series(prices: &[&str]) -> Vec<Day> {
    let day = |(at, price): (usize, &&str)| Day {
        date: date(at as u64),
        price_usd: d(price),
        production_sat: 0,
        opex_usd: d("0"),
        block_height: None,
        hashprice_usd_ph_day: None,
    };
    prices.iter().enumerate().map(day).collect()
}

fn lot(sat: u64, cost: &str) -> Lot {
    Lot { id: Uuid::from_u128(7), acquired_at: DateTime::UNIX_EPOCH, sat, cost_usd: d(cost) }
}

fn holding(sat: u64, cost: &str, cash: &str) -> Start {
    Start { lots: vec![lot(sat, cost)], cash_usd: d(cash) }
}

/// No fee and no cap.
fn free(strategies: Vec<Strategy>) -> Rules {
    let caps = Caps { max_share_day: d("1"), min_reserve_sat: 0, min_order_sat: 0 };
    Rules { strategies, caps, fee: d("0"), ..Rules::default() }
}

fn run(days: &[Day], start: &Start, rules: &Rules) -> Backtest {
    backtest(days, start, rules).expect("in range")
}

#[track_caller]
fn near(actual: Option<f64>, expected: f64) {
    let actual = actual.expect("the figure exists");
    assert!((actual - expected).abs() < 1e-9, "{actual} is not {expected}");
}

#[test]
fn holding_follows_the_price() {
    let days = series(&["100", "120", "60", "90"]);
    let result = run(&days, &holding(BTC, "80", "0"), &free(vec![Strategy::Hodl]));
    assert_eq!(result.strategies, result.hodl);
    assert_eq!((result.first_day, result.last_day), (date(0), date(3)));
    let hodl = result.hodl;
    assert_eq!(hodl.equity_usd, [d("100"), d("120"), d("60"), d("90")]);
    assert_eq!((hodl.equity_start_usd, hodl.equity_end_usd), (d("100"), d("90")));
    assert_eq!((hodl.sat, hodl.sold_sat, hodl.unrealised_usd), (BTC, 0, d("10")));
    near(hodl.total_return, -0.1);
    near(hodl.max_drawdown, 0.5);
    // The three returns are 0.2, -0.5 and 0.5.
    let mean = 0.2 / 3.0;
    let variance = ((0.2_f64 - mean).powi(2) + (-0.5 - mean).powi(2) + (0.5 - mean).powi(2)) / 2.0;
    near(hodl.sharpe, mean / variance.sqrt() * 365.0_f64.sqrt());
}

#[test]
fn a_strategy_that_sells_half_at_the_top_halves_the_fall() {
    let layered =
        Strategy::Layered(Layered { rungs: vec![Step { cost_multiple: d("1.5"), share: d("0.5") }] });
    let rules = Rules { fee: d("0.01"), ..free(vec![layered]) };
    let result = run(&series(&["100", "160", "80"]), &holding(BTC, "100", "0"), &rules);
    let sale = &result.sales[..];
    assert_eq!(sale.len(), 1, "a rung fires once");
    assert_eq!((sale[0].date, sale[0].sat, sale[0].price_usd), (date(1), BTC / 2, d("160")));
    assert_eq!((sale[0].fee_usd, sale[0].gain_usd), (d("0.8"), d("29.2")));
    let made = &result.strategies;
    assert_eq!(made.equity_usd, [d("100"), d("159.2"), d("119.2")]);
    assert_eq!((made.cash_usd, made.sat, made.sold_sat), (d("79.2"), BTC / 2, BTC / 2));
    assert_eq!((made.proceeds_usd, made.fees_usd, made.realised_gain_usd), (d("80"), d("0.8"), d("29.2")));
    assert_eq!(made.unrealised_usd, d("-10"));
    near(made.total_return, 0.192);
    near(made.max_drawdown, 40.0 / 159.2);
    near(result.hodl.total_return, -0.2);
    near(result.hodl.max_drawdown, 0.5);
}

#[test]
fn opex_is_paid_from_cash_and_owed_when_there_is_none() {
    let mut days = series(&["100", "100", "100"]);
    for day in &mut days {
        day.opex_usd = d("30");
    }
    let result = run(&days, &holding(BTC, "100", "50"), &free(vec![]));
    let hodl = &result.hodl;
    assert_eq!(hodl.equity_usd, [d("120"), d("90"), d("60")]);
    assert_eq!((hodl.opex_usd, hodl.opex_paid_usd), (d("90"), d("50")));
    assert_eq!((hodl.shortfall_usd, hodl.shortfall_days, hodl.cash_usd), (d("40"), 2, d("0")));
    near(hodl.total_return, 0.0);

    // One day of opex in cash, no limit of its own: each day it sells what the day misses.
    let opex = Strategy::OpexCoverage(OpexCoverage { days: 1, max_share_day: d("1") });
    let result = run(&days, &holding(BTC, "100", "50"), &free(vec![opex.clone()]));
    let paid = &result.strategies;
    assert_eq!((paid.opex_paid_usd, paid.shortfall_usd, paid.shortfall_days), (d("90"), d("0"), 0));
    let sold: Vec<_> = result.sales.iter().map(|sale| (sale.date, sale.sat)).collect();
    assert_eq!(sold, [(date(1), BTC / 10), (date(2), BTC * 3 / 10)]);
    assert_eq!(
        paid.equity_end_usd, hodl.equity_end_usd,
        "at one price and without a fee both are worth the same"
    );

    // A debt is paid before the day's own opex, and the rule covers it too.
    let late = Rules { caps: Caps { min_order_sat: BTC / 2, ..free(vec![]).caps }, ..free(vec![opex]) };
    let result = run(&days, &holding(BTC, "100", "0"), &late);
    let sold: Vec<_> = result.sales.iter().map(|sale| (sale.date, sale.sat)).collect();
    assert_eq!(sold, [(date(1), BTC * 6 / 10)]);
    assert_eq!((result.strategies.shortfall_usd, result.strategies.shortfall_days), (d("30"), 2));
}

#[test]
fn what_is_mined_is_no_return_and_costs_its_value() {
    let mut days = series(&["100", "200", "200"]);
    days[1].production_sat = BTC;
    let fixed = Strategy::FixedShare(FixedShare { share: d("0.5") });
    let result = run(&days, &holding(BTC, "100", "0"), &free(vec![fixed]));
    near(result.hodl.total_return, 1.0);
    assert_eq!((result.hodl.mined_sat, result.hodl.sat), (BTC, BTC * 2));
    assert_eq!(result.hodl.unrealised_usd, d("100"));
    let made = &result.strategies;
    near(made.total_return, 1.0);
    // First in, first out: half of the older bitcoin went.
    assert_eq!((made.realised_gain_usd, made.unrealised_usd), (d("50"), d("50")));
    let lifo = Rules { method: LotMethod::Lifo, ..free(vec![Strategy::FixedShare(FixedShare::default())]) };
    assert_eq!(run(&days, &holding(BTC, "100", "0"), &lifo).strategies.realised_gain_usd, d("0"));
    let average = Rules { method: LotMethod::Average, ..lifo };
    let made = run(&days, &holding(BTC, "100", "0"), &average).strategies;
    assert_eq!((made.realised_gain_usd, made.unrealised_usd), (d("25"), d("75")));
}

#[test]
fn lots_of_the_start_are_older_than_what_is_mined() {
    let mut days = series(&["100", "200"]);
    days[0].production_sat = BTC;
    let mut start = holding(BTC, "10", "0");
    start.lots[0].acquired_at = date(900).and_time(chrono::NaiveTime::MIN).and_utc();
    let rules = free(vec![Strategy::DcaOut(DcaOut { parts: 1, interval_days: 1 })]);
    let result = run(&days, &start, &rules);
    assert_eq!(result.sales[0].gain_usd, d("90"));
}

#[test]
fn a_new_cycle_arms_stops_and_rungs_again() {
    let stop = Strategy::TrailingStop(TrailingStop { trail: d("0.1"), reserve_share: d("0.5") });
    let days = series(&["100", "90", "80", "70", "70", "63"]);
    let rules = Rules { cycle_days: 4, ..free(vec![stop]) };
    let result = run(&days, &holding(BTC, "100", "0"), &rules);
    let sold: Vec<_> = result.sales.iter().map(|sale| (sale.date, sale.sat)).collect();
    // 90 is 10 % below 100; the second cycle begins on day 4 at 70 with the half that is left.
    assert_eq!(sold, [(date(1), BTC / 2), (date(5), BTC / 4)]);
}

#[test]
fn a_year_of_figures_is_needed_and_its_absence_told() {
    let cycle = Strategy::HashpriceCycle(HashpriceCycle::default());
    let mut days = series(&["100"; 400]);
    for (at, day) in days.iter_mut().enumerate() {
        day.block_height = Some(900_000 + at as u64 * 144);
        day.hashprice_usd_ph_day = Some(d("40"));
    }
    // On day 380 mining earns five times as much as the year before it.
    days[380].price_usd = d("500");
    days[380].hashprice_usd_ph_day = Some(d("200"));
    let result = run(&days, &holding(BTC, "100", "0"), &free(vec![cycle.clone()]));
    let sold: Vec<_> = result.sales.iter().map(|sale| (sale.date, sale.sat)).collect();
    assert_eq!(sold, [(date(380), BTC * 15 / 100)]);
    let lacked = |field, days| UnevaluatedDays {
        what: Unevaluated { strategy: StrategyKind::HashpriceCycle, field },
        days,
    };
    assert_eq!(result.unevaluated, [lacked("hashprice_percentile", 364)]);
    days[3].block_height = None;
    let result = run(&days, &holding(BTC, "100", "0"), &free(vec![cycle]));
    assert_eq!(result.unevaluated, [lacked("hashprice_percentile", 364), lacked("puell_multiple", 36)]);
    let json = serde_json::to_value(&result.unevaluated[1]).expect("serialisable");
    let expected = r#"{"days":36,"field":"puell_multiple","strategy":"hashprice_cycle"}"#;
    assert_eq!(json, serde_json::from_str::<serde_json::Value>(expected).expect("json"));
}

#[test]
fn a_debt_lowers_the_equity_and_not_the_return() {
    let mut days = series(&["100", "110", "99"]);
    days[1].opex_usd = d("150");
    let ruined = run(&days, &holding(BTC, "100", "0"), &free(vec![])).hodl;
    assert_eq!(ruined.equity_usd, [d("100"), d("-40"), d("-51")]);
    near(ruined.total_return, -0.01);
    near(ruined.max_drawdown, 0.1);
    // Nothing to begin with: the days until there is something do not count.
    let mut days = series(&["100", "100", "110"]);
    days[1].production_sat = BTC;
    let empty = run(&days, &Start::default(), &free(vec![])).hodl;
    near(empty.total_return, 0.1);
    assert_eq!((empty.equity_start_usd, empty.equity_end_usd), (d("0"), d("110")));
    let one = run(&days[..1], &Start::default(), &free(vec![])).hodl;
    assert_eq!((one.total_return, one.max_drawdown, one.sharpe), (Some(0.0), Some(0.0), None));
}

#[test]
fn fees_of_what_is_mined_weigh_on_all_that_is_at_work() {
    let mut days = series(&["100", "100"]);
    days[1].production_sat = BTC;
    days[1].opex_usd = d("50");
    let all = Strategy::FixedShare(FixedShare { share: d("1") });
    let rules = Rules { fee: d("0.1"), ..free(vec![all]) };
    let made = run(&days, &holding(BTC / 100, "1", "0"), &rules).strategies;
    // 1 USD was held and 100 mined, of which a tenth went as fee.
    near(made.total_return, -10.0 / 101.0);
    assert_eq!(made.equity_usd, [d("1"), d("41")]);
}

#[test]
fn without_prices_it_refuses() {
    let refused = |days: &[Day]| backtest(days, &holding(BTC, "1", "0"), &free(vec![]));
    assert_eq!(refused(&[]), Err(TreasuryError::NoPrices));
    let mut gap = series(&["1", "1", "1"]);
    gap[1].date = date(2);
    assert_eq!(refused(&gap), Err(TreasuryError::PriceGap { date: date(1) }));
    let twice = [series(&["1"]), series(&["1"])].concat();
    assert_eq!(refused(&twice), Err(TreasuryError::PriceGap { date: date(1) }));
    let outside = |field| Err(TreasuryError::Economics(EconomicsError::OutOfRange { field }));
    for price in ["0", "-1"] {
        assert_eq!(refused(&series(&["1", price])), outside("price_usd"));
    }
    let mut end = series(&["1", "1"]);
    end[0].date = NaiveDate::MAX;
    assert_eq!(refused(&end), outside("date"));
    let mut odd = series(&["1"]);
    odd[0].opex_usd = d("-1");
    assert_eq!(refused(&odd), outside("opex_usd"));
    odd[0].opex_usd = d("0");
    odd[0].hashprice_usd_ph_day = Some(d("-1"));
    assert_eq!(refused(&odd), outside("hashprice_usd_ph_day"));
}

#[test]
fn rules_outside_their_range_are_named() {
    let days = series(&["1"]);
    let refused = |rules: &Rules, start: &Start| backtest(&days, start, rules).err();
    let outside = |field| Some(TreasuryError::Economics(EconomicsError::OutOfRange { field }));
    let start = holding(BTC, "1", "0");
    assert_eq!(refused(&Rules { fee: d("1"), ..free(vec![]) }, &start), outside("fee"));
    assert_eq!(refused(&Rules { cycle_days: 0, ..free(vec![]) }, &start), outside("cycle_days"));
    let chosen = Rules { method: LotMethod::SpecificId(vec![]), ..free(vec![]) };
    assert_eq!(refused(&chosen, &start), outside("method"));
    assert_eq!(refused(&free(vec![Strategy::Hodl, Strategy::Hodl]), &start), outside("strategies"));
    assert_eq!(refused(&free(vec![]), &holding(BTC, "1", "-1")), outside("cash_usd"));
    assert_eq!(refused(&free(vec![]), &holding(0, "1", "0")), outside("sat"));
    let rules: Rules =
        serde_json::from_str(r#"{"strategies":["hodl",{"dca_out":{}}],"fee":0.002}"#).expect("partial");
    assert_eq!(rules.strategies, [Strategy::Hodl, Strategy::with_defaults(StrategyKind::DcaOut)]);
    assert!(serde_json::from_str::<Rules>(r#"{"fees":0.002}"#).is_err());
    let day = r#"{"date":"2026-01-01","price_usd":90000.5,"production_sat":5}"#;
    let day: Day = serde_json::from_str(day).expect("partial");
    assert_eq!((day.price_usd, day.production_sat, day.block_height), (d("90000.5"), 5, None));
}
