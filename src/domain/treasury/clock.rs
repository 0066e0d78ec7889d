//! What time does to the trades of every tenant: the parts of TWAP and VWAP orders that come due between two prices.

use std::time::Duration;

use async_trait::async_trait;

use super::execution::advance;
use crate::db::TenantTx;
use crate::jobs::{Job, JobError, Progress, Run, Schedule};

/// Advances the open trades.
pub struct TradeClock;

#[async_trait]
impl Job for TradeClock {
    fn name(&self) -> &'static str {
        "treasury-trades"
    }

    fn schedule(&self) -> Schedule {
        // The parts of a VWAP order are a minute apart.
        Schedule::Every(Duration::from_secs(60))
    }

    fn tenants(&self) -> &'static str {
        // Market and limit orders change with prices only, and the group of the treasury takes them to each.
        "select distinct tenant_id from treasury_trade where execution_strategy in ('twap', 'vwap') \
         and state in ('submitted', 'approved', 'executing', 'partially_filled')"
    }

    async fn run(&self, tx: &mut TenantTx, _: &Run) -> Result<Progress, JobError> {
        let now = tx.now();
        advance(tx, now).await?;
        Ok(Progress::Done)
    }
}
