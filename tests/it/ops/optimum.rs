//! The optimum over HTTP: the specification's day, what it says about missing and old inputs, its limits.

use chrono::TimeDelta;
use reqwest::Method;
use serde_json::{Value, json};

use super::{DAY, MARKET, close, intervals, optimum, receive, snapshot, this_hour};
use crate::support::{TestApi, TestDb, written};

/// Who is on, step by step.
fn online(data: &Value) -> Vec<i64> {
    data["rows"]
        .as_array()
        .expect("rows")
        .iter()
        .map(|row| row["miners_online"].as_i64().expect("a count"))
        .collect()
}

#[tokio::test]
async fn the_day_of_the_specification() {
    let db = TestDb::new().await;
    let api = TestApi::start(&db).await;
    api.post("/api/network/snapshots", snapshot()).await.expect(201);
    api.add_miner(json!({"model": "S21", "status": "online"})).await;
    api.add_miner(json!({"model": "S21", "status": "offline", "quantity": 50})).await;
    let before = written(&db).await;
    let start = this_hour();
    let day = intervals(start, 3_600, &DAY);
    for (limits, value, pattern) in [
        (json!({}), 0.792781, [1, 1, 0, 1, 0, 0, 0, 0, 1, 0, 1, 1]),
        (json!({"min_up_steps": 2, "min_down_steps": 2}), 0.736208, [1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1, 1]),
        (
            json!({"min_up_steps": 2, "min_down_steps": 2, "start_cost_usd": "0.05"}),
            0.686208,
            [1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1, 1],
        ),
    ] {
        let mut body = limits.clone();
        body["prices"] = json!(day);
        let answer = optimum(&api, body).await.expect(200);
        let data = &answer.body["data"];
        close(&data["value_usd"], value);
        close(&data["always_on_usd"], -0.881938);
        assert_eq!(online(data), pattern, "{limits}");
        assert_eq!((&data["method"], &data["gap_percent"]), (&json!("exact"), &json!(0)));
        assert_eq!(data["bound_usd"], data["value_usd"]);
        assert_eq!((&data["warnings"], &data["user_id"]), (&json!([]), &json!(api.user)));
        close(&data["classes"][0]["strike_usd_mwh"], 89.41814);
        assert_eq!(data["classes"][0]["miners"], 1, "only what runs");
        assert_eq!(
            (&data["starts_at"], &data["ends_at"]),
            (&json!(start), &json!(start + TimeDelta::hours(12)))
        );
        let row = &data["rows"][5];
        assert_eq!(
            (&row["is_peak"], &row["kw"], &row["price_usd_mwh"]),
            (&json!(true), &json!(0), &json!(300))
        );
    }
    assert_eq!(written(&db).await, before, "a question changes nothing");
}

#[tokio::test]
async fn what_is_missing_or_old_is_named() {
    let db = TestDb::new().await;
    let api = TestApi::start(&db).await;
    let warnings = async |body: Value| optimum(&api, body).await.expect(200).body["data"].clone();
    let nothing = warnings(json!({})).await;
    assert_eq!(nothing["warnings"], json!(["no-snapshot", "no-market", "no-miners"]));
    for field in ["value_usd", "bound_usd", "always_on_usd", "prices_as_of", "network_as_of", "starts_at"] {
        assert_eq!(nothing[field], Value::Null, "{field}");
    }
    assert_eq!(nothing["rows"], json!([]));

    api.add_miner(json!({"model": "S21", "status": "online"})).await;
    api.put("/api/ops/settings", json!({"market": MARKET})).await.expect(200);
    assert_eq!(warnings(json!({})).await["warnings"], json!(["no-snapshot", "no-prices"]));
    api.post("/api/network/snapshots", snapshot()).await.expect(201);
    let start = this_hour();
    receive(&api, start + TimeDelta::hours(1), 3_600, &[50, 100, 60]).await;
    let short = warnings(json!({})).await;
    assert_eq!(short["warnings"], json!(["prices-incomplete"]));
    assert_eq!(online(&short), [1, 0, 1]);
    receive(&api, start, 3_600, &[50; 25]).await;
    let whole = warnings(json!({})).await;
    assert_eq!((&whole["warnings"], online(&whole).len()), (&json!([]), 24));
    assert!(whole["prices_as_of"].is_string() && whole["network_as_of"].is_string());

    // 30 minutes are fresh, more are not.
    db.execute("update power_price set received_at = received_at - interval '29 minutes'").await;
    assert_eq!(warnings(json!({})).await["warnings"], json!([]));
    db.execute("update power_price set received_at = received_at - interval '2 minutes'").await;
    assert_eq!(warnings(json!({})).await["warnings"], json!(["prices-stale"]));
    // What settles the hour before makes those ahead no younger.
    receive(&api, start - TimeDelta::hours(1), 300, &[40; 12]).await;
    assert_eq!(warnings(json!({})).await["warnings"], json!(["prices-stale"]));
    db.execute("update network_snapshots set observed_at = observed_at - interval '31 minutes'").await;
    let old = warnings(json!({})).await;
    assert_eq!(old["warnings"], json!(["prices-stale", "snapshot-stale"]));
    assert_eq!(old["value_usd"], whole["value_usd"], "computed, with a warning");

    // Another tenant has neither.
    let theirs = api
        .ask(
            &api.foreign_token(),
            Method::POST,
            "/api/intelligence/optimize/curtailment",
            Some(json!({"market": MARKET})),
        )
        .await
        .expect(200);
    assert_eq!(theirs.body["data"]["warnings"], json!(["no-snapshot", "no-prices", "no-miners"]));
}

#[tokio::test]
async fn limits_hold_and_contradictions_are_named() {
    let db = TestDb::new().await;
    let api = TestApi::start(&db).await;
    api.post("/api/network/snapshots", snapshot()).await.expect(201);
    api.add_miner(json!({"model": "S21", "status": "online", "quantity": 4})).await;
    api.add_miner(json!({"model": "Antminer S21", "status": "online", "quantity": 2})).await;
    let cheap = intervals(this_hour(), 3_600, &[10; 6]);
    let capped = optimum(&api, json!({"prices": cheap, "cap_kw": 8})).await.expect(200).body["data"].clone();
    assert_eq!(online(&capped), [2; 6], "the cap leaves room for two of six");
    assert_eq!((&capped["always_on_usd"], &capped["classes"][0]["miners"]), (&Value::Null, &json!(6)));
    // 21 kW cannot have run under that cap: the ramp does not lead from there.
    let ramped = json!({"prices": cheap, "cap_kw": 8, "ramp_kw": 5});
    let ramped = optimum(&api, ramped).await.expect(200).body["data"].clone();
    assert_eq!((online(&ramped), &ramped["warnings"]), (vec![2; 6], &json!([])));
    let held = json!({"prices": cheap, "cap_kw": 8, "min_online_share": 1});
    let none = optimum(&api, held).await.expect(200).body["data"].clone();
    assert_eq!((&none["warnings"], &none["value_usd"]), (&json!(["limits-contradict"]), &Value::Null));
}

#[tokio::test]
async fn questions_that_are_too_large_or_not_one_are_refused() {
    let db = TestDb::new().await;
    let api = TestApi::start(&db).await;
    api.post("/api/network/snapshots", snapshot()).await.expect(201);
    let start = this_hour();
    let mut gap = intervals(start, 3_600, &[1, 2, 3]);
    gap.remove(1);
    for (body, field) in [
        (json!({"hours": 0}), "hours"),
        (json!({"hours": 25, "step_seconds": 300}), "hours"),
        (json!({"hours": 289}), "hours"),
        (json!({"cap_kw": "much"}), "cap_kw"),
        (json!({"prices": []}), "prices"),
        (json!({"prices": gap}), "prices"),
        (json!({"prices": intervals(start, 300, &[1; 13])}), "prices"),
        (json!({"prices": intervals(start, 300, &[1; 289]), "step_seconds": 300}), "prices"),
        (json!({"prices": intervals(start, 3_600, &[1; 25]), "step_seconds": 300}), "prices"),
        (json!({"prices": [{"start": start, "seconds": 5, "price_usd_mwh": 1}]}), "prices"),
    ] {
        let refused = optimum(&api, body.clone()).await;
        assert_eq!((refused.status.as_u16(), refused.fields()), (422, vec![field]), "{body}");
    }
    optimum(&api, json!({"user_id": "bob"})).await.expect(403);
    for n in 0..41 {
        let body = json!({"model": "Custom", "hashrate_ths": 100 + n, "power_w": 3000, "status": "online"});
        api.add_miner(body).await;
    }
    let refused = optimum(&api, json!({"prices": intervals(start, 3_600, &[1])})).await.expect(422);
    assert_eq!(refused.fields(), ["user_id"]);
}
