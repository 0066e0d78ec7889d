//! What clients asked for and what they were told.

use serde::Serialize;
use serde_json::Value;
use uuid::Uuid;

/// One request of a client and what came of it. Times are microseconds since the run began, by one clock.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Op {
    pub(crate) client: usize,
    /// Sent as `x-request-id`, stored by the product beside everything that the request causes.
    pub(crate) request_id: String,
    pub(crate) tenant: String,
    pub(crate) idempotency_key: Option<String>,
    pub(crate) action: Action,
    pub(crate) invoked: u64,
    pub(crate) completed: u64,
    pub(crate) outcome: Outcome,
}

/// What was asked.
#[derive(Debug, Clone, Serialize)]
pub(crate) enum Action {
    Add { body: Value },
    Update { miner: Uuid, body: Value },
    Status { miner: Uuid, body: Value },
    Remove { miner: Uuid },
    Sync { owner: String },
    Snapshot { body: Value },
    Read { owner: String, after: Option<Uuid> },
}

/// What the client knows afterwards.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) enum Outcome {
    /// It was done.
    Ok { status: u16, body: Value },
    /// It was not done and never will be: refused with a 4xx, or the request never left.
    Fail { status: Option<u16>, why: String },
    /// Nobody can tell: the connection broke or nothing came in time after the request was sent, or the server says
    /// 5xx, which it also does when a commit got no answer. It may have been done, or be done yet.
    Info { status: Option<u16>, why: String },
}

impl Action {
    pub(crate) fn is_write(&self) -> bool {
        !matches!(self, Self::Read { .. })
    }

    /// The miner it is about, if it exists before the request.
    pub(crate) fn miner(&self) -> Option<Uuid> {
        match self {
            Self::Update { miner, .. } | Self::Status { miner, .. } | Self::Remove { miner } => Some(*miner),
            _ => None,
        }
    }
}

impl Op {
    /// The event that an acknowledged write names; none when it changed nothing.
    pub(crate) fn event_id(&self) -> Option<Uuid> {
        match &self.outcome {
            Outcome::Ok { body, .. } if self.action.is_write() => body["event_id"].as_str()?.parse().ok(),
            _ => None,
        }
    }
}
