//! The schedule: from a price through the log to the read model, once a batch, served from the cache.

use chrono::TimeDelta;
use hashinsight::config::EventLogKind;
use hashinsight::economics::Assumptions;
use hashinsight::event::Event;
use hashinsight::projection::{self, Dirty, Row};
use hashinsight::read_model::schedule::GROUP;
use reqwest::Method;
use serde_json::{Value, json};

use super::{DAY, MARKET, close, intervals, receive, snapshot, this_hour};
use crate::support::pipeline::{Pipeline, Store, User};
use crate::support::{TestApi, TestDb};

/// The schedule as soon as the event of a write is in it.
async fn after(user: &User<'_>, write: &Value) -> Value {
    let event = write["event_id"].as_str().expect("an event");
    user.get(&format!("/api/ops/schedule?after={event}&wait=10")).await
}

async fn prices_to_schedule(log: EventLogKind, store: Store) {
    let pipeline = Pipeline::start(log, store).await;
    let (ann, bob, eve) =
        (pipeline.user("acme", "ann"), pipeline.user("acme", "bob"), pipeline.user("other", "ann"));
    let empty = ann.get("/api/ops/schedule").await;
    assert_eq!((&empty["data"]["version"], &empty["data"]["warnings"]), (&json!(0), &json!(["no-market"])));
    let added = ann.post("/api/miners", &json!({"model": "S21", "status": "online"})).await;
    let network = ann.post("/api/network/snapshots", &snapshot()).await;
    // Applied, so that the next computation is not theirs.
    for write in [&added, &network] {
        assert_eq!(after(&ann, write).await["data"]["version"], 0, "no settings, no schedule");
    }
    let set = ann.put("/api/ops/settings", &json!({"market": MARKET})).await;
    assert_eq!(after(&ann, &set).await["data"]["warnings"], json!(["no-prices"]));

    // The specification's day, three times from this hour on: any 24 hours of it are two of them.
    let day = [DAY, DAY, DAY].concat();
    let body = json!({"market": MARKET, "prices": intervals(this_hour(), 3_600, &day)});
    // Whoever brings the prices need not be who pays them.
    let received = bob.post("/api/ops/prices", &body).await;
    let shown = after(&ann, &received).await;
    let data = &shown["data"];
    close(&data["value_usd"], 2.0 * 0.792781);
    close(&data["always_on_usd"], 2.0 * -0.881938);
    assert_eq!((&data["event_id"], &data["warnings"]), (&received["event_id"], &json!([])));
    assert_eq!(data["rows"].as_array().map(Vec::len), Some(24));
    assert_eq!(shown["metadata"]["source"], "database");
    let cached = ann.get("/api/ops/schedule").await;
    assert_eq!((&cached["metadata"]["cache_hit"], &cached["data"]), (&json!(true), data));

    // A miner of the owner changes it, also through the cache; one of somebody else and another market do not.
    let version = data["version"].as_i64().expect("a version");
    let other = json!({"market": "ELSEWHERE", "prices": intervals(this_hour(), 3_600, &[1])});
    ann.post("/api/ops/prices", &other).await;
    let bobs = bob.post("/api/miners", &json!({"model": "S21", "status": "online"})).await;
    assert_eq!(after(&bob, &bobs).await["data"]["version"], 0, "no settings, no schedule");
    let second = ann.post("/api/miners", &json!({"model": "S21", "status": "online"})).await;
    let doubled = after(&ann, &second).await;
    close(&doubled["data"]["value_usd"], 4.0 * 0.792781);
    assert_eq!(doubled["data"]["version"], version + 1);
    assert_eq!(ann.get("/api/ops/schedule").await["data"], doubled["data"]);
    assert_eq!(eve.get("/api/ops/schedule").await["data"]["version"], 0, "another tenant's ann");
    pipeline.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn prices_reach_the_schedule_on_postgres() {
    prices_to_schedule(EventLogKind::Postgres, Store::Memory).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn prices_reach_the_schedule_on_kafka_with_redis() {
    prices_to_schedule(EventLogKind::Kafka, Store::Redis).await;
}

/// Every event of the outbox, as the group reads it.
pub(super) async fn events(db: &TestDb) -> Vec<Event> {
    let rows: Vec<(String, String, String)> =
        sqlx::query_as("select event_key, payload::text, tenant_id from event_outbox order by position")
            .fetch_all(&db.admin)
            .await
            .expect("events");
    let decode = |(key, value, tenant): &(String, String, String)| {
        hashinsight::event::decode(Some(key.as_bytes()), Some(value.as_bytes()), Some(tenant.as_bytes()))
    };
    rows.iter().map(|row| decode(row).expect("an event")).collect()
}

/// Applies events as one batch of the group, and returns what changed.
pub(super) async fn apply(db: &TestDb, events: &[Event]) -> Vec<Dirty> {
    let groups = projection::groups(Assumptions::default());
    let group = groups.iter().find(|group| group.name == GROUP).expect("the group");
    let mut tx = db.db.worker().await.expect("begin");
    let dirty = group.handler.apply(&mut tx, &events.iter().collect::<Vec<_>>()).await.expect("applied");
    tx.commit().await.expect("commit");
    dirty
}

#[tokio::test]
async fn a_batch_is_one_computation_per_owner() {
    let db = TestDb::new().await;
    let api = TestApi::start(&db).await;
    api.add_miner(json!({"model": "S21", "status": "online", "quantity": 3})).await;
    api.post("/api/network/snapshots", snapshot()).await.expect(201);
    let set = json!({"market": MARKET, "cap_kw": 8, "delivery_usd_mwh": 5});
    api.put("/api/ops/settings", set).await.expect(200);
    let admin = api.admin_token();
    let bobs = json!({"user_id": "bob", "market": "ELSEWHERE"});
    api.ask(&admin, Method::PUT, "/api/ops/settings", Some(bobs)).await.expect(200);
    for price in [70, 60, 50] {
        receive(&api, this_hour(), 3_600, &[price; 26]).await;
    }
    let all = events(&db).await;
    let mut dirty = apply(&db, &all).await;
    // The group forecasts as well.
    dirty.retain(|d| matches!(d.row, Row::Schedule(_)));
    dirty.sort_by_key(|d| format!("{:?}", d.row));
    let users: Vec<_> = dirty.iter().map(|d| (d.row.clone(), d.version)).collect();
    let of = |user: &str| Row::Schedule(user.parse().expect("a user"));
    assert_eq!(users, [(of("bob"), 1), (of(&api.user), 1)]);
    let shown = api.get("/api/ops/schedule").await.expect(200).body["data"].clone();
    // The newest price with delivery, and the cap: two of three run, at 89.41814 - 55 $/MWh.
    close(&shown["value_usd"], 24.0 * 0.007 * (89.418_143_04 - 55.0));
    assert_eq!(
        (&shown["rows"][0]["miners_online"], &shown["rows"][0]["price_usd_mwh"]),
        (&json!(2), &json!(55))
    );

    // The same again: the same schedule, though an hour may have begun meanwhile.
    apply(&db, &all).await;
    let again = api.get("/api/ops/schedule").await.expect(200).body["data"].clone();
    for field in ["value_usd", "bound_usd", "classes", "starts", "warnings", "prices_as_of"] {
        assert_eq!(again[field], shown[field], "{field}");
    }
    // Prices of a market concern those who pay them.
    let of_market: Vec<_> = all.iter().filter(|event| event.kind == "ops.price_received").cloned().collect();
    assert_eq!(apply(&db, &of_market).await.len(), 1);
    let elsewhere = api.ask(&admin, Method::GET, "/api/ops/schedule?user_id=bob", None).await.expect(200);
    assert_eq!(elsewhere.body["data"]["warnings"], json!(["no-prices", "no-miners"]));
}

#[tokio::test]
async fn a_schedule_grows_old_while_it_lies_in_the_cache() {
    let db = TestDb::new().await;
    let api = TestApi::start(&db).await;
    api.add_miner(json!({"model": "S21", "status": "online"})).await;
    api.post("/api/network/snapshots", snapshot()).await.expect(201);
    api.put("/api/ops/settings", json!({"market": MARKET})).await.expect(200);
    receive(&api, this_hour(), 3_600, &[-50; 26]).await;
    apply(&db, &events(&db).await).await;
    let young = api.get("/api/ops/schedule").await.expect(200).body["data"].clone();
    assert_eq!(young["warnings"], json!([]));
    db.execute(
        "update ops_schedule set prices_as_of = prices_as_of - interval '31 minutes', version = version + 1",
    )
    .await;
    let old = api.get("/api/ops/schedule").await.expect(200);
    assert_eq!(old.body["data"]["warnings"], json!(["prices-stale"]));
    assert_eq!(old.body["data"]["rows"].as_array().map(Vec::len), Some(24));

    // As a table, whichever way it is asked for.
    let token = api.token();
    for (path, accept) in [("/api/ops/schedule?format=csv", "*/*"), ("/api/ops/schedule", "text/csv")] {
        let request = api.client.get(api.url(path)).bearer_auth(&token).header("accept", accept);
        let answer = request.send().await.expect("an answer");
        assert_eq!(answer.headers()["content-type"], "text/csv; charset=utf-8");
        assert!(answer.headers()["content-disposition"].to_str().is_ok_and(|d| d.contains("schedule.csv")));
        let text = answer.text().await.expect("text");
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 25);
        assert!(lines[0].starts_with("start,seconds,price_usd_mwh"));
        let first: Vec<&str> = lines[1].split(',').collect();
        assert_eq!((json!(first[0]), first[2], first[4]), (young["starts_at"].clone(), "-50", "1"));
        // Whoever reads the table alone learns how old it is as well.
        assert!(lines[0].ends_with(",prices_as_of,network_as_of,warnings"));
        for line in &lines[1..] {
            let cells: Vec<&str> = line.split(',').collect();
            assert_eq!(json!(cells[10]), old.body["data"]["prices_as_of"]);
            assert_eq!((json!(cells[11]), cells[12]), (young["network_as_of"].clone(), "prices-stale"));
        }
    }
    let path = "/api/ops/schedule?format=csv&user_id=bob";
    let request = api.client.get(api.url(path)).bearer_auth(api.admin_token());
    let empty = request.send().await.expect("an answer");
    assert_eq!(empty.headers()["x-warnings"], "no-market");
    assert_eq!(empty.text().await.expect("text").lines().count(), 1, "a row cannot carry it");
    api.get("/api/ops/schedule?format=xml").await.expect(400);
    api.get("/api/ops/schedule?user_id=bob").await.expect(403);
    let blind = api.token_with(&["ops:plan"]);
    api.ask(&blind, Method::GET, "/api/ops/schedule", None).await.expect(403);
    let unrelated = api
        .post(
            "/api/ops/plans",
            json!({"kind": "cut", "target_kw": 1, "ends_at": this_hour() + TimeDelta::hours(3)}),
        )
        .await
        .expect(201);
    let path = format!("/api/ops/schedule?wait=1&after={}", unrelated.event_id());
    assert_eq!(api.get(&path).await.expect(422).fields(), ["after"], "a plan changes no schedule");
}
