//! What the clock does to invoices, through the domain: the clock is the database's.

use hashinsight::domain::Caller;
use hashinsight::domain::crm::invoice::{Swept, sweep};
use hashinsight::identifier::UserId;
use serde_json::{Value, json};

use super::{account, go, invoice, made, pay, shown, told};
use crate::support::{TestApi, TestDb};

/// Sweeps a tenant once.
async fn swept(db: &TestDb, tenant: &str, limit: i64) -> Swept {
    let actor: UserId = "clock".parse().expect("a user");
    let caller = Caller { actor: &actor, request_id: "sweep", traceparent: "", now: chrono::Utc::now() };
    let mut tx = db.db.tenant(&tenant.parse().expect("a tenant")).await.expect("begin");
    let done = sweep(&mut tx, caller, limit).await.expect("swept");
    tx.commit().await.expect("commit");
    done
}

async fn shift(db: &TestDb, id: &str, what: &str, days: &str) {
    db.execute(&format!("update crm_invoice set {what} = now() - interval '{days}' where id = '{id}'")).await;
}

const NOTHING: Swept = Swept { overdue: 0, reminders: 0, cancelled: 0 };

#[tokio::test]
async fn invoices_become_overdue_and_are_reminded_of_once_each() {
    let db = TestDb::new().await;
    let api = TestApi::start(&db).await;
    let account = account(&api).await;
    let id = invoice(&api, &account, json!(10)).await;
    pay(&api, &id, json!(4)).await.expect(201);
    assert_eq!(swept(&db, &api.tenant, 100).await, NOTHING, "not due yet");

    shift(&db, &id, "due_at", "1 second").await;
    assert_eq!(swept(&db, &format!("{}-other", api.tenant), 100).await, NOTHING, "another tenant's clock");
    assert_eq!(swept(&db, &api.tenant, 100).await, Swept { overdue: 1, ..NOTHING });
    let data = told(&db, "crm.invoice_overdue").await;
    assert_eq!(
        (&data["from"], &data["paid_usd"], &data["account_id"]),
        (&json!("PARTIAL"), &json!(4), &json!(account))
    );
    assert_eq!(shown(&api, "invoices", &id).await["state"], "OVERDUE");
    let (actor, request): (String, String) =
        sqlx::query_as("select actor, request_id from audit_log where action = 'crm.invoice_overdue'")
            .fetch_one(&db.admin)
            .await
            .expect("audit");
    assert_eq!((actor.as_str(), request.as_str()), ("clock", "sweep"));

    for (days, reminders, told_of) in [
        ("6 days 23 hours", 0, 0),
        ("7 days 1 minute", 1, 7),
        ("13 days", 0, 7),
        ("14 days 1 minute", 1, 14),
        ("30 days 1 minute", 1, 30),
        ("300 days", 0, 30),
    ] {
        shift(&db, &id, "due_at", days).await;
        assert_eq!(swept(&db, &api.tenant, 100).await, Swept { reminders, ..NOTHING }, "{days}");
        assert_eq!(swept(&db, &api.tenant, 100).await, NOTHING, "{days}: once");
        if told_of > 0 {
            assert_eq!(told(&db, "crm.invoice_reminder_due").await["days_overdue"], told_of);
        }
    }
    // Paid: the clock has nothing to say any more.
    pay(&api, &id, json!(6)).await.expect(201);
    assert_eq!(swept(&db, &api.tenant, 100).await, NOTHING);
}

/// Nobody swept for a month: each reminder is still told once, in order, also when the limit cuts them.
#[tokio::test]
async fn a_late_clock_skips_nothing() {
    let db = TestDb::new().await;
    let api = TestApi::start(&db).await;
    let account = account(&api).await;
    for _ in 0..2 {
        let id = invoice(&api, &account, json!(10)).await;
        shift(&db, &id, "due_at", "31 days").await;
    }
    assert_eq!(swept(&db, &api.tenant, 2).await, Swept { overdue: 2, reminders: 2, cancelled: 0 });
    assert_eq!(swept(&db, &api.tenant, 2).await, Swept { reminders: 2, ..NOTHING });
    assert_eq!(swept(&db, &api.tenant, 2).await, Swept { reminders: 2, ..NOTHING });
    assert_eq!(swept(&db, &api.tenant, 2).await, NOTHING);
    let days: Vec<Value> = sqlx::query_scalar(
        "select payload #> '{data,days_overdue}' from event_outbox where event_type = 'crm.invoice_reminder_due' \
         order by position",
    )
    .fetch_all(&db.admin)
    .await
    .expect("reminders");
    assert_eq!(days, [7, 14, 30, 7, 14, 30].map(|day| json!(day)));
}

#[tokio::test]
async fn a_draft_that_nobody_paid_is_cancelled_after_seven_days() {
    let db = TestDb::new().await;
    let api = TestApi::start(&db).await;
    let account = account(&api).await;
    let draft = async || made(&api, "invoices", json!({"account_id": account, "total_usd": 10})).await;
    let (young, old, paid, sent) = (draft().await, draft().await, draft().await, draft().await);
    pay(&api, &paid, json!(1)).await.expect(201);
    go(&api, "invoices", &sent, json!({"to": "SENT"})).await.expect(200);
    shift(&db, &young, "created_at", "6 days 23 hours").await;
    for id in [&old, &paid, &sent] {
        shift(&db, id, "created_at", "7 days 1 minute").await;
    }
    assert_eq!(swept(&db, &api.tenant, 100).await, Swept { cancelled: 1, ..NOTHING });
    for (id, state) in [(&young, "DRAFT"), (&old, "CANCELLED"), (&paid, "PARTIAL"), (&sent, "SENT")] {
        assert_eq!(shown(&api, "invoices", id).await["state"], state);
    }
    assert_eq!(told(&db, "crm.invoice_status_changed").await["invoice_id"], old);
    assert_eq!(swept(&db, &api.tenant, 100).await, NOTHING);
}

/// A payment that is being made is not overtaken: its row is left for the next sweep.
#[tokio::test]
async fn an_invoice_that_somebody_holds_waits_for_the_next_sweep() {
    let db = TestDb::new().await;
    let api = TestApi::start(&db).await;
    let account = account(&api).await;
    let id = invoice(&api, &account, json!(10)).await;
    shift(&db, &id, "due_at", "1 hour").await;
    let mut held = db.admin.begin().await.expect("begin");
    sqlx::query("select 1 from crm_invoice for no key update").execute(&mut *held).await.expect("held");
    assert_eq!(swept(&db, &api.tenant, 100).await, NOTHING);
    held.rollback().await.expect("rolled back");
    assert_eq!(swept(&db, &api.tenant, 100).await, Swept { overdue: 1, ..NOTHING });
}
