//! Kafka's own group protocol: members join, share, hand over and leave, and Kafka's tools and consumers see it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::processes::{GROUP, LEADS, WORKS, inbox_holds, on_kafka, on_kafka_with, ready};
use crate::support::broker::{Broker, Settings, tool};
use crate::support::group::{Member, PARTITIONS, PATIENCE};
use crate::support::process::{Process, run};
use crate::support::{TestDb, service, settings, until};

const COMMAND: &str = "org.apache.kafka.tools.consumer.group.ConsumerGroupCommand";

/// Runs Kafka's own tool on the test's group.
async fn groups_tool(test: &TestDb, further: &[&str]) -> String {
    let (broker, group) = (service("KAFKA_BROKERS"), test.group_id());
    let arguments = [&["--bootstrap-server", &broker, "--group", &group], further].concat();
    let output = tool(COMMAND, &arguments).output().await.expect("java");
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success(), "{said}");
    said
}

/// The table of `--describe`: per partition its offset, end, lag and member.
async fn described(test: &TestDb) -> BTreeMap<(String, i32), (String, String, String, String)> {
    let said = groups_tool(test, &["--describe"]).await;
    let rows = said.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    rows.filter(|row| row.len() >= 7 && row[0] == test.group_id())
        .map(|row| {
            let text = |n: usize| row[n].to_owned();
            ((text(1), row[2].parse().expect("a partition")), (text(3), text(4), text(5), text(6)))
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn members_share_the_partitions_and_kafkas_own_tool_shows_them() {
    let test = on_kafka().await;
    let _publisher = Process::start(&test.environment, &["publish"], LEADS).await;
    let first = Member::start(&test).await;
    let alone = test.shared(&[PARTITIONS]).await;
    let second = Member::start(&test).await;
    let both = test.shared(&[3, 3]).await;
    assert!(both.contains(&alone[0]), "the first goes on under its id");
    assert!(alone[0].starts_with(&test.group_id()), "{alone:?}");

    test.write_events(12).await;
    test.everything_is_applied_once().await;
    // The copies in Kafka follow about each second.
    let stored: Vec<(String, i32, i64, String)> =
        sqlx::query_as("select topic, partition, next_offset, owner_id from consumer_offset")
            .fetch_all(&test.admin)
            .await
            .expect("offsets");
    until("Kafka's tool shows members, offsets and lag", PATIENCE, async || {
        let described = described(&test).await;
        let shown = |(topic, partition, next, owner): &(String, i32, i64, String)| {
            let next = next.to_string();
            described
                .get(&(topic.clone(), *partition))
                .is_some_and(|row| *row == (next.clone(), next, "0".to_owned(), owner.clone()))
        };
        (described.len() == stored.len() && stored.iter().all(shown)).then_some(())
    })
    .await;
    let lag = run(&test.environment, &["lag", "--json"]).await;
    assert!(both.iter().all(|owner| lag.stdout.contains(owner)), "{}", lag.stdout);

    first.stop().await;
    test.shared(&[PARTITIONS]).await;
    second.stop().await;
    assert_eq!(test.owners().await, BTreeMap::new());
    let members = groups_tool(&test, &["--describe", "--members"]).await;
    assert!(!members.contains("hashinsight"), "nobody is left behind: {members}");
}

/// F34.
#[tokio::test(flavor = "multi_thread")]
async fn a_stop_hands_over_without_a_duplicate() {
    let test = on_kafka().await;
    let _publisher = Process::start(&test.environment, &["publish"], LEADS).await;
    let first = Member::start(&test).await;
    let second = Member::start(&test).await;
    test.shared(&[3, 3]).await;
    let writer = test.keep_writing();
    inbox_holds(&test, 50).await;
    first.stop().await;
    let heir = test.shared(&[PARTITIONS]).await;
    inbox_holds(&test, 150).await;
    let third = Member::start(&test).await;
    test.shared(&[3, 3]).await;
    inbox_holds(&test, 250).await;
    drop(writer);
    test.everything_is_applied_once().await;
    assert_eq!(heir.len(), 1);
    let evictions = "select sum(incarnation)::bigint from group_slot";
    assert_eq!(test.scalar::<i64>(evictions).await, 0, "whoever stops leaves by himself");
    for member in [&second, &third] {
        assert_eq!(member.metric("hashinsight_events_duplicate_total").await, 0.0);
        assert_eq!(member.metric("hashinsight_fenced_commits_total").await, 0.0);
        assert!(member.metric("hashinsight_events_applied_total").await > 0.0);
    }
}

/// How long the storm of F12 lasts, how often somebody comes, and how many guests there are at once.
const STORM: Duration = Duration::from_secs(60);
const COMES_EVERY: Duration = Duration::from_millis(500);
const GUESTS: usize = 3;

/// F12. A member gives a partition back only once its batch is committed or rolled back: whoever gets it next finds
/// nothing begun, and nobody is ever fenced.
#[tokio::test(flavor = "multi_thread")]
async fn a_storm_of_joins_and_leaves_loses_and_doubles_nothing() {
    let test = Arc::new(on_kafka().await);
    let _publisher = Process::start(&test.environment, &["publish"], LEADS).await;
    let steady = Member::start(&test).await;
    let writer = test.keep_writing();
    let (began, mut ticks) = (Instant::now(), interval(COMES_EVERY));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut guests, mut stays) = (JoinSet::new(), Vec::new());
    for n in 0.. {
        if began.elapsed() >= STORM {
            break;
        }
        // One comes, and if there are enough, one goes: in the middle of its work, or before it was given anything.
        tokio::select! {
            _ = ticks.tick(), if guests.len() < GUESTS => {
                let (test, works) = (Arc::clone(&test), n % 3 != 0);
                guests.spawn(async move {
                    let mut guest = Member::start(&test).await;
                    if works {
                        guest.process.says(WORKS).await;
                    }
                    guest.stop().await
                });
            }
            Some(stay) = guests.join_next() => stays.push(stay.expect("a guest")),
        }
    }
    drop(writer);
    while let Some(stay) = guests.join_next().await {
        stays.push(stay.expect("a guest"));
    }
    test.shared(&[PARTITIONS]).await;
    test.everything_is_applied_once().await;
    assert_eq!(steady.metric("hashinsight_events_duplicate_total").await, 0.0);
    assert_eq!(steady.metric("hashinsight_fenced_commits_total").await, 0.0);
    assert_eq!(
        test.scalar::<i64>("select sum(incarnation)::bigint from group_slot").await,
        0,
        "all left by themselves"
    );
    let slots: i64 = test.scalar("select count(*) from group_slot").await;
    assert!((2..=1 + GUESTS as i64).contains(&slots), "slots are used again: {slots}");
    let worked = stays.iter().filter(|said| said.contains(WORKS)).count();
    assert!(stays.len() >= 20 && worked >= stays.len() / 2, "{worked} of {} guests worked", stays.len());
    stays.push(steady.stop().await);
    for said in stays {
        assert!(!said.contains("another member has the partition") && !said.contains("cut off"), "{said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_java_consumer_shares_the_group_and_when_it_leaves_we_go_on_at_our_own_offset() {
    let test = on_kafka().await;
    let _publisher = Process::start(&test.environment, &["publish"], LEADS).await;
    let member = Member::start(&test).await;
    test.shared(&[PARTITIONS]).await;
    let (broker, group) = (service("KAFKA_BROKERS"), test.group_id());
    let topic = format!("{}miner", test.config.kafka.topic_prefix);
    let mut java = tool(
        "org.apache.kafka.tools.consumer.ConsoleConsumer",
        &[
            "--bootstrap-server",
            &broker,
            "--group",
            &group,
            "--topic",
            &topic,
            "--consumer-property",
            "group.protocol=consumer",
            "--consumer-property",
            "auto.commit.interval.ms=100",
        ],
    );
    let output = std::process::Stdio::null;
    let mut java = java.stdout(output()).stderr(output()).spawn().expect("java");
    let ours = until("the Java consumer has some of the partitions", PATIENCE, async || {
        let mine: i64 = test.owners().await.values().sum();
        (mine < PARTITIONS).then_some(mine)
    })
    .await;
    assert!(ours >= 3, "the other topic is ours: {ours}");
    test.write_events(12).await;
    inbox_holds(&test, 12).await;
    let unread: i64 = test.scalar("select 24 - count(*) from event_inbox").await;
    assert!(unread > 0, "the Java consumer's partitions are its own");

    let pid = java.id().expect("it runs");
    crate::support::cluster::send("TERM", pid);
    java.wait().await.expect("it ends");
    test.shared(&[PARTITIONS]).await;
    test.everything_is_applied_once().await;
    member.stop().await;
}

/// F28.
#[tokio::test(flavor = "multi_thread")]
async fn offsets_set_in_kafka_count_only_once_they_are_adopted() {
    let test = on_kafka().await;
    let _publisher = Process::start(&test.environment, &["publish"], LEADS).await;
    let member = Member::start(&test).await;
    test.write_events(12).await;
    test.everything_is_applied_once().await;
    let (code, _, refusal) = test.adopt(&[]).await;
    assert_eq!(code, 1);
    assert!(refusal.contains("stop every one of them first"), "{refusal}");
    member.stop().await;
    let (code, answer, said) = test.adopt(&[]).await;
    assert_eq!((code, &answer["adopted"]), (0, &json!([])), "what was copied is what is stored: {said}");

    let topic = format!("{}miner", test.config.kafka.topic_prefix);
    groups_tool(&test, &["--reset-offsets", "--to-earliest", "--topic", &topic, "--execute"]).await;
    let stored = "select sum(next_offset)::bigint from consumer_offset";
    let before: i64 = test.scalar(stored).await;
    let mut member = Process::start(&test.environment, &GROUP, "Kafka has another offset").await;
    member.says(WORKS).await;
    test.write_events(1).await;
    test.everything_is_applied_once().await;
    assert_eq!(test.scalar::<i64>(stored).await, before + 2, "the database's offset counts");
    member.signal("TERM").await;
    member.ended().await;

    groups_tool(&test, &["--reset-offsets", "--to-earliest", "--topic", &topic, "--execute"]).await;
    let (code, planned, said) = test.adopt(&["--dry-run"]).await;
    assert_eq!(code, 0, "{said}");
    let moved: i64 =
        planned["adopted"].as_array().expect("a list").iter().filter_map(|a| a["from"].as_i64()).sum();
    assert_eq!(moved, 13, "{planned}");
    assert_eq!(test.scalar::<i64>(stored).await, 26, "a dry run moves nothing");
    let (_, done, _) = test.adopt(&[]).await;
    assert_eq!(done["adopted"], planned["adopted"]);
    assert_eq!(test.scalar::<i64>(stored).await, 13, "the other topic stays where it was");
    let member = Member::start(&test).await;
    until("it read everything again", PATIENCE, async || {
        (test.scalar::<i64>(stored).await == 26).then_some(())
    })
    .await;
    test.everything_is_applied_once().await;
    assert_eq!(member.metric("hashinsight_events_duplicate_total").await, 13.0, "the inbox knows them all");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_protocol_can_be_chosen_where_there_is_a_choice() {
    let test = on_kafka_with(&[("HASHINSIGHT__GROUP__PROTOCOL", "lease")]).await;
    let _member = Process::start(&test.environment, &GROUP, "group.protocol says so").await;
    test.shared(&[PARTITIONS]).await;
    assert_eq!(test.scalar::<i64>("select count(*) from group_member").await, 1);
    assert_eq!(test.scalar::<i64>("select count(*) from group_slot").await, 0);

    let mut environment = test.environment.clone();
    environment.insert("HASHINSIGHT__GROUP__PROTOCOL".to_owned(), "kafka".to_owned());
    let mut kafka = Process::start(&environment, &GROUP, "protocol=\"kafka\"").await;
    kafka.says("joined the group").await;
    environment.remove("KAFKA_BROKERS");
    environment.insert("HASHINSIGHT__EVENT_LOG__KIND".to_owned(), "postgres".to_owned());
    let refused = run(&environment, &GROUP).await;
    assert_eq!(refused.code, 2, "{}", refused.stderr);
    assert!(refused.stderr.contains("needs the log in Kafka"), "{}", refused.stderr);
}

/// A cluster that was upgraded knows the requests before it allows them.
#[tokio::test(flavor = "multi_thread")]
async fn brokers_that_do_not_speak_the_protocol_get_leases() {
    let broker = Broker::start(Settings { features: vec!["group.version=0"], ..Settings::default() }).await;
    let settings = settings(&[("KAFKA_BROKERS", broker.address().as_str())]);
    let test = ready(TestDb::with(settings).await).await;
    let mut environment = test.environment.clone();
    environment.insert("HASHINSIGHT__GROUP__PROTOCOL".to_owned(), "kafka".to_owned());
    let refused = run(&environment, &GROUP).await;
    assert_eq!(refused.code, 1, "{}", refused.stderr);
    assert!(refused.stderr.contains("group.version to 1"), "{}", refused.stderr);
    let _member = Process::start(&test.environment, &GROUP, "does not speak Kafka's").await;
    test.shared(&[PARTITIONS]).await;
    assert_eq!(test.scalar::<i64>("select count(*) from group_member").await, 1);
}
