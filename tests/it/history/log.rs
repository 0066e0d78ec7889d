//! The raw content of the topics, as our own log reads it, or any other client would.

use std::collections::BTreeMap;
use std::time::Duration;

use hashinsight::event::header;
use hashinsight::log::{EventLog, FetchLimits, LogError, Record};
use serde::{Serialize, Serializer};
use uuid::Uuid;

/// A partition of a topic.
pub(crate) type Lane = (String, i32);

/// Every partition with its records from the first that is kept.
#[derive(Debug, Clone, Default)]
pub(crate) struct Topics(pub(crate) BTreeMap<Lane, Vec<Logged>>);

/// One record.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Logged {
    pub(crate) offset: i64,
    pub(crate) key: Option<String>,
    /// Of the headers; none when it is not there or not readable.
    pub(crate) event_id: Option<Uuid>,
    pub(crate) position: Option<i64>,
    pub(crate) tenant_id: Option<String>,
    pub(crate) kind: Option<String>,
    /// Of the value: it must be the header's.
    pub(crate) value_event_id: Option<Uuid>,
    pub(crate) value_tenant_id: Option<String>,
}

impl Topics {
    /// Reads these topics from end to end.
    pub(crate) async fn read(log: &dyn EventLog, names: &[String]) -> Result<Self, LogError> {
        let limits =
            FetchLimits { max_records: 10_000, max_bytes: 4 << 20, max_wait: Duration::from_secs(1) };
        let mut lanes = BTreeMap::new();
        for topic in names {
            for partition in 0..log.topic(topic).await?.partitions {
                let bounds = log.bounds(topic, partition).await?;
                let (mut next, mut records) = (bounds.start, Vec::new());
                while next < bounds.end {
                    for (offset, record) in log.fetch(topic, partition, next, limits).await?.records {
                        records.push(Logged::of(offset, &record));
                        next = offset + 1;
                    }
                }
                lanes.insert((topic.clone(), partition), records);
            }
        }
        Ok(Self(lanes))
    }
}

impl Logged {
    fn of(offset: i64, record: &Record) -> Self {
        let text = |name: &str| record.header(name).and_then(|v| String::from_utf8(v.to_vec()).ok());
        let value: serde_json::Value =
            record.value.as_deref().and_then(|v| serde_json::from_slice(v).ok()).unwrap_or_default();
        Self {
            offset,
            key: record.key.clone().and_then(|k| String::from_utf8(k).ok()),
            event_id: text(header::ID).and_then(|t| t.parse().ok()),
            position: text(header::POSITION).and_then(|t| t.parse().ok()),
            tenant_id: text(header::TENANT_ID),
            kind: text(header::TYPE),
            value_event_id: value["event_id"].as_str().and_then(|t| t.parse().ok()),
            value_tenant_id: value["tenant_id"].as_str().map(str::to_owned),
        }
    }
}

impl Serialize for Topics {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer
            .collect_map(self.0.iter().map(|((topic, partition), r)| (format!("{topic}/{partition}"), r)))
    }
}
