//! Endpoints that fail, hang, come back, or never do.

use chrono::{DateTime, Utc};
use hashinsight::domain::webhook::DeliveryRetention;
use hashinsight::jobs::{Runner, Settings, Step};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::receiver::{Receiver, Reply};
use super::{
    LONG, Sending, deliveries, delivery, event, group_applies, nothing_is_queued, start, time_passes, webhook,
};
use crate::support::{TestApi, TestDb, until};

/// How far ahead the next attempt of the only delivery is, in seconds.
async fn pause(db: &TestDb) -> f64 {
    db.scalar("select extract(epoch from next_attempt_at - last_attempt_at)::float8 from webhook_delivery")
        .await
}

/// Whether the last attempt is written down: until then the next one is not in the future.
fn is_over(one: &Value) -> bool {
    let at = |name: &str| one[name].as_str().and_then(|at| at.parse::<DateTime<Utc>>().ok());
    one["state"] != "pending"
        || (one["last_error"].is_string() && at("next_attempt_at") > at("last_attempt_at"))
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_that_fails_is_tried_again_by_the_schedule_until_it_takes_the_event() {
    let (db, api) = start(&[]).await;
    let receiver = Receiver::with(|n| Reply::Status(if n < 3 { 500 } else { 200 })).await;
    let (id, _) = webhook(&api, &receiver.url("/")).await;
    nothing_is_queued(&db).await;
    let event_id = event(&api).await;
    group_applies(&db).await;
    let sending = Sending::start(&db);
    for (attempts, seconds) in [(1, 5.0), (2, 300.0), (3, 1_800.0)] {
        let shown = delivery(&api, &id, |one| one["attempts"] == attempts && is_over(one)).await;
        assert_eq!((&shown["state"], &shown["last_status"]), (&json!("pending"), &json!(500)));
        assert_eq!(shown["last_error"], "answered with status 500");
        // An attempt takes a moment itself.
        let pause = pause(&db).await;
        assert!((seconds * 0.8..seconds * 1.2 + 5.0).contains(&pause), "{attempts}: {pause} s");
        assert!(endpoint(&api, &id).await["failing_since"].is_string());
        time_passes(&db).await;
    }
    let shown = delivery(&api, &id, |one| one["state"] == "delivered").await;
    assert_eq!((&shown["attempts"], &shown["last_error"]), (&json!(4), &Value::Null));
    assert!(endpoint(&api, &id).await["failing_since"].is_null(), "forgiven");
    sending.stop().await;
    assert_eq!(receiver.all().len(), 4);
    assert!(receiver.all().iter().all(|seen| seen.header("webhook-id") == event_id), "one id for all");
}

async fn endpoint(api: &TestApi, id: &str) -> Value {
    api.get(&format!("/api/webhooks/{id}")).await.expect(200).body["data"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn after_seven_attempts_it_is_given_up_and_can_be_asked_for_again() {
    let (db, api) = start(&[]).await;
    let receiver = Receiver::with(|n| Reply::Status(if n < 7 { 404 } else { 200 })).await;
    let (id, _) = webhook(&api, &receiver.url("/")).await;
    nothing_is_queued(&db).await;
    event(&api).await;
    group_applies(&db).await;
    let sending = Sending::start(&db);
    for attempts in 1..=7 {
        let shown = delivery(&api, &id, |one| one["attempts"] == attempts && is_over(one)).await;
        assert_eq!(shown["state"], if attempts < 7 { "pending" } else { "failed" });
        let path =
            format!("/api/webhooks/deliveries/{}/redeliver", shown["delivery_id"].as_str().expect("an id"));
        if attempts < 7 {
            let refused = api.post(&path, json!({})).await.expect(409);
            assert!(refused.body["type"].as_str().is_some_and(|name| name.ends_with("delivery-is-pending")));
        } else {
            api.ask(&api.foreign_token(), reqwest::Method::POST, &path, None).await.expect(404);
            api.post(&path, json!({})).await.expect(202);
        }
        time_passes(&db).await;
    }
    let shown = delivery(&api, &id, |one| one["state"] == "delivered").await;
    assert_eq!(shown["attempts"], 1, "counted anew");
    sending.stop().await;
    let audit: i64 =
        db.scalar("select count(*) from audit_log where action = 'crm.webhook_redelivery'").await;
    assert_eq!((audit, receiver.all().len()), (1, 8));
}

/// Longer than a test takes: nothing is given up meanwhile.
const PATIENT: (&str, &str) = ("HASHINSIGHT__WEBHOOKS__TIMEOUT_MS", "60000");

async fn all_are(api: &TestApi, id: &str, state: &str) {
    until("all are as they should be", LONG, async || {
        let all = deliveries(api, id).await;
        (all.len() == 10 && all.iter().all(|one| one["state"] == state)).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_that_hangs_delays_no_other() {
    let few = [("HASHINSIGHT__WEBHOOKS__IN_FLIGHT_OF_ENDPOINT", "2"), PATIENT];
    let (db, api) = start(&few).await;
    let (hangs, works) = (Receiver::with(|_| Reply::Never).await, Receiver::answers(200).await);
    let (hanging, _) = webhook(&api, &hangs.url("/")).await;
    let (working, _) = webhook(&api, &works.url("/")).await;
    nothing_is_queued(&db).await;
    for _ in 0..10 {
        event(&api).await;
    }
    group_applies(&db).await;
    // Both together have no more in flight than one alone.
    let (first, second) = (Sending::start(&db), Sending::start(&db));
    hangs.next(2).await;
    all_are(&api, &working, "delivered").await;
    all_are(&api, &hanging, "pending").await;
    assert_eq!((hangs.most_open(), hangs.all().len()), (2, 2), "at most so many of an endpoint");
    first.die().await;
    second.die().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_whose_endpoints_hang_delays_neither_another_nor_the_group() {
    let few = [
        ("HASHINSIGHT__WEBHOOKS__IN_FLIGHT", "4"),
        ("HASHINSIGHT__WEBHOOKS__IN_FLIGHT_OF_TENANT", "3"),
        ("HASHINSIGHT__WEBHOOKS__IN_FLIGHT_OF_ENDPOINT", "1"),
        PATIENT,
    ];
    let (db, api) = start(&few).await;
    let other = TestApi::start(&db).await;
    let (hangs, works) = (Receiver::with(|_| Reply::Never).await, Receiver::answers(200).await);
    for _ in 0..5 {
        webhook(&api, &hangs.url("/")).await;
    }
    let (working, _) = webhook(&other, &works.url("/")).await;
    nothing_is_queued(&db).await;
    event(&api).await;
    group_applies(&db).await;
    let sending = Sending::start(&db);
    hangs.next(3).await;
    for _ in 0..10 {
        event(&other).await;
    }
    group_applies(&db).await;
    all_are(&other, &working, "delivered").await;
    assert_eq!((hangs.most_open(), hangs.all().len()), (3, 3), "at most so many of a tenant");
    sending.die().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attempt_ends_by_its_deadline() {
    let (db, api) = start(&[("HASHINSIGHT__WEBHOOKS__TIMEOUT_MS", "300")]).await;
    let receiver = Receiver::with(|_| Reply::Never).await;
    let (id, _) = webhook(&api, &receiver.url("/")).await;
    nothing_is_queued(&db).await;
    event(&api).await;
    group_applies(&db).await;
    let sending = Sending::start(&db);
    let shown = delivery(&api, &id, |one| one["last_error"].is_string()).await;
    assert_eq!(
        (&shown["last_error"], &shown["last_status"]),
        (&json!("no answer within 300 ms"), &Value::Null)
    );
    sending.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_five_days_of_failure_it_is_disabled_by_the_databases_clock() {
    let (db, api) = start(&[]).await;
    let (fails, works) = (Receiver::answers(500).await, Receiver::answers(200).await);
    let (id, _) = webhook(&api, &fails.url("/secret-path")).await;
    nothing_is_queued(&db).await;
    event(&api).await;
    event(&api).await;
    group_applies(&db).await;
    db.execute(
        "update webhook_delivery set next_attempt_at = now() + interval '1 day' \
         where event_id = (select max(event_id::text)::uuid from webhook_delivery); \
         update webhook_endpoint set failing_since = now() - interval '4 days 23 hours'",
    )
    .await;
    let sending = Sending::start(&db);
    fails.next(1).await;
    until("the attempt is written down", LONG, async || {
        let failed = "select count(*) from webhook_delivery where last_error is not null";
        (db.scalar::<i64>(failed).await == 1).then_some(())
    })
    .await;
    assert_eq!(endpoint(&api, &id).await["enabled"], true, "not yet");

    let (second, _) = webhook(&api, &works.url("/")).await;
    db.execute(
        "update webhook_endpoint set failing_since = now() - interval '5 days 1 second' where failing_since is not null; \
         update webhook_delivery set next_attempt_at = now() where last_error is not null",
    )
    .await;
    let shown = until("it is disabled", LONG, async || {
        let shown = endpoint(&api, &id).await;
        (shown["enabled"] == false).then_some(shown)
    })
    .await;
    assert_eq!(shown["disabled_reason"], "every attempt has failed for 5 days");
    let all = deliveries(&api, &id).await;
    assert!(all.iter().all(|one| one["state"] == "failed"), "what waited is not sent any more: {all:?}");
    let (kind, data): (String, Value) = sqlx::query_as(
        "select event_type, payload -> 'data' from event_outbox where event_type = 'crm.webhook_disabled'",
    )
    .fetch_one(&db.admin)
    .await
    .expect("an event, once");
    assert_eq!((kind.as_str(), &data["webhook_id"]), ("crm.webhook_disabled", &json!(id)));
    assert!(!data.to_string().contains("secret-path"), "only the host is told: {data}");
    let actor: String = db.scalar("select actor from audit_log where action = 'crm.webhook_disabled'").await;
    assert_eq!(actor, "system");

    // The others hear of it; the one that is off gets nothing more, and nothing is asked for again.
    group_applies(&db).await;
    until("the other endpoint hears of it", LONG, async || {
        works.all().iter().any(|seen| seen.body.contains("crm.webhook_disabled")).then_some(())
    })
    .await;
    assert_eq!((fails.all().len(), deliveries(&api, &id).await.len()), (2, 2));
    let one = all[0]["delivery_id"].as_str().expect("an id");
    let refused = api.post(&format!("/api/webhooks/deliveries/{one}/redeliver"), json!({})).await.expect(409);
    assert!(refused.body["type"].as_str().is_some_and(|name| name.ends_with("webhook-is-disabled")));
    api.patch(&format!("/api/webhooks/{id}"), json!({"enabled": true})).await.expect(200);
    let shown = endpoint(&api, &id).await;
    assert_eq!((&shown["failing_since"], &shown["disabled_reason"]), (&Value::Null, &Value::Null));
    assert_eq!(endpoint(&api, &second).await["enabled"], true);
    sending.stop().await;
}

#[tokio::test]
async fn deliveries_that_ended_a_month_ago_are_deleted() {
    let (db, api) = start(&[]).await;
    let (id, _) = webhook(&api, "http://127.0.0.1:9/").await;
    nothing_is_queued(&db).await;
    for _ in 0..4 {
        event(&api).await;
    }
    group_applies(&db).await;
    for (n, set) in [
        "state = 'delivered', created_at = now() - interval '29 days'",
        "state = 'delivered', created_at = now() - interval '31 days'",
        "state = 'failed', created_at = now() - interval '31 days'",
        "created_at = now() - interval '31 days'",
    ]
    .iter()
    .enumerate()
    {
        db.execute(&format!(
            "update webhook_delivery set {set} where event_id = (select event_id from webhook_delivery order by event_id offset {n} limit 1)"
        ))
        .await;
    }
    let settings = Settings { poll: LONG, lease: LONG };
    let job = std::sync::Arc::new(DeliveryRetention);
    let runner = Runner::new(db.db.clone(), db.bells.clone(), job, settings);
    runner.register().await.expect("registered");
    let step = runner.step(&CancellationToken::new()).await.expect("a step");
    assert!(matches!(&step, Step::Ran(ended) if ended.tenants == 1 && ended.error.is_none()), "{step:?}");
    let left: Vec<Value> = deliveries(&api, &id).await.iter().map(|one| one["state"].clone()).collect();
    assert_eq!(left, [json!("pending"), json!("delivered")]);
}
