//! Owns the property tests of the portfolio, over fleets from a fixed seed.
//! Promises that groups add up to the totals and that quantities scale what is additive.
//! May be called by the test runner only.

use super::super::testing::{Dice, d, near};
use super::tests::compute;
use super::*;

fn random_fleet(dice: &mut Dice) -> Vec<MinerLine> {
    (0..=dice.roll(12))
        .map(|_| MinerLine {
            model: format!("Model {}", dice.roll(4)),
            hashrate_ths: Decimal::from(dice.roll(100_000)) / d("100"),
            power_w: Decimal::from(dice.roll(120_000)) / d("10"),
            quantity: dice.roll(500),
            purchase_price_usd: (dice.roll(4) > 0).then(|| Decimal::from(dice.roll(9_000))),
            tariff_usd_kwh: (dice.roll(3) > 0).then(|| Decimal::from(dice.roll(300)) / d("1000")),
            status: MinerStatus::ALL[dice.roll(8).saturating_sub(3) as usize],
            location: (dice.roll(4) > 0).then(|| format!("Site {}", dice.roll(3))),
        })
        .collect()
}

/// Revenue and profit are products rounded in the 28th digit; everything else adds up exactly.
fn tolerance() -> Decimal {
    d("1e-18")
}

fn sum<R>(rows: &[R], figure: impl Fn(&R) -> Option<Decimal>) -> Decimal {
    rows.iter().map(|row| figure(row).expect("a snapshot")).sum()
}

#[test]
fn groups_add_up_to_the_totals() {
    let mut dice = Dice(42);
    for _ in 0..200 {
        let p = compute(&random_fleet(&mut dice));
        macro_rules! adds_up {
            ($rows:ident) => {
                assert_eq!(p.$rows.iter().map(|r| r.miners_total).sum::<u64>(), p.miners_total);
                assert_eq!(p.$rows.iter().map(|r| r.miners_online).sum::<u64>(), p.miners_online);
                assert_eq!(sum(&p.$rows, |r| Some(r.hashrate_ths)), p.hashrate_ths);
                assert_eq!(sum(&p.$rows, |r| Some(r.power_kw)), p.power_kw);
                assert_eq!(sum(&p.$rows, |r| Some(r.power_cost_usd_day)), p.power_cost_usd_day);
                let revenue = p.revenue_usd_day.expect("a snapshot");
                near(sum(&p.$rows, |r| r.revenue_usd_day), revenue, tolerance());
                let profit = p.profit_usd_day.expect("a snapshot");
                near(sum(&p.$rows, |r| r.profit_usd_day), profit, tolerance());
            };
        }
        adds_up!(by_model);
        adds_up!(by_location);
        assert!(p.by_model.is_sorted_by(|a, b| a.model < b.model));
        assert!(p.by_location.is_sorted_by(|a, b| a.location < b.location));
    }
}

#[test]
fn quantities_scale_additive_figures_and_leave_ratios() {
    let mut dice = Dice(99);
    for _ in 0..100 {
        let fleet = random_fleet(&mut dice);
        let factor = dice.roll(20) + 2;
        let scaled: Vec<_> =
            fleet.iter().map(|line| MinerLine { quantity: line.quantity * factor, ..line.clone() }).collect();
        let (one, many) = (compute(&fleet), compute(&scaled));
        let times = Decimal::from(factor);
        assert_eq!(many.miners_total, one.miners_total * factor);
        assert_eq!(many.hashrate_ths, one.hashrate_ths * times);
        assert_eq!(many.power_kw, one.power_kw * times);
        assert_eq!(many.power_cost_usd_day, one.power_cost_usd_day * times);
        assert_eq!(many.capex_usd, one.capex_usd * times);
        for (many, one) in [
            (many.gross_btc_day, one.gross_btc_day),
            (many.net_btc_day, one.net_btc_day),
            (many.revenue_usd_day, one.revenue_usd_day),
            (many.profit_usd_day, one.profit_usd_day),
        ] {
            let (many, one) = (many.expect("a snapshot"), one.expect("a snapshot"));
            near(many, one * times, tolerance());
        }
        near(many.efficiency_j_th, one.efficiency_j_th, tolerance());
        assert_eq!(many.hashprice_usd_ph_day, one.hashprice_usd_ph_day);
        assert_eq!(many.dynamic_payback_days, one.dynamic_payback_days);
        assert_eq!(many.roi_percent.is_some(), one.roi_percent.is_some());
    }
}

/// The database hands lines over in any order, and alike ones as one.
#[test]
fn neither_the_order_of_lines_nor_how_they_are_split_shows() {
    let mut dice = Dice(7);
    for _ in 0..100 {
        let fleet = random_fleet(&mut dice);
        let expected = compute(&fleet);
        let mut split = Vec::new();
        for line in &fleet {
            let first = dice.roll(500) % (line.quantity + 1);
            let part = |quantity| MinerLine { quantity, ..line.clone() };
            split.extend(
                [part(first), part(line.quantity - first)].into_iter().filter(|part| part.quantity > 0),
            );
        }
        split.reverse();
        let owned: Vec<_> = fleet.into_iter().filter(|line| line.quantity > 0).collect();
        assert_eq!(compute(&split), compute(&owned));
        assert_eq!(compute(&split).capex_usd, expected.capex_usd);
    }
}
