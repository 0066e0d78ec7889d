//! Owns how a backtest is judged: the figures of a run, its return, drawdown and Sharpe ratio.
//! Promises that money that comes in by mining or goes out for opex is no return, and that no figure is infinite.
//! May be called by the backtest; the figures by every module.

use crate::economics::treasury::statistics::{finite, max_drawdown, sharpe_ratio};
use rust_decimal::Decimal;
use rust_decimal::prelude::ToPrimitive;
use serde::{Deserialize, Serialize};

/// Figures of a run. Equity is the value of the inventory and the cash, less the opex owed.
///
/// Return, drawdown and Sharpe ratio are time-weighted: those of an index that each day grows as what was held since the day
/// before did by the price, and then shrinks by the fees as a share of that and what was mined. So what is mined and what is
/// paid for opex, which are no success of a strategy, do not move it, nor does a debt: that shows in equity and shortfall.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Performance {
    /// Equity before the first day, at its price, USD.
    pub equity_start_usd: Decimal,
    /// Equity after the last day, USD.
    pub equity_end_usd: Decimal,
    /// Satoshi held at the end.
    pub sat: u64,
    /// Cash at the end, USD, never negative.
    pub cash_usd: Decimal,
    /// Satoshi mined.
    pub mined_sat: u64,
    /// Satoshi sold.
    pub sold_sat: u64,
    /// Proceeds of all sales before fees, USD.
    pub proceeds_usd: Decimal,
    /// Fees of all sales, USD.
    pub fees_usd: Decimal,
    /// Realised gain of all sales, USD.
    pub realised_gain_usd: Decimal,
    /// Value less cost of what is held at the end, USD.
    pub unrealised_usd: Decimal,
    /// Opex of all days, USD: what was paid and the shortfall.
    pub opex_usd: Decimal,
    /// Opex that was paid, USD.
    pub opex_paid_usd: Decimal,
    /// Opex owed at the end because there was no cash for it, USD.
    pub shortfall_usd: Decimal,
    /// Days at whose end opex was owed.
    pub shortfall_days: u32,
    /// Growth of the index as a share (0.5 is +50 %); none when it is too large to be told.
    pub total_return: Option<f64>,
    /// Largest fall of the index below its high, as a share, 0..=1.
    pub max_drawdown: Option<f64>,
    /// Sharpe ratio a year of the index from the first day's end on, risk-free rate 0; none when it never moves.
    pub sharpe: Option<f64>,
    /// Equity at the end of each day, USD.
    pub equity_usd: Vec<Decimal>,
}

/// Return, drawdown and Sharpe ratio of an index.
pub(super) struct Judgement {
    pub(super) total_return: Option<f64>,
    pub(super) max_drawdown: Option<f64>,
    pub(super) sharpe: Option<f64>,
}

/// Judges the index that is multiplied by one of these factors on each day.
pub(super) fn judge(growth: &[f64]) -> Judgement {
    let mut level = 1.0;
    let after = growth.iter().map(|factor| {
        level *= factor;
        level
    });
    let index: Vec<_> = std::iter::once(1.0).chain(after).collect();
    // The first day begins at its own price: only its fees are in the index, and it is no day's return.
    let returns: Vec<_> = growth.iter().skip(1).map(|factor| factor - 1.0).collect();
    Judgement {
        total_return: index.last().and_then(|end| finite(end - 1.0)),
        max_drawdown: max_drawdown(&index),
        sharpe: sharpe_ratio(&returns),
    }
}

/// By what factor a value grew; 1 where there was nothing to grow.
pub(super) fn factor(before_usd: Decimal, after_usd: Decimal) -> f64 {
    let ratio = after_usd.to_f64().zip(before_usd.to_f64()).map(|(after, before)| after / before);
    ratio.filter(|_| before_usd > Decimal::ZERO).unwrap_or(1.0)
}
