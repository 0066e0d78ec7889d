//! The book of a pass: the anomalies that are open, begin and end in it.

use std::collections::HashMap;

use rust_decimal::Decimal;
use uuid::Uuid;

use super::machine::Machine;
use crate::economics::anomaly::hysteresis::Change;
use crate::economics::anomaly::{AnomalyKind, Finding, Reading};
use crate::identifier::UserId;
use crate::projection::HandlerError;
use crate::projection::intelligence::figures::{News, Price, begun, recovered};
use crate::read_model::anomaly::Anomaly;

/// The anomalies of a pass, each in the order it began, and what is to be told of them.
pub(super) struct Book<'a> {
    owner: &'a UserId,
    pub(super) anomalies: Vec<Anomaly>,
    /// Where the open one of a miner and a check stands.
    open: HashMap<(Uuid, AnomalyKind), usize>,
    pub(super) news: Vec<News>,
}

impl<'a> Book<'a> {
    pub(super) fn new(owner: &'a UserId, anomalies: Vec<Anomaly>) -> Self {
        let place = |(at, anomaly): (usize, &Anomaly)| {
            Some(((anomaly.miner_id, AnomalyKind::named(&anomaly.kind)?), at))
        };
        let open = anomalies.iter().enumerate().filter_map(place).collect();
        Self { owner, anomalies, open, news: Vec::new() }
    }

    pub(super) fn enter(
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
