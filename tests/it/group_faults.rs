//! What a group in Kafka does when members die, freeze, or are cut off, and when its coordinator or the database fails.

use std::time::Duration;

use sqlx::Connection;

use crate::processes::{GROUP, LEADS, add_miners, inbox_holds, on_kafka, ready};
use crate::support::broker::{Broker, Settings};
use crate::support::cluster::send;
use crate::support::group::{JOINED, Member, PARTITIONS, PATIENCE};
use crate::support::process::{Process, run};
use crate::support::proxy::{
    CONSUMER_GROUP_HEARTBEAT, FIND_COORDINATOR, Fate, Mode, OFFSET_COMMIT, Proxy, Rule,
};
use crate::support::{Cluster, TestDb, service, settings, until};

/// The first key of the slots' advisory locks.
const SLOT_LOCK: i32 = 0x6869_736c;

// Codes of answers.
const NOT_COORDINATOR: i16 = 16;
const UNKNOWN_MEMBER_ID: i16 = 25;
const GROUP_AUTHORIZATION_FAILED: i16 = 30;
const GROUP_ID_NOT_FOUND: i16 = 69;
const FENCED_MEMBER_EPOCH: i16 = 110;

/// G10: the others need no session timeout.
#[tokio::test(flavor = "multi_thread")]
async fn a_killed_members_partitions_go_to_the_survivor() {
    let test = on_kafka().await;
    let _publisher = Process::start(&test.environment, &["publish"], LEADS).await;
    let first = Member::start(&test).await;
    let mut second = Member::start(&test).await;
    let both = test.shared(&[3, 3]).await;
    first.process.kill().await;
    second.process.says("a member died and was evicted").await;
    until("the survivor has every partition", PATIENCE, async || {
        let owners = test.owners().await;
        (owners.len() == 1 && both.contains(owners.keys().next()?)).then_some(())
    })
    .await;
    test.write_events(12).await;
    test.everything_is_applied_once().await;
    assert_eq!(test.scalar::<i64>("select sum(cardinality(departed))::bigint from group_slot").await, 0);
}

/// G10: and a restart needs nobody.
#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_is_killed_and_restarted_has_its_id_and_its_partitions_at_once() {
    let test = on_kafka().await;
    let _publisher = Process::start(&test.environment, &["publish"], LEADS).await;
    let first = Member::start(&test).await;
    let id = test.shared(&[PARTITIONS]).await;
    let epochs = "select sum(owner_epoch)::bigint from consumer_offset";
    let before: i64 = test.scalar(epochs).await;
    first.process.kill().await;
    let mut second = Member::start(&test).await;
    for _ in 0..PARTITIONS {
        second.process.says("working on the partition").await;
    }
    assert_eq!(test.shared(&[PARTITIONS]).await, id);
    assert_eq!(test.scalar::<i64>(epochs).await, before + PARTITIONS, "each was claimed once more");
    assert_eq!(test.scalar::<i64>("select sum(incarnation)::bigint from group_slot").await, 0);
    test.write_events(12).await;
    test.everything_is_applied_once().await;
}

/// F13, F41: frozen between the claim and the commit of a batch.
#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_member_is_replaced_and_fenced_when_it_thaws() {
    let test = on_kafka().await;
    let _publisher = Process::start(&test.environment, &["publish"], LEADS).await;
    let mut zombie =
        Member::start_with(&test, &[("FAILPOINTS", "consumer.before_fence=1*sleep(3000)")]).await;
    let old = test.shared(&[PARTITIONS]).await;
    add_miners(&test.db, &"acme".parse().expect("a tenant"), 0, 1).await;
    let in_batch = "select exists (select from pg_stat_activity where datname = current_database() \
                    and state = 'idle in transaction' and query like 'begin; set local role hi_worker%')";
    until("a batch is begun", PATIENCE, async || test.scalar::<bool>(in_batch).await.then_some(())).await;
    zombie.process.signal("STOP").await;

    let mut heir = Member::start(&test).await;
    heir.process.says("a member stood still and was evicted").await;
    until("the heir has every partition", PATIENCE, async || {
        let owners = test.owners().await;
        (owners.len() == 1 && !owners.contains_key(&old[0])).then_some(())
    })
    .await;
    test.everything_is_applied_once().await;

    zombie.process.signal("CONT").await;
    zombie.process.says("this member stood still and was evicted").await;
    zombie.process.says(JOINED).await;
    let both = test.shared(&[3, 3]).await;
    assert!(!both.contains(&old[0]), "its old id is used up: {both:?}");
    assert!(zombie.metric("hashinsight_fenced_commits_total").await >= 1.0, "its batch was refused");
    assert_eq!(zombie.metric("hashinsight_events_applied_total").await, 0.0);
    test.write_events(12).await;
    test.everything_is_applied_once().await;
}

/// F27.
#[tokio::test(flavor = "multi_thread")]
async fn offsets_that_kafka_does_not_take_and_a_coordinator_that_moves_are_harmless() {
    let proxy = Proxy::before(&service("KAFKA_BROKERS")).await;
    let mut test = on_kafka().await;
    let _publisher = Process::start(&test.environment, &["publish"], LEADS).await;
    test.environment.insert("KAFKA_BROKERS".to_owned(), proxy.address().to_owned());
    let topic = format!("{}miner", test.config.kafka.topic_prefix);
    let rule = |api_key, times, body| Rule { api_key, lane: None, skip: 0, times, fate: Fate::Garble(body) };
    proxy.rule(rule(FIND_COORDINATOR, 2, coordinator_refused()));
    let mut member = Member::start(&test).await;
    test.shared(&[PARTITIONS]).await;
    proxy.rule(rule(OFFSET_COMMIT, 3, commit_refused(&topic)));
    proxy.rule(rule(CONSUMER_GROUP_HEARTBEAT, 2, heartbeat_refused(NOT_COORDINATOR)));
    let asked = proxy.requests(FIND_COORDINATOR);
    test.write_events(12).await;
    test.everything_is_applied_once().await;
    member.process.says("offsets cannot be copied to Kafka").await;
    proxy.requested(FIND_COORDINATOR, asked + 1).await;
    // Those that fail are copied later, by a member that goes on.
    proxy.requested(OFFSET_COMMIT, 4).await;

    // Connections that break are nothing but made anew.
    proxy.set(Mode::Reset);
    proxy.all_closed().await;
    proxy.set(Mode::Forward);
    test.write_events(12).await;
    test.everything_is_applied_once().await;
    let log = member.stop().await;
    assert!(!log.contains("evicted"), "{log}");
    let (code, answer, said) = test.adopt(&["--dry-run"]).await;
    assert_eq!(code, 0, "{said}");
    assert_eq!(answer["adopted"], serde_json::json!([]), "the copies have caught up");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_coordinator_that_forbids_the_group_ends_the_process_and_one_that_forgot_a_member_takes_it_back() {
    let test = on_kafka().await;
    let proxy = Proxy::before(&service("KAFKA_BROKERS")).await;
    let mut environment = test.environment.clone();
    environment.insert("KAFKA_BROKERS".to_owned(), proxy.address().to_owned());
    let refuse = |code| Rule {
        api_key: CONSUMER_GROUP_HEARTBEAT,
        lane: None,
        skip: 0,
        times: 1,
        fate: Fate::Garble(heartbeat_refused(code)),
    };
    proxy.rule(refuse(GROUP_AUTHORIZATION_FAILED));
    let ended = run(&environment, &GROUP).await;
    assert_eq!(ended.code, 1, "{}", ended.stderr);
    assert!(ended.stderr.contains("code 30"), "{}", ended.stderr);

    let mut member = Process::start(&environment, &GROUP, JOINED).await;
    let id = test.shared(&[PARTITIONS]).await;
    for code in [UNKNOWN_MEMBER_ID, FENCED_MEMBER_EPOCH, GROUP_ID_NOT_FOUND] {
        proxy.rule(refuse(code));
        member.says("the group does not count on this member: work stops").await;
        member.says(JOINED).await;
        assert_eq!(test.shared(&[PARTITIONS]).await, id);
    }
}

/// Version 1: tags, throttle time, code, no message, no id, epoch, interval, no assignment, tags.
fn heartbeat_refused(code: i16) -> Vec<u8> {
    [&[0][..], &[0; 4], &code.to_be_bytes(), &[0, 0], &[0; 4], &[0; 4], &[0xff], &[0]].concat()
}

/// Version 9: tags, throttle time, one topic of one partition with the code.
fn commit_refused(topic: &str) -> Vec<u8> {
    let length = u8::try_from(topic.len() + 1).expect("a short name");
    let name = [&varint(length), topic.as_bytes()].concat();
    [&[0][..], &[0; 4], &[2], &name, &[2], &[0; 4], &NOT_COORDINATOR.to_be_bytes(), &[0, 0, 0]].concat()
}

/// Version 6: tags, throttle time, one coordinator without a name, with the code.
fn coordinator_refused() -> Vec<u8> {
    [&[0][..], &[0; 4], &[2], &[1], &[0; 4], &[1], &[0; 4], &NOT_COORDINATOR.to_be_bytes(), &[0, 0, 0]]
        .concat()
}

/// Seven bits a byte, the lowest first.
fn varint(number: u8) -> Vec<u8> {
    if number < 0x80 { vec![number] } else { vec![number & 0x7f | 0x80, number >> 7] }
}

/// F40.
#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_stalls_for_five_seconds_evicts_nobody() {
    let cluster = Cluster::start(&[]).await;
    let brokers = service("KAFKA_BROKERS");
    let settings =
        settings(&[("KAFKA_BROKERS", brokers.as_str()), ("HASHINSIGHT__PUBLISHER__POLL_INTERVAL_MS", "20")]);
    let test = ready(TestDb::on(&cluster, settings).await).await;
    let publisher = Process::start(&test.environment, &["publish"], LEADS).await;
    let members = [Member::start(&test).await, Member::start(&test).await];
    let both = test.shared(&[3, 3]).await;
    // Nobody may judge by the time it took: the first member has seen the second stand still before the stall, and finds
    // the database back before the second does.
    let backend: i32 = test.scalar("select backend_pid from group_slot where slot = 1").await;
    let backend = u32::try_from(backend).expect("a process");
    send("STOP", backend);
    let before = test.scalar("select counter from group_slot where slot = 0").await;
    let looked = first_looked(&test, before).await;
    cluster.freeze();
    // The length of the stall is what is tested.
    tokio::time::sleep(Duration::from_secs(5)).await;
    cluster.thaw_all_but(backend);
    first_looked(&test, looked).await;
    send("CONT", backend);
    test.write_events(12).await;
    test.everything_is_applied_once().await;
    assert_eq!(test.shared(&[3, 3]).await, both);
    assert_eq!(test.scalar::<i64>("select sum(incarnation)::bigint from group_slot").await, 0);
    for member in members {
        let log = member.stop().await;
        assert!(
            !log.contains("evicted") && log.matches("working on").count() <= PARTITIONS as usize,
            "{log}"
        );
    }
    drop(publisher);
}

/// Waits until the first member has renewed beyond `before`, after which it looks at the others; returns its counter.
async fn first_looked(test: &TestDb, before: i64) -> i64 {
    until("the first member renews", PATIENCE, async || {
        let counter: i64 = test.scalar("select counter from group_slot where slot = 0").await;
        (counter > before).then_some(counter)
    })
    .await
}

/// F41.
#[tokio::test(flavor = "multi_thread")]
async fn a_member_whose_slot_is_lost_stops_and_joins_again() {
    let test = on_kafka().await;
    let _publisher = Process::start(&test.environment, &["publish"], LEADS).await;
    let mut first = Member::start(&test).await;
    let id = test.shared(&[PARTITIONS]).await;
    let _second = Member::start(&test).await;
    let both = test.shared(&[3, 3]).await;
    let cut = "select pg_terminate_backend(backend_pid) from group_slot where slot = 0";

    // Free at once: the same slot, the same id.
    test.execute(cut).await;
    first.process.says("the member's slot is lost: work stops").await;
    first.process.says("the group does not count on this member: work stops").await;
    first.process.says(JOINED).await;
    assert_eq!(test.shared(&[3, 3]).await, both);

    // Taken by somebody who waited for it: another slot, another id, and the old one is left.
    let (slot_id, url) =
        (test.scalar::<i32>("select slot_id from group_slot where slot = 0").await, url(&test));
    let thief = tokio::spawn(async move {
        let mut conn = sqlx::PgConnection::connect(&url).await.expect("connected");
        let lock = sqlx::query("select pg_advisory_lock($1, $2)").bind(SLOT_LOCK).bind(slot_id);
        lock.execute(&mut conn).await.expect("locked");
        conn
    });
    let waits = "select exists (select from pg_locks where locktype = 'advisory' and not granted)";
    until("somebody waits for the slot", PATIENCE, async || test.scalar::<bool>(waits).await.then_some(()))
        .await;
    test.execute(cut).await;
    let _thief = thief.await.expect("it has the slot");
    first.process.says(JOINED).await;
    let now = test.shared(&[3, 3]).await;
    assert!(!now.contains(&id[0]), "another id: {now:?}");
    test.write_events(12).await;
    test.everything_is_applied_once().await;
}

/// F41: a rightful owner that was fenced by mistake claims its partitions again, and not at once.
#[tokio::test(flavor = "multi_thread")]
async fn a_fenced_member_to_which_the_partitions_still_belong_claims_them_again() {
    let test = on_kafka().await;
    let _publisher = Process::start(&test.environment, &["publish"], LEADS).await;
    let member = Member::start(&test).await;
    let id = test.shared(&[PARTITIONS]).await;
    let epochs = "select sum(owner_epoch)::bigint from consumer_offset";
    let before: i64 = test.scalar(epochs).await;
    test.execute("update consumer_offset set owner_epoch = owner_epoch + 1, owner_id = 'a zombie'").await;
    test.write_events(12).await;
    test.everything_is_applied_once().await;
    assert_eq!(test.shared(&[PARTITIONS]).await, id);
    assert_eq!(member.metric("hashinsight_fenced_commits_total").await, PARTITIONS as f64);
    assert_eq!(test.scalar::<i64>(epochs).await, before + 2 * PARTITIONS, "each was claimed once");
}

/// A member that others could evict must not come back before it knows who it is.
#[tokio::test(flavor = "multi_thread")]
async fn a_member_cut_off_from_the_database_leaves_and_waits_for_it() {
    let test = on_kafka().await;
    let proxy = Proxy::before(&service("KAFKA_BROKERS")).await;
    let address = proxy.address().to_owned();
    let mut member = Member::start_with(&test, &[("KAFKA_BROKERS", &address)]).await;
    let id = test.shared(&[PARTITIONS]).await;
    let (name, url) = (test.scalar::<String>("select current_database()::text").await, url(&test));
    let (server, _) = url.rsplit_once('/').expect("a database");
    let mut outside = sqlx::PgConnection::connect(&format!("{server}/postgres")).await.expect("connected");
    let allow = |allowed: bool| format!("alter database {name} allow_connections {allowed}");
    sqlx::raw_sql(sqlx::AssertSqlSafe(allow(false))).execute(&mut outside).await.expect("closed");
    let cut = "select pg_terminate_backend(pid) from pg_stat_activity where datname = $1";
    sqlx::query(cut).bind(&name).execute(&mut outside).await.expect("cut");
    member.process.says("the member's slot is lost: work stops").await;
    // It says goodbye, and nothing after that.
    for _ in 0..8 {
        member.process.says("no slot can be taken").await;
    }
    let beats = proxy.requests(CONSUMER_GROUP_HEARTBEAT);
    for _ in 0..2 {
        member.process.says("no slot can be taken").await;
    }
    assert_eq!(proxy.requests(CONSUMER_GROUP_HEARTBEAT), beats);
    sqlx::raw_sql(sqlx::AssertSqlSafe(allow(true))).execute(&mut outside).await.expect("open");
    member.process.says(JOINED).await;
    assert_eq!(test.shared(&[PARTITIONS]).await, id);
}

/// G10 for the broker.
#[tokio::test(flavor = "multi_thread")]
async fn a_coordinator_that_is_killed_and_comes_back_finds_everybody_at_work() {
    let mut broker = Broker::start(Settings::default()).await;
    let settings = settings(&[
        ("KAFKA_BROKERS", broker.address().as_str()),
        ("HASHINSIGHT__PUBLISHER__POLL_INTERVAL_MS", "20"),
    ]);
    let test = ready(TestDb::with(settings).await).await;
    let _publisher = Process::start(&test.environment, &["publish"], LEADS).await;
    let mut first = Member::start(&test).await;
    let _second = Member::start(&test).await;
    let both = test.shared(&[3, 3]).await;
    let writer = test.keep_writing();
    inbox_holds(&test, 50).await;
    broker.kill().await;
    first.process.says("the group's coordinator does not serve us").await;
    broker.restart().await;
    first.process.says("the group's coordinator answers again").await;
    drop(writer);
    test.everything_is_applied_once().await;
    assert_eq!(test.shared(&[3, 3]).await, both);
    assert_eq!(test.scalar::<i64>("select sum(incarnation)::bigint from group_slot").await, 0);
}

fn url(test: &TestDb) -> String {
    test.environment["DATABASE_URL"].clone()
}
