//! Owns the resource schedule: when a user's fleet best runs over the next 24 hours, as JSON or CSV.
//! Promises that figures from old prices or an old network snapshot say so at the moment they are read.
//! Called by the router.

use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue};
use axum::response::Response;
use chrono::{DateTime, Utc};
use rust_decimal::Decimal;
use serde::Deserialize;
use tracing::error;

use super::Api;
use crate::api::auth::{Allowed, OpsRead};
use crate::api::cached::{self, View};
use crate::api::csv::{self, Cell, Format};
use crate::api::extract::Params;
use crate::api::problem::Problem;
use crate::api::visible::ReadModel;
use crate::cache::Key;
use crate::db::TenantTx;
use crate::identifier::{TenantId, UserId};
use crate::read_model::optimum::{self, Row};
use crate::read_model::schedule::{self, GROUP, KINDS, ScheduleView};

const COLUMNS: [&str; 13] = [
    "start",
    "seconds",
    "price_usd_mwh",
    "is_peak",
    "miners_online",
    "miners_offline",
    "kw",
    "power_cost_usd",
    "revenue_usd",
    "start_cost_usd",
    "prices_as_of",
    "network_as_of",
    "warnings",
];

impl View for ScheduleView {
    const MODEL: ReadModel = ReadModel { group: GROUP, kinds: KINDS, name: "a schedule" };

    fn key(tenant: &TenantId, user: &UserId) -> Key {
        Key::schedule(tenant, user)
    }

    async fn load(tx: &mut TenantTx, user: &UserId) -> Result<Self, sqlx::Error> {
        schedule::get(tx, user).await
    }

    fn version(&self) -> i64 {
        self.version
    }

    async fn newest(tx: &mut TenantTx, user: &UserId) -> Result<i64, sqlx::Error> {
        schedule::version(tx, user).await
    }

    async fn is_caught_up(tx: &mut TenantTx, user: &UserId) -> Result<bool, sqlx::Error> {
        schedule::is_caught_up(tx, user).await
    }
}

/// What the age of a schedule is told from.
#[derive(Deserialize)]
struct Dated {
    prices_as_of: Option<DateTime<Utc>>,
    network_as_of: Option<DateTime<Utc>>,
}

/// The rows of a schedule, and what is to be known of all of them.
#[derive(Deserialize)]
struct Table {
    rows: Vec<Row>,
    prices_as_of: Option<DateTime<Utc>>,
    network_as_of: Option<DateTime<Utc>>,
    warnings: Vec<String>,
}

/// GET /api/ops/schedule?user_id=&after=&wait=&format=: {data, metadata}, or its rows as CSV, with `x-warnings` where there
/// are none to carry the warnings.
pub(super) async fn get(
    State(api): State<Api>,
    Allowed { who, .. }: Allowed<OpsRead>,
    headers: HeaderMap,
    params: Params,
) -> Result<Response, Problem> {
    let format = Format::of(&params, &headers)?;
    let (entry, metadata) = cached::read::<ScheduleView>(&api, who, &params).await?;
    let now = api.db.now();
    let old = |dated: Dated| optimum::stale(now, dated.prices_as_of, dated.network_as_of);
    match format {
        Format::Json => cached::dated(&entry, metadata, old),
        Format::Csv => table(cached::part(&cached::aged(&entry, old)?)?),
    }
}

fn table(table: Table) -> Result<Response, Problem> {
    let warnings = table.warnings.join(" ");
    let is_empty = table.rows.is_empty();
    let of_all = [table.prices_as_of.into(), table.network_as_of.into(), warnings.as_str().into()];
    let lines = table.rows.into_iter().map(|row| [cells(row), of_all.to_vec()].concat());
    let mut response = csv::table("attachment; filename=\"schedule.csv\"", &COLUMNS, lines)?;
    if is_empty {
        let warnings = HeaderValue::try_from(warnings).map_err(|error| {
            error!(%error, "the warnings of a schedule cannot be sent");
            Problem::internal()
        })?;
        response.headers_mut().insert("x-warnings", warnings);
    }
    Ok(response)
}

fn cells(row: Row) -> Vec<Cell> {
    let count = |miners: u64| Cell::from(Decimal::from(miners));
    vec![
        row.start.into(),
        i64::from(row.seconds).into(),
        row.price_usd_mwh.into(),
        row.is_peak.to_string().as_str().into(),
        count(row.miners_online),
        count(row.miners_offline),
        row.kw.into(),
        row.power_cost_usd.into(),
        row.revenue_usd.into(),
        row.start_cost_usd.into(),
    ]
}
