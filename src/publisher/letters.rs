//! The publisher's own dead letters: published again once somebody asked for it, and put on events.dlq.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use tracing::{info, warn};
use uuid::Uuid;

use super::{PublishError, Publisher, record};
use crate::backoff::jittered;
use crate::dead_letter::{self, Cause, Letter, PUBLISHER, Relay};
use crate::doorbell::Bell;
use crate::log::{LogError, partition_of};
use crate::outbox::Leadership;

/// Letters of one round.
const PAGE: i64 = 200;

/// How often it is looked when no bell rings, and the pause after a failure.
const POLL: Duration = Duration::from_secs(5);

impl Publisher {
    /// What the leader does for the letters, whatever the source of events is. Never returns.
    pub(super) async fn letters(&self, leadership: &Leadership) {
        let relay = Relay {
            db: self.db.clone(),
            log: Arc::clone(&self.log),
            bells: self.bells.clone(),
            group: PUBLISHER,
            source: None,
            topic: self.topic_of("dlq"),
        };
        tokio::join!(relay.run(), self.replays(leadership));
    }

    async fn replays(&self, leadership: &Leadership) {
        let mut bell = self.bells.listen(Bell::Letters);
        loop {
            bell.arm();
            match self.replay(leadership).await {
                Ok(()) => {
                    let _ = tokio::time::timeout(jittered(POLL), bell.rung()).await;
                }
                Err(error) => {
                    warn!(%error, "dead letters that are to be published again wait");
                    tokio::time::sleep(jittered(POLL)).await;
                }
            }
        }
    }

    /// Appends the letters that wait for it, each at the end of its partition. One that is not taken is dead again; those
    /// of a topic that is away wait.
    async fn replay(&self, leadership: &Leadership) -> Result<(), PublishError> {
        let (mut after, mut away) = (None, HashSet::new());
        let mut failed = None;
        loop {
            let mut session = leadership.session().await;
            let page = dead_letter::requested(&mut session, PUBLISHER, None, after, PAGE).await?;
            drop(session);
            let Some(last) = page.last() else { return failed.map_or(Ok(()), Err) };
            after = Some((last.requested_at, last.id));
            for id in page.iter().map(|letter| letter.id) {
                let letter = dead_letter::load(&mut *leadership.session().await, id).await?;
                let Some(letter) = letter.filter(|letter| !away.contains(&letter.topic)) else { continue };
                let topic = letter.topic.clone();
                if let Err(error) = self.publish_again(leadership, id, letter).await {
                    if !matches!(error, PublishError::Log(_)) {
                        return Err(error);
                    }
                    away.insert(topic);
                    failed = Some(error);
                }
            }
        }
    }

    async fn publish_again(
        &self,
        leadership: &Leadership,
        id: Uuid,
        letter: Letter,
    ) -> Result<(), PublishError> {
        let Letter { topic, record: mut event, .. } = letter;
        let known = self.log.topic(&topic).await?;
        record::keep_alive(&mut event, known.retention, self.db.now());
        let partition = partition_of(event.key.as_deref().unwrap_or_default(), known.partitions);
        let appended = self.log.append_one(&topic, partition, &event).await;
        let mut session = leadership.session().await;
        match appended {
            Ok(_) => {
                info!(topic, %id, "a dead letter was published");
                dead_letter::resolved(&mut session, id).await?;
            }
            Err(LogError::Rejected { message, .. }) => {
                warn!(topic, %id, message, "a dead letter is still not taken");
                let cause =
                    Cause { class: "rejected", message: &message, attempts: 1, first_failed_at: None };
                dead_letter::died_again(&mut session, id, cause).await?;
            }
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }
}
