//! Owns the dead letters: events that a group gave up on, with their raw bytes and the reason.
//! Promises that storing one cannot fail on its content, and that a replay reaches only the group that failed.
//! Called by the consumer and the publisher, which bury and redeliver, and by the API and `replay`, which ask.
//!
//! ```text
//!            ask                 owner of the partition
//!   dead ─────────► replaying ───────────────────────────► resolved
//!    │ ▲                │   retry queue, three attempts
//!    │ └────────────────┘
//!    └─► discarded                      each arrow is a conditional update
//! ```
//!
//! | file | content |
//! |---|---|
//! | `bury` | storing a letter |
//! | `content` | what PostgreSQL takes of bytes that came from anywhere |
//! | `ask` | which letters a filter meets; asking for replays, discarding |
//! | `redeliver` | what was asked for, and what became of it |
//! | `audit` | who did it |
//! | `stats` | counts, and pages for people |
//! | `relay` | events.dlq |

use chrono::{DateTime, Utc};
use uuid::Uuid;

mod ask;
mod audit;
mod bury;
mod content;
mod redeliver;
mod relay;
mod stats;

pub use ask::{Candidate, Discarded, Filter, Verdict, ask_for_replay, discard, matching};
pub use audit::{Action, Actor, record as audit};
pub use bury::bury;
pub use content::{headers_from_json, headers_json, storable_text, storable_time};
pub use redeliver::{Letter, Requested, died_again, load, requested, resolved, take};
pub use relay::{Relay, topic as relay_topic};
pub use stats::{Count, Listed, Shown, Stats, open, open_by_group, page, stats};

/// The name under which events that could not be published are dead letters; their offset is the outbox position.
pub const PUBLISHER: &str = "publisher";

/// Where a record stands in the log.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    pub topic: &'a str,
    pub partition: i32,
    pub offset: i64,
}

/// What the bytes still tell about the event.
#[derive(Debug, Clone, Copy, Default)]
pub struct Known<'a> {
    pub event_id: Option<Uuid>,
    pub kind: Option<&'a str>,
    pub tenant_id: Option<&'a str>,
    pub user_id: Option<&'a str>,
}

/// Why it is dead.
#[derive(Debug, Clone, Copy)]
pub struct Cause<'a> {
    pub class: &'a str,
    pub message: &'a str,
    /// Attempts made.
    pub attempts: i32,
    /// Time of the first failed attempt; now, if this is the first.
    pub first_failed_at: Option<DateTime<Utc>>,
}
