//! Owns the property tests of the backtest, over five years of prices from a fixed seed.
//! Promises that the books add up for every strategy and method, that caps hold every day, and that results repeat.
//! May be called by the test runner only.

use super::super::money::value_usd;
use super::super::strategy::properties::{money, sat};
use super::super::strategy::tests::date;
use super::*;
use crate::economics::testing::{Dice, d};
use chrono::DateTime;
use uuid::Uuid;

const BTC: u64 = 100_000_000;
const FIVE_YEARS: usize = 1_826;

/// A walk of daily steps within 5 or 9 % by season, with a slow swing, production that falls at the halving, opex and all figures there.
fn five_years() -> Vec<Day> {
    let mut dice = Dice(2_026);
    let mut price = d("30000");
    (0..FIVE_YEARS)
        .map(|at| {
            let swing = if at / 300 % 2 == 0 { 36 } else { -30 };
            let most = if at / 100 % 3 == 0 { 900 } else { 500 };
            let step = Decimal::from(dice.roll(2 * most + 1) as i64 - most as i64 + swing) / d("10000");
            price = (price * (d("1") + step)).round_dp(2).max(d("1000"));
            let block_height = 750_000 + at as u64 * 144;
            Day {
                date: date(at as u64),
                price_usd: price,
                production_sat: if block_height < 840_000 { 30_000_000 } else { 15_000_000 },
                opex_usd: d("6000"),
                block_height: Some(block_height),
                hashprice_usd_ph_day: Some(price / d("1000") + Decimal::from(dice.roll(20))),
            }
        })
        .collect()
}

fn start() -> Start {
    let lot = |id, sat, cost: &str| Lot {
        id: Uuid::from_u128(id),
        acquired_at: DateTime::UNIX_EPOCH,
        sat,
        cost_usd: d(cost),
    };
    Start { lots: vec![lot(1, BTC * 80, "2000000"), lot(2, BTC * 20, "900000")], cash_usd: d("300000") }
}

fn rules(strategies: Vec<Strategy>) -> Rules {
    let caps = Caps { max_share_day: d("0.1"), min_reserve_sat: BTC * 2, min_order_sat: 1_000_000 };
    Rules { strategies, caps, ..Rules::default() }
}

/// What must add up, whatever was sold.
fn books_add_up(days: &[Day], start: &Start, rules: &Rules, result: &Backtest) {
    let held: u64 = start.lots.iter().map(|lot| lot.sat).sum();
    for made in [&result.strategies, &result.hodl] {
        assert_eq!(made.equity_usd.len(), days.len());
        assert_eq!(held + made.mined_sat, made.sat + made.sold_sat);
        assert_eq!(made.opex_usd, made.opex_paid_usd + made.shortfall_usd);
        assert_eq!(made.opex_usd, days.iter().map(|day| day.opex_usd).sum::<Decimal>());
        let cash = start.cash_usd + made.proceeds_usd - made.fees_usd - made.opex_paid_usd;
        assert_eq!(cash, made.cash_usd);
        assert!(made.cash_usd >= d("0") && (made.cash_usd.is_zero() || made.shortfall_usd.is_zero()));
        let last = days.last().expect("a day").price_usd;
        let equity = value_usd(made.sat, last).expect("in range") + made.cash_usd - made.shortfall_usd;
        assert_eq!(equity, made.equity_end_usd);
        for figure in [made.total_return, made.max_drawdown, made.sharpe] {
            assert!(figure.is_none_or(f64::is_finite));
        }
    }
    assert_eq!(result.hodl.sold_sat, 0);
    assert_eq!(result.sales.iter().map(|sale| sale.sat).sum::<u64>(), result.strategies.sold_sat);
    let gains: Decimal = result.sales.iter().map(|sale| sale.gain_usd).sum();
    assert_eq!(gains, result.strategies.realised_gain_usd);

    let (mut left, mut sales) = (held, result.sales.iter().peekable());
    for day in days {
        left += day.production_sat;
        let most = (Decimal::from(left) * rules.caps.max_share_day).floor();
        let mut sold = 0;
        while let Some(sale) = sales.next_if(|sale| sale.date == day.date) {
            assert!(sale.sat >= rules.caps.min_order_sat);
            sold += sale.sat;
        }
        assert!(Decimal::from(sold) <= most);
        assert!(sold == 0 || left - sold >= rules.caps.min_reserve_sat);
        left -= sold;
    }
    assert!(sales.next().is_none());
}

#[test]
fn every_strategy_keeps_its_books_over_five_years() {
    let (days, start) = (five_years(), start());
    for kind in StrategyKind::ALL {
        let rules = rules(vec![Strategy::with_defaults(kind)]);
        let result = backtest(&days, &start, &rules).expect("in range");
        books_add_up(&days, &start, &rules, &result);
        assert_eq!(result.sales.is_empty(), kind == StrategyKind::Hodl, "{kind} sold");
        assert_eq!(backtest(&days, &start, &rules).as_ref(), Ok(&result), "{kind} again");
        let hodl = backtest(&days, &start, &self::rules(vec![])).expect("in range");
        assert_eq!(result.hodl, hodl.strategies, "holding does not depend on {kind}");
    }
}

const METHODS: [LotMethod; 4] = [LotMethod::Fifo, LotMethod::Lifo, LotMethod::Hifo, LotMethod::Average];

#[test]
fn all_strategies_together_keep_their_books_under_every_method() {
    let (days, start) = (five_years(), start());
    for method in METHODS {
        let rules = Rules { method, ..rules(StrategyKind::ALL.map(Strategy::with_defaults).to_vec()) };
        let result = backtest(&days, &start, &rules).expect("in range");
        books_add_up(&days, &start, &rules, &result);
        let mut sold: Vec<_> = result.sales.iter().map(|sale| sale.strategy).collect();
        sold.sort();
        sold.dedup();
        assert!(sold.len() > 5, "{sold:?} sold");
    }
}

#[test]
fn nothing_looks_ahead() {
    let (days, start) = (five_years(), start());
    for kind in StrategyKind::ALL {
        let strategy = Strategy::with_defaults(kind);
        let rules = rules(vec![strategy.clone()]);
        let whole = backtest(&days, &start, &rules).expect("in range");
        for length in [20, 600, 1_300] {
            let known = &days[..length];
            let part = backtest(known, &start, &rules).expect("in range");
            assert_eq!(part.strategies.equity_usd, whole.strategies.equity_usd[..length], "{kind}");
            let set = std::slice::from_ref(&strategy);
            let (then, later) = (Outlook::new(known, set), Outlook::new(&days, set));
            for at in 0..length {
                assert_eq!(then.hashprice_percentile(at), later.hashprice_percentile(at));
                assert_eq!(then.puell_multiple(at), later.puell_multiple(at));
            }
        }
    }
}

#[test]
fn the_method_moves_gain_between_realised_and_unrealised_only() {
    use StrategyKind::{DcaOut, FixedShare, HalvingCycle, HashpriceCycle, OpexCoverage, TrailingStop};
    // None of them looks at the cost, so they sell alike under every method.
    let set = [DcaOut, FixedShare, HalvingCycle, HashpriceCycle, OpexCoverage, TrailingStop];
    let (days, start) = (five_years(), start());
    let made = METHODS.map(|method| {
        let rules = Rules { method, ..rules(set.map(Strategy::with_defaults).to_vec()) };
        backtest(&days, &start, &rules).expect("in range").strategies
    });
    for other in &made[1..] {
        assert_eq!(other.equity_usd, made[0].equity_usd);
        let gain = |made: &Performance| made.realised_gain_usd + made.unrealised_usd;
        assert_eq!(gain(other), gain(&made[0]));
        assert_ne!(other.realised_gain_usd, made[0].realised_gain_usd);
    }
}

#[test]
fn extreme_series_give_a_result_or_a_named_error() {
    let mut dice = Dice(41);
    let (mut results, mut errors) = (0, 0);
    for round in 0..1_500 {
        let odd = |dice: &mut Dice, usual: Decimal| if dice.roll(40) == 0 { money(dice) } else { usual };
        let days: Vec<_> = (0..dice.roll(60))
            .map(|at| {
                let price = Decimal::from(dice.roll(200_000) + 1);
                Day {
                    date: date(at),
                    price_usd: odd(&mut dice, price).abs(),
                    production_sat: if dice.roll(99) == 0 { sat(&mut dice) } else { dice.roll(BTC) },
                    opex_usd: odd(&mut dice, d("5000")).abs(),
                    block_height: (dice.roll(9) > 0).then(|| sat(&mut dice)),
                    hashprice_usd_ph_day: (dice.roll(9) > 0).then(|| odd(&mut dice, d("50")).abs()),
                }
            })
            .collect();
        let lots = (0..dice.roll(3)).map(|id| Lot {
            id: Uuid::from_u128(u128::from(id)),
            acquired_at: DateTime::UNIX_EPOCH,
            sat: if round % 10 == 0 { sat(&mut dice) } else { dice.roll(BTC * 100) + 1 },
            cost_usd: if round % 7 == 0 { money(&mut dice) } else { Decimal::from(dice.roll(9_000_000)) },
        });
        let start = Start { lots: lots.collect(), cash_usd: odd(&mut dice, d("100000")) };
        let kinds = StrategyKind::ALL.into_iter().filter(|_| dice.roll(2) == 0);
        let rules = rules(kinds.map(Strategy::with_defaults).collect());
        match backtest(&days, &start, &rules) {
            Ok(result) => {
                for made in [&result.strategies, &result.hodl] {
                    for figure in [made.total_return, made.max_drawdown, made.sharpe] {
                        assert!(figure.is_none_or(f64::is_finite));
                    }
                }
                results += 1;
            }
            Err(_) => errors += 1,
        }
    }
    assert!(results > 100 && errors > 100, "{results} results, {errors} errors");
}
