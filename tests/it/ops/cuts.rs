//! Manual cuts: which machines, of whose, measured how, and what others hold meanwhile.

use chrono::{DateTime, TimeDelta, Utc};
use hashinsight::domain::ops::plan::advance;
use reqwest::Method;
use serde_json::{Value, json};

use super::plans::{cut, decide, decided, fleet, id_of, made, next_hour, planned, shown};
use super::{at, kinds, this_hour};
use crate::support::{Answer, TestApi, TestDb, problem, settings};

/// A cut of everybody's machines.
fn of_all(target_kw: f64, strategy: &str) -> Value {
    let mut all = cut(target_kw);
    (all["all_users"], all["strategy"]) = (json!(true), json!(strategy));
    all
}

/// A cut between two moments.
fn between(target_kw: f64, from: DateTime<Utc>, to: DateTime<Utc>) -> Value {
    json!({"kind": "cut", "target_kw": target_kw, "starts_at": from, "ends_at": to})
}

async fn admin(api: &TestApi, body: Value) -> Answer {
    api.ask(&api.admin_token(), Method::POST, "/api/ops/plans", Some(body)).await
}

#[tokio::test]
async fn cuts_take_the_worst_first_and_spare_who_pays_more() {
    let (_db, api) = fleet(2).await;
    let admin = api.admin_token();
    let seen = async |id: &str| {
        api.ask(&admin, Method::GET, &format!("/api/ops/plans/{id}"), None).await.expect(200).body["data"]
            .clone()
    };
    let weak = api.add_miner(json!({"model": "S21", "status": "online", "location": "Hall 2"})).await;
    let point = json!({"miner_id": weak, "at": this_hour(), "hashrate_ths": 120, "power_w": 3500});
    api.post("/api/miners/telemetry", json!({"points": [point]})).await.expect(201);
    let detail = shown(&api, &made(&api, cut(3.0)).await).await["detail"].clone();
    assert_eq!(detail["miners"], json!([{"miner_id": weak, "quantity": 1}]), "60 % of its rating");
    assert_eq!((&detail["cut_kw"], &detail["warnings"]), (&json!(3.5), &json!(["no-telemetry"])));

    let mut filtered = cut(3.5);
    filtered["strategy"] = json!("custom");
    assert_eq!(api.post("/api/ops/plans", filtered.clone()).await.expect(422).fields(), ["filter"]);
    filtered["filter"] = json!({"locations": ["Hall 9"]});
    let refused = api.post("/api/ops/plans", filtered.clone()).await.expect(422);
    assert_eq!(refused.fields(), ["filter"]);
    assert!(refused.body["errors"][0]["message"].as_str().is_some_and(|m| m.contains("3.5 kW less")));
    filtered["filter"] = json!({"halls": ["Hall 2"]});
    assert_eq!(api.post("/api/ops/plans", filtered).await.expect(422).fields(), ["filter"]);

    // Everybody's machines are an admin's to cut; the caller is a vip here, bob is not.
    let ask = async |body: Value| api.ask(&admin, Method::POST, "/api/ops/plans", Some(body)).await;
    let vip = json!({"user_id": api.user, "tier": "vip"});
    api.ask(&admin, Method::PUT, "/api/ops/settings", Some(vip)).await.expect(200);
    let bobs = api.add_miner(json!({"model": "S21", "status": "online", "owner_id": "bob"})).await;
    for (strategy, spared) in [("customer_priority", true), ("performance_priority", false)] {
        let mut all = cut(3.5);
        (all["all_users"], all["strategy"]) = (json!(true), json!(strategy));
        api.post("/api/ops/plans", all.clone()).await.expect(403);
        let made = ask(all).await.expect(201);
        let detail = seen(&id_of(&made)).await["detail"].clone();
        let first = if spared { &bobs } else { &weak };
        assert_eq!(detail["miners"], json!([{"miner_id": first, "quantity": 1}]), "{strategy}");
    }
    let mut fair = cut(7.0);
    (fair["all_users"], fair["strategy"]) = (json!(true), json!("fair_distribution"));
    let made = ask(fair).await.expect(201);
    let detail = seen(&id_of(&made)).await["detail"].clone();
    assert_eq!(detail["by_customer"].as_array().map(Vec::len), Some(2));
    for (body, fields) in [
        (json!({"kind": "cut"}), vec!["target_kw", "ends_at"]),
        (json!({"kind": "cut", "target_kw": 1, "ends_at": this_hour()}), vec!["ends_at"]),
        (
            json!({"kind": "cut", "target_kw": 0, "ends_at": "2999-01-01T00:00:00Z"}),
            vec!["target_kw", "ends_at"],
        ),
        (
            json!({"kind": "cut", "target_kw": 1, "starts_at": Utc::now() - TimeDelta::minutes(6),
                   "ends_at": Utc::now() + TimeDelta::hours(1)}),
            vec!["starts_at"],
        ),
    ] {
        assert_eq!(api.post("/api/ops/plans", body.clone()).await.expect(422).fields(), fields, "{body}");
    }
}

#[tokio::test]
async fn what_is_everybodys_is_for_admins_and_told_each_of_them() {
    let (db, api) = fleet(2).await;
    api.add_miner(json!({"model": "S21", "status": "online", "owner_id": "bob"})).await;
    api.add_miner(json!({"model": "S21", "status": "offline", "owner_id": "cid"})).await;
    let mut named = of_all(7.0, "fair_distribution");
    named["user_id"] = json!("bob");
    let refused = admin(&api, named).await.expect(422);
    assert_eq!(refused.fields(), ["user_id"], "bob would read everybody's machines");
    let id = id_of(&admin(&api, of_all(7.0, "fair_distribution")).await.expect(201));

    // Nor may one who made it as an admin, and is none any more.
    let path = format!("/api/ops/plans/{id}");
    api.get(&path).await.expect(404);
    for what in ["approve", "stop", "cancel"] {
        decided(&api, &api.token(), &id, what).await.expect(404);
    }
    assert_eq!(api.get("/api/ops/plans").await.expect(200).body["data"], json!([]));
    let listed = api.ask(&api.admin_token(), Method::GET, "/api/ops/plans", None).await.expect(200);
    assert_eq!(listed.body["data"][0]["plan_id"], json!(id));
    assert_eq!(listed.body["data"][0]["detail"].get("miners"), None);

    decide(&api, &id, "approve").await.expect(200);
    at((&db, &api), Utc::now(), async |tx, caller| advance(tx, caller, 100).await.expect("advanced")).await;
    let started = told_all(&db, "ops.curtailment_started").await;
    let mut expected = vec![(json!("bob"), json!(1), json!(0)), (json!(api.user), json!(1), json!(3.5))];
    expected.sort_by_key(|(user, ..)| user.to_string());
    let figures: Vec<_> = started
        .iter()
        .map(|(user, data)| {
            assert_eq!((&data["user_id"], &data["all_users"]), (&json!(user), &json!(true)));
            (json!(user), data["miners_offline"].clone(), data["kw"].clone())
        })
        .collect();
    assert_eq!(figures, expected);
    decided(&api, &api.admin_token(), &id, "stop").await.expect(200);
    let ended = told_all(&db, "ops.curtailment_ended").await;
    assert_eq!(ended.iter().map(|(user, _)| user).collect::<Vec<_>>(), {
        started.iter().map(|(user, _)| user).collect::<Vec<_>>()
    });
    assert!(ended.iter().all(|(_, data)| data["held_by"] == json!([])));
    assert_eq!(told_all(&db, "ops.plan_applied").await[0].1["all_users"], true);
    assert_eq!(kinds(&db, "ops.plan_created").await.len(), 1);
}

/// Whom an event is about and what it says, of a kind, in order.
async fn told_all(db: &TestDb, kind: &str) -> Vec<(String, Value)> {
    sqlx::query_as(
        "select user_id, payload -> 'data' from event_outbox where event_type = $1 order by position",
    )
    .bind(kind)
    .fetch_all(&db.admin)
    .await
    .expect("events")
}

/// A cut of everybody's machines is at the same time as anybody's plan, whichever was approved first.
#[tokio::test]
async fn what_is_everybodys_overlaps_every_plan() {
    let (_db, api) = fleet(2).await;
    api.add_miner(json!({"model": "S21", "status": "online", "owner_id": "bob"})).await;
    let (from, to) = (next_hour(), next_hour() + TimeDelta::hours(1));
    let mut all = between(3.5, from, to);
    all["all_users"] = json!(true);
    let all = id_of(&admin(&api, all).await.expect(201));
    let mut bobs = between(3.5, from, to);
    bobs["user_id"] = json!("bob");
    let bobs = id_of(&admin(&api, bobs).await.expect(201));
    let (one, other) = tokio::join!(decide(&api, &all, "approve"), decide(&api, &bobs, "approve"));
    let (won, lost, of_lost) = if one.status == 200 { (&all, other, &bobs) } else { (&bobs, one, &all) };
    problem(&lost, 409, "plan-overlaps");
    decided(&api, &api.admin_token(), won, "cancel").await.expect(200);
    decide(&api, of_lost, "approve").await.expect(200);
    let won = id_of(
        &admin(&api, {
            let mut again = between(3.5, from, to);
            if of_lost == &all {
                again["user_id"] = json!("bob")
            } else {
                again["all_users"] = json!(true)
            }
            again
        })
        .await
        .expect(201),
    );
    problem(&decide(&api, &won, "approve").await, 409, "plan-overlaps");
}

#[tokio::test]
async fn a_cut_takes_what_nothing_else_holds() {
    let (db, api) = fleet(3).await;
    let now = Utc::now();
    let hour = |n| now + TimeDelta::hours(n);
    let first = made(&api, between(3.5, now, hour(2))).await;
    let refused = async |body: Value| {
        let refused = api.post("/api/ops/plans", body).await.expect(422);
        assert_eq!(refused.fields(), ["target_kw"]);
        refused.body["errors"][0]["message"].as_str().expect("a message").to_owned()
    };
    made(&api, between(10.5, hour(1), hour(3))).await;
    for step in ["approve", "begin"] {
        match step {
            "approve" => drop(decide(&api, &first, step).await.expect(200)),
            _ => db.execute("update ops_plan set status = 'executing' where status = 'approved'").await,
        }
        let message = refused(between(7.5, hour(1), hour(3))).await;
        assert_eq!(message, "must be at most 7, which is what runs draws", "{step}");
        let second = shown(&api, &made(&api, between(7.0, hour(1), hour(3))).await).await;
        assert_eq!(second["detail"]["miners"][0]["quantity"], 2);
        assert_eq!((&second["rows"][0]["miners_online"], &second["rows"][0]["kw"]), (&json!(0), &json!(0)));
        made(&api, between(10.5, hour(2), hour(3))).await;
    }

    // A site that the automation switched off has nothing to cut, as long as nobody knows when it runs again.
    db.execute("update ops_plan set status = 'cancelled'").await;
    db.execute(&format!(
        "insert into ops_strike (tenant_id, owner_id, market, phase, windows, last_window, since) \
         values ('{}', '{}', 'WEST', 'curtailed', 0, 1, now())",
        api.tenant, api.user
    ))
    .await;
    assert!(refused(cut(3.5)).await.contains("at most 0"));
    made(&api, between(10.5, hour(1), hour(2))).await;
    db.execute("update ops_strike set phase = 'running'").await;

    // An optimum does not say which machines it holds.
    let warnings = async |body: Value| {
        let answer = api.post("/api/ops/plans", body).await.expect(201);
        assert_eq!(shown(&api, &id_of(&answer)).await["detail"]["warnings"], answer.body["warnings"]);
        answer.body["warnings"].clone()
    };
    let start = next_hour();
    let optimum = planned(&api, start).await;
    let beside = || between(3.5, start + TimeDelta::hours(11), start + TimeDelta::hours(13));
    assert_eq!(warnings(beside()).await, json!(["no-telemetry"]));
    decide(&api, &optimum, "approve").await.expect(200);
    assert_eq!(warnings(beside()).await, json!(["no-telemetry", "optimum-overlaps"]));
    let behind = between(3.5, start + TimeDelta::hours(12), start + TimeDelta::hours(13));
    assert_eq!(warnings(behind).await, json!(["no-telemetry"]));
}

/// Hours of telemetry of a miner, newest last: hashrate and power of its points, and its lowest hashrate.
async fn measured(db: &TestDb, miner: &str, hours: &[(f64, f64, f64)]) {
    for (ago, (ths, power_w, lowest)) in (0..hours.len()).rev().zip(hours) {
        db.execute(&format!(
            "insert into miner_telemetry_hourly (tenant_id, miner_id, hour, points, hashrate_ths_sum, hashrate_ths_min, \
               hashrate_ths_max, power_points, power_w_sum) \
             select tenant_id, id, date_trunc('hour', now(), 'UTC') - interval '{ago} hours', 4, 4 * {ths}::float8, \
               {lowest}::float8, 2 * {ths}::float8, 4, 4 * {power_w}::float8 from miners where id = '{miner}'"
        ))
        .await;
    }
}

/// What a machine does when it runs is not diluted by the hours in which somebody had it off.
#[tokio::test]
async fn a_machine_is_measured_while_it_runs() {
    let (db, api) = fleet(1).await;
    let id = db.scalar::<uuid::Uuid>("select id from miners").await.to_string();
    db.execute("update miners set quantity = 10").await;
    let day = [[(200.0, 3_500.0, 200.0); 6], [(0.0, 0.0, 0.0); 6]].concat().repeat(2);
    measured(&db, &id, &day[..23]).await;
    let plan = shown(&api, &made(&api, cut(20.0)).await).await;
    assert_eq!((&plan["detail"]["cut_kw"], &plan["rows"][0]["kw"]), (&json!(21), &json!(14)));

    // One that never ran for an hour without a break is measured by all of them, and is the first to go.
    let weak = api.add_miner(json!({"model": "S21", "status": "online"})).await;
    measured(&db, &weak, &[(100.0, 2_000.0, 0.0), (0.0, 1_000.0, 0.0)]).await;
    let plan = shown(&api, &made(&api, cut(1.5)).await).await;
    assert_eq!(plan["detail"]["miners"], json!([{"miner_id": weak, "quantity": 1}]));
    assert_eq!(plan["detail"]["cut_kw"], 1.5);
}

/// Power that is next to none saves nothing and keeps no cut from being made.
#[tokio::test]
async fn a_machine_that_draws_next_to_nothing_stays() {
    let (_db, api) = fleet(1).await;
    let idle = api.add_miner(json!({"model": "S21", "status": "online", "quantity": 2})).await;
    let point = json!({"miner_id": idle, "at": this_hour(), "hashrate_ths": 1e-9, "power_w": 1e-26});
    api.post("/api/miners/telemetry", json!({"points": [point]})).await.expect(201);
    let plan = shown(&api, &made(&api, cut(3.5)).await).await;
    assert_eq!((&plan["detail"]["cut_kw"], &plan["rows"][0]["miners_online"]), (&json!(3.5), &json!(2)));
    assert_ne!(plan["detail"]["miners"][0]["miner_id"], json!(idle));
}

/// What a site draws is what its meter says: with cooling.
#[tokio::test]
async fn the_power_of_a_cut_is_at_the_meter() {
    let db = TestDb::with(settings(&[("HASHINSIGHT__ECONOMICS__PUE", "1.2")])).await;
    let api = TestApi::start(&db).await;
    api.add_miner(json!({"model": "S21", "status": "online", "quantity": 30})).await;
    api.put("/api/ops/settings", json!({"cap_kw": 100})).await.expect(200);
    // 105 kW of machines are 126 at the meter: 5 kW less are not within the cap.
    let refused = api.post("/api/ops/plans", cut(5.0)).await.expect(422);
    assert_eq!(refused.fields(), ["target_kw"]);
    let refused = api.post("/api/ops/plans", cut(127.0)).await.expect(422);
    let message = "must be at most 126, which is what runs draws";
    assert_eq!(refused.body["errors"][0]["message"], message);
    // A limit of efficiency is that of the machine: 17.5 J/TH.
    let mut filtered = cut(27.0);
    filtered["filter"] = json!({"min_efficiency_j_th": 17.5, "max_efficiency_j_th": 17.5});
    let plan = shown(&api, &made(&api, filtered).await).await;
    assert_eq!((&plan["detail"]["cut_kw"], &plan["rows"][0]["kw"]), (&json!(29.4), &json!(96.6)));
    assert_eq!(plan["detail"]["miners"][0]["quantity"], 7);
}
