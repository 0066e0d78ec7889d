//! Owns reading one's own write: the parameters `after` and `wait`, and the answers to an event that is not visible.
//! Promises that a reader who passes has its event in what it reads next from the database.
//! Called by the handlers of read models.

use std::time::Duration;

use axum::http::StatusCode;
use rust_decimal::Decimal;
use rust_decimal::prelude::ToPrimitive;
use tokio::time::Instant;
use uuid::Uuid;

use super::Api;
use super::extract::Params;
use super::problem::Problem;
use crate::domain::FieldError;
use crate::identifier::TenantId;
use crate::read_model::visibility::{self, Visibility};

/// How long a reader waits for its event unless it says otherwise.
const DEFAULT_WAIT: Duration = Duration::from_secs(2);
const MAX_WAIT: Decimal = Decimal::TEN;
/// How often a reader looks whether a job has caught up.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// What a reader reads, and who keeps it.
pub(super) struct ReadModel {
    pub(super) group: &'static str,
    pub(super) kinds: &'static [&'static str],
    /// With its article.
    pub(super) name: &'static str,
}

/// The event that a reader wants to see, and how long it waits.
pub(super) struct After {
    pub(super) event_id: Option<Uuid>,
    wait: Duration,
}

impl After {
    /// Reads `after` and `wait`.
    pub(super) fn of(params: &Params) -> Result<Self, Problem> {
        let event_id = params.parsed("after", "must be the event_id of a write")?;
        let allowed = "must be seconds from 0 to 10";
        let wait = match params.parsed::<Decimal>("wait", allowed)? {
            None => DEFAULT_WAIT,
            Some(seconds) if (Decimal::ZERO..=MAX_WAIT).contains(&seconds) => {
                Duration::from_secs_f64(seconds.to_f64().unwrap_or_default())
            }
            Some(_) => return Err(Problem::parameter("wait", allowed)),
        };
        Ok(Self { event_id, wait })
    }

    /// Waits until the event is in the read model, if there is one to wait for; returns when the wait would have ended.
    pub(super) async fn wait(
        &self,
        api: &Api,
        tenant: &TenantId,
        model: &ReadModel,
    ) -> Result<Instant, Problem> {
        let deadline = Instant::now() + self.wait;
        let Some(event_id) = self.event_id else { return Ok(deadline) };
        let (db, bells) = (&api.db, &api.bells);
        match visibility::wait(db, tenant, model.group, model.kinds, event_id, deadline, bells).await? {
            Visibility::Visible => Ok(deadline),
            not_visible => Err(refusal(not_visible, model)),
        }
    }
}

/// A little while later, or the refusal once the wait is over: for what an applied event left to a job.
pub(super) async fn again(deadline: Instant, model: &ReadModel) -> Result<(), Problem> {
    if Instant::now() >= deadline {
        return Err(refusal(Visibility::Pending, model));
    }
    tokio::time::sleep_until(deadline.min(Instant::now() + LOOK_AGAIN)).await;
    Ok(())
}

fn refusal(visibility: Visibility, model: &ReadModel) -> Problem {
    match visibility {
        Visibility::Visible | Visibility::Pending | Visibility::Parked => {
            Problem::unavailable("not-yet-visible", "The event is not yet in this read model")
                .detail("ask again, or with a longer wait")
        }
        Visibility::Dead | Visibility::Discarded => {
            Problem::new(StatusCode::CONFLICT, "event-failed", "The event could not be applied")
                .detail("it is a dead letter and will not become visible unless it is replayed")
        }
        Visibility::NotConsumed(kind) => Problem::invalid(vec![FieldError::new(
            "after",
            format!("is an event of the kind {kind}, which does not change {}", model.name),
        )]),
        Visibility::Unknown => Problem::not_found().detail("no such event"),
    }
}
