//! Publishing again what was a dead letter of the publisher, once an operator asked for it.

use tracing::{info, warn};

use super::{PublishError, Publisher};
use crate::dead_letter::{self, PUBLISHER, Replayed};
use crate::log::{LogError, partition_of};
use crate::outbox::Leadership;

/// Letters of one round: there is a round each second.
const MOST: i64 = 200;

impl Publisher {
    /// Appends the letters that wait for it, each at the end of its partition. One that is not taken is dead again; while
    /// the log is away they wait.
    pub(super) async fn replay(&self, leadership: &Leadership) -> Result<(), PublishError> {
        let letters = dead_letter::to_replay(&mut *leadership.session().await, PUBLISHER, MOST).await?;
        for letter in letters {
            let appended = async {
                let partitions = self.log.topic(&letter.topic).await?.partitions;
                let key = letter.record.key.as_deref().unwrap_or_default();
                let records = std::slice::from_ref(&letter.record);
                let appended = self.log.append(&letter.topic, partition_of(key, partitions), records).await;
                appended.map_err(|failed| failed.error)
            };
            let outcome = match appended.await {
                Ok(()) => {
                    info!(topic = letter.topic, id = %letter.id, "a dead letter was published");
                    Replayed::Resolved
                }
                Err(LogError::Rejected { message, .. }) => {
                    warn!(topic = letter.topic, id = %letter.id, message, "a dead letter is still not taken");
                    Replayed::Dead(message)
                }
                Err(error) => {
                    warn!(topic = letter.topic, id = %letter.id, %error, "a dead letter waits for the log");
                    return Ok(());
                }
            };
            dead_letter::replayed(&mut *leadership.session().await, letter.id, &outcome).await?;
        }
        Ok(())
    }
}
