//! Owns the delivery of the CRM's events to the tenants' own systems: a queue in tables, and the sender that empties it.
//! Promises that an event goes to each endpoint at least once with the same `webhook-id`, signed, to a checked address,
//! and that an endpoint which fails or hangs holds up neither the group nor another tenant.
//! Called by the projection (enqueue) and by the roles that run the group `crm-sync-group` (the sender).
//!
//! ```text
//!  crm-sync-group ─► webhook_delivery ─► sender: claim for a lease, resolve, check, connect, sign, POST, mark
//!  (its transaction)                             a crash before the mark: the lease runs out, and it is sent again
//! ```
//!
//! | file | content |
//! |---|---|
//! | `queue` | the statements: enqueue, claim, mark |
//! | `sender` | the loop |
//! | `share` | who may have how many in flight |
//! | `post` | one request to one address |
//!
//! Deliveries have no order, not even of one endpoint: a failing one is retried while later ones go out.

mod post;
mod queue;
mod sender;
mod share;

pub use queue::enqueue;
pub use sender::{Sender, Settings};
