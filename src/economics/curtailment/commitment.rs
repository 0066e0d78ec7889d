//! Owns unit commitment: the best on/off path of one miner under minimum up and down times, by dynamic programme.
//! Promises the optimum, and among equals the path of fewest starts, then of most steps on, then on earliest.
//! May be called by the files of this folder only.

use std::ops::{Add, Sub};

/// What a path collects: money, money with its tie-breaks, or money behind violated limits. Greater is better.
pub(super) trait Amount:
    Copy + Default + PartialOrd + Add<Output = Self> + Sub<Output = Self>
{
}

impl<A: Copy + Default + PartialOrd + Add<Output = A> + Sub<Output = A>> Amount for A {}

/// What one step adds, as `gain[was on][is on]`.
pub(super) type Gain<A> = [[A; 2]; 2];

/// How a miner may switch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Switching {
    /// Steps a run lasts at least; 0 counts as 1.
    pub(super) min_up: usize,
    /// Steps a pause lasts at least; 0 counts as 1.
    pub(super) min_down: usize,
    /// State before the first step.
    pub(super) on: bool,
    /// Steps for which that state cannot be left yet.
    pub(super) locked: usize,
}

/// A path and what it collects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Best<A> {
    pub(super) total: A,
    pub(super) on: Vec<bool>,
}

/// The best path through `gains`, one entry per step.
///
/// The state of the programme is (on or off, steps in the state). A decision exists only where the minimum is served,
/// so it is enough to value those states: `run[t]` is the best from step `t` on for a miner that was on before it and
/// may stop, `pause[t]` the same for one that was off and may start. A switch jumps over the steps it is bound for, whose
/// gains are a difference of running sums: O(1) per step. A run or pause cut off by the end is not bound to its minimum.
pub(super) fn best_path<A: Amount>(gains: &[Gain<A>], switching: Switching) -> Best<A> {
    let steps = gains.len();
    let (up, down) = (switching.min_up.max(1), switching.min_down.max(1));
    let (mut sum_on, mut sum_off) = (vec![A::default(); steps + 1], vec![A::default(); steps + 1]);
    for (t, gain) in gains.iter().enumerate() {
        sum_on[t + 1] = sum_on[t] + gain[1][1];
        sum_off[t + 1] = sum_off[t] + gain[0][0];
    }
    let (mut run, mut pause) = (vec![A::default(); steps + 1], vec![A::default(); steps + 1]);
    let mut next_on = vec![[false; 2]; steps];
    for (t, gain) in gains.iter().enumerate().rev() {
        let end = t.saturating_add(down).min(steps);
        let stop = gain[1][0] + (sum_off[end] - sum_off[t + 1]) + pause[end];
        let stay = gain[1][1] + run[t + 1];
        let end = t.saturating_add(up).min(steps);
        let start = gain[0][1] + (sum_on[end] - sum_on[t + 1]) + run[end];
        let rest = gain[0][0] + pause[t + 1];
        next_on[t] = [start >= rest, stay >= stop];
        run[t] = if next_on[t][1] { stay } else { stop };
        pause[t] = if next_on[t][0] { start } else { rest };
    }

    let mut is = switching.on;
    let mut t = switching.locked.min(steps);
    let (mut on, total) = (vec![is; t], if is { sum_on[t] + run[t] } else { sum_off[t] + pause[t] });
    while t < steps {
        let next = next_on[t][usize::from(is)];
        let bound = match (is, next) {
            (false, true) => up,
            (true, false) => down,
            _ => 1,
        };
        t = t.saturating_add(bound).min(steps);
        on.resize(t, next);
        is = next;
    }
    Best { total, on }
}

/// What a given path collects.
pub(super) fn collect<A: Amount>(gains: &[Gain<A>], was_on: bool, on: &[bool]) -> A {
    let mut was = usize::from(was_on);
    let mut total = A::default();
    for (gain, is) in gains.iter().zip(on) {
        total = total + gain[was][usize::from(*is)];
        was = usize::from(*is);
    }
    total
}

#[cfg(test)]
mod tests {
    use super::super::super::testing::Dice;
    use super::*;

    fn roll(dice: &mut Dice) -> i64 {
        dice.roll(21) as i64 - 10
    }

    /// Whether the rules of switching allow a path.
    fn allowed(switching: Switching, on: &[bool]) -> bool {
        let (mut was, mut free_at) = (switching.on, switching.locked);
        on.iter().enumerate().all(|(t, is)| {
            if *is == was {
                return true;
            }
            let free = t >= free_at;
            free_at = t + if *is { switching.min_up } else { switching.min_down };
            was = *is;
            free
        })
    }

    #[test]
    fn any_gains_on_any_path_equal_brute_force() {
        let mut dice = Dice(11);
        for _ in 0..500 {
            // Gains of all four kinds of steps, as a repair has them: staying off and stopping can cost something too.
            let gains: Vec<Gain<i64>> = (0..dice.roll(9))
                .map(|_| std::array::from_fn(|_| std::array::from_fn(|_| roll(&mut dice))))
                .collect();
            let switching = Switching {
                min_up: dice.roll(5) as usize,
                min_down: dice.roll(5) as usize,
                on: dice.roll(2) == 0,
                locked: dice.roll(4) as usize,
            };
            let best = best_path(&gains, switching);
            assert!(allowed(switching, &best.on));
            assert_eq!(collect(&gains, switching.on, &best.on), best.total);
            let every = (0..1_u32 << gains.len())
                .map(|bits| (0..gains.len()).map(|t| bits >> t & 1 == 1).collect::<Vec<_>>())
                .filter(|on| allowed(switching, on));
            let brute = every.map(|on| (collect(&gains, switching.on, &on), on)).max().expect("a path");
            assert_eq!((best.total, best.on), brute, "ties run as early as they can");
        }
    }

    #[test]
    fn minima_beyond_the_horizon_are_the_horizon() {
        let gains = [[[0, 1], [0, 1]], [[0, -5], [0, -5]], [[0, 1], [0, 1]]];
        let path =
            |on, min, locked| best_path(&gains, Switching { min_up: min, min_down: min, on, locked }).on;
        assert_eq!(path(false, usize::MAX, 0), [false, false, true]);
        assert_eq!(path(true, usize::MAX, 0), [true, false, false]);
        assert_eq!(path(true, 1, usize::MAX), [true; 3]);
        let nothing = best_path::<i64>(&[], Switching { min_up: 1, min_down: 1, on: true, locked: 9 });
        assert_eq!(nothing, Best { total: 0, on: Vec::new() });
    }
}
