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

/// T: 12.5 BTC, opex 200,000 a month, cash 150,000 at 90,000: 55,555,556 sat close the gap. Submitted they do, approved or not.
#[tokio::test]
async fn a_gap_that_an_open_sale_closes_is_no_gap() {
    let db = TestDb::new().await;
    let api = TestApi::start(&db).await;
    let mut group = Group::default();
    lot(&api, "12.5", 1_187_500).await;
    let body = json!({"fee_share": 0, "cash_usd": 150_000, "opex_usd_month": 200_000, "strategies": ["opex_coverage"]});
    change(&api, body).await;
    price(&api, 90_000).await;
    group.run(&db).await;
    let asked = signals(&api).await["data"][0].clone();
    assert_eq!((&asked["strategy"], &asked["sat"]), (&json!("opex_coverage"), &json!(55_555_556)));
    let answer =
        super::submit(&api, json!({"amount": "0.55555556", "strategy": "opex_coverage"})).await.expect(202);
    assert_eq!(answer.body["needs_approval"], true);
    group.run(&db).await;
    assert_eq!(signals(&api).await["data"][0]["sat"], 0, "it waits, and closes the gap");
    let last = told(&db, "treasury.signal").await.pop().expect("a signal");
    assert_eq!((&last["strategy"], &last["sat"]), (&json!("opex_coverage"), &json!(0)));
    // Cancelled it closes nothing.
    db.execute("update treasury_trade set state = 'cancelled'").await;
    price(&api, 90_000).await;
    group.run(&db).await;
    assert_eq!(signals(&api).await["data"][0]["sat"], 55_555_556);
}

/// Of each of these days back one price, by turns 60,000 and 66,000.
async fn closes(db: &TestDb, api: &TestApi, days: std::ops::RangeInclusive<i32>) {
    db.execute(&format!(
        "insert into network_snapshots (tenant_id, id, btc_price_usd, difficulty, block_height, observed_at, created_at) \
         select '{}', gen_random_uuid(), 60000 + d % 2 * 6000, 150e12, 925000, at, at from ( \
           select d, (date_trunc('day', now() at time zone 'UTC') - d * interval '1 day' + interval '12 hours') \
             at time zone 'UTC' as at from generate_series({}, {}) d) days",
        api.tenant,
        days.start(),
        days.end()
    ))
    .await;
}

/// A strategy that lacks an input for a while has not changed its mind.
#[tokio::test]
async fn what_cannot_be_evaluated_says_what_it_said_last() {
    let db = TestDb::new().await;
    let api = TestApi::start(&db).await;
    let mut group = Group::default();
    account(&api).await;
    lot(&api, "10", 500_000).await;
    change(&api, json!({"strategies": ["volatility_trigger"]})).await;
    closes(&db, &api, 1..=31).await;
    price(&api, 60_000).await;
    group.run(&db).await;
    let first = told(&db, "treasury.signal").await;
    assert_eq!((first.len(), &first[0]["sat"]), (1, &json!(100_000_000)));
    // A day is missing, and comes again.
    db.execute("delete from network_snapshots where observed_at between now() - interval '12 days' and now() - interval '10 days'")
        .await;
    price(&api, 60_000).await;
    group.run(&db).await;
    let shown = signals(&api).await;
    assert_eq!(shown["unevaluated"][0], json!({"strategy": "volatility_trigger", "field": "closes_usd"}));
    assert_eq!(shown["data"][0]["sat"], 100_000_000);
    assert_eq!(told(&db, "treasury.signal").await, first, "no news");
    db.execute("delete from network_snapshots where observed_at < now() - interval '1 hour'").await;
    closes(&db, &api, 1..=31).await;
    price(&api, 60_000).await;
    group.run(&db).await;
    assert_eq!(signals(&api).await["unevaluated"], json!([]));
    assert_eq!(told(&db, "treasury.signal").await, first);
}

/// Each account's high is that of its own cycle, though all are looked up at once.
#[tokio::test]
async fn a_trailing_stop_looks_at_the_high_of_its_own_cycle() {
    let db = TestDb::new().await;
    let api = TestApi::start(&db).await;
    let admin = api.admin_token();
    let mut stops = Vec::new();
    for (user, begins) in [("early", "3 days"), ("late", "1 day")] {
        let path = |what: &str| format!("/api/treasury/{what}?user_id={user}");
        let body = Some(json!({"amount": 1, "cost_usd": 50_000}));
        api.ask(&admin, reqwest::Method::POST, &path("lots"), body).await.expect(201);
        let body = Some(json!({"strategies": ["trailing_stop"]}));
        api.ask(&admin, reqwest::Method::PUT, &path("settings"), body).await.expect(200);
        let begins = format!(
            "update treasury_settings set cycle_started_at = now() - interval '{begins}' where user_id = '{user}'"
        );
        db.execute(&begins).await;
        stops.push(path("signals"));
    }
    db.execute("update treasury_lot set created_at = now() - interval '10 days'").await;
    // The high of 66,000 is of two days ago or before: only the early cycle has seen it.
    db.execute(&format!(
        "insert into network_snapshots (tenant_id, id, btc_price_usd, difficulty, block_height, observed_at, created_at) \
         select '{}', gen_random_uuid(), 66000, 150e12, 925000, now() - interval '2 days', now() - interval '2 days'",
        api.tenant
    ))
    .await;
    price(&api, 60_000).await;
    Group::default().run(&db).await;
    let shown = async |path: &str| api.ask(&admin, reqwest::Method::GET, path, None).await.expect(200).body;
    let early = shown(&stops[0]).await["data"][0].clone();
    assert!(early["reason"].as_str().is_some_and(|text| text.contains("under the high 66000")), "{early}");
    let late = shown(&stops[1]).await;
    assert_eq!((&late["data"], &late["unevaluated"]), (&json!([]), &json!([])));
}
