//! Scheduled work: the jobs of this build. The roles `consume` and `standalone` run them all, whichever group they serve;
//! `serve` does not, so that answers never wait for them.

use std::sync::Arc;
use std::time::Duration;

use crate::cache::Cache;
use crate::config::{Config, JobsConfig};
use crate::domain::crm::invoice::InvoiceClock;
use crate::domain::ops::plan::PlanClock;
use crate::domain::ops::price::PriceRetention;
use crate::domain::ops::strike::StrikeAutomation;
use crate::domain::treasury::clock::TradeClock;
use crate::domain::webhook::DeliveryRetention;
use crate::jobs::{Job, Runner, Settings};
use crate::projection::intelligence::forecast::NewDay;
use crate::projection::intelligence::silence::SilentMiners;
use crate::role::app::{App, assumptions};
use crate::role::schedules::LeftSchedules;

/// Every job of this build. Copies of what they change are dropped from `cache`.
pub fn all(config: &Config, cache: &Arc<Cache>) -> Vec<Arc<dyn Job>> {
    let assumptions = assumptions(&config.economics);
    vec![
        Arc::new(InvoiceClock),
        Arc::new(TradeClock),
        Arc::new(DeliveryRetention),
        Arc::new(PlanClock),
        Arc::new(StrikeAutomation),
        Arc::new(LeftSchedules::new(assumptions.clone(), Arc::clone(cache))),
        Arc::new(PriceRetention),
        Arc::new(SilentMiners { assumptions }),
        Arc::new(NewDay),
    ]
}

/// How jobs are run.
fn settings(config: &JobsConfig) -> Settings {
    Settings { poll: Duration::from_millis(config.poll_ms), lease: Duration::from_millis(config.lease_ms) }
}

impl App {
    /// Takes part in the running of jobs.
    pub fn spawn_jobs(&self, cache: &Arc<Cache>) {
        for job in all(&self.config, cache) {
            let runner = Runner::new(self.db.clone(), self.bells.clone(), job, settings(&self.config.jobs));
            self.lifecycle.spawn("job", runner.run(self.lifecycle.stopping().clone()));
        }
    }
}
