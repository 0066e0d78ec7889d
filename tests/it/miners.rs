//! The resource miners over HTTP: what is taken, what is refused, what each change leaves in the database.

use serde_json::{Value, json};
use sqlx::Row;

use crate::support::{TestApi, TestDb};

#[tokio::test]
async fn a_miner_lives_through_every_endpoint() {
    let db = TestDb::new().await;
    let api = TestApi::start(&db).await;

    let added = api.post("/api/miners", json!({"model": "s21", "location": "Hall 1"})).await.expect(201);
    let id = added.body["miner_id"].as_str().expect("an id");
    assert_eq!(added.body["success"], true);
    assert_eq!(added.header("location"), format!("/api/miners/{id}"));
    assert!(added.body["message"].is_string());
    assert_eq!(added.event_id().len(), 36);

    let path = format!("/api/miners/{id}");
    let got = api.get(&path).await.expect(200).body;
    let expected = json!({
        "miner_id": id, "owner_id": api.user, "model": "s21", "hashrate_ths": 200, "power_w": 3500, "quantity": 1,
        "location": "Hall 1", "purchase_price_usd": null, "electricity_cost_usd_kwh": null, "status": "pending",
        "status_reason": null, "created_at": got["data"]["created_at"], "updated_at": got["data"]["updated_at"],
    });
    assert_eq!(got["data"], expected);
    assert!(got["data"]["created_at"].as_str().expect("a time").ends_with('Z'));
}
