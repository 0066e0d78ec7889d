//! Orders that take their time: TWAP and VWAP, by scheduled work and by prices alike.

use std::sync::Arc;
use std::time::Duration;

use hashinsight::domain::treasury::clock::TradeClock;
use hashinsight::jobs::{Runner, Settings, Step};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::{Group, account, advance_to, conserved, counts, lot, price, price_in, submitted, told, trade};
use crate::support::{TestApi, TestDb};

#[tokio::test]
async fn twap_is_filled_in_twelve_parts_and_the_read_model_follows() {
    let db = TestDb::new().await;
    let api = TestApi::start(&db).await;
    let mut group = Group::default();
    account(&api).await;
    lot(&api, "1", 60_000).await;
    price(&api, 90_000).await;
    let id = submitted(&api, json!({"amount": "0.5", "execution_strategy": "twap"})).await;
    group.run(&db).await;
    assert_eq!(trade(&api, &id).await["state"], "partially_filled", "the first part at once");
    for minutes in 1..=60 {
        if minutes % 5 == 0 {
            price_in(&db, &api, minutes, 90_000 + minutes * 100).await;
        }
        // Asked every minute, twice: a part is filled when it is due, and once.
        let fills = advance_to(&db, &api, minutes).await.fills + advance_to(&db, &api, minutes).await.fills;
        assert_eq!(fills, usize::from(minutes % 5 == 0 && minutes < 60), "at minute {minutes}");
        group.run(&db).await;
    }
    let done = trade(&api, &id).await;
    assert_eq!((&done["state"], &done["fills"]), (&json!("executed"), &json!(12)));
    assert_eq!(done["filled_sat"], json!(50_000_000));
    let told = told(&db, "treasury.trade_executed").await;
    let prices: Vec<i64> = told.iter().filter_map(|fill| fill["price_usd"].as_i64()).collect();
    assert_eq!(prices, (0..12).map(|part| 90_000 + part * 500).collect::<Vec<_>>());
    assert_eq!(told[10]["state"], "partially_filled");
    assert_eq!(conserved(&db).await, (50_000_000, 50_000_000));
    // The group heard of the fills that it did not make itself, and made none of its own.
    let overview = api.get("/api/treasury/overview").await.expect(200).body["data"].clone();
    assert_eq!((&overview["sat"], &overview["open_trades"]), (&json!(50_000_000), &json!(0)));
    assert_eq!(overview["realised_gain_usd"], done["realised_gain_usd"]);
}

#[tokio::test]
async fn vwap_is_filled_by_the_time_its_prices_held() {
    let db = TestDb::new().await;
    let api = TestApi::start(&db).await;
    let mut group = Group::default();
    account(&api).await;
    lot(&api, "1", 60_000).await;
    price(&api, 90_000).await;
    let id = submitted(&api, json!({"amount": "0.6", "execution_strategy": "vwap"})).await;
    group.run(&db).await;
    assert_eq!(trade(&api, &id).await["state"], "executing", "no minute is over");
    price_in(&db, &api, 10, 93_000).await;
    assert_eq!(advance_to(&db, &api, 15).await.fills, 1);
    let first = told(&db, "treasury.trade_executed").await.remove(0);
    assert_eq!(first["sat"], json!(15_000_000), "a quarter of the hour");
    assert_eq!(first["price_usd"], json!(91_000), "90,000 held for ten minutes and 93,000 for five");
    group.run(&db).await;
    assert_eq!(told(&db, "treasury.trade_executed").await.len(), 1, "its own event fills nothing");
    price_in(&db, &api, 59, 95_000).await;
    advance_to(&db, &api, 61).await;
    let done = trade(&api, &id).await;
    assert_eq!((&done["state"], &done["filled_sat"]), (&json!("executed"), &json!(60_000_000)));
    assert_eq!(conserved(&db).await, (40_000_000, 60_000_000));
}

#[tokio::test]
async fn what_is_cancelled_on_the_way_keeps_what_is_filled() {
    let db = TestDb::new().await;
    let api = TestApi::start(&db).await;
    account(&api).await;
    lot(&api, "1", 60_000).await;
    price(&api, 90_000).await;
    let id =
        submitted(&api, json!({"amount": "1.2", "execution_strategy": "twap", "trade_type": "buy"})).await;
    let mut group = Group::default();
    group.run(&db).await;
    let token = api.token_of("second", &["treasury:approve"]);
    let path = format!("/api/treasury/trades/{id}/cancel");
    api.ask(&token, reqwest::Method::POST, &path, Some(json!({}))).await.expect(200);
    price_in(&db, &api, 30, 90_000).await;
    assert_eq!(advance_to(&db, &api, 30).await.fills, 0);
    group.run(&db).await;
    let done = trade(&api, &id).await;
    assert_eq!((&done["state"], &done["filled_sat"]), (&json!("cancelled"), &json!(10_000_000)));
    assert_eq!(counts(&db).await["treasury.trade_executed"], 1);
    let lots = api.get("/api/treasury/lots").await.expect(200).body["data"].clone();
    assert_eq!((&lots[1]["sat"], &lots[1]["trade_id"]), (&json!(10_000_000), &json!(id)));
    assert_eq!(lots[2], Value::Null);
}

#[tokio::test]
async fn the_job_fills_what_is_due_without_a_new_price() {
    let db = TestDb::new().await;
    let api = TestApi::start(&db).await;
    let settings = Settings { poll: Duration::from_millis(50), lease: Duration::from_secs(60) };
    let runner = Runner::new(db.db.clone(), db.bells.clone(), Arc::new(TradeClock), settings);
    runner.register().await.expect("registered");
    let visited = async || match runner.step(&CancellationToken::new()).await.expect("a step") {
        Step::Ran(ended) => (ended.tenants, ended.error),
        waiting => panic!("{waiting:?}"),
    };
    account(&api).await;
    lot(&api, "1", 60_000).await;
    price(&api, 90_000).await;
    submitted(&api, json!({"execution_strategy": "limit", "target_price": 95_000, "amount": "0.1"})).await;
    assert_eq!(visited().await, (0, None), "time does nothing to a limit order");
    let id = submitted(&api, json!({"amount": "0.6", "execution_strategy": "twap"})).await;
    Group::default().run(&db).await;
    assert_eq!(trade(&api, &id).await["filled_sat"], json!(5_000_000), "the first part at once");
    db.execute(
        "update treasury_trade set started_at = started_at - interval '11 minutes' where execution_strategy = 'twap'; \
         update scheduled_job set next_run_at = now()",
    )
    .await;
    assert_eq!(visited().await, (1, None));
    let done = trade(&api, &id).await;
    assert_eq!((&done["filled_sat"], &done["fills"]), (&json!(15_000_000), &json!(2)), "two parts at once");
    db.execute("update scheduled_job set next_run_at = now()").await;
    assert_eq!(visited().await, (1, None));
    assert_eq!(trade(&api, &id).await["fills"], json!(2), "each part once");
}
