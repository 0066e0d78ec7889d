//! I10: memory, disk and backlog stay bounded. F20: a role outlives what it depends on, and the API says 503 when it
//! cannot tell, never 500. F40: nobody is evicted who lives.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{History, Outcome, Violation};

/// What may be used at most.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Limits {
    /// Resident memory of one role, bytes.
    pub(crate) memory: u64,
    /// Files of database and broker together, bytes.
    pub(crate) disk: u64,
    /// Committed and not yet published, events.
    pub(crate) backlog: i64,
}

/// A look at what is used.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Sample {
    pub(crate) at: u64,
    pub(crate) memory: BTreeMap<String, u64>,
    pub(crate) disk: u64,
    /// None while the database does not answer.
    pub(crate) backlog: Option<i64>,
}

/// A role that ended without being asked to.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Ended {
    pub(crate) role: String,
    pub(crate) at: u64,
    pub(crate) status: String,
    /// It had been working. One that finds nothing to work with when it starts may say so and end.
    pub(crate) was_ready: bool,
    pub(crate) last_words: String,
}

/// A member that found itself evicted.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Evicted {
    pub(crate) role: String,
    pub(crate) at: u64,
}

/// A time in which a role was frozen or cut off from the database.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Hindered {
    pub(crate) role: String,
    pub(crate) from: u64,
    pub(crate) to: u64,
}

/// How long after it a hindrance still explains an eviction, microseconds: connections must be made anew, with
/// pauses of up to a second, behind an acquisition that may take 5.
const AFTERMATH: u64 = 8_000_000;

pub(super) fn check(history: &History, found: &mut Vec<Violation>) {
    let limits = &history.limits;
    let mut most: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
    for sample in &history.samples {
        let backlog = sample.backlog.and_then(|b| u64::try_from(b).ok()).unwrap_or_default();
        let used = sample.memory.iter().map(|(role, bytes)| (role.as_str(), *bytes));
        for (what, amount) in used.chain([("disk", sample.disk), ("backlog", backlog)]) {
            let most = most.entry(what).or_default();
            *most = (*most).max((amount, sample.at));
        }
    }
    for (what, (amount, at)) in most {
        let limit = match what {
            "disk" => limits.disk,
            "backlog" => limits.backlog.unsigned_abs(),
            _ => limits.memory,
        };
        if amount > limit {
            found.push(Violation::new("I10", format!("{what} grew to {amount} (limit {limit}) at {at} µs")));
        }
    }
    if let Some(last) = history.samples.last().filter(|last| last.backlog.is_some_and(|b| b > 0)) {
        found.push(Violation::new("I10", "a backlog at rest").because(last));
    }
    for ended in history.ended.iter().filter(|ended| ended.was_ready) {
        found.push(Violation::new("F20", format!("{} ended by itself", ended.role)).because(ended));
    }
    for evicted in &history.evicted {
        let explains =
            |h: &&Hindered| h.role == evicted.role && (h.from..=h.to + AFTERMATH).contains(&evicted.at);
        if history.hindered.iter().find(explains).is_none() {
            let what = format!("{} was evicted though it lived", evicted.role);
            found.push(Violation::new("F40", what).because(evicted));
        }
    }
    for op in &history.ops {
        let status = match &op.outcome {
            Outcome::Ok { status, .. } => Some(*status),
            Outcome::Fail { status, .. } | Outcome::Info { status, .. } => *status,
        };
        // What the workload asks for is well-formed and allowed: only a miner that is gone may be refused.
        if status.is_some_and(|s| !matches!(s, 200..=202 | 404 | 503)) {
            found.push(
                Violation::new("F20", "an answer that tells a client nothing it could act on").because(op),
            );
        }
    }
}
