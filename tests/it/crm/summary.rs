//! The read model of accounts: from a command through the log to the summary, recomputed once a batch.

use hashinsight::config::EventLogKind;
use hashinsight::event::Event;
use hashinsight::read_model::crm::GROUP;
use serde_json::{Value, json};

use super::{account, deal, go, invoice, made, pay};
use crate::support::pipeline::{self, Pipeline, Store, User};
use crate::support::{TestApi, TestDb};

/// The summary of an account as soon as the event of a write is in it.
async fn after(user: &User<'_>, account: &str, write: &Value) -> Value {
    let event = write["event_id"].as_str().expect("an event");
    let path = format!("/api/crm/accounts/{account}?after={event}&wait=10");
    user.get(&path).await["data"]["summary"].clone()
}

async fn sale_to_payment(log: EventLogKind) {
    let pipeline = Pipeline::start(log, Store::Memory).await;
    let alice = pipeline.user("acme", "alice");
    let created = alice.post("/api/crm/accounts", &json!({"name": "Northern Hash"})).await;
    let account = created["account_id"].as_str().expect("an id");
    let empty = after(&alice, account, &created).await;
    assert_eq!((&empty["version"], &empty["event_id"]), (&json!(1), &created["event_id"]));

    let body =
        json!({"account_id": account, "name": "Hosting", "value_usd": "1000.10", "stage": "NEGOTIATION"});
    let deal = alice.post("/api/crm/deals", &body).await;
    let open = after(&alice, account, &deal).await;
    assert_eq!((&open["deals_open"], &open["pipeline_usd"]), (&json!(1), &json!(1000.1)));
    assert_eq!(open["pipeline_weighted_usd"], json!(750.075));

    let contract = alice.post("/api/crm/contracts", &json!({"deal_id": deal["deal_id"]})).await;
    let path = format!("/api/crm/contracts/{}/transitions", contract["contract_id"].as_str().expect("an id"));
    alice.post(&path, &json!({"to": "sent"})).await;
    let signed = alice.post(&path, &json!({"to": "signed"})).await;
    let billed = after(&alice, account, &signed).await;
    assert_eq!((&billed["deals_open"], &billed["billed_usd"]), (&json!(0), &json!(1000.1)));
    assert_eq!(billed["pipeline_weighted_usd"], json!(0));

    let payment = json!({"invoice_id": signed["invoice_id"], "amount_usd": "0.10"});
    let paid = alice.post("/api/crm/payments", &payment).await;
    let summary = after(&alice, account, &paid).await;
    assert_eq!((&summary["paid_usd"], &summary["event_id"]), (&json!(0.1), &paid["event_id"]));
    let ticket = alice.post("/api/crm/tickets", &json!({"account_id": account, "subject": "Fan"})).await;
    assert_eq!(after(&alice, account, &ticket).await["tickets_open"], 1);

    // The fleet is the portfolio's, as it is when the account is read.
    let asset = alice.post("/api/crm/assets", &json!({"account_id": account, "model": "S21"})).await;
    let path = format!("/api/crm/assets/{}/transitions", asset["asset_id"].as_str().expect("an id"));
    let mut mining = Value::Null;
    for to in ["RECEIVED", "DEPLOYED", "MINING"] {
        mining = alice.post(&path, &json!({"to": to})).await;
    }
    let admin = pipeline.admin("acme", "root");
    let online = mining["events"][1]["event_id"].as_str().expect("the miner's event");
    admin.get(&format!("/api/portfolio?user_id={account}&after={online}&wait=10")).await;
    let fleet = after(&alice, account, &mining).await;
    assert_eq!((&fleet["fleet_hashrate_ths"], &fleet["fleet_profit_usd_day"]), (&json!(200), &Value::Null));
    let snapshot = alice
        .post(
            "/api/network/snapshots",
            &json!({"btc_price_usd": 90000, "difficulty": 150e12, "block_height": 925000, "fees_btc_per_block": 0.05}),
        )
        .await;
    let seen = snapshot["event_id"].as_str().expect("an event");
    admin.get(&format!("/api/portfolio?user_id={account}&after={seen}&wait=10")).await;
    let earns = after(&alice, account, &mining).await["fleet_profit_usd_day"].as_f64().expect("a figure");
    assert!((earns / 2.471124 - 1.0).abs() < 1e-6, "{earns}");
    pipeline.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payment_reaches_the_summary_on_postgres() {
    sale_to_payment(EventLogKind::Postgres).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payment_reaches_the_summary_on_kafka() {
    sale_to_payment(EventLogKind::Kafka).await;
}

/// Applies events as one batch of the group.
async fn apply(db: &TestDb, events: &[Event]) {
    pipeline::apply(db, GROUP, events).await;
}

#[tokio::test]
async fn a_batch_is_one_recomputation_per_account() {
    let db = TestDb::new().await;
    let api = TestApi::start(&db).await;
    let (one, two) = (account(&api).await, account(&api).await);
    for n in 1..=5 {
        deal(&api, &one, "PROPOSAL", json!(n)).await;
    }
    let lost = deal(&api, &two, "PROPOSAL", json!(7)).await;
    go(&api, "deals", &lost, json!({"to": "CLOSED_LOST", "reason": "price"})).await.expect(200);
    let overdue = invoice(&api, &two, json!("10.5")).await;
    pay(&api, &overdue, json!("0.5")).await.expect(201);
    let cancelled = invoice(&api, &two, json!(99)).await;
    go(&api, "invoices", &cancelled, json!({"to": "CANCELLED"})).await.expect(200);
    made(&api, "invoices", json!({"account_id": two, "total_usd": 1000})).await;
    let resolved = made(&api, "tickets", json!({"account_id": two, "subject": "x"})).await;
    go(&api, "tickets", &resolved, json!({"to": "resolved"})).await.expect(200);
    db.execute(&format!("update crm_invoice set state = 'OVERDUE' where id = '{overdue}'")).await;

    let (events, _) = pipeline::events_behind(&db, 0).await;
    apply(&db, &events).await;
    let summary = async |id: &str| {
        let mut shown = super::shown(&api, "accounts", id).await["summary"].clone();
        for volatile in ["computed_at", "event_id"] {
            assert!(shown[volatile].is_string(), "{shown}");
            shown.as_object_mut().expect("an object").remove(volatile);
        }
        shown
    };
    let expected = json!({
        "deals_open": 5, "pipeline_usd": 15, "pipeline_weighted_usd": 7.5, "billed_usd": 0, "paid_usd": 0,
        "overdue_usd": 0, "tickets_open": 0, "fleet_hashrate_ths": 0, "fleet_profit_usd_day": null,
        "fleet_computed_at": null, "version": 1,
    });
    assert_eq!(summary(&one).await, expected);
    let expected = json!({
        "deals_open": 0, "pipeline_usd": 0, "pipeline_weighted_usd": 0, "billed_usd": 10.5, "paid_usd": 0.5,
        "overdue_usd": 10, "tickets_open": 0, "fleet_hashrate_ths": 0, "fleet_profit_usd_day": null,
        "fleet_computed_at": null, "version": 1,
    });
    assert_eq!(summary(&two).await, expected);

    // Once more, in another order: the same figures, the next version.
    let backwards: Vec<Event> = events.iter().rev().cloned().collect();
    apply(&db, &backwards).await;
    let again = summary(&two).await;
    assert_eq!((&again["version"], &again["overdue_usd"]), (&json!(2), &json!(10)));
    let summaries: i64 = db.scalar("select count(*) from crm_account_summary").await;
    assert_eq!(summaries, 2);
}

#[tokio::test]
async fn an_account_is_read_after_events_about_accounts() {
    let db = TestDb::new().await;
    let api = TestApi::start(&db).await;
    let nobody = account(&api).await;
    let summary = super::shown(&api, "accounts", &nobody).await["summary"].clone();
    assert_eq!((&summary["version"], &summary["billed_usd"]), (&json!(0), &json!(0)));
    let lead = api.post("/api/crm/leads", json!({"name": "Ada"})).await.expect(201);
    let path = format!("/api/crm/accounts/{nobody}?wait=0&after=");
    let refused = api.get(&format!("{path}{}", lead.event_id())).await.expect(422);
    assert!(refused.body.to_string().contains("crm.lead_captured, which does not change an account"));
    let ticket =
        api.post("/api/crm/tickets", json!({"account_id": nobody, "subject": "x"})).await.expect(201);
    let pending = api.get(&format!("{path}{}", ticket.event_id())).await.expect(503);
    assert!(pending.body["type"].as_str().is_some_and(|t| t.ends_with("not-yet-visible")));
    api.get(&format!("/api/crm/accounts/{}", uuid::Uuid::now_v7())).await.expect(404);
    assert_eq!(api.get(&format!("{path}nonsense")).await.expect(400).fields(), ["after"]);
}
