//! Owns the unit tests of manual cuts.
//! Promises the specification's score, each strategy's order by hand, and its properties over random fleets.
//! May be called by the test runner only.

use super::super::super::testing::{Dice, d};
use super::*;

/// An S21 as rated, of a standard customer.
fn miner() -> CutCandidate {
    CutCandidate {
        model: "Antminer S21".to_owned(),
        location: Some("North".to_owned()),
        customer: "a".to_owned(),
        tier: CustomerTier::Standard,
        hashrate_ths: d("200"),
        rated_hashrate_ths: d("200"),
        power_w: d("3500"),
        reference_power_w: d("3500"),
        uptime: d("1"),
    }
}

fn with_hashrate(ths: u32) -> CutCandidate {
    CutCandidate { hashrate_ths: Decimal::from(ths), ..miner() }
}

fn run(candidates: &[CutCandidate], target_kw: &str, strategy: CutStrategy) -> Cut {
    cut(candidates, d(target_kw), strategy, &CutFilter::default()).expect("in range")
}

#[test]
fn score_of_the_specification() {
    let scored = CutCandidate { hashrate_ths: d("190"), uptime: d("0.98"), ..miner() };
    assert_eq!(scored.score(), Ok(d("96.3")));
    assert_eq!(miner().score(), Ok(d("100")));
    let hot = CutCandidate { power_w: d("7000"), ..miner() };
    assert_eq!(hot.score(), Ok(d("90")));
}

#[test]
fn a_ratio_to_nothing_counts_nothing() {
    let dead = CutCandidate { power_w: d("0"), rated_hashrate_ths: d("0"), ..miner() };
    assert_eq!(dead.score(), Ok(d("10")));
}

#[test]
fn fields_outside_their_range_are_named() {
    type Change = fn(&mut CutCandidate);
    let cases: [(&str, Change); 6] = [
        ("hashrate_ths", |m| m.hashrate_ths = d("-1")),
        ("rated_hashrate_ths", |m| m.rated_hashrate_ths = d("-1")),
        ("power_w", |m| m.power_w = d("-1")),
        ("reference_power_w", |m| m.reference_power_w = d("-1")),
        ("uptime", |m| m.uptime = d("1.01")),
        ("uptime", |m| m.uptime = d("-0.01")),
    ];
    for (field, change) in cases {
        let mut m = miner();
        change(&mut m);
        let outside = EconomicsError::OutOfRange { field };
        assert_eq!(m.score(), Err(outside));
        let refused = cut(&[m], d("1"), CutStrategy::PerformancePriority, &CutFilter::default());
        assert_eq!(refused, Err(outside));
    }
    let refused = cut(&[], d("-1"), CutStrategy::FairDistribution, &CutFilter::default());
    assert_eq!(refused, Err(EconomicsError::OutOfRange { field: "target_kw" }));
}

#[test]
fn performance_takes_the_lowest_score_until_the_target() {
    let fleet = [with_hashrate(180), with_hashrate(150), with_hashrate(200), with_hashrate(150)];
    let cut = run(&fleet, "7.1", CutStrategy::PerformancePriority);
    assert_eq!(cut.off, [1, 3, 0], "equal scores in the order of the input");
    assert_eq!((cut.cut_kw, cut.reached, cut.missing_kw), (d("10.5"), true, d("0")));
    let exact = run(&fleet, "7", CutStrategy::PerformancePriority);
    assert_eq!(exact.off, [1, 3]);
    let none = run(&fleet, "0", CutStrategy::PerformancePriority);
    assert_eq!((none.off.len(), none.reached), (0, true));
}

#[test]
fn what_is_missing_is_said() {
    let cut = run(&[miner(), miner()], "10", CutStrategy::PerformancePriority);
    assert_eq!((cut.off.len(), cut.cut_kw, cut.reached, cut.missing_kw), (2, d("7"), false, d("3")));
    let empty = run(&[], "10", CutStrategy::FairDistribution);
    assert_eq!((empty.reached, empty.missing_kw), (false, d("10")));
}

#[test]
fn customers_go_off_by_tier_then_score() {
    let of = |tier, ths| CutCandidate { tier, ..with_hashrate(ths) };
    let fleet = [
        of(CustomerTier::Vip, 10),
        of(CustomerTier::Enterprise, 100),
        of(CustomerTier::Standard, 200),
        of(CustomerTier::Standard, 190),
        of(CustomerTier::Enterprise, 90),
    ];
    let cut = run(&fleet, "100", CutStrategy::CustomerPriority);
    assert_eq!(cut.off, [3, 2, 4, 1, 0]);
}

#[test]
fn fair_cuts_round_by_the_largest_remainder() {
    // Powers 10 x 1 kW, 6 x 1 kW, 4 x 1 kW and a target of 5 kW: quotas 2.5, 1.5, 1.0.
    let of = |customer: &str, n: usize| {
        let one = CutCandidate {
            customer: customer.to_owned(),
            power_w: d("1000"),
            reference_power_w: d("1000"),
            ..miner()
        };
        vec![one; n]
    };
    let fleet = [of("a", 10), of("b", 6), of("c", 4)].concat();
    let cut = run(&fleet, "5", CutStrategy::FairDistribution);
    let parts: Vec<_> = cut.by_customer.iter().map(|c| (c.customer.as_str(), c.cut_kw)).collect();
    assert_eq!(parts, [("a", d("3")), ("b", d("1")), ("c", d("1"))]);
    assert_eq!(cut.cut_kw, d("5"));
    assert_eq!(cut.by_customer[0].power_kw, d("10"));
    assert_eq!(cut.by_customer.iter().map(|c| c.miners_offline).sum::<u64>(), cut.off.len() as u64);
    // 4 kW: quotas 2, 1.2, 0.8; the largest remainder is c's.
    let cut = run(&fleet, "4", CutStrategy::FairDistribution);
    let parts: Vec<_> = cut.by_customer.iter().map(|c| c.cut_kw).collect();
    assert_eq!(parts, [d("2"), d("1"), d("1")]);
    // Thirds: what fits exactly is not lost to a division.
    let fleet = [of("a", 3), of("b", 3), of("c", 3)].concat();
    let cut = run(&fleet, "3", CutStrategy::FairDistribution);
    assert!(cut.by_customer.iter().all(|c| c.cut_kw == d("1")));
}

#[test]
fn filters_only_take_away() {
    let fleet = [
        miner(),
        CutCandidate { model: "Whatsminer M50".to_owned(), power_w: d("7000"), ..miner() },
        CutCandidate { location: None, customer: "b".to_owned(), tier: CustomerTier::Vip, ..miner() },
        CutCandidate { hashrate_ths: d("0"), ..miner() },
    ];
    let cases: [(CutFilter, &[usize]); 9] = [
        (CutFilter::default(), &[3, 1, 0, 2]),
        (CutFilter { models: vec!["s21".to_owned()], ..CutFilter::default() }, &[3, 0, 2]),
        (CutFilter { models: vec!["Bitmain  Antminer S21".to_owned()], ..CutFilter::default() }, &[3, 0, 2]),
        (CutFilter { locations: vec![" North ".to_owned()], ..CutFilter::default() }, &[3, 1, 0]),
        (CutFilter { customers: vec!["b".to_owned()], ..CutFilter::default() }, &[2]),
        (CutFilter { tiers: vec![CustomerTier::Vip], ..CutFilter::default() }, &[2]),
        (CutFilter { min_efficiency_j_th: Some(d("35")), ..CutFilter::default() }, &[3, 1]),
        (CutFilter { max_efficiency_j_th: Some(d("17.5")), ..CutFilter::default() }, &[0, 2]),
        (CutFilter { models: vec!["s19".to_owned()], ..CutFilter::default() }, &[]),
    ];
    for (filter, off) in cases {
        let cut = cut(&fleet, d("1000"), CutStrategy::PerformancePriority, &filter).expect("in range");
        assert_eq!(cut.off, off, "{filter:?}");
    }
    assert!(serde_json::from_str::<CutFilter>(r#"{"model":["s21"]}"#).is_err());
}

#[test]
fn a_miner_that_draws_nothing_stays() {
    let idle = CutCandidate { power_w: d("0"), hashrate_ths: d("0"), ..miner() };
    for strategy in STRATEGIES {
        assert_eq!(run(&[idle.clone(), miner()], "1", strategy).off, [1]);
    }
}

const STRATEGIES: [CutStrategy; 3] =
    [CutStrategy::PerformancePriority, CutStrategy::CustomerPriority, CutStrategy::FairDistribution];

fn random_fleet(dice: &mut Dice) -> Vec<CutCandidate> {
    let tiers = [CustomerTier::Standard, CustomerTier::Enterprise, CustomerTier::Vip];
    (0..dice.roll(30))
        .map(|_| CutCandidate {
            customer: format!("customer {}", dice.roll(5)),
            tier: tiers[dice.roll(3) as usize],
            hashrate_ths: Decimal::from(dice.roll(250)),
            power_w: Decimal::from(dice.roll(8) * 500),
            uptime: Decimal::from(dice.roll(101)) / d("100"),
            ..miner()
        })
        .collect()
}

#[test]
fn cuts_are_consistent_and_minimal_in_their_order() {
    let mut dice = Dice(31);
    for round in 0..500 {
        let fleet = random_fleet(&mut dice);
        let target = Decimal::from(dice.roll(70_000)) / d("1000");
        let all: Decimal = fleet.iter().map(|m| m.power_w).sum::<Decimal>() / d("1000");
        for strategy in STRATEGIES {
            let cut = cut(&fleet, target, strategy, &CutFilter::default()).expect("in range");
            let kw: Decimal = cut.off.iter().map(|i| fleet[*i].power_w / d("1000")).sum();
            assert_eq!(kw, cut.cut_kw);
            let parts: Decimal = cut.by_customer.iter().map(|c| c.cut_kw).sum();
            assert_eq!(parts, cut.cut_kw);
            let mut seen = cut.off.clone();
            seen.sort_unstable();
            seen.dedup();
            assert_eq!(seen.len(), cut.off.len(), "each at most once");
            assert_eq!(cut.reached, cut.cut_kw >= target);
            assert_eq!(cut.missing_kw, (target - cut.cut_kw).max(d("0")));
            assert_eq!(cut.reached, all >= target, "round {round}: as long as there is power, it is found");
            if let (true, Some(last)) = (cut.reached, cut.off.last()) {
                assert!(cut.cut_kw - fleet[*last].power_w / d("1000") < target, "not one too many");
            }
        }
    }
}

#[test]
fn fair_cuts_stay_within_one_miner_of_the_quota() {
    let mut dice = Dice(32);
    for _ in 0..500 {
        let fleet = random_fleet(&mut dice);
        let all: Decimal = fleet.iter().map(|m| m.power_w).sum::<Decimal>() / d("1000");
        let target = all * Decimal::from(dice.roll(101)) / d("100");
        let cut =
            cut(&fleet, target, CutStrategy::FairDistribution, &CutFilter::default()).expect("in range");
        for part in &cut.by_customer {
            let quota = if all.is_zero() { d("0") } else { part.power_kw * target / all };
            assert!((part.cut_kw - quota).abs() <= d("3.500001"), "{part:?} of {quota}");
        }
    }
}
