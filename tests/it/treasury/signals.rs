//! What the strategies of an account say, and when it is an event.

use serde_json::{Value, json};

use super::{Group, account, change, lot, price, submitted, told};
use crate::support::{TestApi, TestDb};

async fn signals(api: &TestApi) -> Value {
    api.get("/api/treasury/signals").await.expect(200).body
}

#[tokio::test]
async fn a_signal_is_told_when_it_changes_and_not_with_every_price() {
    let db = TestDb::new().await;
    let api = TestApi::start(&db).await;
    let mut group = Group::default();
    account(&api).await;
    lot(&api, "10", 500_000).await;
    change(&api, json!({"strategies": ["hodl", "layered", "stop_loss"]})).await;
    price(&api, 50_000).await;
    group.run(&db).await;
    assert_eq!(told(&db, "treasury.signal").await, Vec::<Value>::new(), "nothing to say");

    // T: 10 BTC that cost 50,000 each: 1.2, 1.5 and 1.8 times the cost are reached at 92,000. A quarter a day may go.
    price(&api, 92_000).await;
    let kinds = group.run(&db).await;
    assert_eq!(kinds.iter().filter(|kind| *kind == "treasury.signal").count(), 1);
    let first = told(&db, "treasury.signal").await.pop().expect("a signal");
    assert_eq!((&first["strategy"], &first["wanted_sat"]), (&json!("layered"), &json!(500_000_000)));
    assert_eq!((&first["sat"], &first["limit"]), (&json!(250_000_000), &json!("day_share")));
    for usd in [92_001, 93_000, 91_000] {
        price(&api, usd).await;
        group.run(&db).await;
    }
    assert_eq!(told(&db, "treasury.signal").await.len(), 1, "the same");
    let shown = signals(&api).await["data"][0].clone();
    assert!(shown["reason"].as_str().expect("text").contains("91000"), "but shown as it is now: {shown}");

    // What is promised to a sale is no longer wanted.
    submitted(
        &api,
        json!({"amount": "2.5", "strategy": "layered", "execution_strategy": "limit",
        "target_price": 200_000}),
    )
    .await;
    group.run(&db).await;
    let last = told(&db, "treasury.signal").await.pop().expect("a signal");
    assert_eq!((&last["wanted_sat"], &last["sat"]), (&json!(250_000_000), &json!(0)));
    price(&api, 50_000).await;
    group.run(&db).await;
    let shown = signals(&api).await["data"][0].clone();
    assert_eq!((&shown["sat"], &shown["wanted_sat"]), (&json!(0), &json!(0)));

    // A strategy that is not chosen any more says nothing.
    let before = told(&db, "treasury.signal").await.len();
    price(&api, 38_000).await;
    group.run(&db).await;
    let stop = told(&db, "treasury.signal").await;
    assert_eq!((stop.len(), &stop[before]["strategy"]), (before + 1, &json!("stop_loss")));
    change(&api, json!({"strategies": ["hodl"]})).await;
    group.run(&db).await;
    let gone = told(&db, "treasury.signal").await.pop().expect("a signal");
    assert_eq!((&gone["strategy"], &gone["sat"]), (&json!("stop_loss"), &json!(0)));
}

#[tokio::test]
async fn without_a_price_that_counts_nothing_is_said() {
    let db = TestDb::new().await;
    let api = TestApi::start(&db).await;
    let mut group = Group::default();
    account(&api).await;
    lot(&api, "10", 500_000).await;
    change(&api, json!({"strategies": ["layered", "hashprice_cycle"]})).await;
    price(&api, 92_000).await;
    db.execute("update network_snapshots set observed_at = now() - interval '31 minutes'").await;
    group.run(&db).await;
    assert_eq!(told(&db, "treasury.signal").await, Vec::<Value>::new());
    let shown = signals(&api).await;
    assert_eq!(shown["warnings"], json!(["stale-price"]));
    price(&api, 92_000).await;
    group.run(&db).await;
    let shown = signals(&api).await;
    assert_eq!(shown["warnings"], json!([]));
    assert_eq!(shown["data"][0]["strategy"], "layered");
    let lacking = json!([{"strategy": "hashprice_cycle", "field": "hashprice_percentile"}]);
    assert_eq!(shown["unevaluated"], lacking, "a year of prices is not there");
}
