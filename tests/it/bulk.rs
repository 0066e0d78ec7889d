//! Many miners by one request, as JSON and as CSV: what goes in, what is refused by its number, what others are told.

use hashinsight::config::EventLogKind;
use reqwest::header::{ACCEPT, CONTENT_TYPE};
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
    let text = "model,location\nS21,\"Hall 1\nS19j Pro,Hall 2\nS21,Hall 3\n";
    let done = send(&api, PATH, "text/csv", text).await.expect(201).body;
    assert_eq!((&done["total_count"], &done["imported_count"]), (&json!(3), &json!(2)));
    assert_eq!((&done["errors"][0]["row"], &done["errors"][0]["field"]), (&json!(1), &json!("row")));
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

/// The fleet as a file, and the link to the rest of it.
async fn exported(api: &TestApi, path: &str) -> (String, String) {
    let request = api.client.get(api.url(path)).bearer_auth(api.token()).header(ACCEPT, "text/csv");
    let answer = request.send().await.expect("an answer").error_for_status().expect("200");
    let header = |name: &str| answer.headers().get(name).map_or("", |v| v.to_str().expect("text")).to_owned();
    assert_eq!(header("content-type"), "text/csv; charset=utf-8");
    assert!(header("content-disposition").contains("miners.csv"));
    let link = header("link");
    (answer.text().await.expect("text"), link)
}

#[tokio::test]
async fn a_fleet_goes_out_as_a_file_that_comes_in_again() {
    let db = TestDb::new().await;
    let api = TestApi::start(&db).await;
    let miners = json!({"miners": [
        {"model": "S21", "quantity": 3, "status": "online", "location": "Hall 1, left", "purchase_price_usd": "2999.90"},
        {"model": "Own design", "hashrate_ths": "61.5", "power_w": 1800, "electricity_cost_usd_kwh": 0.0425},
        {"model": "S19", "owner_id": "bob", "location": "=HYPERLINK(\"http://x\")"},
    ]});
    api.post(PATH, miners).await.expect(201);
    let (file, link) = exported(&api, "/api/miners").await;
    assert_eq!((file.lines().count(), link.as_str()), (4, ""));
    assert!(file.contains(",\"'=HYPERLINK(\"\"http://x\"\")\","), "{file}");

    let (first, link) = exported(&api, &format!("/api/miners?owner_id={}&limit=1", api.user)).await;
    assert_eq!(first.lines().nth(1), file.lines().nth(1));
    let rest = link.split(['<', '>']).nth(1).expect("an address");
    let (rest, link) = exported(&api, rest).await;
    assert_eq!((rest.lines().nth(1), rest.lines().count(), link.as_str()), (file.lines().nth(2), 2, ""));

    let done = send(&api, PATH, "text/csv", file).await.expect(201).body;
    assert_eq!((&done["imported_count"], &done["errors"]), (&json!(3), &json!([])));
    let rows = api.get("/api/miners").await.expect(200).body;
    let rows = rows["data"].as_array().expect("rows");
    for (out, back) in rows[..2].iter().zip(&rows[3..]) {
        for field in [
            "owner_id",
            "model",
            "hashrate_ths",
            "power_w",
            "quantity",
            "location",
            "purchase_price_usd",
            "electricity_cost_usd_kwh",
            "status",
        ] {
            assert_eq!(out[field], back[field], "{field}");
        }
    }
    assert_eq!(rows[5]["location"], "'=HYPERLINK(\"http://x\")");
}
