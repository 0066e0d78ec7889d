//! Plans under the clock: begun, carried out, ended and recovered once each, however late.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use hashinsight::domain::Caller;
use hashinsight::domain::ops::plan::{Advanced, PlanClock, advance};
use hashinsight::jobs::Job;
use serde_json::json;

use super::plans::{cut, decide, fleet, made, next_hour, planned, shown};
use super::{at, kinds, told, work};
use crate::support::{TestApi, TestDb, problem, until};

async fn advanced(here: (&TestDb, &TestApi), now: DateTime<Utc>) -> Advanced {
    at(here, now, async |tx, caller| advance(tx, caller, 100).await.expect("advanced")).await
}

/// The specification's day: off in hours 2, 4 to 7 and 9.
#[tokio::test]
async fn the_clock_carries_a_plan_out() {
    let (db, api) = fleet(1).await;
    let here = (&db, &api);
    let start = next_hour();
    let id = planned(&api, start).await;
    let hour = |n: i64| start + TimeDelta::hours(n) + TimeDelta::minutes(1);
    assert_eq!(advanced(here, hour(0)).await, Advanced::default(), "nobody has agreed to it");
    decide(&api, &id, "approve").await.expect(200);
    assert_eq!(advanced(here, start - TimeDelta::seconds(1)).await, Advanced::default());
    let mut events = kinds(&db, "ops.").await.len();
    for (now, expected, status, told_of) in [
        (hour(0), Advanced { applied: 1, ..Advanced::default() }, "executing", vec!["ops.plan_applied"]),
        (hour(1), Advanced::default(), "executing", vec![]),
        (
            start + TimeDelta::hours(2),
            Advanced { switched: 1, ..Advanced::default() },
            "executing",
            vec!["ops.curtailment_started"],
        ),
        (hour(2), Advanced::default(), "executing", vec![]),
        (
            hour(3),
            Advanced { switched: 1, ..Advanced::default() },
            "executing",
            vec!["ops.curtailment_ended"],
        ),
        (
            hour(5),
            Advanced { switched: 1, ..Advanced::default() },
            "executing",
            vec!["ops.curtailment_started"],
        ),
        // Late: the hours 8 to 11 were missed, and only what is true now is told.
        (
            hour(12),
            Advanced { ended: 1, ..Advanced::default() },
            "recovery_pending",
            vec!["ops.plan_status_changed", "ops.curtailment_ended"],
        ),
        (hour(12) + TimeDelta::minutes(14), Advanced::default(), "recovery_pending", vec![]),
        (
            hour(12) + TimeDelta::minutes(15),
            Advanced { recovered: 1, ..Advanced::default() },
            "completed",
            vec!["ops.plan_status_changed"],
        ),
    ] {
        assert_eq!(advanced(here, now).await, expected, "at {now}");
        assert_eq!(advanced(here, now).await, Advanced::default(), "once, at {now}");
        assert_eq!(shown(&api, &id).await["status"], status, "at {now}");
        let all = kinds(&db, "ops.").await;
        assert_eq!(all[events..], told_of, "at {now}");
        events = all.len();
    }
    let data = told(&db, "ops.curtailment_started").await;
    assert_eq!(
        (&data["source"], &data["miners_offline"], &data["kw"]),
        (&json!("plan"), &json!(1), &json!(0))
    );
}

#[tokio::test]
async fn the_job_begins_what_is_due_every_minute() {
    let (db, api) = fleet(1).await;
    assert_eq!(PlanClock.schedule().period().as_secs(), 60);
    let id = made(&api, cut(3.5)).await;
    decide(&api, &id, "approve").await.expect(200);
    work((&db, &api), &PlanClock).await;
    let plan = shown(&api, &id).await;
    assert_eq!((&plan["status"], &plan["curtailing"]), (&json!("executing"), &json!(true)));
    let told_of = kinds(&db, "ops.").await;
    assert_eq!(told_of[2..], ["ops.plan_applied", "ops.curtailment_started"]);
}

#[tokio::test]
async fn a_plan_that_is_stopped_ends_cancelled() {
    let (db, api) = fleet(1).await;
    let here = (&db, &api);
    let start = next_hour();
    let id = planned(&api, start).await;
    decide(&api, &id, "approve").await.expect(200);
    let now = start + TimeDelta::hours(5) + TimeDelta::minutes(1);
    assert_eq!(advanced(here, now).await, Advanced { applied: 1, switched: 1, ..Advanced::default() });
    assert_eq!(shown(&api, &id).await["curtailing"], true);
    decide(&api, &id, "stop").await.expect(200);
    assert_eq!(kinds(&db, "ops.curtailment").await, ["ops.curtailment_started", "ops.curtailment_ended"]);
    let stopped = shown(&api, &id).await;
    assert_eq!((&stopped["status"], &stopped["curtailing"]), (&json!("recovery_pending"), &json!(false)));
    assert_eq!(
        advanced(here, now).await,
        Advanced { recovered: 1, ..Advanced::default() },
        "15 minutes later"
    );
    let over = shown(&api, &id).await;
    assert_eq!((&over["status"], &over["status_reason"]), (&json!("cancelled"), &json!("because")));
}

#[tokio::test]
async fn a_plan_whose_time_passed_never_begins() {
    let (db, api) = fleet(1).await;
    let here = (&db, &api);
    let start = next_hour();
    let (pending, approved) = (planned(&api, start).await, planned(&api, start).await);
    decide(&api, &approved, "approve").await.expect(200);
    let end = start + TimeDelta::hours(12);
    assert_eq!(advanced(here, end).await, Advanced { expired: 2, ..Advanced::default() });
    assert_eq!(shown(&api, &pending).await["status_reason"], "not approved in time");
    assert_eq!(shown(&api, &approved).await["status_reason"], "its time was over before it began");
    assert_eq!(kinds(&db, "ops.curtailment").await, Vec::<String>::new());
    let over = planned(&api, start).await;
    db.execute(
        "update ops_plan set starts_at = now() - interval '2 hours', ends_at = now() - interval '1 hour'",
    )
    .await;
    problem(&decide(&api, &over, "approve").await, 409, "plan-is-over");
}

/// A process that dies before its commit leaves the work to the next; two at once do each thing once.
#[tokio::test]
async fn whoever_dies_each_move_is_made_once() {
    let (db, api) = fleet(1).await;
    let here = (&db, &api);
    let start = next_hour();
    let id = planned(&api, start).await;
    decide(&api, &id, "approve").await.expect(200);
    let before = kinds(&db, "ops.").await.len();
    let now = start + TimeDelta::hours(2);
    let begun = Advanced { applied: 1, switched: 1, ..Advanced::default() };
    let tenant = api.tenant.parse().expect("a tenant");
    let actor = "clock".parse().expect("a user");
    let caller = Caller { actor: &actor, request_id: "sweep", traceparent: "", now };
    let mut dies = db.db.tenant(&tenant).await.expect("begin");
    assert_eq!(advance(&mut dies, caller, 100).await.expect("advanced"), begun);
    // What it holds is left to it while it lives.
    assert_eq!(advanced(here, now).await, Advanced::default());
    drop(dies);
    until("the connection is rolled back", Duration::from_secs(10), async || {
        (advanced(here, now).await == begun).then_some(())
    })
    .await;
    assert_eq!(kinds(&db, "ops.").await[before..], ["ops.plan_applied", "ops.curtailment_started"]);

    let end = start + TimeDelta::hours(12);
    let (one, two) = tokio::join!(advanced(here, end), advanced(here, end));
    assert_eq!((one.ended + two.ended, shown(&api, &id).await["curtailing"].clone()), (1, json!(false)));
    let told_of = kinds(&db, "ops.").await;
    assert_eq!(told_of[before + 2..], ["ops.plan_status_changed", "ops.curtailment_ended"]);
}
