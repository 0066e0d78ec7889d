//! What the eight resources have in common: shape, pages, filters, scopes, tenants.

use reqwest::Method;
use serde_json::{Value, json};

use super::{account, contract, deal, go, invoice, kinds, made, pay, shown};
use crate::support::{TestApi, TestDb, written};

/// One of each, as (path, id).
async fn one_of_each(api: &TestApi) -> Vec<(&'static str, String)> {
    let account = account(api).await;
    let lead = made(api, "leads", json!({"name": "Ada"})).await;
    let (contract, deal) = contract(api, &account, json!(10)).await;
    let invoice = invoice(api, &account, json!(10)).await;
    let paid = pay(api, &invoice, json!(1)).await.expect(201);
    let ticket = made(api, "tickets", json!({"account_id": account, "subject": "Fan"})).await;
    let asset = made(api, "assets", json!({"account_id": account, "model": "S21"})).await;
    vec![
        ("accounts", account),
        ("leads", lead),
        ("deals", deal),
        ("contracts", contract),
        ("invoices", invoice),
        ("payments", paid.body["payment_id"].as_str().expect("an id").to_owned()),
        ("tickets", ticket),
        ("assets", asset),
    ]
}

#[tokio::test]
async fn every_write_answers_with_its_event() {
    let db = TestDb::new().await;
    let api = TestApi::start(&db).await;
    let body = json!({"name": "Ada", "company": "Northern Hash", "email": "a@b.c", "phone": "+1", "source": "fair",
        "notes": "tall", "owner_id": 7, "tenant_id": "somebody-else", "unknown": 1});
    let created = api.post("/api/crm/leads", body).await.expect(201);
    let id = created.body["lead_id"].as_str().expect("an id");
    assert_eq!(created.header("location"), format!("/api/crm/leads/{id}"));
    assert_eq!(created.body["success"], true);
    assert_eq!(created.body["event_id"], created.body["events"][0]["event_id"]);
    let lead = shown(&api, "leads", id).await;
    let expected = json!({
        "lead_id": id, "name": "Ada", "company": "Northern Hash", "email": "a@b.c", "phone": "+1", "source": "fair",
        "notes": "tall", "owner_id": "7", "state": "NEW", "state_reason": null, "account_id": null, "deal_id": null,
        "created_at": lead["created_at"], "updated_at": lead["updated_at"],
    });
    assert_eq!(lead, expected);
    let (tenant, user, aggregate): (String, String, String) =
        sqlx::query_as("select tenant_id, user_id, aggregate_type from event_outbox")
            .fetch_one(&db.admin)
            .await
            .expect("an event");
    assert_eq!((tenant, user.as_str(), aggregate.as_str()), (api.tenant.clone(), "7", "crm"));

    let path = format!("/api/crm/leads/{id}");
    let changed = api.patch(&path, json!({"company": null, "name": "Ada L."})).await.expect(200);
    assert_eq!((kinds(&changed), changed.event_id().len()), (vec!["crm.lead_updated"], 36));
    let before = written(&db).await;
    let same = api.patch(&path, json!({"name": " Ada L. ", "state": "NEW"})).await.expect(200);
    assert_eq!((&same.body["event_id"], &same.body["events"]), (&Value::Null, &json!([])));
    for (body, field) in [
        (json!({"name": null}), "name"),
        (json!({"name": "x".repeat(201)}), "name"),
        (json!({"email": "nobody"}), "email"),
        (json!({"owner_id": "a b"}), "owner_id"),
        (json!({"state": "LOST"}), "state"),
        (json!({"notes": 5}), "notes"),
    ] {
        assert_eq!(api.patch(&path, body.clone()).await.expect(422).fields(), [field], "{body}");
    }
    assert_eq!(
        api.post("/api/crm/leads", json!({"email": "x"})).await.expect(422).fields(),
        ["name", "email"]
    );
    assert_eq!(api.post("/api/crm/accounts", json!({})).await.expect(422).fields(), ["name"]);
    let fields = ["account_id", "name", "value_usd"];
    assert_eq!(api.post("/api/crm/deals", json!({})).await.expect(422).fields(), fields);
    assert_eq!(
        api.post("/api/crm/invoices", json!({})).await.expect(422).fields(),
        ["account_id", "total_usd"]
    );
    assert_eq!(written(&db).await, before);
}

#[tokio::test]
async fn lists_have_pages_and_filters() {
    let db = TestDb::new().await;
    let api = TestApi::start(&db).await;
    let (one, two) = (account(&api).await, account(&api).await);
    let mut ids = Vec::new();
    for n in 0..5 {
        let id = deal(&api, if n % 2 == 0 { &one } else { &two }, "PROPOSAL", json!(n)).await;
        ids.push(id);
    }
    go(&api, "deals", &ids[0], json!({"to": "CLOSED_WON"})).await.expect(200);
    let mut seen = Vec::new();
    let mut next = String::new();
    loop {
        let page = api.get(&format!("/api/crm/deals?limit=2{next}")).await.expect(200).body;
        seen.extend(page["data"].as_array().expect("rows").iter().map(|d| d["deal_id"].clone()));
        match page["next"].as_str() {
            Some(cursor) => next = format!("&cursor={cursor}"),
            None => break,
        }
    }
    assert_eq!(seen, ids);
    for (query, expected) in [
        (format!("account_id={one}"), vec![0, 2, 4]),
        (format!("account_id={two}"), vec![1, 3]),
        ("state=CLOSED_WON".to_owned(), vec![0]),
        (format!("account_id={one}&state=PROPOSAL"), vec![2, 4]),
        (format!("account_id={}", uuid::Uuid::now_v7()), vec![]),
    ] {
        let list = api.get(&format!("/api/crm/deals?{query}")).await.expect(200).body;
        let found: Vec<i64> =
            list["data"].as_array().expect("rows").iter().filter_map(|d| d["value_usd"].as_i64()).collect();
        assert_eq!(found, expected, "{query}");
    }
    for (query, field) in [
        ("limit=0", "limit"),
        ("limit=201", "limit"),
        ("cursor=x", "cursor"),
        ("state=proposal", "state"),
        ("account_id=7", "account_id"),
    ] {
        let refused = api.get(&format!("/api/crm/deals?{query}")).await.expect(400);
        assert_eq!(refused.fields(), [field], "{query}");
    }
    for (path, id) in one_of_each(&api).await {
        let list = api.get(&format!("/api/crm/{path}?limit=200")).await.expect(200).body;
        let name = format!("{}_id", path.trim_end_matches('s'));
        let rows = list["data"].as_array().expect("rows");
        assert!(rows.iter().any(|row| row[&name] == id), "{path}: {list:#}");
        api.get(&format!("/api/crm/{path}/{}", uuid::Uuid::now_v7())).await.expect(404);
    }
}

#[tokio::test]
async fn scopes_and_tenants_keep_others_out() {
    let db = TestDb::new().await;
    let api = TestApi::start(&db).await;
    let all = one_of_each(&api).await;
    let before = written(&db).await;
    let (reader, writer) = (api.token_with(&["crm:read"]), api.token_with(&["crm:write"]));
    let stranger = api.foreign_token();
    for (path, id) in &all {
        let (many, one) = (format!("/api/crm/{path}"), format!("/api/crm/{path}/{id}"));
        let moves = format!("{one}/transitions");
        for (method, path) in [(Method::GET, &many), (Method::GET, &one)] {
            api.ask(&writer, method.clone(), path, None).await.expect(403);
            api.ask(&reader, method, path, None).await.expect(200);
        }
        api.ask(&reader, Method::POST, &many, Some(json!({}))).await.expect(403);
        api.ask(&stranger, Method::GET, &one, None).await.expect(404);
        let list = api.ask(&stranger, Method::GET, &many, None).await.expect(200);
        assert_eq!(list.body["data"], json!([]), "{path}");
        if *path != "payments" {
            api.ask(&reader, Method::PATCH, &one, Some(json!({}))).await.expect(403);
            api.ask(&stranger, Method::PATCH, &one, Some(json!({"notes": "x"}))).await.expect(404);
        }
        if !["payments", "accounts"].contains(path) {
            api.ask(&reader, Method::POST, &moves, Some(json!({}))).await.expect(403);
            api.ask(&stranger, Method::POST, &moves, Some(json!({"to": "LOST"}))).await.expect(404);
        }
    }
    // What another tenant has cannot be referred to, and is not told apart from what does not exist.
    let id = |path: &str| all.iter().find(|(p, _)| *p == path).expect("one of each").1.clone();
    for (path, body, field) in [
        ("deals", json!({"account_id": id("accounts"), "name": "x", "value_usd": 1}), "account_id"),
        ("contracts", json!({"deal_id": id("deals")}), "deal_id"),
        ("invoices", json!({"account_id": id("accounts"), "total_usd": 1}), "account_id"),
        ("payments", json!({"invoice_id": id("invoices"), "amount_usd": 1}), "invoice_id"),
        ("tickets", json!({"account_id": id("accounts"), "subject": "x"}), "account_id"),
        ("assets", json!({"account_id": id("accounts"), "model": "S21"}), "account_id"),
    ] {
        let refused =
            api.ask(&stranger, Method::POST, &format!("/api/crm/{path}"), Some(body)).await.expect(422);
        assert_eq!(refused.fields(), [field]);
    }
    let own = made(&api, "accounts", json!({"name": "Own"})).await;
    let body = json!({"account_id": own, "total_usd": 1, "contract_id": id("contracts")});
    let refused = api.post("/api/crm/invoices", body).await.expect(422);
    assert_eq!(refused.fields(), ["contract_id"], "of another account");
    let after = written(&db).await;
    assert_eq!((after.0, after.1, after.2), (before.0 + 1, before.1 + 1, before.2 + 1));
}
