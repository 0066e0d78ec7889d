//! Plans under the clock: begun, carried out, ended and recovered once each, however late.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use hashinsight::domain::Caller;
use hashinsight::domain::ops::plan::{Advanced, PlanClock, advance};
use hashinsight::domain::ops::strike::observe;
use hashinsight::jobs::Job;
use serde_json::{Value, json};

use super::plans::{cut, decide, fleet, made, next_hour, planned, shown};
use super::{MARKET, at, intervals, kinds, receive, told, work};
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

/// Two classes that lose money at different prices: whenever other machines are off it is told, once, even where their
/// number is the same.
#[tokio::test]
async fn each_change_of_what_is_off_is_told() {
    let (db, api) = fleet(5).await;
    api.add_miner(json!({"model": "S19j Pro", "status": "online", "quantity": 5})).await;
    let here = (&db, &api);
    let start = next_hour();
    let hour = |n: i64| start + TimeDelta::hours(n);
    let id =
        made(&api, json!({"kind": "optimum", "prices": intervals(start, 3_600, &[70, 70, 100, 50])})).await;
    let offline: Vec<_> = shown(&api, &id).await["rows"]
        .as_array()
        .expect("rows")
        .iter()
        .map(|row| row["miners_offline"].clone())
        .collect();
    assert_eq!(offline, [5, 5, 10, 0]);
    // In the second hour the others, as a start cost or a minimum may have it.
    let group = |class: usize, model: &str, runs: [(i64, i64); 2]| {
        let runs = runs.map(|(from, to)| json!({"from": hour(from), "to": hour(to)}));
        json!({"class": class, "model": model, "miners": 5, "runs": runs})
    };
    let groups = json!([group(0, "S19j Pro", [(1, 2), (3, 4)]), group(1, "S21", [(0, 1), (3, 4)])]);
    db.execute(&format!("update ops_plan set detail = jsonb_set(detail, '{{groups}}', '{groups}')")).await;
    decide(&api, &id, "approve").await.expect(200);

    let of = |class: i64, model: &str| json!({"class": class, "model": model, "miners": 5});
    let (old, new) = (of(0, "S19j Pro"), of(1, "S21"));
    let quarter = |n: i64, quarter: i64| hour(n) + TimeDelta::minutes(15 * quarter);
    for (n, applied, off) in
        [(0, 1, json!([old])), (1, 0, json!([new])), (2, 0, json!([old, new])), (3, 0, json!([]))]
    {
        let before = kinds(&db, "ops.curtailment").await.len();
        // Two processes at once, and again later.
        let (one, two) = tokio::join!(advanced(here, quarter(n, 1)), advanced(here, quarter(n, 1)));
        assert_eq!((one.applied + two.applied, one.switched + two.switched), (applied, 1), "hour {n}");
        assert_eq!(advanced(here, quarter(n, 2)).await, Advanced::default(), "hour {n}");
        let told_of = kinds(&db, "ops.curtailment").await.split_off(before);
        if n == 3 {
            assert_eq!(told_of, ["ops.curtailment_ended"]);
            continue;
        }
        assert_eq!(told_of, ["ops.curtailment_started"], "hour {n}");
        let data = told(&db, "ops.curtailment_started").await;
        let count = 5 * off.as_array().map_or(0, Vec::len);
        assert_eq!((&data["classes_off"], &data["miners_offline"]), (&off, &json!(count)), "hour {n}");
        assert_eq!((&data["kind"], &data["all_users"]), (&json!("optimum"), &json!(false)));
    }
    assert_eq!(shown(&api, &id).await["curtailing"], false);
}

/// Of two plans, one after the other, the last word is that of the one that holds machines off.
#[tokio::test]
async fn what_ends_is_told_before_what_begins() {
    let (db, api) = fleet(1).await;
    let here = (&db, &api);
    let start = next_hour();
    let then = start + TimeDelta::hours(2);
    for from in [start, then] {
        let dear = intervals(from, 3_600, &[300, 300]);
        let id = made(&api, json!({"kind": "optimum", "prices": dear})).await;
        decide(&api, &id, "approve").await.expect(200);
    }
    assert_eq!(advanced(here, start).await, Advanced { applied: 1, switched: 1, ..Advanced::default() });
    let before = kinds(&db, "ops.").await.len();
    let both = Advanced { applied: 1, switched: 1, ended: 1, ..Advanced::default() };
    assert_eq!(advanced(here, then).await, both);
    assert_eq!(
        kinds(&db, "ops.").await[before..],
        ["ops.plan_status_changed", "ops.curtailment_ended", "ops.plan_applied", "ops.curtailment_started"]
    );
}

/// As many as end at once as are done in one transaction: what begins waits for the next.
#[tokio::test]
async fn what_begins_waits_until_all_that_ends_is_told() {
    let (db, api) = fleet(1).await;
    let start = next_hour();
    let then = start + TimeDelta::hours(2);
    for from in [start, then] {
        let id = made(&api, json!({"kind": "optimum", "prices": intervals(from, 3_600, &[300, 300])})).await;
        decide(&api, &id, "approve").await.expect(200);
    }
    let one = async |now| {
        at((&db, &api), now, async |tx, caller| advance(tx, caller, 1).await.expect("advanced")).await
    };
    assert_eq!(one(start).await, Advanced { applied: 1, switched: 1, more: true, ..Advanced::default() });
    assert_eq!(one(then).await, Advanced { ended: 1, more: true, ..Advanced::default() });
    assert_eq!(one(then).await, Advanced { applied: 1, switched: 1, more: true, ..Advanced::default() });
}

/// A site that a plan and the automation hold off may run when both have let go, whichever does first.
#[tokio::test]
async fn what_still_holds_is_told() {
    for plan_first in [true, false] {
        let (db, api) = fleet(1).await;
        let here = (&db, &api);
        let now = db.db.now();
        let rule = json!({"market": MARKET, "strike_low_usd_mwh": 60, "strike_high_usd_mwh": 200});
        api.put("/api/ops/settings", rule).await.expect(200);
        let hour = DateTime::from_timestamp(now.timestamp() / 3_600 * 3_600, 0).expect("a time");
        receive(&api, hour, 3_600, &[999, 999]).await;
        let id = made(&api, cut(3.5)).await;
        decide(&api, &id, "approve").await.expect(200);
        let observed = async || {
            at(here, db.db.now(), async |tx, caller| observe(tx, caller).await.expect("observed")).await
        };
        assert_eq!(observed().await.curtailed, 1);
        assert_eq!(advanced(here, db.db.now()).await.switched, 1);
        let mut told_of: Vec<(Value, Value)> = Vec::new();
        for of_plan in [plan_first, !plan_first] {
            if of_plan {
                decide(&api, &id, "stop").await.expect(200);
            } else {
                api.put("/api/ops/settings", json!({"market": MARKET})).await.expect(200);
                assert_eq!(observed().await.resumed, 1);
            }
            let data = told(&db, "ops.curtailment_ended").await;
            told_of.push((data["source"].clone(), data["held_by"].clone()));
        }
        let (first, second) = if plan_first { ("plan", "strike") } else { ("strike", "plan") };
        assert_eq!(told_of, [(json!(first), json!([second])), (json!(second), json!([]))]);
    }
}
