//! What is read of an account: figures with the time of their price, and one's own writes.

use serde_json::{Value, json};

use super::{Group, account, apply, lot, price, submitted};
use crate::support::{TestApi, TestDb};

async fn overview(api: &TestApi) -> Value {
    api.get("/api/treasury/overview").await.expect(200).body["data"].clone()
}

#[tokio::test]
async fn an_account_without_events_is_empty_and_says_so() {
    let db = TestDb::new().await;
    let api = TestApi::start(&db).await;
    let empty = overview(&api).await;
    assert_eq!((&empty["version"], &empty["sat"]), (&json!(0), &json!(0)));
    assert_eq!((&empty["warnings"], &empty["as_of"]), (&json!(["no-price"]), &Value::Null));
    assert_eq!(api.get("/api/treasury/signals").await.expect(200).body["data"], json!([]));
    // A price makes no account.
    price(&api, 90_000).await;
    Group::default().run(&db).await;
    assert_eq!(overview(&api).await["version"], 0);
}

#[tokio::test]
async fn figures_keep_their_price_and_warn_when_it_is_old() {
    let db = TestDb::new().await;
    let api = TestApi::start(&db).await;
    let mut group = Group::default();
    account(&api).await;
    lot(&api, "1", 80_000).await;
    price(&api, 90_000).await;
    group.run(&db).await;
    let fresh = overview(&api).await;
    assert_eq!((&fresh["unrealised_usd"], &fresh["warnings"]), (&json!(10_000), &json!([])));
    // Nobody told a price for half an hour: the figures stand, as of then.
    db.execute("update treasury_overview set as_of = as_of - interval '30 minutes 1 second'").await;
    let old = overview(&api).await;
    assert_eq!((&old["unrealised_usd"], &old["warnings"]), (&json!(10_000), &json!(["stale-price"])));
    assert!(old["as_of"].is_string());
    // Recomputed meanwhile they still are.
    db.execute("update network_snapshots set observed_at = observed_at - interval '31 minutes'").await;
    lot(&api, "1", 80_000).await;
    group.run(&db).await;
    let old = overview(&api).await;
    assert_eq!((&old["market_value_usd"], &old["warnings"]), (&json!(180_000), &json!(["stale-price"])));
}

#[tokio::test]
async fn a_batch_is_one_recomputation_per_account() {
    let db = TestDb::new().await;
    let api = TestApi::start(&db).await;
    account(&api).await;
    for _ in 0..5 {
        lot(&api, "1", 80_000).await;
        price(&api, 90_000).await;
    }
    let events = Group::default().next(&db).await;
    apply(&db, &events).await;
    let one = overview(&api).await;
    assert_eq!((&one["version"], &one["lots"]), (&json!(1), &json!(5)));
    let backwards: Vec<_> = events.iter().rev().cloned().collect();
    apply(&db, &backwards).await;
    let mut two = overview(&api).await;
    assert_eq!(two["version"], 2);
    for volatile in ["version", "computed_at", "event_id"] {
        two[volatile] = one[volatile].clone();
    }
    assert_eq!(one, two, "the same figures, in whatever order");
}

#[tokio::test]
async fn a_treasury_is_read_after_events_about_treasuries() {
    let db = TestDb::new().await;
    let api = TestApi::start(&db).await;
    let miner = api.post("/api/miners", json!({"model": "S21"})).await.expect(201);
    let lead = api.post("/api/treasury/lots", json!({"amount": 1, "cost_usd": 1})).await.expect(201);
    for path in ["overview", "signals", "trades"] {
        let path = format!("/api/treasury/{path}?wait=0&after=");
        let refused = api.get(&format!("{path}{}", miner.event_id())).await.expect(422);
        assert!(refused.body.to_string().contains("miner.added, which does not change a treasury"));
        let pending = api.get(&format!("{path}{}", lead.event_id())).await.expect(503);
        assert!(pending.body["type"].as_str().is_some_and(|name| name.ends_with("not-yet-visible")));
        assert_eq!(api.get(&format!("{path}nonsense")).await.expect(400).fields(), ["after"]);
    }
}

/// One tenant's prices and trades are nothing to another.
#[tokio::test]
async fn a_price_of_another_tenant_fills_nothing() {
    let db = TestDb::new().await;
    let (one, two) = (TestApi::start(&db).await, TestApi::start(&db).await);
    let mut group = Group::default();
    account(&one).await;
    lot(&one, "1", 80_000).await;
    let id = submitted(&one, json!({})).await;
    db.execute("update treasury_trade set needs_approval = false").await;
    price(&two, 90_000).await;
    group.run(&db).await;
    assert_eq!(super::trade(&one, &id).await["waiting"], "no-price");
    assert_eq!(overview(&one).await["btc_price_usd"], Value::Null);
    price(&one, 90_000).await;
    group.run(&db).await;
    assert_eq!(super::trade(&one, &id).await["state"], "executed");
}
