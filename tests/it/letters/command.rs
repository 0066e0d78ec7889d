//! `hashinsight replay`, and the metric.

use std::time::{Duration, Instant};

use hashinsight::config::EventLogKind::Postgres;
use serde_json::json;
use uuid::Uuid;

use super::ward::{Buried, PATIENCE, Ward, bury};
use crate::support::process::{Process, run};
use crate::support::{TestDb, service, settings, until};

#[tokio::test(flavor = "multi_thread")]
async fn letters_are_counted_by_group_kind_and_status() {
    let ward = Ward::open(Postgres, 1).await;
    let none = ward.replay(&["stats"]).await;
    assert_eq!(none, json!({"open": 0, "groups": []}));
    let of = |offset, ago| Buried { offset, ago, ..Buried::default() };
    ward.letter(of(1, "3 hours")).await;
    let newest = ward.letter(of(2, "1 hour")).await;
    ward.letter(Buried { kind: None, tenant: None, ..of(3, "2 hours") }).await;
    ward.letter(Buried { group: "publisher", ..of(4, "2 hours") }).await;
    ward.test
        .execute(&format!(
            "update event_dlq set error_message = 'the last' where id = '{newest}'; \
             update event_dlq set status = 'resolved' where consumer_name = 'publisher'"
        ))
        .await;
    let stats = ward.replay(&["stats"]).await;
    assert_eq!(stats["open"], 3);
    let groups = stats["groups"].as_array().expect("groups");
    let rows: Vec<_> = groups
        .iter()
        .map(|g| {
            (g["consumer_name"].as_str(), g["event_kind"].as_str(), g["status"].as_str(), g["count"].as_i64())
        })
        .collect();
    assert_eq!(
        rows,
        [
            (Some("picky"), Some("miner.updated"), Some("dead"), Some(2)),
            (Some("picky"), None, Some("dead"), Some(1)),
            (Some("publisher"), Some("miner.updated"), Some("resolved"), Some(1)),
        ]
    );
    assert_eq!(groups[0]["last_error"], "the last");
    assert!(groups[0]["oldest"].as_str() < groups[0]["newest"].as_str(), "{stats}");
    let table = run(&ward.test.environment, &["replay", "stats"]).await;
    assert!(table.stdout.contains("the last") && table.stdout.ends_with("3 open\n"), "{}", table.stdout);
    ward.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn filters_of_the_command_line_narrow_what_is_replayed() {
    let ward = Ward::open(Postgres, 1).await;
    for (n, group) in ["picky", "other", "publisher"].into_iter().enumerate() {
        for (m, ago) in ["1 hour", "30 hours"].into_iter().enumerate() {
            let (key, offset) = (format!("t:u{n}{m}"), (10 * n + m) as i64);
            ward.letter(Buried { group, key: &key, offset, ago, ..Buried::default() }).await;
        }
    }
    let matched = async |arguments: &[&str]| {
        let mut all = vec!["--dry-run"];
        all.extend(arguments);
        ward.replay(&all).await["matched"].as_i64().expect("a count")
    };
    assert_eq!(matched(&[]).await, 3, "24 hours, everybody's");
    assert_eq!(matched(&["--hours", "31"]).await, 6);
    assert_eq!(matched(&["--hours", "31", "--limit", "4"]).await, 4);
    assert_eq!(matched(&["--consumer", "other"]).await, 1);
    assert_eq!(matched(&["--event-kind", "miner.added"]).await, 0);
    assert_eq!(ward.test.scalar::<i64>("select count(*) from event_dlq where status <> 'dead'").await, 0);

    let started = Instant::now();
    assert_eq!(ward.replay(&["--hours", "31", "--rate", "10"]).await["queued"], 6);
    assert!(started.elapsed() >= Duration::from_millis(500), "six at ten a second");
    for refused in [&["--hours", "0"][..], &["--limit", "0"], &["--rate", "0"], &["--hours", "1d"]] {
        let mut all = vec!["replay"];
        all.extend(refused);
        assert_eq!(run(&ward.test.environment, &all).await.code, 2, "{refused:?}");
    }
    ward.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_letter_is_discarded_with_a_reason_and_for_good() {
    let ward = Ward::open(Postgres, 1).await;
    let event_id = Uuid::now_v7();
    let id = ward.letter(Buried { event_id: Some(event_id), ..Buried::default() }).await;
    let nobodys = ward.letter(Buried { tenant: None, offset: 1, ..Buried::default() }).await;
    ward.test
        .execute(&format!(
            "insert into event_inbox (consumer_name, event_id, tenant_id, event_kind, outcome) \
             values ('picky', '{event_id}', 't', 'miner.updated', 'dead'), ('other', '{event_id}', 't', 'miner.updated', 'applied')"
        ))
        .await;
    let text = id.to_string();
    for (arguments, code) in [
        (vec!["--id", text.as_str()], 2),
        (vec!["--id", text.as_str(), "--reason", "  "], 2),
        (vec!["--id", "x", "--reason", "why"], 2),
        (vec!["--id", "019d3c1e-0000-7000-8000-000000000001", "--reason", "why"], 1),
    ] {
        let all: Vec<&str> = ["replay", "discard"].into_iter().chain(arguments).collect();
        assert_eq!(run(&ward.test.environment, &all).await.code, code, "{all:?}");
    }
    let done = ward.replay(&["discard", "--id", &text, "--reason", "sold long ago"]).await;
    assert_eq!(done, json!({"id": id, "status": "discarded"}));
    ward.holds("(select outcome = 'discarded' from event_inbox where consumer_name = 'picky')").await;
    ward.holds("(select outcome = 'applied' from event_inbox where consumer_name = 'other')").await;
    ward.holds(&format!(
        "(select status = 'discarded' and discard_reason = 'sold long ago' and last_actor like 'cli:_%' \
         and resolved_at is not null from event_dlq where id = '{id}')"
    ))
    .await;
    ward.holds(
        "(select count(*) = 1 from audit_log where tenant_id = 't' and action = 'dlq.discard' and actor like 'cli:_%' \
         and detail ->> 'reason' = 'sold long ago' and detail ->> 'consumer_name' = 'picky')",
    )
    .await;
    let again = run(&ward.test.environment, &["replay", "discard", "--id", &text, "--reason", "why"]).await;
    assert_eq!((again.code, again.stderr.contains("is discarded")), (1, true), "{}", again.stderr);
    assert_eq!(ward.replay(&["--dry-run"]).await["matched"], 1);

    // A letter that belongs to no tenant says itself who acted.
    assert_eq!(ward.replay(&["replay"]).await["queued"], 1);
    ward.holds(&format!(
        "(select status = 'replaying' and last_actor like 'cli:_%' from event_dlq where id = '{nobodys}')"
    ))
    .await;
    assert_eq!(ward.test.scalar::<i64>("select count(*) from audit_log").await, 1);
    ward.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn open_letters_are_a_metric_of_the_leading_publisher() {
    let test = TestDb::with(settings(&[("KAFKA_BROKERS", &service("KAFKA_BROKERS"))])).await;
    for offset in 0..3 {
        bury(&test, "events.miner", Buried { offset, ..Buried::default() }).await;
    }
    test.execute("update event_dlq set status = 'discarded' where log_offset = 2").await;
    let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address");
    let mut environment = test.environment.clone();
    environment.insert("HASHINSIGHT__METRICS__BIND".to_owned(), free.to_string());
    let _publisher = Process::start(&environment, &["publish"], "this publisher leads").await;
    let shows = async || {
        let text = reqwest::get(format!("http://{free}/metrics")).await.ok()?.text().await.ok()?;
        let shown = |group, count| {
            text.contains(&format!("hashinsight_dead_letters_open{{group=\"{group}\"}} {count}"))
        };
        (shown("picky", 2) && shown("publisher", 0)).then_some(())
    };
    until("the letters of each group are counted", PATIENCE, shows).await;
}
