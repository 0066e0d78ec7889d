//! Owns the rows of plans: what a plan and its steps are, and how they are read.
//! Promises names that are the same in JSON, in SQL and in events.
//! Called by the files of this folder, and by the API to read.

use chrono::{DateTime, Utc};
use rust_decimal::Decimal;
use serde::Serialize;
use serde_json::Value;
use uuid::Uuid;

use crate::db::TenantTx;
use crate::domain::CommandError;
use crate::economics::curtailment::{PlanStatus, UnknownPlanStatus};
use crate::identifier::UserId;

/// How a plan came about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PlanKind {
    /// The optimum over a price series.
    Optimum,
    /// A manual cut to a number of kilowatts.
    Cut,
}

impl PlanKind {
    /// The name in JSON, SQL and events.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Optimum => "optimum",
            Self::Cut => "cut",
        }
    }

    /// The field of a request that says when the plan ends.
    pub(super) fn field_of_its_end(self) -> &'static str {
        match self {
            Self::Optimum => "prices",
            Self::Cut => "ends_at",
        }
    }
}

/// [`PlanStatus`] as a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Status(pub PlanStatus);

impl TryFrom<String> for Status {
    type Error = UnknownPlanStatus;

    fn try_from(text: String) -> Result<Self, UnknownPlanStatus> {
        text.parse().map(Self)
    }
}

/// A plan as it is stored.
#[derive(Debug, Clone, PartialEq, Serialize, sqlx::FromRow)]
pub struct Plan {
    #[sqlx(rename = "id")]
    pub plan_id: Uuid,
    #[serde(rename = "user_id")]
    pub owner_id: UserId,
    pub kind: String,
    /// Whether it is a cut of everybody's machines.
    pub all_users: bool,
    #[sqlx(try_from = "String")]
    pub status: Status,
    pub status_reason: Option<String>,
    pub starts_at: DateTime<Utc>,
    pub ends_at: DateTime<Utc>,
    /// Most power of its rows, kW.
    pub peak_kw: Decimal,
    /// What the optimum is worth, USD.
    pub value_usd: Option<Decimal>,
    /// The figures of the optimum, or the miners of the cut. A plan from a list or from the clock comes without what can be
    /// large: `miners`, `classes`, `groups`.
    pub detail: Value,
    /// Whether it has miners off at this moment.
    pub curtailing: bool,
    /// Given up before its end.
    pub stopped: bool,
    /// When its miners are back.
    pub recovered_at: Option<DateTime<Utc>>,
    pub created_by: UserId,
    pub approved_by: Option<UserId>,
    pub created_at: DateTime<Utc>,
    pub updated_at: DateTime<Utc>,
}

impl Plan {
    /// Whether a user who is no admin may read it, and decide about it: their own, if it is about their machines only.
    pub fn is_seen_by(&self, user: &UserId) -> bool {
        self.owner_id == *user && !self.all_users
    }
}

/// One step of a plan.
#[derive(Debug, Clone, PartialEq, Serialize, sqlx::FromRow)]
pub struct PlanRow {
    #[serde(rename = "start")]
    pub starts_at: DateTime<Utc>,
    pub seconds: i32,
    pub miners_online: i64,
    pub miners_offline: i64,
    pub kw: Decimal,
    /// What follows is null for a cut.
    pub price_usd_mwh: Option<Decimal>,
    pub power_cost_usd: Option<Decimal>,
    pub revenue_usd: Option<Decimal>,
    pub start_cost_usd: Option<Decimal>,
    pub is_peak: Option<bool>,
}

/// Which plans a list shows.
#[derive(Debug, Clone, Copy, Default)]
pub struct Filter<'a> {
    pub owner: Option<&'a UserId>,
    pub status: Option<PlanStatus>,
    /// Also those of everybody's machines.
    pub all_users: bool,
}

/// The columns of a [`Plan`] of which many are read, or only its state counts: a cut of 100,000 machines is megabytes.
macro_rules! brief {
    () => {
        "id, owner_id, kind, all_users, status, status_reason, starts_at, ends_at, peak_kw, value_usd, \
         detail - 'miners' - 'classes' - 'groups' as detail, curtailing, stopped, recovered_at, created_by, approved_by, \
         created_at, updated_at"
    };
}
pub(super) use brief;

/// A plan of the tenant, whole.
pub async fn get(tx: &mut TenantTx, id: Uuid) -> Result<Plan, CommandError> {
    let found =
        sqlx::query_as("select * from ops_plan where id = $1").bind(id).fetch_optional(tx.conn()).await?;
    found.ok_or(CommandError::NotFound)
}

/// The rows of a plan, in their order.
pub async fn rows(tx: &mut TenantTx, id: Uuid) -> Result<Vec<PlanRow>, sqlx::Error> {
    sqlx::query_as("select * from ops_plan_row where plan_id = $1 order by starts_at")
        .bind(id)
        .fetch_all(tx.conn())
        .await
}

/// Up to `limit` plans in the order they were made, behind `after`, in brief.
pub async fn list(
    tx: &mut TenantTx,
    filter: Filter<'_>,
    after: Option<Uuid>,
    limit: i64,
) -> Result<Vec<Plan>, sqlx::Error> {
    sqlx::query_as(concat!(
        "select ",
        brief!(),
        " from ops_plan where ($1::text is null or owner_id = $1) and ($2::text is null or status = $2) \
         and ($3::uuid is null or id > $3) and ($5 or not all_users) order by id limit $4"
    ))
    .bind(filter.owner)
    .bind(filter.status.map(PlanStatus::as_str))
    .bind(after)
    .bind(limit)
    .bind(filter.all_users)
    .fetch_all(tx.conn())
    .await
}
