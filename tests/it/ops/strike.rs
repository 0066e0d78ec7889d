//! The strike automation: windows of five minutes that switch a site, whoever restarts in between.

use chrono::{DateTime, TimeDelta, Utc};
use hashinsight::domain::ops::strike::{Observed, StrikeAutomation, observe};
use hashinsight::jobs::Job;
use serde_json::{Value, json};

use super::{MARKET, at, kinds, receive, this_hour, told, work};
use crate::support::{TestApi, TestDb};

const HOLD: Observed = Observed { sites: 1, curtailed: 0, resumed: 0 };
const CURTAIL: Observed = Observed { curtailed: 1, ..HOLD };
const RESUME: Observed = Observed { resumed: 1, ..HOLD };
const NOTHING: Observed = Observed { sites: 0, curtailed: 0, resumed: 0 };

/// A site with a rule, and the hour whose windows its test lets it see.
async fn site() -> (TestDb, TestApi, DateTime<Utc>) {
    let db = TestDb::new().await;
    let api = TestApi::start(&db).await;
    let body = json!({"market": MARKET, "strike_low_usd_mwh": 60, "strike_high_usd_mwh": 200});
    api.put("/api/ops/settings", body).await.expect(200);
    (db, api, this_hour())
}

/// The middle of a window of an hour.
fn window(hour: DateTime<Utc>, n: i64) -> DateTime<Utc> {
    hour + TimeDelta::seconds(n * 300 + 150)
}

async fn observed(here: (&TestDb, &TestApi), hour: DateTime<Utc>, n: i64) -> Observed {
    at(here, window(hour, n), async |tx, caller| observe(tx, caller).await.expect("observed")).await
}

async fn automation(api: &TestApi) -> Value {
    api.get("/api/ops/settings").await.expect(200).body["data"]["automation"].clone()
}

#[tokio::test]
async fn windows_switch_a_site_off_and_on() {
    let (db, api, hour) = site().await;
    let here = (&db, &api);
    assert_eq!(observed(here, hour, 0).await, NOTHING, "no price");
    receive(&api, hour, 300, &[61, 61, 59, 59, 59, 59, 201, 59]).await;
    assert_eq!(observed(here, hour, 0).await, HOLD, "the first look");
    assert_eq!(automation(&api).await["resumed_at"], Value::Null, "it was never off");
    for (n, expected) in [(1, CURTAIL), (2, HOLD), (3, HOLD), (4, HOLD), (5, RESUME), (6, CURTAIL)] {
        assert_eq!(observed(here, hour, n).await, expected, "window {n}");
        // Called again, by another process, after a restart: the window counts once.
        assert_eq!(observed(here, hour, n).await, NOTHING, "window {n} again");
    }
    let all = ["started", "ended", "started"].map(|what| format!("ops.curtailment_{what}"));
    assert_eq!(kinds(&db, "ops.curtailment").await, all);
    let data = told(&db, "ops.curtailment_started").await;
    assert_eq!((&data["source"], &data["price_usd_mwh"]), (&json!("strike"), &json!(201)));
    let shown = automation(&api).await;
    assert_eq!((&shown["phase"], &shown["windows"]), (&json!("curtailed"), &json!(0)));
    assert_eq!(shown["since"], json!(window(hour, 6)));
    assert_eq!(shown["resumed_at"], json!(window(hour, 5)));
}

/// A price that comes after its window still counts; one that never comes ends the count.
#[tokio::test]
async fn late_windows_count_and_missing_ones_do_not() {
    let (db, api, hour) = site().await;
    let here = (&db, &api);
    receive(&api, hour, 300, &[61]).await;
    assert_eq!(observed(here, hour, 0).await, HOLD);
    assert_eq!(observed(here, hour, 1).await, NOTHING, "not yet known");
    receive(&api, hour + TimeDelta::seconds(300), 300, &[61]).await;
    assert_eq!(observed(here, hour, 2).await, CURTAIL, "the window before");
    // Windows 2 to 4 never had a price: 5 is the first of a new count.
    receive(&api, hour + TimeDelta::seconds(1_500), 300, &[59, 59, 59, 59]).await;
    assert_eq!(observed(here, hour, 7).await, HOLD);
    assert_eq!(observed(here, hour, 8).await, RESUME);
    // Off and on again before anybody heard of it is nothing to tell.
    receive(&api, hour + TimeDelta::seconds(2_700), 300, &[201, 1, 1, 1, 1]).await;
    let before = kinds(&db, "ops.curtailment").await;
    assert_eq!(observed(here, hour, 13).await, HOLD);
    assert_eq!(kinds(&db, "ops.curtailment").await, before);
}

#[tokio::test]
async fn a_site_begins_with_the_present_and_ends_with_its_rule() {
    let (db, api, hour) = site().await;
    let here = (&db, &api);
    receive(&api, hour, 300, &[999, 999, 1, 999]).await;
    assert_eq!(observed(here, hour, 2).await, HOLD, "what was before it is none of its business");
    assert_eq!(observed(here, hour, 3).await, CURTAIL);
    api.put("/api/ops/settings", json!({"market": MARKET})).await.expect(200);
    assert_eq!(
        observed(here, hour, 3).await,
        Observed { resumed: 1, ..NOTHING },
        "nobody would ever resume it"
    );
    assert_eq!(observed(here, hour, 3).await, NOTHING);
    assert_eq!(kinds(&db, "ops.curtailment").await, ["ops.curtailment_started", "ops.curtailment_ended"]);
    assert_eq!(automation(&api).await, Value::Null);
}

/// Two hours have a price: whichever window is the present one.
#[tokio::test]
async fn the_job_looks_at_the_present_every_five_minutes() {
    let (db, api, hour) = site().await;
    assert_eq!(StrikeAutomation.schedule().period().as_secs(), 300);
    receive(&api, hour, 300, &[201; 24]).await;
    work((&db, &api), &StrikeAutomation).await;
    assert_eq!(kinds(&db, "ops.curtailment").await, ["ops.curtailment_started"]);
    assert_eq!(automation(&api).await["phase"], "curtailed");
}

/// Two runners at once, and another tenant with the same names.
#[tokio::test]
async fn two_who_observe_at_once_switch_once_and_only_their_tenant() {
    let (db, api, hour) = site().await;
    receive(&api, hour, 300, &[201]).await;
    let (one, two) = tokio::join!(observed((&db, &api), hour, 0), observed((&db, &api), hour, 0));
    assert_eq!(one.curtailed + two.curtailed, 1);
    assert_eq!(kinds(&db, "ops.curtailment").await, ["ops.curtailment_started"]);
    let mut tx =
        db.db.tenant(&format!("{}-other", api.tenant).parse().expect("a tenant")).await.expect("begin");
    let actor = "clock".parse().expect("a user");
    let caller = hashinsight::domain::Caller {
        actor: &actor,
        request_id: "sweep",
        traceparent: "",
        now: window(hour, 0),
    };
    assert_eq!(observe(&mut tx, caller).await.expect("observed"), NOTHING);
}
