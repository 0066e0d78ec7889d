//! Many miners by one request, as JSON and as CSV: what goes in, what is refused by its number, what others are told.

use hashinsight::config::EventLogKind;
use reqwest::header::CONTENT_TYPE;
use serde_json::{Value, json};

use crate::support::pipeline::{Pipeline, Store};
use crate::support::{Answer, TestApi, TestDb, written};

const PATH: &str = "/api/miners/bulk";

async fn send(api: &TestApi, path: &str, content_type: &str, body: impl Into<reqwest::Body>) -> Answer {
    let request = api.client.post(api.url(path)).bearer_auth(api.token()).header(CONTENT_TYPE, content_type);
    Answer::of(request.body(body).send().await.expect("an answer")).await
}

/// Owner, entity and data of every event, in order.
async fn events(db: &TestDb) -> Vec<(String, String, Value)> {
    sqlx::query_as(
        "select user_id, aggregate_id, payload -> 'data' from event_outbox \
         where event_type = 'miner.bulk_imported' order by position",
    )
    .fetch_all(&db.admin)
    .await
    .expect("events")
}

#[tokio::test]
async fn good_rows_go_in_and_bad_ones_are_named_by_their_number() {
    let db = TestDb::new().await;
    let api = TestApi::start(&db).await;
    let miners = json!([
        {"model": "S21", "owner_id": "bob", "quantity": 2, "status": "online"},
        {"model": "No Such Model", "hashrate": 100},
        {"model_name": "antminer s19j pro"},
        "S21",
        {"model": "Own", "hashrate_ths": 50, "power_w": 1500, "owner_id": "bob", "location": "Hall 1"},
        {"quantity": 0, "model": "S21"},
    ]);
    let done = api.post(PATH, json!({"miners": miners, "batch_id": "delivery-7"})).await.expect(201).body;
    let ids: Vec<&str> =
        done["miner_ids"].as_array().expect("ids").iter().filter_map(Value::as_str).collect();
    assert_eq!((done["success"].clone(), done["batch_id"].clone()), (json!(true), json!("delivery-7")));
    assert_eq!(
        (&done["total_count"], &done["imported_count"], &done["failed_count"]),
        (&json!(6), &json!(3), &json!(3))
    );
    let errors: Vec<(u64, &str)> = done["errors"]
        .as_array()
        .expect("errors")
        .iter()
        .map(|e| (e["row"].as_u64().expect("a row"), e["field"].as_str().expect("a field")))
        .collect();
    assert_eq!(errors, [(2, "power_w"), (4, "row"), (6, "quantity")]);
    assert!(done["errors"][0]["message"].as_str().expect("a message").contains("No Such Model"));

    let of = |owner: &str, ids: &[&str]| {
        let data = json!({"batch_id": "delivery-7", "imported": ids.len(), "failed": 3, "miner_ids": ids});
        (owner.to_owned(), "delivery-7".to_owned(), data)
    };
    assert_eq!(events(&db).await, [of("bob", &[ids[0], ids[2]]), of(&api.user, &[ids[1]])]);
    assert_eq!(done["event_id"], done["event_ids"][0]);
    let published: Vec<uuid::Uuid> = sqlx::query_scalar("select id from event_outbox order by position")
        .fetch_all(&db.admin)
        .await
        .expect("ids");
    assert_eq!(json!(published), done["event_ids"]);

    let stored = api.get(&format!("/api/miners/{}", ids[2])).await.expect(200).body;
    assert_eq!(
        (&stored["data"]["model"], &stored["data"]["power_w"], &stored["data"]["location"]),
        (&json!("Own"), &json!(1500), &json!("Hall 1"))
    );
    let from_catalogue = api.get(&format!("/api/miners/{}", ids[1])).await.expect(200).body;
    assert_eq!(from_catalogue["data"]["hashrate_ths"], 104);
    assert_eq!(from_catalogue["data"]["status"], "pending");
}

#[tokio::test]
async fn a_csv_file_goes_in_whatever_one_of_its_lines_says() {
    let db = TestDb::new().await;
    let api = TestApi::start(&db).await;
    let text = "model,quantity,purchase price,power,location\r\nS21,3,,3400,\"Hall 1, left\"\r\nS21,3\r\n\
                S19j Pro,many,,,\r\nAntminer S21,,,,\r\n";
    let text = text.replace("purchase price", "purchase_price");
    let done =
        send(&api, &format!("{PATH}?batch_id=b-1"), "text/csv; charset=utf-8", text).await.expect(201).body;
    assert_eq!((&done["batch_id"], &done["imported_count"]), (&json!("b-1"), &json!(2)));
    let errors: Vec<(&Value, &Value)> =
        done["errors"].as_array().expect("errors").iter().map(|e| (&e["row"], &e["field"])).collect();
    assert_eq!(errors, [(&json!(2), &json!("row")), (&json!(3), &json!("quantity"))]);
    let first = done["miner_ids"][0].as_str().expect("an id");
    let stored = api.get(&format!("/api/miners/{first}")).await.expect(200).body;
    assert_eq!(
        (&stored["data"]["quantity"], &stored["data"]["power_w"], &stored["data"]["location"]),
        (&json!(3), &json!(3400), &json!("Hall 1, left"))
    );
    let named = send(&api, PATH, "text/csv", "model\nS21\n").await.expect(201).body;
    assert_eq!(named["batch_id"].as_str().map(str::len), Some(36), "a batch without a name gets one");
}

#[tokio::test]
async fn a_batch_of_which_nothing_goes_in_leaves_nothing() {
    let db = TestDb::new().await;
    let api = TestApi::start(&db).await;
    let before = written(&db).await;
    let refused = api.post(PATH, json!({"miners": [{"model": "S21", "quantity": 0}, {}]})).await.expect(422);
    let errors = refused.body["errors"].as_array().expect("errors").clone();
    let named: Vec<(&Value, &Value)> = errors.iter().map(|e| (&e["row"], &e["field"])).collect();
    assert_eq!(named, [(&json!(1), &json!("quantity")), (&json!(2), &json!("model"))]);
    for (body, field) in [
        (json!({"miners": []}), "miners"),
        (json!({}), "miners"),
        (json!({"miners": {"model": "S21"}}), "miners"),
        (json!({"miners": [{"model": "S21"}], "batch_id": "a b"}), "batch_id"),
    ] {
        assert_eq!(api.post(PATH, body.clone()).await.expect(422).fields(), [field], "{body}");
    }
    for text in ["", "model\n"] {
        assert_eq!(send(&api, PATH, "text/csv", text).await.expect(422).fields(), ["miners"], "{text:?}");
    }
    assert_eq!(send(&api, PATH, "text/csv", "model,model\nS21,S21\n").await.expect(422).fields(), ["header"]);
    send(&api, &format!("{PATH}?batch_id=a+b"), "text/csv", "model\nS21\n").await.expect(400);
    send(&api, PATH, "text/plain", "model\nS21\n").await.expect(415);
    send(&api, PATH, "application/json", "{").await.expect(400);
    send(&api, PATH, "text/csv", "x".repeat(4 * 1024 * 1024 + 1)).await.expect(413);
    let read_only = api.token_with(&["miners:read"]);
    api.ask(&read_only, reqwest::Method::POST, PATH, Some(json!({"miners": [{"model": "S21"}]})))
        .await
        .expect(403);
    assert_eq!(written(&db).await, before, "a refused batch left something");
}

#[tokio::test]
async fn a_thousand_go_in_and_one_more_does_not() {
    let db = TestDb::new().await;
    let api = TestApi::start(&db).await;
    let miners = |count: usize| json!({"miners": vec![json!({"model": "S21"}); count]});
    assert_eq!(
        api.post(PATH, miners(1_001)).await.expect(413).body["type"],
        "urn:hashinsight:problem:too-many-rows"
    );
    let csv = format!("model\n{}", "S21\n".repeat(1_001));
    send(&api, PATH, "text/csv", csv).await.expect(413);
    assert_eq!(db.scalar::<i64>("select count(*) from miners").await, 0);
    let done = api.post(PATH, miners(1_000)).await.expect(201).body;
    assert_eq!(done["imported_count"], 1_000);
    assert_eq!(db.scalar::<i64>("select count(*) from miners").await, 1_000);
    let in_order = sqlx::query_scalar::<_, uuid::Uuid>("select id from miners order by id");
    assert_eq!(json!(in_order.fetch_all(&db.admin).await.expect("ids")), done["miner_ids"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_owner_of_a_batch_sees_it_in_the_portfolio() {
    let pipeline = Pipeline::start(EventLogKind::Postgres, Store::Memory).await;
    let (alice, bob) = (pipeline.user("acme", "alice"), pipeline.user("acme", "bob"));
    let body = json!({"miners": [
        {"model": "S21", "status": "online", "quantity": 10},
        {"model": "S19j Pro", "status": "online", "owner_id": "bob"},
        {"model": "S21", "status": "offline"},
    ]});
    let done = alice.post(PATH, &body).await;
    let of_alice = alice.portfolio_after(&done["event_ids"][0]).await;
    assert_eq!(
        (&of_alice["data"]["miners_total"], &of_alice["data"]["miners_online"]),
        (&json!(11), &json!(10))
    );
    let of_bob = bob.portfolio_after(&done["event_ids"][1]).await;
    assert_eq!((&of_bob["data"]["miners_total"], &of_bob["data"]["hashrate_ths"]), (&json!(1), &json!(104)));
    pipeline.stop().await;
}
