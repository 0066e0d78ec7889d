//! Owns what snapshots of the network say about difficulty epochs: the present one and the retargets so far.
//! Promises that blocks nobody watched are taken at the target rate, so that not knowing projects no change.
//! May be called by every module; needs nothing but its arguments.

use super::super::difficulty::{BLOCK_SECONDS, EPOCH_BLOCKS, epoch_blocks_done};
use super::super::mining::check_difficulty;
use super::float;
use chrono::{DateTime, TimeDelta, Utc};
use rust_decimal::Decimal;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Retargets that count for growth and spread: about a year.
pub const MAX_RETARGETS: usize = 26;
/// Blocks before an observed pace counts: a day's worth, whose mean has a relative standard deviation of 8.3 %.
const MIN_PACE_BLOCKS: u64 = 144;
/// Retargets move the difficulty by a factor of 4 at most (consensus), give or take the digits of a source.
const MAX_CHANGE: f64 = 1.387;

/// One snapshot of the chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChainPoint {
    /// When it was observed.
    pub at: DateTime<Utc>,
    /// Height of the newest block then.
    pub block_height: u64,
    /// Difficulty then, as a plain number.
    pub difficulty: Decimal,
}

/// Where the network stands in its difficulty epoch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EpochView {
    /// The newest snapshot.
    pub now: ChainPoint,
    /// When the epoch began, as far as snapshots tell.
    pub started_at: DateTime<Utc>,
    /// Blocks of the epoch whose pace the snapshots show, 0..=2015.
    pub watched_blocks: u32,
    /// Seconds per block for the rest of the epoch: as observed over at least 144 blocks, else the target of 600;
    /// 150..=2400 as the retarget is clamped.
    pub block_seconds: f64,
}

impl EpochView {
    /// View from snapshots in any order; the newest is the present. `None` without one, or at the
    /// ends of the calendar.
    ///
    /// The beginning of the epoch lies between the last snapshot before and the first one in it, in proportion to their
    /// heights, if they are at most an epoch apart. Otherwise only the blocks since the first snapshot of the epoch are
    /// watched, and those before it are taken at the target rate.
    #[must_use]
    pub fn of(points: &[ChainPoint]) -> Option<Self> {
        let now = *points.iter().max_by_key(|point| (point.at, point.block_height))?;
        let first_block = now.block_height - now.block_height % u64::from(EPOCH_BLOCKS);
        let inside = |point: &&ChainPoint| {
            (first_block..=now.block_height).contains(&point.block_height) && point.at <= now.at
        };
        let first_seen = *points.iter().filter(inside).min_by_key(|point| (point.block_height, point.at))?;
        let before = points
            .iter()
            .filter(|point| point.block_height < first_block && point.at < first_seen.at)
            .max_by_key(|point| (point.block_height, point.at));
        let (started_at, watched_from) = match before.and_then(|b| crossing(b, &first_seen, first_block)) {
            Some(at) => (at, ChainPoint { at, block_height: first_block, ..now }),
            None => (at_target_before(&first_seen, first_block)?, first_seen),
        };
        let watched = now.block_height - watched_from.block_height;
        let seconds = now.at.signed_duration_since(watched_from.at).num_seconds();
        let target = BLOCK_SECONDS as f64;
        let pace = if watched >= MIN_PACE_BLOCKS { seconds as f64 / watched as f64 } else { target };
        Some(Self {
            now,
            started_at,
            // Below 2016, so the conversion keeps its value.
            watched_blocks: watched as u32,
            block_seconds: pace.clamp(target / 4.0, target * 4.0),
        })
    }

    /// Blocks found since the first of the epoch, 0..=2015: those that took [`EpochView::elapsed_seconds`].
    #[must_use]
    pub fn blocks_since_start(&self) -> u32 {
        epoch_blocks_done(self.now.block_height) - 1
    }

    /// Blocks until the next retarget, 0..=2015.
    #[must_use]
    pub fn blocks_left(&self) -> u32 {
        EPOCH_BLOCKS - epoch_blocks_done(self.now.block_height)
    }

    /// Seconds since the epoch began, 0 if clocks disagree.
    #[must_use]
    pub fn elapsed_seconds(&self) -> u64 {
        u64::try_from(self.now.at.signed_duration_since(self.started_at).num_seconds()).unwrap_or(0)
    }

    /// Share of the epoch's blocks whose pace is not known, 0..=1.
    #[must_use]
    pub fn unwatched_share(&self) -> f64 {
        1.0 - f64::from(self.watched_blocks.min(EPOCH_BLOCKS)) / f64::from(EPOCH_BLOCKS)
    }
}

/// When `block` came, in proportion between a snapshot below it and one at or above it.
fn crossing(below: &ChainPoint, above: &ChainPoint, block: u64) -> Option<DateTime<Utc>> {
    let blocks = above.block_height.checked_sub(below.block_height)?;
    if blocks == 0 || blocks > u64::from(EPOCH_BLOCKS) {
        return None;
    }
    let seconds = above.at.signed_duration_since(below.at).num_seconds();
    let share = block.checked_sub(below.block_height)? as f64 / blocks as f64;
    below.at.checked_add_signed(TimeDelta::try_seconds((seconds as f64 * share) as i64)?)
}

/// When `block` came if all blocks from it to the snapshot came at the target rate.
fn at_target_before(seen: &ChainPoint, block: u64) -> Option<DateTime<Utc>> {
    let seconds = seen.block_height.checked_sub(block)?.checked_mul(BLOCK_SECONDS)?;
    seen.at.checked_sub_signed(TimeDelta::try_seconds(i64::try_from(seconds).ok()?)?)
}

/// Logarithms of the last retargets' factors, oldest first, at most 26, from snapshots in any order.
///
/// The newest snapshot of an epoch gives its difficulty. Only neighbouring epochs count, and only changes that consensus
/// allows: what is left out is a hole in the snapshots or an error in them.
#[must_use]
pub fn retarget_changes(points: &[ChainPoint]) -> Vec<f64> {
    let mut epochs: BTreeMap<u64, &ChainPoint> = BTreeMap::new();
    for point in points.iter().filter(|point| check_difficulty(point.difficulty).is_ok()) {
        let epoch = epochs.entry(point.block_height / u64::from(EPOCH_BLOCKS)).or_insert(point);
        if point.at >= epoch.at {
            *epoch = point;
        }
    }
    let logs: Vec<(u64, f64)> =
        epochs.into_iter().filter_map(|(epoch, point)| Some((epoch, float::ln(point.difficulty)?))).collect();
    let mut changes: Vec<f64> = logs
        .windows(2)
        .filter(|pair| pair[1].0 - pair[0].0 == 1)
        .map(|pair| pair[1].1 - pair[0].1)
        .filter(|change| change.abs() <= MAX_CHANGE)
        .collect();
    changes.split_off(changes.len().saturating_sub(MAX_RETARGETS))
}

#[cfg(test)]
mod tests {
    use super::super::super::testing::d;
    use super::*;

    fn point(height: u64, seconds: i64, difficulty: &str) -> ChainPoint {
        ChainPoint {
            at: DateTime::UNIX_EPOCH + TimeDelta::seconds(seconds),
            block_height: height,
            difficulty: d(difficulty),
        }
    }

    /// First block of the epoch in these tests.
    const FIRST: u64 = 2016 * 400;

    fn started(points: &[ChainPoint]) -> (i64, u32, f64) {
        let view = EpochView::of(points).expect("a snapshot");
        (view.started_at.timestamp(), view.watched_blocks, view.block_seconds)
    }

    #[test]
    fn the_beginning_lies_between_the_snapshots_around_it() {
        let points = [
            point(FIRST + 999, 570_000, "150e12"),
            point(FIRST - 10, -6_000, "148e12"),
            point(FIRST + 10, 6_000, "150e12"),
        ];
        let (at, watched, pace) = started(&points);
        assert_eq!((at, watched), (0, 999));
        assert!((pace - 570_000.0 / 999.0).abs() < 1e-9);
    }

    #[test]
    fn blocks_nobody_watched_came_at_the_target_rate() {
        // Alone, a snapshot projects nothing.
        assert_eq!(started(&[point(FIRST + 500, 0, "150e12")]), (-300_000, 0, 600.0));
        let (at, watched, pace) =
            started(&[point(FIRST + 500, 0, "150e12"), point(FIRST + 700, 100_000, "150e12")]);
        assert_eq!((at, watched), (-300_000, 200));
        assert!((pace - 500.0).abs() < 1e-9);
        // A snapshot more than an epoch older says too little about the beginning.
        let far = [point(FIRST - 2_000, -9_000_000, "140e12"), point(FIRST + 500, 0, "150e12")];
        assert_eq!(started(&far), (-300_000, 0, 600.0));
    }

    #[test]
    fn a_short_watch_does_not_set_the_pace() {
        let points = [point(FIRST, 0, "150e12"), point(FIRST + 143, 14_300, "150e12")];
        assert_eq!(started(&points).2, 600.0);
        let points = [point(FIRST, 0, "150e12"), point(FIRST + 144, 14_400, "150e12")];
        assert_eq!(started(&points).2, 150.0, "clamped like the retarget");
    }

    #[test]
    fn the_position_in_the_epoch() {
        let view = EpochView::of(&[point(FIRST + 999, 0, "150e12")]).expect("a snapshot");
        assert_eq!(
            (view.blocks_since_start(), view.blocks_left(), view.elapsed_seconds()),
            (999, 1016, 599_400)
        );
        assert_eq!(view.unwatched_share(), 1.0);
        let last = EpochView::of(&[point(FIRST + 2015, 0, "150e12")]).expect("a snapshot");
        assert_eq!(last.blocks_left(), 0);
        assert_eq!(EpochView::of(&[]), None);
    }

    #[test]
    fn retargets_come_from_neighbouring_epochs() {
        let points = [
            point(2016 * 13, 90, "140e12"),
            point(2016 * 10 + 5, 0, "100e12"),
            // The source answered with the old difficulty just after the retarget; the newest of the epoch counts.
            point(2016 * 11, 10, "100e12"),
            point(2016 * 11 + 900, 20, "110e12"),
            point(2016 * 12, 30, "0"),
        ];
        let changes = retarget_changes(&points);
        assert_eq!(changes.len(), 1);
        assert!((changes[0] - 1.1_f64.ln()).abs() < 1e-12);
    }

    #[test]
    fn what_consensus_does_not_allow_is_no_retarget() {
        let points =
            [point(0, 0, "100e12"), point(2016, 1, "1e6"), point(4032, 2, "4e6"), point(6048, 3, "1e6")];
        let changes = retarget_changes(&points);
        assert_eq!(changes.len(), 2);
        assert!((changes[0] - 4.0_f64.ln()).abs() < 1e-12);
        assert!(retarget_changes(&[]).is_empty());
    }

    #[test]
    fn a_year_of_retargets_counts() {
        let points: Vec<_> = (0..60).map(|i| point(2016 * i, i as i64, "100e12")).collect();
        assert_eq!(retarget_changes(&points), [0.0; MAX_RETARGETS]);
    }
}
