//! An event that waits in the retry queue and that this build cannot read: a newer one parked it.

use std::sync::Arc;

use hashinsight::config::EventLogKind;
use uuid::Uuid;

use crate::pipeline::{Picky, record};
use crate::support::TestDb;
use crate::support::consuming::{Member, miners};
use crate::support::pipeline::applied;

#[tokio::test(flavor = "multi_thread")]
async fn a_parked_event_of_a_newer_build_becomes_a_dead_letter_and_holds_up_nobody() {
    let test = TestDb::with_topics(1).await;
    let (log, topic) = miners(&test, EventLogKind::Postgres).await;
    let event_id = Uuid::now_v7();
    let newer = String::from_utf8(record("t:u", "newer", event_id).value.expect("a value")).expect("text");
    let newer = newer.replace("\"version\":1", "\"version\":2");
    test.execute(&format!(
        "insert into parked_event (consumer_name, topic, partition, log_offset, event_id, event_kind, tenant_id, user_id, \
         raw_key, raw_value, headers, record_time, attempts) \
         values ('picky', '{topic}', 0, 0, '{event_id}', 'miner.updated', 't', 'u', 't:u', \
         convert_to('{newer}', 'UTF8'), '[]', now(), 1); \
         insert into event_inbox (consumer_name, event_id, tenant_id, event_kind, outcome) \
         values ('picky', '{event_id}', 't', 'miner.updated', 'parked')"
    ))
    .await;
    // Behind it, and beside it.
    let records = [record("t:u", "behind", Uuid::now_v7()), record("t:other", "beside", Uuid::now_v7())];
    log.append(&topic, 0, &records).await.expect("appended");
    let member = Member::start(&test, Arc::new(Picky::default()) as _).await;
    let both = "select count(*) = 2 from event_inbox where outcome = 'applied'";
    applied(&test.bells, async || test.scalar(both).await).await;
    member.stop().await;
    let letter: (Uuid, String, i32, String) = sqlx::query_as(
        "select d.event_id, error_class, retry_count, outcome from event_dlq d join event_inbox i using (event_id)",
    )
    .fetch_one(&test.admin)
    .await
    .expect("one dead letter");
    assert_eq!(letter, (event_id, "unsupported_version".to_owned(), 2, "dead".to_owned()));
    assert_eq!(test.scalar::<i64>("select count(*) from parked_event").await, 0);
}
