//! Owns the unit tests of the portfolio.
//! Promises the specification's reference case and fleet, its rules on statuses, and that groups add up.
//! May be called by the test runner only.

use super::super::testing::{close, d, some_close};
use super::*;

fn network() -> Network {
    Network {
        btc_price_usd: d("90000"),
        difficulty: d("150000000000000.0"),
        block_height: 900_000,
        fees_btc_per_block: d("0.05"),
    }
}

fn line(model: &str, ths: &str, watt: &str, quantity: u64) -> MinerLine {
    MinerLine {
        model: model.to_owned(),
        hashrate_ths: d(ths),
        power_w: d(watt),
        quantity,
        purchase_price_usd: None,
        tariff_usd_kwh: None,
        status: MinerStatus::Online,
        location: None,
    }
}

fn s21() -> MinerLine {
    MinerLine { purchase_price_usd: Some(d("3000")), ..line("Antminer S21", "200", "3500", 1) }
}

pub(super) fn compute(lines: &[MinerLine]) -> Portfolio {
    portfolio(lines, Some(&network()), &Assumptions::default()).expect("in range")
}

#[test]
fn reference_case() {
    let p = compute(&[s21()]);
    assert_eq!((p.miners_total, p.miners_online), (1, 1));
    assert_eq!((p.hashrate_ths, p.power_kw), (d("200"), d("3.5")));
    assert_eq!(p.effective_hashrate_ths, d("200"));
    assert_eq!(p.efficiency_j_th, d("17.5"));
    some_close(p.gross_btc_day, "8.516013622e-5");
    some_close(p.net_btc_day, "8.345693350e-5");
    some_close(p.revenue_usd_day, "7.511124");
    assert_eq!(p.power_cost_usd_day, d("5.04"));
    some_close(p.profit_usd_day, "2.471124");
    some_close(p.hashprice_usd_ph_day, "38.3220613");
    some_close(p.break_even_tariff_usd_kwh, "0.0894181");
    some_close(p.break_even_btc_price_usd, "60390.43");
    assert_eq!(p.capex_usd, d("3000"));
    some_close(p.payback_days, "1214.022438");
    some_close(p.roi_percent, "30.0653422");
    assert_eq!(p.warnings, []);
}

#[test]
fn uptime_and_pue_enter_cost_but_not_nameplate() {
    let assumptions = Assumptions { uptime: d("0.95"), ..Assumptions::default() };
    let p = portfolio(&[s21()], Some(&network()), &assumptions).expect("in range");
    assert_eq!((p.hashrate_ths, p.power_kw), (d("200"), d("3.5")));
    assert_eq!(p.effective_hashrate_ths, d("190"));
    some_close(p.gross_btc_day, "8.516013622e-5");
    some_close(p.revenue_usd_day, "7.135568");
    close(p.power_cost_usd_day, "4.788");
    some_close(p.profit_usd_day, "2.347568");
    let assumptions = Assumptions { pue: d("1.5"), ..Assumptions::default() };
    let p = portfolio(&[s21()], Some(&network()), &assumptions).expect("in range");
    assert_eq!((p.power_kw, p.power_cost_usd_day), (d("3.5"), d("7.56")));
}

#[test]
fn reference_fleet() {
    let p = compute(&[line("Antminer S21", "200", "3500", 10), line("Antminer S19j Pro", "104", "3068", 5)]);
    assert_eq!(p.hashrate_ths, d("2520"));
    assert_eq!(p.power_kw, d("50.34"));
    close(p.efficiency_j_th, "19.97619");
    some_close(p.gross_btc_day.map(|btc| btc * d("90000")), "96.571594");
    some_close(p.revenue_usd_day, "94.640163");
    close(p.power_cost_usd_day, "72.4896");
    some_close(p.profit_usd_day, "22.150563");
    let names: Vec<_> = p.by_model.iter().map(|row| row.model.as_str()).collect();
    assert_eq!(names, ["Antminer S19j Pro", "Antminer S21"]);
    close(p.by_model[0].efficiency_j_th, "29.5");
    some_close(p.by_model[1].break_even_tariff_usd_kwh, "0.0894181");
    assert_eq!(p.by_location.len(), 1);
    assert_eq!(p.by_location[0].location, UNASSIGNED);
    assert_eq!(p.by_location[0].profit_usd_day, p.profit_usd_day);
}

#[test]
fn dynamic_payback_is_shown_beside_the_static_one() {
    let assumptions = Assumptions { degradation_month: d("0.015"), ..Assumptions::default() };
    let p = portfolio(&[s21()], Some(&network()), &assumptions).expect("in range");
    some_close(p.payback_days, "1214.022438");
    assert_eq!(p.dynamic_payback_days, None);
    // Height 900,000: the halving is 1041.67 days away, behind month 27.
    let Some(Payback::Never { unprofitable_month, earned_usd }) = p.dynamic_payback else {
        panic!("never pays back");
    };
    assert_eq!(unprofitable_month, Some(27));
    close(earned_usd, "964.921351");
    let cheap = MinerLine { purchase_price_usd: Some(d("700")), ..s21() };
    let p = compute(&[cheap]);
    assert!(p.dynamic_payback_days.map(Decimal::from) > p.payback_days);
    let day = p.dynamic_payback_days.expect("pays");
    assert_eq!(p.dynamic_payback, Some(Payback::Day(day)));
}

#[test]
fn statuses_decide_what_counts() {
    let lines = MinerStatus::ALL.map(|status| MinerLine { status, ..s21() });
    let p = compute(&lines);
    assert_eq!((p.miners_total, p.miners_online), (4, 1));
    assert_eq!(p.capex_usd, d("12000"));
    let one = compute(&[s21()]);
    assert_eq!(p.hashrate_ths, one.hashrate_ths);
    assert_eq!(p.power_kw, one.power_kw);
    assert_eq!(p.efficiency_j_th, one.efficiency_j_th);
    assert_eq!(p.profit_usd_day, one.profit_usd_day);
    assert_eq!(p.by_model[0].miners_total, 4);
    let gone = MinerLine { status: MinerStatus::Decommissioned, ..s21() };
    assert_eq!(compute(&[gone]), compute(&[]));
}

#[test]
fn no_snapshot_leaves_cost_and_nulls_the_rest() {
    let p = portfolio(&[s21()], None, &Assumptions::default()).expect("in range");
    assert_eq!(p.warnings, [Warning::NoSnapshot]);
    assert_eq!(p.power_cost_usd_day, d("5.04"));
    assert_eq!((p.hashrate_ths, p.capex_usd), (d("200"), d("3000")));
    let json = serde_json::to_value(&p).expect("serialisable");
    for field in [
        "gross_btc_day",
        "net_btc_day",
        "revenue_usd_day",
        "profit_usd_day",
        "hashprice_usd_ph_day",
        "break_even_tariff_usd_kwh",
        "break_even_btc_price_usd",
        "payback_days",
        "dynamic_payback_days",
        "roi_percent",
    ] {
        assert!(json[field].is_null(), "{field}");
    }
    assert!(json["by_model"][0]["profit_usd_day"].is_null());
    assert_eq!(json["warnings"], serde_json::json!(["no-snapshot"]));
}

#[test]
fn no_miners_are_zeros() {
    let p = compute(&[]);
    assert_eq!((p.miners_total, p.miners_online), (0, 0));
    for zero in [p.hashrate_ths, p.effective_hashrate_ths, p.power_kw] {
        assert_eq!(zero, d("0"));
    }
    assert_eq!((p.efficiency_j_th, p.power_cost_usd_day), (d("0"), d("0")));
    for zero in [p.gross_btc_day, p.net_btc_day] {
        assert_eq!(zero, Some(d("0")));
    }
    assert_eq!((p.revenue_usd_day, p.profit_usd_day), (Some(d("0")), Some(d("0"))));
    some_close(p.hashprice_usd_ph_day, "38.3220613");
    assert_eq!((p.break_even_tariff_usd_kwh, p.break_even_btc_price_usd), (None, None));
    assert_eq!((p.payback_days, p.dynamic_payback, p.roi_percent), (None, None, None));
    assert!(p.by_model.is_empty() && p.by_location.is_empty() && p.warnings.is_empty());
}

#[test]
fn tariffs_are_per_line() {
    let dear = MinerLine { tariff_usd_kwh: Some(d("0.10")), location: Some("Texas".to_owned()), ..s21() };
    let p = compute(&[s21(), dear]);
    assert_eq!(p.power_cost_usd_day, d("13.44"));
    let costs: Vec<_> =
        p.by_location.iter().map(|row| (row.location.as_str(), row.power_cost_usd_day)).collect();
    assert_eq!(costs, [("Texas", d("8.4")), (UNASSIGNED, d("5.04"))]);
}

#[test]
fn spellings_of_a_model_are_one_row() {
    let spelt = |model: &str| MinerLine { model: model.to_owned(), ..s21() };
    let lines = [spelt("s21"), spelt("Antminer S21"), spelt("S21 Pro")];
    let p = compute(&lines);
    let rows: Vec<_> = p.by_model.iter().map(|row| (row.model.as_str(), row.miners_total)).collect();
    assert_eq!(rows, [("Antminer S21", 2), ("S21 Pro", 1)]);
    let mut reversed = lines;
    reversed.reverse();
    assert_eq!(compute(&reversed), p);
}

#[test]
fn a_partly_known_capex_says_so() {
    let unpriced = line("Antminer S21", "200", "3500", 1);
    let p = compute(&[s21(), unpriced.clone()]);
    assert_eq!(p.capex_usd, d("3000"));
    assert_eq!(p.warnings, [Warning::CapexIncomplete]);
    let p = compute(&[unpriced]);
    assert_eq!((p.capex_usd, p.payback_days), (d("0"), None));
    assert_eq!(p.warnings, []);
}

#[test]
fn inputs_outside_their_range_are_named() {
    type Change = fn(&mut MinerLine);
    let cases: [(&str, Change); 3] = [
        ("hashrate_ths", |l| l.hashrate_ths = d("-1")),
        ("power_w", |l| l.power_w = d("-1")),
        ("purchase_price_usd", |l| l.purchase_price_usd = Some(d("-1"))),
    ];
    for (field, change) in cases {
        let mut bad = s21();
        change(&mut bad);
        let result = portfolio(&[bad], Some(&network()), &Assumptions::default());
        assert_eq!(result, Err(EconomicsError::OutOfRange { field }));
    }
    let huge = line("x", "1e28", "1", 100_000);
    let result = portfolio(&[huge], None, &Assumptions::default());
    let figure = "hashrate_ths";
    assert_eq!(result, Err(EconomicsError::Overflow { figure }));
}

#[test]
fn the_largest_valid_fleet_fits_at_both_ends_of_the_difficulty() {
    let mut lines = vec![line("x", "10000", "1000000", 100_000); 10_000];
    lines[0].purchase_price_usd = Some(d("1e9"));
    for difficulty in ["1e3", "1e18"] {
        let network = Network {
            btc_price_usd: d("1e7"),
            difficulty: d(difficulty),
            block_height: 0,
            fees_btc_per_block: d("300"),
        };
        let p = portfolio(&lines, Some(&network), &Assumptions::default()).expect("fits");
        assert_eq!(p.miners_total, 1_000_000_000);
        assert!(p.revenue_usd_day > Some(d("0")));
    }
}

#[test]
fn json_has_numbers_and_reads_back() {
    let p = compute(&[s21(), line("Custom", "0.1", "0.3", 3)]);
    let text = serde_json::to_string(&p).expect("serialisable");
    assert!(text.contains(r#""capex_usd":3000,"#), "{text}");
    assert_eq!(serde_json::from_str::<Portfolio>(&text).ok(), Some(p));
}
