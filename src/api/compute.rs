//! Owns the running of what takes a processor for a good part of a second.
//! Promises that so much of it runs at once and no more, away from the threads that serve; the rest waits its turn until
//! its request's time is over.
//! Called by the handlers that compute.

use std::sync::Arc;

use tracing::error;

use super::Api;
use super::problem::Problem;

/// Computations at once in a process.
pub(super) const AT_ONCE: usize = 2;

impl Api {
    /// Runs a computation to its end, even if nobody waits for it any more.
    pub(super) async fn compute<T: Send + 'static>(
        &self,
        computation: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Problem> {
        let turn = Arc::clone(&self.computing).acquire_owned().await.map_err(|_| Problem::internal())?;
        let running = tokio::task::spawn_blocking(move || {
            let done = computation();
            drop(turn);
            done
        });
        running.await.map_err(|panic| {
            error!(%panic, "a computation failed");
            Problem::internal()
        })
    }
}
