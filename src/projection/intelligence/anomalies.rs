//! Judges miners by their telemetry: one pass per owner and batch, each window of a miner once.
//!
//! A window of five minutes is over for a miner when a point from behind its end has come; what comes later for it is in the
//! table, but changes no judgement, nor the mean of the hour it is in. Windows are judged in order whatever the batches they came in, as far back as an hour:
//! what is older is history.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use rust_decimal::Decimal;
use rust_decimal::prelude::ToPrimitive;
use uuid::Uuid;

use super::figures::{News, Price, begun, recovered, tell};
use super::service::Service;
use crate::db::{Tenanted, WorkerTenant, WorkerTx};
use crate::economics::Assumptions;
use crate::economics::anomaly::detector::{HOUR, WINDOW, window_end};
use crate::economics::anomaly::duty::START_UP;
use crate::economics::anomaly::hysteresis::Change;
use crate::economics::anomaly::peers::{PeerReading, peer_scores};
use crate::economics::anomaly::silence::STALE_AFTER;
use crate::economics::anomaly::{AnomalyKind, Detector, Finding, Nameplate, Reading};
use crate::economics::catalogue::normalise;
use crate::event::{Event, kind};
use crate::identifier::{TenantId, UserId};
use crate::projection::{Dirty, EventHandler, HandlerError, REBUILT_AT_ONCE, Rebuilt};
use crate::read_model::anomaly::Anomaly;
use crate::read_model::anomaly_write::{self, Bucket, DueRow, Hour, Judged, MinerRow, PeerRow, Span};
use crate::read_model::curtailed::{self, Candidate, Off};
use crate::read_model::portfolio_write;

/// Miners judged at once: a fleet of any size needs no more memory.
const MINERS: i64 = 5_000;

/// Windows judged at once, but one miner's in any case: who has been away finishes a page before a statement takes too long.
const WINDOWS: i64 = 10_000;

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

/// The end of the first window that was not judged, and is no history.
fn first_window(row: &DueRow, since: DateTime<Utc>) -> DateTime<Utc> {
    row.judged_to.map_or(since, |judged| judged.max(since)) + WINDOW
}

/// From when points are to be read: the hour before what was judged is known, unless it is not on record or too old to follow
/// on.
fn unread(row: &DueRow, since: DateTime<Utc>) -> DateTime<Utc> {
    let first = first_window(row, since);
    let known = row.hour.is_some() && row.judged_to.is_some_and(|judged| judged + WINDOW == first);
    first - if known { WINDOW } else { HOUR }
}

/// How many of these are a page.
fn page_of(due: &[DueRow], since: DateTime<Utc>) -> usize {
    let windows = |row: &DueRow| {
        let span = window_end(row.last_point_at) - unread(row, since);
        span.num_seconds() / WINDOW.num_seconds()
    };
    let mut left = WINDOWS;
    let fits = |row: &&DueRow| {
        left -= windows(row);
        left >= 0
    };
    due.iter().take_while(fits).count().max(due.len().min(1))
}

/// A miner whose windows are judged.
struct Machine {
    miner: MinerRow,
    service: Service,
    nameplate: Nameplate,
    detector: Detector,
    buckets: BTreeMap<DateTime<Utc>, Bucket>,
    /// The windows of which an hour's mean is made: those known from before, and these.
    hour: Hour,
    /// Ends of the first and of the last window.
    windows: (DateTime<Utc>, DateTime<Utc>),
    last_point_at: DateTime<Utc>,
    /// Mean of the last hour that was judged.
    hour_mean_ths: Option<f64>,
}

impl Machine {
    fn new(
        row: DueRow,
        since: DateTime<Utc>,
        (buckets, off): (BTreeMap<DateTime<Utc>, Bucket>, Vec<Off>),
        not_air: &BTreeSet<String>,
    ) -> Result<Self, HandlerError> {
        let windows = (first_window(&row, since), window_end(row.last_point_at));
        let read_from = unread(&row, since);
        let DueRow { miner, state, hour, last_point_at, .. } = row;
        // What was judged with an hour is judged no other way by points that come later.
        let mut hour = hour.map(|hour| hour.0).unwrap_or_default();
        hour.retain(|start, _| *start < read_from);
        hour.extend(buckets.iter().map(|(start, bucket)| (*start, (bucket.points, bucket.hashrate_ths_sum))));
        Ok(Self {
            service: Service::of(&miner.status, miner.status_changed_at, off)?,
            nameplate: Nameplate {
                hashrate_ths: miner.hashrate_ths,
                power_w: miner.power_w,
                // A model that the catalogue does not know is taken for what most are.
                air_cooled: !not_air.contains(&normalise(&miner.model)),
            },
            detector: state.map(|state| state.0).unwrap_or_default(),
            buckets,
            hour,
            windows,
            last_point_at,
            hour_mean_ths: None,
            miner,
        })
    }

    /// The ends of the windows to judge in which it reported.
    fn ends(&self) -> impl Iterator<Item = DateTime<Utc>> {
        let (first, last) = self.windows;
        self.buckets.keys().map(|start| *start + WINDOW).filter(move |end| (first..=last).contains(end))
    }

    /// What it did in the window of this end, if it is one to judge and it reported in it.
    fn reading(&self, end: DateTime<Utc>) -> Option<Reading> {
        let (first, last) = self.windows;
        let bucket = self.buckets.get(&(end - WINDOW)).filter(|_| (first..=last).contains(&end))?;
        let hour = self.hour.range(end - HOUR..end).map(|(_, window)| window);
        let (points, sum) = hour.fold((0, 0.0), |(points, sum), (n, ths)| (points + n, sum + ths));
        Some(Reading {
            end,
            hashrate_ths: bucket.hashrate_ths_sum / bucket.points as f64,
            hour_mean_ths: sum / points as f64,
            power: bucket.power_at.zip(bucket.power_w_mean),
            temperature_c: bucket.temperature_c_max,
            peer_z: None,
        })
    }

    /// Itself as one of a group; one that is off on purpose is no measure for others.
    fn peer(&self, reading: &Reading) -> PeerReading<'_> {
        let judged = self.service.duty(reading.end).is_judged();
        let rated = self.miner.hashrate_ths.to_f64().filter(|_| judged).unwrap_or(f64::NAN);
        PeerReading {
            site: self.miner.location.as_deref(),
            model: &self.miner.model,
            value: reading.hour_mean_ths / rated,
        }
    }

    fn step(&mut self, reading: &Reading) -> Vec<Finding> {
        let duty = self.service.duty(reading.end);
        self.hour_mean_ths = duty.is_judged().then_some(reading.hour_mean_ths);
        self.detector.step(&self.nameplate, reading, duty)
    }

    fn judged(&self) -> Judged<'_> {
        Judged {
            miner_id: self.miner.id,
            judged_to: self.windows.1,
            last_point_at: self.last_point_at,
            hour_mean_ths: self.hour_mean_ths,
            state: &self.detector,
            hour: self
                .hour
                .range(self.windows.1 - HOUR..self.windows.1)
                .map(|(at, window)| (*at, *window))
                .collect(),
        }
    }
}

/// The anomalies of a pass, each in the order it began, and what is to be told of them.
struct Book<'a> {
    owner: &'a UserId,
    anomalies: Vec<Anomaly>,
    /// Where the open one of a miner and a check stands.
    open: HashMap<(Uuid, AnomalyKind), usize>,
    news: Vec<News>,
}

impl<'a> Book<'a> {
    fn new(owner: &'a UserId, anomalies: Vec<Anomaly>) -> Self {
        let place = |(at, anomaly): (usize, &Anomaly)| {
            Some(((anomaly.miner_id, AnomalyKind::named(&anomaly.kind)?), at))
        };
        let open = anomalies.iter().enumerate().filter_map(place).collect();
        Self { owner, anomalies, open, news: Vec::new() }
    }

    fn enter(
        &mut self,
        machine: &Machine,
        reading: &Reading,
        finding: &Finding,
        price: &Price<'_>,
    ) -> Result<(), HandlerError> {
        let key = (machine.miner.id, finding.kind);
        if finding.change == Some(Change::Opened) {
            self.open.insert(key, self.anomalies.len());
            self.anomalies.push(begun(self.owner, machine.miner.id, finding.kind, reading.end));
        }
        let Some(anomaly) = self.open.get(&key).and_then(|at| self.anomalies.get_mut(*at)) else {
            return Ok(());
        };
        if finding.bad {
            anomaly.level = finding.level.map(str::to_owned);
            anomaly.last_seen_at = reading.end;
            anomaly.measured = finding.measured;
            anomaly.expected = finding.expected;
            anomaly.score = finding.score;
            let (machines, rated_ths) = (machine.miner.quantity, machine.miner.hashrate_ths);
            if let Ok(measured_ths) = Decimal::try_from(reading.hour_mean_ths) {
                price.put_on(anomaly, machines, rated_ths, measured_ths)?;
            }
        }
        if finding.change == Some(Change::Resolved) {
            recovered(anomaly, reading.end);
            self.open.remove(&key);
        }
        if finding.change.is_some() {
            self.news.push(News::of(anomaly));
        }
        Ok(())
    }
}
