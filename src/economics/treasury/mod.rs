//! Owns the economics of a treasury: lots and their sale, inventory.
//! Promises whole satoshi that are never lost, exact dollars, pure and total functions; what is missing is named, not invented.
//! May be called by every module of the crate; it imports economics only.
//!
//! | file | content |
//! |---|---|
//! | [`money`] | satoshi and dollars: value, shares, rounding |
//! | [`lots`] | what was acquired at which cost, and the sale of it by five methods |
//! | [`mod@inventory`] | total, average cost, market value, unrealised gain, runway |
//!
//! Bitcoin are whole satoshi (`_sat`), money is USD (`_usd`), a price is USD per BTC, shares are fractions. A month of the
//! treasury has 30 days. What is booked (cost, proceeds, fee, gain) is rounded to 8 decimals and then exact up to 7.9e20 USD.

pub mod inventory;
pub mod lots;
pub mod money;

pub use inventory::{Inventory, inventory};
pub use lots::{Fill, Lot, LotMethod, LotPart, Sale, sell};

use super::EconomicsError;
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
}
