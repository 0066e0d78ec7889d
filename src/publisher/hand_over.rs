//! One hand-over of records to one partition. What the log will never take becomes a dead letter of the publisher.

use std::sync::Arc;

use serde_json::Value;
use sqlx::PgConnection;
use tokio::task::JoinSet;
use tracing::{debug, error};
use uuid::Uuid;

use super::{PublishError, Publisher};
use crate::dead_letter::{self, Cause, Known, PUBLISHER, Place};
use crate::doorbell::Bell;
use crate::event::header;
use crate::log::{AppendError, LogError, Record};
use crate::metrics;
use crate::outbox::Leadership;

/// Compressing this many records takes longer than waking another thread.
const MANY: usize = 64;

/// How far a hand-over came: the first `settled` records are in the log or dead letters.
pub(super) struct HandedOver {
    pub(super) settled: usize,
    pub(super) failed: Option<PublishError>,
}

impl Publisher {
    /// Appends records in their order and passes over those the log will never take.
    pub(super) async fn hand_over(
        &self,
        leadership: &Leadership,
        topic: &str,
        partition: i32,
        records: &Arc<Vec<Record>>,
    ) -> HandedOver {
        let mut settled = 0;
        while settled < records.len() {
            let rest = &records[settled..];
            debug!(topic, partition, records = rest.len(), "handing over");
            fail::fail_point!("pub.before_send");
            let failed = self.append(topic, partition, records, settled).await.err();
            debug!(topic, partition, "handed over");
            fail::fail_point!("pub.after_ack");
            let appended = failed.as_ref().map_or(rest.len(), |failed| failed.appended);
            let now = self.db.now();
            let waits = rest[..appended].iter().map(|r| (now - r.timestamp).as_seconds_f64());
            metrics::events_published(topic, waits);
            settled += appended;
            match failed.map(|failed| failed.error) {
                None => {}
                Some(LogError::Rejected { message, .. }) => {
                    let mut session = leadership.session().await;
                    if let Err(error) =
                        bury(&mut session, topic, partition, &records[settled], &message).await
                    {
                        return HandedOver { settled, failed: Some(error.into()) };
                    }
                    self.bells.ring(Bell::Letters);
                    settled += 1;
                }
                Some(error) => return HandedOver { settled, failed: Some(error.into()) },
            }
        }
        HandedOver { settled, failed: None }
    }

    /// Appends the records behind the first `settled`. Many are compressed and sent by a task of their own: the one of the
    /// pipeline decodes the next rows meanwhile.
    async fn append(
        &self,
        topic: &str,
        partition: i32,
        records: &Arc<Vec<Record>>,
        settled: usize,
    ) -> Result<(), AppendError> {
        if records.len() - settled < MANY {
            return self.log.append(topic, partition, &records[settled..]).await;
        }
        let (log, topic, records) = (Arc::clone(&self.log), topic.to_owned(), Arc::clone(records));
        let appending = async move { log.append(&topic, partition, &records[settled..]).await };
        // Ends with the caller.
        let mut task = JoinSet::new();
        task.spawn(appending);
        match task.join_next().await {
            Some(Ok(appended)) => appended,
            Some(Err(ended)) if ended.is_panic() => std::panic::resume_unwind(ended.into_panic()),
            // Whether anything was appended is not known.
            _ => {
                Err(AppendError { appended: 0, error: LogError::Unavailable("the process ends".to_owned()) })
            }
        }
    }
}

async fn bury(
    session: &mut PgConnection,
    topic: &str,
    partition: i32,
    record: &Record,
    message: &str,
) -> Result<(), sqlx::Error> {
    let text = |name| record.header(name).and_then(|bytes| std::str::from_utf8(bytes).ok());
    let position = text(header::POSITION).and_then(|p| p.parse().ok()).unwrap_or_default();
    let payload: Option<Value> = record.value.as_deref().and_then(|value| serde_json::from_slice(value).ok());
    let known = Known {
        event_id: text(header::ID).and_then(|id| id.parse::<Uuid>().ok()),
        kind: text(header::TYPE),
        tenant_id: text(header::TENANT_ID),
        user_id: payload.as_ref().and_then(|p| p.get("user_id")?.as_str()),
    };
    // An event that never reached the log has no offset there: its position stands for it.
    let place = Place { topic, partition, offset: position };
    let cause = Cause { class: "rejected", message, attempts: 1, first_failed_at: None };
    dead_letter::bury(session, PUBLISHER, place, record, known, cause).await?;
    error!(topic, partition, position, event_id = ?known.event_id, message, "an event cannot be published: it is a dead letter now");
    Ok(())
}
