//! The resource /api/webhooks: fields, scopes, tenants, limits, and what it never shows.

use reqwest::Method;
use serde_json::{Value, json};

use super::receiver::Receiver;
use super::{Sending, delivery, event, group_applies, nothing_is_queued, start, time_passes, webhook};
use crate::support::{TestApi, TestDb};

const URL: &str = "https://crm.example.com/hook";

async fn counts(db: &TestDb) -> (i64, i64) {
    let rows = "select (select count(*) from event_outbox), (select count(*) from audit_log)";
    sqlx::query_as(rows).fetch_one(&db.admin).await.expect("count")
}

#[tokio::test]
async fn a_webhook_is_made_read_changed_and_removed() {
    let (db, api) = start(&[]).await;
    let made = api.post("/api/webhooks", json!({"url": URL, "description": "CRM"})).await.expect(201);
    let id = made.body["webhook_id"].as_str().expect("an id");
    assert_eq!(made.header("location"), format!("/api/webhooks/{id}"));
    assert!(made.body["secret"].as_str().is_some_and(|secret| secret.starts_with("whsec_")));
    let path = format!("/api/webhooks/{id}");
    let shown = api.get(&path).await.expect(200).body["data"].clone();
    let expected = json!({
        "webhook_id": id, "url": URL, "description": "CRM", "owner_id": api.user, "enabled": true, "disabled_at": null,
        "disabled_reason": null, "failing_since": null, "previous_secret_until": null,
        "created_at": shown["created_at"], "updated_at": shown["updated_at"],
    });
    assert_eq!(shown, expected, "no secret");
    assert_eq!(api.get("/api/webhooks").await.expect(200).body["data"], json!([expected]));

    let before = counts(&db).await;
    let same = api.patch(&path, json!({"url": URL, "enabled": true})).await.expect(200);
    assert_eq!((&same.body["event_id"], counts(&db).await), (&Value::Null, before));
    let changed = api.patch(&path, json!({"description": null, "enabled": false})).await.expect(200);
    assert_eq!(changed.event_id().len(), 36);
    let shown = api.get(&path).await.expect(200).body["data"].clone();
    assert_eq!((&shown["disabled_reason"], &shown["description"]), (&json!("switched off"), &Value::Null));
    for (body, field) in [
        (json!({"url": null}), "url"),
        (json!({"enabled": "yes"}), "enabled"),
        (json!({"description": "x".repeat(201)}), "description"),
    ] {
        assert_eq!(api.patch(&path, body.clone()).await.expect(422).fields(), [field], "{body}");
    }
    for hours in [json!(-1), json!(169), json!("x")] {
        let refused = api.post(&format!("{path}/rotate"), json!({"overlap_hours": hours})).await.expect(422);
        assert_eq!(refused.fields(), ["overlap_hours"]);
    }
    assert_eq!(api.get(&format!("{path}/deliveries?state=lost")).await.expect(400).fields(), ["state"]);
    api.delete(&path).await.expect(200);
    api.get(&path).await.expect(404);
    api.delete(&path).await.expect(404);
    let kinds: Vec<String> = sqlx::query_scalar("select event_type from event_outbox order by position")
        .fetch_all(&db.admin)
        .await
        .expect("events");
    assert_eq!(kinds, ["crm.webhook_created", "crm.webhook_updated", "crm.webhook_removed"]);
    let audited: i64 = db.scalar("select count(*) from audit_log where action like 'crm.webhook%'").await;
    assert_eq!(audited, 3);
}

#[tokio::test]
async fn scopes_tenants_and_limits() {
    let (db, api) = start(&[]).await;
    let (id, _) = webhook(&api, URL).await;
    nothing_is_queued(&db).await;
    event(&api).await;
    group_applies(&db).await;
    let (reader, writer) = (api.token_with(&["crm:read"]), api.token_with(&["crm:write"]));
    let stranger = api.foreign_token();
    let one = format!("/api/webhooks/{id}");
    let (rotate, list) = (format!("{one}/rotate"), format!("{one}/deliveries"));
    let found = api.get(&list).await.expect(200).body["data"][0]["delivery_id"].clone();
    let again = format!("/api/webhooks/deliveries/{}/redeliver", found.as_str().expect("an id"));
    for (method, path, body, may_write) in [
        (Method::POST, "/api/webhooks", Some(json!({"url": URL})), false),
        (Method::PATCH, one.as_str(), Some(json!({"url": URL})), false),
        (Method::POST, rotate.as_str(), Some(json!({})), false),
        (Method::POST, again.as_str(), None, true),
        (Method::DELETE, one.as_str(), None, true),
    ] {
        let refused = api.ask(&reader, method.clone(), path, body.clone()).await.expect(403);
        assert!(refused.body.to_string().contains("crm:write"), "{path}");
        // Who may not read what is delivered does not say where it goes.
        if !may_write {
            let refused = api.ask(&writer, method.clone(), path, body.clone()).await.expect(403);
            assert!(refused.body.to_string().contains("crm:read"), "{path}");
        }
        if path != "/api/webhooks" {
            api.ask(&stranger, method, path, body).await.expect(404);
        }
    }
    for path in ["/api/webhooks", &one, &list] {
        api.ask(&reader, Method::GET, path, None).await.expect(200);
        api.ask(&writer, Method::GET, path, None).await.expect(403);
    }
    for path in [&one, &list] {
        api.ask(&stranger, Method::GET, path, None).await.expect(404);
    }
    assert_eq!(
        api.ask(&stranger, Method::GET, "/api/webhooks", None).await.expect(200).body["data"],
        json!([])
    );
    for _ in 1..20 {
        webhook(&api, URL).await;
    }
    let refused = api.post("/api/webhooks", json!({"url": URL})).await.expect(409);
    assert!(refused.body["type"].as_str().is_some_and(|name| name.ends_with("too-many-webhooks")));
    let page = api.get("/api/webhooks?limit=15").await.expect(200).body;
    let rest = format!("/api/webhooks?limit=15&cursor={}", page["next"].as_str().expect("a next page"));
    let rest = api.get(&rest).await.expect(200).body;
    assert_eq!((rest["data"].as_array().map(Vec::len), &rest["next"]), (Some(5), &Value::Null));
}

/// Rather none than one whose secret lies open.
#[tokio::test]
async fn without_a_key_no_webhook_is_made() {
    let db = TestDb::new().await;
    let api = TestApi::start(&db).await;
    let refused = api.post("/api/webhooks", json!({"url": URL})).await.expect(409);
    assert!(refused.body["detail"].as_str().is_some_and(|detail| detail.contains("webhooks.key")));
    assert_eq!(db.scalar::<i64>("select count(*) from webhook_endpoint").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_of_another_key_is_named() {
    let (mut db, api) = start(&[]).await;
    let receiver = Receiver::answers(200).await;
    let (id, _) = webhook(&api, &receiver.url("/")).await;
    nothing_is_queued(&db).await;
    event(&api).await;
    group_applies(&db).await;
    db.config.webhooks.key = "another key of the tests, as long as it".to_owned().into();
    let sending = Sending::start(&db);
    let shown = delivery(&api, &id, |one| one["last_error"].is_string()).await;
    assert_eq!(shown["last_error"], "the secret was sealed with another webhooks.key: rotate it");

    // That is the way out: the new secret signs, the old one is nobody's any more.
    let renewed = api.under(&db).await;
    let rotated = renewed.post(&format!("/api/webhooks/{id}/rotate"), json!({})).await.expect(200);
    let secret = rotated.body["secret"].as_str().expect("a secret");
    time_passes(&db).await;
    let seen = receiver.next(1).await;
    assert_eq!(seen.header("webhook-signature"), seen.expected_signature(secret));
    sending.stop().await;
    let overlaps: bool = db.scalar("select previous_secret_until > now() from webhook_endpoint").await;
    assert!(overlaps);
}
