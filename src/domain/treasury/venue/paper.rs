//! The paper venue: it fills orders against the stored prices, without slippage.
//!
//! Market and limit orders are filled whole at the newest price. TWAP fills 12 equal parts, one every 5 minutes, each at
//! the newest price when it comes to it; parts that are late are filled together. VWAP fills what the minutes since the
//! last fill are of its hour. No volumes are stored, so the weight of a price in the mean it pays is the time for which
//! that price held, which is what the name promises only as far as the volume per minute is even.

use chrono::{DateTime, TimeDelta, Utc};
use rust_decimal::Decimal;

use super::{Blind, Order, Quote, Venue};
use crate::domain::treasury::price::{Price, Prices};
use crate::domain::treasury::trade::{Strategy, TradeType};
use crate::economics::treasury::money::booked_usd;

/// Parts of a TWAP order, and how far they are apart.
const TWAP: (i64, TimeDelta) = (12, TimeDelta::minutes(5));
/// Parts of a VWAP order, and how far they are apart.
const VWAP: (i64, TimeDelta) = (60, TimeDelta::minutes(1));

/// The venue that fills against stored prices.
#[derive(Debug, Clone, Copy)]
pub struct Paper;

impl Venue for Paper {
    fn name(&self) -> &'static str {
        "paper"
    }

    fn takes(&self, strategy: Strategy) -> Option<&'static str> {
        match strategy {
            Strategy::Market => Some("PT0S"),
            Strategy::Limit => None,
            Strategy::Twap | Strategy::Vwap => Some("PT1H"),
        }
    }

    fn quote(&self, order: &Order, prices: &Prices, now: DateTime<Utc>) -> Quote {
        let Some(newest) = prices.current() else {
            return Quote::Blind(if prices.newest.is_some() { Blind::StalePrice } else { Blind::NoPrice });
        };
        let elapsed = now - order.started_at;
        let due = match order.strategy {
            Strategy::Market | Strategy::Limit => order.sat,
            // The first part at once.
            Strategy::Twap => part(order.sat, parts(elapsed, TWAP.1) + 1, TWAP.0),
            // A part is filled when its minute is over.
            Strategy::Vwap => part(order.sat, parts(elapsed, VWAP.1), VWAP.0),
        };
        let sat = due.saturating_sub(order.filled_sat);
        let price_usd = match order.strategy {
            Strategy::Vwap => {
                let since = order.filled_at.unwrap_or(order.started_at);
                mean(&prices.fresh, since, now).unwrap_or(newest.price_usd)
            }
            _ => newest.price_usd,
        };
        if sat == 0 || is_worse(order, price_usd) {
            return Quote::Nothing;
        }
        Quote::Fill { sat, price_usd, price: newest.clone() }
    }
}

/// Whole steps that are over.
fn parts(elapsed: TimeDelta, step: TimeDelta) -> i64 {
    elapsed.num_seconds().max(0) / step.num_seconds()
}

/// `due` of `of` equal parts, rounded down; all of it from the last part on.
fn part(sat: u64, due: i64, of: i64) -> u64 {
    let share = u128::from(sat) * u128::from(due.clamp(0, of).unsigned_abs()) / u128::from(of.unsigned_abs());
    u64::try_from(share).unwrap_or(sat)
}

/// The mean of the prices from `since` to `now`, each weighted by how long it held in between. A price holds from when it
/// is known until the next one. `None` when no time has passed.
fn mean(prices: &[Price], since: DateTime<Utc>, now: DateTime<Utc>) -> Option<Decimal> {
    let ends = prices.iter().skip(1).map(|next| next.at).chain([now]);
    let (mut weights, mut sum) = (Decimal::ZERO, Decimal::ZERO);
    for (price, end) in prices.iter().zip(ends) {
        let held = (end - price.at.max(since)).num_milliseconds();
        if held > 0 {
            weights += Decimal::from(held);
            sum = sum.checked_add(price.price_usd.checked_mul(Decimal::from(held))?)?;
        }
    }
    sum.checked_div(weights).map(booked_usd)
}

fn is_worse(order: &Order, price_usd: Decimal) -> bool {
    order.target_price_usd.is_some_and(|target| match order.trade_type {
        TradeType::Buy => price_usd > target,
        TradeType::Sell | TradeType::Hedge => price_usd < target,
    })
}

#[cfg(test)]
mod tests;
