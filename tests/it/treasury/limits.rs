//! One account's figures and settings are nothing to another: not its strategies, not its lots, not what cannot be computed.

use reqwest::Method;
use serde_json::{Value, json};

use super::{Group, account, change, lot, order, price, problem, submit, submitted, told};
use crate::support::{Answer, SCOPES, TestApi, TestDb};

/// Asks as another user of the tenant.
async fn as_second(api: &TestApi, method: Method, path: &str, body: Option<Value>) -> Answer {
    api.ask(&api.token_of("second", SCOPES), method, path, body).await
}

/// A second user with a bitcoin and a limit order at 95,000; the order's id.
async fn limit_of_second(api: &TestApi) -> String {
    let body = json!({"approval_limit_usd": 1_000_000_000, "fee_share": 0});
    let settings = "/api/treasury/settings?user_id=second";
    api.ask(&api.admin_token(), Method::PUT, settings, Some(body)).await.expect(200);
    let body = json!({"amount": 1, "cost_usd": 50_000});
    as_second(api, Method::POST, "/api/treasury/lots", Some(body)).await.expect(201);
    let body = order(json!({"execution_strategy": "limit", "target_price": 95_000}));
    let answer = as_second(api, Method::POST, "/api/treasury/execute", Some(body)).await.expect(202);
    answer.body["trade_id"].as_str().expect("an id").to_owned()
}

async fn overview(api: &TestApi) -> Value {
    api.get("/api/treasury/overview").await.expect(200).body["data"].clone()
}

#[tokio::test]
async fn a_strategy_that_cannot_be_computed_keeps_nobodys_order_from_its_fill() {
    let db = TestDb::new().await;
    let api = TestApi::start(&db).await;
    let mut group = Group::default();
    account(&api).await;
    lot(&api, "1", 50_000).await;
    change(&api, json!({"strategies": ["stop_loss", "layered"]})).await;
    price(&api, 90_000).await;
    let limit = limit_of_second(&api).await;
    group.run(&db).await;
    // As it could be stored once; a dearer bitcoin makes the same of what can be stored today.
    for multiple in ["70000000000000000000000000000", "1000"] {
        db.execute(&format!(
            "update treasury_settings set strategies = jsonb_set(strategies, '{{0,stop_loss,cost_multiple}}', '{multiple}') \
             where user_id = '{}'",
            api.user
        ))
        .await;
        if multiple == "1000" {
            db.execute(&format!(
                "alter table treasury_lot drop constraint treasury_lot_cost_usd_check; \
                 update treasury_lot set left_cost_usd = 70000000000000000000, cost_usd = 70000000000000000000, \
                 sat = 1, left_sat = 1 where user_id = '{}'",
                api.user
            ))
            .await;
        }
        price(&api, 94_000).await;
        group.run(&db).await;
        let shown = overview(&api).await;
        let unevaluated = shown["unevaluated"].as_array().expect("a list").clone();
        assert!(
            unevaluated.iter().any(|what| what["strategy"] == "stop_loss" && what["field"].is_string()),
            "{multiple}: {unevaluated:?}"
        );
        assert_eq!(shown["btc_price_usd"], 94_000, "its other figures are there");
    }
    price(&api, 95_001).await;
    group.run(&db).await;
    let path = format!("/api/treasury/trades/{limit}");
    let done = as_second(&api, Method::GET, &path, None).await.expect(200);
    assert_eq!(done.body["data"]["state"], "executed");
}

/// Figures beyond every number there is: the account says so, and the others go on.
#[tokio::test]
async fn an_account_that_cannot_be_computed_is_skipped_with_a_warning() {
    let db = TestDb::new().await;
    let api = TestApi::start(&db).await;
    let mut group = Group::default();
    account(&api).await;
    lot(&api, "1", 50_000).await;
    lot(&api, "1", 50_000).await;
    price(&api, 90_000).await;
    let limit = limit_of_second(&api).await;
    group.run(&db).await;
    let before = overview(&api).await;
    // More than can be added up.
    db.execute(&format!(
        "alter table treasury_lot drop constraint treasury_lot_cost_usd_check; \
         update treasury_lot set left_cost_usd = 7e28, cost_usd = 7e28 where user_id = '{}'",
        api.user
    ))
    .await;
    price(&api, 95_001).await;
    group.run(&db).await;
    let path = format!("/api/treasury/trades/{limit}");
    let done = as_second(&api, Method::GET, &path, None).await.expect(200);
    assert_eq!(done.body["data"]["state"], "executed");
    let after = overview(&api).await;
    assert_eq!((&after["warnings"], &after["sat"]), (&json!(["out-of-range"]), &before["sat"]));
    assert_eq!(after["cost_usd"], before["cost_usd"], "as they were");
    db.execute("update treasury_lot set left_cost_usd = 1, cost_usd = 1 where left_sat > 0").await;
    price(&api, 90_000).await;
    group.run(&db).await;
    assert_eq!(overview(&api).await["warnings"], json!([]));
}

#[tokio::test]
async fn no_account_has_more_bitcoin_than_there_are() {
    let db = TestDb::new().await;
    let api = TestApi::start(&db).await;
    account(&api).await;
    price(&api, 1).await;
    lot(&api, "20999999", 1).await;
    let buy = |amount: &'static str| submit(&api, json!({"trade_type": "buy", "amount": amount}));
    problem(&buy("1.00000001").await, 409, "more-than-exist");
    buy("0.5").await.expect(202);
    let add = |amount: &'static str| api.post("/api/treasury/lots", json!({"amount": amount, "cost_usd": 1}));
    problem(&add("0.50000001").await, 409, "more-than-exist");
    add("0.5").await.expect(201);
    // What is bought and what was added is held now, and nothing more comes in until something is sold.
    Group::default().run(&db).await;
    let shown = overview(&api).await;
    assert_eq!(shown["sat"], json!(2_100_000_000_000_000_i64));
    problem(&add("0.00000001").await, 409, "more-than-exist");
    problem(&buy("0.00000001").await, 409, "more-than-exist");
    submitted(&api, json!({"amount": 1})).await;
    problem(&add("1").await, 409, "more-than-exist");
    Group::default().run(&db).await;
    assert_eq!(told(&db, "treasury.trade_executed").await.len(), 2);
    add("1").await.expect(201);
}
