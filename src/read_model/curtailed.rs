//! What the projection reads of plans and of the strike automation: which miners they hold off, and when.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use rust_decimal::Decimal;
use sqlx::PgConnection;
use sqlx::types::Json;
use uuid::Uuid;

use super::optimum::{Class, Group};
use crate::economics::catalogue::normalise;
use crate::identifier::UserId;

/// A time in which a miner is off on purpose, from a moment to before another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Off {
    pub from: DateTime<Utc>,
    pub to: DateTime<Utc>,
}

/// A miner that something may hold off.
#[derive(Debug, Clone, Copy)]
pub struct Candidate<'a> {
    pub id: Uuid,
    pub owner: &'a UserId,
    pub model: &'a str,
    /// Rated, TH/s.
    pub hashrate_ths: Decimal,
}

/// The end of a plan.
#[derive(Debug, Clone, sqlx::FromRow)]
struct Ending {
    ends_at: DateTime<Utc>,
    /// Given up before its end, at a moment that is not on record.
    stopped: bool,
    /// When its miners are back; nothing while it executes.
    recovered_at: Option<DateTime<Utc>>,
}

impl Ending {
    /// When miners are off that the plan has off at these times, which are in order: whoever is off as it ends is back when
    /// it has recovered. A plan whose end the clock has not seen goes on.
    fn held(&self, mut off: Vec<Off>) -> Vec<Off> {
        let back = self.recovered_at.unwrap_or(DateTime::<Utc>::MAX_UTC);
        off.retain(|off| off.from < back);
        if let Some(last) = off.last_mut()
            && (self.stopped || last.to >= self.ends_at)
        {
            last.to = back;
        }
        off
    }
}

#[derive(sqlx::FromRow)]
struct CutRow {
    miner_id: Uuid,
    starts_at: DateTime<Utc>,
    #[sqlx(flatten)]
    ending: Ending,
}

#[derive(sqlx::FromRow)]
struct OptimumRow {
    owner_id: UserId,
    starts_at: DateTime<Utc>,
    classes: Json<Vec<Class>>,
    groups: Json<Vec<Group>>,
    #[sqlx(flatten)]
    ending: Ending,
}

impl OptimumRow {
    /// When a miner may be off. An optimum says how many machines of a class run, not which: while one of them is off, all of
    /// them may be.
    fn off(&self, candidate: &Candidate<'_>) -> Vec<Off> {
        let classes = self.classes_of(candidate);
        let of_classes = self.groups.iter().filter(|group| classes.contains(&group.class));
        of_classes.flat_map(|group| self.ending.held(self.between_runs(group))).collect()
    }

    fn between_runs(&self, group: &Group) -> Vec<Off> {
        let starts = group.runs.iter().map(|run| run.from).chain([self.ending.ends_at]);
        let ends = [self.starts_at].into_iter().chain(group.runs.iter().map(|run| run.to));
        ends.zip(starts).filter(|(from, to)| from < to).map(|(from, to)| Off { from, to }).collect()
    }

    /// The classes that a miner may be in: there may be several of one model and hashrate that differ in their power.
    fn classes_of(&self, candidate: &Candidate<'_>) -> Vec<usize> {
        let model = normalise(candidate.model);
        let same =
            |class: &Class| class.hashrate_ths == candidate.hashrate_ths && normalise(&class.model) == model;
        (0..).zip(self.classes.iter()).filter_map(|(n, class)| same(class).then_some(n)).collect()
    }
}

#[derive(sqlx::FromRow)]
struct StrikeRow {
    owner_id: UserId,
    /// Since when it holds the site off; nothing while it does not.
    off_since: Option<DateTime<Utc>>,
    /// When it last let the site run again.
    resumed_at: Option<DateTime<Utc>>,
}

impl StrikeRow {
    fn off(&self) -> Option<Off> {
        match (self.off_since, self.resumed_at) {
            (Some(from), _) => Some(Off { from, to: DateTime::<Utc>::MAX_UTC }),
            (None, Some(to)) => Some(Off { from: DateTime::<Utc>::MIN_UTC, to }),
            (None, None) => None,
        }
    }
}

/// Plans that execute, recover, or did until a moment.
macro_rules! plans {
    ($columns:literal, $from:literal, $where:literal) => {
        concat!(
            "select ",
            $columns,
            ", p.starts_at, p.ends_at, p.stopped, p.recovered_at from ops_plan p",
            $from,
            " where (p.status in ('executing', 'recovery_pending') or p.recovered_at > $2) and ",
            $where
        )
    };
}

const CUTS: &str = plans!(
    "c.miner_id",
    " cross join lateral jsonb_to_recordset(p.detail -> 'miners') as c (miner_id uuid)",
    "p.kind = 'cut' and (p.all_users or p.owner_id = any($3)) and c.miner_id = any($1)"
);
const OPTIMA: &str = plans!(
    "p.owner_id, p.detail -> 'classes' as classes, p.detail -> 'groups' as groups",
    "",
    "p.kind = 'optimum' and p.owner_id = any($1)"
);

/// When plans and the strike automation hold each of these miners off, as far as that is not over since `since`; in no order.
/// Of the automation only the newest switch is on record: the time before one that let a site run counts as off.
pub async fn off(
    conn: &mut PgConnection,
    miners: &[Candidate<'_>],
    since: DateTime<Utc>,
) -> Result<HashMap<Uuid, Vec<Off>>, sqlx::Error> {
    let ids: Vec<Uuid> = miners.iter().map(|miner| miner.id).collect();
    let mut owners: Vec<&str> = miners.iter().map(|miner| miner.owner.as_str()).collect();
    owners.sort_unstable();
    owners.dedup();
    let mut off: HashMap<Uuid, Vec<Off>> = HashMap::new();
    let cuts: Vec<CutRow> =
        sqlx::query_as(CUTS).bind(&ids).bind(since).bind(&owners).fetch_all(&mut *conn).await?;
    for CutRow { miner_id, starts_at, ending } in cuts {
        let whole = Off { from: starts_at, to: ending.ends_at };
        off.entry(miner_id).or_default().extend(ending.held(vec![whole]));
    }
    let optima: Vec<OptimumRow> =
        sqlx::query_as(OPTIMA).bind(&owners).bind(since).fetch_all(&mut *conn).await?;
    let strikes: Vec<StrikeRow> = sqlx::query_as(
        "select owner_id, case when phase = 'curtailed' then since end as off_since, resumed_at from ops_strike \
         where owner_id = any($1) and (phase = 'curtailed' or resumed_at > $2)",
    )
    .bind(&owners)
    .bind(since)
    .fetch_all(conn)
    .await?;
    if optima.is_empty() && strikes.is_empty() {
        return Ok(off);
    }
    for miner in miners {
        let of_plans = optima.iter().filter(|plan| plan.owner_id == *miner.owner);
        let of_plans = of_plans.flat_map(|plan| plan.off(miner));
        let of_strikes = strikes.iter().filter(|strike| strike.owner_id == *miner.owner);
        let of_strikes = of_strikes.filter_map(StrikeRow::off);
        let held: Vec<Off> = of_plans.chain(of_strikes).collect();
        if !held.is_empty() {
            off.entry(miner.id).or_default().extend(held);
        }
    }
    Ok(off)
}

#[cfg(test)]
mod tests {
    use super::super::optimum::Run;
    use super::*;

    fn at(hour: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(hour * 3_600, 0).expect("a time")
    }

    fn off(from: i64, to: i64) -> Off {
        Off { from: at(from), to: at(to) }
    }

    fn ending(stopped: bool, recovered: Option<i64>) -> Ending {
        Ending { ends_at: at(10), stopped, recovered_at: recovered.map(at) }
    }

    #[test]
    fn whoever_is_off_as_a_plan_ends_is_back_when_it_has_recovered() {
        let forever = Off { from: at(8), to: DateTime::<Utc>::MAX_UTC };
        assert_eq!(ending(false, None).held(vec![off(2, 3), off(8, 10)]), [off(2, 3), forever]);
        assert_eq!(ending(false, None).held(vec![off(2, 3)]), [off(2, 3)]);
        assert_eq!(ending(false, Some(11)).held(vec![off(2, 3), off(8, 10)]), [off(2, 3), off(8, 11)]);
        assert_eq!(ending(false, Some(11)).held(vec![off(2, 3)]), [off(2, 3)]);
    }

    #[test]
    fn what_a_stopped_plan_had_ahead_is_not_off() {
        assert_eq!(ending(true, Some(5)).held(vec![off(2, 7), off(8, 10)]), [off(2, 5)]);
        assert_eq!(ending(true, Some(5)).held(vec![off(2, 4), off(8, 10)]), [off(2, 5)]);
        assert_eq!(ending(true, Some(5)).held(vec![off(8, 10)]), [] as [Off; 0]);
    }

    #[test]
    fn a_class_is_off_while_one_of_its_groups_is() {
        let group = |class, runs: &[(i64, i64)]| Group {
            model: "S21".to_owned(),
            class,
            miners: 1,
            runs: runs.iter().map(|(from, to)| Run { from: at(*from), to: at(*to) }).collect(),
        };
        let class = |model: &str, ths: i64, power_w: i64| Class {
            model: model.to_owned(),
            miners: 2,
            hashrate_ths: Decimal::from(ths),
            power_w: Decimal::from(power_w),
            strike_usd_mwh: Decimal::from(90),
        };
        let groups =
            vec![group(0, &[(0, 4), (6, 10)]), group(0, &[(0, 10)]), group(1, &[]), group(2, &[(1, 10)])];
        let plan = OptimumRow {
            owner_id: "ann".parse().expect("a user"),
            starts_at: at(0),
            classes: Json(vec![class("S21", 200, 3_500), class("S19", 100, 3_500), class("S21", 200, 3_000)]),
            groups: Json(groups),
            ending: ending(false, Some(11)),
        };
        let candidate = |model, ths: i64| Candidate {
            id: Uuid::nil(),
            owner: &plan.owner_id,
            model,
            hashrate_ths: Decimal::from(ths),
        };
        // Two classes of one model and hashrate: which of them it is nobody can say.
        assert_eq!(plan.off(&candidate("Antminer S21", 200)), [off(4, 6), off(0, 1)]);
        assert_eq!(plan.off(&candidate("S19", 100)), [off(0, 11)]);
        assert_eq!(plan.off(&candidate("S21", 210)), []);
    }
}
