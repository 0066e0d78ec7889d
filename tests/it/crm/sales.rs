//! From the lead to the signature.

use chrono::{DateTime, TimeDelta, Utc};
use reqwest::Method;
use serde_json::{Value, json};

use super::{account, contract, deal, go, kinds, made, problem, shown, told};
use crate::support::{TestApi, TestDb, written};

#[tokio::test]
async fn conversion_makes_the_account_and_the_deal_at_once() {
    let db = TestDb::new().await;
    let api = TestApi::start(&db).await;
    let body =
        json!({"name": "Ada", "company": "Northern Hash", "email": "ada@example.org", "source": "fair"});
    let captured = api.post("/api/crm/leads", body).await.expect(201);
    assert_eq!(kinds(&captured), ["crm.lead_captured"]);
    let lead = captured.body["lead_id"].as_str().expect("an id").to_owned();
    let qualified = go(&api, "leads", &lead, json!({"to": "QUALIFIED"})).await.expect(200);
    assert_eq!(kinds(&qualified), ["crm.lead_qualified"]);

    let before = written(&db).await;
    let body =
        json!({"to": "CONVERTED", "value_usd": "250000.50", "deal_name": "Hall 7", "stage": "PROPOSAL"});
    let converted = go(&api, "leads", &lead, body).await.expect(200);
    assert_eq!(kinds(&converted), ["crm.account_created", "crm.deal_created", "crm.lead_converted"]);
    let after = written(&db).await;
    assert_eq!((after.0 - before.0, after.1 - before.1, after.2 - before.2), (2, 3, 3));
    let id = |name: &str| converted.body[name].as_str().expect(name).to_owned();
    let (account_id, deal_id) = (id("account_id"), id("deal_id"));
    let account = shown(&api, "accounts", &account_id).await;
    assert_eq!((&account["name"], &account["email"]), (&json!("Northern Hash"), &json!("ada@example.org")));
    assert_eq!(account["portfolio_user_id"], account_id, "a portfolio of its own");
    let deal = shown(&api, "deals", &deal_id).await;
    assert_eq!(deal["account_id"], account_id);
    assert_eq!((&deal["name"], &deal["state"]), (&json!("Hall 7"), &json!("PROPOSAL")));
    assert_eq!((&deal["value_usd"], &deal["probability_percent"]), (&json!(250_000.5), &json!(50)));
    let lead = shown(&api, "leads", &lead).await;
    assert_eq!((&lead["state"], &lead["account_id"]), (&json!("CONVERTED"), &json!(account_id)));
    assert_eq!(told(&db, "crm.lead_converted").await["deal_id"], deal_id);
    // Everything about an account is keyed by its portfolio user: one partition, in order.
    let keys: Vec<String> =
        sqlx::query_scalar("select distinct event_key from event_outbox where event_type = any($1)")
            .bind(["crm.account_created", "crm.deal_created", "crm.lead_converted"])
            .fetch_all(&db.admin)
            .await
            .expect("keys");
    assert_eq!(keys, [format!("{}:{account_id}", api.tenant)]);
}

#[tokio::test]
async fn a_conversion_that_is_refused_makes_nothing() {
    let db = TestDb::new().await;
    let api = TestApi::start(&db).await;
    let account = account(&api).await;
    let lead = made(&api, "leads", json!({"name": "Ada"})).await;
    go(&api, "leads", &lead, json!({"to": "QUALIFIED"})).await.expect(200);
    let before = written(&db).await;
    for (field, value) in [
        ("account_id", json!(uuid::Uuid::now_v7())),
        ("account_id", json!("nonsense")),
        ("value_usd", json!(-1)),
        ("value_usd", json!("0.000000001")),
        ("state", json!("CLOSED_WON")),
        ("state", json!("SIGNED")),
        ("probability_percent", json!(101)),
        ("portfolio_user_id", json!("a b")),
    ] {
        let admin = api.admin_token();
        let path = format!("/api/crm/leads/{lead}/transitions");
        let body = Some(json!({"to": "CONVERTED", field: value}));
        let refused = api.ask(&admin, Method::POST, &path, body).await.expect(422);
        assert_eq!(refused.fields(), [field], "{value}");
    }
    // Of an account that exists nothing is made.
    for (field, value) in [("account_name", json!("Other")), ("portfolio_user_id", json!(api.user))] {
        let body = json!({"to": "CONVERTED", "account_id": account, field: value});
        assert_eq!(go(&api, "leads", &lead, body).await.expect(422).fields(), [field]);
    }
    assert_eq!(written(&db).await, before);
    // An account that exists is taken, and no other made.
    let converted =
        go(&api, "leads", &lead, json!({"to": "CONVERTED", "account_id": account})).await.expect(200);
    assert_eq!(kinds(&converted), ["crm.deal_created", "crm.lead_converted"]);
    assert_eq!(converted.body["account_id"], account);
}

#[tokio::test]
async fn the_stage_sets_the_probability_unless_it_is_given() {
    let db = TestDb::new().await;
    let api = TestApi::start(&db).await;
    let account = account(&api).await;
    for (stage, percent) in
        [("PROSPECTING", 10), ("QUALIFICATION", 25), ("PROPOSAL", 50), ("NEGOTIATION", 75)]
    {
        let id = deal(&api, &account, stage, json!(10)).await;
        assert_eq!(shown(&api, "deals", &id).await["probability_percent"], percent, "{stage}");
    }
    let id = deal(&api, &account, "PROSPECTING", json!("0.1")).await;
    for name in ["state", "stage"] {
        let path = format!("/api/crm/deals/{id}");
        let refused = api.patch(&path, json!({name: "PROPOSAL"})).await.expect(422);
        assert_eq!(refused.fields(), ["state"], "{name}");
        api.patch(&path, json!({name: "PROSPECTING"})).await.expect(200);
    }
    let moved = go(&api, "deals", &id, json!({"to": "PROPOSAL", "probability": 60})).await.expect(200);
    assert_eq!(kinds(&moved), ["crm.deal_stage_changed"]);
    assert_eq!(shown(&api, "deals", &id).await["probability_percent"], 60);
    go(&api, "deals", &id, json!({"to": "NEGOTIATION"})).await.expect(200);
    assert_eq!(shown(&api, "deals", &id).await["probability_percent"], 75);
    let refused =
        go(&api, "deals", &id, json!({"to": "CLOSED_WON", "probability_percent": 99})).await.expect(422);
    assert_eq!(refused.fields(), ["probability_percent"]);

    // Losing needs a reason.
    let before = written(&db).await;
    for body in [json!({"to": "CLOSED_LOST"}), json!({"to": "CLOSED_LOST", "reason": " "})] {
        let refused = go(&api, "deals", &id, body).await.expect(422);
        assert_eq!(refused.fields(), ["reason"]);
    }
    assert_eq!(written(&db).await, before);
    let lost = go(&api, "deals", &id, json!({"to": "CLOSED_LOST", "reason": "price"})).await.expect(200);
    assert_eq!(kinds(&lost), ["crm.deal_lost"]);
    let deal_lost = shown(&api, "deals", &id).await;
    assert_eq!((&deal_lost["probability_percent"], &deal_lost["state_reason"]), (&json!(0), &json!("price")));
    assert!(deal_lost["closed_at"].is_string());

    let id = deal(&api, &account, "PROSPECTING", json!(5)).await;
    let won = go(&api, "deals", &id, json!({"to": "CLOSED_WON"})).await.expect(200);
    assert_eq!(kinds(&won), ["crm.deal_won"]);
    assert_eq!(shown(&api, "deals", &id).await["probability_percent"], 100);
    problem(&api.patch(&format!("/api/crm/deals/{id}"), json!({"value_usd": 6})).await, 409, "closed-deal");
    api.patch(&format!("/api/crm/deals/{id}"), json!({"notes": "a note"})).await.expect(200);
}

#[tokio::test]
async fn a_contract_comes_from_a_deal_in_negotiation_or_won() {
    let db = TestDb::new().await;
    let api = TestApi::start(&db).await;
    let account = account(&api).await;
    for stage in ["PROSPECTING", "QUALIFICATION", "PROPOSAL"] {
        let id = deal(&api, &account, stage, json!(10)).await;
        let before = written(&db).await;
        let refused = api.post("/api/crm/contracts", json!({"deal_id": id})).await;
        problem(&refused, 409, "contract-needs-negotiation");
        assert!(refused.body["detail"].as_str().expect("text").contains(stage));
        assert_eq!(written(&db).await, before);
        go(&api, "deals", &id, json!({"to": "CLOSED_LOST", "reason": "x"})).await.expect(200);
        let refused = api.post("/api/crm/contracts", json!({"deal_id": id})).await;
        problem(&refused, 409, "contract-needs-negotiation");
    }
    for stage in ["NEGOTIATION", "CLOSED_WON"] {
        let id = deal(&api, &account, "NEGOTIATION", json!(10)).await;
        if stage == "CLOSED_WON" {
            go(&api, "deals", &id, json!({"to": stage})).await.expect(200);
        }
        let generated = api.post("/api/crm/contracts", json!({"deal_id": id})).await.expect(201);
        assert_eq!(kinds(&generated), ["crm.contract_generated"]);
    }
    let empty = deal(&api, &account, "NEGOTIATION", json!(0)).await;
    for (body, field) in [
        (json!({}), "deal_id"),
        (json!({"deal_id": uuid::Uuid::now_v7()}), "deal_id"),
        (json!({"deal_id": empty}), "value_usd"),
        (json!({"deal_id": empty, "value_usd": 5, "first_invoice_usd": "5.01"}), "first_invoice_usd"),
    ] {
        let refused = api.post("/api/crm/contracts", body.clone()).await.expect(422);
        assert_eq!(refused.fields(), [field], "{body}");
    }
}

#[tokio::test]
async fn signing_wins_the_deal_and_issues_the_first_invoice() {
    let db = TestDb::new().await;
    let api = TestApi::start(&db).await;
    let account = account(&api).await;
    let deal_id = deal(&api, &account, "NEGOTIATION", json!("1200.30")).await;
    let body = json!({"deal_id": deal_id, "title": "Hosting, a year", "first_invoice_usd": "100.10"});
    let contract_id = made(&api, "contracts", body).await;
    let draft = format!("/api/crm/contracts/{contract_id}");
    api.patch(&draft, json!({"first_invoice_usd": "100.20"})).await.expect(200);
    let sent = go(&api, "contracts", &contract_id, json!({"to": "sent"})).await.expect(200);
    assert_eq!(kinds(&sent), ["crm.contract_status_changed"]);
    problem(&api.patch(&draft, json!({"value_usd": 5000})).await, 409, "contract-is-no-draft");

    let before = written(&db).await;
    let signed = go(&api, "contracts", &contract_id, json!({"to": "signed"})).await.expect(200);
    assert_eq!(kinds(&signed), ["crm.contract_signed", "crm.deal_won", "crm.invoice_issued"]);
    let after = written(&db).await;
    assert_eq!((after.0 - before.0, after.1 - before.1, after.2 - before.2), (1, 3, 3));
    assert_eq!(shown(&api, "deals", &deal_id).await["state"], "CLOSED_WON");
    let invoice_id = signed.body["invoice_id"].as_str().expect("an invoice");
    let invoice = shown(&api, "invoices", invoice_id).await;
    assert_eq!((&invoice["state"], &invoice["total_usd"]), (&json!("ISSUED"), &json!(100.2)));
    assert_eq!((&invoice["contract_id"], &invoice["account_id"]), (&json!(contract_id), &json!(account)));
    let due: DateTime<Utc> = invoice["due_at"].as_str().expect("a time").parse().expect("RFC 3339");
    assert!((due - Utc::now() - TimeDelta::days(30)).abs() < TimeDelta::minutes(5), "{due}");
    assert!(shown(&api, "contracts", &contract_id).await["signed_at"].is_string());

    // A deal that is won already stays won, without a second event.
    let (again, deal_id) = contract(&api, &account, json!(7)).await;
    go(&api, "deals", &deal_id, json!({"to": "CLOSED_WON"})).await.expect(200);
    let signed = go(&api, "contracts", &again, json!({"to": "signed"})).await.expect(200);
    assert_eq!(kinds(&signed), ["crm.contract_signed", "crm.invoice_issued"]);

    // One that was lost meanwhile refuses, and nothing is signed.
    let (late, deal_id) = contract(&api, &account, json!(7)).await;
    go(&api, "deals", &deal_id, json!({"to": "CLOSED_LOST", "reason": "gone"})).await.expect(200);
    let before = written(&db).await;
    let refused = go(&api, "contracts", &late, json!({"to": "signed"})).await;
    problem(&refused, 409, "invalid-transition");
    assert_eq!((&refused.body["from"], &refused.body["allowed"]), (&json!("CLOSED_LOST"), &json!([])));
    assert_eq!(written(&db).await, before);
    assert_eq!(shown(&api, "contracts", &late).await["state"], "sent");
}

/// Two who move the same deal: one does, the other meets the state the first one made.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_transitions_at_once_one_is_refused() {
    let db = TestDb::new().await;
    let api = TestApi::start(&db).await;
    let account = account(&api).await;
    for _ in 0..10 {
        let id = deal(&api, &account, "NEGOTIATION", json!(5)).await;
        let (won, lost) = tokio::join!(
            go(&api, "deals", &id, json!({"to": "CLOSED_WON"})),
            go(&api, "deals", &id, json!({"to": "CLOSED_LOST", "reason": "price"})),
        );
        let (done, refused) = if won.status == 200 { (won, lost) } else { (lost, won) };
        done.expect(200);
        problem(&refused, 409, "invalid-transition");
        assert_ne!(refused.body["from"], Value::from("NEGOTIATION"), "it saw the other's state");
    }
    let closed: i64 = db
        .scalar("select count(*) from event_outbox where event_type in ('crm.deal_won', 'crm.deal_lost')")
        .await;
    assert_eq!(closed, 10);
}
