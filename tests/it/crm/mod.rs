//! The CRM over HTTP: every rule of its states, every refusal, what a change leaves behind.

mod assets;
mod clock;
mod machines;
mod money;
mod resources;
mod sales;
mod summary;
mod tickets;

use serde_json::{Value, json};

use crate::support::{Answer, TestApi, TestDb, problem};

/// Makes one and returns its id.
async fn made(api: &TestApi, path: &str, body: Value) -> String {
    let answer = api.post(&format!("/api/crm/{path}"), body).await.expect(201);
    let location = answer.header("location").to_owned();
    location.rsplit('/').next().expect("an id").to_owned()
}

async fn account(api: &TestApi) -> String {
    made(api, "accounts", json!({"name": "Northern Hash"})).await
}

async fn deal(api: &TestApi, account: &str, stage: &str, value: Value) -> String {
    made(api, "deals", json!({"account_id": account, "name": "Hosting", "value_usd": value, "state": stage}))
        .await
}

/// A contract that was sent, of a deal in negotiation.
async fn contract(api: &TestApi, account: &str, value: Value) -> (String, String) {
    let deal = deal(api, account, "NEGOTIATION", value).await;
    let contract = made(api, "contracts", json!({"deal_id": deal})).await;
    go(api, "contracts", &contract, json!({"to": "sent"})).await.expect(200);
    (contract, deal)
}

/// An issued invoice.
async fn invoice(api: &TestApi, account: &str, total: Value) -> String {
    let invoice = made(api, "invoices", json!({"account_id": account, "total_usd": total})).await;
    go(api, "invoices", &invoice, json!({"to": "ISSUED"})).await.expect(200);
    invoice
}

async fn pay(api: &TestApi, invoice: &str, amount: Value) -> Answer {
    api.post("/api/crm/payments", json!({"invoice_id": invoice, "amount_usd": amount})).await
}

async fn go(api: &TestApi, path: &str, id: &str, body: Value) -> Answer {
    api.post(&format!("/api/crm/{path}/{id}/transitions"), body).await
}

async fn shown(api: &TestApi, path: &str, id: &str) -> Value {
    api.get(&format!("/api/crm/{path}/{id}")).await.expect(200).body["data"].clone()
}

/// The kinds of a write's events, in order.
fn kinds(answer: &Answer) -> Vec<&str> {
    let events = answer.body["events"].as_array().expect("events");
    events.iter().filter_map(|event| event["kind"].as_str()).collect()
}

/// The data of the newest event of a kind.
async fn told(db: &TestDb, kind: &str) -> Value {
    sqlx::query_scalar(
        "select payload -> 'data' from event_outbox where event_type = $1 order by position desc limit 1",
    )
    .bind(kind)
    .fetch_one(&db.admin)
    .await
    .expect(kind)
}
