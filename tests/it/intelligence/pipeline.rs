//! From a write through the log to what is read: anomalies and forecasts, with the events that the group appends itself.

use chrono::{TimeDelta, Utc};
use hashinsight::config::EventLogKind;
use hashinsight::economics::anomaly::detector::window_end;
use serde_json::{Value, json};

use super::{snapshot, text};
use crate::support::pipeline::{Pipeline, Store, User, applied};

/// What an answer shows as soon as the event of a write is in it.
async fn after(user: &User<'_>, path: &str, write: &Value) -> Value {
    let event = write["event_id"].as_str().expect("an event");
    user.get(&format!("{path}after={event}&wait=10")).await
}

async fn failure_to_anomaly(log: EventLogKind) {
    let pipeline = Pipeline::start(log, Store::Memory).await;
    let alice = pipeline.user("acme", "alice");
    alice.post("/api/network/snapshots", &snapshot()).await;
    let miner = alice.post("/api/miners", &json!({"model": "S21", "status": "online"})).await;
    let begin = window_end(Utc::now()) - TimeDelta::minutes(40);
    let mut last = Value::Null;
    for window in 0..4 {
        let at = text(begin + TimeDelta::minutes(window * 5 + 1));
        let points = json!([{"miner_id": miner["miner_id"], "at": at, "hashrate_ths": 10}]);
        last = alice.post("/api/miners/telemetry", &json!({"points": points})).await;
    }
    let found = after(&alice, "/api/intelligence/anomalies?", &last).await;
    assert_eq!((&found["data"][0]["kind"], &found["data"][0]["level"]), (&json!("hashrate"), &json!("high")));
    assert_eq!(found["data"].as_array().map(Vec::len), Some(1));

    // What the group tells goes the way of any event: out, and past the group itself.
    let opened = pipeline.event_of("anomaly.opened").await;
    assert_eq!(opened["data"]["anomaly_id"], found["data"][0]["anomaly_id"]);
    assert_eq!(opened["user_id"], "alice");
    assert!(opened["causation_id"].is_string(), "the telemetry of some batch");
    for group in ["intel-group", "portfolio-recalc-group"] {
        pipeline.has_applied(group, &opened["event_id"]).await;
    }
    pipeline.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_is_found_through_the_log_in_postgres() {
    failure_to_anomaly(EventLogKind::Postgres).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_is_found_through_kafka() {
    failure_to_anomaly(EventLogKind::Kafka).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forecast_is_cached_until_there_is_a_new_one() {
    for (store, source) in [(Store::Memory, "memory"), (Store::Redis, "redis")] {
        let pipeline = Pipeline::start(EventLogKind::Postgres, store).await;
        let alice = pipeline.user("acme", "alice");
        let path = "/api/intelligence/forecast?";
        let first = alice.post("/api/network/snapshots", &snapshot()).await;
        let shown = after(&alice, path, &first).await;
        let loaded = json!({"cache_hit": false, "stale": false, "freshness_sec": 0, "source": "database"});
        assert_eq!((&shown["event_id"], &shown["metadata"]), (&first["event_id"], &loaded));
        let hit = alice.get(path).await;
        assert_eq!(
            (&hit["metadata"]["cache_hit"], &hit["metadata"]["source"]),
            (&json!(true), &json!(source))
        );
        assert_eq!((&hit["data"], &hit["version"]), (&shown["data"], &shown["version"]));

        let second = alice.post("/api/network/snapshots", &snapshot()).await;
        let newer = after(&alice, path, &second).await;
        assert_eq!((&newer["event_id"], &newer["metadata"]), (&second["event_id"], &loaded));
        assert!(newer["version"].as_i64() > shown["version"].as_i64());
        let hit = alice.get(path).await;
        assert_eq!((&hit["event_id"], &hit["metadata"]["cache_hit"]), (&second["event_id"], &json!(true)));
        // Without waiting: the consumer itself told the cache that its copy is old.
        let third = alice.post("/api/network/snapshots", &snapshot()).await;
        applied(pipeline.bells(), async || alice.get(path).await["event_id"] == third["event_id"]).await;
        pipeline.stop().await;
    }
}
