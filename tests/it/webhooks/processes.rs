//! The whole way, from a request of the API to the tenant's own system, through a process that dies on it.

use super::receiver::Receiver;
use super::{deliveries, event, nothing_is_queued, start, webhook};
use crate::support::process::Process;
use crate::support::until;

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_dies_between_request_and_mark_sends_the_same_again() {
    let quick =
        [("HASHINSIGHT__PUBLISHER__POLL_INTERVAL_MS", "20"), ("HASHINSIGHT__WEBHOOKS__POLL_MS", "20")];
    let (db, api) = start(&quick).await;
    let receiver = Receiver::answers(200).await;
    let (id, secret) = webhook(&api, &receiver.url("/")).await;
    nothing_is_queued(&db).await;
    let event_id = event(&api).await;
    let mut failing = db.environment.clone();
    failing.insert("FAILPOINTS".to_owned(), "webhook.before_mark=pause".to_owned());
    let dying = Process::start(&failing, &["standalone"], "webhooks are sent").await;
    receiver.next(1).await;
    dying.kill().await;
    let all = deliveries(&api, &id).await;
    assert!(all.iter().all(|one| one["state"] == "pending" && one["attempts"] == 1), "{all:?}");
    // As long as the lease lasts the dead process counts as at work.
    let leased: i64 = db.scalar("select count(*) from webhook_delivery where lease_until > now()").await;
    assert_eq!(leased, 1);
    db.execute("update webhook_delivery set lease_until = now() - interval '1 second'").await;
    let survivor = Process::start(&db.environment, &["standalone"], "webhooks are sent").await;
    until("it is delivered", super::LONG, async || {
        let all = deliveries(&api, &id).await;
        all.iter().all(|one| one["state"] == "delivered" && one["attempts"] == 2).then_some(())
    })
    .await;
    let of_event = receiver.all().into_iter().filter(|seen| seen.header("webhook-id") == event_id);
    let bodies: Vec<String> = of_event
        .map(|seen| {
            assert_eq!(seen.header("webhook-signature"), seen.expected_signature(&secret));
            seen.body
        })
        .collect();
    assert_eq!((bodies.len(), &bodies[0]), (2, &bodies[1]), "the same, twice");
    survivor.signal("TERM").await;
    let (status, said) = survivor.ended().await;
    assert_eq!(status.code(), Some(0), "{said}");
}
