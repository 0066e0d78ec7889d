//! Telemetry through the checks: what is found, what it costs, what is left alone, and what counts once.

use hashinsight::partitions::Upkeep;
use hashinsight::read_model::anomaly::retention;
use reqwest::Method;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::{GROUP, Site, apply, events_behind, is_told, near, text};

const OPENED: (&str, &str) = ("anomaly.opened", "hashrate");
const RESOLVED: (&str, &str) = ("anomaly.resolved", "hashrate");

#[tokio::test]
async fn a_failing_miner_is_found_costs_money_and_recovers() {
    let site = Site::priced().await;
    let miner = site.miner(json!({"quantity": 10})).await;
    site.healthy_hour(&miner).await;
    // Window 0 is over when the point of window 1 comes, and it is one of three.
    site.windows(&miner, 0, &[0.0, 0.0]).await;
    assert_eq!(site.anomalies("state=all").await, [] as [Value; 0]);
    site.windows(&miner, 2, &[300.0]).await;
    let found = site.anomalies("").await;
    assert_eq!(found.len(), 1, "{found:#?}");
    let one = &found[0];
    for (field, expected) in [
        ("kind", json!("hashrate")),
        ("level", json!("low")),
        ("state", json!("open")),
        ("severity", json!("medium")),
        ("miner_id", json!(miner)),
        ("user_id", json!(site.api.user)),
        ("opened_at", json!(text(site.at(2, 0)))),
        ("last_seen_at", json!(text(site.at(2, 0)))),
        ("resolved_at", Value::Null),
        ("expected", json!(200)),
        ("warnings", json!([])),
    ] {
        assert_eq!(one[field], expected, "{field}");
    }
    // Ten windows of 200 TH/s and two of nothing; ten machines of which each would earn $7.511124 a day.
    near(&one["measured"], 2000.0 / 12.0);
    near(&one["score"], 10.0 / 12.0);
    near(&one["lost_usd_day"], 7.511124 / 6.0 * 10.0);
    is_told(&site.told().await, &[OPENED]);

    // 183 TH/s of the hour at the end of window 3, 192 at that of window 4.
    site.windows(&miner, 3, &[300.0, 300.0, 300.0, 300.0]).await;
    assert_eq!(site.anomalies("").await.len(), 1);
    site.windows(&miner, 7, &[200.0]).await;
    let resolved = site.anomalies("state=resolved").await;
    assert_eq!(
        (&resolved[0]["anomaly_id"], &resolved[0]["resolution"]),
        (&one["anomaly_id"], &json!("recovered"))
    );
    assert_eq!(resolved[0]["last_seen_at"], text(site.at(4, 0)));
    assert_eq!(resolved[0]["resolved_at"], text(site.at(7, 0)));
    assert_eq!(site.anomalies("").await, [] as [Value; 0]);
    is_told(&site.told().await, &[OPENED, RESOLVED]);
    let data: Value = site
        .db
        .scalar("select payload -> 'data' from event_outbox where event_type = 'anomaly.resolved'")
        .await;
    assert_eq!(
        (&data["anomaly_id"], &data["lost_usd_day"]),
        (&one["anomaly_id"], &resolved[0]["lost_usd_day"])
    );
}

#[tokio::test]
async fn what_comes_late_or_again_opens_and_doubles_nothing() {
    let site = Site::priced().await;
    let miner = site.miner(json!({})).await;
    site.healthy_hour(&miner).await;
    site.windows(&miner, 0, &[0.0, 0.0, 0.0]).await;
    let before = site.anomalies("state=all").await;
    assert_eq!(before.len(), 1);

    // The batch once more, as a replay would bring it: the same windows.
    let (all, _) = events_behind(&site.db, 0).await;
    apply(&site.db, GROUP, &all).await;
    // Points of windows that were judged, good ones and bad ones.
    let late = [0, 1].map(|window| {
        let at = text(site.at(window, 3));
        json!({"miner_id": miner, "at": at, "hashrate_ths": 900})
    });
    site.post(&late).await;
    site.judge().await;
    assert_eq!(site.anomalies("state=all").await, before);
    is_told(&site.told().await, &[OPENED]);

    site.windows(&miner, 3, &[400.0, 400.0, 400.0, 400.0, 200.0, 200.0]).await;
    is_told(&site.told().await, &[OPENED, RESOLVED]);
    let late = [3, 4, 5].map(|window| {
        let at = text(site.at(window, 3));
        json!({"miner_id": miner, "at": at, "hashrate_ths": 0})
    });
    site.post(&late).await;
    site.judge().await;
    assert_eq!(site.anomalies("").await, [] as [Value; 0]);
    is_told(&site.told().await, &[OPENED, RESOLVED]);
}

/// What is found does not depend on how the points came in batches.
#[tokio::test]
async fn batches_may_be_cut_anywhere() {
    let site = Site::priced().await;
    let (bit_by_bit, at_once) = (site.miner(json!({})).await, site.miner(json!({"location": "south"})).await);
    let figures = [200.0, 0.0, 0.0, 400.0, 400.0, 400.0, 400.0, 0.0, 0.0, 0.0];
    site.healthy_hour(&bit_by_bit).await;
    site.windows(&bit_by_bit, 0, &figures).await;
    site.healthy_hour(&at_once).await;
    let points: Vec<Value> =
        (0..).zip(figures).map(|(window, ths)| site.point(&at_once, window, ths)).collect();
    site.post(&points).await;
    site.judge().await;
    let found = async |miner: &str| -> Vec<Value> {
        let mut list = site.anomalies(&format!("state=all&miner_id={miner}")).await;
        for anomaly in &mut list {
            let object = anomaly.as_object_mut().expect("an object");
            object.remove("anomaly_id");
            object.remove("miner_id");
        }
        list
    };
    let expected = found(&bit_by_bit).await;
    assert_eq!(expected.iter().map(|a| &a["state"]).collect::<Vec<_>>(), [&json!("resolved")]);
    assert_eq!(found(&at_once).await, expected);
}

#[tokio::test]
async fn a_miner_that_is_off_on_purpose_is_left_alone() {
    let site = Site::priced().await;
    let (repaired, started) = (site.miner(json!({})).await, site.miner(json!({})).await);
    for (miner, status) in [(&repaired, "maintenance"), (&started, "offline"), (&started, "online")] {
        let path = format!("/api/miners/{miner}/status");
        site.api.patch(&path, json!({"status": status})).await.expect(200);
    }
    for miner in [&repaired, &started] {
        site.windows(miner, 0, &[0.0; 5]).await;
    }
    assert_eq!(site.anomalies("state=all").await, [] as [Value; 0]);
    // The same miner once it has been on for an hour.
    site.db
        .execute("update miners set status_changed_at = now() - interval '3 hours' where status = 'online'")
        .await;
    site.windows(&started, 5, &[0.0; 4]).await;
    let found = site.anomalies("").await;
    assert_eq!(found.iter().map(|a| &a["miner_id"]).collect::<Vec<_>>(), [&json!(started)]);
    assert_eq!(found[0]["level"], "zero");
}

#[tokio::test]
async fn peers_of_a_site_tell_what_the_rating_does_not() {
    let site = Site::priced().await;
    let mut fleet = Vec::new();
    for _ in 0..8 {
        fleet.push(site.miner(json!({})).await);
    }
    let small =
        [site.miner(json!({"location": "south"})).await, site.miner(json!({"location": "south"})).await];
    for window in 0..4 {
        let mut points: Vec<Value> = fleet.iter().map(|miner| site.point(miner, window, 200.0)).collect();
        // 97 % of the rating is well by itself.
        points[5]["hashrate_ths"] = json!(194.0);
        points.push(site.point(&small[0], window, 200.0));
        points.push(site.point(&small[1], window, 194.0));
        // In two requests and batches: who was judged before is a peer all the same.
        let (first, second) = points.split_at(6);
        site.post(first).await;
        site.judge().await;
        site.post(second).await;
        site.judge().await;
    }
    let found = site.anomalies("").await;
    assert_eq!(found.len(), 1, "{found:#?}");
    assert_eq!((&found[0]["kind"], &found[0]["miner_id"]), (&json!("peers"), &json!(fleet[5])));
    assert_eq!((&found[0]["severity"], &found[0]["level"]), (&json!("low"), &Value::Null));
    near(&found[0]["lost_usd_day"], 7.511124 * 0.03);
}

#[tokio::test]
async fn power_and_heat_are_judged_and_only_of_air_cooled_miners() {
    let site = Site::priced().await;
    let (hot, wet) = (site.miner(json!({})).await, site.miner(json!({"model": "S21 XP+ Hyd"})).await);
    for window in 0..10 {
        let mut points = [site.point(&hot, window, 200.0), site.point(&wet, window, 500.0)];
        points[0]["power_w"] = json!(3000);
        for point in &mut points {
            point["temperature_c"] = json!(86.5);
        }
        site.post(&points).await;
        site.judge().await;
    }
    let found = site.anomalies(&format!("miner_id={hot}")).await;
    let shown: Vec<(&Value, &Value, &Value)> =
        found.iter().map(|a| (&a["kind"], &a["level"], &a["measured"])).collect();
    // The newest first.
    let expected =
        [(&json!("power"), &Value::Null, &json!(3000)), (&json!("heat"), &json!("critical"), &json!(86.5))];
    assert_eq!(shown, expected);
    assert_eq!(found[1]["lost_usd_day"], json!(0));
    assert_eq!(site.anomalies(&format!("state=all&miner_id={wet}")).await, [] as [Value; 0]);
}

#[tokio::test]
async fn a_drop_from_the_own_past_is_drift() {
    let site = Site::priced().await;
    // Rated far below what it does: the rating finds nothing.
    let miner = site.miner(json!({"model": "own", "hashrate_ths": 150, "power_w": 3000})).await;
    site.windows(&miner, -1, &[200.0, 200.2, 199.8, 200.0, 200.1, 199.9, 200.0, 200.0, 180.0, 180.0, 180.0])
        .await;
    let found = site.anomalies("").await;
    assert_eq!(found.iter().map(|a| &a["kind"]).collect::<Vec<_>>(), [&json!("drift")]);
    near(&found[0]["expected"], 200.0);
}

#[tokio::test]
async fn without_a_price_there_is_no_severity_and_an_old_price_is_said() {
    let site = Site::open().await;
    let miner = site.miner(json!({})).await;
    site.windows(&miner, 0, &[0.0, 0.0, 0.0]).await;
    let found = site.anomalies("").await;
    assert_eq!((&found[0]["severity"], &found[0]["lost_usd_day"]), (&Value::Null, &Value::Null));
    assert_eq!(found[0]["warnings"], json!(["no-snapshot"]));
    let mut old = super::snapshot();
    old["observed_at"] = json!(text(site.begin));
    site.api.post("/api/network/snapshots", old).await.expect(201);
    site.windows(&miner, 3, &[0.0]).await;
    let found = site.anomalies("").await;
    assert_eq!(
        (&found[0]["severity"], &found[0]["warnings"]),
        (&json!("medium"), &json!(["snapshot-stale"]))
    );
    near(&found[0]["lost_usd_day"], 7.511124);
    assert_eq!(found[0]["price_as_of"], text(site.begin));
}

#[tokio::test]
async fn lists_are_filtered_paged_and_kept_apart() {
    let site = Site::priced().await;
    let api = &site.api;
    let mut miners = Vec::new();
    for more in [json!({}), json!({"quantity": 4}), json!({"owner_id": "bob"})] {
        miners.push(site.miner(more).await);
    }
    for window in 0..3 {
        let points: Vec<Value> = miners.iter().map(|miner| site.point(miner, window, 0.0)).collect();
        site.post(&points).await;
        site.judge().await;
    }
    let path = "/api/intelligence/anomalies";
    let list = async |query: &str| {
        let admin = api.admin_token();
        api.ask(&admin, Method::GET, &format!("{path}?{query}"), None).await.expect(200).body
    };
    assert_eq!(site.anomalies("").await.len(), 2, "one's own");
    assert_eq!(list("").await["data"].as_array().map(Vec::len), Some(3), "the whole tenant");
    assert_eq!(list("user_id=bob").await["data"][0]["miner_id"], json!(miners[2]));
    assert_eq!(list("severity=high").await["data"][0]["miner_id"], json!(miners[1]));
    assert_eq!(list("severity=critical").await["data"], json!([]));
    assert_eq!(list("state=resolved").await["data"], json!([]));
    let mut seen = Vec::new();
    let mut query = "limit=1".to_owned();
    loop {
        let page = list(&query).await;
        seen.push(page["data"][0]["anomaly_id"].as_str().expect("one").to_owned());
        let Some(next) = page["next"].as_str() else { break };
        query = format!("limit=1&cursor={next}");
    }
    assert_eq!(seen.len(), 3);
    assert!(seen.is_sorted_by(|a, b| a > b), "newest first: {seen:?}");

    api.get(&format!("{path}?user_id=bob")).await.expect(403);
    api.ask(&api.token_with(&["portfolio:read"]), Method::GET, path, None).await.expect(403);
    let foreign = api.ask(&api.foreign_token(), Method::GET, &format!("{path}?state=all"), None).await;
    assert_eq!(foreign.expect(200).body["data"], json!([]));
    for (query, field) in [
        ("state=gone", "state"),
        ("severity=awful", "severity"),
        ("miner_id=7", "miner_id"),
        ("cursor=x", "cursor"),
        ("limit=0", "limit"),
    ] {
        assert_eq!(api.get(&format!("{path}?{query}")).await.expect(400).fields(), [field], "{query}");
    }
}

/// The hour before a window is known from when it was judged: its points are not read again.
#[tokio::test]
async fn the_hour_before_is_not_read_again() {
    let site = Site::priced().await;
    let miner = site.miner(json!({})).await;
    site.healthy_hour(&miner).await;
    site.windows(&miner, 0, &[0.0, 0.0]).await;
    site.db.execute(&format!("delete from miner_telemetry where at < '{}'", text(site.at(1, 0)))).await;
    site.windows(&miner, 2, &[200.0]).await;
    near(&site.anomalies("").await[0]["measured"], 2000.0 / 12.0);
    // A detector from before such hours were kept reads them.
    site.db.execute("update miner_detector set hour = null").await;
    site.windows(&miner, 3, &[200.0]).await;
    near(&site.anomalies("").await[0]["measured"], 200.0 / 2.0);
}

/// An anomaly is its owner's: with the miner it does not go over to another.
#[tokio::test]
async fn a_miner_that_changes_hands_leaves_its_anomalies_behind() {
    let site = Site::priced().await;
    let miner = site.miner(json!({})).await;
    site.healthy_hour(&miner).await;
    site.windows(&miner, 0, &[0.0, 0.0, 0.0]).await;
    assert_eq!(site.anomalies("").await.len(), 1);
    site.api.patch(&format!("/api/miners/{miner}"), json!({"owner_id": "bob"})).await.expect(200);
    assert_eq!(site.sweep(site.db.db.now(), 0).await, 1);
    let left = site.anomalies("state=all").await;
    assert_eq!((left.len(), &left[0]["resolution"]), (1, &json!("out-of-service")));
    // Two bad windows of his own, of which the first is the one that was under way.
    site.windows(&miner, 3, &[0.0, 0.0, 0.0]).await;
    let admin = site.api.admin_token();
    let path = "/api/intelligence/anomalies?user_id=bob";
    let his = site.api.ask(&admin, Method::GET, path, None).await.expect(200).body;
    assert_eq!(his["data"].as_array().map(Vec::len), Some(1), "{his}");
    assert_eq!(site.anomalies("").await, [] as [Value; 0]);
    is_told(&site.told().await, &[OPENED, RESOLVED, OPENED]);
}

#[tokio::test]
async fn what_is_resolved_goes_in_the_end_and_what_is_open_stays() {
    let site = Site::priced().await;
    let miner = site.miner(json!({})).await;
    site.healthy_hour(&miner).await;
    site.windows(&miner, 0, &[0.0, 0.0, 0.0, 400.0, 400.0, 400.0, 400.0, 200.0, 200.0]).await;
    assert_eq!(site.anomalies("state=resolved").await.len(), 1);
    let pass =
        async || retention(2).remove_old(&site.db.db, &CancellationToken::new()).await.expect("a pass");
    pass().await;
    assert_eq!(site.anomalies("state=all").await.len(), 1);
    site.db.execute("update anomaly set resolved_at = now() - interval '4 days'").await;
    let other = site.miner(json!({"location": "south"})).await;
    site.healthy_hour(&other).await;
    site.windows(&other, 0, &[0.0, 0.0, 0.0]).await;
    site.db.execute("update anomaly set opened_at = now() - interval '5 days'").await;
    pass().await;
    let kept = site.anomalies("state=all").await;
    assert_eq!(kept.iter().map(|a| &a["state"]).collect::<Vec<_>>(), [&json!("open")]);
}
