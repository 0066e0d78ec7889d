//! Watches what a slot holds back: a gauge, and a warning before it is lost or fills the disk.

use sqlx::postgres::PgConnection;
use tracing::{info, warn};

use super::slot::{self, Slot, SlotState};
use crate::metrics;

/// The watch over one slot.
#[derive(Debug)]
pub struct SlotWatch {
    name: String,
    /// Where max_slot_wal_keep_size sets no limit.
    alarm_bytes: u64,
    alarmed: bool,
}

impl SlotWatch {
    /// `alarm_bytes` is for a server that keeps without limit.
    pub fn new(name: &str, alarm_bytes: u64) -> Self {
        Self { name: name.to_owned(), alarm_bytes, alarmed: false }
    }

    /// Looks once: sets the gauge, and warns when half of what may be kept is used, once until it is less again.
    pub async fn look(&mut self, conn: &mut PgConnection) -> Result<SlotState, sqlx::Error> {
        let state = slot::state(conn, &self.name).await?;
        metrics::slot_retained_bytes(&self.name, state.slot().map_or(0, |slot| slot.retained_bytes));
        if let SlotState::Healthy(slot) = &state {
            let over = slot.retained_bytes >= self.threshold(slot);
            if over && !self.alarmed {
                warn!(
                    slot = self.name,
                    retained_bytes = slot.retained_bytes,
                    safe_bytes = slot.safe_wal_size,
                    wal_status = slot.wal_status,
                    "the replication slot holds back much write-ahead log: its reader is behind or gone"
                );
            }
            if !over && self.alarmed {
                info!(
                    slot = self.name,
                    retained_bytes = slot.retained_bytes,
                    "the replication slot has caught up"
                );
            }
            self.alarmed = over;
        }
        Ok(state)
    }

    /// Whether it is above the threshold as of the last look.
    pub fn alarmed(&self) -> bool {
        self.alarmed
    }

    fn threshold(&self, slot: &Slot) -> u64 {
        slot.keep_bytes.map_or(self.alarm_bytes, |keep| keep / 2)
    }
}
