//! Judges miners by their telemetry: one pass per owner and batch, each window of a miner once.
//!
//! A window of five minutes is over for a miner when a point from behind its end has come; what comes later for it is in the
//! table, but changes no judgement, nor the mean of the hour it is in. Windows are judged in order whatever the batches they came in, as far back as an hour:
//! what is older is history.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use rust_decimal::prelude::ToPrimitive;
use uuid::Uuid;

use super::figures::{Price, tell};
use crate::db::{Tenanted, WorkerTenant, WorkerTx};
use crate::economics::Assumptions;
use crate::economics::anomaly::Reading;
use crate::economics::anomaly::detector::{HOUR, WINDOW, window_end};
use crate::economics::anomaly::duty::START_UP;
use crate::economics::anomaly::peers::{PeerReading, peer_scores};
use crate::economics::anomaly::silence::STALE_AFTER;
use crate::event::{Event, kind};
use crate::identifier::{TenantId, UserId};
use crate::projection::{Dirty, EventHandler, HandlerError, REBUILT_AT_ONCE, Rebuilt};
use crate::read_model::anomaly_write::{self, Judged, MinerRow, PeerRow, Span};
use crate::read_model::curtailed::{self, Candidate};
use crate::read_model::portfolio_write;

mod book;
mod machine;

use book::Book;
use machine::{Machine, page_of, unread};

/// Miners judged at once: a fleet of any size needs no more memory.
const MINERS: i64 = 5_000;

/// Keeps the anomalies that readings tell.
pub(super) struct Anomalies {
    pub(super) assumptions: Assumptions,
}

/// What a batch tells of an owner.
struct Wanted {
    /// The newest point.
    to: DateTime<Utc>,
    /// The event that tells of it.
    event_id: Option<Uuid>,
}

#[async_trait]
impl EventHandler for Anomalies {
    fn consumes(&self, kind: &str) -> bool {
        kind == kind::MINER_TELEMETRY
    }

    async fn apply(&self, tx: &mut WorkerTx, events: &[&Event]) -> Result<Vec<Dirty>, HandlerError> {
        let mut by_tenant: BTreeMap<&TenantId, BTreeMap<&UserId, Wanted>> = BTreeMap::new();
        for event in events {
            let told = event.data.get("to").and_then(|to| to.as_str()?.parse().ok());
            let to = told.unwrap_or(event.occurred_at);
            let wanted = by_tenant.entry(&event.tenant_id).or_default().entry(&event.user_id);
            let wanted = wanted.or_insert(Wanted { to, event_id: None });
            *wanted = Wanted { to: wanted.to.max(to), event_id: Some(event.event_id) };
        }
        for (tenant, owners) in by_tenant {
            let mut tx = tx.within(tenant).await?;
            self.judge(&mut tx, tenant, owners).await?;
        }
        Ok(Vec::new())
    }

    /// What was judged stays judged: of a miner whose judgements are lost the last hour is judged anew.
    async fn rebuild(
        &self,
        tx: &mut WorkerTx,
        tenant: &TenantId,
        after: Option<&str>,
    ) -> Result<Rebuilt, HandlerError> {
        let mut tx = tx.within(tenant).await?;
        let to = tx.now();
        let owners = anomaly_write::owners(tx.conn(), after, REBUILT_AT_ONCE).await?;
        let wanted = owners.iter().map(|owner| (owner, Wanted { to, event_id: None })).collect();
        self.judge(&mut tx, tenant, wanted).await?;
        Ok(Rebuilt { dirty: Vec::new(), rows: owners.len(), last: owners.last().map(ToString::to_string) })
    }
}

impl Anomalies {
    async fn judge(
        &self,
        tx: &mut WorkerTenant<'_>,
        tenant: &TenantId,
        owners: BTreeMap<&UserId, Wanted>,
    ) -> Result<(), HandlerError> {
        let now = tx.now();
        let conn = tx.conn();
        // A replay comes through its own batch: the later of the two reads what the earlier one has judged.
        anomaly_write::lock(conn, tenant, owners.keys().copied()).await?;
        let newest = portfolio_write::newest_snapshot(conn).await?;
        let price = Price { newest: newest.as_ref(), assumptions: &self.assumptions, now };
        let not_air: BTreeSet<String> = anomaly_write::other_cooling(conn).await?.into_iter().collect();
        for (owner, wanted) in owners {
            let judge = Judge { tenant, owner, wanted: &wanted, price: &price, not_air: &not_air };
            while judge.some(tx).await? {}
        }
        Ok(())
    }
}

/// Judges the miners of one owner.
struct Judge<'a> {
    tenant: &'a TenantId,
    owner: &'a UserId,
    wanted: &'a Wanted,
    price: &'a Price<'a>,
    not_air: &'a BTreeSet<String>,
}

impl Judge<'_> {
    /// Judges some of the miners that have something new; false: it was all of them.
    async fn some(&self, tx: &mut WorkerTenant<'_>) -> Result<bool, HandlerError> {
        let conn = tx.conn();
        let since = window_end(self.price.now) - HOUR;
        let span = Span { since, to: self.wanted.to };
        let mut due = anomaly_write::due(conn, self.owner, span, WINDOW, MINERS).await?;
        let page = page_of(&due, since);
        let more = page < due.len() || i64::try_from(page) == Ok(MINERS);
        due.truncate(page);
        if due.is_empty() {
            return Ok(false);
        }
        let ids: Vec<Uuid> = due.iter().map(|row| row.miner.id).collect();
        let spans: Vec<(Uuid, DateTime<Utc>, DateTime<Utc>)> =
            due.iter().map(|row| (row.miner.id, unread(row, since), window_end(row.last_point_at))).collect();
        let mut buckets = anomaly_write::buckets(conn, &spans, WINDOW).await?;
        let open = anomaly_write::open(conn, &ids).await?;
        let miners: Vec<Candidate<'_>> = due.iter().map(|row| self.candidate(&row.miner)).collect();
        let mut off = curtailed::off(conn, &miners, since - START_UP).await?;
        let others = anomaly_write::others(conn, self.owner, &due, since - STALE_AFTER).await?;
        let known: HashSet<(Uuid, &str)> = open.iter().map(|a| (a.miner_id, a.kind.as_str())).collect();
        let mut machines = Vec::with_capacity(due.len());
        for row in due {
            let buckets = buckets.remove(&row.miner.id).unwrap_or_default();
            let off = off.remove(&row.miner.id).unwrap_or_default();
            let mut machine = Machine::new(row, since, (buckets, off), self.not_air)?;
            let id = machine.miner.id;
            machine.detector.reconcile(|kind| known.contains(&(id, kind.as_str())));
            machines.push(machine);
        }
        let mut book = Book::new(self.owner, open);
        let ends: BTreeSet<DateTime<Utc>> = machines.iter().flat_map(Machine::ends).collect();
        for end in ends {
            self.window(end, &mut machines, &others, &mut book)?;
        }
        anomaly_write::store(conn, self.tenant, &book.anomalies).await?;
        let judged: Vec<Judged<'_>> = machines.iter().map(Machine::judged).collect();
        anomaly_write::remember(conn, self.tenant, &judged).await?;
        tell(tx, &book.news, self.wanted.event_id).await?;
        Ok(more)
    }

    fn candidate<'a>(&'a self, miner: &'a MinerRow) -> Candidate<'a> {
        Candidate { id: miner.id, owner: self.owner, model: &miner.model, hashrate_ths: miner.hashrate_ths }
    }

    /// Judges every machine that has a reading in the window of this end.
    fn window(
        &self,
        end: DateTime<Utc>,
        machines: &mut [Machine],
        others: &[PeerRow],
        book: &mut Book<'_>,
    ) -> Result<(), HandlerError> {
        let with_reading = |(at, machine): (usize, &Machine)| Some((at, machine.reading(end)?));
        let mut readings: Vec<(usize, Reading)> =
            machines.iter().enumerate().filter_map(with_reading).collect();
        let near = |peer: &&PeerRow| (peer.judged_to - end).abs() <= STALE_AFTER;
        let of_machines = readings.iter().map(|(at, reading)| machines[*at].peer(reading));
        let of_others = others.iter().filter(near).map(|peer| PeerReading {
            site: peer.location.as_deref(),
            model: &peer.model,
            value: peer.hour_mean_ths / peer.hashrate_ths.to_f64().unwrap_or(f64::NAN),
        });
        let group: Vec<PeerReading<'_>> = of_machines.chain(of_others).collect();
        for ((_, reading), z) in readings.iter_mut().zip(peer_scores(&group)) {
            reading.peer_z = z;
        }
        for (at, reading) in readings {
            let machine = &mut machines[at];
            for finding in machine.step(&reading) {
                book.enter(machine, &reading, &finding, self.price)?;
            }
        }
        Ok(())
    }
}
