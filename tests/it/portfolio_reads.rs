//! What else is read of a portfolio: what it would be, and what it was.

use chrono::{DateTime, DurationRound, SecondsFormat, TimeDelta, Utc};
use hashinsight::partitions::Upkeep;
use hashinsight::read_model::portfolio::GROUP;
use hashinsight::read_model::portfolio_history::retention;
use reqwest::Method;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::support::pipeline::{apply, events_behind};
use crate::support::{TestApi, TestDb};

const WHAT_IF: &str = "/api/portfolio/what-if";
const HISTORY: &str = "/api/portfolio/history";

/// The reference case: a S21 earns $7.511124 and costs $5.04 a day.
async fn priced(api: &TestApi) {
    let snapshot = json!({"btc_price_usd": 90000, "difficulty": 150e12, "block_height": 900000, "fees_btc_per_block": 0.05});
    api.post("/api/network/snapshots", snapshot).await.expect(201);
}

fn near(figure: &Value, expected: f64) {
    let figure = figure.as_f64().unwrap_or_else(|| panic!("{figure} is no number"));
    assert!((figure - expected).abs() < 1e-6 * expected.abs().max(1e-9), "{figure} is not {expected}");
}

#[tokio::test]
async fn a_grid_shows_the_fleet_under_other_conditions() {
    let db = TestDb::new().await;
    let api = TestApi::start(&db).await;
    for quantity in [1, 2] {
        api.post("/api/miners", json!({"model": "S21", "status": "online", "quantity": quantity}))
            .await
            .expect(201);
    }
    let priceless = api.get(&format!("{WHAT_IF}?tariff_percent=0,50")).await.expect(200).body["data"].clone();
    assert_eq!((&priceless["warnings"], &priceless["snapshot_id"]), (&json!(["no-snapshot"]), &Value::Null));
    assert_eq!(priceless["cells"][1]["profit_usd_day"], Value::Null);
    near(&priceless["cells"][1]["power_cost_usd_day"], 3.0 * 5.04 * 1.5);

    priced(&api).await;
    let path = format!("{WHAT_IF}?btc_price_percent=-20,0,20&difficulty_percent=0,25&uptime_percent=-5");
    let shown = api.get(&path).await.expect(200).body["data"].clone();
    assert_eq!((&shown["user_id"], &shown["warnings"]), (&json!(api.user), &json!([])));
    assert_eq!(shown["axes"]["btc_price_percent"], json!([-20, 0, 20]));
    assert_eq!(shown["axes"]["tariff_percent"], json!([0]));
    let cells = shown["cells"].as_array().expect("cells");
    let mut expected = Vec::new();
    for price in [0.8, 1.0, 1.2] {
        for difficulty in [1.0, 1.25] {
            let profit = 3.0 * 0.95 * (7.511124 * price / difficulty - 5.04);
            expected.push((price, difficulty, profit));
        }
    }
    assert_eq!(cells.len(), expected.len());
    for (cell, (price, difficulty, profit)) in cells.iter().zip(expected) {
        near(&cell["profit_usd_day"], profit);
        let percent = |factor: f64| json!(((factor - 1.0) * 100.0).round() as i64);
        assert_eq!(cell["btc_price_percent"], percent(price));
        assert_eq!(cell["difficulty_percent"], percent(difficulty));
        assert_eq!(cell["uptime_percent"], json!(-5));
    }
    let as_it_is = api.get(WHAT_IF).await.expect(200).body["data"].clone();
    assert_eq!(as_it_is["cells"].as_array().map(Vec::len), Some(1));
    near(&as_it_is["cells"][0]["profit_usd_day"], 3.0 * 2.471124);
    let base =
        [("btc_price_usd", 90e3), ("difficulty", 150e12), ("default_tariff_usd_kwh", 0.06), ("uptime", 1.0)];
    for (name, figure) in base {
        near(&as_it_is["base"][name], figure);
    }
    // A day has no more than 24 hours, which is said.
    let capped = api.get(&format!("{WHAT_IF}?uptime_percent=0,5")).await.expect(200).body["data"].clone();
    assert_eq!(capped["warnings"], json!(["uptime-capped"]));
    near(&capped["cells"][1]["profit_usd_day"], 3.0 * 2.471124);

    // What the figures themselves warn of is said here, too, and that the price is old.
    api.add_miner(json!({"model": "S21", "status": "online", "purchase_price_usd": 3000})).await;
    db.execute("update network_snapshots set observed_at = now() - interval '31 minutes'").await;
    let old = api.get(WHAT_IF).await.expect(200).body["data"].clone();
    assert_eq!(old["warnings"], json!(["capex-incomplete", "snapshot-stale"]));

    let foreign = api.ask(&api.foreign_token(), Method::GET, WHAT_IF, None).await.expect(200).body;
    near(&foreign["data"]["cells"][0]["power_cost_usd_day"], 0.0);
    let others = format!("{WHAT_IF}?user_id={}", api.user);
    let bob = api.ask(&api.admin_token(), Method::GET, &others, None).await.expect(200).body;
    near(&bob["data"]["cells"][0]["profit_usd_day"], 4.0 * 2.471124);
}

#[tokio::test]
async fn a_grid_is_bounded_and_its_parameters_are_checked() {
    let db = TestDb::new().await;
    let api = TestApi::start(&db).await;
    let long: Vec<String> = (0..22).map(|n| n.to_string()).collect();
    for (query, field) in [
        ("btc_price_percent=x".to_owned(), "btc_price_percent"),
        ("difficulty_percent=-100".to_owned(), "difficulty_percent"),
        ("tariff_percent=1000.1".to_owned(), "tariff_percent"),
        ("uptime_percent=".to_owned(), "uptime_percent"),
        (format!("btc_price_percent={}", long.join(",")), "btc_price_percent"),
    ] {
        assert_eq!(api.get(&format!("{WHAT_IF}?{query}")).await.expect(400).fields(), [field], "{query}");
    }
    let wide = long[..21].join(",");
    let grid = format!("{WHAT_IF}?btc_price_percent={wide}&difficulty_percent={wide}");
    assert_eq!(api.get(&grid).await.expect(200).body["data"]["cells"].as_array().map(Vec::len), Some(441));
    let refused = api.get(&format!("{grid}&tariff_percent=0,1")).await.expect(422);
    assert!(
        refused.body["type"].as_str().is_some_and(|t| t.ends_with("grid-too-large")),
        "{:#}",
        refused.body
    );
    // A difficulty of more than 1e18 is beyond the formulas.
    let snapshot =
        json!({"btc_price_usd": 90000, "difficulty": 500_000_000_000_000_000_i64, "block_height": 900000});
    api.post("/api/network/snapshots", snapshot).await.expect(201);
    let beyond = api.get(&format!("{WHAT_IF}?difficulty_percent=0,300")).await.expect(400);
    assert_eq!(beyond.fields(), ["difficulty_percent"]);
    for path in [WHAT_IF, HISTORY] {
        api.get(&format!("{path}?user_id=bob")).await.expect(403);
        api.ask(&api.token_with(&["miners:read"]), Method::GET, path, None).await.expect(403);
    }
}

/// Figures are of the snapshot's moment, whenever they are computed or cached.
#[tokio::test]
async fn figures_of_an_old_snapshot_say_so() {
    let db = TestDb::new().await;
    let api = TestApi::start(&db).await;
    api.post("/api/miners", json!({"model": "S21", "status": "online"})).await.expect(201);
    let snapshot = async |minutes: i64| {
        let observed_at = text(db.db.now() - TimeDelta::minutes(minutes));
        let body = json!({"btc_price_usd": 90000, "difficulty": 150e12, "block_height": 900000,
            "observed_at": observed_at});
        api.post("/api/network/snapshots", body).await.expect(201);
        recalculate(&db).await;
        observed_at
    };
    let old = snapshot(31).await;
    for cached in [false, true] {
        let read = api.get("/api/portfolio").await.expect(200).body;
        assert_eq!(read["metadata"]["cache_hit"], cached);
        assert_eq!(read["data"]["warnings"], json!(["snapshot-stale"]));
        assert_eq!(read["data"]["as_of"], old);
    }
    let now = text(db.db.now());
    let then = api.get(&format!("{HISTORY}?at={now}")).await.expect(200).body["data"].clone();
    assert_eq!(then["warnings"], json!(["snapshot-stale"]));
    let hours = api.get(HISTORY).await.expect(200).body["data"].clone();
    assert_eq!(hours[0]["warnings"], json!(["snapshot-stale"]));

    let new = snapshot(29).await;
    let read = api.get("/api/portfolio").await.expect(200).body;
    assert_eq!((&read["data"]["warnings"], &read["data"]["as_of"]), (&json!([]), &json!(new)));
    let hours = api.get(HISTORY).await.expect(200).body["data"].clone();
    assert_eq!(hours[0]["warnings"], json!([]));
}

/// The group applies everything that was written.
async fn recalculate(db: &TestDb) {
    let (events, _) = events_behind(db, 0).await;
    apply(db, GROUP, &events).await;
}

fn text(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Micros, true)
}

#[tokio::test]
async fn a_portfolio_is_read_as_it_was() {
    let db = TestDb::new().await;
    let api = TestApi::start(&db).await;
    assert_eq!(api.get(HISTORY).await.expect(200).body, json!({"data": [], "next": null}));
    priced(&api).await;
    let hour = db.db.now().duration_trunc(TimeDelta::hours(1)).expect("an hour");
    // Three hours with one more machine each, the oldest first; as if the clock had gone on after each.
    for hours_ago in [30, 20, 10] {
        recalculate(&db).await;
        api.post("/api/miners", json!({"model": "S21", "status": "online"})).await.expect(201);
        recalculate(&db).await;
        db.execute(&format!(
            "update portfolio_history set hour = '{}', computed_at = '{}' where hour > now() - interval '2 hours'",
            text(hour - TimeDelta::hours(hours_ago)),
            text(hour - TimeDelta::hours(hours_ago) + TimeDelta::minutes(20)),
        ))
        .await;
    }
    let kept: i64 = db.scalar("select count(*) from portfolio_history").await;
    assert_eq!(kept, 3, "one row an hour, the last recalculation of it");
    let at = async |at: DateTime<Utc>| {
        let path = format!("{HISTORY}?at={}", text(at));
        api.get(&path).await.expect(200).body["data"].clone()
    };
    let then = |hours: i64, minutes: i64| hour - TimeDelta::hours(hours) + TimeDelta::minutes(minutes);
    assert_eq!(at(then(30, 19)).await, Value::Null, "nothing was computed then");
    for (moment, miners) in [(then(30, 20), 1), (then(20, 19), 1), (then(20, 20), 2), (then(0, 0), 3)] {
        let figures = at(moment).await;
        assert_eq!(figures["miners_online"], json!(miners), "{moment}");
        near(&figures["profit_usd_day"], 2.471124 * f64::from(miners));
        assert!(figures.get("by_model").is_none() && figures.get("tenant_id").is_none());
    }

    let page = api.get(&format!("{HISTORY}?limit=2")).await.expect(200).body;
    let hours: Vec<&Value> = page["data"].as_array().expect("hours").iter().map(|row| &row["hour"]).collect();
    let whole = |hours: i64| json!(then(hours, 0).to_rfc3339_opts(SecondsFormat::AutoSi, true));
    assert_eq!(hours, [&whole(10), &whole(20)]);
    assert_eq!(page["data"][0]["miners_online"], json!(3));
    let next = page["next"].as_str().expect("one more");
    let rest = api.get(&format!("{HISTORY}?limit=2&cursor={next}")).await.expect(200).body;
    assert_eq!((&rest["data"][0]["hour"], &rest["next"]), (&whole(30), &Value::Null));
    let some = api.get(&format!("{HISTORY}?from={}&to={}", text(then(25, 0)), text(then(10, 0)))).await;
    assert_eq!(some.expect(200).body["data"].as_array().map(Vec::len), Some(1));
    for (query, field) in [
        ("at=yesterday".to_owned(), "at"),
        ("at=-200000-01-01T00:00:00Z".to_owned(), "at"),
        ("cursor=-200000-01-01T00:00:00Z".to_owned(), "cursor"),
        (format!("at={0}&from={0}", text(hour)), "at"),
        (format!("at={0}&cursor={0}", text(hour)), "at"),
        (format!("at={}", text(db.db.now() + TimeDelta::minutes(2))), "at"),
        (format!("from={}&to={}", text(hour), text(then(1, 0))), "from"),
        ("cursor=x".to_owned(), "cursor"),
        ("limit=0".to_owned(), "limit"),
    ] {
        assert_eq!(api.get(&format!("{HISTORY}?{query}")).await.expect(400).fields(), [field], "{query}");
    }
    let foreign = format!("{HISTORY}?at={}", text(hour));
    let seen = api.ask(&api.foreign_token(), Method::GET, &foreign, None).await.expect(200).body;
    assert_eq!(seen["data"], Value::Null);

    let old = retention(1);
    assert!(!old.remove_old(&db.db, &CancellationToken::new()).await.expect("a pass"));
    let kept: i64 = db.scalar("select count(*) from portfolio_history").await;
    assert_eq!(kept, 2);
}
