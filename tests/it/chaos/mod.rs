//! Owns the chaos runs: real processes under a seeded load and a seeded schedule of faults, then the history checker.
//! Promises that the schedule follows from the seed alone, and that a violation leaves a folder with all the evidence.
//! Run by `dev/test` for half a minute of faults, and by `dev/chaos` for as long as one likes.

mod evidence;
mod nemesis;
mod rest;
mod role;
mod run;
mod schedule;
mod stage;
mod watch;
mod workload;

use std::time::Duration;

use crate::history::check;
use run::{Plan, run};

/// A run of the nemesis, as long as `dev/chaos` says. Nothing is lost, doubled, inverted or leaked; and the checker is
/// awake: it notices when the tables are tampered with.
#[tokio::test(flavor = "multi_thread")]
async fn faults_lose_nothing_and_double_nothing() {
    let done = Box::pin(run(Plan::of_environment())).await;
    done.must_be_clean();

    // An acknowledged effect that is gone.
    let noticed =
        done.tampered("delete from event_inbox where event_id = (select event_id from event_inbox limit 1)");
    let noticed = noticed.await;
    assert!(noticed.contains(&"I1") && noticed.contains(&"I6"), "{noticed:?}");
    // A figure that does not follow from the miners, written by nobody who may.
    let noticed = done.tampered("update portfolio set miners_total = miners_total + 1").await;
    assert_eq!(noticed, ["I3", "I9"]);
    // Somebody without a claim moves an offset back, as a broken fence would.
    let noticed =
        done.tampered("update consumer_offset set next_offset = next_offset - 1 where next_offset > 0").await;
    assert_eq!(noticed, ["I5", "I9"]);
}

/// Half a minute is enough for each kind of fault to come up twice or so.
const SHORT: Duration = Duration::from_secs(35);
