//! Owns the computing of an optimum from what is stored: prices of a market, a fleet, the newest network snapshot.
//! Promises that what is missing is named in the warnings and never assumed, and that the computing itself asks nothing.
//! Called by the projection of schedules and by the API; [`Basis::optimum`] takes time, away from threads that serve.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use rust_decimal::Decimal;
use serde::{Deserialize, Serialize};
use sqlx::PgConnection;
use sqlx::types::Json;
use uuid::Uuid;

use super::portfolio;
use super::portfolio_write::Snapshot;
use crate::economics::EconomicsError;
use crate::economics::age::is_stale;
use crate::economics::curtailment::fleet::merged;
use crate::economics::curtailment::{
    CurtailmentPlan, FleetGroup, PlanError, PlanMethod, PriceInterval, PriceSeries, Search, SiteTerms,
    fleet_site, price_series, searched_plan,
};
use crate::identifier::UserId;

/// The most steps of a horizon: a day of five minutes.
pub const MOST_STEPS: usize = 288;
/// The most classes of miners: the search visits classes times steps.
pub const MOST_CLASSES: usize = 40;

/// What an optimum is computed from.
#[derive(Debug, Clone)]
pub struct Basis {
    pub market: Option<String>,
    pub step_seconds: u32,
    pub terms: SiteTerms,
    /// The horizon, from the step that holds its beginning.
    pub from: DateTime<Utc>,
    pub to: DateTime<Utc>,
    /// The miners that run.
    pub fleet: Vec<FleetGroup>,
    pub network: Option<Snapshot>,
    pub prices: Prices,
}

/// Prices in the order in which they were received.
#[derive(Debug, Clone, Default)]
pub struct Prices {
    pub intervals: Vec<PriceInterval>,
    /// When the newest was received.
    pub as_of: Option<DateTime<Utc>>,
}

/// One step of a schedule.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    pub start: DateTime<Utc>,
    pub seconds: u32,
    /// With delivery, $/MWh.
    pub price_usd_mwh: Decimal,
    /// In the dearest quarter of the horizon.
    pub is_peak: bool,
    pub miners_online: u64,
    pub miners_offline: u64,
    pub kw: Decimal,
    pub power_cost_usd: Decimal,
    pub revenue_usd: Decimal,
    pub start_cost_usd: Decimal,
}

/// Miners of one rating.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Class {
    pub model: String,
    pub miners: u32,
    pub hashrate_ths: Decimal,
    /// At the meter, W.
    pub power_w: Decimal,
    /// The price above which running loses money.
    pub strike_usd_mwh: Decimal,
}

/// Miners that switch together.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Group {
    pub model: String,
    /// Position in `classes`.
    pub class: usize,
    pub miners: u32,
    /// When they are on.
    pub runs: Vec<Run>,
}

/// A time in which miners are on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Run {
    pub from: DateTime<Utc>,
    pub to: DateTime<Utc>,
}

/// An optimum; figures are null where there is no schedule, and the warnings say why.
#[derive(Debug, Clone, Default, PartialEq, Serialize, sqlx::FromRow)]
pub struct Optimum {
    pub market: Option<String>,
    pub starts_at: Option<DateTime<Utc>>,
    pub ends_at: Option<DateTime<Utc>>,
    pub step_seconds: Option<i32>,
    /// Revenue less energy and start costs, against a site that is off.
    pub value_usd: Option<Decimal>,
    /// No schedule is worth more.
    pub bound_usd: Option<Decimal>,
    pub gap_percent: Option<Decimal>,
    /// `exact` or `relaxation`.
    pub method: Option<String>,
    /// What it is worth to leave everything on; null where that breaks a limit.
    pub always_on_usd: Option<Decimal>,
    /// What it is worth to run whenever the price is below the strike; null where that breaks a limit.
    pub greedy_usd: Option<Decimal>,
    /// Starts of machines.
    pub starts: Option<i64>,
    pub classes: Json<Vec<Class>>,
    pub groups: Json<Vec<Group>>,
    pub rows: Json<Vec<Row>>,
    pub warnings: Json<Vec<String>>,
    /// When the newest price was received; null for prices of the request.
    pub prices_as_of: Option<DateTime<Utc>>,
    /// When the network snapshot was observed.
    pub network_as_of: Option<DateTime<Utc>>,
    pub snapshot_id: Option<Uuid>,
}

impl Basis {
    /// What it is computed from, without figures.
    pub fn without_schedule(&self) -> Optimum {
        Optimum {
            market: self.market.clone(),
            step_seconds: i32::try_from(self.step_seconds).ok(),
            prices_as_of: self.prices.as_of,
            network_as_of: self.network.as_ref().map(|snapshot| snapshot.observed_at),
            snapshot_id: self.network.as_ref().map(|snapshot| snapshot.id),
            ..Optimum::default()
        }
    }

    /// The optimum. Pure, and the longer the more steps and classes there are.
    ///
    /// # Errors
    /// Figures that cannot be computed from what is stored.
    pub fn optimum(&self, search: Search) -> Result<Optimum, EconomicsError> {
        let (from, to) = (self.from.timestamp(), self.to.timestamp());
        let series = price_series(&self.prices.intervals, from, to, self.step_seconds)?;
        let fleet = merged(self.fleet.clone());
        let mut optimum = self.without_schedule();
        let warnings = &mut optimum.warnings.0;
        let mut warn = |holds: bool, warning: &str| {
            if holds {
                warnings.push(warning.to_owned());
            }
        };
        warn(self.network.is_none(), "no-snapshot");
        let asked = self.market.is_some() || !self.prices.intervals.is_empty();
        warn(!asked, "no-market");
        warn(asked && series.prices.is_empty(), "no-prices");
        warn(!series.prices.is_empty() && !series.complete, "prices-incomplete");
        warn(fleet.is_empty(), "no-miners");
        warn(fleet.len() > MOST_CLASSES, "too-many-classes");
        let Some(snapshot) = &self.network else { return Ok(optimum) };
        if series.prices.is_empty() || fleet.is_empty() || fleet.len() > MOST_CLASSES {
            return Ok(optimum);
        }
        let site = fleet_site(&fleet, &snapshot.network, &self.terms, &series)?;
        let ratings = site.classes.iter().zip(&fleet);
        optimum.classes.0 = ratings
            .map(|(class, group)| Class {
                model: class.name.clone(),
                miners: class.miners,
                hashrate_ths: group.hashrate_ths,
                power_w: class.power_w,
                strike_usd_mwh: class.strike_usd_mwh,
            })
            .collect();
        match searched_plan(&site, search) {
            Ok(plan) => optimum.tell(&plan, &series),
            Err(PlanError::Infeasible) => optimum.warnings.0.push("limits-contradict".to_owned()),
            Err(PlanError::NotFound) => optimum.warnings.0.push("no-schedule-found".to_owned()),
            Err(PlanError::Economics(error)) => return Err(error),
        }
        Ok(optimum)
    }
}

impl Optimum {
    /// The same with a warning.
    pub fn warned(mut self, warning: &str) -> Self {
        self.warnings.0.push(warning.to_owned());
        self
    }

    fn tell(&mut self, plan: &CurtailmentPlan, series: &PriceSeries) {
        let at = |seconds: i64| DateTime::from_timestamp(series.start + seconds, 0).unwrap_or_default();
        let step = |n: usize| at(i64::from(series.step_seconds) * i64::try_from(n).unwrap_or_default());
        self.starts_at = Some(step(0));
        self.ends_at = Some(step(plan.rows.len()));
        self.value_usd = Some(plan.value_usd);
        self.bound_usd = Some(plan.bound_usd);
        self.gap_percent = Some((plan.gap * Decimal::ONE_HUNDRED).round_dp(6).normalize());
        let method = match plan.method {
            PlanMethod::Exact => "exact",
            PlanMethod::Relaxation => "relaxation",
        };
        self.method = Some(method.to_owned());
        self.always_on_usd = plan.always_on_usd;
        self.greedy_usd = plan.greedy_usd;
        self.starts = i64::try_from(plan.starts).ok();
        self.groups.0 = plan
            .groups
            .iter()
            .map(|group| Group {
                model: self.classes.get(group.class).map(|class| class.model.clone()).unwrap_or_default(),
                class: group.class,
                miners: group.miners,
                runs: group.runs.iter().map(|run| Run { from: step(run.from), to: step(run.to) }).collect(),
            })
            .collect();
        self.rows.0 = plan
            .rows
            .iter()
            .map(|row| Row {
                start: at(i64::try_from(row.offset_seconds).unwrap_or_default()),
                seconds: row.seconds,
                price_usd_mwh: row.price_usd_mwh,
                is_peak: row.is_peak,
                miners_online: row.miners_online,
                miners_offline: row.miners_offline,
                kw: row.kw,
                power_cost_usd: row.power_cost_usd,
                revenue_usd: row.revenue_usd,
                start_cost_usd: row.start_cost_usd,
            })
            .collect();
    }
}

/// What to know about figures of this age: they are true of then.
pub fn stale(
    now: DateTime<Utc>,
    prices_as_of: Option<DateTime<Utc>>,
    network_as_of: Option<DateTime<Utc>>,
) -> Vec<String> {
    let prices = prices_as_of.filter(|at| is_stale(*at, now)).map(|_| "prices-stale".to_owned());
    prices.into_iter().chain(portfolio::stale(now, network_as_of)).collect()
}

/// The newest prices of a market for a horizon, from the step that holds its beginning. How old they are is told by those
/// that reach into the horizon: what settles the hour before it says nothing of what is ahead.
pub async fn prices(
    conn: &mut PgConnection,
    market: &str,
    from: DateTime<Utc>,
    to: DateTime<Utc>,
) -> Result<Prices, sqlx::Error> {
    let rows: Vec<(i64, i32, Decimal, DateTime<Utc>)> = sqlx::query_as(
        "select extract(epoch from starts_at)::bigint, seconds, price_usd_mwh, received_at from power_price_newest \
         where market = $1 and starts_at > $2 - interval '2 hours' and starts_at < $3 \
         order by received_at, reception_id",
    )
    .bind(market)
    .bind(from)
    .bind(to)
    .fetch_all(conn)
    .await?;
    let reaches = |start: i64, seconds: i32| start + i64::from(seconds) > from.timestamp();
    Ok(Prices {
        as_of: rows
            .iter()
            .rev()
            .find(|(start, seconds, ..)| reaches(*start, *seconds))
            .map(|(.., received_at)| *received_at),
        intervals: rows
            .into_iter()
            .map(|(start, seconds, price_usd_mwh, _)| PriceInterval {
                start,
                seconds: u32::try_from(seconds).unwrap_or_default(),
                price_usd_mwh,
            })
            .collect(),
    })
}

/// The running miners of these owners.
pub async fn fleets(
    conn: &mut PgConnection,
    owners: &[&UserId],
) -> Result<HashMap<UserId, Vec<FleetGroup>>, sqlx::Error> {
    let owners: Vec<&str> = owners.iter().map(|owner| owner.as_str()).collect();
    let rows: Vec<(UserId, String, Decimal, Decimal, i64)> = sqlx::query_as(
        "select owner_id, model, hashrate_ths, power_w, sum(quantity)::bigint from miners \
         where owner_id = any($1) and removed_at is null and status = 'online' \
         group by owner_id, model, hashrate_ths, power_w order by owner_id, model, hashrate_ths, power_w",
    )
    .bind(owners)
    .fetch_all(conn)
    .await?;
    let mut fleets: HashMap<UserId, Vec<FleetGroup>> = HashMap::new();
    for (owner, model, hashrate_ths, power_w, miners) in rows {
        let miners = u32::try_from(miners).unwrap_or(u32::MAX);
        fleets.entry(owner).or_default().push(FleetGroup { model, hashrate_ths, power_w, miners });
    }
    Ok(fleets)
}
