//! Owns what a venue is: it is shown an order and the prices, and says what it fills of it now.
//! Promises that a venue decides from what it is shown alone: asked again, it answers the same.
//! Called by the execution of trades.

use chrono::{DateTime, Utc};
use rust_decimal::Decimal;

use super::price::{Price, Prices};
use super::trade::{Strategy, TradeType};

mod paper;

pub use paper::Paper;

/// The venue that trades go to. No keys of an exchange are held, so there is no other.
pub static VENUE: Paper = Paper;

/// What a venue knows of an order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    pub trade_type: TradeType,
    pub strategy: Strategy,
    /// Satoshi of the whole order.
    pub sat: u64,
    /// Satoshi of it that are filled.
    pub filled_sat: u64,
    /// It is not filled at a worse price: below it for a sale or a hedge, above it for a purchase.
    pub target_price_usd: Option<Decimal>,
    pub started_at: DateTime<Utc>,
    /// When it was filled last.
    pub filled_at: Option<DateTime<Utc>>,
}

/// What a venue answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Quote {
    /// It fills this much at this price, which is that of the snapshot or, for a mean, ends with it.
    Fill { sat: u64, price_usd: Decimal, price: Price },
    /// Nothing is due, or the price is not right.
    Nothing,
    /// It has no price that counts.
    Blind(Blind),
}

/// Why there is no price that counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blind {
    /// There is none.
    NoPrice,
    /// The newest is older than 30 minutes.
    StalePrice,
}

impl Blind {
    /// The warning about it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NoPrice => "no-price",
            Self::StalePrice => "stale-price",
        }
    }
}

/// Where trades are filled.
pub trait Venue: Send + Sync {
    /// Its name in the API, in events and in the audit log.
    fn name(&self) -> &'static str;

    /// How long an order of this strategy takes, in ISO 8601; none where only the price decides.
    fn takes(&self, strategy: Strategy) -> Option<&'static str>;

    /// What it fills of the order now.
    fn quote(&self, order: &Order, prices: &Prices, now: DateTime<Utc>) -> Quote;
}
