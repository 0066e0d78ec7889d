//! The resource portfolio over HTTP: what it shows, how it is cached, and reading one's own write.

use std::time::Duration;

use hashinsight::doorbell::Bell;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::time::Instant;
use uuid::Uuid;

use crate::support::{TestApi, TestDb, service, settings};

/// Five times the longest that the bench allows.
const SOON: Duration = Duration::from_millis(300);

/// Stores what a recalculation would.
async fn recalculated(db: &TestDb, api: &TestApi, version: i64, event_id: &str) {
    sqlx::query(
        "insert into portfolio (tenant_id, user_id, version, miners_total, miners_online, hashrate_ths, \
         effective_hashrate_ths, power_kw, efficiency_j_th, power_cost_usd_day, capex_usd, gross_btc_day, by_model, \
         by_location, warnings, event_id, computed_at) \
         values ($1, $2, $3, 2, 1, 200.50, 200.5, 3.5, 17.5, 5.04, 3000, 0.000085160136221234567890, \
         '[{\"model\": \"S21\", \"hashrate_ths\": 200.5}]', '[]', '[\"no-snapshot\"]', $4::uuid, '2026-01-02T03:04:05Z') \
         on conflict (tenant_id, user_id) do update set version = excluded.version, event_id = excluded.event_id",
    )
    .bind(&api.tenant)
    .bind(&api.user)
    .bind(version)
    .bind(event_id)
    .execute(&db.admin)
    .await
    .expect("portfolio");
}

/// Records what the group did with an event.
async fn outcome(db: &TestDb, api: &TestApi, event_id: &str, outcome: &str) {
    sqlx::query(
        "insert into event_inbox (consumer_name, event_id, tenant_id, event_kind, outcome) \
         values ('portfolio-recalc-group', $1::uuid, $2, 'miner.added', $3) \
         on conflict (consumer_name, event_id) do update set outcome = excluded.outcome",
    )
    .bind(event_id)
    .bind(&api.tenant)
    .bind(outcome)
    .execute(&db.admin)
    .await
    .expect("inbox");
}

async fn write(api: &TestApi) -> String {
    api.post("/api/miners", json!({"model": "S21"})).await.expect(201).event_id().to_owned()
}

#[tokio::test]
async fn a_portfolio_has_every_field_and_exact_numbers() {
    let db = TestDb::new().await;
    let api = TestApi::start(&db).await;
    let nothing = api.get("/api/portfolio").await.expect(200).body;
    assert_eq!((&nothing["data"]["version"], &nothing["data"]["miners_total"]), (&json!(0), &json!(0)));
    for field in ["event_id", "computed_at", "gross_btc_day", "snapshot_id"] {
        assert_eq!(nothing["data"][field], Value::Null, "{field}");
    }
    let event = Uuid::now_v7().to_string();
    recalculated(&db, &api, 1, &event).await;
    let shown = api.get("/api/portfolio").await.expect(200).body;
    let expected = json!({
        "user_id": api.user, "miners_total": 2, "miners_online": 1, "hashrate_ths": 200.5,
        "effective_hashrate_ths": 200.5, "power_kw": 3.5, "efficiency_j_th": 17.5, "gross_btc_day": null,
        "net_btc_day": null, "revenue_usd_day": null, "power_cost_usd_day": 5.04, "profit_usd_day": null,
        "hashprice_usd_ph_day": null, "break_even_tariff_usd_kwh": null, "break_even_btc_price_usd": null,
        "capex_usd": 3000, "payback_days": null, "dynamic_payback_days": null, "roi_percent": null,
        "by_model": [{"model": "S21", "hashrate_ths": 200.5}], "by_location": [], "warnings": ["no-snapshot"],
        "snapshot_id": null, "as_of": null, "version": 1, "computed_at": "2026-01-02T03:04:05Z", "event_id": event,
    });
    let mut data = shown["data"].clone();
    assert_eq!(data["gross_btc_day"].to_string(), "0.000085160136221234567890", "no digit is lost");
    data["gross_btc_day"] = Value::Null;
    data["hashrate_ths"] = json!(data["hashrate_ths"].as_f64());
    assert_eq!(data, expected);
    let mut metadata: Vec<&str> =
        shown["metadata"].as_object().expect("metadata").keys().map(String::as_str).collect();
    metadata.sort_unstable();
    assert_eq!(metadata, ["cache_hit", "freshness_sec", "source", "stale"]);
}

#[tokio::test]
async fn reads_come_from_the_cache_and_follow_the_row() {
    for (redis, source) in [(service("REDIS_URL"), "redis"), (String::new(), "memory")] {
        let db = TestDb::with(settings(&[("REDIS_URL", &redis)])).await;
        let api = TestApi::start(&db).await;
        let event = Uuid::now_v7().to_string();
        recalculated(&db, &api, 1, &event).await;
        let first = api.get("/api/portfolio").await.expect(200).body;
        let fresh = json!({"cache_hit": false, "stale": false, "freshness_sec": 0, "source": "database"});
        assert_eq!(first["metadata"], fresh);
        let second = api.get("/api/portfolio").await.expect(200).body;
        let hit = json!({"cache_hit": true, "stale": false, "freshness_sec": 0, "source": source});
        assert_eq!((&second["metadata"], &second["data"]), (&hit, &first["data"]));

        recalculated(&db, &api, 2, &event).await;
        if source == "redis" {
            // What the consumer does after its commit.
            let tenant = api.tenant.parse().expect("a tenant");
            let key = hashinsight::cache::Key::portfolio(&tenant, &api.user.parse().expect("a user"));
            api.cache.invalidate(&[(key, 2)]).await;
        }
        let third = api.get("/api/portfolio").await.expect(200).body;
        assert_eq!((&third["data"]["version"], &third["metadata"]["cache_hit"]), (&json!(2), &json!(false)));
    }
}

#[tokio::test]
async fn a_reader_waits_for_its_event_and_no_longer() {
    let db = TestDb::with(settings(&[("REDIS_URL", &service("REDIS_URL"))])).await;
    let api = TestApi::start(&db).await;
    recalculated(&db, &api, 1, &Uuid::now_v7().to_string()).await;
    api.get("/api/portfolio").await.expect(200);

    for ring in [true, false] {
        let event = write(&api).await;
        let path = format!("/api/portfolio?wait=10&after={event}");
        let applied = async {
            tokio::time::sleep(Duration::from_millis(200)).await;
            recalculated(&db, &api, if ring { 2 } else { 3 }, &event).await;
            outcome(&db, &api, &event, "applied").await;
            if ring {
                api.bells.ring(Bell::Applied);
            }
            Instant::now()
        };
        let (seen, applied_at) = tokio::join!(api.get(&path), applied);
        assert!(applied_at.elapsed() < SOON, "{:?}", applied_at.elapsed());
        let seen = seen.expect(200).body;
        assert_eq!(seen["data"]["event_id"], event);
        assert_eq!(seen["metadata"]["source"], "database", "past the cache, which has the old one");
        // And everybody after sees it, too.
        assert_eq!(api.get("/api/portfolio").await.body["data"]["event_id"], event);
    }
}

#[tokio::test]
async fn an_event_that_is_not_visible_says_why() {
    let db = TestDb::new().await;
    let api = TestApi::start(&db).await;
    let event = write(&api).await;
    let at_once = format!("/api/portfolio?wait=0&after={event}");

    let started = Instant::now();
    let pending = api.get(&format!("/api/portfolio?wait=0.3&after={event}")).await.expect(503);
    assert!(started.elapsed() >= Duration::from_millis(300) && started.elapsed() < Duration::from_secs(2));
    assert_eq!(pending.header("retry-after"), "1");
    assert!(pending.body["type"].as_str().is_some_and(|t| t.ends_with("not-yet-visible")));
    for (what, status, problem) in [
        ("parked", 503, "not-yet-visible"),
        ("dead", 409, "event-failed"),
        ("discarded", 409, "event-failed"),
        ("superseded", 200, ""),
        ("applied", 200, ""),
    ] {
        outcome(&db, &api, &event, what).await;
        let answer = api.get(&at_once).await.expect(status);
        assert!(answer.body["type"].as_str().unwrap_or_default().ends_with(problem), "{what}");
    }

    // A dead letter is final: nobody waits for it.
    outcome(&db, &api, &event, "dead").await;
    let started = Instant::now();
    api.get(&format!("/api/portfolio?wait=10&after={event}")).await.expect(409);
    assert!(started.elapsed() < Duration::from_secs(2));

    // Neither for a kind that changes no portfolio.
    let signal = Uuid::now_v7().to_string();
    sqlx::query(
        "insert into event_outbox (id, aggregate_type, aggregate_id, event_key, event_type, tenant_id, user_id, payload) \
         values ($1::uuid, 'treasury', 'x', $2 || ':u', 'treasury.signal', $2, 'u', jsonb_build_object( \
         'event_id', $1, 'kind', 'treasury.signal', 'tenant_id', $2, 'user_id', 'u'))",
    )
    .bind(&signal)
    .bind(&api.tenant)
    .execute(&db.admin)
    .await
    .expect("an event");
    let refused = api.get(&format!("/api/portfolio?wait=10&after={signal}")).await.expect(422);
    assert_eq!(refused.fields(), ["after"]);
    assert!(refused.body.to_string().contains("treasury.signal"));
    assert!(started.elapsed() < Duration::from_secs(4));

    // Unknown: it may be on its way, so the wait is waited.
    let started = Instant::now();
    api.get(&format!("/api/portfolio?wait=0.3&after={}", Uuid::now_v7())).await.expect(404);
    assert!(started.elapsed() >= Duration::from_millis(300));
    api.get(&format!("/api/portfolio?wait=0&after={}", Uuid::max())).await.expect(404);
    // Older than the inbox remembers: it was applied.
    let millis = u128::try_from(chrono::Utc::now().timestamp_millis()).expect("after 1970") - 40 * 86_400_000;
    let pruned = Uuid::from_u128(millis << 80 | 7 << 76 | 2 << 62);
    api.get(&format!("/api/portfolio?wait=0&after={pruned}")).await.expect(200);
}

#[tokio::test]
async fn parameters_are_checked_and_other_users_are_for_admins() {
    let db = TestDb::new().await;
    let api = TestApi::start(&db).await;
    let event = Uuid::now_v7();
    for (query, field) in [
        ("after=nonsense".to_owned(), "after"),
        (format!("after={event}&wait=-1"), "wait"),
        (format!("after={event}&wait=10.1"), "wait"),
        (format!("after={event}&wait=soon"), "wait"),
        ("wait=1e3".to_owned(), "wait"),
        ("user_id=a%3Ab".to_owned(), "user_id"),
        (format!("after={event}&after={event}"), "after"),
    ] {
        let refused = api.get(&format!("/api/portfolio?{query}")).await.expect(400);
        assert_eq!(refused.fields(), [field], "{query}");
    }
    api.get(&format!("/api/portfolio?user_id={}", api.user)).await.expect(200);
    api.get("/api/portfolio?user_id=bob").await.expect(403);
    let admin = api.admin_token();
    let bobs = api.ask(&admin, Method::GET, "/api/portfolio?user_id=bob", None).await.expect(200);
    assert_eq!(bobs.body["data"]["user_id"], "bob");
}

/// The outbox has a partition per day: a look touches the event's day and its neighbours.
#[tokio::test]
async fn a_look_for_an_event_reads_few_partitions() {
    let db = TestDb::new().await;
    let plan: Vec<String> = sqlx::query_scalar(
        "explain select event_type from event_outbox where id = $1 and occurred_at between $2 and $3 limit 1",
    )
    .bind(Uuid::now_v7())
    .bind(chrono::Utc::now().naive_utc() - chrono::TimeDelta::days(1))
    .bind(chrono::Utc::now().naive_utc() + chrono::TimeDelta::days(1))
    .fetch_all(&db.admin)
    .await
    .expect("plan");
    let scans = plan.iter().filter(|line| line.contains("event_outbox_p")).count();
    assert!((1..=3).contains(&scans), "{plan:#?}");
}
