//! The strike automation: windows of five minutes that switch a site, whoever restarts in between.

use chrono::{DateTime, TimeDelta, Utc};
use hashinsight::domain::ops::strike::{Observed, StrikeAutomation, observe};
use hashinsight::jobs::Job;
use serde_json::{Value, json};

use super::{MARKET, at, kinds, receive, somebody_waits, this_hour, told, work};
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
    let hour = this_hour();
    since(&db, hour - TimeDelta::days(1)).await;
    (db, api, hour)
}

/// As if the rule had been set at a moment.
async fn since(db: &TestDb, at: DateTime<Utc>) {
    let at = at.to_rfc3339();
    db.execute(&format!("update ops_settings set updated_at = '{at}', strike_since = '{at}'")).await;
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
    let actor = "clock".parse().expect("a user");
    let caller = hashinsight::domain::Caller {
        actor: &actor,
        request_id: "sweep",
        traceparent: "",
        now: window(hour, 0),
    };
    let mut first = db.db.tenant(&api.tenant.parse().expect("a tenant")).await.expect("begin");
    assert_eq!(observe(&mut first, caller).await.expect("observed"), CURTAIL);
    let end = async {
        somebody_waits(&db).await;
        first.commit().await.expect("commit");
    };
    let (later, ()) = tokio::join!(observed((&db, &api), hour, 0), end);
    assert_eq!(later, NOTHING);
    assert_eq!(kinds(&db, "ops.curtailment").await, ["ops.curtailment_started"]);
    let mut tx =
        db.db.tenant(&format!("{}-other", api.tenant).parse().expect("a tenant")).await.expect("begin");
    assert_eq!(observe(&mut tx, caller).await.expect("observed"), NOTHING);
}

/// Prices from before a rule was set say nothing to it, though an earlier one had looked at prices.
#[tokio::test]
async fn a_rule_that_is_set_again_begins_with_the_present() {
    let (db, api, hour) = site().await;
    let here = (&db, &api);
    let rule = |low: i64| json!({"market": MARKET, "strike_low_usd_mwh": low, "strike_high_usd_mwh": 200});
    receive(&api, hour, 300, &[1, 1, 999, 1, 61, 61]).await;
    assert_eq!(observed(here, hour, 0).await, HOLD);
    api.put("/api/ops/settings", json!({"market": MARKET})).await.expect(200);
    assert_eq!(observed(here, hour, 2).await, NOTHING, "no rule");
    api.put("/api/ops/settings", rule(60)).await.expect(200);
    since(&db, window(hour, 3)).await;
    assert_eq!(observed(here, hour, 3).await, HOLD, "the dear window was before");
    // A rule that is changed while it is on keeps its count, also where a window is looked at late.
    assert_eq!(observed(here, hour, 4).await, HOLD);
    api.put("/api/ops/settings", rule(55)).await.expect(200);
    assert_eq!(observed(here, hour, 6).await, CURTAIL, "the second above");
}

/// What switches is the price that the site pays, and the window told is the one that did it.
#[tokio::test]
async fn delivery_counts_and_the_cause_is_told() {
    let (db, api, hour) = site().await;
    let here = (&db, &api);
    let rule = json!({"market": MARKET, "strike_low_usd_mwh": 60, "strike_high_usd_mwh": 200,
                      "delivery_usd_mwh": "10.5"});
    api.put("/api/ops/settings", rule).await.expect(200);
    receive(&api, hour, 300, &[40, 49, 50, 51, 1]).await;
    assert_eq!(observed(here, hour, 1).await, HOLD, "59.5");
    assert_eq!(observed(here, hour, 4).await, CURTAIL, "60.5 and 61.5, then one below");
    let data = told(&db, "ops.curtailment_started").await;
    assert_eq!((&data["price_usd_mwh"], &data["delivery_usd_mwh"]), (&json!(61.5), &json!(10.5)));
    assert_eq!(data["window"], json!(hour.timestamp() / 300 + 3), "not the newest");
    assert_eq!(data["strike_low_usd_mwh"], json!(60));
}

/// A site stays as it is without prices, and whoever looks is told.
#[tokio::test]
async fn an_automation_without_new_prices_says_so() {
    let (db, api, hour) = site().await;
    receive(&api, hour, 300, &[1; 24]).await;
    let now = db.db.now();
    let observed =
        at((&db, &api), now, async |tx, caller| observe(tx, caller).await.expect("observed")).await;
    assert_eq!(observed, HOLD);
    let shown = automation(&api).await;
    let of = now.timestamp() / 300;
    assert_eq!(shown["as_of"], json!(DateTime::from_timestamp(of * 300, 0).expect("a time")));
    assert_eq!((&shown["last_window"], &shown["warnings"]), (&json!(of), &json!([])));
    db.execute("update ops_strike set last_window = last_window - 7").await;
    assert_eq!(automation(&api).await["warnings"], json!(["prices-stale"]));
}
