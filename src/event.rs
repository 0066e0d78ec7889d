//! Owns the event: its kinds, envelope, topic and key rules.
//! Promises that what one side encodes the other decodes, and that bytes which are no event of ours are told apart.
//! Called by every room of the flow; knows none of them.

use std::fmt;

use chrono::{DateTime, Utc};
use serde::Deserialize;
use serde_json::Value;
use uuid::Uuid;

use crate::identifier::{EntityId, TenantId, UserId};

/// The newest envelope version we write and the newest major version we read.
pub const VERSION: i32 = 1;

/// The kinds this build emits or acts upon.
pub mod kind {
    /// A miner was added.
    pub const MINER_ADDED: &str = "miner.added";
    /// Fields of a miner changed.
    pub const MINER_UPDATED: &str = "miner.updated";
    /// A miner was removed.
    pub const MINER_REMOVED: &str = "miner.removed";
    /// The predecessor's name of [`MINER_REMOVED`], accepted on input.
    pub const MINER_DELETED: &str = "miner.deleted";
    /// A miner went online, offline, into maintenance, ...
    pub const MINER_STATUS_CHANGED: &str = "miner.status_changed";
    /// Many miners of one owner were added at once.
    pub const MINER_BULK_IMPORTED: &str = "miner.bulk_imported";
    /// A miner's power reading changed its owner's portfolio.
    pub const MINER_PORTFOLIO_UPDATED: &str = "miner.portfolio_updated";
    /// Points of telemetry of one owner's miners were taken in.
    pub const MINER_TELEMETRY: &str = "miner.telemetry";
    /// A user asked for a recalculation.
    pub const MINER_SYNC_REQUESTED: &str = "miner.sync_requested";
    /// Price, difficulty, height and fees of the Bitcoin network.
    pub const NETWORK_SNAPSHOT: &str = "network.snapshot";
    /// A trade was submitted.
    pub const TREASURY_TRADE_SUBMITTED: &str = "treasury.trade_submitted";
    /// A trade that went by itself so far is worth more by now than may go without a second person.
    pub const TREASURY_TRADE_APPROVAL_NEEDED: &str = "treasury.trade_approval_needed";
    /// A second person approved a trade.
    pub const TREASURY_TRADE_APPROVED: &str = "treasury.trade_approved";
    /// A trade was filled, in part or whole.
    pub const TREASURY_TRADE_EXECUTED: &str = "treasury.trade_executed";
    /// What was not filled of a trade was cancelled.
    pub const TREASURY_TRADE_CANCELLED: &str = "treasury.trade_cancelled";
    /// A trade cannot be filled.
    pub const TREASURY_TRADE_FAILED: &str = "treasury.trade_failed";
    /// What a strategy would sell changed.
    pub const TREASURY_SIGNAL: &str = "treasury.signal";
    /// Settings of a treasury changed.
    pub const TREASURY_SETTINGS_CHANGED: &str = "treasury.settings_changed";
    /// A lot came into a treasury, other than by a trade.
    pub const TREASURY_LOT_ADDED: &str = "treasury.lot_added";
    /// Power prices of a market came in.
    pub const OPS_PRICE_RECEIVED: &str = "ops.price_received";
    /// What a user's site allows and costs changed.
    pub const OPS_SETTINGS_CHANGED: &str = "ops.settings_changed";
    /// A curtailment plan was made.
    pub const OPS_PLAN_CREATED: &str = "ops.plan_created";
    /// A plan was approved, stopped, completed or cancelled.
    pub const OPS_PLAN_STATUS_CHANGED: &str = "ops.plan_status_changed";
    /// A plan's time has come: miners are switched by it.
    pub const OPS_PLAN_APPLIED: &str = "ops.plan_applied";
    /// Miners are to be off from now on.
    pub const OPS_CURTAILMENT_STARTED: &str = "ops.curtailment_started";
    /// They may run again.
    pub const OPS_CURTAILMENT_ENDED: &str = "ops.curtailment_ended";
    /// A check found a miner failing.
    pub const ANOMALY_OPENED: &str = "anomaly.opened";
    /// A miner that was found failing is well again, or out of service.
    pub const ANOMALY_RESOLVED: &str = "anomaly.resolved";
    /// A lead came in.
    pub const CRM_LEAD_CAPTURED: &str = "crm.lead_captured";
    /// Fields of a lead changed.
    pub const CRM_LEAD_UPDATED: &str = "crm.lead_updated";
    /// A lead was contacted, or lost.
    pub const CRM_LEAD_STATUS_CHANGED: &str = "crm.lead_status_changed";
    /// A lead may be converted.
    pub const CRM_LEAD_QUALIFIED: &str = "crm.lead_qualified";
    /// A lead is none.
    pub const CRM_LEAD_DISQUALIFIED: &str = "crm.lead_disqualified";
    /// A lead became an account and a deal.
    pub const CRM_LEAD_CONVERTED: &str = "crm.lead_converted";
    /// An account was made.
    pub const CRM_ACCOUNT_CREATED: &str = "crm.account_created";
    /// Fields of an account changed.
    pub const CRM_ACCOUNT_UPDATED: &str = "crm.account_updated";
    /// A deal was made.
    pub const CRM_DEAL_CREATED: &str = "crm.deal_created";
    /// Fields of a deal changed.
    pub const CRM_DEAL_UPDATED: &str = "crm.deal_updated";
    /// A deal went to another open stage.
    pub const CRM_DEAL_STAGE_CHANGED: &str = "crm.deal_stage_changed";
    /// A deal was closed as won.
    pub const CRM_DEAL_WON: &str = "crm.deal_won";
    /// A deal was closed as lost.
    pub const CRM_DEAL_LOST: &str = "crm.deal_lost";
    /// A contract was drawn up.
    pub const CRM_CONTRACT_GENERATED: &str = "crm.contract_generated";
    /// Fields of a contract changed.
    pub const CRM_CONTRACT_UPDATED: &str = "crm.contract_updated";
    /// A contract was sent, expired, or was cancelled.
    pub const CRM_CONTRACT_STATUS_CHANGED: &str = "crm.contract_status_changed";
    /// A contract was signed.
    pub const CRM_CONTRACT_SIGNED: &str = "crm.contract_signed";
    /// An invoice was drafted.
    pub const CRM_INVOICE_DRAFTED: &str = "crm.invoice_drafted";
    /// Fields of an invoice changed.
    pub const CRM_INVOICE_UPDATED: &str = "crm.invoice_updated";
    /// An invoice was sent or cancelled.
    pub const CRM_INVOICE_STATUS_CHANGED: &str = "crm.invoice_status_changed";
    /// An invoice was issued.
    pub const CRM_INVOICE_ISSUED: &str = "crm.invoice_issued";
    /// An invoice is paid whole.
    pub const CRM_INVOICE_PAID: &str = "crm.invoice_paid";
    /// An invoice is past its due date.
    pub const CRM_INVOICE_OVERDUE: &str = "crm.invoice_overdue";
    /// An overdue invoice is to be reminded of.
    pub const CRM_INVOICE_REMINDER_DUE: &str = "crm.invoice_reminder_due";
    /// A payment came in.
    pub const CRM_PAYMENT_RECEIVED: &str = "crm.payment_received";
    /// A ticket was opened.
    pub const CRM_TICKET_CREATED: &str = "crm.ticket_created";
    /// Fields of a ticket changed.
    pub const CRM_TICKET_UPDATED: &str = "crm.ticket_updated";
    /// A ticket is worked on, waits, was closed, or was opened again.
    pub const CRM_TICKET_STATUS_CHANGED: &str = "crm.ticket_status_changed";
    /// A ticket was resolved.
    pub const CRM_TICKET_RESOLVED: &str = "crm.ticket_resolved";
    /// A machine was ordered.
    pub const CRM_ASSET_CREATED: &str = "crm.asset_created";
    /// Fields of an asset changed.
    pub const CRM_ASSET_UPDATED: &str = "crm.asset_updated";
    /// An asset went to another state.
    pub const CRM_ASSET_STATUS_CHANGED: &str = "crm.asset_status_changed";
    /// A webhook was made.
    pub const CRM_WEBHOOK_CREATED: &str = "crm.webhook_created";
    /// Fields of a webhook changed, or it was switched on or off.
    pub const CRM_WEBHOOK_UPDATED: &str = "crm.webhook_updated";
    /// A webhook was removed.
    pub const CRM_WEBHOOK_REMOVED: &str = "crm.webhook_removed";
    /// A webhook got a new secret.
    pub const CRM_WEBHOOK_SECRET_ROTATED: &str = "crm.webhook_secret_rotated";
    /// A webhook failed for so long that nothing is sent to it any more.
    pub const CRM_WEBHOOK_DISABLED: &str = "crm.webhook_disabled";
}

/// The headers of a record, in the order of the wire: alphabetical.
pub mod header {
    /// The event's id.
    pub const ID: &str = "id";
    /// The outbox position: larger is later within one aggregate.
    pub const POSITION: &str = "position";
    /// The tenant.
    pub const TENANT_ID: &str = "tenantId";
    /// W3C trace context; empty when there is none.
    pub const TRACEPARENT: &str = "traceparent";
    /// The kind.
    pub const TYPE: &str = "type";
    /// The version of the envelope.
    pub const VERSION: &str = "version";
}

/// What an event is about in the large; decides the topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum AggregateType {
    /// Miners and their owners' fleets.
    Miner,
    /// Trades, lots, signals.
    Treasury,
    /// Plans, power prices, the network, anomalies.
    Ops,
    /// Customers, contracts, invoices.
    Crm,
}

impl AggregateType {
    /// All of them, in the order of the topics.
    pub const ALL: [Self; 4] = [Self::Miner, Self::Treasury, Self::Ops, Self::Crm];

    /// The name in the outbox and, behind the prefix, of the topic.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Miner => "miner",
            Self::Treasury => "treasury",
            Self::Ops => "ops",
            Self::Crm => "crm",
        }
    }

    /// The aggregate of a kind by its prefix: network.* and anomaly.* belong to ops.
    pub fn of_kind(kind: &str) -> Result<Self, UnknownPrefix> {
        match kind.split_once('.').map(|(prefix, _)| prefix) {
            Some("miner") => Ok(Self::Miner),
            Some("treasury") => Ok(Self::Treasury),
            Some("ops" | "network" | "anomaly") => Ok(Self::Ops),
            Some("crm") => Ok(Self::Crm),
            _ => Err(UnknownPrefix(kind.to_owned())),
        }
    }

    /// The topic under a prefix such as `events.`.
    pub fn topic(self, prefix: &str) -> String {
        format!("{prefix}{}", self.as_str())
    }
}

/// A kind whose prefix names no topic.
#[derive(Debug, thiserror::Error)]
#[error("event kind {0:?} has no known prefix: miner., treasury., ops., crm., network. or anomaly.")]
pub struct UnknownPrefix(pub String);

/// The Kafka key of an event: one owner's events share a partition; network snapshots have a lane of the tenant.
pub fn key(kind: &str, tenant: &TenantId, user: &UserId) -> String {
    if kind.starts_with("network.") { format!("{tenant}:network") } else { format!("{tenant}:{user}") }
}

/// An event as a consumer reads it.
#[derive(Debug, Clone)]
pub struct Event {
    pub event_id: Uuid,
    pub kind: String,
    pub version: i32,
    pub tenant_id: TenantId,
    pub user_id: UserId,
    pub entity_id: EntityId,
    pub occurred_at: DateTime<Utc>,
    pub data: Value,
    /// The envelope as it came.
    pub text: String,
}

/// The envelope as it stands in the value. Unknown fields are ignored: newer writers may add some.
#[derive(Deserialize)]
struct Envelope {
    event_id: Uuid,
    kind: String,
    version: i32,
    tenant_id: TenantId,
    user_id: UserId,
    entity_id: EntityId,
    occurred_at: DateTime<Utc>,
    #[serde(default)]
    data: Value,
}

/// Longest kind.
const MAX_KIND: usize = 128;

/// Why bytes are no event that may be applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// A null value: nothing we write.
    NullValue,
    /// Not UTF-8 or not JSON.
    NotJson,
    /// JSON without the envelope's fields, or with fields of another type.
    NotAnEnvelope,
    /// A version this build does not know.
    UnsupportedVersion,
    /// Tenant of payload, header and key disagree.
    TenantMismatch,
}

impl Reason {
    /// The error class of the dead letter.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NullValue => "null_value",
            Self::NotJson => "invalid_json",
            Self::NotAnEnvelope => "invalid_envelope",
            Self::UnsupportedVersion => "unsupported_version",
            Self::TenantMismatch => "tenant_mismatch",
        }
    }
}

/// Bytes that are no event, with what could still be read of them.
#[derive(Debug, Clone)]
pub struct Undecodable {
    pub reason: Reason,
    pub message: String,
    pub event_id: Option<Uuid>,
    pub kind: Option<String>,
    pub tenant_id: Option<TenantId>,
    pub user_id: Option<UserId>,
}

impl fmt::Display for Undecodable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.reason.as_str(), self.message)
    }
}

/// Decodes a record's value and checks it against its key and the header `tenantId`.
pub fn decode(
    key: Option<&[u8]>,
    value: Option<&[u8]>,
    tenant_header: Option<&[u8]>,
) -> Result<Event, Box<Undecodable>> {
    let Some(value) = value else {
        return Err(undecodable(Reason::NullValue, "the record has no value", &Value::Null));
    };
    let json: Value = serde_json::from_slice(value)
        .map_err(|e| undecodable(Reason::NotJson, &e.to_string(), &Value::Null))?;
    let version = json.get("version").and_then(Value::as_i64);
    if version.is_some_and(|v| v > i64::from(VERSION)) {
        let message = format!("version {}, newest known is {VERSION}", version.unwrap_or_default());
        return Err(undecodable(Reason::UnsupportedVersion, &message, &json));
    }
    let envelope = Envelope::deserialize(&json)
        .map_err(|e| undecodable(Reason::NotAnEnvelope, &e.to_string(), &json))?;
    if !is_kind(&envelope.kind) {
        let message = format!("kind must be 1 to {MAX_KIND} visible ASCII characters");
        return Err(undecodable(Reason::NotAnEnvelope, &message, &json));
    }
    let tenant = envelope.tenant_id.as_str().as_bytes();
    let of_key = key.and_then(|k| k.split(|b| *b == b':').next());
    if of_key != Some(tenant) || tenant_header.is_some_and(|header| header != tenant) {
        let message = "payload, key and header tenantId name different tenants";
        return Err(undecodable(Reason::TenantMismatch, message, &json));
    }
    Ok(Event {
        event_id: envelope.event_id,
        kind: envelope.kind,
        version: envelope.version,
        tenant_id: envelope.tenant_id,
        user_id: envelope.user_id,
        entity_id: envelope.entity_id,
        occurred_at: envelope.occurred_at,
        data: envelope.data,
        // JSON is UTF-8, or it would not have been read.
        text: String::from_utf8_lossy(value).into_owned(),
    })
}

/// Whether a table and a log line take it: kinds of other writers may be unknown, but not anything.
fn is_kind(text: &str) -> bool {
    (1..=MAX_KIND).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic())
}

fn undecodable(reason: Reason, message: &str, json: &Value) -> Box<Undecodable> {
    let text = |name: &str| json.get(name).and_then(Value::as_str);
    Box::new(Undecodable {
        reason,
        message: message.to_owned(),
        event_id: text("event_id").and_then(|t| t.parse().ok()),
        kind: text("kind").filter(|kind| is_kind(kind)).map(str::to_owned),
        tenant_id: text("tenant_id").and_then(|t| t.parse().ok()),
        user_id: text("user_id").and_then(|t| t.parse().ok()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(change: impl FnOnce(&mut Value)) -> Vec<u8> {
        let mut json = serde_json::json!({
            "event_id": "019d3c1e-0000-7000-8000-000000000001", "kind": "miner.added", "version": 1,
            "tenant_id": "t1", "user_id": "u1", "entity_id": "m1", "occurred_at": "2026-01-02T03:04:05.678901Z",
            "correlation_id": null, "causation_id": null, "data": {"x": 1}, "from_the_future": true,
        });
        change(&mut json);
        json.to_string().into_bytes()
    }

    #[test]
    fn a_known_envelope_decodes_and_ignores_what_it_does_not_know() {
        let event = decode(Some(b"t1:u1"), Some(&value(|_| ())), Some(b"t1")).expect("decodes");
        assert_eq!((event.kind.as_str(), event.user_id.as_str()), ("miner.added", "u1"));
        assert_eq!(event.occurred_at.timestamp_subsec_micros(), 678_901);
    }

    #[test]
    fn everything_else_is_named() {
        let reason = |key: &str, value: Option<Vec<u8>>, header: Option<&str>| {
            let refused = decode(Some(key.as_bytes()), value.as_deref(), header.map(str::as_bytes));
            refused.expect_err("refused").reason
        };
        let bytes = |text: &[u8]| Some(text.to_vec());
        assert_eq!(reason("t1:u1", None, None), Reason::NullValue);
        assert_eq!(reason("t1:u1", bytes(b"{"), None), Reason::NotJson);
        assert_eq!(reason("t1:u1", bytes(&[0xff, 0xfe]), None), Reason::NotJson);
        assert_eq!(reason("t1:u1", bytes(b"[]"), None), Reason::NotAnEnvelope);
        let no_id = value(|v| v["event_id"] = "x".into());
        assert_eq!(reason("t1:u1", Some(no_id), None), Reason::NotAnEnvelope);
        for kind in ["", "a\0b", "miner added", &"x".repeat(200)] {
            let odd = value(|v| v["kind"] = kind.into());
            assert_eq!(reason("t1:u1", Some(odd), None), Reason::NotAnEnvelope, "{kind:?}");
        }
        let newer = value(|v| v["version"] = 2.into());
        assert_eq!(reason("t1:u1", Some(newer), None), Reason::UnsupportedVersion);
        assert_eq!(reason("t2:u1", Some(value(|_| ())), None), Reason::TenantMismatch);
        assert_eq!(reason("t1:u1", Some(value(|_| ())), Some("t2")), Reason::TenantMismatch);
    }

    #[test]
    fn what_can_be_read_of_a_bad_event_is_kept() {
        let bad =
            decode(Some(b"t1:u1"), Some(&value(|v| v["version"] = 9.into())), None).expect_err("refused");
        assert_eq!(bad.kind.as_deref(), Some("miner.added"));
        assert_eq!(bad.tenant_id.map(|t| t.to_string()).as_deref(), Some("t1"));
    }

    #[test]
    fn prefixes_decide_the_topic() {
        for (kind, topic) in [
            ("miner.added", "events.miner"),
            ("treasury.signal", "events.treasury"),
            ("ops.price_received", "events.ops"),
            ("network.snapshot", "events.ops"),
            ("anomaly.opened", "events.ops"),
            ("crm.lead_captured", "events.crm"),
        ] {
            assert_eq!(AggregateType::of_kind(kind).expect("known").topic("events."), topic);
        }
        assert!(AggregateType::of_kind("billing.paid").is_err());
        assert!(AggregateType::of_kind("miner").is_err());
    }
}
