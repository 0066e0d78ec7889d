//! Owns the improvement that single moves cannot reach: a few groups are taken out together and put back in anew.
//! Promises that a change is kept only if the schedule is no worse for it, and the same changes for the same site.
//! May be called by the files of this folder only.

use super::limits::FixedPrices;
use super::model::Model;
use super::repair::Repair;

/// Groups that are taken out at once.
const RENEWED: usize = 4;
/// Steps before and after the chosen one in which a group switches to be a candidate.
const NEIGHBOURHOOD: usize = 6;

/// Renews a schedule `rounds` times around steps from a fixed sequence.
///
/// Groups that switch near the same step compete for the same power: they are taken out, put back one by one at the
/// relaxation's prices (which leave power to those who make more of it), and then settle at their true value.
pub(super) fn renew(repair: &mut Repair<'_>, model: &Model, prices: &FixedPrices, rounds: usize) {
    let Some(priced) =
        (0..model.units.len()).map(|unit| prices.gain(model, unit)).collect::<Option<Vec<_>>>()
    else {
        return;
    };
    let mut sequence = Sequence(0x9E37_79B9_7F4A_7C15);
    for _ in 0..rounds {
        let groups = choose(repair, model, &mut sequence);
        let before: Vec<_> = groups.iter().map(|k| repair.path(*k).to_vec()).collect();
        let merit = repair.merit_of(&groups);
        for k in &groups {
            repair.take_out(*k);
        }
        for k in &groups {
            repair.put_back(*k, Some(&priced));
        }
        for k in &groups {
            repair.take_out(*k);
            repair.put_back(*k, None);
        }
        if repair.merit_of(&groups) < merit {
            for (k, on) in groups.iter().zip(before) {
                repair.take_out(*k);
                repair.put_on(*k, on);
            }
        }
    }
}

/// Different groups: first those that switch near a step, then any.
fn choose(repair: &Repair<'_>, model: &Model, sequence: &mut Sequence) -> Vec<usize> {
    let centre = sequence.below(model.steps);
    let (from, to) = (centre.saturating_sub(NEIGHBOURHOOD).max(1), (centre + NEIGHBOURHOOD).min(model.steps));
    let switches = |k: &usize| {
        let on = repair.path(*k);
        (from..to).any(|t| on[t] != on[t - 1])
    };
    let (mut near, mut far): (Vec<_>, Vec<_>) = (0..repair.groups()).partition(switches);
    let mut chosen = Vec::with_capacity(RENEWED);
    while chosen.len() < RENEWED {
        let from = if near.is_empty() { &mut far } else { &mut near };
        if from.is_empty() {
            break;
        }
        chosen.push(from.swap_remove(sequence.below(from.len())));
    }
    chosen
}

/// A fixed sequence of numbers that look random (xorshift64).
struct Sequence(u64);

impl Sequence {
    /// A number below `end`, 0 for an `end` of 0.
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % (end as u64).max(1)) as usize
    }
}
