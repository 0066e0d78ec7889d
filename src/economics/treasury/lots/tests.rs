//! Owns the unit tests of lots.
//! Promises the specification's numbers for every method, partial lots and the refusals.
//! May be called by the test runner only.

use super::*;
use crate::economics::testing::d;

const BTC: u64 = 100_000_000;

pub(super) fn lot(id: u128, sat: u64, cost: &str) -> Lot {
    let acquired_at = DateTime::from_timestamp(id as i64 * 86_400, 0).expect("a time");
    Lot { id: Uuid::from_u128(id), acquired_at, sat, cost_usd: d(cost) }
}

pub(super) fn fill(sat: u64, price: &str, fee: &str) -> Fill {
    Fill { sat, price_usd: d(price), fee_usd: d(fee) }
}

/// 1 BTC at 40,000, 1 at 60,000, 0.5 at 80,000.
fn lots() -> Vec<Lot> {
    vec![lot(1, BTC, "40000"), lot(2, BTC, "60000"), lot(3, BTC / 2, "40000")]
}

fn sold(method: &LotMethod) -> Sale {
    sell(&lots(), &fill(BTC * 3 / 2, "90000", "0"), method).expect("enough")
}

fn parts(sale: &Sale) -> Vec<(u128, u64, Decimal)> {
    sale.parts.iter().map(|part| (part.lot_id.as_u128(), part.sat, part.basis_usd)).collect()
}

#[test]
fn every_method_has_its_basis() {
    for (method, basis, gain) in [
        (LotMethod::Fifo, "70000", "65000"),
        (LotMethod::Lifo, "100000", "35000"),
        (LotMethod::Hifo, "100000", "35000"),
        (LotMethod::Average, "84000", "51000"),
        (LotMethod::SpecificId(vec![Uuid::from_u128(3), Uuid::from_u128(1)]), "80000", "55000"),
    ] {
        let sale = sold(&method);
        assert_eq!((sale.basis_usd, sale.gain_usd), (d(basis), d(gain)), "{method:?}");
        assert_eq!((sale.sat, sale.proceeds_usd, sale.fee_usd), (BTC * 3 / 2, d("135000"), d("0")));
    }
}

#[test]
fn lots_are_consumed_in_order_and_in_part() {
    let fifo = sold(&LotMethod::Fifo);
    assert_eq!(parts(&fifo), [(1, BTC, d("40000")), (2, BTC / 2, d("30000"))]);
    assert_eq!(fifo.remaining, [lot(2, BTC / 2, "30000"), lot(3, BTC / 2, "40000")]);
    let hifo = sold(&LotMethod::Hifo);
    assert_eq!(parts(&hifo), [(3, BTC / 2, d("40000")), (2, BTC, d("60000"))]);
    assert_eq!(hifo.remaining, [lot(1, BTC, "40000")]);
    let chosen = sold(&LotMethod::SpecificId(vec![Uuid::from_u128(3), Uuid::from_u128(1)]));
    assert_eq!(parts(&chosen), [(3, BTC / 2, d("40000")), (1, BTC, d("40000"))]);
    assert_eq!(chosen.remaining, [lot(2, BTC, "60000")]);
}

#[test]
fn the_average_is_the_cost_of_what_remains_too() {
    let sale = sold(&LotMethod::Average);
    assert_eq!(parts(&sale), [(1, BTC, d("56000")), (2, BTC / 2, d("28000"))]);
    assert_eq!(sale.remaining, [lot(2, BTC / 2, "28000"), lot(3, BTC / 2, "28000")]);
}

#[test]
fn age_decides_by_time_and_then_by_id() {
    let mut same = vec![lot(2, 5, "2"), lot(1, 5, "1")];
    same[0].acquired_at = same[1].acquired_at;
    let first = |lots: &[Lot], method| parts(&sell(lots, &fill(5, "1", "0"), method).expect("enough"))[0].0;
    assert_eq!(first(&same, &LotMethod::Fifo), 1);
    assert_eq!(first(&same, &LotMethod::Lifo), 2);
    assert_eq!(first(&same, &LotMethod::Hifo), 2);
    let equal = [lot(2, 10, "4"), lot(1, 5, "2")];
    assert_eq!(first(&equal, &LotMethod::Hifo), 1, "of equal costs the older");
    let reversed: Vec<_> = lots().into_iter().rev().collect();
    assert_eq!(first(&reversed, &LotMethod::Fifo), 1, "the order given does not matter");
}

#[test]
fn the_fee_lowers_the_gain() {
    let sale = sell(&lots(), &fill(BTC, "90000", "90.123456789"), &LotMethod::Fifo).expect("enough");
    assert_eq!(sale.fee_usd, d("90.12345679"));
    assert_eq!(sale.gain_usd, d("49909.87654321"));
    assert_eq!(sale.proceeds_usd, sale.basis_usd + sale.gain_usd + sale.fee_usd);
}

#[test]
fn an_indivisible_cost_is_split_without_a_remainder() {
    let whole = [lot(1, 3, "1")];
    let sale = sell(&whole, &fill(1, "1", "0"), &LotMethod::Fifo).expect("enough");
    assert_eq!(sale.basis_usd, d("0.33333333"));
    assert_eq!(sale.remaining, [lot(1, 2, "0.66666667")]);
    let rest = sell(&sale.remaining, &fill(2, "1", "0"), &LotMethod::Lifo).expect("enough");
    assert_eq!(rest.basis_usd, d("0.66666667"));
    assert_eq!(rest.remaining, []);
    // Two of three satoshi that cost the smallest amount there is: rounded up, it is all of it.
    let dust = sell(&[lot(1, 3, "0.00000001")], &fill(2, "1", "0"), &LotMethod::Fifo).expect("enough");
    assert_eq!((dust.basis_usd, dust.remaining[0].cost_usd), (d("0.00000001"), d("0")));
    // A cost with more decimals than money has counts as booked.
    let fine = sell(&[lot(1, 1, "0.123456785")], &fill(1, "1", "0"), &LotMethod::Fifo).expect("enough");
    assert_eq!(fine.basis_usd, d("0.12345678"));
}

#[test]
fn more_than_owned_is_refused_with_what_is_there() {
    let refused = |method: &LotMethod, sat| sell(&lots(), &fill(sat, "1", "0"), method);
    let all = BTC * 5 / 2;
    assert!(refused(&LotMethod::Fifo, all).is_ok());
    for method in [LotMethod::Fifo, LotMethod::Lifo, LotMethod::Hifo, LotMethod::Average] {
        let error = TreasuryError::NotEnough { requested_sat: all + 1, available_sat: all };
        assert_eq!(refused(&method, all + 1), Err(error));
        assert_eq!(error.to_string(), "250000001 sat cannot be sold: there are 250000000 sat");
    }
    let third = LotMethod::SpecificId(vec![Uuid::from_u128(3), Uuid::from_u128(3)]);
    let error = TreasuryError::NotEnough { requested_sat: BTC, available_sat: BTC / 2 };
    assert_eq!(refused(&third, BTC), Err(error), "a lot named twice is there once");
    let unknown = LotMethod::SpecificId(vec![Uuid::from_u128(3), Uuid::from_u128(9)]);
    assert_eq!(refused(&unknown, 1), Err(TreasuryError::UnknownLot { lot_id: Uuid::from_u128(9) }));
    let error = TreasuryError::NotEnough { requested_sat: 1, available_sat: 0 };
    assert_eq!(sell(&[], &fill(1, "1", "0"), &LotMethod::Fifo), Err(error));
}

#[test]
fn figures_outside_their_range_are_named() {
    let outside = |field| Err(TreasuryError::Economics(EconomicsError::OutOfRange { field }));
    let fifo = LotMethod::Fifo;
    assert_eq!(sell(&lots(), &fill(0, "1", "0"), &fifo), outside("sat"));
    assert_eq!(sell(&lots(), &fill(1, "-1", "0"), &fifo), outside("price_usd"));
    assert_eq!(sell(&lots(), &fill(1, "1", "-1"), &fifo), outside("fee_usd"));
    assert_eq!(sell(&[lot(1, 0, "1")], &fill(1, "1", "0"), &fifo), outside("sat"));
    assert_eq!(sell(&[lot(1, 1, "-1")], &fill(1, "1", "0"), &fifo), outside("cost_usd"));
}

#[test]
fn a_method_reads_back_as_it_was_written() {
    for (method, json) in [
        (LotMethod::Fifo, r#""fifo""#),
        (LotMethod::Average, r#""average""#),
        (
            LotMethod::SpecificId(vec![Uuid::from_u128(1)]),
            r#"{"specific_id":["00000000-0000-0000-0000-000000000001"]}"#,
        ),
    ] {
        assert_eq!(serde_json::to_string(&method).expect("serialisable"), json);
        assert_eq!(serde_json::from_str::<LotMethod>(json).ok(), Some(method));
    }
    let sale = sold(&LotMethod::Hifo);
    let json = serde_json::to_string(&sale).expect("serialisable");
    assert_eq!(serde_json::from_str::<Sale>(&json).ok(), Some(sale));
}
