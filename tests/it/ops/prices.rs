//! Power prices and settings: what is taken, what is refused, what was known when.

use chrono::TimeDelta;
use hashinsight::domain::ops::price::PriceRetention;
use hashinsight::identifier::TenantId;
use hashinsight::jobs::{Job, Progress, Run};
use reqwest::Method;
use serde_json::{Value, json};

use super::{MARKET, intervals, kinds, receive, this_hour, told};
use crate::support::{TestApi, TestDb, problem, written};

#[tokio::test]
async fn a_bad_row_is_named_and_the_others_go_in() {
    let db = TestDb::new().await;
    let api = TestApi::start(&db).await;
    let start = this_hour();
    let mut rows = intervals(start, 300, &[10, -20, 30]);
    rows.push(json!({"start": start + TimeDelta::seconds(60), "seconds": 300, "price_usd_mwh": 1}));
    rows.push(json!({"start": start, "seconds": 3600, "price_usd_mwh": 1}));
    let taken = api.post("/api/ops/prices", json!({"market": MARKET, "prices": rows})).await.expect(201);
    let named: Vec<_> = taken.body["errors"]
        .as_array()
        .expect("errors")
        .iter()
        .map(|e| (e["row"].as_u64(), e["field"].as_str()))
        .collect();
    assert_eq!(named, [(Some(4), Some("start")), (Some(5), Some("start"))]);
    assert_eq!((&taken.body["accepted_count"], &taken.body["failed_count"]), (&json!(3), &json!(2)));
    assert_eq!(kinds(&db, "ops.").await, ["ops.price_received"], "once a request");
    let data = told(&db, "ops.price_received").await;
    assert_eq!((&data["market"], &data["intervals"]), (&json!(MARKET), &json!(3)));
    assert_eq!(data["to"], json!(start + TimeDelta::seconds(900)));
}

#[tokio::test]
async fn what_is_no_batch_leaves_nothing() {
    let db = TestDb::new().await;
    let api = TestApi::start(&db).await;
    let before = written(&db).await;
    let bad = json!([{"start": "2026-01-01T00:00:01Z", "seconds": 300, "price_usd_mwh": 1}]);
    for (body, fields) in [
        (json!({}), vec!["market", "prices"]),
        (json!({"market": "a:b", "prices": []}), vec!["market", "prices"]),
        (json!({"market": MARKET, "prices": bad}), vec!["start"]),
    ] {
        let refused = api.post("/api/ops/prices", body.clone()).await.expect(422);
        assert_eq!(refused.fields(), fields, "{body}");
    }
    let many = vec![json!({}); 2_017];
    let refused = api.post("/api/ops/prices", json!({"market": MARKET, "prices": many})).await;
    problem(&refused, 413, "too-many-rows");
    let token = api.token_with(&["ops:read"]);
    api.ask(&token, Method::POST, "/api/ops/prices", Some(json!({}))).await.expect(403);
    assert_eq!(written(&db).await, before);
}

/// The newest reception counts, and the earlier ones tell what was known when.
#[tokio::test]
async fn receptions_are_kept_and_the_newest_counts() {
    let db = TestDb::new().await;
    let api = TestApi::start(&db).await;
    let start = this_hour();
    for price in [10, 20, 30] {
        receive(&api, start, 3_600, &[price]).await;
    }
    let all: Vec<i64> =
        sqlx::query_scalar("select price_usd_mwh::bigint from power_price order by received_at")
            .fetch_all(&db.admin)
            .await
            .expect("receptions");
    assert_eq!(all, [10, 20, 30]);
    let newest: Vec<i64> = sqlx::query_scalar("select price_usd_mwh::bigint from power_price_newest")
        .fetch_all(&db.admin)
        .await
        .expect("the newest");
    assert_eq!(newest, [30]);
    for verb in ["update", "truncate"] {
        let may = format!("select has_table_privilege('hi_app', 'power_price', '{verb}')::int::bigint");
        assert_eq!(db.scalar::<i64>(&may).await, 0, "{verb}");
    }
}

#[tokio::test]
async fn prices_go_when_their_interval_is_older_than_any_that_is_taken() {
    let db = TestDb::new().await;
    let api = TestApi::start(&db).await;
    receive(&api, this_hour(), 3_600, &[1, 2, 3]).await;
    let theirs = json!({"market": MARKET, "prices": intervals(this_hour(), 3_600, &[4])});
    api.ask(&api.foreign_token(), Method::POST, "/api/ops/prices", Some(theirs)).await.expect(201);
    // Received just now: what counts is the time of the interval.
    db.execute(
        "update power_price set starts_at = date_trunc('hour', now()) \
         - case price_usd_mwh when 2 then interval '399 days' else interval '401 days' end where price_usd_mwh > 1",
    )
    .await;
    let kept = async || {
        let kept: Vec<i64> = sqlx::query_scalar("select price_usd_mwh::bigint from power_price order by 1")
            .fetch_all(&db.admin)
            .await
            .expect("prices");
        kept
    };
    let tenant = api.tenant.parse().expect("a tenant");
    let run = Run { id: "run".to_owned() };
    // Whatever it asks for, the API's role deletes no younger ones.
    let mut tx = db.db.tenant(&tenant).await.expect("begin");
    sqlx::query("delete from power_price where price_usd_mwh < 3").execute(tx.conn()).await.expect("deleted");
    assert_eq!(PriceRetention.run(&mut tx, &run).await.expect("run"), Progress::Done);
    tx.commit().await.expect("commit");
    assert_eq!(kept().await, [1, 2, 4], "the other tenant's turn comes");
    let due: Vec<(TenantId,)> = db.db.across_tenants(PriceRetention.tenants(), &[]).await.expect("tenants");
    assert_eq!(due.len(), 1);
    let mut tx = db.db.tenant(&due[0].0).await.expect("begin");
    PriceRetention.run(&mut tx, &run).await.expect("run");
    tx.commit().await.expect("commit");
    assert_eq!(kept().await, [1, 2]);
}

#[tokio::test]
async fn settings_are_replaced_as_a_whole_and_told_once() {
    let db = TestDb::new().await;
    let api = TestApi::start(&db).await;
    let unset = api.get("/api/ops/settings").await.expect(200).body["data"].clone();
    assert_eq!((&unset["market"], &unset["step_seconds"]), (&Value::Null, &json!(3_600)));
    assert_eq!((&unset["user_id"], &unset["automation"]), (&json!(api.user), &Value::Null));

    let body = json!({"market": MARKET, "cap_kw": "100.50", "min_up_steps": 2, "strike_low_usd_mwh": 60,
        "strike_high_usd_mwh": 200});
    let set = api.put("/api/ops/settings", body.clone()).await.expect(200);
    assert_eq!(set.body["data"]["cap_kw"], 100.5);
    assert_eq!(set.event_id().len(), 36);
    let same = api.put("/api/ops/settings", body).await.expect(200);
    assert_eq!(same.body["event_id"], Value::Null);
    let other = api.put("/api/ops/settings", json!({"market": MARKET, "ramp_kw": 5})).await.expect(200);
    let data = &other.body["data"];
    assert_eq!(
        (&data["cap_kw"], &data["ramp_kw"], &data["min_up_steps"]),
        (&Value::Null, &json!(5), &json!(0))
    );
    assert_eq!(kinds(&db, "ops.").await, ["ops.settings_changed", "ops.settings_changed"]);

    let before = written(&db).await;
    for (body, field) in [
        (json!({"step_seconds": 600}), "step_seconds"),
        (json!({"cap_kw": -1}), "cap_kw"),
        (json!({"min_online_share": 1.01}), "min_online_share"),
        (json!({"min_up_steps": null}), "min_up_steps"),
        (json!({"min_up_steps": 289}), "min_up_steps"),
        (json!({"market": MARKET, "strike_low_usd_mwh": 60}), "strike_high_usd_mwh"),
        (json!({"market": MARKET, "strike_low_usd_mwh": 2, "strike_high_usd_mwh": 1}), "strike_low_usd_mwh"),
        (json!({"strike_low_usd_mwh": 1, "strike_high_usd_mwh": 2}), "market"),
    ] {
        let refused = api.put("/api/ops/settings", body.clone()).await.expect(422);
        assert_eq!(refused.fields(), [field], "{body}");
    }
    // Of another user, and what a customer has been promised: for admins.
    api.put("/api/ops/settings", json!({"user_id": "bob"})).await.expect(403);
    api.get("/api/ops/settings?user_id=bob").await.expect(403);
    api.put("/api/ops/settings", json!({"tier": "vip"})).await.expect(403);
    assert_eq!(written(&db).await, before);
    let admin = api.admin_token();
    let body = json!({"user_id": "bob", "tier": "vip"});
    api.ask(&admin, Method::PUT, "/api/ops/settings", Some(body)).await.expect(200);
    let body = json!({"user_id": "bob", "cap_kw": 1});
    let kept = api.ask(&admin, Method::PUT, "/api/ops/settings", Some(body)).await.expect(200);
    assert_eq!(kept.body["data"]["tier"], "vip", "only said by who says it");
}
