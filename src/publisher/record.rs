//! The record of a row: the bytes that Debezium's EventRouter would write.

use std::time::Duration;

use chrono::{DateTime, Utc};

use crate::event::header;
use crate::log::Record;
use crate::outbox::OutboxRow;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// The record of a row.
pub fn of_row(row: OutboxRow) -> Record {
    let with = |name: &str, value: String| (name.to_owned(), value.into_bytes());
    Record {
        key: Some(row.event_key.into_bytes()),
        value: Some(row.payload.into_bytes()),
        headers: vec![
            with(header::ID, row.id.to_string()),
            with(header::POSITION, row.position.to_string()),
            with(header::TENANT_ID, row.tenant_id),
            with(header::TRACEPARENT, row.traceparent),
            with(header::TYPE, row.event_type),
            with(header::VERSION, row.schema_version.to_string()),
        ],
        timestamp: row.occurred_at.and_utc(),
    }
}

/// Kafka deletes by the time of the record: one that is nearly as old as the topic's retention would be gone
/// within minutes, so it gets the current time. The event's own time is in its payload.
pub(super) fn keep_alive(record: &mut Record, retention: Option<Duration>, now: DateTime<Utc>) {
    let Some(retention) = retention else { return };
    let spared = retention.saturating_sub(DAY.min(retention / 2));
    if (now - record.timestamp).to_std().is_ok_and(|age| age > spared) {
        record.timestamp = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn aged(age: Duration, retention: Option<Duration>) -> bool {
        let now = Utc::now();
        let mut record = Record { key: None, value: None, headers: Vec::new(), timestamp: now - age };
        keep_alive(&mut record, retention, now);
        record.timestamp == now
    }

    #[test]
    fn only_what_kafka_would_soon_delete_gets_the_current_time() {
        assert!(!aged(DAY * 5, Some(DAY * 7)));
        assert!(aged(DAY * 6 + Duration::from_secs(1), Some(DAY * 7)));
        assert!(!aged(DAY * 365, None), "kept for ever");
        assert!(!aged(Duration::from_secs(60), Some(Duration::from_secs(3_600))));
        assert!(aged(Duration::from_secs(1_900), Some(Duration::from_secs(3_600))));
    }
}
