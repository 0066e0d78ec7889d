//! Owns the forecast of the network: made anew when a snapshot comes, and at a new day.
//! Promises one forecast per tenant and batch, the same that [`outlook()`] gives for the closes on record.
//! Called by the group; [`make`] also by the scheduled work, once a day for each tenant that has snapshots.

use std::collections::BTreeMap;

use async_trait::async_trait;
use chrono::{NaiveDate, NaiveTime};
use serde_json::{Value, json};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::db::{TenantTx, WorkerTx};
use crate::economics::forecast::{MAX_DAYS, Outlook, outlook};
use crate::event::Event;
use crate::identifier::TenantId;
use crate::jobs::{Job, JobError, Progress, Run, Schedule};
use crate::projection::{Dirty, EventHandler, HandlerError, Rebuilt, Row};
use crate::read_model::forecast::KINDS;
use crate::read_model::forecast_write::{self, History, Made};

/// Keeps the forecasts.
pub(super) struct Forecasts;

#[async_trait]
impl EventHandler for Forecasts {
    fn consumes(&self, kind: &str) -> bool {
        KINDS.contains(&kind)
    }

    async fn apply(&self, tx: &mut WorkerTx, events: &[&Event]) -> Result<Vec<Dirty>, HandlerError> {
        let last: BTreeMap<&TenantId, Uuid> =
            events.iter().map(|event| (&event.tenant_id, event.event_id)).collect();
        let mut dirty = Vec::with_capacity(last.len());
        for (tenant, event_id) in last {
            let conn = tx.for_tenant(tenant).await?;
            if let Some((today, version)) = make(conn, tenant, Some(event_id)).await? {
                dirty.push(Dirty { tenant_id: tenant.clone(), row: Row::Forecast(today), version });
            }
        }
        Ok(dirty)
    }

    async fn rebuild(
        &self,
        tx: &mut WorkerTx,
        tenant: &TenantId,
        after: Option<&str>,
    ) -> Result<Rebuilt, HandlerError> {
        if after.is_some() {
            return Ok(Rebuilt::default());
        }
        let conn = tx.for_tenant(tenant).await?;
        // The event is that of the figures behind the lock.
        forecast_write::lock(conn, tenant).await?;
        let event_id = forecast_write::event(conn).await?;
        let made = make(conn, tenant, event_id).await?;
        let dirty = made.map(|(today, version)| Dirty {
            tenant_id: tenant.clone(),
            row: Row::Forecast(today),
            version,
        });
        Ok(Rebuilt {
            rows: dirty.iter().len(),
            last: dirty.as_ref().map(|_| NAME.to_owned()),
            dirty: dirty.into_iter().collect(),
        })
    }
}

/// The key of the only row that is rebuilt.
const NAME: &str = "forecast";

/// Forecasts for every tenant that has a forecast, at a new day.
pub struct NewDay;

#[async_trait]
impl Job for NewDay {
    fn name(&self) -> &'static str {
        "forecast-new-day"
    }

    fn schedule(&self) -> Schedule {
        Schedule::Daily(NaiveTime::MIN)
    }

    fn tenants(&self) -> &'static str {
        "select distinct tenant_id from forecast_daily"
    }

    async fn run(&self, tx: &mut TenantTx, _: &Run) -> Result<Progress, JobError> {
        // A copy cached since midnight shows the forecast of the day before, and ages like any other.
        let tenant = tx.tenant().clone();
        make(tx.conn(), &tenant, None).await?;
        Ok(Progress::Done)
    }
}

/// Forecasts the days after today, by the database's clock, for the tenant in view, and stores them; returns today and the
/// version. Nothing for a tenant without a snapshot in two years.
pub async fn make(
    conn: &mut PgConnection,
    tenant: &TenantId,
    event_id: Option<Uuid>,
) -> Result<Option<(NaiveDate, i64)>, HandlerError> {
    // A replay, or the new day, comes through another transaction: the later one reads what the earlier one was told.
    forecast_write::lock(conn, tenant).await?;
    let History { today, closes, newest } = forecast_write::history(conn).await?;
    let count = closes.len();
    let computed = tokio::task::spawn_blocking(move || outlook(today, &closes, MAX_DAYS));
    let made = computed.await.map_err(|error| HandlerError::Panic(error.to_string()))??;
    let (Some(outlook), Some(snapshot_id)) = (made, newest) else { return Ok(None) };
    let Outlook { rows, price, difficulty, warnings } = outlook;
    let made = Made {
        snapshot_id,
        as_of: difficulty.as_of,
        closes: count,
        // The days are the rows.
        basis: json!({
            "price": without_days(json!(price)),
            "difficulty": {
                "as_of": difficulty.as_of, "next_retarget": difficulty.next_retarget,
                "retargets_known": difficulty.retargets_known, "retargets_needed": difficulty.retargets_needed,
                "growth_per_epoch": difficulty.growth_per_epoch,
            },
            "closes": count,
        }),
        warnings: json!(warnings),
        event_id,
    };
    let version = forecast_write::store(conn, tenant, &rows, &made).await?;
    Ok(Some((today, version)))
}

/// The forecast of the price, or what is missing for one, by its name and without its days.
fn without_days(mut price: Value) -> Value {
    if let Some(object) = price.as_object_mut() {
        object.values_mut().filter_map(|inner| inner.as_object_mut()).for_each(|inner| {
            inner.remove("days");
        });
    }
    price
}
