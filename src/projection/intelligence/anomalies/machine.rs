//! A miner in a pass: which of its windows are to be judged, what it did in each, what its checks say.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};
use rust_decimal::prelude::ToPrimitive;

use crate::economics::anomaly::detector::{HOUR, WINDOW, window_end};
use crate::economics::anomaly::peers::PeerReading;
use crate::economics::anomaly::{Detector, Finding, Nameplate, Reading};
use crate::economics::catalogue::normalise;
use crate::projection::HandlerError;
use crate::projection::intelligence::service::Service;
use crate::read_model::anomaly_write::{Bucket, DueRow, Hour, Judged, MinerRow};
use crate::read_model::curtailed::Off;

/// Windows judged at once, but one miner's in any case: who has been away finishes a page before a statement takes too long.
const WINDOWS: i64 = 10_000;

/// The end of the first window that was not judged, and is no history.
fn first_window(row: &DueRow, since: DateTime<Utc>) -> DateTime<Utc> {
    row.judged_to.map_or(since, |judged| judged.max(since)) + WINDOW
}

/// From when points are to be read: the hour before what was judged is known, unless it is not on record or too old to follow
/// on.
pub(super) fn unread(row: &DueRow, since: DateTime<Utc>) -> DateTime<Utc> {
    let first = first_window(row, since);
    let known = row.hour.is_some() && row.judged_to.is_some_and(|judged| judged + WINDOW == first);
    first - if known { WINDOW } else { HOUR }
}

/// How many of these are a page.
pub(super) fn page_of(due: &[DueRow], since: DateTime<Utc>) -> usize {
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
pub(super) struct Machine {
    pub(super) miner: MinerRow,
    service: Service,
    nameplate: Nameplate,
    pub(super) detector: Detector,
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
    pub(super) fn new(
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
    pub(super) fn ends(&self) -> impl Iterator<Item = DateTime<Utc>> {
        let (first, last) = self.windows;
        self.buckets.keys().map(|start| *start + WINDOW).filter(move |end| (first..=last).contains(end))
    }

    /// What it did in the window of this end, if it is one to judge and it reported in it.
    pub(super) fn reading(&self, end: DateTime<Utc>) -> Option<Reading> {
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
    pub(super) fn peer(&self, reading: &Reading) -> PeerReading<'_> {
        let judged = self.service.duty(reading.end).is_judged();
        let rated = self.miner.hashrate_ths.to_f64().filter(|_| judged).unwrap_or(f64::NAN);
        PeerReading {
            site: self.miner.location.as_deref(),
            model: &self.miner.model,
            value: reading.hour_mean_ths / rated,
        }
    }

    pub(super) fn step(&mut self, reading: &Reading) -> Vec<Finding> {
        let duty = self.service.duty(reading.end);
        self.hour_mean_ths = duty.is_judged().then_some(reading.hour_mean_ths);
        self.detector.step(&self.nameplate, reading, duty)
    }

    pub(super) fn judged(&self) -> Judged<'_> {
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

#[cfg(test)]
mod tests {
    use rust_decimal::Decimal;
    use uuid::Uuid;

    use super::*;

    fn at(minutes: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(minutes * 60, 0).expect("a time")
    }

    /// A miner judged up to a moment, with or without the hour before it, whose newest point is from another.
    fn due(judged: i64, hour: bool, last_point: i64) -> DueRow {
        DueRow {
            miner: MinerRow {
                id: Uuid::nil(),
                model: "S21".to_owned(),
                location: None,
                hashrate_ths: Decimal::ONE,
                power_w: Decimal::ONE,
                quantity: 1,
                status: "online".to_owned(),
                status_changed_at: None,
            },
            judged_to: Some(at(judged)),
            state: None,
            hour: hour.then(|| sqlx::types::Json(Hour::new())),
            last_point_at: at(last_point),
        }
    }

    #[test]
    fn only_what_is_new_is_read_where_the_hour_before_is_known() {
        let since = at(60);
        assert_eq!(unread(&due(100, true, 106), since), at(100));
        assert_eq!(unread(&due(100, false, 106), since), at(45), "the hour before the first window's end");
        assert_eq!(unread(&due(60, true, 106), since), at(60));
        assert_eq!(unread(&due(55, true, 106), since), at(5), "what it knows ends too early");
    }

    #[test]
    fn a_page_has_so_many_windows_and_one_miner_at_least() {
        let since = at(60);
        let some = |count, row: &dyn Fn() -> DueRow| (0..count).map(|_| row()).collect::<Vec<_>>();
        assert_eq!(page_of(&[], since), 0);
        // One window each.
        assert_eq!(page_of(&some(5_000, &|| due(100, true, 106)), since), 5_000);
        // Twelve each, of an hour without the group.
        assert_eq!(page_of(&some(5_000, &|| due(60, true, 121)), since), 10_000 / 12);
        assert_eq!(page_of(&[due(100, true, 100 + 5 * 20_000)], since), 1);
    }
}
