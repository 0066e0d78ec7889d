//! `hashinsight doctor`: a healthy system passes, and each thing that breaks gives its line and its remedy.

use std::collections::BTreeMap;

use hashinsight::config::EventLogKind;
use hashinsight::role::topics;
use serde_json::Value;
use tokio::net::TcpListener;

use crate::connector::{for_debezium, make_slot};
use crate::support::connect::Connect;
use crate::support::process::{Process, run};
use crate::support::{TestDb, service, settings};

/// The checks by name, and the exit code.
async fn doctor(environment: &BTreeMap<String, String>) -> (i32, BTreeMap<String, Value>) {
    let ended = run(environment, &["doctor", "--json"]).await;
    let report: Value = serde_json::from_str(&ended.stdout)
        .unwrap_or_else(|e| panic!("{e}: {}\n{}", ended.stdout, ended.stderr));
    let mut checks = BTreeMap::new();
    for check in report["checks"].as_array().expect("checks") {
        let (status, remedy) = (check["status"].as_str().expect("a status"), &check["remedy"]);
        assert!(["ok", "warning", "failed"].contains(&status), "{check}");
        assert_eq!(remedy.is_null(), status == "ok", "whatever is not well has a remedy: {check}");
        checks.insert(check["name"].as_str().expect("a name").to_owned(), check.clone());
    }
    let failed = checks.values().any(|check| check["status"] == "failed");
    assert_eq!(ended.code, i32::from(failed), "{checks:#?}");
    (ended.code, checks)
}

/// Asserts how a check ended and what its line says.
fn expect(checks: &BTreeMap<String, Value>, name: &str, status: &str, says: &str) {
    let check = checks.get(name).unwrap_or_else(|| panic!("no {name} in {checks:#?}"));
    let line = format!("{} {}", check["detail"], check["remedy"]);
    assert!(
        check["status"] == status && line.contains(says),
        "{name} is not {status} with {says:?}: {check:#}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_healthy_system_passes() {
    // Declared first, dropped last: Connect is gone before its database.
    let test;
    let connect = Connect::start(&service("KAFKA_BROKERS")).await;
    test = for_debezium(&connect.url).await;
    make_slot(&test).await;
    let mut environment = test.environment.clone();
    environment.insert("REDIS_URL".to_owned(), service("REDIS_URL"));
    let registered = run(&environment, &["connector", "register"]).await;
    assert_eq!(registered.code, 0, "{}", registered.stderr);
    let debezium = ["publish", "--source", "debezium"];
    let publisher = Process::start(&environment, &debezium, "the cursor follows it").await;
    let (code, checks) = doctor(&environment).await;
    assert_eq!(code, 0, "{checks:#?}");
    let names: Vec<&str> = checks.keys().map(String::as_str).collect();
    let all = [
        "clock",
        "commit",
        "connect",
        "connector",
        "crm-invoices",
        "database",
        "exactly once",
        "forecast-new-day",
        "heartbeat topic",
        "kafka",
        "login",
        "membership",
        "ops-plans",
        "ops-price-retention",
        "ops-schedules",
        "ops-strikes",
        "partitions",
        "policies",
        "publication",
        "publisher",
        "redis",
        "replication login",
        "roles",
        "row security",
        "schema",
        "silent-miners",
        "slot",
        "slot keep size",
        "topics",
        "treasury-trades",
        "wal_level",
        "webhook-retention",
    ];
    assert_eq!(names, all);
    // The tests log in as a superuser, their server may have no limit for slots, and nobody consumes here.
    for (name, check) in &checks {
        let is_job = check["detail"].as_str().is_some_and(|detail| detail.starts_with("job:"));
        let may_warn = is_job || ["login", "slot keep size"].contains(&name.as_str());
        assert!(check["status"] == "ok" || may_warn, "{check:#}");
    }
    let text = run(&environment, &["doctor"]).await;
    assert_eq!(text.stdout.lines().count(), all.len(), "{}", text.stdout);

    // Two publish.
    publisher.kill().await;
    let _publisher = Process::start(&environment, &["publish"], "this publisher leads").await;
    expect(&doctor(&environment).await.1, "publisher", "warning", "stop one of the two");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_broken_in_the_database_has_its_line() {
    type Case = (&'static str, &'static str, &'static str, &'static str, &'static str);
    const CASES: [Case; 17] = [
        // check, how to break it, how to mend it, how it ends, what it says
        (
            "row security",
            "alter table miners no force row level security",
            "alter table miners force row level security",
            "failed",
            "not forced on miners",
        ),
        (
            "policies",
            "create policy leak on miners to hi_app using (true)",
            "drop policy leak on miners",
            "failed",
            "miners.leak",
        ),
        (
            "policies",
            "create policy leak on portfolio for insert with check (true)",
            "drop policy leak on portfolio",
            "failed",
            "portfolio.leak",
        ),
        (
            "policies",
            "drop policy owner_all on audit_log",
            "create policy owner_all on audit_log to hi_owner using (true) with check (true)",
            "failed",
            "sees nothing of audit_log",
        ),
        (
            "schema",
            "create table kept as select * from _sqlx_migrations where version = 3; delete from _sqlx_migrations where version = 3",
            "insert into _sqlx_migrations select * from kept; drop table kept",
            "failed",
            "0003",
        ),
        (
            "commit",
            "do $$ begin execute format('alter database %I set synchronous_commit = off', current_database()); end $$",
            "do $$ begin execute format('alter database %I reset synchronous_commit', current_database()); end $$",
            "failed",
            "synchronous_commit is off",
        ),
        (
            "partitions",
            "do $$ begin execute 'alter table event_outbox_p' || to_char((now() at time zone 'UTC')::date + 3, 'YYYYMMDD') || ' rename to away'; end $$",
            "do $$ begin execute 'alter table away rename to event_outbox_p' || to_char((now() at time zone 'UTC')::date + 3, 'YYYYMMDD'); end $$",
            "warning",
            "event_outbox_p",
        ),
        (
            "partitions",
            "do $$ begin execute 'alter table event_inbox_p' || to_char((now() at time zone 'UTC')::date + 1, 'YYYYMMDD') || ' rename to away'; end $$",
            "do $$ begin execute 'alter table away rename to event_inbox_p' || to_char((now() at time zone 'UTC')::date + 1, 'YYYYMMDD'); end $$",
            "failed",
            "hashinsight migrate",
        ),
        (
            "publication",
            "alter publication hashinsight_outbox rename to away",
            "alter publication away rename to hashinsight_outbox",
            "failed",
            "hashinsight_outbox is missing",
        ),
        (
            "publication",
            "alter publication hashinsight_outbox set (publish = 'insert, update')",
            "alter publication hashinsight_outbox set (publish = 'insert')",
            "failed",
            "more than inserts",
        ),
        (
            "publication",
            "alter publication hashinsight_outbox set table event_outbox; \
             alter publication hashinsight_outbox set (publish_via_partition_root = false)",
            "alter publication hashinsight_outbox set (publish_via_partition_root = true)",
            "failed",
            "names of partitions",
        ),
        (
            "publication",
            "alter publication hashinsight_outbox add table miners",
            "alter publication hashinsight_outbox drop table miners",
            "failed",
            "public.miners",
        ),
        (
            "publication",
            "alter publication hashinsight_outbox set table event_outbox (id, payload)",
            "alter publication hashinsight_outbox set table event_outbox",
            "failed",
            "lacks",
        ),
        (
            "publisher",
            "update publisher_cursor set system_identifier = system_identifier + 1",
            "update publisher_cursor set system_identifier = system_identifier - 1",
            "failed",
            "restored from a dump",
        ),
        (
            "publisher",
            "insert into event_outbox (id, aggregate_type, aggregate_id, event_key, event_type, tenant_id, user_id, payload, occurred_at) \
             values ('019d3c1e-0000-7000-8000-000000000001', 'miner', 'm', 't:u', 'miner.added', 't', 'u', \
             '{\"event_id\": \"019d3c1e-0000-7000-8000-000000000001\", \"kind\": \"miner.added\", \"tenant_id\": \"t\", \"user_id\": \"u\"}', \
             (now() at time zone 'UTC') - interval '61 s')",
            "delete from event_outbox",
            "failed",
            "none leads, and 1 events wait",
        ),
        ("publisher", "select 1", "select 1", "warning", "start `hashinsight publish`"),
        ("slot", "select 1", "select 1", "ok", "nobody reads the WAL"),
    ];
    let test = for_debezium("").await;
    for (name, broken, mended, status, says) in CASES {
        test.execute(broken).await;
        let (_, checks) = doctor(&test.environment).await;
        expect(&checks, name, status, says);
        // Nothing else fails with it.
        let others: Vec<_> =
            checks.iter().filter(|(other, check)| *other != name && check["status"] == "failed").collect();
        assert!(others.is_empty(), "{name}: {others:#?}");
        test.execute(mended).await;
    }
    let (code, checks) = doctor(&test.environment).await;
    assert_eq!(code, 0, "mended: {checks:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_dependency_fails_alone_and_in_time() {
    let test = for_debezium("").await;
    // Takes connections and never answers: what hangs must not keep the others waiting.
    let frozen = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let frozen = frozen.local_addr().expect("an address").to_string();
    let nobody = "127.0.0.1:9".to_owned();
    for dead in [frozen, nobody] {
        let kafka = service("KAFKA_BROKERS");
        let connect = format!("http://{dead}");
        let redis = format!("redis://:hunter2@{dead}");
        let database = format!("postgres://nobody:hunter2@{dead}/x");
        let cases: [(&str, &str, &str, &str); 4] = [
            ("DATABASE_URL", &database, "database", "DATABASE_URL"),
            ("REDIS_URL", &redis, "redis", "REDIS_URL"),
            ("KAFKA_BROKERS", &dead, "kafka", "KAFKA_BROKERS"),
            ("KAFKA_CONNECT_URL", &connect, "connect", "KAFKA_CONNECT_URL"),
        ];
        for (variable, value, name, says) in cases {
            let mut environment = test.environment.clone();
            environment.extend(settings(&[("KAFKA_BROKERS", &kafka), (variable, value)]));
            let (code, checks) = doctor(&environment).await;
            assert_eq!(code, 1, "{checks:#?}");
            expect(&checks, name, "failed", says);
            let text = format!("{checks:?}");
            assert!(!text.contains("hunter2"), "{text}");
            let living = ["database", "redis", "kafka"].into_iter().filter(|other| *other != name);
            for other in living {
                assert_eq!(checks[other]["status"], "ok", "{name}: {:#}", checks[other]);
            }
        }
    }
    let none = run(&settings(&[]), &["doctor"]).await;
    assert_eq!(none.code, 1, "{}", none.stderr);
    assert!(none.stdout.contains("DATABASE_URL"), "{}", none.stdout);
}

#[tokio::test(flavor = "multi_thread")]
async fn topics_that_are_missing_or_differ_have_their_line() {
    let test = TestDb::with(settings(&[("KAFKA_BROKERS", &service("KAFKA_BROKERS"))])).await;
    expect(&doctor(&test.environment).await.1, "topics", "failed", "hashinsight topics ensure");
    let log = test.log(EventLogKind::Kafka).await;
    log.ensure_topics(&topics::specs(&test.config, EventLogKind::Kafka)).await.expect("topics");
    expect(&doctor(&test.environment).await.1, "topics", "ok", "all 5");
    let mut environment = test.environment.clone();
    environment.insert("HASHINSIGHT__KAFKA__PARTITIONS".to_owned(), "4".to_owned());
    expect(&doctor(&environment).await.1, "topics", "warning", "partitions is 3, expected 4");
    // The log in PostgreSQL has topics as well, and no heartbeat.
    environment.insert("HASHINSIGHT__EVENT_LOG__KIND".to_owned(), "postgres".to_owned());
    let checks = doctor(&environment).await.1;
    expect(&checks, "topics", "failed", "hashinsight topics ensure");
    assert!(!checks.contains_key("heartbeat topic"), "{checks:#?}");
}
