//! What the paper venue fills, when, and at which price.

use uuid::Uuid;

use super::*;

const START: DateTime<Utc> = DateTime::UNIX_EPOCH;

fn after(minutes: i64) -> DateTime<Utc> {
    START + TimeDelta::minutes(minutes)
}

fn order(strategy: Strategy) -> Order {
    Order {
        trade_type: TradeType::Sell,
        strategy,
        sat: 1_000,
        filled_sat: 0,
        target_price_usd: None,
        started_at: START,
        filled_at: None,
    }
}

fn prices(of: &[(i64, i64)], now: DateTime<Utc>) -> Prices {
    let known = of.iter().map(|(minutes, usd)| Price {
        snapshot_id: Uuid::nil(),
        price_usd: Decimal::from(*usd),
        at: after(*minutes),
        block_height: 1,
    });
    Prices::at(known.collect(), now)
}

/// Satoshi and price of the answer.
fn filled(order: &Order, of: &[(i64, i64)], minutes: i64) -> Option<(u64, Decimal)> {
    let now = after(minutes);
    match Paper.quote(order, &prices(of, now), now) {
        Quote::Fill { sat, price_usd, .. } => Some((sat, price_usd)),
        Quote::Nothing => None,
        Quote::Blind(blind) => panic!("{blind:?}"),
    }
}

#[test]
fn market_is_filled_whole_at_the_newest_price() {
    assert_eq!(filled(&order(Strategy::Market), &[(0, 90), (5, 91)], 5), Some((1_000, Decimal::from(91))));
}

#[test]
fn without_a_fresh_price_nothing_is_filled_at_all() {
    for strategy in [Strategy::Market, Strategy::Limit, Strategy::Twap, Strategy::Vwap] {
        let blind = |of: &[(i64, i64)], minutes| {
            Paper.quote(&order(strategy), &prices(of, after(minutes)), after(minutes))
        };
        assert_eq!(blind(&[], 1), Quote::Blind(Blind::NoPrice));
        assert_eq!(blind(&[(0, 90)], 31), Quote::Blind(Blind::StalePrice));
        assert_ne!(blind(&[(0, 90)], 30), Quote::Blind(Blind::StalePrice));
    }
}

#[test]
fn a_limit_is_never_passed() {
    for (trade_type, price, fills) in [
        (TradeType::Sell, 99, false),
        (TradeType::Sell, 100, true),
        (TradeType::Sell, 101, true),
        (TradeType::Hedge, 99, false),
        (TradeType::Buy, 101, false),
        (TradeType::Buy, 100, true),
        (TradeType::Buy, 99, true),
    ] {
        for strategy in [Strategy::Limit, Strategy::Market, Strategy::Twap] {
            let order = Order { trade_type, target_price_usd: Some(Decimal::from(100)), ..order(strategy) };
            assert_eq!(filled(&order, &[(0, price)], 0).is_some(), fills, "{trade_type:?} at {price}");
        }
    }
}

#[test]
fn twap_fills_twelve_parts_of_five_minutes() {
    let mut twap = order(Strategy::Twap);
    let (mut sold, mut fills) = (0, 0);
    for minute in 0..70 {
        if let Some((sat, _)) = filled(&twap, &[(minute, 90)], minute) {
            assert_eq!(minute % 5, 0, "in between nothing is due");
            assert!((83..=84).contains(&sat), "{sat}");
            twap.filled_sat += sat;
            (sold, fills) = (sold + sat, fills + 1);
        }
    }
    assert_eq!((sold, fills), (1_000, 12), "to the last satoshi");
    let late = order(Strategy::Twap);
    assert_eq!(filled(&late, &[(21, 90)], 21), Some((416, Decimal::from(90))), "five parts at once");
    assert_eq!(filled(&late, &[(500, 90)], 500), Some((1_000, Decimal::from(90))));
}

#[test]
fn vwap_weighs_a_price_by_the_time_it_held() {
    let mut vwap = order(Strategy::Vwap);
    assert_eq!(filled(&vwap, &[(0, 100)], 0), None, "no minute is over");
    // 100 for ten minutes, 130 for five: (100 * 10 + 130 * 5) / 15 = 110; a quarter of the hour.
    assert_eq!(filled(&vwap, &[(0, 100), (10, 130)], 15), Some((250, Decimal::from(110))));
    (vwap.filled_sat, vwap.filled_at) = (250, Some(after(15)));
    assert_eq!(filled(&vwap, &[(0, 100), (10, 130)], 15), None, "asked again it fills nothing more");
    // From then on 130 held, and 160 since this moment.
    assert_eq!(filled(&vwap, &[(10, 130), (30, 160)], 30), Some((250, Decimal::from(130))));
    // What is too old has no weight: only the last 30 minutes count.
    assert_eq!(filled(&vwap, &[(16, 1), (45, 130)], 60), Some((750, Decimal::from(130))));
}

#[test]
fn one_satoshi_is_filled_once() {
    for strategy in [Strategy::Twap, Strategy::Vwap] {
        let mut one = Order { sat: 1, ..order(strategy) };
        for minute in 0..120 {
            if let Some((sat, _)) = filled(&one, &[(minute, 90)], minute) {
                one.filled_sat += sat;
            }
        }
        assert_eq!(one.filled_sat, 1);
    }
}
