//! Owns the answer to "is this event in what I read?": the state of an event for a consumer group.
//! Promises that what it calls visible was applied, and that an event of another tenant is as unknown as none.
//! Called by the API, for the caller that reads its own write.

use std::time::Duration;

use chrono::{DateTime, NaiveDateTime, TimeDelta};
use tokio::time::Instant;
use uuid::Uuid;

use crate::db::Db;
use crate::doorbell::{Bell, Doorbells};
use crate::identifier::TenantId;

/// How often a waiting reader looks when no bell rings.
const POLL: Duration = Duration::from_millis(25);

/// How far the clock that made an id may be from the clock that dated its row.
const SKEW: TimeDelta = TimeDelta::days(1);

/// Inbox rows are kept this long (topic retention, replay age, and a day): an older event was applied and pruned.
const INBOX_RETENTION: TimeDelta = TimeDelta::days(38);

/// Where an event stands for a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Visibility {
    /// Applied, or superseded by a newer one: what it changed can be read.
    Visible,
    /// Committed, not yet applied.
    Pending,
    /// Failed and waits for another attempt, or stands behind one that does.
    Parked,
    /// Failed for good, a dead letter.
    Dead,
    /// A dead letter that somebody discarded.
    Discarded,
    /// A kind, given here, that this read model has no use for.
    NotConsumed(String),
    /// Not an event of this tenant, as far as one can tell.
    Unknown,
}

impl Visibility {
    /// Whether waiting may still change it.
    pub fn may_change(&self) -> bool {
        matches!(self, Self::Pending | Self::Parked | Self::Unknown)
    }
}

/// Looks once.
pub async fn look(
    db: &Db,
    tenant: &TenantId,
    group: &str,
    kinds: &[&str],
    event_id: Uuid,
) -> Result<Visibility, sqlx::Error> {
    let made_at = time_of(event_id);
    let (from, to) = (made_at - SKEW, made_at + SKEW);
    let mut tx = db.tenant(tenant).await?;
    // The outbox has a partition per day: the bounds leave at most three of them.
    let (kind, outcome): (Option<String>, Option<String>) = sqlx::query_as(
        "select (select event_type from event_outbox where id = $1 and occurred_at between $2 and $3 limit 1), \
         (select outcome from event_inbox where consumer_name = $4 and event_id = $1)",
    )
    .bind(event_id)
    .bind(from)
    .bind(to)
    .bind(group)
    .fetch_one(tx.conn())
    .await?;
    tx.commit().await?;
    if let Some(kind) = &kind
        && !kinds.contains(&kind.as_str())
    {
        return Ok(Visibility::NotConsumed(kind.clone()));
    }
    Ok(match outcome.as_deref() {
        Some("applied" | "superseded") => Visibility::Visible,
        Some("parked") => Visibility::Parked,
        Some("dead") => Visibility::Dead,
        Some("discarded") => Visibility::Discarded,
        _ if event_id.get_version_num() == 7 && to < db.now().naive_utc() - INBOX_RETENTION => {
            Visibility::Visible
        }
        _ if kind.is_some() => Visibility::Pending,
        _ => Visibility::Unknown,
    })
}

/// Looks until the answer is final or the deadline has passed; returns the last answer.
pub async fn wait(
    db: &Db,
    tenant: &TenantId,
    group: &str,
    kinds: &[&str],
    event_id: Uuid,
    deadline: Instant,
    bells: &Doorbells,
) -> Result<Visibility, sqlx::Error> {
    let mut bell = bells.listen(Bell::Applied);
    loop {
        bell.arm();
        let seen = look(db, tenant, group, kinds, event_id).await?;
        if !seen.may_change() || Instant::now() >= deadline {
            return Ok(seen);
        }
        tokio::select! {
            () = bell.rung() => {}
            () = tokio::time::sleep(POLL) => {}
            () = tokio::time::sleep_until(deadline) => {}
        }
    }
}

/// The time inside a UUIDv7: its first 48 bits are milliseconds.
fn time_of(id: Uuid) -> NaiveDateTime {
    let millis = i64::try_from(id.as_u128() >> 80).unwrap_or_default();
    DateTime::from_timestamp_millis(millis).unwrap_or_default().naive_utc()
}

#[cfg(test)]
mod tests {
    use chrono::Utc;

    use super::*;

    #[test]
    fn the_time_of_an_id_is_the_time_it_was_made() {
        let apart = Utc::now().naive_utc() - time_of(Uuid::now_v7());
        assert!(apart.abs() < TimeDelta::seconds(1), "{apart}");
        // Whatever somebody passes as an id is a time that PostgreSQL takes.
        assert!(time_of(Uuid::max()) + SKEW < NaiveDateTime::MAX);
    }
}
