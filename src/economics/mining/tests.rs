//! Owns the unit tests of the mining formulas.
//! Promises every number of the specification's section 1 (network, revenue, break-evens), relative 1e-6.
//! May be called by the test runner only.

use super::super::testing::{close, d, near, some_close};
use super::*;

fn reference() -> Network {
    Network {
        btc_price_usd: d("90000"),
        difficulty: d("150e12"),
        block_height: 900_000,
        fees_btc_per_block: d("0.05"),
    }
}

/// Net revenue per day in USD of `ths` TH/s in the reference case.
fn revenue(ths: &str, uptime: Decimal, curtailed: Decimal) -> Decimal {
    let gross = d(ths) * reference().btc_per_th_day().expect("in range");
    let net = net_of_gross(gross, uptime, curtailed, d("0.02")).expect("shares");
    net * d("90000")
}

fn kwh(power_w: &str, uptime: &str) -> Decimal {
    energy_kwh_day(d(power_w), d(uptime), Decimal::ONE).expect("in range")
}

#[test]
fn subsidy_halves_until_it_is_gone() {
    let expected = [
        (0, 5_000_000_000),
        (839_999, 625_000_000),
        (840_000, 312_500_000),
        (1_050_000, 156_250_000),
        (6_929_999, 1),
        (6_930_000, 0),
        (64 * HALVING_INTERVAL, 0),
        (u64::MAX, 0),
    ];
    for (height, sat) in expected {
        assert_eq!(subsidy_sat(height), sat, "at {height}");
    }
    assert_eq!(subsidy_btc(840_000), d("3.125"));
}

#[test]
fn network_rate_and_revenue_per_terahash() {
    let exahash = d("1e18");
    let rate = |difficulty| network_hashrate_hs(d(difficulty)).expect("in range") / exahash;
    close(rate("100e12"), "715.8278826667");
    close(rate("150e12"), "1073.741824");
    let btc = |difficulty| btc_per_th_day(d(difficulty), d("3.125")).expect("in range");
    close(btc("100e12"), "6.28642737865e-7");
    close(btc("150e12"), "4.19095158577e-7");
}

#[test]
fn rates_keep_twelve_digits_at_both_ends_of_the_difficulty() {
    // Independent values: 86400e12 * 3.175 / (D * 2^32), computed to 25 digits.
    let tolerance = d("1e-13");
    for (difficulty, expected) in
        [("1e3", "63870.10216712951660156250"), ("1e18", "6.387010216712951660156250e-11")]
    {
        let rate = btc_per_th_day(d(difficulty), d("3.175")).expect("in range");
        near(rate, d(expected), tolerance);
    }
    assert!(network_hashrate_hs(MAX_DIFFICULTY).is_ok());
}

#[test]
fn outside_the_range_is_a_typed_error() {
    let outside = |field| Err(EconomicsError::OutOfRange { field });
    for difficulty in ["0", "1", "999.999", "1000000000000000001", "-5"] {
        assert_eq!(btc_per_th_day(d(difficulty), d("3")), outside("difficulty"));
        assert!(network_hashrate_hs(d(difficulty)).is_err());
    }
    let with = |change: fn(&mut Network)| {
        let mut network = reference();
        change(&mut network);
        network.hashprice_usd_ph_day()
    };
    assert_eq!(with(|n| n.btc_price_usd = d("-1")), outside("btc_price_usd"));
    assert_eq!(with(|n| n.fees_btc_per_block = d("-1")), outside("fees_btc_per_block"));
    assert_eq!(with(|n| n.fees_btc_per_block = Decimal::MAX), outside("fees_btc_per_block"));
    assert!(with(|n| n.btc_price_usd = Decimal::MAX).is_ok_and(|price| price > Decimal::ZERO));
    assert_eq!(net_of_gross(d("1"), d("1.1"), d("0"), d("0")), outside("uptime"));
    assert_eq!(btc_per_th_day(d("1e12"), d("-1")), outside("reward_btc"));
}

#[test]
fn reference_case() {
    let network = reference();
    let per_th = network.btc_per_th_day().expect("in range");
    close(per_th, "4.25800681e-7");
    let hashprice = network.hashprice_usd_ph_day().expect("in range");
    close(hashprice, "38.3220613");
    let gross = per_th * d("200");
    close(gross, "8.516013622e-5");
    let net = net_of_gross(gross, d("1"), d("0"), d("0.02")).expect("shares");
    close(net, "8.345693350e-5");
    let revenue_day = revenue("200", d("1"), d("0"));
    close(revenue_day, "7.511124");
    let energy = kwh("3500", "1");
    assert_eq!(energy, d("84"));
    let cost = energy * d("0.06");
    assert_eq!(cost, d("5.04"));
    close(profit_usd_day(revenue_day, cost).expect("in range"), "2.471124");
    some_close(break_even_tariff_usd_kwh(revenue_day, energy), "0.0894181");
    let efficiency = efficiency_j_th(d("3500"), d("200")).expect("in range");
    assert_eq!(efficiency, d("17.5"));
    assert_eq!(break_even_hashprice_usd_ph_day(efficiency, d("0.06"), d("0")), Some(d("25.2")));
    some_close(break_even_btc_price_usd(cost, net), "60390.43");
    some_close(strike_usd_mwh(hashprice, efficiency, d("0.02")), "89.4181");
}

#[test]
fn uptime_scales_revenue_and_energy() {
    let revenue_day = revenue("200", d("0.95"), d("0"));
    close(revenue_day, "7.135568");
    let cost = kwh("3500", "0.95") * d("0.06");
    close(cost, "4.788");
    close(revenue_day - cost, "2.347568");
}

#[test]
fn strike_prices() {
    for (efficiency, strike) in [
        ("9.5", "167.543860"),
        ("13.5", "117.901235"),
        ("17.5", "90.952381"),
        ("21.5", "74.031008"),
        ("29.5", "53.954802"),
        ("38", "41.885965"),
    ] {
        some_close(strike_usd_mwh(d("38.2"), d(efficiency), d("0")), strike);
    }
}

#[test]
fn curtailment_day_pays_by_switching_off() {
    // 20 hours at $0.05 and 4 hours at $0.30.
    let hours = |h| energy_kwh(d("3500"), d(h), Decimal::ONE).expect("in range");
    let cheap = hours("20") * d("0.05");
    let dear = hours("4") * d("0.30");
    let always_on = revenue("200", d("1"), d("0")) - cheap - dear;
    close(always_on, "-0.188876");
    let off_when_dear = revenue("200", d("1"), d("4") / d("24")) - cheap;
    close(off_when_dear, "2.759270");
}

#[test]
fn degradation_compounds_by_month() {
    let after = |months| degraded_hashrate_ths(d("1"), d("0.005"), months).expect("in range");
    close(after(12), "0.94162280");
    assert_eq!(after(0), d("1"));
    assert_eq!(after(u32::MAX), d("0"));
    assert!(degraded_hashrate_ths(d("1"), d("1.1"), 1).is_err());
}

#[test]
fn a_zero_denominator_is_no_figure() {
    assert_eq!(break_even_tariff_usd_kwh(d("1"), d("0")), None);
    assert_eq!(break_even_btc_price_usd(d("1"), d("0")), None);
    assert_eq!(break_even_hashprice_usd_ph_day(d("1"), d("1"), d("1")), None);
    assert_eq!(strike_usd_mwh(d("1"), d("0"), d("0")), None);
    assert_eq!(strike_usd_mwh(Decimal::MAX, d("0.001"), d("0")), None);
    assert_eq!(efficiency_j_th(d("1"), d("0")), Ok(d("0")));
}
