//! The Debezium connector: what is printed, registered and refused, with a real Kafka Connect.

use std::time::Duration;

use hashinsight::config::EventLogKind;
use hashinsight::role::topics;
use serde_json::{Value, json};

use crate::support::connect::{Connect, Mode};
use crate::support::process::{Process, run};
use crate::support::publishing::commit;
use crate::support::{TestDb, service, settings, unique, until};

/// A database whose events a connector may publish: topics, publication, and a slot name of its own.
pub(crate) async fn for_debezium(connect: &str) -> TestDb {
    let slot = unique("hashinsight_debezium").replace('-', "_");
    let test = TestDb::with(settings(&[
        ("KAFKA_BROKERS", &service("KAFKA_BROKERS")),
        ("KAFKA_CONNECT_URL", connect),
        ("HASHINSIGHT__DEBEZIUM__SLOT", &slot),
    ]))
    .await;
    let log = test.log(EventLogKind::Kafka).await;
    log.ensure_topics(&topics::specs(&test.config, EventLogKind::Kafka)).await.expect("topics");
    test
}

/// Makes the slot in the way that `connector register` asks for.
pub(crate) async fn make_slot(test: &TestDb) {
    test.execute(&hashinsight::connector::create_statement(&test.config.debezium.slot)).await;
}

/// Changes a setting of the registered connector behind our back.
async fn put(connect: &Connect, settings: &Value) {
    let url = format!("{}/connectors/hashinsight-outbox/config", connect.url);
    let answer = reqwest::Client::new().put(url).json(settings).send().await.expect("an answer");
    assert!(answer.status().is_success(), "{}", answer.text().await.expect("text"));
}

#[tokio::test]
async fn the_repository_holds_what_is_printed() {
    let printed = run(&settings(&[]), &["connector", "print"]).await;
    assert_eq!(printed.code, 0, "{}", printed.stderr);
    let kept = std::fs::read_to_string("connectors/outbox-connector.json").expect("the file");
    assert_eq!(printed.stdout, kept, "write the output of `hashinsight connector print` to the file");

    let secret = settings(&[("DATABASE_URL", "postgres://me:hunter2@db.example/fleet?password=hunter2")]);
    let printed = run(&secret, &["connector", "print"]).await;
    assert_eq!(printed.code, 0, "{}", printed.stderr);
    assert!(!format!("{}{}", printed.stdout, printed.stderr).contains("hunter2"));
    let document: Value = serde_json::from_str(&printed.stdout).expect("JSON");
    assert_eq!(document["name"], "hashinsight-outbox");
    assert_eq!(document["config"]["database.hostname"], "db.example");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_connector_is_registered_when_all_is_there_and_then_watched() {
    // Declared first, dropped last: Connect is gone before its database.
    let test;
    let connect = Connect::start(&service("KAFKA_BROKERS")).await;
    test = for_debezium(&connect.url).await;
    let status = async || -> Value {
        let ended = run(&test.environment, &["connector", "status", "--json"]).await;
        assert_eq!(ended.code, 0, "{}", ended.stderr);
        serde_json::from_str(&ended.stdout).expect("JSON")
    };
    let doctor = async |name: &str| -> Value {
        let ended = run(&test.environment, &["doctor", "--json"]).await;
        let report: Value = serde_json::from_str(&ended.stdout).expect("JSON");
        let mut checks = report["checks"].as_array().expect("checks").iter();
        checks.find(|check| check["name"] == name).unwrap_or_else(|| panic!("no {name}: {report:#}")).clone()
    };
    assert_eq!(status().await["registered"], false);
    assert_eq!(doctor("connector").await["status"], "failed");

    // What is missing is named, with what makes it.
    test.execute("alter publication hashinsight_outbox rename to elsewhere").await;
    let refused = run(&test.environment, &["connector", "register"]).await;
    assert_eq!(refused.code, 1, "{}", refused.stdout);
    let slot = &test.config.debezium.slot;
    for says in [
        "hashinsight_outbox is missing; remedy: run `hashinsight migrate`",
        &format!("{slot} is missing"),
        &format!("select pg_create_logical_replication_slot('{slot}', 'pgoutput')"),
    ] {
        assert!(refused.stderr.contains(says), "{says:?} is not in {}", refused.stderr);
    }
    test.execute("alter publication elsewhere rename to hashinsight_outbox").await;
    make_slot(&test).await;

    let registered = run(&test.environment, &["connector", "register"]).await;
    assert_eq!(registered.code, 0, "{}\n{}", registered.stderr, connect.log());
    let found = status().await;
    assert_eq!((&found["runs"], &found["differences"]), (&json!(true), &json!([])), "{found:#}");
    assert_eq!(doctor("connector").await["status"], "ok");
    assert_eq!(doctor("exactly once").await["status"], "ok");
    assert_eq!(doctor("heartbeat topic").await["status"], "ok");
    assert_eq!(doctor("slot").await["status"], "ok");
    let publisher = doctor("publisher").await;
    assert!(publisher["detail"].as_str().expect("text").contains("nobody moves the cursor"), "{publisher}");

    let ours: Value = {
        let printed = run(&test.environment, &["connector", "print"]).await;
        serde_json::from_str::<Value>(&printed.stdout).expect("JSON")["config"].clone()
    };
    let mut other = ours.clone();
    other["heartbeat.interval.ms"] = json!("7000");
    other["database.password"] = json!("hunter2");
    put(&connect, &other).await;
    let found = run(&test.environment, &["connector", "status", "--json"]).await.stdout;
    assert!(!found.contains("hunter2"), "{found}");
    let found: Value = serde_json::from_str(&found).expect("JSON");
    let keys: Vec<&Value> =
        found["differences"].as_array().expect("a list").iter().map(|d| &d["key"]).collect();
    assert_eq!(keys, ["database.password", "heartbeat.interval.ms"]);
    until("the doctor sees it", Duration::from_secs(30), async || {
        // A connector that restarts does not run for a moment.
        let check = doctor("connector").await;
        (check["status"] == "warning").then_some(())
    })
    .await;

    // With transactions, what it has written stops our consumers: registering over it would hide that.
    other["exactly.once.support"] = json!("required");
    put(&connect, &other).await;
    let check = doctor("exactly once").await;
    assert_eq!(check["status"], "failed");
    assert!(check["detail"].as_str().expect("text").contains("exactly.once.support=required"), "{check}");
    let refused = run(&test.environment, &["connector", "register"]).await;
    assert_eq!(refused.code, 1);
    assert!(refused.stderr.contains("exactly.once.support=required"), "{}", refused.stderr);

    // A task that fails says why.
    put(&connect, &ours).await;
    test.execute("drop publication hashinsight_outbox").await;
    let restart = format!("{}/connectors/hashinsight-outbox/restart?includeTasks=true", connect.url);
    let answer = reqwest::Client::new().post(restart).send().await.expect("an answer");
    assert!(answer.status().is_success());
    let failed = until("the task fails", Duration::from_secs(60), async || {
        let check = doctor("connector").await;
        check["detail"].as_str().is_some_and(|detail| detail.contains("[FAILED]")).then_some(check)
    })
    .await;
    assert_eq!(failed["status"], "failed");
    let detail = failed["detail"].as_str().expect("text");
    assert!(detail.to_lowercase().contains("publication"), "the cause names the publication: {detail}");
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_that_write_transactions_are_refused() {
    for exactly_once in [false, true] {
        let test;
        let connect = Connect::start_as(&service("KAFKA_BROKERS"), Mode::Distributed { exactly_once }).await;
        test = for_debezium(&connect.url).await;
        make_slot(&test).await;
        let registered = run(&test.environment, &["connector", "register"]).await;
        if exactly_once {
            assert_eq!(registered.code, 1, "{}", registered.stdout);
            let says = "set exactly.once.source.support=disabled";
            assert!(registered.stderr.contains(says), "{}", registered.stderr);
        } else {
            assert_eq!(registered.code, 0, "{}\n{}", registered.stderr, connect.log());
        }
        connect.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cursor_follows_debezium() {
    let test;
    let connect = Connect::start(&service("KAFKA_BROKERS")).await;
    test = for_debezium(&connect.url).await;
    // What was committed before the slot, Debezium does not have.
    let early = commit(&test.db, "miner.updated", 1, "m-0", json!({})).await;
    make_slot(&test).await;
    let registered = run(&test.environment, &["connector", "register"]).await;
    assert_eq!(registered.code, 0, "{}\n{}", registered.stderr, connect.log());
    let follows = "the cursor follows it";
    let _publisher = Process::start(&test.environment, &["publish", "--source", "debezium"], follows).await;
    let late = commit(&test.db, "miner.updated", 1, "m-0", json!({})).await;
    until("the cursor has passed both", Duration::from_secs(60), async || {
        let published = format!(
            "select bool_and(pg_visible_in_snapshot(xid, published)) from event_outbox, publisher_cursor where id in ('{early}', '{late}')"
        );
        test.scalar::<bool>(&published).await.then_some(())
    })
    .await;
    let log = test.log(EventLogKind::Kafka).await;
    let topic = format!("{}miner", test.config.kafka.topic_prefix);
    let mut records = 0;
    for partition in 0..test.config.kafka.partitions {
        records += log.bounds(&topic, partition).await.expect("bounds").end;
    }
    assert_eq!(records, 2, "the early one from the table, the late one from Debezium");
    let doctor = run(&test.environment, &["doctor"]).await;
    assert!(doctor.stdout.contains(follows), "{}", doctor.stdout);
}
