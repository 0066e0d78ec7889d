//! Holds the member's slot, and looks after those of the others: a task of its own, so that a broker that hangs never
//! makes a living member look dead.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::coordinator::Coordinator;
use super::observer::{Observer, Seen};
use super::slot::{self, Holder, Slot};
use crate::backoff::Backoff;
use crate::db::Db;
use crate::doorbell::{Bell, Doorbells};

/// A database that answers nothing for so long is given up: the session, and the slot with it, may be gone.
const PATIENCE: Duration = Duration::from_secs(10);

/// Renewals for which a confirmation is good: one less than the others wait.
const GOOD_FOR: u32 = 3;

/// Who we are, as far as the slot says it.
#[derive(Debug, Clone, Default)]
pub(super) struct Standing {
    /// The member id of the slot that we hold.
    pub(super) member_id: Option<Arc<str>>,
    /// From before the last renewal was sent, by our own clock.
    good_until: Option<Instant>,
}

impl Standing {
    /// Whether lock and lease were confirmed so lately that nobody can have evicted us.
    pub(super) fn is_confirmed(&self, now: Instant) -> bool {
        self.good_until.is_some_and(|until| now < until)
    }
}

/// What the task works with.
pub(super) struct Keeper {
    pub(super) db: Db,
    pub(super) bells: Doorbells,
    pub(super) holder: Holder,
    pub(super) interval: Duration,
    pub(super) coordinator: Coordinator,
    pub(super) standing: watch::Sender<Standing>,
    /// Whether Kafka could not be told the last time: it is said once.
    pub(super) untold: bool,
}

impl Keeper {
    /// Until the stop; returns the slot if it is held then.
    pub(super) async fn keep(mut self, stop: CancellationToken) -> Option<Slot> {
        let mut backoff = Backoff::default();
        let mut before = None;
        loop {
            let sent_at = Instant::now();
            let taken = tokio::select! {
                () = stop.cancelled() => return None,
                taken = timeout(PATIENCE, Slot::take(&self.db, &self.holder, before)) => taken,
            };
            let cause = match taken {
                Ok(Ok(mut slot)) => {
                    backoff.reset();
                    before = Some(slot.slot_id());
                    self.confirm(&slot, sent_at);
                    match self.hold(&mut slot, &stop).await {
                        Ok(()) => return Some(slot),
                        Err(cause) => cause,
                    }
                }
                Ok(Err(cause)) => cause.to_string(),
                Err(_) => silent(),
            };
            if self.standing.borrow().member_id.is_some() {
                warn!(group = self.holder.group, %cause, "the member's slot is lost: work stops until one is held again");
            } else {
                warn!(group = self.holder.group, %cause, "no slot can be taken; trying again");
            }
            self.standing.send_replace(Standing::default());
            tokio::select! {
                () = stop.cancelled() => return None,
                () = sleep(backoff.pause()) => {}
            }
        }
    }

    /// Renews until the stop; an error says why the slot is lost.
    async fn hold(&mut self, slot: &mut Slot, stop: &CancellationToken) -> Result<(), String> {
        let mut observer = Observer::default();
        loop {
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = sleep(self.interval) => {}
            }
            let sent_at = Instant::now();
            match timeout(PATIENCE, slot.renew()).await {
                Ok(Ok(true)) => self.confirm(slot, sent_at),
                Ok(Ok(false)) => {
                    warn!(
                        group = self.holder.group,
                        member = slot.member_id(),
                        "this member stood still and was evicted"
                    );
                    let sent_at = Instant::now();
                    match timeout(PATIENCE, slot.start_over(&self.holder)).await {
                        Ok(Ok(true)) => self.confirm(slot, sent_at),
                        Ok(Ok(false)) => return Err("the slot has another member".to_owned()),
                        Ok(Err(cause)) => return Err(cause.to_string()),
                        Err(_) => return Err(silent()),
                    }
                    observer = Observer::default();
                }
                Ok(Err(cause)) => return Err(cause.to_string()),
                Err(_) => return Err(silent()),
            }
            let look = match timeout(PATIENCE, slot.look(&self.holder)).await {
                Ok(Ok(look)) => look,
                Ok(Err(cause)) => return Err(cause.to_string()),
                Err(_) => return Err(silent()),
            };
            let gone = observer.look(look.others);
            if gone.is_empty() && look.departed.is_empty() {
                continue;
            }
            // Neither a broker nor a database that hangs must keep us from our own next renewal.
            let _ = timeout(self.interval, self.bury(gone, look.departed)).await;
        }
    }

    /// Evicts the dead, and sees off whoever was evicted.
    async fn bury(&mut self, gone: Vec<Seen>, mut departed: Vec<String>) {
        for seen in gone {
            match slot::evict(&self.db, &seen).await {
                Ok(Some(member)) => {
                    let why = if seen.held { "stood still" } else { "died" };
                    warn!(group = self.holder.group, member, "a member {why} and was evicted");
                    departed.push(member);
                }
                Ok(None) => {}
                Err(error) => warn!(group = self.holder.group, %error, "a dead member was not evicted"),
            }
        }
        for member in departed {
            self.see_off(&member).await;
        }
    }

    /// Tells Kafka that an evicted member is gone. Anyone may, and more than one does no harm.
    async fn see_off(&mut self, member: &str) {
        match self.coordinator.leave(member).await {
            Ok(()) => {
                self.untold = false;
                info!(group = self.holder.group, member, "the evicted member's partitions are dealt anew");
                self.bells.ring(Bell::Group);
                if let Err(error) = slot::forget(&self.db, &self.holder.group, member).await {
                    warn!(group = self.holder.group, %error, "an evicted member will be seen off again");
                }
            }
            Err(error) => {
                if !std::mem::replace(&mut self.untold, true) {
                    warn!(group = self.holder.group, member, %error, "an evicted member cannot be seen off; trying again");
                }
            }
        }
    }

    fn confirm(&self, slot: &Slot, sent_at: Instant) {
        let good_until = Some(sent_at + self.interval * GOOD_FOR);
        self.standing.send_if_modified(|standing| {
            standing.good_until = good_until;
            let changed = standing.member_id.as_deref() != Some(slot.member_id());
            if changed {
                standing.member_id = Some(slot.member_id().into());
            }
            changed
        });
    }
}

fn silent() -> String {
    format!("the database did not answer within {} s", PATIENCE.as_secs())
}
