//! What the leader keeps an eye on: the backlog, dead letters, and replication slots, since one that nobody reads keeps write-ahead
//! log until the disk is full.

use std::time::Duration;

use sqlx::PgConnection;
use tokio::time::{Instant, sleep};
use tracing::warn;

use super::Publisher;
use crate::dead_letter;
use crate::metrics;
use crate::outbox;
use crate::outbox::wal::{SlotWatch, slot};

/// How often it is looked.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// A failing look is told this often.
const TELL_EVERY: Duration = Duration::from_secs(300);

impl Publisher {
    /// Watches the backlog, our slot and Debezium's, whether they are used or forgotten. Never returns.
    pub(super) async fn watch(&self) {
        let mut watches = None;
        let mut told: Option<Instant> = None;
        loop {
            if let Err(error) = self.look(&mut watches).await {
                watches = None;
                if told.is_none_or(|told| told.elapsed() >= TELL_EVERY) {
                    warn!(%error, "backlog, dead letters and replication slots cannot be watched");
                    told = Some(Instant::now());
                }
            }
            sleep(LOOK_EVERY).await;
        }
    }

    async fn look(&self, watches: &mut Option<(PgConnection, Vec<SlotWatch>)>) -> Result<(), sqlx::Error> {
        let (session, watches) = match watches {
            Some(watches) => watches,
            none => {
                let mut session = self.db.session().await?;
                let names = [slot::name(&mut session, &self.wal_slot).await?, self.debezium_slot.clone()];
                let watch = |name: String| SlotWatch::new(&name, self.slot_alarm_bytes);
                none.insert((session, names.into_iter().map(watch).collect()))
            }
        };
        for watch in watches {
            watch.look(session).await?;
        }
        let mut tx = self.db.worker().await?;
        let progress = outbox::progress(tx.conn()).await?;
        let letters = dead_letter::open_by_group(tx.conn()).await?;
        tx.rollback().await?;
        metrics::outbox_backlog(progress.backlog + progress.stuck, progress.oldest_seconds.unwrap_or(0.0));
        letters.iter().for_each(|(group, open)| metrics::dead_letters_open(group, *open));
        Ok(())
    }
}
