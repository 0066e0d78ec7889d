//! The real binary: roles as processes that are killed, stopped and misused.

use std::collections::BTreeMap;
use std::time::Duration;

use hashinsight::db::Db;
use hashinsight::domain::{Caller, miner};
use hashinsight::identifier::TenantId;
use serde_json::{Value, json};

use crate::support::pipeline::applied;
use crate::support::process::{Process, run};
use crate::support::{TestDb, service, settings, until};

pub(crate) const GROUP: [&str; 3] = ["consume", "--group", "portfolio-recalc-group"];
pub(crate) const LEADS: &str = "this publisher leads";
pub(crate) const WORKS: &str = "working on the partition";

/// A database for the roles, with topics of its own on the broker.
pub(crate) async fn on_kafka() -> TestDb {
    on_kafka_with(&[]).await
}

/// With settings of the test's own.
pub(crate) async fn on_kafka_with(further: &[(&str, &str)]) -> TestDb {
    let brokers = service("KAFKA_BROKERS");
    let mut all = vec![
        ("KAFKA_BROKERS", brokers.as_str()),
        // The writers of these tests ring no bell.
        ("HASHINSIGHT__PUBLISHER__POLL_INTERVAL_MS", "20"),
        ("HASHINSIGHT__CONSUMER__BATCH_SIZE", "50"),
    ];
    all.extend(further);
    ready(TestDb::with(settings(&all)).await).await
}

/// Makes the topics, and listens to the bells of other processes.
pub(crate) async fn ready(test: TestDb) -> TestDb {
    let migrated = run(&test.environment, &["migrate"]).await;
    assert_eq!(migrated.code, 0, "{}", migrated.stderr);
    // Tells this process when a group of another one has committed.
    test.lifecycle
        .spawn("doorbells", test.bells.clone().run(test.db.clone(), test.lifecycle.stopping().clone()));
    test
}

pub(crate) async fn add_miners(db: &Db, tenant: &TenantId, owner: usize, count: usize) {
    let actor = format!("owner-{owner}").parse().expect("a user");
    for n in 0..count {
        let mut tx = db.tenant(tenant).await.expect("begin");
        let caller = Caller { actor: &actor, request_id: "test", traceparent: "", now: chrono::Utc::now() };
        let Value::Object(body) = json!({"model": "S21", "quantity": n + 1, "status": "online"}) else {
            return;
        };
        miner::add(&mut tx, caller, &body).await.expect("added");
        tx.commit().await.expect("commit");
    }
}

pub(crate) async fn inbox_holds(test: &TestDb, count: i64) {
    applied(&test.bells, async || test.scalar::<i64>("select count(*) from event_inbox").await >= count)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_under_load_and_restarted_every_event_is_applied_once() {
    const OWNERS: usize = 4;
    const EACH: usize = 150;
    let test = on_kafka().await;
    let environment = &test.environment;
    let publisher = Process::start(environment, &["publish"], LEADS).await;
    let consumer = Process::start(environment, &GROUP, WORKS).await;
    let tenant: TenantId = "acme".parse().expect("a tenant");
    let mut writers = tokio::task::JoinSet::new();
    for owner in 0..OWNERS {
        let (db, tenant) = (test.db.clone(), tenant.clone());
        writers.spawn(async move { add_miners(&db, &tenant, owner, EACH).await });
    }

    inbox_holds(&test, 50).await;
    publisher.kill().await;
    let publisher = Process::start(environment, &["publish"], LEADS).await;
    inbox_holds(&test, 150).await;
    consumer.kill().await;
    let consumer = Process::start(environment, &GROUP, WORKS).await;
    inbox_holds(&test, 250).await;
    publisher.kill().await;
    consumer.kill().await;
    let _publisher = Process::start(environment, &["publish"], LEADS).await;
    let _consumer = Process::start(environment, &GROUP, WORKS).await;
    while let Some(written) = writers.join_next().await {
        written.expect("writer");
    }
    inbox_holds(&test, (OWNERS * EACH) as i64).await;

    let missing: i64 = test
        .scalar(
            "select count(*) from event_outbox o full join event_inbox i on i.event_id = o.id \
                 where o.id is null or i.event_id is null or i.outcome <> 'applied'",
        )
        .await;
    assert_eq!(missing, 0, "inbox and outbox hold the same events");
    assert_eq!(test.scalar::<i64>("select count(*) from event_dlq").await, 0);
    let wrong: i64 = test
        .scalar("select count(*) from portfolio p full join (select owner_id, count(*) * (count(*) + 1) / 2 as miners \
                 from miners group by 1) m on m.owner_id = p.user_id where p.miners_total is distinct from m.miners")
        .await;
    assert_eq!(wrong, 0, "every portfolio counts every miner once");
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_hands_everything_back_and_ends_with_0() {
    let test = on_kafka().await;
    let publisher = Process::start(&test.environment, &["publish"], LEADS).await;
    let consumer = Process::start(&test.environment, &GROUP, WORKS).await;
    let server_settings = test.environment.clone();
    let server = Process::start(&server_settings, &["serve"], "the API listens").await;
    for process in [consumer, publisher, server] {
        process.signal("TERM").await;
        let (status, log) = process.ended().await;
        assert_eq!(status.code(), Some(0), "{log}");
    }
    assert_eq!(test.scalar::<i64>("select count(member_id) from group_slot").await, 0, "the group was left");
    assert_eq!(
        test.scalar::<i64>("select count(owner_id) from consumer_offset").await,
        0,
        "partitions are free"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_member_is_replaced_by_another() {
    let test = on_kafka().await;
    let first = Process::start(&test.environment, &GROUP, WORKS).await;
    let mut second = Process::start(&test.environment, &GROUP, "joined the group").await;
    second.says(WORKS).await;
    first.kill().await;
    second.says("a member died and was evicted").await;
    let _publisher = Process::start(&test.environment, &["publish"], LEADS).await;
    let tenant: TenantId = "acme".parse().expect("a tenant");
    for owner in 0..12 {
        add_miners(&test.db, &tenant, owner, 1).await;
    }
    inbox_holds(&test, 12).await;
    let owners: i64 = test.scalar("select count(distinct owner_id) from consumer_offset").await;
    assert_eq!(owners, 1, "the survivor has every partition");
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_are_served_where_they_are_asked_for() {
    let test = on_kafka().await;
    let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address");
    let mut environment = test.environment.clone();
    environment.insert("HASHINSIGHT__METRICS__BIND".to_owned(), free.to_string());
    let _publisher = Process::start(&test.environment, &["publish"], LEADS).await;
    let _consumer = Process::start(&environment, &GROUP, WORKS).await;
    add_miners(&test.db, &"acme".parse().expect("a tenant"), 0, 3).await;
    inbox_holds(&test, 3).await;
    let text = async || {
        reqwest::get(format!("http://{free}/metrics")).await.expect("served").text().await.expect("text")
    };
    // Counted after the commit that the inbox shows.
    applied(&test.bells, async || text().await.contains("kind=\"miner.added\"} 3")).await;
    let text = text().await;
    assert!(text.contains("hashinsight_stage_latency_seconds_bucket{stage=\"write_to_visible\""), "{text}");
    assert!(!text.contains("acme"), "no tenant is a label");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_publisher_takes_over() {
    let test = on_kafka().await;
    let leader = Process::start(&test.environment, &["publish"], LEADS).await;
    let mut standby = Process::start(&test.environment, &["publish"], "standing by").await;
    leader.kill().await;
    standby.says(LEADS).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn misuse_ends_with_2_or_1_and_names_the_remedy() {
    let test = TestDb::new().await;
    let with = |changes: &[(&str, &str)]| {
        let mut environment = test.environment.clone();
        for (name, value) in changes {
            if value.is_empty() {
                environment.remove(*name);
            } else {
                environment.insert((*name).to_owned(), (*value).to_owned());
            }
        }
        environment
    };
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let taken = taken.local_addr().expect("an address").to_string();
    let nobody = "127.0.0.1:9";
    let nowhere = format!("postgres://nobody:hush@{nobody}/x");
    let kafka = service("KAFKA_BROKERS");
    type Case<'a> = (BTreeMap<String, String>, &'a [&'a str], i32, &'a str);
    let cases: Vec<Case<'_>> = vec![
        (with(&[]), &["fly"], 2, "unrecognized subcommand"),
        (with(&[]), &["consume"], 2, "--group"),
        (with(&[]), &["standalone", "--demo", "--for", "30"], 2, "30s"),
        (with(&[("DATABASE_URL", "")]), &["migrate"], 2, "set DATABASE_URL=postgres://"),
        (with(&[("DATABASE_URL", "")]), &["serve"], 2, "KAFKA_BROKERS"),
        (with(&[("DATABASE_URL", "mysql://x")]), &["lag"], 2, "must start with postgres://"),
        (with(&[("DATABASE_URL", &nowhere)]), &["lag"], 1, "(DATABASE_URL)"),
        (with(&[("DATABASE_URL", &nowhere)]), &["migrate"], 1, "(DATABASE_URL)"),
        (with(&[]), &["serve"], 2, "set KAFKA_BROKERS=host:port"),
        (with(&[]), &["publish"], 2, "set KAFKA_BROKERS=host:port"),
        (with(&[]), &GROUP, 2, "set KAFKA_BROKERS=host:port"),
        (with(&[("KAFKA_BROKERS", &kafka)]), &["consume", "--group", "nobody"], 2, "portfolio-recalc-group"),
        (
            with(&[("KAFKA_BROKERS", nobody), ("HASHINSIGHT__KAFKA__CONNECT_TIMEOUT_MS", "300")]),
            &["publish"],
            1,
            "KAFKA_BROKERS",
        ),
        (with(&[("KAFKA_BROKERS", &kafka), ("JWT_SECRET", "")]), &["serve"], 2, "JWT_SECRET"),
        (with(&[("JWT_SECRET", "short")]), &["config"], 2, "at least 32"),
        (
            with(&[("KAFKA_BROKERS", &kafka), ("HASHINSIGHT__SERVER__BIND", &taken)]),
            &["serve"],
            1,
            "HASHINSIGHT__SERVER__BIND",
        ),
        (with(&[("REDIS_URL", "http://x")]), &["standalone"], 2, "redis.url"),
        (with(&[("HASHINSIGHT__SERVER__PROT", "1")]), &["config"], 2, "unknown key server.prot"),
        (with(&[("HASHINSIGHT_CONFIG", "/nowhere.toml")]), &["config"], 2, "/nowhere.toml"),
        (with(&[]), &["token", "jwt", "--tenant", "a:b", "--user", "u"], 2, "--tenant"),
    ];
    for (environment, arguments, code, says) in cases {
        let ended = run(&environment, arguments).await;
        assert_eq!(ended.code, code, "{arguments:?}: {}", ended.stderr);
        assert!(ended.stderr.contains(says), "{arguments:?} says {:?}, not {says:?}", ended.stderr);
        assert!(!ended.stderr.contains("hush"), "{arguments:?} tells the password");
        let own: Vec<&str> = ended.stderr.lines().filter(|l| l.starts_with("hashinsight:")).collect();
        assert!(code == 2 && own.is_empty() || own.len() == 1, "{arguments:?}: one line: {}", ended.stderr);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn operators_tools_print_what_scripts_read() {
    let test = on_kafka().await;
    let again = run(&test.environment, &["migrate"]).await;
    assert_eq!((again.code, again.stdout.trim()), (0, "up to date"));
    let json = async |arguments: &[&str]| -> Value {
        let ended = run(&test.environment, arguments).await;
        assert_eq!(ended.code, 0, "{arguments:?}: {}", ended.stderr);
        serde_json::from_str(&ended.stdout).unwrap_or_else(|e| panic!("{arguments:?}: {e}: {}", ended.stdout))
    };
    let status = json(&["migrate", "--status", "--json"]).await;
    assert_eq!(status["schema"]["pending"], json!([]));
    let topics = json(&["topics", "describe", "--json"]).await;
    assert_eq!((&topics["missing"], &topics["differences"]), (&json!([]), &json!([])));
    assert_eq!(json(&["lag", "--json"]).await, json!({"groups": []}));
    let consumer = Process::start(&test.environment, &GROUP, WORKS).await;
    let lag = json(&["lag", "--group", GROUP[2], "--json"]).await;
    assert_eq!(lag["groups"][0]["group"], GROUP[2]);
    assert_eq!(lag["groups"][0]["partitions"].as_array().expect("a list").len(), 6);
    let first = &lag["groups"][0]["partitions"][0];
    for field in ["topic", "partition", "committed", "end", "lag", "lag_seconds", "owner"] {
        assert!(first.get(field).is_some(), "{field} is missing: {first}");
    }
    consumer.kill().await;
    let config = json(&["config", "--json"]).await;
    let secret =
        config.as_array().expect("a list").iter().find(|o| o["key"] == "auth.jwt_secret").expect("listed");
    assert_eq!((&secret["value"], &secret["origin"]), (&json!("***"), &json!("JWT_SECRET")));
    let token =
        run(&test.environment, &["token", "jwt", "--tenant", "t", "--user", "u", "--scope", "a:b"]).await;
    assert_eq!(token.stdout.trim().split('.').count(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_demo_ends_with_a_summary() {
    let test = TestDb::new().await;
    let ended = run(&test.environment, &["standalone", "--demo", "--for", "3s", "--json"]).await;
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    let summary: Value = serde_json::from_str(&ended.stdout).expect("one document and nothing else");
    assert!(summary["events"].as_u64().expect("a count") > 10, "{summary}");
    assert_eq!((&summary["lag"], &summary["dead_letters"]), (&json!(0), &json!(0)));
    assert!(summary["write_to_visible_ms"]["p95"].as_f64().expect("a number") > 0.0);
}

#[tokio::test]
async fn the_demo_has_something_of_everything() {
    let test = TestDb::new().await;
    let demo = Process::start(&test.environment, &["standalone", "--demo"], "the API listens").await;
    for (what, holds) in [
        ("an invoice that is overdue", "crm_invoice where state = 'OVERDUE'"),
        ("a trade that is filled", "treasury_trade where state = 'executed'"),
        ("a trade that is filled in parts", "treasury_trade where state = 'partially_filled'"),
        (
            "a trade that waits for a second person",
            "treasury_trade where state = 'submitted' and needs_approval",
        ),
        ("figures of the treasury", "treasury_overview where open_trades = 2 and sold_sat > 0"),
        ("a miner that fails", "anomaly where state = 'open' and lost_usd_day > 0"),
        ("a schedule", "ops_schedule where value_usd > 0 and starts > 0"),
        ("a plan that is carried out", "ops_plan where status = 'executing' and curtailing"),
        (
            "a plan that spares the miner that fails",
            "ops_plan p where jsonb_array_length(p.detail -> 'miners') > 0 and not exists (select from miners m \
             where m.location = 'Hall 8' and p.detail -> 'miners' @> jsonb_build_array(jsonb_build_object('miner_id', m.id)))",
        ),
        ("a forecast", "forecast_daily"),
    ] {
        until(what, Duration::from_secs(60), async || {
            test.scalar::<bool>(&format!("select exists (select from {holds})")).await.then_some(())
        })
        .await;
    }
    drop(demo);
}
