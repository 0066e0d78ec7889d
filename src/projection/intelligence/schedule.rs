//! Owns the computing of schedules when prices, miners, settings or the network change.
//! Promises one computation per owner and batch, and a bounded number of them in a transaction: the others are left to
//! the job ops-schedules.
//! Called by the group; [`compute_left`] by the job.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use async_trait::async_trait;
use chrono::{DateTime, TimeDelta, Utc};
use sqlx::PgConnection;
use tracing::warn;
use uuid::Uuid;

use crate::db::{TenantTx, Tenanted, WorkerTx};
use crate::economics::Assumptions;
use crate::economics::curtailment::Search;
use crate::event::{Event, kind};
use crate::identifier::{TenantId, UserId};
use crate::projection::portfolio::owners_of;
use crate::projection::{Dirty, EventHandler, HandlerError, Owner, Rebuilt, Row};
use crate::read_model::optimum::{self, Basis, Prices};
use crate::read_model::{portfolio_write, schedule, schedule_write};

/// How far a schedule looks ahead.
const HORIZON: TimeDelta = TimeDelta::hours(24);
/// How many schedules are computed in the transaction of a batch. A network snapshot concerns every user of a tenant, and
/// a batch holds up its partition.
const AT_ONCE: usize = 16;

/// Keeps the read model `ops_schedule`.
pub(super) struct ScheduleHandler {
    pub(super) assumptions: Assumptions,
}

/// What a batch asks for in one tenant: each with the last event that concerns it.
#[derive(Default)]
struct Wanted {
    owners: BTreeMap<UserId, Uuid>,
    markets: BTreeMap<String, Uuid>,
    /// A network snapshot, which concerns everybody.
    all: Option<Uuid>,
}

impl Wanted {
    fn note(&mut self, event: &Event) {
        match event.kind.as_str() {
            kind::NETWORK_SNAPSHOT => self.all = Some(event.event_id),
            kind::OPS_PRICE_RECEIVED => {
                if let Some(market) = event.data.get("market").and_then(|market| market.as_str()) {
                    self.markets.insert(market.to_owned(), event.event_id);
                }
            }
            _ => self.owners.extend(owners_of(event).into_iter().map(|owner| (owner, event.event_id))),
        }
    }

    /// The users with settings that the batch concerns, each with one of the events that do; first those whom an event names.
    async fn concerned(&self, conn: &mut PgConnection) -> Result<Vec<(UserId, Uuid)>, sqlx::Error> {
        let wanted = schedule_write::Wanted {
            all: self.all.is_some(),
            owners: self.owners.keys().cloned().collect(),
            markets: self.markets.keys().cloned().collect(),
        };
        let found = schedule_write::concerned(conn, &wanted).await?;
        let cause = |owner: &UserId, market: Option<String>| {
            let of_market = market.and_then(|market| self.markets.get(&market).copied());
            self.owners.get(owner).copied().or(of_market).or(self.all)
        };
        let mut asked: Vec<(UserId, Uuid)> = found
            .into_iter()
            .filter_map(|(owner, market)| Some((owner.clone(), cause(&owner, market)?)))
            .collect();
        asked.sort_by_key(|(owner, _)| !self.owners.contains_key(owner));
        Ok(asked)
    }
}

/// How many of the schedules that each tenant asks for are computed at once: an equal part of the room each, and of what some
/// leave more for the others.
fn shared(asked: &[usize], mut room: usize) -> Vec<usize> {
    let mut shares = vec![0; asked.len()];
    let mut modest_first: Vec<usize> = (0..asked.len()).collect();
    modest_first.sort_by_key(|tenant| asked[*tenant]);
    for (n, tenant) in modest_first.into_iter().enumerate() {
        let share = asked[tenant].min(room.div_ceil(asked.len() - n));
        (shares[tenant], room) = (share, room - share);
    }
    shares
}

#[async_trait]
impl EventHandler for ScheduleHandler {
    fn consumes(&self, kind: &str) -> bool {
        schedule::KINDS.contains(&kind)
    }

    fn owners(&self, events: &[&Event]) -> BTreeSet<Owner> {
        let mut named = BTreeSet::new();
        for event in events.iter().filter(|event| self.consumes(&event.kind)) {
            let mut wanted = Wanted::default();
            wanted.note(event);
            named.extend(wanted.owners.into_keys().map(|user_id| Owner {
                tenant_id: event.tenant_id.clone(),
                user_id,
                read_model: schedule::NAME,
            }));
        }
        named
    }

    async fn apply(&self, tx: &mut WorkerTx, events: &[&Event]) -> Result<Vec<Dirty>, HandlerError> {
        let mut by_tenant: BTreeMap<&TenantId, Wanted> = BTreeMap::new();
        for event in events.iter().filter(|e| self.consumes(&e.kind)) {
            by_tenant.entry(&event.tenant_id).or_default().note(event);
        }
        let mut asked = Vec::with_capacity(by_tenant.len());
        for (tenant, wanted) in by_tenant {
            let mut tx = tx.within(tenant).await?;
            asked.push((tenant, wanted.concerned(tx.conn()).await?));
        }
        let shares = shared(&asked.iter().map(|(_, owners)| owners.len()).collect::<Vec<_>>(), AT_ONCE);
        let mut dirty = Vec::new();
        for ((tenant, mut owners), share) in asked.into_iter().zip(shares) {
            let left: BTreeMap<UserId, Uuid> = owners.split_off(share).into_iter().collect();
            let at_once: BTreeMap<UserId, Option<Uuid>> =
                owners.into_iter().map(|(owner, event)| (owner, Some(event))).collect();
            if at_once.is_empty() && left.is_empty() {
                continue;
            }
            let mut tx = tx.within(tenant).await?;
            if !at_once.is_empty() {
                dirty.extend(recompute(&mut tx, &self.assumptions, &at_once).await?);
            }
            if !left.is_empty() {
                schedule_write::leave(tx.conn(), tenant, &left).await?;
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
        let mut tx = tx.within(tenant).await?;
        let owners =
            schedule_write::owners(tx.conn(), after, i64::try_from(AT_ONCE).unwrap_or(i64::MAX)).await?;
        let (rows, last) = (owners.len(), owners.last().map(ToString::to_string));
        let owners = owners.into_iter().map(|owner| (owner, None)).collect();
        Ok(Rebuilt { dirty: recompute(&mut tx, &self.assumptions, &owners).await?, rows, last })
    }
}

/// Computes the schedule that was left longest in this tenant, of those left by a moment; nothing if there is none. One that
/// is asked for again meanwhile is left anew.
///
/// # Errors
/// A statement that failed; the transaction must be rolled back.
pub async fn compute_left(
    tx: &mut TenantTx,
    assumptions: &Assumptions,
    by: DateTime<Utc>,
) -> Result<Option<Vec<Dirty>>, HandlerError> {
    let Some(owner) = schedule_write::left_longest(tx.conn(), by).await? else { return Ok(None) };
    let tenant = tx.tenant().clone();
    // Before anything is read, as everybody who computes it: an event that asks for it later leaves it again.
    schedule_write::lock(tx.conn(), &tenant, std::iter::once(&owner)).await?;
    let Some(event_id) = schedule_write::left_with(tx.conn(), &owner).await? else {
        return Ok(Some(Vec::new()));
    };
    let dirty = recompute(tx, assumptions, &BTreeMap::from([(owner.clone(), Some(event_id))])).await?;
    schedule_write::caught_up(tx.conn(), &owner, event_id).await?;
    Ok(Some(dirty))
}

/// With each owner goes the event that asks for the schedule, if one does.
async fn recompute<T: Tenanted>(
    tx: &mut T,
    assumptions: &Assumptions,
    owners: &BTreeMap<UserId, Option<Uuid>>,
) -> Result<Vec<Dirty>, HandlerError> {
    // Prices, miners and the network come through different partitions: whoever computes a schedule later reads
    // what the earlier one was told.
    let tenant = tx.tenant().clone();
    schedule_write::lock(tx.conn(), &tenant, owners.keys()).await?;
    let now = tx.now();
    let conn = tx.conn();
    let names: Vec<&UserId> = owners.keys().collect();
    let sites = schedule_write::sites(conn, &names, assumptions).await?;
    let mut fleets = optimum::fleets(conn, &names).await?;
    let network = portfolio_write::newest_snapshot(conn).await?;
    let mut prices: HashMap<String, Prices> = HashMap::new();
    let mut dirty = Vec::with_capacity(sites.len());
    for site in sites {
        let Some(event_id) = owners.get(&site.owner) else { continue };
        let to = now + HORIZON;
        let of_market = match &site.market {
            None => Prices::default(),
            Some(market) => match prices.get(market) {
                Some(known) => known.clone(),
                None => {
                    let read = optimum::prices(conn, market, now, to).await?;
                    prices.entry(market.clone()).or_insert(read).clone()
                }
            },
        };
        let basis = Basis {
            market: site.market,
            step_seconds: site.step_seconds,
            terms: site.terms,
            from: now,
            to,
            fleet: fleets.remove(&site.owner).unwrap_or_default(),
            network: network.clone(),
            prices: of_market,
        };
        let unknown = basis.without_schedule();
        // Away from the threads that serve. Brief, because the transaction holds locks meanwhile and the next price
        // comes soon: whoever wants more asks for the optimum.
        let computed = tokio::task::spawn_blocking(move || basis.optimum(Search::Brief))
            .await
            .map_err(|panic| HandlerError::Panic(panic.to_string()))?;
        // One user's figures do not keep the others from theirs.
        let optimum = computed.unwrap_or_else(|error| {
            warn!(%tenant, user = %site.owner, %error, "a schedule cannot be computed from what is stored");
            unknown.warned("out-of-range")
        });
        let version = schedule_write::store(conn, &tenant, &site.owner, &optimum, *event_id).await?;
        dirty.push(Dirty { tenant_id: tenant.clone(), row: Row::Schedule(site.owner), version });
    }
    Ok(dirty)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn event(kind: &str, user: &str, data: serde_json::Value) -> Event {
        Event {
            event_id: Uuid::now_v7(),
            kind: kind.to_owned(),
            version: 1,
            tenant_id: "t".parse().expect("a tenant"),
            user_id: user.parse().expect("a user"),
            entity_id: "e".parse().expect("an entity"),
            occurred_at: DateTime::default(),
            data,
            text: String::new(),
        }
    }

    #[test]
    fn tenants_share_the_room() {
        for (asked, expected) in [
            (vec![], vec![]),
            (vec![20], vec![16]),
            (vec![20, 1], vec![15, 1]),
            (vec![20, 20, 2], vec![7, 7, 2]),
            (vec![3, 4], vec![3, 4]),
            (vec![5, 9, 0, 5, 5], vec![4, 4, 0, 4, 4]),
        ] {
            assert_eq!(shared(&asked, AT_ONCE), expected, "{asked:?}");
        }
        // More of them than there is room: none is refused for good, what is left the job computes.
        let many = shared(&[1; 20], AT_ONCE);
        assert_eq!((many.iter().sum::<usize>(), many.iter().max()), (AT_ONCE, Some(&1)));
    }

    #[test]
    fn a_batch_names_each_owner_and_market_once() {
        let given_away = json!({"changes": {"owner_id": {"old": "ann", "new": "bob"}}});
        let events = [
            event(kind::OPS_PRICE_RECEIVED, "desk", json!({"market": "WEST"})),
            event(kind::OPS_PRICE_RECEIVED, "desk", json!({"market": "WEST"})),
            event(kind::MINER_UPDATED, "bob", given_away),
            event(kind::OPS_SETTINGS_CHANGED, "bob", json!({})),
        ];
        let mut wanted = Wanted::default();
        events.iter().for_each(|event| wanted.note(event));
        assert_eq!(wanted.markets, BTreeMap::from([("WEST".to_owned(), events[1].event_id)]));
        let owners: Vec<_> = wanted.owners.iter().map(|(owner, event)| (owner.as_str(), *event)).collect();
        assert_eq!(owners, [("ann", events[2].event_id), ("bob", events[3].event_id)]);
        assert_eq!(wanted.all, None, "the desk has no fleet because of its prices");
    }
}
