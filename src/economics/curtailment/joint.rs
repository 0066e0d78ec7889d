//! Owns the exact optimum of several classes under the site's limits, by a dynamic programme over all of them at once.
//! Promises the optimum or the proof that there is none, and that it is only tried where its size is bounded.
//! May be called by the files of this folder only.

use super::cohort::{Cohort, cohorts_of};
use super::model::{Model, Score, Unit};
use std::collections::BTreeMap;

/// Most moves the programme may look at.
const MOST_MOVES: u128 = 1 << 22;

/// Miners of every class by (on or off, steps for which the state is still binding), class after class.
type State = Vec<u32>;

/// Stops and starts of every class in one step.
type Switches = Vec<(u32, u32)>;

/// Where the numbers of a class lie in a [`State`].
struct Layout {
    first: usize,
    /// Numbers of miners that are on, by binding steps left; the first may stop.
    on: usize,
    /// The same of those that are off; the first may start.
    off: usize,
}

impl Layout {
    fn of(model: &Model) -> Vec<Self> {
        let mut first = 0;
        model
            .units
            .iter()
            .map(|unit| {
                let switching = unit.switching;
                let slots = |minimum: usize, is: bool| {
                    let locked = if switching.on == is { switching.locked + 1 } else { 1 };
                    minimum.max(locked).min(model.steps + 1)
                };
                let layout =
                    Self { first, on: slots(switching.min_up, true), off: slots(switching.min_down, false) };
                first += layout.on + layout.off;
                layout
            })
            .collect()
    }

    fn start(&self, unit: &Unit, state: &mut State) {
        let slots = if unit.switching.on { self.on } else { self.off };
        let side = if unit.switching.on { self.first } else { self.first + self.on };
        state[side + unit.switching.locked.min(slots - 1)] = unit.miners;
    }

    fn online(&self, state: &State) -> u32 {
        state[self.first..self.first + self.on].iter().sum()
    }

    /// The class after one step in which `stops` and `starts` of its free miners switch.
    fn advance(&self, unit: &Unit, steps: usize, state: &mut State, stops: u32, starts: u32) {
        let numbers = &mut state[self.first..self.first + self.on + self.off];
        let (on, off) = numbers.split_at_mut(self.on);
        on[0] -= stops;
        off[0] -= starts;
        for side in [&mut *on, &mut *off] {
            side[0] += side.get(1).copied().unwrap_or(0);
            for left in 1..side.len() {
                side[left] = side.get(left + 1).copied().unwrap_or(0);
            }
        }
        // The step of the switch is the first of the minimum.
        on[unit.switching.min_up.clamp(1, steps + 1) - 1] += starts;
        off[unit.switching.min_down.clamp(1, steps + 1) - 1] += stops;
    }
}

/// Whether the programme stays below [`MOST_MOVES`], whatever the prices and limits. A class of `n` miners with `s` slots
/// (steps of minimum up plus minimum down) has C(n + s - 1, s - 1) states, each with at most (n/2 + 1)^2 moves; classes
/// multiply, steps too.
pub(super) fn is_small(model: &Model) -> bool {
    let mut moves = model.steps as u128;
    for (unit, layout) in model.units.iter().zip(Layout::of(model)) {
        let (miners, slots) = (u128::from(unit.miners), (layout.on + layout.off) as u128);
        let mut states: u128 = 1;
        // C(n + s - 1, n), one factor at a time; every intermediate is a binomial coefficient itself.
        for k in 1..=miners {
            states = states * (slots - 1 + k) / k;
            if states > MOST_MOVES {
                return false;
            }
        }
        moves = moves.saturating_mul(states).saturating_mul((miners / 2 + 1) * (miners.div_ceil(2) + 1));
        if moves > MOST_MOVES {
            return false;
        }
    }
    true
}

/// A state reached, how well, and by which switches from which state of the step before.
struct Node {
    state: State,
    score: Score,
    from: usize,
    switches: Switches,
}

/// The best schedule that keeps every limit, and among equals that of fewest starts, then of most steps on. `None`
/// proves that there is none.
pub(super) fn best_schedule(model: &Model) -> Option<Vec<Cohort>> {
    let layouts = Layout::of(model);
    let mut state = vec![0; layouts.last().map_or(0, |l| l.first + l.on + l.off)];
    for (unit, layout) in model.units.iter().zip(&layouts) {
        layout.start(unit, &mut state);
    }
    let mut stages = vec![vec![Node { state, score: Score::default(), from: 0, switches: Vec::new() }]];
    for t in 0..model.steps {
        let before = stages.last()?;
        let mut reached: BTreeMap<State, Node> = BTreeMap::new();
        for (from, node) in before.iter().enumerate() {
            let mut step = Expansion { model, layouts: &layouts, t, from, node, reached: &mut reached };
            step.expand(&mut Vec::with_capacity(model.units.len()));
        }
        stages.push(reached.into_values().collect());
    }
    let last = stages.last()?;
    let mut at = (0..last.len()).rev().max_by_key(|k| last[*k].score)?;
    let mut switches = Vec::with_capacity(model.steps);
    for stage in stages.iter().skip(1).rev() {
        switches.push(stage[at].switches.as_slice());
        at = stage[at].from;
    }
    switches.reverse();
    Some(cohorts_of(model, &switches))
}

/// All moves out of one state.
struct Expansion<'a> {
    model: &'a Model,
    layouts: &'a [Layout],
    t: usize,
    from: usize,
    node: &'a Node,
    reached: &'a mut BTreeMap<State, Node>,
}

impl Expansion<'_> {
    /// Chooses the switches of the next class, all of them in turn.
    fn expand(&mut self, chosen: &mut Switches) {
        let Some(layout) = self.layouts.get(chosen.len()) else {
            return self.arrive(chosen);
        };
        let (may_stop, may_start) =
            (self.node.state[layout.first], self.node.state[layout.first + layout.on]);
        for stops in 0..=may_stop {
            for starts in 0..=may_start {
                chosen.push((stops, starts));
                self.expand(chosen);
                chosen.pop();
            }
        }
    }

    fn arrive(&mut self, chosen: &Switches) {
        let model = self.model;
        let mut state = self.node.state.clone();
        let mut score = self.node.score;
        let (mut power_before, mut power, mut online) = (0, 0, 0);
        for ((unit, layout), (stops, starts)) in model.units.iter().zip(self.layouts).zip(chosen) {
            power_before += unit.power * i128::from(layout.online(&state));
            layout.advance(unit, model.steps, &mut state, *stops, *starts);
            let (on, starts) = (i128::from(layout.online(&state)), i128::from(*starts));
            power += unit.power * on;
            online += on;
            score = score
                + Score {
                    value: unit.gain[self.t] * on - unit.start_cost * starts,
                    fewer_starts: -starts,
                    steps_on: on,
                };
        }
        if model.over(self.t, power, online) > 0 || model.jump(self.t, power - power_before) > 0 {
            return;
        }
        if self.reached.get(&state).is_none_or(|other| score > other.score) {
            let node = Node { state: state.clone(), score, from: self.from, switches: chosen.clone() };
            self.reached.insert(state, node);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::testing::d;
    use super::super::site::{MinerClass, Site, Step};
    use super::*;

    fn model(classes: &[(u32, u32)], steps: usize) -> Model {
        let step = Step { seconds: 300, price_usd_mwh: d("50"), cap_kw: None, min_online_share: d("0") };
        let class = |(miners, minimum): &(u32, u32)| MinerClass {
            name: String::new(),
            miners: *miners,
            power_w: d("3500"),
            strike_usd_mwh: d("90"),
            start_cost_usd: d("0"),
            min_up_steps: *minimum,
            min_down_steps: *minimum,
            on: true,
            held_steps: None,
        };
        let site =
            Site { steps: vec![step; steps], classes: classes.iter().map(class).collect(), ramp_kw: None };
        Model::new(&site).expect("in range")
    }

    #[test]
    fn the_size_is_bounded_before_it_is_paid_for() {
        // One miner, minimum 1 and 1: 2 states with 2 moves each, so 4^n moves a step for n classes.
        assert!(is_small(&model(&[(1, 1); 5], 288)));
        assert!(is_small(&model(&[(1, 1); 5], 4096)));
        assert!(!is_small(&model(&[(1, 1); 5], 4097)));
        assert!(!is_small(&model(&[(1, 1); 6], 1025)));
        // 4 miners, 2 and 2: C(7, 3) = 35 states with 9 moves.
        assert!(is_small(&model(&[(4, 2)], 13_315)));
        assert!(!is_small(&model(&[(4, 2)], 13_316)));
        assert!(!is_small(&model(&[(u32::MAX, 1)], 1)));
        assert!(!is_small(&model(&[(1, 1); 1000], 1)));
        assert!(is_small(&model(&[], 288)) && is_small(&model(&[(9, 9)], 0)));
    }
}
