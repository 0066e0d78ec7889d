//! Backtests over HTTP: along given days, along the stored closes, and not without prices.

use chrono::{Days, NaiveDate, Utc};
use serde_json::{Value, json};

use super::{account, change, lot};
use crate::support::{Answer, TestApi, TestDb, written};

async fn run(api: &TestApi, body: Value) -> Answer {
    api.post("/api/treasury/backtest", body).await
}

fn days(prices: &[i64]) -> Value {
    let first: NaiveDate = "2025-01-01".parse().expect("a date");
    let day = |(at, price): (u64, &i64)| json!({"date": first + Days::new(at), "price_usd": price});
    Value::Array((0..).zip(prices).map(day).collect())
}

#[tokio::test]
async fn strategies_are_compared_with_holding() {
    let db = TestDb::new().await;
    let api = TestApi::start(&db).await;
    let before = written(&db).await;
    let start = json!({"lots": [{"id": uuid::Uuid::now_v7(), "acquired_at": "2024-01-01T00:00:00Z",
        "sat": 1_000_000_000, "cost_usd": 500_000}]});
    let body = json!({"days": days(&[50_000, 60_000, 50_000]), "start": start, "fee": 0,
        "strategies": [{"layered": {"rungs": [{"cost_multiple": 1.2, "share": 0.2}]}}]});
    let done = run(&api, body).await.expect(200).body["data"].clone();
    assert_eq!((&done["first_day"], &done["last_day"]), (&json!("2025-01-01"), &json!("2025-01-03")));
    assert_eq!(done["sales"][0]["sat"], json!(200_000_000));
    assert_eq!(done["strategies"]["realised_gain_usd"].as_f64(), Some(20_000.0));
    assert_eq!(done["strategies"]["equity_end_usd"].as_f64(), Some(520_000.0));
    assert_eq!(done["hodl"]["equity_end_usd"].as_f64(), Some(500_000.0));
    assert_eq!(written(&db).await, before, "nothing is stored");
}

#[tokio::test]
async fn a_backtest_refuses_what_it_cannot_run() {
    let db = TestDb::new().await;
    let api = TestApi::start(&db).await;
    let gap = {
        let mut gap = days(&[1, 2, 3]);
        gap.as_array_mut().expect("days").remove(1);
        gap
    };
    for (body, field) in [
        (json!({}), "days"),
        (json!({"days": []}), "days"),
        (json!({"days": gap}), "days"),
        (json!({"days": days(&[0])}), "price_usd"),
        (json!({"days": days(&[1]), "from": "2025-01-01"}), "days"),
        (json!({"from": "2025-02-01", "to": "2025-01-01"}), "from"),
        (json!({"days": "many"}), "days"),
        (json!({"days": days(&[1]), "strategies": ["yolo"]}), "strategies"),
        (json!({"days": days(&[1]), "strategies": [{"fixed_share": {"share": 2}}]}), "strategies"),
        (json!({"days": days(&[1]), "strategies": ["hodl", "hodl"]}), "strategies"),
        (json!({"days": days(&[1]), "fee": 1}), "fee"),
        (json!({"days": days(&[1]), "surprise": 1}), "body"),
        (json!({"days": days(&vec![1; 3_654])}), "days"),
    ] {
        let refused = run(&api, body.clone()).await.expect(422);
        assert_eq!(refused.fields(), [field], "{:#}", refused.body);
    }
}

#[tokio::test]
async fn the_stored_closes_and_the_account_are_the_default() {
    let db = TestDb::new().await;
    let api = TestApi::start(&db).await;
    account(&api).await;
    lot(&api, "2", 100_000).await;
    change(&api, json!({"cash_usd": 9_000, "opex_usd_month": 90_000})).await;
    let closes = |days: &str| {
        format!(
            "insert into network_snapshots (tenant_id, id, btc_price_usd, difficulty, block_height, observed_at) \
             select '{}', gen_random_uuid(), 50000 + hour, 150e12, 925000, date_trunc('day', now() at time zone 'UTC') \
             at time zone 'UTC' - d * interval '1 day' + hour * interval '1 hour' \
             from unnest(array[{days}]) d, unnest(array[1, 22]) hour",
            api.tenant
        )
    };
    db.execute(&closes("1, 2, 3")).await;
    let to = Utc::now().date_naive() - Days::new(1);
    let done = run(&api, json!({"to": to, "strategies": ["hodl"]})).await.expect(200).body["data"].clone();
    assert_eq!(done["first_day"], json!(to - Days::new(2)));
    let hodl = &done["hodl"];
    // The last price of each day, the lots and the cash of the account, and 3,000 USD of opex a day.
    assert_eq!(hodl["equity_start_usd"].as_f64(), Some(2.0 * 50_022.0 + 9_000.0));
    assert_eq!((hodl["opex_paid_usd"].as_f64(), hodl["cash_usd"].as_f64()), (Some(9_000.0), Some(0.0)));
    // A day is missing: no price is made up for it.
    db.execute(&closes("5")).await;
    let refused = run(&api, json!({"to": to})).await.expect(422);
    assert!(refused.body.to_string().contains(&(to - Days::new(3)).to_string()), "{:#}", refused.body);
    let early = json!({"from": to - Days::new(9), "to": to});
    assert_eq!(run(&api, early).await.expect(422).fields(), ["days"]);
    run(&api, json!({"from": to - Days::new(1), "to": to})).await.expect(200);
}
