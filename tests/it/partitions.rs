//! Topics that grow while everything runs: `topics alter`, and what happens when somebody does it behind our back.

use std::time::Duration;

use hashinsight::config::EventLogKind;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::processes::{GROUP, LEADS, inbox_holds, on_kafka, on_kafka_with};
use crate::support::group::{JOINED, Member, PARTITIONS, PATIENCE};
use crate::support::process::{Ended, Process, run};
use crate::support::publishing::{commit, ready, write_under_load};
use crate::support::{TestDb, unique, until};

const IN_POSTGRES: (&str, &str) = ("HASHINSIGHT__EVENT_LOG__KIND", "postgres");

/// Slow enough that there is something to wait for: about 250 events a second from each partition.
const SLOW: [(&str, &str); 2] =
    [("HASHINSIGHT__CONSUMER__BATCH_SIZE", "5"), ("FAILPOINTS", "consumer.before_fence=sleep(20)")];

async fn alter(test: &TestDb, arguments: &[&str]) -> Ended {
    run(&test.environment, &[&["topics", "alter"], arguments].concat()).await
}

/// Runs it, and returns what it answered.
async fn altered(test: &TestDb, arguments: &[&str]) -> Value {
    let ended = alter(test, &[arguments, &["--json"]].concat()).await;
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    serde_json::from_str(&ended.stdout).expect("JSON")
}

/// Runs it, and checks that it refuses with these words and changes nothing.
async fn refused(test: &TestDb, arguments: &[&str], says: &[&str]) {
    let before = partitions(test, "miner").await;
    let ended = alter(test, arguments).await;
    assert_eq!(ended.code, 1, "{}", ended.stdout);
    for says in says {
        assert!(ended.stderr.contains(says), "{arguments:?} says {:?}, not {says:?}", ended.stderr);
    }
    assert_eq!(partitions(test, "miner").await, before);
}

async fn partitions(test: &TestDb, aggregate: &str) -> i32 {
    let log = test.log(test.config.event_log_kind(true).expect("a kind")).await;
    log.topic(&topic(test, aggregate)).await.expect("the topic").partitions
}

fn topic(test: &TestDb, aggregate: &str) -> String {
    format!("{}{aggregate}", test.config.kafka.topic_prefix)
}

/// Nothing of an aggregate was applied before something older of it.
async fn everything_was_applied_in_order(test: &TestDb) {
    let inverted: i64 = test
        .scalar(
            "select count(*) from (select i.processed_at, max(i.processed_at) over (partition by o.event_key, \
               o.aggregate_type, o.aggregate_id order by o.position rows between unbounded preceding and 1 preceding) \
               as before from event_outbox o join event_inbox i on i.event_id = o.id) applied \
             where before > processed_at",
        )
        .await;
    assert_eq!(inverted, 0, "events that were applied after a newer one of their aggregate");
}

async fn grows_under_load(test: TestDb) {
    let _leader = Process::start(&test.environment, &["publish"], LEADS).await;
    let _standby = Process::start(&test.environment, &["publish"], "standing by").await;
    let _first = Member::start_with(&test, &SLOW).await;
    let _second = Member::start_with(&test, &SLOW).await;
    test.shared(&[3, 3]).await;
    test.write_events(8).await;
    let (db, stop) = (test.db.clone(), CancellationToken::new());
    let stopping = stop.clone();
    let load = tokio::spawn(async move {
        // More than the members can do at once, and then on and on.
        write_under_load(db.clone(), 8, 200).await;
        let mut rounds = tokio::time::interval(Duration::from_millis(100));
        while !stopping.is_cancelled() {
            rounds.tick().await;
            write_under_load(db.clone(), 8, 7).await;
        }
    });
    inbox_holds(&test, 100).await;
    let answer = altered(&test, &["--partitions", "6"]).await;
    assert_eq!(answer["topics"].as_array().expect("topics").len(), 4, "{answer}");
    assert_eq!((&answer["topics"][0]["before"], &answer["topics"][0]["after"]), (&json!(3), &json!(6)));
    test.shared(&[6, 6]).await;
    stop.cancel();
    load.await.expect("written");
    test.everything_is_applied_once().await;
    everything_was_applied_in_order(&test).await;
    let used: i64 =
        test.scalar("select count(*) from consumer_offset where partition >= 3 and next_offset > 0").await;
    assert!(used > 0, "the new partitions are used");
    let epoch: i64 = test.scalar("select epoch from publisher_cursor").await;
    assert!(epoch >= 3, "the lead went from hand to hand: {epoch}");
}

#[tokio::test(flavor = "multi_thread")]
async fn topics_grow_under_load_and_every_event_is_applied_once_and_in_order() {
    grows_under_load(on_kafka().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn topics_of_the_log_in_postgres_grow_under_load_as_well() {
    grows_under_load(on_kafka_with(&[IN_POSTGRES]).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn cut_off_between_the_topics_and_the_offsets_it_finishes_when_it_runs_again() {
    let test = on_kafka().await;
    Member::start(&test).await.stop().await;
    let offsets = "select count(*) from consumer_offset";
    assert_eq!(test.scalar::<i64>(offsets).await, PARTITIONS);
    let mut environment = test.environment.clone();
    environment.insert("FAILPOINTS".to_owned(), "alter.after_grow=pause".to_owned());
    let arguments = ["topics", "alter", "--partitions", "5"];
    Process::start(&environment, &arguments, "the topics have grown").await.kill().await;
    assert_eq!((partitions(&test, "miner").await, test.scalar(offsets).await), (5, PARTITIONS));

    let answer = altered(&test, &["--partitions", "5"]).await;
    assert_eq!((&answer["topics"], &answer["offsets"]), (&json!([]), &json!(4)), "{answer}");
    assert_eq!(test.scalar::<i64>(offsets).await, 10);
    refused(&test, &["--partitions", "5"], &["5 partitions is what", "already"]).await;
    // One alone, and the others follow.
    let miner = topic(&test, "miner");
    let answer = altered(&test, &["--partitions", "7", "--topic", &miner]).await;
    assert_eq!(answer["topics"], json!([{"topic": miner, "before": 5, "after": 7}]));
    let answer = altered(&test, &["--partitions", "7"]).await;
    assert_eq!(answer["topics"].as_array().expect("topics").len(), 3, "{answer}");
    assert_eq!(test.scalar::<i64>(offsets).await, 14);

    let publisher = Process::start(&test.environment, &["publish"], LEADS).await;
    let member = Member::start(&test).await;
    test.shared(&[14]).await;
    test.write_events(12).await;
    test.everything_is_applied_once().await;
    drop((publisher, member));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_would_break_the_order_is_refused_and_nothing_changes() {
    let test = on_kafka().await;
    let publisher = Process::start(&test.environment, &["publish"], LEADS).await;
    refused(&test, &["--partitions", "2"], &["has 3 partitions", "cannot shrink to 2"]).await;
    let unknown = alter(&test, &["--partitions", "6", "--topic", "elsewhere"]).await;
    assert_eq!(unknown.code, 2, "{}", unknown.stderr);
    assert!(unknown.stderr.contains("--topic \"elsewhere\""), "{}", unknown.stderr);

    // A group that is behind.
    Member::start(&test).await.stop().await;
    let quick = ["--partitions", "6", "--wait", "1"];
    commit(&test.db, "miner.updated", 1, "m-0", json!({})).await;
    let log = test.log(EventLogKind::Kafka).await;
    let miner = topic(&test, "miner");
    let partition = until("the event is published", PATIENCE, async || {
        for partition in 0..3 {
            if log.bounds(&miner, partition).await.expect("bounds").end > 0 {
                return Some(partition);
            }
        }
        None
    })
    .await;
    let behind = format!("group {} has 1 records of {miner}/{partition} before it", GROUP[2]);
    refused(&test, &quick, &[&behind, "nothing was changed"]).await;

    // One that has something in its retry queue.
    test.execute(&format!(
        "update consumer_offset set next_offset = 1 where topic = '{miner}' and partition = {partition}; \
         insert into parked_event (consumer_name, topic, partition, log_offset, event_id, event_kind, tenant_id, user_id, \
           raw_key, raw_value, headers, record_time, next_attempt_at) \
         values ('{}', '{miner}', {partition}, 0, gen_random_uuid(), 'miner.updated', 'acme', 'owner-1', 'k', 'v', '[]', \
           now(), now() + interval '1 day')",
        GROUP[2]
    ))
    .await;
    let parked = format!("group {} has 1 events of {miner}/{partition} in its retry queue", GROUP[2]);
    refused(&test, &quick, &[&parked, "nothing was changed"]).await;
    test.execute("delete from parked_event").await;

    // A publisher that kept something back.
    publisher.kill().await;
    test.execute(&format!(
        "insert into outbox_stuck (position, occurred_at, topic, partition) \
         select position, occurred_at, '{miner}', 0 from event_outbox"
    ))
    .await;
    refused(&test, &quick, &["1 events of these topics wait in outbox_stuck", "nothing was changed"]).await;
    test.execute("delete from outbox_stuck").await;

    // A leader that does not let go; once it does, and from then on, everything is as it was.
    let mut publisher = Process::start(&test.environment, &["publish"], LEADS).await;
    publisher.signal("STOP").await;
    refused(&test, &quick, &["did not let go within 1 s", "nothing was changed"]).await;
    publisher.signal("CONT").await;
    publisher.says("publishing was interrupted").await;
    publisher.says(LEADS).await;
    altered(&test, &["--partitions", "6"]).await;
    publisher.says(LEADS).await;
    let _member = Member::start(&test).await;
    test.shared(&[2 * PARTITIONS]).await;
    let written = test.scalar::<i64>("select count(*) from event_outbox").await;
    commit(&test.db, "miner.updated", 2, "m-1", json!({})).await;
    // The first one was passed over by hand.
    inbox_holds(&test, written).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_debezium_publishes_it_is_refused() {
    let slot = unique("hi_test").replace('-', "_");
    let test = on_kafka_with(&[("HASHINSIGHT__WAL__SLOT", &slot)]).await;
    // Whoever reads the slot is no matter.
    let reader = Process::start(&test.environment, &["publish", "--source", "wal"], ready("wal")).await;
    let mut environment = test.environment.clone();
    environment.insert("HASHINSIGHT__WAL__SLOT".to_owned(), format!("{slot}_other"));
    environment.insert("HASHINSIGHT__DEBEZIUM__SLOT".to_owned(), slot);
    let ended = run(&environment, &["topics", "alter", "--partitions", "6"]).await;
    assert_eq!(ended.code, 1, "{}", ended.stdout);
    for says in ["Debezium publishes", "/connectors/hashinsight-outbox/stop", "nothing was changed"] {
        assert!(ended.stderr.contains(says), "{says}: {}", ended.stderr);
    }
    // One that streams lets go of the lead as well, and takes it again.
    altered(&test, &["--partitions", "6"]).await;
    assert_eq!(partitions(&test, "miner").await, 6);
    test.write_events(6).await;
    let _member = Member::start(&test).await;
    test.everything_is_applied_once().await;
    drop(reader);
}

/// With Kafka's own tool, for instance. The publisher asks now and then, and the members hear of it.
async fn grows_behind_our_back(test: TestDb) {
    let _publisher = Process::start(&test.environment, &["publish"], LEADS).await;
    let _member = Member::start(&test).await;
    test.shared(&[PARTITIONS]).await;
    test.write_events(12).await;
    test.everything_is_applied_once().await;
    let log = test.log(test.config.event_log_kind(true).expect("a kind")).await;
    log.grow_topics(&[topic(&test, "miner")], 6).await.expect("grown");
    until("new partitions are published to and read", Duration::from_secs(75), async || {
        test.write_events(12).await;
        let used = "select count(*) >= 2 from consumer_offset where partition >= 3 and next_offset > 0";
        test.scalar::<bool>(used).await.then_some(())
    })
    .await;
    test.everything_is_applied_once().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_grows_behind_our_back_is_used_within_a_minute() {
    grows_behind_our_back(on_kafka().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn by_leases_as_well() {
    grows_behind_our_back(on_kafka_with(&[("HASHINSIGHT__GROUP__PROTOCOL", "lease")]).await).await;
}

/// What is not known is null.
#[tokio::test(flavor = "multi_thread")]
async fn lag_is_told_in_records_and_seconds_and_null_where_it_is_not_known() {
    let test = on_kafka_with(&[("HASHINSIGHT__KAFKA__CONNECT_TIMEOUT_MS", "2000")]).await;
    let publisher = Process::start(&test.environment, &["publish"], LEADS).await;
    let member = Process::start(&test.environment, &GROUP, JOINED).await;
    let owner = test.shared(&[PARTITIONS]).await.remove(0);
    let lag = async |environment: &std::collections::BTreeMap<String, String>| -> (Value, Vec<Value>) {
        let ended = run(environment, &["lag", "--json"]).await;
        assert_eq!(ended.code, 0, "{}", ended.stderr);
        let report: Value = serde_json::from_str(&ended.stdout).expect("JSON");
        let group = report["groups"][0].clone();
        let partitions = group["partitions"].as_array().expect("partitions").clone();
        (group, partitions)
    };
    let (group, idle) = lag(&test.environment).await;
    assert_eq!((&group["status"], &group["lag"]), (&json!("healthy"), &json!(0)));
    for partition in &idle {
        assert_eq!(
            (&partition["owner"], &partition["lag_seconds"]),
            (&json!(owner), &json!(0.0)),
            "{partition}"
        );
    }

    member.kill().await;
    for owner in 0..3 {
        commit(&test.db, "miner.updated", owner, "m-0", json!({})).await;
    }
    let behind = until("three records wait", PATIENCE, async || {
        let (group, partitions) = lag(&test.environment).await;
        (group["lag"] == 3).then_some(partitions)
    })
    .await;
    for partition in &behind {
        assert_eq!(partition["owner"], Value::Null, "nobody works on it: {partition}");
        let (records, seconds) = (partition["lag"].as_i64(), partition["lag_seconds"].as_f64());
        assert_eq!(
            records,
            partition["end"].as_i64().map(|end| end - partition["committed"].as_i64().expect("known"))
        );
        assert!(
            seconds.is_some_and(|s| if records == Some(0) { s == 0.0 } else { s > 0.0 && s < 60.0 }),
            "{partition}"
        );
    }
    publisher.kill().await;

    let mut away = test.environment.clone();
    away.insert("KAFKA_BROKERS".to_owned(), "127.0.0.1:9".to_owned());
    let (group, unknown) = lag(&away).await;
    assert_eq!((&group["status"], &group["lag"]), (&json!("unknown"), &Value::Null));
    assert_eq!(unknown.len(), 6);
    for partition in &unknown {
        assert!(partition["committed"].is_i64(), "{partition}");
        for field in ["end", "lag", "lag_seconds"] {
            assert_eq!(partition[field], Value::Null, "{partition}");
        }
    }

    // A partition that the log does not have makes the whole unknown, and the others not.
    test.execute(&format!(
        "insert into consumer_offset (consumer_name, topic, partition) values ('{}', '{}', 9)",
        GROUP[2],
        topic(&test, "miner")
    ))
    .await;
    let (group, partitions) = lag(&test.environment).await;
    assert_eq!((&group["status"], &group["lag"]), (&json!("unknown"), &Value::Null));
    assert_eq!(partitions.iter().filter(|p| p["lag"].is_null()).count(), 1);
}
