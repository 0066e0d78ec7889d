//! Owns the manual cut: which running machines of a user, or of everybody, go off for a number of kilowatts.
//! Promises that measured figures count where there is telemetry, and a warning where there is none.
//! Called by the API: [`Request::read`] and [`candidates`] in a transaction, [`Request::plan`] outside, since it takes time.

use std::collections::BTreeMap;

use chrono::{DateTime, TimeDelta, Utc};
use rust_decimal::Decimal;
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::plan::{NewPlan, PlanKind, PlanRow};
use super::settings::Tier;
use crate::db::TenantTx;
use crate::domain::change::broken;
use crate::domain::input::{Low, Names};
use crate::domain::{Caller, CommandError, FieldError, Input};
use crate::economics::EconomicsError;
use crate::economics::curtailment::{Cut, CutCandidate, CutFilter, CutStrategy, cut};
use crate::identifier::UserId;

const STRATEGY: Names = &["strategy"];
const TARGET: Names = &["target_kw"];
const STARTS: Names = &["starts_at"];
const ENDS: Names = &["ends_at"];
const FILTER: Names = &["filter"];
const ALL_USERS: Names = &["all_users"];

const MAX_KW: Decimal = Decimal::from_parts(100_000_000, 0, 0, false, 0);
/// How long a cut may last, and how far ahead it may begin.
const LONGEST: TimeDelta = TimeDelta::days(7);
const MAX_AHEAD: TimeDelta = TimeDelta::days(32);
/// Running machines that are ranked at most.
const MOST_MACHINES: i64 = 100_000;

/// A cut as it was asked for.
#[derive(Debug, Clone)]
pub struct Request {
    target_kw: Decimal,
    strategy: Strategy,
    filter: CutFilter,
    starts_at: DateTime<Utc>,
    ends_at: DateTime<Utc>,
    all_users: bool,
}

/// The order in which machines go off, by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Strategy {
    name: &'static str,
    order: CutStrategy,
    needs_filter: bool,
}

const STRATEGIES: [Strategy; 4] = [
    Strategy { name: "performance_priority", order: CutStrategy::PerformancePriority, needs_filter: false },
    Strategy { name: "customer_priority", order: CutStrategy::CustomerPriority, needs_filter: false },
    Strategy { name: "fair_distribution", order: CutStrategy::FairDistribution, needs_filter: false },
    Strategy { name: "custom", order: CutStrategy::PerformancePriority, needs_filter: true },
];

impl std::str::FromStr for Strategy {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        STRATEGIES
            .into_iter()
            .find(|strategy| strategy.name == text)
            .ok_or_else(|| format!("must be one of {}", STRATEGIES.map(|strategy| strategy.name).join(", ")))
    }
}

/// Equal machines that run, as a cut sees them.
#[derive(Debug, sqlx::FromRow)]
pub struct Candidate {
    id: Uuid,
    owner_id: UserId,
    model: String,
    location: Option<String>,
    quantity: i32,
    hashrate_ths: Decimal,
    power_w: Decimal,
    #[sqlx(try_from = "String")]
    tier: Tier,
    /// What telemetry says of the last 24 hours; null without any.
    measured_ths: Option<Decimal>,
    measured_w: Option<Decimal>,
    uptime: Option<Decimal>,
}

impl Request {
    /// Reads `target_kw`, `strategy` (performance_priority), `filter`, `starts_at` (now), `ends_at` and `all_users`.
    ///
    /// # Errors
    /// Every field that breaks a rule.
    pub fn read(caller: Caller<'_>, object: &Map<String, Value>) -> Result<Self, Vec<FieldError>> {
        let mut input = Input::new(object);
        let target = input.decimal(TARGET, Low::Above(Decimal::ZERO), MAX_KW);
        let target_kw = input.required(TARGET, target);
        let strategy = input.choice::<Strategy>(STRATEGY).value().unwrap_or(STRATEGIES[0]);
        let all_users = input.boolean(ALL_USERS).value().unwrap_or_default();
        let starts_at = input.timestamp(STARTS).value().unwrap_or(caller.now);
        let ends = input.timestamp(ENDS);
        let ends_at = input.required(ENDS, ends);
        if starts_at > caller.now + MAX_AHEAD {
            input.refuse(STARTS[0], format!("must be at most {} days ahead", MAX_AHEAD.num_days()));
        }
        if let Some(ends_at) = ends_at {
            if ends_at <= starts_at || ends_at <= caller.now {
                input.refuse(ENDS[0], "must be later than starts_at and than now");
            } else if ends_at - starts_at > LONGEST {
                input.refuse(ENDS[0], format!("must be at most {} days after starts_at", LONGEST.num_days()));
            }
        }
        let filter = match object.get(FILTER[0]) {
            None | Some(Value::Null) => CutFilter::default(),
            Some(given) => serde_json::from_value(given.clone()).unwrap_or_else(|error| {
                input.refuse(FILTER[0], error.to_string());
                CutFilter::default()
            }),
        };
        if strategy.needs_filter && filter == CutFilter::default() && !input.refused(FILTER) {
            input.refuse(FILTER[0], "is required by the strategy custom");
        }
        input.finish()?;
        let (Some(target_kw), Some(ends_at)) = (target_kw, ends_at) else { return Err(Vec::new()) };
        Ok(Self { target_kw, strategy, filter, starts_at, ends_at, all_users })
    }

    /// Whether it is about everybody's machines.
    pub fn all_users(&self) -> bool {
        self.all_users
    }

    /// The plan: the machines that go off, and what the site draws while they are.
    ///
    /// # Errors
    /// [`CommandError::Invalid`] for more than what runs draws, and for a filter that lets too little through;
    /// [`CommandError::Rule`] `fleet-too-large` beyond 100,000 running machines.
    pub fn plan(&self, owner: UserId, candidates: &[Candidate]) -> Result<NewPlan, CommandError> {
        let running: i64 = candidates.iter().map(|c| i64::from(c.quantity)).sum();
        if running > MOST_MACHINES {
            let detail =
                format!("{running} machines run, at most {MOST_MACHINES} are ranked: narrow the users");
            return Err(broken("fleet-too-large", detail));
        }
        let (machines, of): (Vec<CutCandidate>, Vec<usize>) =
            (0..).zip(candidates).flat_map(|(n, c)| (0..c.quantity).map(move |_| (c.machine(), n))).unzip();
        let total_w: Decimal = machines.iter().map(|machine| machine.power_w).sum();
        let power_kw = (total_w / Decimal::ONE_THOUSAND).normalize();
        if self.target_kw > power_kw {
            return Err(refused(TARGET, format!("must be at most {power_kw}, which is what runs draws")));
        }
        let done = cut(&machines, self.target_kw, self.strategy.order, &self.filter).map_err(out_of_range)?;
        if !done.reached {
            let message = format!(
                "lets through {} kW less than target_kw: widen it, or cut less",
                done.missing_kw.normalize()
            );
            return Err(refused(FILTER, message));
        }
        let offline = i64::try_from(done.off.len()).unwrap_or(i64::MAX);
        let row = PlanRow {
            starts_at: self.starts_at,
            seconds: i32::try_from((self.ends_at - self.starts_at).num_seconds().max(1)).unwrap_or(i32::MAX),
            miners_online: running - offline,
            miners_offline: offline,
            kw: (power_kw - done.cut_kw).normalize(),
            price_usd_mwh: None,
            power_cost_usd: None,
            revenue_usd: None,
            start_cost_usd: None,
            is_peak: None,
        };
        let detail = self.detail(&done, candidates, &of);
        let (kind, all_users) = (PlanKind::Cut, self.all_users);
        Ok(NewPlan { owner, kind, all_users, rows: vec![row], value_usd: None, detail })
    }

    fn detail(&self, done: &Cut, candidates: &[Candidate], of: &[usize]) -> Value {
        let mut off: BTreeMap<usize, u32> = BTreeMap::new();
        for machine in &done.off {
            if let Some(candidate) = of.get(*machine) {
                *off.entry(*candidate).or_default() += 1;
            }
        }
        let miners: Vec<Value> = off
            .iter()
            .filter_map(|(n, quantity)| {
                Some(json!({"miner_id": candidates.get(*n)?.id, "quantity": quantity}))
            })
            .collect();
        let unmeasured = candidates.iter().any(|candidate| candidate.uptime.is_none());
        let warnings: &[&str] = if unmeasured { &["no-telemetry"] } else { &[] };
        json!({
            "target_kw": self.target_kw, "cut_kw": done.cut_kw, "strategy": self.strategy.name,
            "filter": self.filter, "miners": miners, "by_customer": done.by_customer, "warnings": warnings,
        })
    }
}

impl Candidate {
    /// One of the machines. Without telemetry it does what it is rated for.
    fn machine(&self) -> CutCandidate {
        CutCandidate {
            model: self.model.clone(),
            location: self.location.clone(),
            customer: self.owner_id.as_str().to_owned(),
            tier: self.tier.0,
            hashrate_ths: self.measured_ths.unwrap_or(self.hashrate_ths),
            rated_hashrate_ths: self.hashrate_ths,
            power_w: self.measured_w.unwrap_or(self.power_w),
            reference_power_w: self.power_w,
            uptime: self.uptime.unwrap_or(Decimal::ONE),
        }
    }
}

fn refused(field: Names, message: String) -> CommandError {
    CommandError::Invalid(vec![FieldError::new(field[0], message)])
}

/// A figure that the columns' own checks should have kept out.
fn out_of_range(error: EconomicsError) -> CommandError {
    CommandError::Sql(sqlx::Error::Decode(Box::new(error)))
}

/// The running machines of a user, or of the whole tenant, with what was measured in the 24 hours before `now`.
pub async fn candidates(
    tx: &mut TenantTx,
    owner: Option<&UserId>,
    now: DateTime<Utc>,
) -> Result<Vec<Candidate>, sqlx::Error> {
    sqlx::query_as(
        "select m.id, m.owner_id, m.model, m.location, m.quantity, m.hashrate_ths, m.power_w, \
           coalesce(s.tier, 'standard') as tier, t.measured_ths, t.measured_w, t.uptime \
         from miners m \
         left join ops_settings s on s.tenant_id = m.tenant_id and s.owner_id = m.owner_id \
         left join (select miner_id, (sum(hashrate_ths_sum) / sum(points))::numeric as measured_ths, \
             (sum(power_w_sum) / nullif(sum(power_points), 0))::numeric as measured_w, \
             least(1, (count(*) filter (where hashrate_ths_max > 0)) \
               / (extract(epoch from date_trunc('hour', $2, 'UTC') - min(hour)) / 3600 + 1)) as uptime \
           from miner_telemetry_hourly where hour > $2 - interval '24 hours' and hour <= $2 group by miner_id) t \
           on t.miner_id = m.id \
         where m.removed_at is null and m.status = 'online' and ($1::text is null or m.owner_id = $1) order by m.id",
    )
    .bind(owner)
    .bind(now)
    .fetch_all(tx.conn())
    .await
}
