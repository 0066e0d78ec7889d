//! Owns the treasury: accounts and their settings, lots, trades, and the execution of trades at a venue.
//! Promises that satoshi are conserved, that nothing is sold twice, and that a fill happens once, with its event.
//! Called by the API; the execution also by the group of the treasury and by whoever runs scheduled work.
//!
//! | file | content |
//! |---|---|
//! | [`account`] | the settings of an account, its cash, and the lock that everything about it takes |
//! | [`lot`] | what was mined or bought |
//! | [`mod@trade`] | a trade, its states and their table of moves |
//! | [`order`] | the submission of a trade |
//! | [`decision`] | its approval and its cancellation, by a second person |
//! | [`price`] | the prices that a venue and the figures go by |
//! | [`venue`] | what a venue is, and the one there is: [`venue::Paper`] |
//! | [`execution`] | what time and prices do to the trades |
//! | [`clock`] | the job that calls it each minute |
//! | [`signal`] | the event that a strategy's signal changed |

pub mod account;
pub mod clock;
pub mod decision;
pub mod execution;
pub mod lot;
pub mod order;
pub mod price;
pub mod signal;
pub mod trade;
pub mod venue;

pub use account::Settings;
pub use trade::{Trade, TradeState};
