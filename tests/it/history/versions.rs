//! I3, between the commits: each version of a portfolio follows the one before and shows whatever an earlier one had to.
//! An update that is lost for a moment is lost here, too, though the next event of its owner repairs it.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use hashinsight::event::kind;
use serde_json::Value;
use uuid::Uuid;

use super::fleet::{Shown, Step, lives};
use super::index::Index;
use super::tables::Event;
use super::witness::Recomputed;
use super::{History, Violation};

/// What the versions of one portfolio have told so far, and what those to come must show.
#[derive(Default)]
struct Portfolio<'a> {
    last: Option<&'a Recomputed>,
    /// Of each miner that is not gone, which of its states it must show at least.
    owed: BTreeMap<&'a str, usize>,
    /// Miners that were removed.
    gone: BTreeSet<&'a str>,
    /// Its place among the snapshots, the newest first.
    snapshot: Option<usize>,
}

/// What is known of all portfolios.
struct Known<'a> {
    history: &'a History,
    index: &'a Index<'a>,
    lives: BTreeMap<&'a str, Vec<Step<'a>>>,
    /// The miner of each model.
    by_model: HashMap<String, &'a str>,
}

impl Known<'_> {
    /// The place of a snapshot, the newest first.
    fn place(&self, id: &str) -> Option<usize> {
        self.history.tables.snapshots.iter().position(|s| s.id.to_string() == id)
    }

    /// The states of a miner from one on that a version may show.
    fn possible(
        &self,
        miner: &str,
        from: usize,
        version: &Recomputed,
    ) -> impl Iterator<Item = Option<Shown>> {
        let asked = |step: &&Step<'_>| self.history.asked_by(step.event, version.at, self.index);
        self.lives[miner][from..].iter().filter(asked).map(|step| step.state.shown_to(&version.user_id))
    }
}

pub(super) fn check<'a>(history: &'a History, index: &'a Index<'a>, found: &mut Vec<Violation>) {
    let lives = lives(history, index);
    let by_model = lives.iter().map(|(miner, life)| (life[0].state.model.clone(), *miner)).collect();
    let known = Known { history, index, lives, by_model };
    let applied = applied(history, index);
    let mut portfolios: BTreeMap<(&str, &str), Portfolio<'_>> = BTreeMap::new();
    for version in &history.witness.recomputed {
        let owner = (version.tenant_id.as_str(), version.user_id.as_str());
        let portfolio = portfolios.entry(owner).or_default();
        let before = portfolio.last.replace(version).map_or(0, |last| last.version);
        if version.version != before + 1 {
            let what = format!("version {} of {owner:?} followed {before}", version.version);
            found.push(Violation::new("I3", what).of([version.event_id]).because(version));
        }
        let events = applied.get(version.xid.as_str()).map_or(&[][..], Vec::as_slice);
        for event in events.iter().filter(|event| event.tenant_id == owner.0) {
            if event.event_type == kind::NETWORK_SNAPSHOT {
                let written = event.payload["data"]["snapshot_id"].as_str().and_then(|id| known.place(id));
                portfolio.snapshot = portfolio.snapshot.into_iter().chain(written).min();
            } else if event.owners().any(|about| about == owner.1) {
                portfolio.owes(event, &known.lives);
            }
        }
        portfolio.pays(version, &known, found);
    }
    stored(history, &portfolios, index, found);
}

/// What each transaction applied.
fn applied<'a>(history: &'a History, index: &Index<'a>) -> HashMap<&'a str, Vec<&'a Event>> {
    let admitted = history.witness.admitted.iter().filter(|a| a.outcome == "applied");
    let settled = history.witness.settled.iter().filter(|s| s.new_outcome == "applied");
    let ids =
        admitted.map(|a| (a.xid.as_str(), a.event_id)).chain(settled.map(|s| (s.xid.as_str(), s.event_id)));
    let mut applied: HashMap<&str, Vec<&Event>> = HashMap::new();
    for (xid, id) in ids {
        applied.entry(xid).or_default().extend(index.events.get(&id));
    }
    applied
}

impl<'a> Portfolio<'a> {
    fn owes(&mut self, event: &'a Event, lives: &BTreeMap<&str, Vec<Step<'_>>>) {
        let miner = event.aggregate_id.as_str();
        let at = lives.get(miner).and_then(|life| life.iter().position(|step| step.event.id == event.id));
        if let Some(at) = at {
            let owed = self.owed.entry(miner).or_default();
            *owed = at.max(*owed);
        }
    }

    fn pays(&mut self, version: &Recomputed, known: &Known<'a>, found: &mut Vec<Violation>) {
        let mut shown: BTreeMap<&'a str, Shown> = BTreeMap::new();
        for row in version.by_model.as_array().into_iter().flatten() {
            let model = row["model"].as_str().unwrap_or_default();
            match known.by_model.get(model) {
                Some(miner) => drop(shown.insert(miner, Shown::of(row))),
                None => found.push(
                    Violation::new("I3", format!("the model {model} of no miner"))
                        .of([version.event_id])
                        .because(row),
                ),
            }
        }
        for (miner, owed) in &self.owed {
            let is = shown.remove(miner);
            if !known.possible(miner, *owed, version).any(|state| state == is) {
                let what = format!(
                    "version {} of {}/{} shows {is:?} of {miner}, not what it had to",
                    version.version, version.tenant_id, version.user_id
                );
                let event = known.lives[miner][*owed].event;
                found.push(Violation::new("I3", what).of([event.id]).because(event).because(version));
            }
        }
        let gone = |miner: &&'a str, owed: &mut usize| known.lives[miner][*owed].state.removed;
        self.gone.extend(self.owed.extract_if(.., gone).map(|(miner, _)| miner));
        // Seen before its event is applied here: it may not be unseen again.
        for (miner, is) in shown {
            let mut life = known.lives[miner].iter();
            match life.position(|step| step.state.shown_to(&version.user_id).as_ref() == Some(&is)) {
                Some(at) if !self.gone.contains(miner) => drop(self.owed.insert(miner, at)),
                _ => {
                    let what =
                        format!("version {} shows {is:?} of {miner}, which it is not", version.version);
                    found.push(Violation::new("I3", what).of([version.event_id]).because(version));
                }
            }
        }
        let snapshot = version.snapshot_id.and_then(|id| known.place(&id.to_string()));
        if self.snapshot.is_some_and(|owed| snapshot.is_none_or(|is| is > owed)) {
            let what = format!("version {} follows from an older snapshot than it had to", version.version);
            found.push(Violation::new("I3", what).of([version.event_id]).because(version));
        }
        self.snapshot = self.snapshot.into_iter().chain(snapshot).min();
    }
}

/// What is stored is the last version that was computed; its event was applied.
fn stored(
    history: &History,
    portfolios: &BTreeMap<(&str, &str), Portfolio<'_>>,
    index: &Index<'_>,
    found: &mut Vec<Violation>,
) {
    let mut rows: BTreeMap<(&str, &str), &Value> = BTreeMap::new();
    for row in &history.tables.portfolios {
        let text = |name: &str| row[name].as_str().unwrap_or_default();
        rows.insert((text("tenant_id"), text("user_id")), row);
    }
    for owner in rows.keys().filter(|owner| !portfolios.contains_key(*owner)) {
        found.push(Violation::new("I3", format!("the portfolio of {owner:?} was never computed")));
    }
    for (owner, portfolio) in portfolios {
        let Some(last) = portfolio.last else { continue };
        let row = rows.get(owner).copied().unwrap_or(&Value::Null);
        let event: Option<Uuid> = row["event_id"].as_str().and_then(|id| id.parse().ok());
        if (row["version"].as_i64(), event) != (Some(last.version), Some(last.event_id)) {
            let what =
                format!("the portfolio of {owner:?} is not the last that was computed, {}", last.version);
            found.push(Violation::new("I3", what).of([last.event_id]).because(row));
        }
        let outcome = index.inbox.get(&last.event_id).map(|r| r.outcome.as_str());
        if outcome != Some("applied") {
            let what = format!("the portfolio of {owner:?} names an event that is {outcome:?}");
            found.push(Violation::new("I3", what).of([last.event_id]));
        }
    }
}
