//! The loop: as many deliveries as may be in flight, of as many tenants as have any.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::task::{JoinError, JoinSet};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};
use uuid::Uuid;

use super::post::{Client, Failure, Message};
use super::queue::{self, Claimed, RETRIES};
use super::share::{Lane, Most, Taken, share};
use crate::backoff::{Backoff, jittered};
use crate::db::Db;
use crate::domain::Caller;
use crate::domain::webhook::{AllowedHosts, DISABLED_AFTER_DAYS, Secret, Target, Vault, disable_failing};
use crate::doorbell::{Bell, Doorbells};
use crate::identifier::{TenantId, UserId};
use crate::metrics;

/// Who the audit log says disabled an endpoint.
const ACTOR: &str = "system";

/// A lease is longer than an attempt by this: time to write down how it went.
const MARGIN: Duration = Duration::from_secs(20);

/// Shorter than the process has for its own stop: an endpoint that hangs is no failure of ours.
const STOP_PATIENCE: Duration = Duration::from_secs(5);

/// What an operator may set.
#[derive(Debug, Clone)]
pub struct Settings {
    pub allowed: AllowedHosts,
    pub poll: Duration,
    /// Of one attempt, from the name to the status.
    pub timeout: Duration,
    /// In flight at once in this process; of a tenant; of an endpoint, in all processes.
    pub in_flight: usize,
    pub in_flight_of_tenant: usize,
    pub in_flight_of_endpoint: usize,
}

/// Sends what is in the queue. Several processes may: each delivery is claimed by one.
pub struct Sender {
    db: Db,
    bells: Doorbells,
    vault: Vault,
    client: Client,
    settings: Settings,
}

impl Sender {
    /// # Errors
    /// TLS cannot be set up.
    pub fn new(db: Db, bells: Doorbells, vault: Vault, settings: Settings) -> Result<Self, rustls::Error> {
        let client = Client::new(settings.timeout)?;
        Ok(Self { db, bells, vault, client, settings })
    }

    /// Sends until the stop; then waits a little for what is in flight. What is cut off is sent again when its lease
    /// has run out.
    pub async fn run(self, stopping: CancellationToken) -> anyhow::Result<()> {
        let mut bell = self.bells.listen(Bell::Applied);
        let poll = self.settings.poll;
        let mut in_flight =
            InFlight { sender: Arc::new(self), tasks: JoinSet::new(), taken: Taken::default() };
        let mut backoff = Backoff::default();
        info!("webhooks are sent");
        while !stopping.is_cancelled() {
            bell.arm();
            let pause = match in_flight.fill().await {
                Ok(started) => {
                    backoff.reset();
                    if started > 0 {
                        continue;
                    }
                    poll
                }
                Err(error) => {
                    warn!(%error, "webhooks could not be claimed; trying again");
                    backoff.pause()
                }
            };
            tokio::select! {
                () = stopping.cancelled() => {}
                () = bell.rung() => {}
                () = in_flight.one_ended() => {}
                () = tokio::time::sleep(jittered(pause)) => {}
            }
        }
        let all_ended = async { while in_flight.tasks.join_next().await.is_some() {} };
        if timeout(STOP_PATIENCE, all_ended).await.is_err() {
            info!("webhooks whose endpoint does not answer are left for later");
            in_flight.tasks.shutdown().await;
        }
        Ok(())
    }

    /// Makes one attempt and writes down how it went. What cannot be written down is attempted again when the lease
    /// has run out.
    async fn deliver(&self, tenant: &TenantId, claimed: &Claimed) {
        let sent = self.attempt(tenant, claimed).await;
        fail::fail_point!("webhook.before_mark");
        let (endpoint, event_id) = (claimed.endpoint_id, claimed.event_id);
        let marked = match &sent {
            Ok(status) => {
                metrics::webhook_delivery("delivered");
                self.delivered(tenant, claimed, *status).await.map_err(anyhow::Error::from)
            }
            Err(failure) => {
                metrics::webhook_delivery(failure.result());
                // With what is not for the tenant: the addresses of a name.
                debug!(%endpoint, %event_id, attempt = claimed.attempts, ?failure, "a webhook was not delivered");
                self.failed(tenant, claimed, failure).await
            }
        };
        if let Err(error) = marked {
            warn!(%endpoint, %event_id, %error, "what became of a webhook could not be written down; it is sent again");
        }
    }

    async fn attempt(&self, tenant: &TenantId, claimed: &Claimed) -> Result<u16, Failure> {
        let target = Target::parse(&claimed.url, &self.settings.allowed)
            .map_err(|refused| Failure::Url(refused.to_string()))?;
        let open = |sealed: &Vec<u8>| self.vault.open(sealed, tenant, claimed.endpoint_id);
        let newest = open(&claimed.secret).ok_or(Failure::Secret)?;
        // One that another key sealed signs no more: to rotate is the way out of that.
        let previous = claimed.previous_secret.as_ref().and_then(open);
        let (id, timestamp) = (claimed.event_id.to_string(), self.db.now().timestamp());
        let sign = |secret: &Secret| secret.sign(&id, timestamp, &claimed.body);
        let signatures = [Some(&newest), previous.as_ref()].into_iter().flatten().map(sign);
        let signatures = signatures.collect::<Vec<_>>().join(" ");
        let message = Message { id: &id, timestamp, signatures: &signatures, body: &claimed.body };
        self.client.post(&target, &message).await
    }

    async fn delivered(&self, tenant: &TenantId, claimed: &Claimed, status: u16) -> Result<(), sqlx::Error> {
        let mut tx = self.db.worker().await?;
        queue::delivered(&mut tx, tenant, claimed, status).await?;
        tx.commit().await
    }

    async fn failed(&self, tenant: &TenantId, claimed: &Claimed, failure: &Failure) -> anyhow::Result<()> {
        let pause = pause_after(claimed.attempts).map(jittered);
        let (status, error) = (failure.status(), failure.to_string());
        let mut tx = self.db.worker().await?;
        let why = (status, error.as_str());
        let hopeless = queue::failed(&mut tx, tenant, claimed, why, pause, DISABLED_AFTER_DAYS).await?;
        tx.commit().await?;
        if hopeless {
            self.disable(tenant, claimed.endpoint_id).await?;
        }
        Ok(())
    }

    async fn disable(&self, tenant: &TenantId, endpoint: Uuid) -> anyhow::Result<()> {
        let actor: UserId = ACTOR.parse()?;
        let mut tx = self.db.tenant(tenant).await?;
        let caller = Caller { actor: &actor, request_id: "webhook-sender", traceparent: "", now: tx.now() };
        let disabled = disable_failing(&mut tx, caller, endpoint).await?;
        tx.commit().await?;
        if disabled {
            self.bells.ring(Bell::Outbox);
            info!(%endpoint, "a webhook is disabled: every attempt has failed for {DISABLED_AFTER_DAYS} days");
        }
        Ok(())
    }
}

/// What is being sent by this process.
struct InFlight {
    sender: Arc<Sender>,
    /// Each with its tenant, and whether its endpoint was failing.
    tasks: JoinSet<(TenantId, bool)>,
    taken: Taken,
}

impl InFlight {
    /// Claims and starts as many as may be; returns how many.
    async fn fill(&mut self) -> Result<usize, sqlx::Error> {
        while let Some(ended) = self.tasks.try_join_next() {
            self.ended(ended);
        }
        let settings = &self.sender.settings;
        let most = Most { in_all: settings.in_flight, of_tenant: settings.in_flight_of_tenant };
        if self.tasks.len() >= most.in_all {
            return Ok(0);
        }
        let mut started = 0;
        let mut lanes = queue::due(&self.sender.db).await?;
        loop {
            let free = most.in_all.saturating_sub(self.tasks.len());
            let shares = share(&lanes, &self.taken, most, free);
            if shares.iter().all(|room| *room == 0) {
                return Ok(started);
            }
            let mut shares = shares.into_iter();
            let mut left = Vec::with_capacity(lanes.len());
            for lane in lanes {
                let room = shares.next().unwrap_or_default();
                let claimed = if room > 0 { self.sender.claim(&lane, room).await? } else { Vec::new() };
                started += claimed.len();
                // Whoever did not take its share has no more that may go out: the others have it.
                let is_done = claimed.len() < room;
                claimed.into_iter().for_each(|one| self.start(&lane, one));
                if !is_done {
                    left.push(lane);
                }
            }
            lanes = left;
        }
    }

    fn start(&mut self, lane: &Lane, claimed: Claimed) {
        self.taken.begin(&lane.tenant, lane.failing);
        let (sender, tenant, failing) = (Arc::clone(&self.sender), lane.tenant.clone(), lane.failing);
        self.tasks.spawn(async move {
            let delivered = AssertUnwindSafe(Box::pin(sender.deliver(&tenant, &claimed))).catch_unwind();
            if delivered.await.is_err() {
                error!(endpoint = %claimed.endpoint_id, "a webhook's task panicked; it is sent again");
            }
            (tenant, failing)
        });
    }

    /// Returns when one of them has ended; never where there is none.
    async fn one_ended(&mut self) {
        match self.tasks.join_next().await {
            Some(ended) => self.ended(ended),
            None => std::future::pending().await,
        }
    }

    fn ended(&mut self, ended: Result<(TenantId, bool), JoinError>) {
        // Panics are caught inside, and nothing is aborted.
        let Ok((tenant, failing)) = ended else { return };
        self.taken.end(&tenant, failing);
    }
}

impl Sender {
    async fn claim(&self, lane: &Lane, most: usize) -> Result<Vec<Claimed>, sqlx::Error> {
        let lease = self.settings.timeout + MARGIN;
        let of_endpoint = if lane.failing { 1 } else { self.settings.in_flight_of_endpoint };
        let mut tx = self.db.worker().await?;
        let claimed = queue::claim(&mut tx, lane, most, of_endpoint, lease).await?;
        tx.commit().await?;
        Ok(claimed)
    }
}

/// The pause after this many attempts; none when it is given up.
fn pause_after(attempts: i32) -> Option<Duration> {
    let retry = usize::try_from(attempts).ok()?.checked_sub(1)?;
    RETRIES.get(retry).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn six_retries_and_no_more() {
        let pauses: Vec<Option<u64>> =
            (1..=8).map(|attempts| pause_after(attempts).map(|pause| pause.as_secs())).collect();
        let expected = [5, 300, 1_800, 7_200, 18_000, 36_000].map(Some);
        assert_eq!(pauses, [&expected[..], &[None, None]].concat());
        assert_eq!(pause_after(0), None);
    }
}
