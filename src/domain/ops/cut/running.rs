//! Owns what a cut may take: the machines that run and that nothing else holds off while it lasts.
//! Promises to leave out what other cuts of these users hold, and that what was measured is of the hours in which it hashed.
//! Called by the API, in a transaction.

use chrono::{DateTime, Utc};
use rust_decimal::Decimal;
use uuid::Uuid;

use super::Request;
use crate::db::TenantTx;
use crate::domain::ops::settings::Tier;
use crate::economics::curtailment::CutCandidate;
use crate::identifier::UserId;

/// Running machines that are ranked at most.
pub(super) const MOST_MACHINES: i64 = 100_000;

/// What runs, as a cut sees it.
#[derive(Debug)]
pub struct Running {
    pub(super) candidates: Vec<Candidate>,
    /// Whether an optimum that was approved has part of the time: which machines it holds off nobody can say.
    pub(super) optimum_overlaps: bool,
}

/// Equal machines that run.
#[derive(Debug, sqlx::FromRow)]
pub(super) struct Candidate {
    pub(super) id: Uuid,
    pub(super) owner_id: UserId,
    pub(super) model: String,
    pub(super) location: Option<String>,
    pub(super) quantity: i32,
    pub(super) hashrate_ths: Decimal,
    pub(super) power_w: Decimal,
    #[sqlx(try_from = "String")]
    pub(super) tier: Tier,
    /// What telemetry says of the last 24 hours; null without any.
    pub(super) measured_ths: Option<Decimal>,
    pub(super) measured_w: Option<Decimal>,
    pub(super) uptime: Option<Decimal>,
}

impl Candidate {
    /// One of the machines, with its power at the meter. Without telemetry it does what it is rated for.
    pub(super) fn machine(&self, pue: Decimal) -> CutCandidate {
        CutCandidate {
            model: self.model.clone(),
            location: self.location.clone(),
            customer: self.owner_id.as_str().to_owned(),
            tier: self.tier.0,
            hashrate_ths: self.measured_ths.unwrap_or(self.hashrate_ths),
            rated_hashrate_ths: self.hashrate_ths,
            power_w: (self.measured_w.unwrap_or(self.power_w) * pue).normalize(),
            reference_power_w: (self.power_w * pue).normalize(),
            uptime: self.uptime.unwrap_or(Decimal::ONE),
        }
    }
}

/// The machines online of the user $1, or of everybody, less those that other cuts hold between $3 and $4, and without those
/// of a user whose automation holds the site off now, if the cut begins by now ($2). Hours in which a machine stood still for
/// a part say nothing of what it does when it runs; one that never ran without a break is measured by all its hours.
const CANDIDATES: &str = "select m.id, m.owner_id, m.model, m.location, \
       (m.quantity - coalesce(held.quantity, 0))::int as quantity, m.hashrate_ths, m.power_w, \
       coalesce(s.tier, 'standard') as tier, t.measured_ths, t.measured_w, t.uptime \
     from miners m \
     left join ops_settings s on s.tenant_id = m.tenant_id and s.owner_id = m.owner_id \
     left join (select c.miner_id, sum(c.quantity) as quantity from ops_plan p \
         cross join lateral jsonb_to_recordset(p.detail -> 'miners') as c (miner_id uuid, quantity bigint) \
         where p.kind = 'cut' and p.status in ('approved', 'executing') and p.starts_at < $4 and p.ends_at > $3 \
           and ($1::text is null or p.all_users or p.owner_id = $1) group by c.miner_id) held on held.miner_id = m.id \
     left join lateral (select \
         round(coalesce(sum(hashrate_ths_sum) filter (where hashrate_ths_min > 0) \
             / nullif(sum(points) filter (where hashrate_ths_min > 0), 0), \
           sum(hashrate_ths_sum) / sum(points))::numeric, 3) as measured_ths, \
         round(coalesce(sum(power_w_sum) filter (where hashrate_ths_min > 0) \
             / nullif(sum(power_points) filter (where hashrate_ths_min > 0), 0), \
           sum(power_w_sum) / nullif(sum(power_points), 0))::numeric, 3) as measured_w, \
         least(1, (count(*) filter (where hashrate_ths_max > 0)) \
           / (extract(epoch from date_trunc('hour', $2, 'UTC') - min(hour)) / 3600 + 1)) as uptime \
       from miner_telemetry_hourly h where h.tenant_id = m.tenant_id and h.miner_id = m.id \
         and h.hour > $2 - interval '24 hours' and h.hour <= $2 having count(*) > 0) t on true \
     where m.removed_at is null and m.status = 'online' and ($1::text is null or m.owner_id = $1) \
       and m.quantity > coalesce(held.quantity, 0) \
       and ($3 > $2 or not exists (select from ops_strike k where k.tenant_id = m.tenant_id \
         and k.owner_id = m.owner_id and k.phase = 'curtailed')) \
     order by m.id limit $5";

/// What of `owner`'s machines, or for a cut of everybody's of the whole tenant, runs during a cut, with what was measured in
/// the 24 hours before `now`.
pub async fn running(
    tx: &mut TenantTx,
    request: &Request,
    owner: &UserId,
    now: DateTime<Utc>,
) -> Result<Running, sqlx::Error> {
    let owner = (!request.all_users).then_some(owner);
    let candidates = sqlx::query_as(CANDIDATES)
        .bind(owner)
        .bind(now)
        .bind(request.starts_at)
        .bind(request.ends_at)
        // One more tells that there are too many.
        .bind(MOST_MACHINES + 1)
        .fetch_all(tx.conn())
        .await?;
    let optimum_overlaps = sqlx::query_scalar(
        "select exists (select from ops_plan where kind = 'optimum' and status in ('approved', 'executing') \
         and starts_at < $3 and ends_at > $2 and ($1::text is null or owner_id = $1))",
    )
    .bind(owner)
    .bind(request.starts_at)
    .bind(request.ends_at)
    .fetch_one(tx.conn())
    .await?;
    Ok(Running { candidates, optimum_overlaps })
}
