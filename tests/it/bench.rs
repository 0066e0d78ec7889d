//! `bench`: small, so that it says nothing about speed, but whole.

use std::collections::BTreeMap;

use hashinsight::config::load_from;
use hashinsight::log::EventLog;
use hashinsight::log::kafka::KafkaLog;
use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};

use crate::support::process::run;
use crate::support::{service, settings};

const EVENTS: u64 = 700;

fn spread_is_sound(spread: &Value) -> bool {
    let of = |name: &str| spread[name].as_f64().unwrap_or(f64::NAN);
    0.0 < of("min") && of("min") <= of("median") && of("median") <= of("max")
}

fn is_late(reason: &str) -> bool {
    reason.starts_with("the generator was")
}

#[tokio::test]
async fn the_report_is_whole_accounts_for_every_event_and_leaves_nothing_behind() {
    let url = service("DATABASE_URL");
    let environment = settings(&[("DATABASE_URL", &url), ("KAFKA_BROKERS", &service("KAFKA_BROKERS"))]);
    let events = EVENTS.to_string();
    let ended = run(
        &environment,
        &[
            "bench",
            "publish",
            "--events",
            &events,
            "--pairs",
            "2",
            "--rates",
            "50",
            "--seconds",
            "1",
            "--sources",
            "poll,debezium-tuned,rskafka,paged-read",
            "--cases",
            "single,thousand",
            "--json",
        ],
    )
    .await;
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    let report: Value = serde_json::from_str(&ended.stdout).expect("one document");

    // A machine that is busy with other tests may make the generator late: then the report has to say so.
    let late = report["void"].as_array().expect("a list");
    assert!(
        late.iter().all(|v| v["run"] == "50 events/s" && v["reason"].as_str().is_some_and(is_late)),
        "{late:?}"
    );
    assert_eq!(report["left_out"][0]["source"], "debezium-tuned", "it is not configured");
    assert!(report["left_out"][0]["reason"].as_str().is_some_and(|r| r.contains("KAFKA_CONNECT_URL")));
    let payload = report["workload"]["payload_bytes"].as_u64().expect("a size");
    assert!((250..400).contains(&payload), "{payload}");
    let of_service = |name: &str| {
        let services = report["services"].as_array().expect("services");
        services.iter().find(|s| s["service"] == name).unwrap_or_else(|| panic!("{name}")).clone()
    };
    assert_eq!(of_service("PostgreSQL")["settings"]["track_commit_timestamp"], "on");
    assert!(of_service("Kafka")["version"].as_str().is_some_and(|v| !v.contains("unknown")));
    assert!(!of_service("HashInsight")["settings"].to_string().contains("***@") || url.contains('@'));

    let drains = report["drains"].as_array().expect("drains");
    let named: Vec<_> = drains.iter().map(|d| (d["case"].as_str(), d["source"].as_str())).collect();
    let expected = ["single", "thousand"]
        .map(|case| ["poll", "rskafka", "paged-read"].map(|source| (Some(case), Some(source))));
    assert_eq!(named, expected.concat());
    for drain in drains {
        let rounds = drain["rounds"].as_array().expect("rounds");
        assert_eq!(rounds.len(), 2);
        assert!(rounds.iter().all(|round| round["events"] == EVENTS), "{drain}");
        assert!(spread_is_sound(&drain["events_per_second"]), "{drain}");
        assert_eq!(drain["duplicates"], 0);
    }
    let poll = &drains[0];
    assert!(
        spread_is_sound(&poll["peak_rss_mib"]) && spread_is_sound(&poll["cpu_seconds_per_1000"]),
        "{poll}"
    );
    assert_eq!(poll["ratios"][0]["to"], "the slower of rskafka and paged-read");

    let latency = &report["latencies"][0];
    assert_eq!((&latency["source"], &latency["events_per_second"]), (&json!("poll"), &json!(50)));
    let measured: Vec<_> =
        latency["rounds"].as_array().into_iter().flatten().filter(|r| !r.is_null()).collect();
    assert_eq!(measured.len() + late.len(), 2, "a round is measured or void");
    assert!(measured.iter().all(|round| round["events"].as_u64() > Some(50)), "{latency}");
    for spread in [&latency["transaction_ms_p50"], &latency["commit_to_append_ms"]["max"]] {
        assert!(measured.is_empty() || spread_is_sound(spread), "{latency}");
    }
    assert!(report["floor"]["produce_round_trip_ms"]["p50"].as_f64() > Some(0.0));

    nothing_is_left(&report, &environment).await;
}

#[tokio::test]
async fn everyone_applies_the_whole_backlog() {
    let url = service("DATABASE_URL");
    let environment = settings(&[("DATABASE_URL", &url), ("KAFKA_BROKERS", &service("KAFKA_BROKERS"))]);
    let events = EVENTS.to_string();
    let arguments = [
        "bench",
        "consume",
        "--events",
        &events,
        "--pairs",
        "1",
        "--owners",
        "7",
        "--rates",
        "400",
        "--seconds",
        "1",
        "--json",
    ];
    let ended = run(&environment, &arguments).await;
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    let report: Value = serde_json::from_str(&ended.stdout).expect("one document");
    // A machine that is busy with other tests may make the producer late: then the report has to say so.
    let late = report["void"].as_array().expect("a list");
    let is_late =
        |v: &Value| v.as_str().is_some_and(|v| v.starts_with("round 1 of 400 events/s: the producer was"));
    assert!(late.iter().all(is_late), "{late:?}");
    assert_eq!((&report["events"], &report["owners"]), (&json!(EVENTS), &json!(8)));
    let rows = report["rows"].as_array().expect("rows");
    let named: Vec<_> = rows.iter().map(|row| row["who"].as_str().expect("a name")).collect();
    assert_eq!(named, ["consumer", "bare-sql", "three-transactions"]);
    for row in rows {
        assert!(
            spread_is_sound(&row["events_per_second"]) && spread_is_sound(&row["consumer_ratio"]),
            "{row}"
        );
    }
    assert_eq!(rows[0]["rounds"][0]["events"], EVENTS);
    assert!(spread_is_sound(&rows[0]["peak_rss_mib"]), "{}", rows[0]);
    let steady = &report["steady"][0];
    assert_eq!(steady["events_per_second"], 400);
    if late.is_empty() {
        assert_eq!(steady["rounds"][0]["events"], 1_200, "two seconds of warm-up");
        for spread in
            [&steady["append_to_applied_ms"]["p99"], &steady["peak_rss_mib"], &steady["cpu_seconds_per_1000"]]
        {
            assert!(spread_is_sound(spread), "{steady}");
        }
    }
    nothing_is_left(&report, &environment).await;
}

#[tokio::test]
async fn what_the_calculations_take_is_measured_whole() {
    let environment = settings(&[("DATABASE_URL", &service("DATABASE_URL"))]);
    let arguments = [
        "bench",
        "business",
        "--rounds",
        "1",
        "--miners",
        "2000",
        "--owners",
        "20",
        "--points",
        "1500",
        "--seconds",
        "2",
        "--json",
    ];
    let ended = run(&environment, &arguments).await;
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    let report: Value = serde_json::from_str(&ended.stdout).expect("one document");
    let backtests = report["backtests"].as_array().expect("rows");
    assert_eq!(backtests.len(), 11);
    assert!(backtests.iter().all(|row| row["days"] == 1_826 && spread_is_sound(&row["ms"])), "{backtests:?}");
    assert!(backtests.iter().filter(|row| row["sales"].as_u64() > Some(0)).count() > 5, "{backtests:?}");
    let curtailment = report["curtailment"].as_array().expect("rows");
    for row in curtailment {
        assert_eq!((&row["classes"], &row["steps"]), (&json!(20), &json!(288)));
        assert!(row["gap_percent"].as_f64() <= Some(0.5) && spread_is_sound(&row["ms"]), "{row}");
    }
    assert_eq!(curtailment.len(), 3);
    let miners: Vec<_> =
        report["fleets"].as_array().expect("rows").iter().map(|row| &row["miners"]).collect();
    assert_eq!(miners, [&json!(1_000), &json!(2_000)]);
    let owners = &report["owners"];
    assert_eq!((&owners["events"], &owners["recalculations"]), (&json!(100), &json!(20)));
    assert_eq!(report["telemetry"]["points"], 3_000);
    assert!(report["telemetry"]["cores"].as_f64() > Some(0.0));
    no_database_is_left(&report, &environment).await;
}

async fn no_database_is_left(report: &Value, environment: &BTreeMap<String, String>) {
    let name = report["name"].as_str().expect("a name");
    let mut conn = PgConnection::connect(&environment["DATABASE_URL"]).await.expect("PostgreSQL");
    let left: i64 = sqlx::query_scalar("select count(*) from pg_database where datname = $1")
        .bind(name)
        .fetch_one(&mut conn)
        .await
        .expect("catalogue");
    assert_eq!(left, 0, "the database is dropped");
}

async fn nothing_is_left(report: &Value, environment: &BTreeMap<String, String>) {
    no_database_is_left(report, environment).await;
    let name = report["name"].as_str().expect("a name");
    let log =
        KafkaLog::connect(&load_from(None, environment).expect("valid").config.kafka).await.expect("Kafka");
    let topics: Vec<String> = (1..40)
        .flat_map(|run| [format!("{name}_{run}"), format!("{name}_{run}.miner"), format!("{name}.miner")])
        .chain([format!("{name}_0_1.miner"), format!("{name}_0_1.ops")])
        .collect();
    let topics = log.describe_topics(&topics).await.expect("asked");
    assert!(topics.is_empty(), "the topics are deleted: {topics:?}");
}
