//! Telemetry of miners: what counts, what counts once, what is refused, what others are told, what is kept how long.

use chrono::{DateTime, DurationRound, SecondsFormat, TimeDelta, Utc};
use futures_util::future::join_all;
use hashinsight::domain::miner::telemetry::Retention;
use hashinsight::partitions::Upkeep;
use reqwest::Method;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::support::{TestApi, TestDb};

const PATH: &str = "/api/miners/telemetry";

/// As a client writes it and as answers show it.
fn text(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::AutoSi, true)
}

/// The start of an hour some hours ago.
fn hour(ago: i64) -> DateTime<Utc> {
    (Utc::now() - TimeDelta::hours(ago)).duration_trunc(TimeDelta::hours(1)).expect("an hour")
}

fn point(miner: &str, at: DateTime<Utc>, hashrate: f64) -> Value {
    json!({"miner_id": miner, "at": text(at), "hashrate_ths": hashrate})
}

/// Owner and data of every event of telemetry, in order.
async fn events(db: &TestDb) -> Vec<(String, Value)> {
    sqlx::query_as(
        "select user_id, payload -> 'data' from event_outbox where event_type = 'miner.telemetry' order by position",
    )
    .fetch_all(&db.admin)
    .await
    .expect("events")
}

#[tokio::test]
async fn points_add_up_to_hours_and_count_once() {
    let db = TestDb::new().await;
    let api = TestApi::start(&db).await;
    let miner = api.add_miner(json!({"model": "S21"})).await;
    let start = hour(3);
    let at = |minutes: i64| start + TimeDelta::minutes(minutes);
    let mut full = point(&miner, at(0), 190.0);
    full["power"] = json!("3400.5");
    full["temperature"] = json!(61);
    let mut hot = point(&miner, at(5), 200.5);
    hot["temperature_c"] = json!(70.5);
    let first = [full.clone(), hot, point(&miner, at(60), 10.0)];
    let taken = api.post(PATH, json!({"points": first, "batch_id": "gateway-1.17"})).await.expect(201).body;
    assert_eq!(
        (&taken["batch_id"], &taken["total_count"], &taken["accepted_count"], &taken["failed_count"]),
        (&json!("gateway-1.17"), &json!(3), &json!(3), &json!(0))
    );
    assert_eq!(taken["event_id"], taken["event_ids"][0]);

    // Sent again, in part and with another figure: the first one stays, only what is new counts.
    full["hashrate_ths"] = json!(1);
    let again =
        api.post(PATH, json!({"points": [full, point(&miner, at(10), 180.0)]})).await.expect(201).body;
    assert_eq!((&again["accepted_count"], &again["duplicate_count"]), (&json!(1), &json!(1)));
    let known = api.post(PATH, json!({"points": [point(&miner, at(10), 180.0)]})).await.expect(201).body;
    assert_eq!((&known["duplicate_count"], &known["event_id"]), (&json!(1), &Value::Null));

    let list = |query: &str| format!("/api/miners/{miner}/telemetry?from={}&{query}", text(start));
    let hours = api.get(&list("resolution=hour")).await.expect(200).body;
    let expected = json!([
        {"hour": text(at(60)), "points": 1, "hashrate_ths": 10.0, "hashrate_ths_min": 10.0, "hashrate_ths_max": 10.0,
         "power_w": null, "temperature_c_max": null},
        {"hour": text(start), "points": 3, "hashrate_ths": (190.0 + 200.5 + 180.0) / 3.0, "hashrate_ths_min": 180.0,
         "hashrate_ths_max": 200.5, "power_w": 3400.5, "temperature_c_max": 70.5},
    ]);
    assert_eq!(hours["data"], expected);
    let page = api.get(&list("resolution=raw&limit=3")).await.expect(200).body;
    let figures: Vec<&Value> =
        page["data"].as_array().expect("points").iter().map(|p| &p["hashrate_ths"]).collect();
    assert_eq!(figures, [&json!(10.0), &json!(180.0), &json!(200.5)]);
    let next = page["next"].as_str().expect("there is one more");
    let rest = api.get(&list(&format!("resolution=raw&limit=3&cursor={next}"))).await.expect(200).body;
    assert_eq!((&rest["data"][0]["hashrate_ths"], &rest["next"]), (&json!(190.0), &Value::Null));

    let told = events(&db).await;
    let expected = json!({"batch_id": "gateway-1.17", "points": 3, "from": text(start), "to": text(at(60))});
    assert_eq!(told[0], (api.user.clone(), expected));
    assert_eq!(told.len(), 2);
    assert_eq!((&told[1].1["points"], &told[1].1["from"]), (&json!(1), &json!(text(at(10)))));
}

#[tokio::test]
async fn each_owner_is_told_once_and_bad_points_keep_no_other_out() {
    let db = TestDb::new().await;
    let api = TestApi::start(&db).await;
    let own = api.add_miner(json!({"model": "S21"})).await;
    let bobs = api.add_miner(json!({"model": "S21", "owner_id": "bob"})).await;
    let removed = api.add_miner(json!({"model": "S21"})).await;
    api.delete(&format!("/api/miners/{removed}")).await.expect(200);
    let now = Utc::now();
    let mut timeless = point(&own, now, 1.0);
    timeless.as_object_mut().expect("an object").remove("at");
    let points = json!([
        point(&own, now, 200.0),
        point(&bobs, now, 199.0),
        point(&removed, now, 199.0),
        {"miner_id": own, "hashrate_ths": -1, "temperature_c": 301},
        point(&own, now + TimeDelta::minutes(6), 1.0),
        point(&own, now - TimeDelta::days(8), 1.0),
        "hot",
        point("no-miner", now, 1.0),
        timeless,
        point(&bobs, now - TimeDelta::days(6), 198.0),
    ]);
    let taken = api.post(PATH, json!({"points": points})).await.expect(201).body;
    let named: Vec<(u64, &str)> = taken["errors"]
        .as_array()
        .expect("errors")
        .iter()
        .map(|e| (e["row"].as_u64().expect("a row"), e["field"].as_str().expect("a field")))
        .collect();
    let expected = [
        (3, "miner_id"),
        (4, "hashrate_ths"),
        (4, "temperature_c"),
        (5, "at"),
        (6, "at"),
        (7, "row"),
        (8, "miner_id"),
    ];
    assert_eq!(named, expected);
    assert_eq!((&taken["accepted_count"], &taken["failed_count"]), (&json!(4), &json!(6)));
    let mut told: Vec<(String, Value)> =
        events(&db).await.into_iter().map(|(owner, data)| (owner, data["points"].clone())).collect();
    told.sort_by_key(|(owner, _)| owner.clone());
    assert_eq!(told, [("bob".to_owned(), json!(2)), (api.user.clone(), json!(2))]);
}

#[tokio::test]
async fn a_refused_request_leaves_nothing() {
    let db = TestDb::new().await;
    let api = TestApi::start(&db).await;
    let miner = api.add_miner(json!({"model": "S21"})).await;
    let good = point(&miner, Utc::now(), 1.0);
    for (body, field) in [
        (json!({}), "points"),
        (json!({"points": []}), "points"),
        (json!({"points": {"miner_id": miner}}), "points"),
        (json!({"points": [good], "batch_id": "a b"}), "batch_id"),
        (json!({"points": [{"miner_id": miner}]}), "hashrate_ths"),
    ] {
        assert_eq!(api.post(PATH, body.clone()).await.expect(422).fields(), [field], "{body}");
    }
    // However many are wrong, the answer stays short.
    let refused = api.post(PATH, json!({"points": vec![json!(1); 500]})).await.expect(422);
    assert_eq!(refused.fields().len(), 100);
    api.post(PATH, json!({"points": vec![json!(1); 10_001]})).await.expect(413);
    let read_only = api.token_with(&["miners:read"]);
    api.ask(&read_only, Method::POST, PATH, Some(json!({"points": [good]}))).await.expect(403);
    // A miner of another tenant is none.
    let stranger = api.foreign_token();
    let theirs = api.ask(&stranger, Method::POST, PATH, Some(json!({"points": [good]}))).await.expect(422);
    assert_eq!(theirs.fields(), ["miner_id"]);
    let list = format!("/api/miners/{miner}/telemetry");
    api.ask(&stranger, Method::GET, &list, None).await.expect(404);
    for query in
        ["resolution=day", "from=yesterday", "from=2026-01-02T00:00:00Z&to=2026-01-01T00:00:00Z", "limit=0"]
    {
        api.get(&format!("{list}?{query}")).await.expect(400);
    }
    assert_eq!(db.scalar::<i64>("select count(*) from miner_telemetry").await, 0);
    assert_eq!(events(&db).await, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_with_the_same_points_count_each_once() {
    let db = TestDb::new().await;
    let api = TestApi::start(&db).await;
    let miners = [api.add_miner(json!({"model": "S21"})).await, api.add_miner(json!({"model": "S21"})).await];
    let start = hour(2);
    let points: Vec<Value> =
        (0..200).map(|n| point(&miners[n as usize % 2], start + TimeDelta::seconds(n / 2), 100.0)).collect();
    let bodies = (0..8).map(|turn| {
        let mut points = points.clone();
        points.rotate_left(turn * 25);
        json!({"points": points})
    });
    let answers = join_all(bodies.map(|body| api.post(PATH, body))).await;
    let accepted: u64 =
        answers.into_iter().map(|a| a.expect(201).body["accepted_count"].as_u64().expect("a count")).sum();
    assert_eq!(accepted, 200);
    let sums: (i64, i64) =
        sqlx::query_as("select sum(points), sum(hashrate_ths_sum)::bigint from miner_telemetry_hourly")
            .fetch_one(&db.admin)
            .await
            .expect("sums");
    assert_eq!(sums, (200, 20_000));
}

#[tokio::test]
async fn points_go_before_hours_and_hours_in_the_end() {
    let db = TestDb::new().await;
    let api = TestApi::start(&db).await;
    let miner = api.add_miner(json!({"model": "S21"})).await;
    let late = Utc::now() - TimeDelta::days(5);
    let points = json!({"points": [point(&miner, late, 1.0), point(&miner, Utc::now(), 1.0)]});
    api.post(PATH, points).await.expect(201);
    let counts = async || -> (i64, i64) {
        sqlx::query_as(
            "select (select count(*) from miner_telemetry), (select count(*) from miner_telemetry_hourly)",
        )
        .fetch_one(&db.admin)
        .await
        .expect("counts")
    };
    let stopping = CancellationToken::new();
    let configured = Retention::of(&db.config);
    assert_eq!(configured.make_ahead(&db.db).await.expect("again"), 0, "migrate has made them");
    assert!(!configured.remove_old(&db.db, &stopping).await.expect("a pass"));
    assert_eq!(counts().await, (2, 2));
    let days = "select count(*) from pg_inherits where inhparent = 'miner_telemetry'::regclass";
    let before: i64 = db.scalar(days).await;
    let points_gone = Retention { points_days: 4, late_days: 3, ..configured.clone() };
    assert!(!points_gone.remove_old(&db.db, &stopping).await.expect("a pass"));
    assert_eq!(counts().await, (1, 2));
    assert!(db.scalar::<i64>(days).await < before, "whole days went");
    let hours_gone = Retention { hours_days: 4, ..configured };
    hours_gone.remove_old(&db.db, &stopping).await.expect("a pass");
    assert_eq!(counts().await, (1, 1));
}
