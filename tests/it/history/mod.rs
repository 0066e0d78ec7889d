//! Owns the history checker: what clients were told, held against what tables and topics have in the end.
//! Promises that [`check`] is a pure function: the same history gives the same violations, without any service.
//! Used by the chaos tests; each invariant is shown a doctored history by `doctored`.
//!
//! | invariant | what it says | file |
//! |---|---|---|
//! | I1, I2, I8 | an acknowledged write is applied once; nothing else is; a repeated request has one effect | `writes` |
//! | I3 | what the read models show is the sum of what was written, and a read after a write shows it | `effects`, `versions`, `reads` |
//! | I4 | per aggregate, the log and the applied sequence go by position | `order` |
//! | I5, I9 | offsets go forward without a gap, moved by nobody but the owner of the epoch | `fences` |
//! | I6 | every event is in exactly one place: applied, dead, waiting, not yet published | `places` |
//! | I7 | no effect leaves its tenant | `tenants` |
//! | I10, F20, F40 | memory, disk and backlog stay bounded; roles do not give up, say 503, not 500, and evict nobody who lives | `bounds` |

use std::fmt;
use std::process::ExitStatus;
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::Serialize;
use uuid::Uuid;

mod bounds;
mod client;
mod doctored;
mod effects;
mod fences;
mod fleet;
mod index;
mod log;
mod order;
mod places;
mod reads;
mod tables;
mod tenants;
mod versions;
mod witness;
mod writes;

pub(crate) use bounds::{Ended, Evicted, Hindered, Limits, Sample};
pub(crate) use client::{Action, Op, Outcome};
pub(crate) use log::Topics;
pub(crate) use tables::Tables;
pub(crate) use witness::Witness;

use hashinsight::economics::Assumptions;
use index::Index;

/// Everything the checker looks at.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct History {
    /// The consumer group that is checked.
    pub(crate) group: String,
    pub(crate) assumptions: Assumptions,
    /// When the run began, by the one clock that clients and database share.
    pub(crate) began: DateTime<Utc>,
    pub(crate) ops: Vec<Op>,
    pub(crate) topics: Topics,
    pub(crate) tables: Tables,
    pub(crate) witness: Witness,
    pub(crate) samples: Vec<Sample>,
    pub(crate) limits: Limits,
    /// Roles that ended without being asked to.
    pub(crate) ended: Vec<Ended>,
    pub(crate) evicted: Vec<Evicted>,
    pub(crate) hindered: Vec<Hindered>,
}

/// An invariant that does not hold, and why one thinks so.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Violation {
    pub(crate) invariant: &'static str,
    pub(crate) what: String,
    pub(crate) events: Vec<Uuid>,
    /// Rows, records and answers, as they were found.
    pub(crate) evidence: Vec<String>,
}

impl Violation {
    fn new(invariant: &'static str, what: impl Into<String>) -> Self {
        Self { invariant, what: what.into(), events: Vec::new(), evidence: Vec::new() }
    }

    /// The run did not come to rest.
    pub(crate) fn liveness(why: String) -> Self {
        Self::new("liveness", why)
    }

    /// F34: a role that was asked to stop, in peace, ended otherwise than with 0.
    pub(crate) fn stop(role: &str, status: Option<ExitStatus>) -> Self {
        Self::new("F34", format!("{role} was asked to stop and ended with {status:?}"))
    }

    fn of(mut self, events: impl IntoIterator<Item = Uuid>) -> Self {
        self.events.extend(events);
        self
    }

    fn because(mut self, evidence: impl fmt::Debug) -> Self {
        self.evidence.push(format!("{evidence:?}"));
        self
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.invariant, self.what)?;
        for event in &self.events {
            write!(f, "\n    event {event}")?;
        }
        for evidence in &self.evidence {
            write!(f, "\n    {evidence}")?;
        }
        Ok(())
    }
}

impl History {
    /// Whether somebody had asked for an event by then: before, nobody can have seen it.
    fn asked_by(&self, event: &tables::Event, then: DateTime<Utc>, index: &Index<'_>) -> bool {
        let asked = index.ops.get(event.request_id()).map(|op| Duration::from_micros(op.invoked));
        asked.is_some_and(|asked| self.began + asked <= then)
    }

    /// How much there was to check: a clean verdict on little says little.
    pub(crate) fn summary(&self) -> String {
        let of = |which: fn(&Outcome) -> bool| self.ops.iter().filter(|op| which(&op.outcome)).count();
        let records: usize = self.topics.0.values().map(Vec::len).sum();
        let claims = self.witness.moved.iter().filter(|m| m.new_epoch != m.old_epoch).count();
        let read = |op: &&Op| !op.action.is_write() && matches!(op.outcome, Outcome::Ok { .. });
        format!(
            "{} requests: {} ok ({} of them reads), {} failed, {} unknown; {} events committed, {records} records in the \
             log, {} received, {claims} claims, {} recalculations; {} starts in vain",
            self.ops.len(),
            of(|o| matches!(o, Outcome::Ok { .. })),
            self.ops.iter().filter(read).count(),
            of(|o| matches!(o, Outcome::Fail { .. })),
            of(|o| matches!(o, Outcome::Info { .. })),
            self.tables.outbox.len(),
            self.tables.inbox.len(),
            self.witness.recomputed.len(),
            self.ended.iter().filter(|ended| !ended.was_ready).count(),
        )
    }
}

/// Every violation of a history that was taken at rest: clients are done, nothing is under way.
pub(crate) fn check(history: &History) -> Vec<Violation> {
    let index = Index::of(history);
    let mut found = Vec::new();
    writes::check(history, &index, &mut found);
    effects::check(history, &index, &mut found);
    versions::check(history, &index, &mut found);
    reads::check(history, &index, &mut found);
    order::check(history, &index, &mut found);
    fences::check(history, &mut found);
    places::check(history, &index, &mut found);
    tenants::check(history, &index, &mut found);
    bounds::check(history, &mut found);
    found
}
