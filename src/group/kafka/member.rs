//! One member as its group's coordinator knows it. Pure: no broker, no database, no clock of its own.
//!
//! ```text
//!          slot says who we are            answer with an epoch
//!   out ──────────────────────────► joining ──────────────────► member ─┐ assignments
//!    ▲                                 ▲                          │  └──┘
//!    │ left                            │ 25, 110, 69: work stops  │
//!    └───────── retiring ◄─────────────┴──────────────────────────┘ the slot is lost or says another id: work stops
//! ```

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::time::Instant;

use crate::group::TopicPartition;

/// Between heartbeats when nothing moves.
pub(super) const CALM: Duration = Duration::from_secs(1);

/// Between heartbeats while partitions move.
pub(super) const RESTLESS: Duration = Duration::from_millis(250);

/// So long after the last change the group counts as settled: the broker gathers changes for a second.
const SETTLES: Duration = Duration::from_secs(3);

/// The stock session timeout of brokers is 45 s: a member that heard nothing for so long may be one no more.
const SESSION: Duration = Duration::from_secs(40);

/// What a member has to do next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Say that it lives.
    Beat,
    /// Stop working: the id is not ours any more.
    Stop,
    /// Tell the coordinator that this id left, then [`Member::left`].
    Leave(String),
    /// Nobody says who we are.
    Wait,
}

/// A member of one group.
#[derive(Debug)]
pub(super) struct Member {
    id: String,
    /// As the coordinator counts it; 0: not joined.
    epoch: i32,
    joined: bool,
    /// An id that we gave up and that the coordinator may still count.
    retiring: Option<String>,
    assigned: BTreeSet<TopicPartition>,
    /// As of the last heartbeat.
    owned: BTreeSet<TopicPartition>,
    changed_at: Instant,
    answered_at: Instant,
}

impl Member {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            id: String::new(),
            epoch: 0,
            joined: false,
            retiring: None,
            assigned: BTreeSet::new(),
            owned: BTreeSet::new(),
            changed_at: now,
            answered_at: now,
        }
    }

    pub(super) fn id(&self) -> &str {
        &self.id
    }

    pub(super) fn epoch(&self) -> i32 {
        self.epoch
    }

    /// Whether the coordinator counts us.
    pub(super) fn is_joined(&self) -> bool {
        self.joined
    }

    /// An id that is still to be left.
    pub(super) fn retiring(&self) -> Option<&str> {
        self.retiring.as_deref()
    }

    /// What to do, given who the slot says we are.
    pub(super) fn step(&mut self, slot: Option<&str>) -> Step {
        if self.joined && slot != Some(self.id.as_str()) {
            self.retiring = Some(std::mem::take(&mut self.id));
            self.reset();
            return Step::Stop;
        }
        match (self.retiring.as_deref(), slot) {
            // The slot was taken back before anybody noticed: the partitions are still ours.
            (Some(old), Some(id)) if old == id => self.retiring = None,
            (Some(old), _) => return Step::Leave(old.to_owned()),
            (None, _) => {}
        }
        let Some(id) = slot else { return Step::Wait };
        if self.id != id {
            self.id = id.to_owned();
        }
        Step::Beat
    }

    /// What the coordinator last gave us.
    pub(super) fn assigned(&self) -> &BTreeSet<TopicPartition> {
        &self.assigned
    }

    /// What the last answered heartbeat said that we own.
    pub(super) fn last_owned(&self) -> &BTreeSet<TopicPartition> {
        &self.owned
    }

    /// The given-up id has left, or was not known.
    pub(super) fn left(&mut self) {
        self.retiring = None;
    }

    /// What a heartbeat says that we own; nothing while joining, whatever still runs.
    pub(super) fn owned(&self, running: &BTreeSet<TopicPartition>) -> BTreeSet<TopicPartition> {
        if self.epoch == 0 { BTreeSet::new() } else { running.clone() }
    }

    /// The coordinator's answer to a heartbeat that said we own `owned`. Returns whether others should look again.
    pub(super) fn answered(
        &mut self,
        epoch: i32,
        assigned: BTreeSet<TopicPartition>,
        owned: BTreeSet<TopicPartition>,
        now: Instant,
    ) -> bool {
        let let_go = self.owned.difference(&owned).next().is_some();
        let news = !self.joined || let_go;
        if news || epoch != self.epoch || assigned != self.assigned {
            self.changed_at = now;
        }
        self.joined = true;
        self.epoch = epoch;
        self.assigned = assigned;
        self.owned = owned;
        self.answered_at = now;
        news
    }

    /// The coordinator does not count us any more: work stops, then we join anew under the same id.
    pub(super) fn rejoin(&mut self, now: Instant) {
        self.reset();
        self.changed_at = now;
    }

    fn reset(&mut self) {
        self.epoch = 0;
        self.joined = false;
        self.assigned.clear();
        self.owned.clear();
    }

    /// Something happened elsewhere: look often for a while.
    pub(super) fn stir(&mut self, now: Instant) {
        self.changed_at = now;
    }

    /// Until the next heartbeat.
    pub(super) fn interval(&self, now: Instant) -> Duration {
        let moving = !self.owned.is_subset(&self.assigned);
        if moving || now < self.changed_at + SETTLES { RESTLESS } else { CALM }
    }

    /// Whether the coordinator may have given our partitions away since it was last heard.
    pub(super) fn expired(&self, now: Instant) -> bool {
        now >= self.answered_at + SESSION
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(partitions: &[i32]) -> BTreeSet<TopicPartition> {
        partitions.iter().map(|p| TopicPartition { topic: "t".to_owned(), partition: *p }).collect()
    }

    fn joined(now: Instant) -> Member {
        let mut member = Member::new(now);
        assert_eq!(member.step(Some("a-0")), Step::Beat);
        assert_eq!(member.owned(&set(&[7])), set(&[]), "a member that joins owns nothing");
        assert!(member.answered(3, set(&[0, 1]), set(&[]), now), "others must hear of a new member");
        member
    }

    #[test]
    fn without_a_slot_there_is_no_member() {
        let mut member = Member::new(Instant::now());
        assert_eq!(member.step(None), Step::Wait);
        assert!(!member.is_joined());
    }

    #[test]
    fn a_lost_slot_stops_work_before_the_id_is_left_and_another_is_used() {
        let now = Instant::now();
        let mut member = joined(now);
        assert_eq!(member.step(Some("a-0")), Step::Beat);
        assert_eq!(member.step(None), Step::Stop);
        assert_eq!((member.epoch(), member.is_joined()), (0, false));
        assert_eq!(member.step(Some("a-1")), Step::Leave("a-0".to_owned()));
        assert_eq!(member.step(None), Step::Leave("a-0".to_owned()), "until it was left");
        member.left();
        assert_eq!(member.step(None), Step::Wait);
        assert_eq!(member.step(Some("a-1")), Step::Beat);
        assert_eq!((member.id(), member.epoch()), ("a-1", 0));
    }

    #[test]
    fn another_id_under_the_same_slot_stops_work_as_well() {
        let mut member = joined(Instant::now());
        assert_eq!(member.step(Some("a-1")), Step::Stop);
        assert_eq!(member.step(Some("a-1")), Step::Leave("a-0".to_owned()));
    }

    #[test]
    fn a_slot_that_comes_back_with_its_id_is_not_left() {
        let mut member = joined(Instant::now());
        assert_eq!(member.step(None), Step::Stop);
        assert_eq!(member.step(Some("a-0")), Step::Beat);
        assert_eq!((member.epoch(), member.retiring()), (0, None));
    }

    #[test]
    fn a_member_that_is_not_known_joins_anew_under_its_id() {
        let now = Instant::now();
        let mut member = joined(now);
        member.rejoin(now);
        assert_eq!(member.step(Some("a-0")), Step::Beat);
        assert_eq!(member.owned(&set(&[0])), set(&[]));
        assert_eq!(member.epoch(), 0);
    }

    #[test]
    fn heartbeats_are_quick_while_partitions_move() {
        let now = Instant::now();
        let mut member = joined(now);
        let mut now = now + SETTLES;
        assert_eq!(member.interval(now), CALM);
        assert!(!member.answered(3, set(&[0, 1]), set(&[0, 1]), now));
        assert_eq!(member.interval(now), CALM, "owning what is assigned is no news");
        // One is taken away: until its worker has ended it is still owned.
        member.answered(3, set(&[0]), set(&[0, 1]), now);
        now += SETTLES * 2;
        assert_eq!(member.interval(now), RESTLESS);
        assert!(member.answered(4, set(&[0]), set(&[0]), now), "others may have it now");
        assert_eq!(member.interval(now + SETTLES), CALM);
        member.stir(now + SETTLES);
        assert_eq!(member.interval(now + SETTLES), RESTLESS);
    }

    #[test]
    fn silence_for_a_session_is_the_end() {
        let now = Instant::now();
        let mut member = joined(now);
        assert!(!member.expired(now + SESSION - CALM));
        assert!(member.expired(now + SESSION));
        member.answered(3, set(&[0]), set(&[0]), now + SESSION);
        assert!(!member.expired(now + SESSION));
    }
}
