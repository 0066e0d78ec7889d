//! Several tenants whose endpoints hang: the others have their share.

use serde_json::json;

use super::receiver::{Receiver, Reply};
use super::{LONG, Sending, deliveries, event, group_applies, nothing_is_queued, start, webhook};
use crate::support::{TestApi, until};

#[tokio::test(flavor = "multi_thread")]
async fn several_tenants_whose_endpoints_hang_leave_room_for_one_whose_answer() {
    let (db, api) = start(&[
        ("HASHINSIGHT__WEBHOOKS__IN_FLIGHT", "4"),
        ("HASHINSIGHT__WEBHOOKS__IN_FLIGHT_OF_TENANT", "4"),
        ("HASHINSIGHT__WEBHOOKS__IN_FLIGHT_OF_ENDPOINT", "2"),
        // Longer than a test takes: nothing is given up meanwhile.
        ("HASHINSIGHT__WEBHOOKS__TIMEOUT_MS", "60000"),
    ])
    .await;
    let (hangs, works) = (Receiver::with(|_| Reply::Never).await, Receiver::answers(200).await);
    let mut hanging = Vec::new();
    for _ in 0..4 {
        let other = TestApi::start(&db).await;
        for _ in 0..2 {
            webhook(&other, &hangs.url("/")).await;
        }
        hanging.push(other);
    }
    let (working, _) = webhook(&api, &works.url("/")).await;
    nothing_is_queued(&db).await;
    // They have hung for a while, and what waits for them is the oldest.
    db.execute(&format!(
        "update webhook_endpoint set failing_since = now() - interval '1 hour' where tenant_id <> '{}'",
        api.tenant
    ))
    .await;
    for other in &hanging {
        for _ in 0..3 {
            event(other).await;
        }
    }
    group_applies(&db).await;
    db.execute("update webhook_delivery set next_attempt_at = now() - interval '1 minute'").await;
    let sending = Sending::start(&db);
    hangs.next(2).await;
    for _ in 0..5 {
        event(&api).await;
    }
    group_applies(&db).await;
    until("what can be delivered is", LONG, async || {
        let all = deliveries(&api, &working).await;
        (all.len() == 5 && all.iter().all(|one| one["state"] == json!("delivered"))).then_some(())
    })
    .await;
    assert_eq!((hangs.all().len(), hangs.most_open()), (2, 2), "half of the slots, and no more");
    sending.die().await;
}
