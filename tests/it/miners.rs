//! The resources miners and miner models over HTTP: what is taken, what is refused, what a change leaves behind.

use chrono::{NaiveDateTime, TimeDelta, Utc};
use futures_util::future::join_all;
use reqwest::Method;
use serde_json::{Value, json};
use sqlx::Row;

use crate::support::{TestApi, TestDb, written};

/// The newest event of the outbox, as its columns stand.
async fn newest_event(db: &TestDb) -> sqlx::postgres::PgRow {
    sqlx::query("select * from event_outbox order by position desc limit 1")
        .fetch_one(&db.admin)
        .await
        .expect("an event")
}

/// Kind, owner and data of the newest event.
async fn newest(db: &TestDb) -> (String, String, Value) {
    let row = newest_event(db).await;
    let payload: Value = row.get("payload");
    (row.get("event_type"), row.get("user_id"), payload["data"].clone())
}

#[tokio::test]
async fn a_miner_lives_through_every_endpoint() {
    let db = TestDb::new().await;
    let api = TestApi::start(&db).await;

    let added = api.post("/api/miners", json!({"model": "s21", "location": "Hall 1"})).await.expect(201);
    let id = added.body["miner_id"].as_str().expect("an id");
    assert_eq!(added.body["success"], true);
    assert_eq!(added.header("location"), format!("/api/miners/{id}"));
    assert!(added.body["message"].is_string());
    let (kind, owner, data) = newest(&db).await;
    assert_eq!((kind.as_str(), &owner), ("miner.added", &api.user));
    let expected = json!({
        "miner_id": id, "model": "s21", "hashrate_ths": 200, "power_w": 3500, "quantity": 1, "owner_id": api.user,
    });
    assert_eq!(data, expected);

    let path = format!("/api/miners/{id}");
    let got = api.get(&path).await.expect(200).body;
    let expected = json!({
        "miner_id": id, "owner_id": api.user, "model": "s21", "hashrate_ths": 200, "power_w": 3500, "quantity": 1,
        "location": "Hall 1", "purchase_price_usd": null, "electricity_cost_usd_kwh": null, "status": "pending",
        "status_reason": null, "created_at": got["data"]["created_at"], "updated_at": got["data"]["updated_at"],
    });
    assert_eq!(got["data"], expected);
    assert!(got["data"]["created_at"].as_str().expect("a time").ends_with('Z'));

    let changed = api.patch(&path, json!({"quantity": 3, "purchase_price": "2999.99"})).await.expect(200);
    assert_eq!(changed.body["miner_id"], id);
    let (kind, _, data) = newest(&db).await;
    assert_eq!(kind, "miner.updated");
    let changes =
        json!({"quantity": {"old": 1, "new": 3}, "purchase_price_usd": {"old": null, "new": 2999.99}});
    assert_eq!(data, json!({"miner_id": id, "changes": changes}));

    let status = json!({"status": "online", "reason": "installed"});
    let changed = api.patch(&format!("{path}/status"), status.clone()).await.expect(200);
    assert_eq!(
        (&changed.body["old_status"], &changed.body["new_status"]),
        (&json!("pending"), &json!("online"))
    );
    let (kind, _, data) = newest(&db).await;
    assert_eq!(kind, "miner.status_changed");
    let expected =
        json!({"miner_id": id, "old_status": "pending", "new_status": "online", "reason": "installed"});
    assert_eq!(data, expected);
    let before = written(&db).await;
    let same = api.patch(&format!("{path}/status"), status).await.expect(200);
    assert_eq!(same.body["event_id"], Value::Null);
    assert_eq!(written(&db).await, before, "no change, no event");

    let removed = api.delete(&path).await.expect(200);
    assert_eq!(removed.body["event_id"].as_str().map(str::len), Some(36));
    assert_eq!(newest(&db).await, ("miner.removed".to_owned(), api.user.clone(), json!({"miner_id": id})));
    let before = written(&db).await;
    api.get(&path).await.expect(404);
    api.delete(&path).await.expect(404);
    api.patch(&path, json!({"quantity": 5})).await.expect(404);
    api.patch(&format!("{path}/status"), json!({"status": "offline"})).await.expect(404);
    assert_eq!(api.get("/api/miners").await.body["data"], json!([]));
    assert_eq!(written(&db).await, before);

    let audit: Vec<(String, String, String)> =
        sqlx::query_as("select action, actor, entity_id from audit_log order by at, id")
            .fetch_all(&db.admin)
            .await
            .expect("audit");
    let actions: Vec<&str> = audit.iter().map(|(action, ..)| action.as_str()).collect();
    assert_eq!(actions, ["miner.added", "miner.updated", "miner.status_changed", "miner.removed"]);
    assert!(audit.iter().all(|(_, actor, entity)| *actor == api.user && entity == id));
}

#[tokio::test]
async fn the_outbox_row_is_what_publishers_expect() {
    let db = TestDb::new().await;
    let api = TestApi::start(&db).await;
    let traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let response = api
        .client
        .post(api.url("/api/miners"))
        .bearer_auth(api.token())
        .header("traceparent", traceparent)
        .header("x-request-id", "req-1")
        .json(&json!({"model": "S21", "owner_id": 42}))
        .send()
        .await
        .expect("an answer");
    let added = crate::support::Answer::of(response).await.expect(201);
    assert_eq!(added.header("x-request-id"), "req-1");
    let id = added.body["miner_id"].as_str().expect("an id");

    let row = newest_event(&db).await;
    let text = |column: &str| row.get::<String, _>(column);
    assert_eq!(row.get::<uuid::Uuid, _>("id").to_string(), added.event_id());
    assert_eq!(row.get::<uuid::Uuid, _>("id").get_version_num(), 7);
    assert_eq!(text("aggregate_type"), "miner");
    assert_eq!(text("aggregate_id"), id);
    assert_eq!(text("event_key"), format!("{}:42", api.tenant));
    assert_eq!(text("event_type"), "miner.added");
    assert_eq!((text("tenant_id"), text("user_id")), (api.tenant.clone(), "42".to_owned()));
    assert_eq!(text("traceparent"), traceparent);
    assert_eq!(row.get::<i32, _>("schema_version"), 1);
    assert!(row.get::<i64, _>("position") > 0);
    let occurred: NaiveDateTime = row.get("occurred_at");
    assert!((Utc::now().naive_utc() - occurred).abs() < TimeDelta::seconds(30));
    let payload: Value = row.get("payload");
    assert_eq!(payload["occurred_at"], occurred.format("%Y-%m-%dT%H:%M:%S%.6fZ").to_string());
    assert_eq!(payload["event_id"], added.event_id());
    assert_eq!(payload["correlation_id"], "req-1");
    let mut fields: Vec<&str> = payload.as_object().expect("an object").keys().map(String::as_str).collect();
    fields.sort_unstable();
    let expected = [
        "causation_id",
        "correlation_id",
        "data",
        "entity_id",
        "event_id",
        "kind",
        "occurred_at",
        "tenant_id",
        "user_id",
        "version",
    ];
    assert_eq!(fields, expected);
    let audited: String = db.scalar("select request_id from audit_log").await;
    assert_eq!(audited, "req-1");
}

#[tokio::test]
async fn aliases_and_spellings_of_numbers_are_taken() {
    let db = TestDb::new().await;
    let api = TestApi::start(&db).await;
    let old_names = json!({
        "model_name": "Custom X", "hashrate": "104.5", "power_consumption": 3068, "purchase_price": 1000,
        "electricity_cost": "0.055", "quantity": "2", "tenant_id": "somebody-else", "unknown": {"a": 1},
    });
    let id = api.add_miner(old_names).await;
    let miner = api.get(&format!("/api/miners/{id}")).await.expect(200).body["data"].clone();
    for (field, value) in [
        ("model", json!("Custom X")),
        ("hashrate_ths", json!(104.5)),
        ("power_w", json!(3068)),
        ("purchase_price_usd", json!(1000)),
        ("electricity_cost_usd_kwh", json!(0.055)),
        ("quantity", json!(2)),
    ] {
        assert_eq!(miner[field].to_string(), value.to_string(), "{field}");
    }
    let tenant: String = db.scalar("select tenant_id from miners").await;
    assert_eq!(tenant, api.tenant, "the body's tenant is ignored");

    // Names that agree are one value.
    api.post("/api/miners", json!({"model": "S21", "model_name": "S21", "power": 3500, "power_w": "3500.0"}))
        .await
        .expect(201);
    let before = written(&db).await;
    for (body, field) in [
        (json!({"model": "S21", "model_name": "S19"}), "model"),
        (json!({"model": "S21", "hashrate": 100, "hashrate_ths": 200}), "hashrate_ths"),
        (json!({"model": "S21", "power": 100, "power_consumption": 200}), "power_w"),
        (json!({"model": "S21", "purchase_price": 1, "purchase_price_usd": 2}), "purchase_price_usd"),
        (
            json!({"model": "S21", "electricity_cost": 1, "electricity_cost_usd_kwh": 2}),
            "electricity_cost_usd_kwh",
        ),
    ] {
        let refused = api.post("/api/miners", body).await.expect(422);
        assert_eq!(refused.fields(), [field]);
    }
    assert_eq!(written(&db).await, before);
}

#[tokio::test]
async fn bad_input_is_refused_by_name_and_leaves_nothing() {
    let db = TestDb::new().await;
    let api = TestApi::start(&db).await;
    let id = api.add_miner(json!({"model": "S21", "location": "Hall 1"})).await;
    let before = written(&db).await;
    let long = "x".repeat(201);
    let with = |field: &str, value: Value| {
        let mut body = json!({"model": "S21"});
        body[field] = value;
        body
    };
    let mut cases = vec![
        (json!({}), vec!["model"]),
        (json!({"model": null}), vec!["model"]),
        (json!({"model": "  "}), vec!["model"]),
        (json!({"model": "No Such Model"}), vec!["hashrate_ths", "power_w"]),
        (json!({"model": "No Such Model", "hashrate_ths": 100}), vec!["power_w"]),
        (json!({"model": 5, "quantity": 0, "owner_id": "a b"}), vec!["model", "quantity", "owner_id"]),
    ];
    for (field, bad) in [
        ("model", vec![json!("a\0b"), json!(long), json!(["S21"])]),
        ("hashrate_ths", vec![json!(0), json!(-1), json!(10_000.1), json!("1e9"), json!("NaN"), json!(true)]),
        ("power_w", vec![json!(0), json!(-3500), json!(100_001), json!("x")]),
        ("quantity", vec![json!(0), json!(-1), json!(100_001), json!(1.5), json!("many"), json!(1e300)]),
        ("owner_id", vec![json!("a:b"), json!("x".repeat(65)), json!(1.5), json!({}), json!("ü")]),
        ("location", vec![json!("a\0b"), json!(long), json!(7)]),
        ("purchase_price_usd", vec![json!(-0.01), json!("free"), json!(1e12)]),
        ("electricity_cost_usd_kwh", vec![json!(-0.01), json!(10.01)]),
        ("status", vec![json!("ONLINE"), json!("broken"), json!(1)]),
    ] {
        cases.extend(bad.into_iter().map(|value| (with(field, value), vec![field])));
    }
    for (body, fields) in &cases {
        let refused = api.post("/api/miners", body.clone()).await.expect(422);
        assert_eq!(&refused.fields(), fields, "{body}");
        assert_eq!(refused.header("content-type"), "application/problem+json");
        for error in refused.body["errors"].as_array().expect("errors") {
            assert!(error["message"].as_str().is_some_and(|m| !m.is_empty()), "{error}");
        }
    }
    // The same rules hold for a change; only what is missing is different.
    let path = format!("/api/miners/{id}");
    for (body, fields) in &cases[5..] {
        assert_eq!(&api.patch(&path, body.clone()).await.expect(422).fields(), fields, "{body}");
    }
    for (body, field) in [
        (json!({"status": "online"}), "status"),
        (json!({"model": null}), "model"),
        (json!({"model": ""}), "model"),
        (json!({"quantity": null}), "quantity"),
        (json!({"owner_id": null}), "owner_id"),
        (json!({"model": "No Such Model", "power_w": null}), "power_w"),
    ] {
        assert_eq!(api.patch(&path, body.clone()).await.expect(422).fields(), [field], "{body}");
    }
    for (body, field) in [
        (json!({}), "status"),
        (json!({"status": null}), "status"),
        (json!({"status": "sleeping"}), "status"),
        (json!({"status": "online", "reason": "a\0b"}), "reason"),
        (json!({"status": "online", "reason": "x".repeat(501)}), "reason"),
    ] {
        let refused = api.patch(&format!("{path}/status"), body.clone()).await.expect(422);
        assert_eq!(refused.fields(), [field], "{body}");
    }
    assert_eq!(
        api.post("/api/miners/sync", json!({"user_id": "a b"})).await.expect(422).fields(),
        ["user_id"]
    );
    assert_eq!(api.post("/api/miners", json!([1])).await.expect(422).fields(), ["body"]);
    assert_eq!(written(&db).await, before, "a refused request left something");
}

#[tokio::test]
async fn a_patch_changes_what_it_names() {
    let db = TestDb::new().await;
    let api = TestApi::start(&db).await;
    let body = json!({"model": "S21", "hashrate_ths": 190, "location": "Hall 1", "purchase_price_usd": 3000,
        "electricity_cost_usd_kwh": 0.05});
    let id = api.add_miner(body).await;
    let path = format!("/api/miners/{id}");

    let before = written(&db).await;
    for nothing in [json!({}), json!({"hashrate": "190.0", "location": " Hall 1 ", "status": "pending"})] {
        assert_eq!(api.patch(&path, nothing).await.expect(200).body["event_id"], Value::Null);
    }
    assert_eq!(written(&db).await, before);

    // Null clears what is optional and takes the figures of the catalogue.
    let cleared =
        json!({"location": null, "purchase_price_usd": null, "electricity_cost": null, "hashrate": null});
    api.patch(&path, cleared).await.expect(200);
    let miner = api.get(&path).await.body["data"].clone();
    for field in ["location", "purchase_price_usd", "electricity_cost_usd_kwh"] {
        assert_eq!(miner[field], Value::Null, "{field}");
    }
    assert_eq!(miner["hashrate_ths"], 200);
    let changes = newest(&db).await.2["changes"].clone();
    assert_eq!(changes["hashrate_ths"], json!({"old": 190, "new": 200}));
    assert_eq!(changes["location"], json!({"old": "Hall 1", "new": null}));

    // The event of a new owner is the new owner's, and names the old one.
    api.patch(&path, json!({"owner_id": "bob"})).await.expect(200);
    let (_, owner, data) = newest(&db).await;
    assert_eq!(owner, "bob");
    assert_eq!(data["changes"], json!({"owner_id": {"old": api.user, "new": "bob"}}));
    // Decommissioned is a status like any other: a mistake can be taken back.
    for status in ["decommissioned", "online"] {
        let changed = api.patch(&format!("{path}/status"), json!({"status": status})).await.expect(200);
        assert_eq!(changed.body["new_status"], status);
    }
}

#[tokio::test]
async fn lists_have_pages_and_a_filter() {
    let db = TestDb::new().await;
    let api = TestApi::start(&db).await;
    for n in 0..5 {
        let owner = if n % 2 == 0 { "even" } else { "odd" };
        api.add_miner(json!({"model": "S21", "quantity": n + 1, "owner_id": owner})).await;
    }
    let mut seen = Vec::new();
    let mut path = "/api/miners?limit=2&whatever=1".to_owned();
    for page in 0.. {
        let answer = api.get(&path).await.expect(200);
        let rows = answer.body["data"].as_array().expect("rows").clone();
        seen.extend(rows.iter().map(|m| m["quantity"].as_i64().expect("a number")));
        match answer.body["next"].as_str() {
            Some(cursor) => path = format!("/api/miners?limit=2&cursor={cursor}"),
            None => {
                assert_eq!((page, rows.len()), (2, 1));
                break;
            }
        }
    }
    assert_eq!(seen, [1, 2, 3, 4, 5]);
    let odd = api.get("/api/miners?owner_id=odd").await.expect(200).body;
    assert_eq!((odd["data"].as_array().map(Vec::len), &odd["next"]), (Some(2), &Value::Null));

    for (query, field) in [
        ("limit=0", "limit"),
        ("limit=201", "limit"),
        ("limit=x", "limit"),
        ("limit=1&limit=2", "limit"),
        ("owner_id=a%20b", "owner_id"),
        ("owner_id=", "owner_id"),
        ("cursor=nonsense", "cursor"),
    ] {
        let refused = api.get(&format!("/api/miners?{query}")).await.expect(400);
        assert_eq!(refused.fields(), [field], "{query}");
    }
    api.get("/api/miners/a%20b").await.expect(400);
    api.get("/api/miners/12345").await.expect(404);
    api.get(&format!("/api/miners/{}", uuid::Uuid::now_v7())).await.expect(404);
}

#[tokio::test]
async fn a_sync_is_for_oneself_unless_one_is_admin() {
    let db = TestDb::new().await;
    let api = TestApi::start(&db).await;
    let own = api.post("/api/miners/sync", json!({"user_id": api.user})).await.expect(202);
    assert_eq!((&own.body["user_id"], &own.body["success"]), (&json!(api.user), &json!(true)));
    let expected = ("miner.sync_requested".to_owned(), api.user.clone(), json!({"user_id": api.user}));
    assert_eq!(newest(&db).await, expected);
    assert_eq!(api.post("/api/miners/sync", json!({})).await.expect(202).body["user_id"], api.user);

    let before = written(&db).await;
    api.post("/api/miners/sync", json!({"user_id": 123})).await.expect(403);
    assert_eq!(written(&db).await, before);
    let body = Some(json!({"user_id": 123}));
    let synced = api.ask(&api.admin_token(), Method::POST, "/api/miners/sync", body).await.expect(202);
    assert_eq!(synced.body["user_id"], "123");
    assert_eq!(newest(&db).await.1, "123");
}

#[tokio::test]
async fn the_catalogue_is_open_and_whole() {
    let db = TestDb::new().await;
    let api = TestApi::start(&db).await;
    let answer = api.client.get(api.url("/api/miner-models")).send().await.expect("an answer");
    let models = crate::support::Answer::of(answer).await.expect(200).body;
    let rows = models["data"].as_array().expect("rows");
    assert_eq!((rows.len(), &models["next"]), (126, &Value::Null));
    assert_eq!(rows.iter().filter(|m| m["core"] == true).count(), 42);
    let s21 = rows.iter().find(|m| m["name"] == "Antminer S21").expect("the S21");
    assert_eq!((&s21["hashrate_ths"], &s21["power_w"]), (&json!(200), &json!(3500)));
    let first = api.get("/api/miner-models?limit=3").await.expect(200).body;
    let cursor = first["next"].as_str().expect("a next page").replace(' ', "%20").replace('+', "%2B");
    let second = api.get(&format!("/api/miner-models?limit=3&cursor={cursor}")).await.expect(200).body;
    assert_eq!(second["data"][0]["name"], rows[3]["name"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_of_a_miner_stand_in_the_order_of_its_changes() {
    let db = TestDb::new().await;
    let api = TestApi::start(&db).await;
    let id = api.add_miner(json!({"model": "S21"})).await;
    let path = format!("/api/miners/{id}");
    let changes = (2..42).map(|quantity| api.patch(&path, json!({"quantity": quantity})));
    for answer in join_all(changes).await {
        answer.expect(200);
    }
    // Each event says from which value it went to which: in the order of position they make one chain.
    let steps: Vec<(i64, i64)> = sqlx::query_as(
        "select (payload #>> '{data,changes,quantity,old}')::bigint, (payload #>> '{data,changes,quantity,new}')::bigint \
         from event_outbox where event_type = 'miner.updated' order by position",
    )
    .fetch_all(&db.admin)
    .await
    .expect("events");
    assert_eq!(steps.len(), 40);
    assert_eq!(steps[0].0, 1);
    for pair in steps.windows(2) {
        assert_eq!(pair[0].1, pair[1].0, "{steps:?}");
    }
    let last: i32 = db.scalar("select quantity from miners").await;
    assert_eq!(i64::from(last), steps[39].1);
}
