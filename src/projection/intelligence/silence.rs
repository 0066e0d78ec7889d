//! Owns the check for silence: miners whose telemetry no longer comes, which only a clock can tell.
//! Promises that a minute counts once however often the sweep runs, and that a group which is behind makes nobody silent.
//! Called by the scheduled work, each minute, in a transaction of each tenant.

use std::collections::HashMap;
use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, DurationRound, TimeDelta, Utc};
use rust_decimal::Decimal;
use uuid::Uuid;

use super::figures::{News, Price, begun, recovered, tell};
use super::service::Service;
use crate::db::TenantTx;
use crate::economics::Assumptions;
use crate::economics::anomaly::duty::START_UP;
use crate::economics::anomaly::hysteresis::{Change, Observation};
use crate::economics::anomaly::silence::{STALE_AFTER, is_offline};
use crate::economics::anomaly::{AnomalyKind, Watch};
use crate::jobs::{Job, JobError, Progress, Run, Schedule};
use crate::projection::HandlerError;
use crate::read_model::anomaly::Anomaly;
use crate::read_model::anomaly_write;
use crate::read_model::curtailed::{self, Candidate, Off};
use crate::read_model::portfolio_write;
use crate::read_model::silence_write::{self, QuietRow, Swept};

/// Each is one observation for the hysteresis.
const EVERY: TimeDelta = TimeDelta::minutes(1);
/// How many miners are looked at in one transaction.
const AT_ONCE: i64 = 5_000;

/// Sweeps the miners of every tenant.
pub struct SilentMiners {
    pub assumptions: Assumptions,
}

#[async_trait]
impl Job for SilentMiners {
    fn name(&self) -> &'static str {
        "silent-miners"
    }

    fn schedule(&self) -> Schedule {
        Schedule::Every(Duration::from_secs(60))
    }

    fn tenants(&self) -> &'static str {
        "select tenant_id from miner_detector where last_point_at < now() - interval '10 minutes' \
         union select tenant_id from miner_detector where silence is not null \
         union select tenant_id from anomaly where state = 'open'"
    }

    async fn run(&self, tx: &mut TenantTx, _: &Run) -> Result<Progress, JobError> {
        let now = tx.now();
        let looked = sweep(tx, &self.assumptions, now, AT_ONCE).await?;
        Ok(if looked == AT_ONCE { Progress::More } else { Progress::Done })
    }
}

/// Looks which miners of the tenant are silent at `now`, the time by the database's clock: of up to `limit` that may be.
/// Also resolves the anomalies of miners that were removed or taken out of service. Returns how many it looked at; call
/// again, in another transaction, while that is the limit.
///
/// A miner that has never reported is not looked at: whether it should have is not known.
pub async fn sweep(
    tx: &mut TenantTx,
    assumptions: &Assumptions,
    now: DateTime<Utc>,
    limit: i64,
) -> Result<i64, HandlerError> {
    let tenant = tx.tenant().clone();
    let conn = tx.conn();
    let minute = now.duration_trunc(EVERY).unwrap_or(now);
    let retired = silence_write::retire(conn, now, limit).await?;
    let mut news: Vec<News> = retired.iter().map(News::of).collect();
    let rows = silence_write::quiet(conn, minute, now - STALE_AFTER, limit).await?;
    let newest = portfolio_write::newest_snapshot(conn).await?;
    let price = Price { newest: newest.as_ref(), assumptions, now };
    let ids: Vec<Uuid> = rows.iter().map(|row| row.id).collect();
    let miners: Vec<Candidate<'_>> = rows.iter().map(QuietRow::candidate).collect();
    let mut off = curtailed::off(conn, &miners, now - START_UP).await?;
    let mut open: HashMap<Uuid, Anomaly> =
        silence_write::silent(conn, &ids).await?.into_iter().map(|a| (a.miner_id, a)).collect();
    let (mut changed, mut swept) = (Vec::new(), Vec::with_capacity(rows.len()));
    for row in &rows {
        let known = row.silence.as_ref().map(|silence| silence.0).unwrap_or_default();
        let is_open = open.contains_key(&row.id);
        let observed = observation(row, off.remove(&row.id).unwrap_or_default(), now)?;
        let (watch, change) = known.agreeing_with(is_open).step(observed);
        if change == Some(Change::Opened) {
            open.insert(row.id, begun(&row.owner_id, row.id, AnomalyKind::Offline, now));
        }
        if let Some(mut anomaly) = open.remove(&row.id) {
            if observed == Observation::Bad {
                anomaly.last_seen_at = now;
                let seconds = now.signed_duration_since(row.last_point_at).num_seconds();
                anomaly.measured = Decimal::from(seconds);
                anomaly.expected = Some(Decimal::from(STALE_AFTER.num_seconds()));
                price.put_on(&mut anomaly, row.quantity, row.hashrate_ths, Decimal::ZERO)?;
            }
            if change == Some(Change::Resolved) {
                recovered(&mut anomaly, now);
            }
            if change.is_some() {
                news.push(News::of(&anomaly));
            }
            changed.push(anomaly);
        }
        swept.push(Swept {
            miner_id: row.id,
            silence: Some(watch).filter(|watch| *watch != Watch::default()),
        });
    }
    anomaly_write::store(conn, &tenant, &changed).await?;
    silence_write::swept(conn, minute, &swept).await?;
    tell(tx, &news, None).await?;
    Ok(i64::try_from(rows.len().max(retired.len())).unwrap_or(i64::MAX))
}

fn observation(row: &QuietRow, off: Vec<Off>, now: DateTime<Utc>) -> Result<Observation, HandlerError> {
    let duty = Service::of(&row.status, row.status_changed_at, off)?.duty(now);
    Ok(Observation::new(is_offline(row.last_point_at, now), duty))
}
