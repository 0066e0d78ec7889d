//! Miners whose telemetry no longer comes: found by the sweep, each minute once, and never because the group is behind.

use std::sync::Arc;

use chrono::{DateTime, DurationRound, TimeDelta, Utc};
use hashinsight::economics::Assumptions;
use hashinsight::projection::intelligence::silence::{SilentMiners, sweep};
use serde_json::{Value, json};

use super::{Site, is_told, near, run_job, text};

const OPENED: (&str, &str) = ("anomaly.opened", "offline");
const RESOLVED: (&str, &str) = ("anomaly.resolved", "offline");

/// Points keep microseconds.
fn whole_second(at: DateTime<Utc>) -> DateTime<Utc> {
    at.duration_trunc(TimeDelta::seconds(1)).expect("a time")
}

impl Site {
    /// Sweeps as the clock would that shows so many minutes from now; returns how many miners were looked at.
    pub(super) async fn sweep(&self, now: DateTime<Utc>, minutes: i64) -> i64 {
        let tenant = self.api.tenant.parse().expect("a tenant");
        let mut tx = self.db.db.tenant(&tenant).await.expect("begin");
        let now = now + TimeDelta::minutes(minutes);
        let looked = sweep(&mut tx, &Assumptions::default(), now, 100).await.expect("swept");
        tx.commit().await.expect("commit");
        looked
    }

    /// A point of so many minutes ago.
    async fn report(&self, miner: &str, now: DateTime<Utc>, minutes_ago: i64) {
        let at = text(now - TimeDelta::minutes(minutes_ago));
        self.post(&[json!({"miner_id": miner, "at": at, "hashrate_ths": 200})]).await;
    }
}

#[tokio::test]
async fn a_silent_miner_is_found_after_two_minutes_and_back_after_three() {
    let site = Site::priced().await;
    let now = whole_second(site.db.db.now());
    let (silent, talking) = (site.miner(json!({})).await, site.miner(json!({})).await);
    let never = site.miner(json!({})).await;
    site.report(&silent, now, 9).await;
    site.report(&talking, now, 1).await;
    site.judge().await;
    assert_eq!(site.sweep(now, 0).await, 0, "nine minutes are not yet silence");

    assert_eq!(site.sweep(now, 2).await, 1);
    assert_eq!(site.sweep(now, 2).await, 0, "a minute counts once");
    assert_eq!(site.anomalies("state=all").await, [] as [Value; 0]);
    site.sweep(now, 3).await;
    let found = site.anomalies("").await;
    assert_eq!(found.len(), 1, "{found:#?}, not {talking}, not {never}");
    let one = &found[0];
    assert_eq!((&one["kind"], &one["miner_id"]), (&json!("offline"), &json!(silent)));
    assert_eq!((&one["measured"], &one["expected"]), (&json!(12 * 60), &json!(600)));
    // Nothing hashes that nobody hears of.
    assert_eq!(one["severity"], "medium");
    near(&one["lost_usd_day"], 7.511124);
    is_told(&site.told().await, &[OPENED]);
    site.sweep(now, 4).await;
    assert_eq!(site.anomalies("").await[0]["measured"], json!(13 * 60));

    // It reports again, and the sweep sees it before the group does.
    site.report(&silent, now, 0).await;
    for minutes in [5, 6] {
        site.sweep(now, minutes).await;
    }
    assert_eq!(site.anomalies("").await.len(), 1);
    site.sweep(now, 7).await;
    assert_eq!(site.anomalies("").await, [] as [Value; 0]);
    assert_eq!(site.anomalies("state=resolved").await[0]["resolution"], "recovered");
    is_told(&site.told().await, &[OPENED, RESOLVED]);
    site.judge().await;
    assert_eq!(site.sweep(now, 8).await, 0, "there is nothing to remember");
}

#[tokio::test]
async fn a_group_that_is_behind_makes_nobody_silent() {
    let site = Site::priced().await;
    let now = whole_second(site.db.db.now());
    let miner = site.miner(json!({})).await;
    site.report(&miner, now, 30).await;
    site.judge().await;
    site.report(&miner, now, 1).await;
    for minutes in 0..4 {
        assert_eq!(site.sweep(now, minutes).await, 1, "it is looked at");
    }
    assert_eq!(site.anomalies("state=all").await, [] as [Value; 0]);
}

#[tokio::test]
async fn off_on_purpose_is_not_silent_and_gone_is_settled() {
    let site = Site::priced().await;
    let now = whole_second(site.db.db.now());
    let (repaired, removed) = (site.miner(json!({})).await, site.miner(json!({})).await);
    for miner in [&repaired, &removed] {
        site.report(miner, now, 30).await;
    }
    site.judge().await;
    let status = format!("/api/miners/{repaired}/status");
    site.api.patch(&status, json!({"status": "maintenance"})).await.expect(200);
    for minutes in 0..3 {
        site.sweep(now, minutes).await;
    }
    let found = site.anomalies("state=all").await;
    assert_eq!(found.iter().map(|a| &a["miner_id"]).collect::<Vec<_>>(), [&json!(removed)]);
    site.api.delete(&format!("/api/miners/{removed}")).await.expect(200);
    site.sweep(now, 3).await;
    let settled = site.anomalies("state=all").await;
    assert_eq!(
        (&settled[0]["state"], &settled[0]["resolution"]),
        (&json!("resolved"), &json!("out-of-service"))
    );
    is_told(&site.told().await, &[OPENED, RESOLVED]);
}

#[tokio::test]
async fn the_sweep_is_scheduled_work_for_those_who_need_it() {
    let site = Site::priced().await;
    let now = whole_second(site.db.db.now());
    let miner = site.miner(json!({})).await;
    let run = async || {
        let tenants = run_job(&site.db, Arc::new(SilentMiners { assumptions: Assumptions::default() })).await;
        // The next run is that of another minute.
        site.db.execute("update miner_detector set swept_to = swept_to - interval '2 minutes'").await;
        tenants
    };
    site.report(&miner, now, 30).await;
    site.judge().await;
    assert_eq!((run().await, run().await), (1, 1));
    assert_eq!(site.anomalies("").await[0]["kind"], "offline");
    is_told(&site.told().await, &[OPENED]);

    site.report(&miner, now, 0).await;
    site.judge().await;
    assert_eq!((run().await, run().await, run().await), (1, 1, 1));
    is_told(&site.told().await, &[OPENED, RESOLVED]);
    assert_eq!(run().await, 0, "nobody is silent, and nothing is open");
}
