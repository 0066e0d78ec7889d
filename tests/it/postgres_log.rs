//! The log in PostgreSQL: what has been kept long enough goes, and never what a group has yet to read.

use std::time::Duration;

use chrono::Utc;
use hashinsight::doorbell::Doorbells;
use hashinsight::log::postgres::{PostgresLog, retain};
use hashinsight::log::{EventLog, FetchLimits, LogError, Record, TopicSpec};

use crate::support::TestDb;

const TOPIC: &str = "events.miner";

fn record(n: u8) -> Record {
    Record { key: Some(b"k".to_vec()), value: Some(vec![n]), headers: Vec::new(), timestamp: Utc::now() }
}

#[tokio::test]
async fn what_a_group_has_yet_to_read_outlives_its_retention() {
    let test = TestDb::new().await;
    let log = PostgresLog::new(test.db.clone(), Doorbells::default());
    let spec = TopicSpec {
        name: TOPIC.to_owned(),
        partitions: 1,
        replication_factor: 1,
        retention: Duration::from_secs(7 * 86_400),
    };
    log.ensure_topics(&[spec]).await.expect("a topic");
    log.append(TOPIC, 0, &[0, 1, 2, 3].map(record)).await.expect("appended");
    // The last one is young.
    test.execute("update log_record set appended_at = now() - interval '8 days' where log_offset < 3").await;
    test.execute(&format!(
        "insert into consumer_offset (consumer_name, topic, partition, next_offset) \
         values ('fast', '{TOPIC}', 0, 4), ('slow', '{TOPIC}', 0, 1)"
    ))
    .await;
    assert_eq!(retain(&test.db).await.expect("a pass"), 1, "the slow group still reads the second");
    let bounds = log.bounds(TOPIC, 0).await.expect("bounds");
    assert_eq!((bounds.start, bounds.end), (1, 4));

    test.execute("update consumer_offset set next_offset = 4").await;
    assert_eq!(retain(&test.db).await.expect("a pass"), 2, "the youngest stays");
    let limits = FetchLimits { max_records: 10, max_bytes: 1 << 20, max_wait: Duration::from_millis(1) };
    let lost = log.fetch(TOPIC, 0, 1, limits).await.expect_err("it is gone");
    assert!(matches!(lost, LogError::OffsetOutOfRange { .. }), "{lost}");
    let rest = log.fetch(TOPIC, 0, 3, limits).await.expect("the rest");
    assert_eq!(rest.records.iter().map(|(offset, _)| *offset).collect::<Vec<_>>(), [3]);
    assert_eq!(retain(&test.db).await.expect("a pass"), 0);
}
