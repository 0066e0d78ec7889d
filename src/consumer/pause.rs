//! A partition pauses when its events fail in numbers: that is no fault of theirs, and nothing becomes a dead letter.
//!
//! While it pauses nothing is fetched. The head of one key is tried now and then, without an attempt being counted;
//! as long as that succeeds the next is tried at once, until the reason is gone.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::health::Health;
use super::offset::Claim;
use super::parked::Tried;
use super::trouble::Trouble;
use super::worker::{Step, StepError, Worker};
use crate::backoff::jittered;

/// More events than this in the retry queue of a partition are too many.
const MOST_PARKED: i64 = 10_000;

/// Between two tries that fail; in pauses before the second attempt: 5 s by default.
const PROBE_AFTER: u32 = 25;

/// A pause.
#[derive(Debug)]
pub(super) struct Pause {
    probe_at: Instant,
}

impl Worker {
    /// Why the partition should pause, if it should.
    pub(super) fn reason_to_pause(&self) -> Option<String> {
        if self.parked > MOST_PARKED {
            return Some(format!(
                "more than {MOST_PARKED} events wait in the retry queue; none becomes a dead letter until that is mended, \
                 which is tried every now and then"
            ));
        }
        self.health.common_failure().map(|how| {
            format!(
                "half of the last hundred keys fail alike ({how}); none becomes a dead letter until that is mended, \
                 which is tried every now and then"
            )
        })
    }

    /// Pauses if there is a reason, and goes on if there is none any more.
    pub(super) async fn pause_or_go_on(&mut self, claim: &Claim) -> Result<(), sqlx::Error> {
        match (self.reason_to_pause(), &self.pause) {
            (Some(reason), None) => {
                self.pause = Some(Pause { probe_at: Instant::now() + self.probe_pause() });
                self.stand_still(claim, Trouble::Paused(reason)).await
            }
            (None, Some(_)) => {
                self.go_on(claim).await?;
                self.pause = None;
                Ok(())
            }
            (Some(_), Some(_)) | (None, None) => Ok(()),
        }
    }

    /// Waits for the time of the next try, and tries.
    pub(super) async fn probe(
        &mut self,
        claim: &mut Claim,
        stop: &CancellationToken,
    ) -> Result<Step, StepError> {
        let Some(Pause { probe_at }) = self.pause else { return Ok(Step::Idle) };
        tokio::select! {
            () = stop.cancelled() => return Ok(Step::Idle),
            () = sleep_until(probe_at) => {}
        }
        let Some(head) = self.next_head().await? else {
            // Nothing is left that could show whether it is mended: the next events will.
            self.health = Health::default();
            self.look_at_queue(claim).await?;
            return Ok(Step::Worked);
        };
        match self.retry(claim, &head).await? {
            Tried::Fenced => return Ok(Step::Fenced),
            Tried::Applied => {}
            Tried::Failed => self.pause = Some(Pause { probe_at: Instant::now() + self.probe_pause() }),
        }
        self.look_at_queue(claim).await?;
        Ok(Step::Worked)
    }

    fn probe_pause(&self) -> Duration {
        jittered(Duration::from_millis(self.context.settings.retry_backoff_ms) * PROBE_AFTER)
    }
}
