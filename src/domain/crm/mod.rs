//! Owns the customers and what is sold to them: leads, accounts, deals, contracts, invoices, payments, tickets, assets.
//! Promises that a state changes by a move of its table only, under the lock of its row, with event and audit row.
//! Called by the API; the clock of [`invoice::InvoiceClock`] by scheduled work.
//!
//! | file | content |
//! |---|---|
//! | [`machine`] | what a move asks of its caller; the table itself is [`super::machine`] |
//! | `record` | what all entities share: their statements, what a command did, what a change changed |
//! | one file per entity | its states, its table of moves, its commands |

mod fields;
pub mod machine;
mod record;

pub mod account;
pub mod asset;
pub mod contract;
pub mod deal;
pub mod invoice;
pub mod lead;
pub mod payment;
#[cfg(test)]
mod tests;
pub mod ticket;

pub use account::Account;
pub use asset::Asset;
pub use contract::Contract;
pub use deal::Deal;
pub use invoice::Invoice;
pub use lead::Lead;
pub use payment::Payment;
pub use record::{Done, Emitted, Entity, Filter, Mutable, Stateful, get, list};
pub use ticket::Ticket;
