//! Miners that a plan or the strike automation holds off: they are no anomaly, and those beside them are.

use chrono::{DurationRound, TimeDelta, Utc};
use hashinsight::domain::Caller;
use hashinsight::domain::ops::strike::observe;
use serde_json::{Value, json};

use super::Site;

impl Site {
    /// Four windows from a number on in which none of these miners hashes.
    async fn dead(&self, first: i64, miners: &[&str]) {
        for window in first..first + 4 {
            let points: Vec<Value> = miners.iter().map(|miner| self.point(miner, window, 0.0)).collect();
            self.post(&points).await;
            self.judge().await;
        }
    }

    /// The miners with an open anomaly of their hashrate.
    async fn found(&self) -> Vec<String> {
        let open = self.anomalies("").await;
        let of_hashrate = open.iter().filter(|anomaly| anomaly["kind"] == "hashrate");
        of_hashrate.map(|anomaly| anomaly["miner_id"].as_str().expect("an id").to_owned()).collect()
    }

    /// A plan that executes, as if it had begun two hours ago at least.
    async fn begun(&self, body: Value) -> String {
        let made = self.api.post("/api/ops/plans", body).await.expect(201);
        self.db
            .execute(
                "update ops_plan set status = 'executing', curtailing = true, \
                 starts_at = least(starts_at, now() - interval '2 hours')",
            )
            .await;
        made.body["plan_id"].as_str().expect("an id").to_owned()
    }

    /// Everything known of the miners' windows forgotten, so that they can be judged again.
    async fn forget(&self) {
        for statement in ["delete from miner_detector", "delete from anomaly"] {
            self.db.execute(statement).await;
        }
    }
}

#[tokio::test]
async fn the_machines_of_a_cut_are_left_alone_until_they_have_been_back_for_an_hour() {
    let site = Site::priced().await;
    let (cut, beside) = (site.miner(json!({"location": "south"})).await, site.miner(json!({})).await);
    site.begun(json!({
        "kind": "cut", "target_kw": 3, "strategy": "custom", "filter": {"locations": ["south"]},
        "ends_at": Utc::now() + TimeDelta::hours(1),
    }))
    .await;
    site.dead(0, &[&cut, &beside]).await;
    assert_eq!(site.found().await, [beside.as_str()]);
    for (what, holds) in [
        ("status = 'cancelled', recovered_at = null", false),
        ("status = 'approved', recovered_at = null", false),
        ("status = 'recovery_pending', ends_at = now() - interval '70 minutes', recovered_at = now()", true),
        ("status = 'completed', recovered_at = now() - interval '60 minutes'", true),
        ("status = 'completed', recovered_at = now() - interval '3 hours'", false),
        ("status = 'cancelled', stopped = true, recovered_at = now() - interval '60 minutes'", true),
        ("status = 'executing', recovered_at = null", true),
    ] {
        site.db.execute(&format!("update ops_plan set curtailing = false, {what}")).await;
        site.forget().await;
        site.dead(4, &[&cut, &beside]).await;
        let expected = if holds { vec![beside.as_str()] } else { vec![cut.as_str(), beside.as_str()] };
        let mut found = site.found().await;
        found.sort_by_key(|id| *id != cut);
        assert_eq!(found, expected, "{what}");
        site.db.execute("delete from miner_telemetry").await;
    }
}

/// At $70 a MWh an S21 earns and an S19j Pro does not.
#[tokio::test]
async fn of_an_optimum_the_classes_that_are_off_are_left_alone() {
    let site = Site::priced().await;
    let (old, new) = (site.miner(json!({"model": "S19j Pro"})).await, site.miner(json!({})).await);
    let hour = Utc::now().duration_trunc(TimeDelta::hours(1)).expect("a time");
    let prices = [-2, -1, 0]
        .map(|n| json!({"start": hour + TimeDelta::hours(n), "seconds": 3600, "price_usd_mwh": 70}));
    site.begun(json!({"kind": "optimum", "prices": prices})).await;
    site.dead(0, &[&old, &new]).await;
    assert_eq!(site.found().await, [new]);
}

#[tokio::test]
async fn a_site_that_the_strike_automation_switched_off_is_left_alone() {
    let site = Site::priced().await;
    let (own, bobs) = (site.miner(json!({})).await, site.miner(json!({"owner_id": "bob"})).await);
    let rule = json!({"market": "WEST", "strike_low_usd_mwh": 60, "strike_high_usd_mwh": 200});
    site.api.put("/api/ops/settings", rule).await.expect(200);
    let window = Utc::now().duration_trunc(TimeDelta::minutes(5)).expect("a time");
    let price = json!({"start": window, "seconds": 300, "price_usd_mwh": 999});
    site.api.post("/api/ops/prices", json!({"market": "WEST", "prices": [price]})).await.expect(201);
    let tenant = site.api.tenant.parse().expect("a tenant");
    let mut tx = site.db.db.tenant(&tenant).await.expect("begin");
    let actor = "clock".parse().expect("a user");
    let caller = Caller { actor: &actor, request_id: "sweep", traceparent: "", now: window };
    assert_eq!(observe(&mut tx, caller).await.expect("observed").curtailed, 1);
    tx.commit().await.expect("commit");

    let of_all = async || {
        let path = "/api/intelligence/anomalies";
        let admin = site.api.admin_token();
        let list = site.api.ask(&admin, reqwest::Method::GET, path, None).await.expect(200).body;
        let of_hashrate = |anomaly: &&Value| anomaly["kind"] == "hashrate";
        let mut found: Vec<String> = list["data"]
            .as_array()
            .expect("a list")
            .iter()
            .filter(of_hashrate)
            .map(|anomaly| anomaly["miner_id"].as_str().expect("an id").to_owned())
            .collect();
        found.sort_by_key(|id| *id != own);
        found
    };
    for (what, holds) in [
        ("since = now() - interval '2 hours'", true),
        ("phase = 'running', since = now(), resumed_at = now() - interval '3 hours'", false),
        ("resumed_at = now() - interval '30 minutes'", true),
        // It runs since the automation's first look, and was never off.
        ("resumed_at = null", false),
        // It went off after the windows.
        ("phase = 'curtailed', since = now()", false),
    ] {
        site.db.execute(&format!("update ops_strike set {what}")).await;
        site.forget().await;
        site.dead(0, &[&own, &bobs]).await;
        let expected = if holds { vec![bobs.as_str()] } else { vec![own.as_str(), bobs.as_str()] };
        assert_eq!(of_all().await, expected, "{what}");
        site.db.execute("delete from miner_telemetry").await;
    }
}

/// A machine that is off does not report either.
#[tokio::test]
async fn who_is_held_off_is_not_silent() {
    let site = Site::priced().await;
    let now = site.db.db.now();
    let (cut, beside) = (site.miner(json!({"location": "south"})).await, site.miner(json!({})).await);
    // Of one whose site the strike automation holds off.
    let bobs = site.miner(json!({"owner_id": "bob"})).await;
    let tenant = &site.api.tenant;
    site.db
        .execute(&format!(
            "insert into ops_strike (tenant_id, owner_id, market, phase, windows, last_window, since) \
             values ('{tenant}', 'bob', 'WEST', 'curtailed', 0, 1, now() - interval '1 hour')"
        ))
        .await;
    for miner in [&cut, &beside, &bobs] {
        let at =
            super::text(now.duration_trunc(TimeDelta::seconds(1)).expect("a time") - TimeDelta::minutes(30));
        site.post(&[json!({"miner_id": miner, "at": at, "hashrate_ths": 200})]).await;
    }
    site.judge().await;
    let plan = site
        .begun(json!({
            "kind": "cut", "target_kw": 3, "strategy": "custom", "filter": {"locations": ["south"]},
            "ends_at": Utc::now() + TimeDelta::hours(1),
        }))
        .await;
    for minutes in 0..3 {
        assert_eq!(site.sweep(now, minutes).await, 3);
    }
    let silent = site.anomalies("").await;
    assert_eq!(silent.iter().map(|a| &a["miner_id"]).collect::<Vec<_>>(), [&json!(beside)]);
    site.db
        .execute(&format!("update ops_plan set status = 'cancelled', curtailing = false where id = '{plan}'"))
        .await;
    for minutes in 3..6 {
        site.sweep(now, minutes).await;
    }
    assert_eq!(site.anomalies("").await.len(), 2);
}
