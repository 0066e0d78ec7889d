//! Owns the manual cut: which running machines of a user, or of everybody, go off for a number of kilowatts.
//! Promises that measured figures count where there is telemetry, and a warning where there is none.
//! Called by the API: [`Request::read`] and [`running()`] in a transaction, [`Request::plan`] outside, since it takes time.

use std::collections::BTreeMap;

use chrono::{DateTime, TimeDelta, Utc};
use rust_decimal::Decimal;
use serde_json::{Map, Value, json};

use super::plan::{NewPlan, PlanKind, PlanRow};
use crate::domain::change::broken;
use crate::domain::input::{Low, Names};
use crate::domain::{Caller, CommandError, FieldError, Input};
use crate::economics::EconomicsError;
use crate::economics::curtailment::{Cut, CutCandidate, CutFilter, CutStrategy, cut};
use crate::identifier::UserId;

mod running;

use running::MOST_MACHINES;
pub use running::{Running, running};

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
/// How long ago it may begin: what was asked for a moment ago begins now.
const MAX_AGE: TimeDelta = TimeDelta::minutes(5);

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
        } else if starts_at < caller.now - MAX_AGE {
            let minutes = MAX_AGE.num_minutes();
            input.refuse(
                STARTS[0],
                format!("must be at most {minutes} minutes ago: leave it out to begin now"),
            );
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

    /// The plan: the machines that go off, and what the site draws while they are. Its power is at the meter: `pue` times
    /// that of the machines.
    ///
    /// # Errors
    /// [`CommandError::Invalid`] for more than what runs draws, and for a filter that lets too little through;
    /// [`CommandError::Rule`] `fleet-too-large` beyond 100,000 running machines.
    pub fn plan(&self, owner: UserId, running: &Running, pue: Decimal) -> Result<NewPlan, CommandError> {
        let candidates = &running.candidates;
        let online: i64 = candidates.iter().map(|c| i64::from(c.quantity)).sum();
        if online > MOST_MACHINES {
            let detail =
                format!("more than {MOST_MACHINES} machines run, and no more are ranked: narrow the users");
            return Err(broken("fleet-too-large", detail));
        }
        let (machines, of): (Vec<CutCandidate>, Vec<usize>) = (0..)
            .zip(candidates)
            .flat_map(|(n, c)| (0..c.quantity).map(move |_| (c.machine(pue), n)))
            .unzip();
        let total_w: Decimal = machines.iter().map(|machine| machine.power_w).sum();
        let power_kw = (total_w / Decimal::ONE_THOUSAND).normalize();
        if self.target_kw > power_kw {
            return Err(refused(TARGET, format!("must be at most {power_kw}, which is what runs draws")));
        }
        let filter = at_the_meter(&self.filter, pue);
        let done = cut(&machines, self.target_kw, self.strategy.order, &filter).map_err(out_of_range)?;
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
            miners_online: online - offline,
            miners_offline: offline,
            kw: (power_kw - done.cut_kw).normalize(),
            price_usd_mwh: None,
            power_cost_usd: None,
            revenue_usd: None,
            start_cost_usd: None,
            is_peak: None,
        };
        let detail = self.detail(&done, running, &of);
        let (kind, all_users) = (PlanKind::Cut, self.all_users);
        Ok(NewPlan { owner, kind, all_users, rows: vec![row], value_usd: None, detail })
    }

    fn detail(&self, done: &Cut, running: &Running, of: &[usize]) -> Value {
        let candidates = &running.candidates;
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
        let warnings: Vec<&str> =
            [(unmeasured, "no-telemetry"), (running.optimum_overlaps, "optimum-overlaps")]
                .into_iter()
                .filter_map(|(holds, warning)| holds.then_some(warning))
                .collect();
        json!({
            "target_kw": self.target_kw, "cut_kw": done.cut_kw, "strategy": self.strategy.name,
            "filter": self.filter, "miners": miners, "by_customer": done.by_customer, "warnings": warnings,
        })
    }
}

/// The same filter of machines whose power is that at the meter: its limits are those of the machine.
fn at_the_meter(filter: &CutFilter, pue: Decimal) -> CutFilter {
    let limit = |j_th: Option<Decimal>| j_th.map(|j_th| j_th.checked_mul(pue).unwrap_or(Decimal::MAX));
    CutFilter {
        min_efficiency_j_th: limit(filter.min_efficiency_j_th),
        max_efficiency_j_th: limit(filter.max_efficiency_j_th),
        ..filter.clone()
    }
}

fn refused(field: Names, message: String) -> CommandError {
    CommandError::Invalid(vec![FieldError::new(field[0], message)])
}

/// A figure that the columns' own checks should have kept out.
fn out_of_range(error: EconomicsError) -> CommandError {
    CommandError::Sql(sqlx::Error::Decode(Box::new(error)))
}
