//! Scheduled work: the jobs of this build. The roles `consume` and `standalone` run them all, whichever group they serve;
//! `serve` does not, so that answers never wait for them.

use std::sync::Arc;
use std::time::Duration;

use crate::config::JobsConfig;
use crate::domain::crm::invoice::InvoiceClock;
use crate::domain::treasury::clock::TradeClock;
use crate::domain::webhook::DeliveryRetention;
use crate::jobs::{Job, Runner, Settings};
use crate::role::app::App;

/// Every job of this build.
pub fn all() -> Vec<Arc<dyn Job>> {
    vec![Arc::new(InvoiceClock), Arc::new(TradeClock), Arc::new(DeliveryRetention)]
}

/// How jobs are run.
fn settings(config: &JobsConfig) -> Settings {
    Settings { poll: Duration::from_millis(config.poll_ms), lease: Duration::from_millis(config.lease_ms) }
}

impl App {
    /// Takes part in the running of jobs.
    pub fn spawn_jobs(&self) {
        for job in all() {
            let runner = Runner::new(self.db.clone(), self.bells.clone(), job, settings(&self.config.jobs));
            self.lifecycle.spawn("job", runner.run(self.lifecycle.stopping().clone()));
        }
    }
}
