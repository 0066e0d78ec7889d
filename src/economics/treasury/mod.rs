//! Owns the economics of a treasury: lots and their sale, inventory, the selling strategies, their plan and the backtest.
//! Promises whole satoshi that are never lost, exact dollars, pure and total functions; what is missing is named, not invented.
//! May be called by every module of the crate; it imports economics only.
//!
//! | file | content |
//! |---|---|
//! | [`money`] | satoshi and dollars: value, shares, rounding |
//! | [`lots`] | what was acquired at which cost, and the sale of it by five methods |
//! | [`mod@inventory`] | total, average cost, market value, unrealised gain, runway |
//! | [`statistics`] | realised volatility, Sharpe ratio, drawdown, percentile, Puell multiple |
//! | [`strategy`] | the eleven strategies, the market and the treasury they look at |
//! | [`mod@plan`] | several strategies on one day: priorities, caps, the binding limit |
//! | [`mod@backtest`] | strategies along daily prices, against holding |
//!
//! Bitcoin are whole satoshi (`_sat`), money is USD (`_usd`), a price is USD per BTC, shares are fractions. A month of the
//! treasury has 30 days. What is booked (cost, proceeds, fee, gain) is rounded to 8 decimals and then exact up to 7.9e20 USD.
//! Money is never a float: statistics (standard deviation, Sharpe) are, because they need roots and logarithms, have no
//! exact value anyway and are compared with thresholds only; each is finite or `None`.

pub mod backtest;
pub mod inventory;
pub mod lots;
pub mod money;
pub mod plan;
pub mod statistics;
pub mod strategy;

pub use backtest::{Backtest, Day, Performance, Rules, Start, backtest};
pub use inventory::{Inventory, inventory};
pub use lots::{Fill, Lot, LotMethod, LotPart, Sale, sell};
pub use plan::{Caps, Plan, Unevaluated, plan};
pub use strategy::{Limit, Market, Progress, Signal, Strategy, StrategyKind, TreasuryState};

use super::EconomicsError;
use chrono::NaiveDate;
use uuid::Uuid;

/// Why the treasury could not compute or refuses to. Repeating the call with the same input gives the same error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TreasuryError {
    /// An input outside its range, or figures too large to be exact.
    #[error(transparent)]
    Economics(#[from] EconomicsError),
    /// More is to be sold than there is.
    #[error("{requested_sat} sat cannot be sold: there are {available_sat} sat")]
    NotEnough {
        /// What was to be sold.
        requested_sat: u64,
        /// What is there; for specific lots, in those lots.
        available_sat: u64,
    },
    /// A sale names a lot that is not among those given.
    #[error("there is no lot {lot_id}")]
    UnknownLot {
        /// The lot that was named.
        lot_id: Uuid,
    },
    /// A strategy lacks something it decides by.
    #[error("{strategy} needs {field}, which is missing")]
    MissingInput {
        /// The strategy.
        strategy: StrategyKind,
        /// Name of the input.
        field: &'static str,
    },
    /// A backtest without any price.
    #[error("a backtest needs prices and there are none")]
    NoPrices,
    /// A backtest whose days do not follow each other.
    #[error("a backtest needs every day once and in order, and {date} is not in its place")]
    PriceGap {
        /// The first day that should stand in the series and does not.
        date: NaiveDate,
    },
}
