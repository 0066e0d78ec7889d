//! Switching a webhook off and on: what waits, and what comes in at that moment.

use serde_json::{Value, json};

use super::receiver::Receiver;
use super::{
    LONG, Sending, deliveries, delivery, event, group_applies, group_has_applied, nothing_is_queued, start,
    webhook,
};
use crate::support::until;

/// An event that is queued while the webhook is being switched off does not wait for it to come back.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_queued_during_the_switch_is_not_sent_later() {
    let (db, api) = start(&[]).await;
    let receiver = Receiver::answers(200).await;
    let (id, _) = webhook(&api, &receiver.url("/")).await;
    nothing_is_queued(&db).await;
    let path = format!("/api/webhooks/{id}");
    event(&api).await;
    let group = group_has_applied(&db).await;
    let switch = async { api.patch(&path, json!({"enabled": false})).await.expect(200) };
    // The switch either waits for the group's end or is over before it.
    let end = async {
        until("the switch waits", LONG, async || {
            let waits = "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'";
            let off = "select count(*) from webhook_endpoint where not enabled";
            (db.scalar::<i64>(waits).await + db.scalar::<i64>(off).await > 0).then_some(())
        })
        .await;
        group.commit().await.expect("commit");
    };
    let (_, ()) = tokio::join!(switch, end);
    let all = deliveries(&api, &id).await;
    assert_eq!((all.len(), &all[0]["state"]), (1, &json!("failed")), "given up with what waited");

    // And what is left of the time it was off, however it came there, is not sent when it is on.
    db.execute("update webhook_delivery set state = 'pending', next_attempt_at = now()").await;
    let sending = Sending::start(&db);
    let (other, _) = webhook(&api, &receiver.url("/other")).await;
    group_applies(&db).await;
    let sent = delivery_of(&api, &other).await;
    assert_eq!(sent["attempts"], 1, "the sender is at work");
    assert_eq!(deliveries(&api, &id).await[0]["attempts"], 0, "nothing is sent to what is off");
    api.patch(&path, json!({"enabled": true})).await.expect(200);
    let shown = delivery(&api, &id, |one| one["state"] == "failed").await;
    assert_eq!(shown["attempts"], 0);
    sending.stop().await;
    assert!(receiver.all().iter().all(|seen| seen.path == "/other"));
}

/// The group holds on to an endpoint while its batch lasts, and its batches follow each other.
#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_is_open_holds_no_delivery_up() {
    let (db, api) = start(&[]).await;
    let receiver = Receiver::answers(200).await;
    let (id, _) = webhook(&api, &receiver.url("/")).await;
    nothing_is_queued(&db).await;
    event(&api).await;
    group_applies(&db).await;
    event(&api).await;
    let group = group_has_applied(&db).await;
    let sending = Sending::start(&db);
    delivery_of(&api, &id).await;
    group.commit().await.expect("commit");
    sending.stop().await;
}

/// Waits until something was delivered to a webhook.
async fn delivery_of(api: &crate::support::TestApi, id: &str) -> Value {
    until("something is delivered", LONG, async || {
        deliveries(api, id).await.into_iter().find(|one| one["state"] == "delivered")
    })
    .await
}
