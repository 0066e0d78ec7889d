//! The resource network snapshots over HTTP.

use serde_json::{Value, json};

use crate::support::{TestApi, TestDb, written};

fn snapshot() -> Value {
    json!({"btc_price_usd": "90000.5", "difficulty": 150_000_000_000_000.0, "block_height": 925_000,
        "fees_btc_per_block": 0.05, "observed_at": "2026-01-02T04:04:05+01:00"})
}

#[tokio::test]
async fn a_snapshot_is_recorded_with_its_event() {
    let db = TestDb::new().await;
    let api = TestApi::start(&db).await;
    let recorded = api.post("/api/network/snapshots", snapshot()).await.expect(201);
    let id = recorded.body["snapshot_id"].as_str().expect("an id");
    let (event, key, payload): (String, String, Value) =
        sqlx::query_as("select event_type, event_key, payload from event_outbox")
            .fetch_one(&db.admin)
            .await
            .expect("one event");
    assert_eq!((event.as_str(), key), ("network.snapshot", format!("{}:network", api.tenant)));
    assert_eq!(payload["event_id"], recorded.event_id());
    let data = json!({"snapshot_id": id, "price": 90000.5, "difficulty": 150_000_000_000_000_i64, "height": 925_000,
        "fees": 0.05, "observed_at": "2026-01-02T03:04:05Z"});
    assert_eq!(payload["data"], data);
    let stored: String = db.scalar("select difficulty::text from network_snapshots").await;
    assert_eq!(stored, "150000000000000");

    let least = json!({"btc_price_usd": 90000, "difficulty": "1.5e14", "block_height": 0});
    api.post("/api/network/snapshots", least).await.expect(201);
    let fees: i64 =
        db.scalar("select count(*) from network_snapshots where fees_btc_per_block = 0 and observed_at > now() - interval '1 minute'").await;
    assert_eq!(fees, 1, "fees default to none, the time to now");
}

#[tokio::test]
async fn an_absurd_snapshot_is_refused() {
    let db = TestDb::new().await;
    let api = TestApi::start(&db).await;
    let later = (chrono::Utc::now() + chrono::TimeDelta::minutes(61)).to_rfc3339();
    for (field, values) in [
        ("btc_price_usd", vec![json!(0), json!(-1), json!(1_000_000_000.01), json!(null), json!("x")]),
        ("difficulty", vec![json!(0), json!(999), json!("1.1e18"), json!(null), json!("inf")]),
        ("block_height", vec![json!(-1), json!(10_000_001), json!(1.5), json!(null)]),
        ("fees_btc_per_block", vec![json!(-0.1), json!(1000.1)]),
        ("observed_at", vec![json!("now"), json!(later), json!(0)]),
    ] {
        for value in values {
            let mut body = snapshot();
            body[field] = value.clone();
            let refused = api.post("/api/network/snapshots", body).await.expect(422);
            assert_eq!(refused.fields(), [field], "{value}");
        }
    }
    let nothing = api.post("/api/network/snapshots", json!({})).await.expect(422);
    assert_eq!(nothing.fields(), ["btc_price_usd", "difficulty", "block_height"]);
    assert_eq!(written(&db).await, (0, 0, 0));
}
