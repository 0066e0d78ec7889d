//! Owns the property tests of lots, over purchases and sales from a fixed seed.
//! Promises that satoshi, cost and gains add up under every method and mix of methods, at extreme figures too.
//! May be called by the test runner only.

use super::*;
use crate::economics::testing::{Dice, d};

const METHODS: [LotMethod; 4] = [LotMethod::Fifo, LotMethod::Lifo, LotMethod::Hifo, LotMethod::Average];

fn cents(dice: &mut Dice, sides: u64) -> Decimal {
    Decimal::from(dice.roll(sides)) / d("100")
}

fn purchase(dice: &mut Dice, id: u64) -> Lot {
    let price = cents(dice, 12_000_000);
    // Some lots are a few satoshi, some hundreds of bitcoin.
    let most = if dice.roll(3) == 0 { 7 } else { 50_000_000_000 };
    let sat = dice.roll(most) + 1;
    let acquired_at = DateTime::from_timestamp(dice.roll(1_800_000_000) as i64, 0).expect("a time");
    let cost_usd = value_usd(sat, price).expect("in range");
    Lot { id: Uuid::from_u128(u128::from(id)), acquired_at, sat, cost_usd }
}

fn any_method(dice: &mut Dice, lots: &[Lot]) -> LotMethod {
    match dice.roll(5) as usize {
        4 => {
            // All of them, in an order of chance.
            let mut ids: Vec<_> = lots.iter().map(|lot| lot.id).collect();
            ids.sort_by_key(|_| dice.roll(1_000));
            LotMethod::SpecificId(ids)
        }
        at => METHODS[at].clone(),
    }
}

fn cost(lots: &[Lot]) -> Decimal {
    total_cost_usd(lots.iter()).expect("in range")
}

fn sat(lots: &[Lot]) -> u64 {
    total_sat(lots.iter()).expect("in range")
}

#[test]
fn any_sequence_of_purchases_and_sales_conserves_satoshi_and_cost() {
    let mut dice = Dice(11);
    let mut sales = 0;
    for round in 0..60 {
        let mut lots: Vec<Lot> = Vec::new();
        let (mut bought_sat, mut sold_sat) = (0, 0);
        let (mut bought_usd, mut basis_usd) = (d("0"), d("0"));
        for step in 0..40 {
            let held = sat(&lots);
            if held == 0 || dice.roll(2) == 0 {
                let lot = purchase(&mut dice, round * 100 + step);
                bought_sat += lot.sat;
                bought_usd += booked_usd(lot.cost_usd);
                lots.push(lot);
                continue;
            }
            let fill = Fill {
                sat: dice.roll(held) + 1,
                price_usd: cents(&mut dice, 20_000_000),
                fee_usd: cents(&mut dice, 1_000),
            };
            let method = any_method(&mut dice, &lots);
            let sale = sell(&lots, &fill, &method).expect("enough");
            assert_eq!(sale.parts.iter().map(|part| part.sat).sum::<u64>(), fill.sat);
            assert_eq!(sale.parts.iter().map(|part| part.basis_usd).sum::<Decimal>(), sale.basis_usd);
            assert_eq!(sale.proceeds_usd, sale.basis_usd + sale.gain_usd + sale.fee_usd, "{method:?}");
            assert!(sale.parts.iter().all(|part| part.sat > 0 && part.basis_usd >= d("0")));
            assert!(sale.remaining.iter().all(|lot| lot.check().is_ok()));
            lots = sale.remaining;
            sold_sat += fill.sat;
            basis_usd += sale.basis_usd;
            sales += 1;
            assert_eq!(sat(&lots), bought_sat - sold_sat);
            assert_eq!(cost(&lots), bought_usd - basis_usd, "{method:?}");
        }
    }
    assert!(sales > 500, "{sales} sales");
}

#[test]
fn all_methods_realise_the_same_gain_once_everything_is_sold() {
    let mut dice = Dice(12);
    for _ in 0..60 {
        let lots: Vec<_> = (0..dice.roll(8) + 1).map(|id| purchase(&mut dice, id)).collect();
        let mut fills = Vec::new();
        let mut left = sat(&lots);
        while left > 0 {
            // The fourth sale sells the rest.
            let sold = if fills.len() == 3 { left } else { dice.roll(left) + 1 };
            let price_usd = cents(&mut dice, 20_000_000);
            fills.push(Fill { sat: sold, price_usd, fee_usd: cents(&mut dice, 500) });
            left -= sold;
        }
        let ids: Vec<_> = lots.iter().rev().map(|lot| lot.id).collect();
        let specific = [LotMethod::SpecificId(ids)];
        let gains = METHODS.iter().chain(&specific).map(|method| {
            let (mut lots, mut gain) = (lots.clone(), d("0"));
            for fill in &fills {
                let held: Vec<_> = lots.iter().map(|lot| lot.id).collect();
                let method = match method {
                    LotMethod::SpecificId(ids) => {
                        LotMethod::SpecificId(ids.iter().filter(|id| held.contains(id)).copied().collect())
                    }
                    other => other.clone(),
                };
                let sale = sell(&lots, fill, &method).expect("enough");
                gain += sale.gain_usd;
                lots = sale.remaining;
            }
            assert_eq!(lots, []);
            gain
        });
        let gains: Vec<_> = gains.collect();
        assert!(gains.windows(2).all(|pair| pair[0] == pair[1]), "{gains:?}");
    }
}

#[test]
fn the_highest_cost_first_gives_the_smallest_gain_of_a_sale() {
    let mut dice = Dice(13);
    for _ in 0..200 {
        let lots: Vec<_> = (0..dice.roll(8) + 1).map(|id| purchase(&mut dice, id)).collect();
        let fill = Fill { sat: dice.roll(sat(&lots)) + 1, price_usd: d("90000"), fee_usd: d("0") };
        let gain = |method: &LotMethod| sell(&lots, &fill, method).expect("enough").gain_usd;
        let hifo = gain(&LotMethod::Hifo);
        for method in &METHODS {
            // A part is rounded to 8 decimals, and at most one lot is sold in part by each method.
            assert!(hifo <= gain(method) + d("0.00000002"), "{method:?}");
        }
    }
}

#[test]
fn extreme_figures_give_a_sale_or_a_named_error() {
    let sats = [0, 1, 3, 2_100_000_000_000_000, u64::MAX - 1, u64::MAX];
    let money = [d("0"), d("1e-28"), d("0.00000001"), d("1"), d("1e15"), Decimal::MAX, Decimal::MIN, d("-1")];
    let mut dice = Dice(14);
    let (mut sold, mut refused) = (0, 0);
    for _ in 0..20_000 {
        let sat = |dice: &mut Dice| sats[dice.roll(6) as usize];
        let usd = |dice: &mut Dice| money[dice.roll(8) as usize];
        let lots: Vec<_> = (0..dice.roll(3))
            .map(|id| Lot { sat: sat(&mut dice), cost_usd: usd(&mut dice), ..purchase(&mut dice, id) })
            .collect();
        let fill = Fill { sat: sat(&mut dice), price_usd: usd(&mut dice), fee_usd: usd(&mut dice) };
        let method = any_method(&mut dice, &lots);
        match sell(&lots, &fill, &method) {
            Ok(sale) => {
                let left = total_sat(sale.remaining.iter()).expect("less than before");
                assert_eq!(left + fill.sat, total_sat(lots.iter()).expect("summed before"));
                sold += 1;
            }
            Err(_) => refused += 1,
        }
    }
    assert!(sold > 100 && refused > 100, "{sold} sold, {refused} refused");
}
