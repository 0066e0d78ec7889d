//! Who may have how many in flight: a slot goes to the tenant that has the fewest, and endpoints that fail share half of
//! all slots, so that those which hang leave room for those which answer.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

use crate::identifier::TenantId;

/// What is due of a tenant, of its endpoints that fail or of the others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Lane {
    pub(super) tenant: TenantId,
    /// Whether every attempt has failed lately.
    pub(super) failing: bool,
    /// How many endpoints have something due.
    pub(super) endpoints: usize,
}

/// What is in flight in this process.
#[derive(Debug, Default)]
pub(super) struct Taken {
    of_tenant: HashMap<TenantId, usize>,
    failing: usize,
}

impl Taken {
    pub(super) fn begin(&mut self, tenant: &TenantId, failing: bool) {
        *self.of_tenant.entry(tenant.clone()).or_default() += 1;
        self.failing += usize::from(failing);
    }

    pub(super) fn end(&mut self, tenant: &TenantId, failing: bool) {
        self.failing -= usize::from(failing);
        if let Some(count) = self.of_tenant.get_mut(tenant) {
            *count -= 1;
            if *count == 0 {
                self.of_tenant.remove(tenant);
            }
        }
    }

    fn of(&self, tenant: &TenantId) -> usize {
        self.of_tenant.get(tenant).copied().unwrap_or_default()
    }
}

/// The most that may be in flight in this process.
#[derive(Debug, Clone, Copy)]
pub(super) struct Most {
    pub(super) in_all: usize,
    pub(super) of_tenant: usize,
}

/// How many deliveries each lane may claim of the `free` slots, in the order given, which is that of their waiting: an
/// endpoint that fails one, and all of those at most half of what there is.
pub(super) fn share(lanes: &[Lane], taken: &Taken, most: Most, free: usize) -> Vec<usize> {
    let mut given = vec![0; lanes.len()];
    let mut of_tenant: HashMap<&TenantId, usize> =
        lanes.iter().map(|lane| (&lane.tenant, taken.of(&lane.tenant))).collect();
    let mut failing_left = (most.in_all / 2).max(1).saturating_sub(taken.failing);
    let mut free = free;
    let mut next: BinaryHeap<_> = lanes
        .iter()
        .enumerate()
        .map(|(at, lane)| Reverse((of_tenant[&lane.tenant], lane.failing, at)))
        .collect();
    while let Some(Reverse((had, failing, at))) = next.pop() {
        let lane = &lanes[at];
        let Some(has) = of_tenant.get_mut(&lane.tenant).filter(|_| free > 0) else { break };
        if *has >= most.of_tenant || failing && (failing_left == 0 || given[at] >= lane.endpoints) {
            continue;
        }
        // Its other lane was given one meanwhile: it stands further behind.
        if *has == had {
            given[at] += 1;
            *has += 1;
            free -= 1;
            failing_left -= usize::from(failing);
        }
        next.push(Reverse((*has, failing, at)));
    }
    given
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tenant(name: &str) -> TenantId {
        name.parse().expect("a tenant")
    }

    fn lane(name: &str, failing: bool, endpoints: usize) -> Lane {
        Lane { tenant: tenant(name), failing, endpoints }
    }

    const MOST: Most = Most { in_all: 8, of_tenant: 4 };

    #[test]
    fn slots_go_to_whoever_has_the_fewest() {
        let lanes = [lane("a", false, 3), lane("b", false, 1), lane("c", false, 1)];
        let mut taken = Taken::default();
        assert_eq!(share(&lanes, &taken, MOST, 8), [3, 3, 2], "evenly, the first ones first");
        assert_eq!(share(&lanes[..1], &taken, MOST, 8), [4], "at most so many of a tenant");
        for _ in 0..3 {
            taken.begin(&tenant("a"), false);
        }
        assert_eq!(share(&lanes, &taken, MOST, 1), [0, 1, 0]);
        assert_eq!(share(&lanes, &taken, MOST, 5), [0, 3, 2]);
        assert_eq!(share(&lanes, &taken, MOST, 0), [0, 0, 0]);
        taken.end(&tenant("a"), false);
        assert_eq!(taken.of(&tenant("a")), 2);
    }

    #[test]
    fn those_that_fail_share_half_and_have_one_each() {
        let mut lanes: Vec<_> = (0..6).map(|n| lane(&format!("t{n}"), true, 3)).collect();
        let mut taken = Taken::default();
        assert_eq!(share(&lanes, &taken, MOST, 8), [1, 1, 1, 1, 0, 0], "half of eight");
        assert_eq!(share(&lanes[..1], &taken, MOST, 8), [3], "one an endpoint");
        lanes.push(lane("well", false, 1));
        for _ in 0..4 {
            taken.begin(&tenant("t0"), true);
        }
        assert_eq!(share(&lanes, &taken, MOST, 4), [0, 0, 0, 0, 0, 0, 4]);
        taken.end(&tenant("t0"), true);
        assert_eq!(share(&lanes, &taken, MOST, 4), [0, 1, 0, 0, 0, 0, 3]);
        let only = Most { in_all: 1, of_tenant: 1 };
        assert_eq!(share(&lanes[..1], &Taken::default(), only, 1), [1], "rather slowly than never");
    }

    #[test]
    fn a_tenant_with_both_counts_once() {
        let lanes = [lane("a", true, 2), lane("a", false, 2), lane("b", false, 1)];
        let given = share(&lanes, &Taken::default(), Most { in_all: 4, of_tenant: 3 }, 4);
        assert_eq!(given, [0, 2, 2], "those that answer come first");
        let given = share(&lanes[..2], &Taken::default(), Most { in_all: 8, of_tenant: 3 }, 8);
        assert_eq!(given.iter().sum::<usize>(), 3);
    }
}
