//! How an anomaly begins and ends, what it costs and how much it matters, and what others are told of it.

use chrono::{DateTime, Utc};
use rust_decimal::Decimal;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::db::Tenanted;
use crate::economics::anomaly::{AnomalyKind, Severity, lost_usd_day};
use crate::economics::{Assumptions, EconomicsError};
use crate::event::kind;
use crate::identifier::UserId;
use crate::outbox::{self, AppendError, NewEvent};
use crate::read_model::anomaly::Anomaly;
use crate::read_model::portfolio_write::Snapshot;

/// Digits behind the point of a loss, USD.
const LOSS_DIGITS: u32 = 8;

/// What losses are counted with: the newest snapshot, if there is one.
pub(super) struct Price<'a> {
    pub(super) newest: Option<&'a Snapshot>,
    pub(super) assumptions: &'a Assumptions,
    pub(super) now: DateTime<Utc>,
}

impl Price<'_> {
    /// Writes what is lost by `machines` machines that hash so much of what they should, TH/s each.
    pub(super) fn put_on(
        &self,
        anomaly: &mut Anomaly,
        machines: i32,
        rated_ths: Decimal,
        measured_ths: Decimal,
    ) -> Result<(), EconomicsError> {
        let Some(newest) = self.newest else {
            anomaly.warnings = json!(["no-snapshot"]);
            return Ok(());
        };
        // At most 100,000 machines of 10,000 TH/s.
        let all = |ths: Decimal| ths.saturating_mul(Decimal::from(machines));
        let lost = lost_usd_day(all(rated_ths), all(measured_ths), &newest.network, self.assumptions)?;
        let lost = lost.round_dp(LOSS_DIGITS).normalize();
        anomaly.lost_usd_day = Some(lost);
        anomaly.severity = Some(Severity::of(lost).as_str().to_owned());
        anomaly.snapshot_id = Some(newest.id);
        anomaly.price_as_of = Some(newest.observed_at);
        let stale = newest.is_stale(self.now);
        anomaly.warnings = if stale { json!(["snapshot-stale"]) } else { json!([]) };
        Ok(())
    }
}

/// An anomaly that begins, before its figures.
pub(super) fn begun(owner: &UserId, miner_id: Uuid, kind: AnomalyKind, at: DateTime<Utc>) -> Anomaly {
    Anomaly {
        anomaly_id: Uuid::now_v7(),
        user_id: owner.clone(),
        miner_id,
        kind: kind.as_str().to_owned(),
        level: None,
        state: "open".to_owned(),
        severity: None,
        opened_at: at,
        last_seen_at: at,
        resolved_at: None,
        resolution: None,
        measured: Decimal::ZERO,
        expected: None,
        score: None,
        lost_usd_day: None,
        snapshot_id: None,
        price_as_of: None,
        warnings: json!([]),
    }
}

/// Writes that the miner is well again.
pub(super) fn recovered(anomaly: &mut Anomaly, at: DateTime<Utc>) {
    anomaly.state = "resolved".to_owned();
    anomaly.resolved_at = Some(at);
    anomaly.resolution = Some("recovered".to_owned());
}

/// An anomaly that was opened or resolved, as it was then.
pub(super) struct News {
    kind: &'static str,
    anomaly_id: Uuid,
    user_id: UserId,
    data: Value,
}

impl News {
    pub(super) fn of(anomaly: &Anomaly) -> Self {
        let kind = if anomaly.resolved_at.is_some() { kind::ANOMALY_RESOLVED } else { kind::ANOMALY_OPENED };
        Self { kind, anomaly_id: anomaly.anomaly_id, user_id: anomaly.user_id.clone(), data: json!(anomaly) }
    }
}

/// Tells what happened, in its order. The rows are locked: they were written in this transaction.
pub(super) async fn tell<T: Tenanted>(
    tx: &mut T,
    news: &[News],
    cause: Option<Uuid>,
) -> Result<(), AppendError> {
    let events: Vec<NewEvent<'_>> = news
        .iter()
        .map(|news| NewEvent {
            kind: news.kind,
            user_id: &news.user_id,
            entity_id: news.anomaly_id.into(),
            data: news.data.clone(),
            correlation_id: None,
            causation_id: cause,
            traceparent: "",
            idempotency_key: None,
        })
        .collect();
    outbox::append_locked(tx, &events).await
}
