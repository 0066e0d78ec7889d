//! The resource dead letters: scopes, filters, pages, replays, discards, and the boundary between tenants.

use reqwest::Method;
use serde_json::{Value, json};
use uuid::Uuid;

use super::ward::{Buried, bury};
use crate::support::{TestApi, TestDb};

const TOPIC: &str = "events.miner";
const SCOPES: &[&str] = &["dlq:read", "dlq:replay"];

#[tokio::test(flavor = "multi_thread")]
async fn letters_are_for_who_may_read_or_replay_them() {
    let db = TestDb::new().await;
    let api = TestApi::start(&db).await;
    let id = bury(&db, TOPIC, Buried { tenant: Some(&api.tenant), ..Buried::default() }).await;
    let discard = format!("/api/dlq/{id}/discard");
    let reason = json!({"reason": "why"});
    let replay = "/api/dlq/replay".to_owned();
    let asks = [
        (Method::GET, "/api/dlq".to_owned(), None, "dlq:read"),
        (Method::POST, replay, Some(json!({"dry_run": true})), "dlq:replay"),
        (Method::POST, discard, Some(reason), "dlq:replay"),
    ];
    for (method, path, body, scope) in asks {
        let others: Vec<&str> =
            ["miners:write", "dlq:read", "dlq:replay"].into_iter().filter(|s| *s != scope).collect();
        let refused =
            api.ask(&api.token_with(&others), method.clone(), &path, body.clone()).await.expect(403);
        assert!(refused.body["detail"].as_str().is_some_and(|d| d.contains(scope)), "{:#}", refused.body);
        api.ask("nonsense", method.clone(), &path, body.clone()).await.expect(401);
        api.ask(&api.token_with(&[scope]), method, &path, body).await.expect(200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_meets_its_own_letters_only() {
    let db = TestDb::new().await;
    let api = TestApi::start(&db).await;
    let token = api.token_with(SCOPES);
    let foreign = format!("{}-other", api.tenant);
    let own = Buried { tenant: Some(&api.tenant), key: "k:own", ..Buried::default() };
    let mine = bury(&db, TOPIC, own).await;
    let theirs = bury(&db, TOPIC, Buried { tenant: Some(&foreign), offset: 1, ..own }).await;
    // Older, of the same key as the tenant's own: invisible, and so not in its way.
    let nobodys = bury(&db, TOPIC, Buried { tenant: None, offset: -5, ..own }).await;

    let listed = api.ask(&token, Method::GET, "/api/dlq", None).await.expect(200);
    let ids: Vec<&str> =
        listed.body["data"].as_array().expect("data").iter().filter_map(|l| l["id"].as_str()).collect();
    assert_eq!(ids, [mine.to_string()]);
    assert_eq!((&listed.body["open"], &listed.body["groups"][0]["count"]), (&json!(1), &json!(1)));
    let after = format!("/api/dlq?cursor={theirs}");
    assert_eq!(api.ask(&token, Method::GET, &after, None).await.expect(200).body["data"], json!([]));
    for id in [theirs, nobodys] {
        let path = format!("/api/dlq/{id}/discard");
        api.ask(&token, Method::POST, &path, Some(json!({"reason": "why"}))).await.expect(404);
    }
    let replayed = api
        .ask(&token, Method::POST, "/api/dlq/replay", Some(json!({"tenant_id": foreign})))
        .await
        .expect(200);
    assert_eq!(
        replayed.body,
        json!({"dry_run": false, "matched": 1, "queued": 1, "skipped": 0, "reasons": []})
    );
    let touched: i64 = db.scalar("select count(*) from event_dlq where status <> 'dead'").await;
    assert_eq!(touched, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn letters_are_listed_by_filters_in_pages() {
    let db = TestDb::new().await;
    let api = TestApi::start(&db).await;
    let token = api.token_with(SCOPES);
    let own = Buried { tenant: Some(&api.tenant), value: b"{\"a\":1}", ..Buried::default() };
    let mut newest_first = Vec::new();
    for n in 0..5 {
        let ago = format!("{} hours", 10 * n + 1);
        let kind = Some(if n % 2 == 0 { "miner.added" } else { "miner.updated" });
        let group = if n == 4 { "other" } else { "picky" };
        newest_first
            .push(bury(&db, TOPIC, Buried { offset: n, ago: &ago, kind, group, ..own }).await.to_string());
    }
    db.execute("update event_dlq set payload = convert_from(raw_value, 'UTF8')::jsonb; update event_dlq set status = 'resolved' where log_offset = 1").await;
    let list = async |query: &str| api.ask(&token, Method::GET, &format!("/api/dlq{query}"), None).await;
    let ids = |body: &Value| -> Vec<String> {
        let data = body["data"].as_array().expect("data").iter();
        data.map(|l| l["id"].as_str().expect("an id").to_owned()).collect()
    };
    let all = list("").await.expect(200);
    assert_eq!(ids(&all.body), newest_first);
    let first = &all.body["data"][0];
    assert_eq!(
        (&first["payload"], &first["error_class"], &first["retry_count"], &first["topic"], &first["status"]),
        (&json!({"a": 1}), &json!("database"), &json!(3), &json!(TOPIC), &json!("dead"))
    );
    assert!(
        first.get("tenant_id").is_none() && first["created_at"].as_str().is_some_and(|t| t.ends_with('Z'))
    );
    assert_eq!(all.body["open"], 4);

    let (mut paged, mut query) = (Vec::new(), "?limit=2".to_owned());
    for _ in 0..3 {
        let page = list(&query).await.expect(200);
        paged.extend(ids(&page.body));
        query = format!("?limit=2&cursor={}", page.body["next"].as_str().unwrap_or_default());
    }
    assert_eq!(paged, newest_first);
    for (query, expected) in [
        ("?hours=24", vec![0, 1, 2]),
        ("?event_kind=miner.updated", vec![1, 3]),
        ("?consumer=other", vec![4]),
        ("?status=resolved", vec![1]),
        ("?status=dead&consumer=picky&event_kind=miner.added&hours=5", vec![0]),
        ("?consumer=nobody", vec![]),
    ] {
        let expected: Vec<&String> = expected.into_iter().map(|n: usize| &newest_first[n]).collect();
        assert_eq!(ids(&list(query).await.expect(200).body).iter().collect::<Vec<_>>(), expected, "{query}");
    }
    for (query, field) in [
        ("?hours=0", "hours"),
        ("?hours=x", "hours"),
        ("?status=gone", "status"),
        ("?limit=201", "limit"),
        ("?cursor=x", "cursor"),
        ("?consumer=%00", "consumer"),
    ] {
        assert_eq!(list(query).await.expect(400).fields(), [field], "{query}");
    }
    // A large value is shown by its size.
    let large = format!("\"{}\"", "x".repeat(20_000));
    let big = bury(&db, TOPIC, Buried { offset: 9, value: large.as_bytes(), ago: "0 hours", ..own }).await;
    db.execute("update event_dlq set payload = '1' where log_offset = 9").await;
    let shown = &list("?limit=1").await.expect(200).body["data"][0];
    assert_eq!((&shown["id"], &shown["payload"]), (&json!(big), &Value::Null));
    assert_eq!(shown["value_bytes"], 20_002);
}

#[tokio::test(flavor = "multi_thread")]
async fn replays_and_discards_are_asked_for_and_audited() {
    let db = TestDb::new().await;
    let api = TestApi::start(&db).await;
    let token = api.token_with(SCOPES);
    let event_id = Uuid::now_v7();
    let own = Buried { tenant: Some(&api.tenant), ..Buried::default() };
    let older = bury(&db, TOPIC, Buried { kind: Some("miner.added"), event_id: Some(event_id), ..own }).await;
    let younger = bury(&db, TOPIC, Buried { offset: 1, ..own }).await;
    let ancient = bury(&db, TOPIC, Buried { offset: 2, key: "t:v", ago: "40 hours", ..own }).await;
    let sql = format!(
        "insert into event_inbox (consumer_name, event_id, tenant_id, event_kind, outcome) \
         values ('picky', '{event_id}', '{}', 'miner.added', 'dead')",
        api.tenant
    );
    db.execute(&sql).await;
    let post = async |path: &str, body: Value| api.ask(&token, Method::POST, path, Some(body)).await;
    let replay = async |body: Value| post("/api/dlq/replay", body).await.expect(200).body;

    let report = |dry_run: bool, matched, queued, skipped, reasons: Value| json!({"dry_run": dry_run, "matched": matched, "queued": queued, "skipped": skipped, "reasons": reasons});
    assert_eq!(replay(json!({"dry_run": true})).await, report(true, 2, 0, 0, json!([])));
    assert_eq!(replay(json!({"dry_run": true, "hours": 48, "limit": 1})).await["matched"], 1);
    let refused = replay(json!({"consumer_name": "picky", "event_kind": "miner.updated"})).await;
    assert_eq!((&refused["skipped"], &refused["reasons"][0]["id"]), (&json!(1), &json!(younger)));
    assert!(
        refused["reasons"][0]["reason"].as_str().is_some_and(|r| r.contains(&older.to_string())),
        "{refused}"
    );

    // Discarded, the older one is out of the way.
    let discard = format!("/api/dlq/{older}/discard");
    for (body, field) in
        [(json!({}), "reason"), (json!({"reason": " "}), "reason"), (json!({"reason": 5}), "reason")]
    {
        assert_eq!(post(&discard, body).await.expect(422).fields(), [field]);
    }
    let done = post(&discard, json!({"reason": "sold long ago"})).await.expect(200);
    assert_eq!(done.body, json!({"success": true, "id": older, "status": "discarded"}));
    let again = post(&discard, json!({"reason": "sold long ago"})).await.expect(409);
    assert_eq!(again.body["type"], "urn:hashinsight:problem:not-dead");
    assert_eq!(again.header("content-type"), "application/problem+json");
    let outcome: String = db.scalar("select outcome from event_inbox").await;
    assert_eq!(outcome, "discarded");

    assert_eq!(replay(json!({})).await, report(false, 1, 1, 0, json!([])));
    let path = format!("/api/dlq/{younger}/discard");
    assert!(
        post(&path, json!({"reason": "why"})).await.expect(409).body["detail"]
            .as_str()
            .is_some_and(|d| d.contains("replaying"))
    );
    assert_eq!(replay(json!({"hours": "48"})).await["queued"], 1, "{ancient}");
    for (body, field) in [
        (json!({"hours": 0}), "hours"),
        (json!({"limit": 1_001}), "limit"),
        (json!({"dry_run": "yes"}), "dry_run"),
        (json!({"consumer": "a", "consumer_name": "b"}), "consumer"),
    ] {
        assert_eq!(post("/api/dlq/replay", body).await.expect(422).fields(), [field]);
    }

    let audited: Vec<(String, String, String, bool)> = sqlx::query_as(
        "select entity_id, action, actor, request_id is not null from audit_log where tenant_id = $1 order by at, id",
    )
    .bind(&api.tenant)
    .fetch_all(&db.admin)
    .await
    .expect("entries");
    let entry = |id: Uuid, action: &str| (id.to_string(), action.to_owned(), api.user.clone(), true);
    assert_eq!(
        audited,
        [entry(older, "dlq.discard"), entry(younger, "dlq.replay"), entry(ancient, "dlq.replay")]
    );
    assert_eq!(db.scalar::<i64>("select count(*) from audit_log where event_id is not null").await, 1);
}
