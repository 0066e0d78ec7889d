//! Tickets: resolved, closed, opened again in time.

use serde_json::json;

use super::{account, go, kinds, made, problem, shown};
use crate::support::{TestApi, TestDb, written};

#[tokio::test]
async fn a_resolved_ticket_is_opened_again_within_14_days() {
    let db = TestDb::new().await;
    let api = TestApi::start(&db).await;
    let account = account(&api).await;
    let created = api
        .post("/api/crm/tickets", json!({"account_id": account, "subject": "Fan is loud"}))
        .await
        .expect(201);
    assert_eq!(kinds(&created), ["crm.ticket_created"]);
    let id = created.body["ticket_id"].as_str().expect("an id");
    let resolved = go(&api, "tickets", id, json!({"to": "resolved", "reason": "new fan"})).await.expect(200);
    assert_eq!(kinds(&resolved), ["crm.ticket_resolved"]);
    assert!(shown(&api, "tickets", id).await["resolved_at"].is_string());

    let resolved_at = async |when: &str| {
        db.execute(&format!(
            "update crm_ticket set resolved_at = now() - interval '{when}' where id = '{id}'"
        ))
        .await;
    };
    resolved_at("14 days 1 second").await;
    let before = written(&db).await;
    problem(&go(&api, "tickets", id, json!({"to": "open"})).await, 409, "reopened-too-late");
    assert_eq!(written(&db).await, before);
    resolved_at("13 days 23:59:00").await;
    let opened = go(&api, "tickets", id, json!({"to": "open"})).await.expect(200);
    assert_eq!(kinds(&opened), ["crm.ticket_status_changed"]);
    assert_eq!(shown(&api, "tickets", id).await["resolved_at"], json!(null));

    go(&api, "tickets", id, json!({"to": "resolved"})).await.expect(200);
    go(&api, "tickets", id, json!({"to": "closed"})).await.expect(200);
    assert!(shown(&api, "tickets", id).await["resolved_at"].is_string(), "kept for the record");
    problem(&go(&api, "tickets", id, json!({"to": "open"})).await, 409, "invalid-transition");
}

#[tokio::test]
async fn fields_of_a_ticket() {
    let db = TestDb::new().await;
    let api = TestApi::start(&db).await;
    let account = account(&api).await;
    let id =
        made(&api, "tickets", json!({"account_id": account, "subject": "Fan", "priority": "high"})).await;
    let before = written(&db).await;
    for (body, fields) in [
        (json!({}), vec!["account_id", "subject"]),
        (json!({"account_id": "x", "subject": "y"}), vec!["account_id"]),
        (json!({"account_id": uuid::Uuid::now_v7(), "subject": "y"}), vec!["account_id"]),
        (json!({"account_id": account, "subject": "y", "priority": "HIGH"}), vec!["priority"]),
        (json!({"account_id": account, "subject": "x".repeat(201)}), vec!["subject"]),
    ] {
        let refused = api.post("/api/crm/tickets", body.clone()).await.expect(422);
        assert_eq!(refused.fields(), fields, "{body}");
    }
    let path = format!("/api/crm/tickets/{id}");
    for (body, field) in [
        (json!({"subject": null}), "subject"),
        (json!({"priority": null}), "priority"),
        (json!({"owner_id": null}), "owner_id"),
        (json!({"state": "closed"}), "state"),
    ] {
        assert_eq!(api.patch(&path, body.clone()).await.expect(422).fields(), [field], "{body}");
    }
    assert_eq!(written(&db).await, before);
    let changed =
        api.patch(&path, json!({"priority": "urgent", "owner_id": "bob", "state": "open"})).await.expect(200);
    assert_eq!(kinds(&changed), ["crm.ticket_updated"]);
    let ticket = shown(&api, "tickets", &id).await;
    assert_eq!((&ticket["priority"], &ticket["owner_id"]), (&json!("urgent"), &json!("bob")));
}
