//! Invoices and payments: exact to the last decimal, also when two pay at once.

use serde_json::{Value, json};

use super::{account, go, invoice, kinds, made, pay, problem, shown, told};
use crate::support::{TestApi, TestDb, written};

#[tokio::test]
async fn payments_add_up_in_exact_decimals() {
    let db = TestDb::new().await;
    let api = TestApi::start(&db).await;
    let account = account(&api).await;
    // In binary floating point 0.1 + 0.2 is more than 0.3.
    let id = invoice(&api, &account, json!("0.3")).await;
    let first = pay(&api, &id, json!("0.1")).await.expect(201);
    assert_eq!(kinds(&first), ["crm.payment_received"]);
    assert_eq!((&first.body["invoice_state"], &first.body["due_usd"]), (&json!("PARTIAL"), &json!(0.2)));
    let last = pay(&api, &id, json!(0.2)).await.expect(201);
    assert_eq!(kinds(&last), ["crm.payment_received", "crm.invoice_paid"]);
    let paid = shown(&api, "invoices", &id).await;
    assert_eq!((&paid["state"], &paid["paid_usd"]), (&json!("PAID"), &json!(0.3)));
    assert_eq!(told(&db, "crm.payment_received").await["invoice_state"], "PAID");
    assert_eq!(told(&db, "crm.invoice_paid").await["from"], "PARTIAL");

    // Large and small in one sum, without a digit lost.
    let id = invoice(&api, &account, json!("999999999999.00000003")).await;
    pay(&api, &id, json!("999999999998.00000001")).await.expect(201);
    let rest = pay(&api, &id, json!("1.00000001")).await.expect(201);
    assert_eq!(rest.body["due_usd"].to_string(), "0.00000001");
    pay(&api, &id, json!("0.00000001")).await.expect(201);
    assert_eq!(shown(&api, "invoices", &id).await["state"], "PAID");

    let sums: i64 = db
        .scalar(
            "select count(*) from crm_invoice i where paid_usd <> \
                 (select coalesce(sum(amount_usd), 0) from crm_payment p where p.invoice_id = i.id)",
        )
        .await;
    assert_eq!(sums, 0);
}

#[tokio::test]
async fn more_than_is_due_is_refused() {
    let db = TestDb::new().await;
    let api = TestApi::start(&db).await;
    let account = account(&api).await;
    let id = invoice(&api, &account, json!(100)).await;
    pay(&api, &id, json!(60)).await.expect(201);
    let before = written(&db).await;
    let refused = pay(&api, &id, json!("40.00000001")).await;
    problem(&refused, 409, "over-payment");
    assert!(
        refused.body["detail"].as_str().expect("text").contains("40 USD that are due"),
        "{:#}",
        refused.body
    );
    assert_eq!(written(&db).await, before);
    pay(&api, &id, json!(40)).await.expect(201);
    problem(&pay(&api, &id, json!("0.00000001")).await, 409, "over-payment");

    let cancelled = invoice(&api, &account, json!(10)).await;
    let done =
        go(&api, "invoices", &cancelled, json!({"to": "CANCELLED", "reason": "twice"})).await.expect(200);
    assert_eq!(kinds(&done), ["crm.invoice_status_changed"]);
    for amount in [5, 10, 15] {
        problem(&pay(&api, &cancelled, json!(amount)).await, 409, "invalid-transition");
    }
    // Money came in: it is not cancelled any more.
    let part = invoice(&api, &account, json!(10)).await;
    pay(&api, &part, json!(1)).await.expect(201);
    problem(&go(&api, "invoices", &part, json!({"to": "CANCELLED"})).await, 409, "invalid-transition");
    db.execute(&format!("update crm_invoice set state = 'OVERDUE' where id = '{part}'")).await;
    problem(&go(&api, "invoices", &part, json!({"to": "CANCELLED"})).await, 409, "invoice-is-paid-in-part");
    // Overdue it stays until it is paid whole.
    assert_eq!(pay(&api, &part, json!(1)).await.expect(201).body["invoice_state"], "OVERDUE");
    assert_eq!(pay(&api, &part, json!(8)).await.expect(201).body["invoice_state"], "PAID");
}

#[tokio::test]
async fn a_draft_can_be_paid_and_rewritten_until_then() {
    let db = TestDb::new().await;
    let api = TestApi::start(&db).await;
    let account = account(&api).await;
    let drafted =
        api.post("/api/crm/invoices", json!({"account_id": account, "total_usd": 50})).await.expect(201);
    assert_eq!(kinds(&drafted), ["crm.invoice_drafted"]);
    let id = drafted.body["invoice_id"].as_str().expect("an id");
    let path = format!("/api/crm/invoices/{id}");
    let changed = api
        .patch(&path, json!({"total_usd": 20, "due_at": "2040-01-01T00:00:00Z", "description": "x"}))
        .await;
    assert_eq!(kinds(&changed.expect(200)), ["crm.invoice_updated"]);
    let total = told(&db, "crm.invoice_updated").await["changes"]["total_usd"].clone();
    assert_eq!(total, json!({"old": 50, "new": 20}));
    assert_eq!(
        api.patch(&path, json!({"total_usd": "20.0"})).await.expect(200).body["event_id"],
        Value::Null
    );
    pay(&api, id, json!(5)).await.expect(201);
    assert_eq!(shown(&api, "invoices", id).await["state"], "PARTIAL");
    problem(&api.patch(&path, json!({"total_usd": 30})).await, 409, "invoice-is-no-draft");
    api.patch(&path, json!({"description": null})).await.expect(200);
    // Payments and the clock move it there, nobody else.
    for to in ["PAID", "OVERDUE"] {
        let refused = go(&api, "invoices", id, json!({"to": to})).await;
        problem(&refused, 409, "invalid-transition");
        assert_eq!(refused.body["allowed"], json!([]));
    }
}

#[tokio::test]
async fn what_is_no_payment_is_refused_by_name() {
    let db = TestDb::new().await;
    let api = TestApi::start(&db).await;
    let account = account(&api).await;
    let id = invoice(&api, &account, json!(10)).await;
    let before = written(&db).await;
    for (body, fields) in [
        (json!({}), vec!["invoice_id", "amount_usd"]),
        (json!({"invoice_id": uuid::Uuid::now_v7(), "amount_usd": 1}), vec!["invoice_id"]),
        (json!({"invoice_id": id, "amount_usd": 0}), vec!["amount_usd"]),
        (json!({"invoice_id": id, "amount_usd": -1}), vec!["amount_usd"]),
        (json!({"invoice_id": id, "amount_usd": "1e-9"}), vec!["amount_usd"]),
        (
            json!({"invoice_id": id, "amount_usd": 1, "received_at": "2999-01-01T00:00:00Z"}),
            vec!["received_at"],
        ),
        (json!({"invoice_id": id, "amount_usd": 1, "reference": "x".repeat(201)}), vec!["reference"]),
    ] {
        let refused = api.post("/api/crm/payments", body.clone()).await.expect(422);
        assert_eq!(refused.fields(), fields, "{body}");
    }
    assert_eq!(written(&db).await, before);
    let payment = made(&api, "payments", json!({"invoice_id": id, "amount": 1, "reference": "tx-1"})).await;
    let shown = shown(&api, "payments", &payment).await;
    assert_eq!((&shown["amount_usd"], &shown["account_id"]), (&json!(1), &json!(account)));
    // A payment is a fact.
    api.patch(&format!("/api/crm/payments/{payment}"), json!({"amount_usd": 2})).await.expect(405);
    go(&api, "payments", &payment, json!({"to": "PAID"})).await.expect(404);
}

/// Each is allowed alone; together they are more than the total.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_payments_that_exceed_the_total_one_is_refused() {
    let db = TestDb::new().await;
    let api = TestApi::start(&db).await;
    let account = account(&api).await;
    for _ in 0..10 {
        let id = invoice(&api, &account, json!(100)).await;
        let (one, two) = tokio::join!(pay(&api, &id, json!(60)), pay(&api, &id, json!(60)));
        let (taken, refused) = if one.status == 201 { (one, two) } else { (two, one) };
        taken.expect(201);
        problem(&refused, 409, "over-payment");
        let after = shown(&api, "invoices", &id).await;
        assert_eq!((&after["state"], &after["paid_usd"]), (&json!("PARTIAL"), &json!(60)));
    }
    let payments: i64 = db.scalar("select count(*) from crm_payment").await;
    let events: i64 =
        db.scalar("select count(*) from event_outbox where event_type = 'crm.payment_received'").await;
    assert_eq!((payments, events), (10, 10));
}
