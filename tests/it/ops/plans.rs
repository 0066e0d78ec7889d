//! Plans: made of an optimum or a cut, approved by a second person, moved by their table.

use chrono::{DateTime, TimeDelta, Utc};
use hashinsight::domain::Caller;
use hashinsight::domain::ops::plan;
use hashinsight::economics::curtailment::PlanStatus;
use reqwest::Method;
use serde_json::{Value, json};

use super::{DAY, intervals, kinds, snapshot, somebody_waits, this_hour, told};
use crate::support::{Answer, SCOPES, TestApi, TestDb, problem, written};

/// A fleet of S21, 3.5 kW each, and the network.
pub(super) async fn fleet(quantity: i64) -> (TestDb, TestApi) {
    let db = TestDb::new().await;
    let api = TestApi::start(&db).await;
    api.post("/api/network/snapshots", snapshot()).await.expect(201);
    api.add_miner(json!({"model": "S21", "status": "online", "quantity": quantity})).await;
    (db, api)
}

/// A plan over the specification's day from `start` on; returns its id.
pub(super) async fn planned(api: &TestApi, start: DateTime<Utc>) -> String {
    made(api, json!({"kind": "optimum", "prices": intervals(start, 3_600, &DAY)})).await
}

/// The start of the next hour.
pub(super) fn next_hour() -> DateTime<Utc> {
    this_hour() + TimeDelta::hours(1)
}

/// Makes a plan; returns its id.
pub(super) async fn made(api: &TestApi, body: Value) -> String {
    id_of(&api.post("/api/ops/plans", body).await.expect(201))
}

pub(super) fn id_of(made: &Answer) -> String {
    made.body["plan_id"].as_str().expect("an id").to_owned()
}

/// A decision: an approval by the second person.
pub(super) async fn decide(api: &TestApi, id: &str, what: &str) -> Answer {
    let token = if what == "approve" { api.admin_token_of("boss") } else { api.token() };
    decided(api, &token, id, what).await
}

pub(super) async fn decided(api: &TestApi, token: &str, id: &str, what: &str) -> Answer {
    let path = format!("/api/ops/plans/{id}/{what}");
    api.ask(token, Method::POST, &path, Some(json!({"reason": "because"}))).await
}

pub(super) async fn shown(api: &TestApi, id: &str) -> Value {
    api.get(&format!("/api/ops/plans/{id}")).await.expect(200).body["data"].clone()
}

pub(super) fn cut(target_kw: f64) -> Value {
    json!({"kind": "cut", "target_kw": target_kw, "ends_at": Utc::now() + TimeDelta::hours(2)})
}

#[tokio::test]
async fn a_plan_is_made_of_the_optimum() {
    let (db, api) = fleet(1).await;
    let start = next_hour();
    let id = planned(&api, start).await;
    assert_eq!(kinds(&db, "ops.").await, ["ops.plan_created"]);
    let plan = shown(&api, &id).await;
    assert_eq!(
        (&plan["status"], &plan["kind"], &plan["peak_kw"]),
        (&json!("pending"), &json!("optimum"), &json!(3.5))
    );
    super::close(&plan["value_usd"], 0.792781);
    let rows = plan["rows"].as_array().expect("rows");
    assert_eq!((rows.len(), &rows[5]["miners_offline"], &rows[5]["is_peak"]), (12, &json!(1), &json!(true)));
    assert_eq!(plan["starts_at"], json!(start));
    assert_eq!((&plan["detail"]["method"], &plan["detail"]["rows"]), (&json!("exact"), &Value::Null));
    let listed = api.get("/api/ops/plans?status=pending").await.expect(200);
    assert_eq!(listed.body["data"].as_array().map(Vec::len), Some(1));
    // A list leaves out what can be large.
    for (part, shown) in [("groups", false), ("classes", false), ("method", true)] {
        assert!(plan["detail"][part] != Value::Null, "{part}");
        assert_eq!(listed.body["data"][0]["detail"][part] != Value::Null, shown, "{part}");
    }
    let none = api.get("/api/ops/plans?status=approved").await.expect(200);
    assert_eq!(none.body["data"], json!([]));
    api.get("/api/ops/plans?status=done").await.expect(400);

    // What is over is no plan.
    let past =
        json!({"kind": "optimum", "prices": intervals(this_hour() - TimeDelta::hours(2), 3_600, &[50, 50])});
    assert_eq!(api.post("/api/ops/plans", past).await.expect(422).fields(), ["prices"]);
    // What has no schedule is no plan.
    let before = written(&db).await;
    let refused = api.post("/api/ops/plans", json!({"kind": "optimum"})).await;
    problem(&refused, 409, "no-schedule");
    assert!(refused.body["detail"].as_str().is_some_and(|detail| detail.contains("no-market")));
    for body in [json!({}), json!({"kind": "dream"})] {
        assert_eq!(api.post("/api/ops/plans", body).await.expect(422).fields(), ["kind"]);
    }
    assert_eq!(written(&db).await, before);
    // Nobody else's: not for another user, not for another tenant.
    let foreign = api.ask(&api.foreign_token(), Method::GET, &format!("/api/ops/plans/{id}"), None).await;
    foreign.expect(404);
}

#[tokio::test]
async fn a_plan_over_the_cap_or_the_power_is_refused() {
    let (db, api) = fleet(2).await;
    let prices = json!(intervals(next_hour(), 3_600, &[10, 10]));
    let id = planned(&api, next_hour()).await;
    api.put("/api/ops/settings", json!({"cap_kw": 5})).await.expect(200);
    let before = written(&db).await;
    // A request may ask about another cap; a plan may not go beyond the site's.
    let wide = json!({"kind": "optimum", "cap_kw": 10, "prices": prices});
    let refused = api.post("/api/ops/plans", wide).await.expect(422);
    assert_eq!(refused.fields(), ["cap_kw"]);
    let message = "must be at most 5: the plan draws up to 7 kW, the settings of the site allow 5 kW";
    assert_eq!(refused.body["errors"][0]["message"], message);
    let refused = api.post("/api/ops/plans", cut(7.5)).await.expect(422);
    assert_eq!(refused.fields(), ["target_kw"]);
    assert_eq!(refused.body["errors"][0]["message"], "must be at most 7, which is what runs draws");
    // Nor may one be approved that was made before the cap.
    problem(&decide(&api, &id, "approve").await, 409, "over-site-cap");
    assert_eq!(written(&db).await, before);
    let narrow = made(&api, json!({"kind": "optimum", "prices": prices})).await;
    assert_eq!(shown(&api, &narrow).await["peak_kw"], 3.5);
    let left = made(&api, cut(3.5)).await;
    let plan = shown(&api, &left).await;
    assert_eq!((&plan["rows"][0]["kw"], &plan["rows"][0]["miners_offline"]), (&json!(3.5), &json!(1)));

    // A cut that leaves more on than the site may draw says how much more has to go.
    api.put("/api/ops/settings", json!({"cap_kw": 3})).await.expect(200);
    let refused = api.post("/api/ops/plans", cut(1.0)).await.expect(422);
    assert_eq!(refused.fields(), ["target_kw"]);
    assert!(refused.body["errors"][0]["message"].as_str().is_some_and(|m| m.contains("0.5 kW")));
    // What spans several users is measured by the cap of none.
    let mut all = cut(1.0);
    all["all_users"] = json!(true);
    let all = api.ask(&api.admin_token(), Method::POST, "/api/ops/plans", Some(all)).await.expect(201);
    decide(&api, &id_of(&all), "approve").await.expect(200);
}

#[tokio::test]
async fn who_makes_a_plan_does_not_approve_it() {
    let (db, api) = fleet(1).await;
    let id = planned(&api, next_hour()).await;
    let before = written(&db).await;
    // Whatever else the maker may do.
    for token in [api.token(), api.admin_token()] {
        problem(&decided(&api, &token, &id, "approve").await, 409, "second-person");
    }
    decided(&api, &api.token_of("stranger", SCOPES), &id, "approve").await.expect(404);
    let refused = sqlx::query("update ops_plan set approved_by = created_by").execute(&db.admin).await;
    assert!(refused.is_err_and(|error| error.to_string().contains("second_person")));
    assert_eq!(written(&db).await, before);
    assert_eq!(shown(&api, &id).await["status"], "pending");
    decide(&api, &id, "approve").await.expect(200);
    assert_eq!(shown(&api, &id).await["approved_by"], "boss");

    // What an admin made for a user is the user's to approve.
    let boss = api.admin_token_of("boss");
    let later = next_hour() + TimeDelta::hours(12);
    let body = json!({"kind": "optimum", "user_id": api.user, "prices": intervals(later, 3_600, &DAY)});
    let made = id_of(&api.ask(&boss, Method::POST, "/api/ops/plans", Some(body)).await.expect(201));
    problem(&decided(&api, &boss, &made, "approve").await, 409, "second-person");
    decided(&api, &api.token(), &made, "approve").await.expect(200);
    // Whoever made it may stop or cancel it.
    decided(&api, &boss, &made, "cancel").await.expect(200);
}

/// Every status, and everything that can be asked for.
#[tokio::test]
async fn a_plan_moves_by_its_table() {
    let (db, api) = fleet(1).await;
    let start = next_hour();
    for from in PlanStatus::ALL {
        for (what, to) in [
            ("approve", PlanStatus::Approved),
            ("stop", PlanStatus::RecoveryPending),
            ("cancel", PlanStatus::Cancelled),
        ] {
            let id = planned(&api, start).await;
            let status = from.as_str();
            db.execute(&format!(
                "update ops_plan set status = '{status}', recovered_at = now() where id = '{id}'"
            ))
            .await;
            let before = written(&db).await;
            let answer = decide(&api, &id, what).await;
            if from.move_to(to).is_ok() {
                assert_eq!(answer.status, 200, "{from} to {to}: {:#}", answer.body);
                assert_eq!(answer.body["status"], to.as_str());
                assert_eq!(shown(&api, &id).await["status"], to.as_str());
                let (_, events, audit) = written(&db).await;
                assert_eq!((events - before.1, audit - before.2), (1, 1));
                let data = told(&db, "ops.plan_status_changed").await;
                assert_eq!(
                    (&data["from"], &data["to"], &data["reason"]),
                    (&json!(status), &json!(to), &json!("because"))
                );
            } else {
                problem(&answer, 409, "invalid-transition");
                assert_eq!((&answer.body["from"], &answer.body["to"]), (&json!(status), &json!(to)));
                assert_eq!(answer.body["allowed"], json!(from.next()));
                assert_eq!(written(&db).await, before, "a refusal left something");
            }
            // Out of the way of the next one.
            db.execute("update ops_plan set status = 'cancelled'").await;
        }
    }
    decide(&api, &uuid::Uuid::now_v7().to_string(), "approve").await.expect(404);
}

#[tokio::test]
async fn of_plans_at_the_same_time_one_is_approved() {
    let (db, api) = fleet(1).await;
    let start = next_hour();
    let (one, two) = (planned(&api, start).await, planned(&api, start).await);
    let mut tx = db.db.tenant(&api.tenant.parse().expect("a tenant")).await.expect("begin");
    let boss = "boss".parse().expect("a user");
    let caller = Caller { actor: &boss, request_id: "first", traceparent: "", now: tx.now() };
    let reason = json!({"reason": "because"});
    let (id, reason) = (one.parse().expect("an id"), reason.as_object().expect("an object"));
    plan::decide(&mut tx, caller, None, id, PlanStatus::Approved, reason).await.expect("approved");
    // At the same moment: it waits, and sees the first one.
    let end = async {
        somebody_waits(&db).await;
        tx.commit().await.expect("commit");
    };
    let (later, ()) = tokio::join!(decide(&api, &two, "approve"), end);
    problem(&later, 409, "plan-overlaps");
    // One after it has its time.
    let end = start + TimeDelta::hours(12);
    let later =
        json!({"kind": "cut", "target_kw": 1, "starts_at": end, "ends_at": end + TimeDelta::hours(1)});
    decide(&api, &made(&api, later).await, "approve").await.expect(200);
}
