//! The forecast of the network: what is stored is what the pure function says, and what is missing is said.

use std::sync::Arc;

use chrono::{DateTime, Days, DurationRound, NaiveTime, TimeDelta, Utc};
use hashinsight::economics::forecast::{MAX_DAYS, NetworkClose, outlook};
use hashinsight::jobs::Step;
use hashinsight::projection::intelligence::forecast::{NewDay, make};
use reqwest::Method;
use rust_decimal::Decimal;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{Site, run_job, runner, text};

const PATH: &str = "/api/intelligence/forecast";

fn midnight(at: DateTime<Utc>) -> DateTime<Utc> {
    at.date_naive().and_time(NaiveTime::MIN).and_utc()
}

impl Site {
    /// A close for each of the last days, oldest first, at eleven in the morning but for the last, which is a minute old;
    /// beside each an earlier snapshot of the same day, that closes nothing.
    async fn history(&self, days: u64) -> Vec<NetworkClose> {
        let now = self.db.db.now();
        let eleven = NaiveTime::from_hms_opt(11, 0, 0).expect("a time");
        let mut closes = Vec::new();
        for ago in (0..days).rev() {
            let at = match ago {
                0 => now - TimeDelta::minutes(1).min(now - midnight(now)),
                ago => (now.date_naive() - Days::new(ago)).and_time(eleven).and_utc(),
            };
            // As PostgreSQL keeps it.
            let at = at.duration_trunc(TimeDelta::microseconds(1)).expect("a time");
            let block_height = 2016 * 460 + 1000 - ago * 144;
            let close = NetworkClose {
                at,
                btc_price_usd: Decimal::from(90_000 + 37 * (ago * ago % 23)),
                difficulty: Decimal::from(100 + block_height / 2016) * Decimal::from(1_000_000_000_000_u64),
                block_height,
                fees_btc_per_block: Decimal::new(5, 2),
            };
            // Of the same day, even in its first minute; of one moment the later id counts.
            let earlier = at - TimeDelta::seconds(30).min(at - midnight(at));
            for (at, price) in [(earlier, Decimal::ONE), (at, close.btc_price_usd)] {
                sqlx::query(
                    "insert into network_snapshots (tenant_id, id, btc_price_usd, difficulty, block_height, \
                     fees_btc_per_block, observed_at) values ($1, $2, $3, $4, $5, $6, $7)",
                )
                .bind(&self.api.tenant)
                .bind(Uuid::now_v7())
                .bind(price)
                .bind(close.difficulty)
                .bind(close.block_height as i64)
                .bind(close.fees_btc_per_block)
                .bind(at)
                .execute(&self.db.admin)
                .await
                .expect("a snapshot");
            }
            closes.push(close);
        }
        closes
    }

    /// As the scheduled work at a new day.
    async fn new_day(&self) -> Option<i64> {
        let tenant = self.api.tenant.parse().expect("a tenant");
        let mut tx = self.db.db.tenant(&tenant).await.expect("begin");
        let made = make(tx.conn(), &tenant, None).await.expect("made");
        tx.commit().await.expect("commit");
        made.map(|(_, version)| version)
    }

    async fn forecast(&self, query: &str) -> Value {
        self.api.get(&format!("{PATH}?{query}")).await.expect(200).body
    }
}

#[tokio::test]
async fn the_forecast_is_that_of_the_closes_on_record() {
    let site = Site::open().await;
    let closes = site.history(120).await;
    let first = site.new_day().await.expect("made");
    let today = site.db.db.now().date_naive();
    let expected = outlook(today, &closes, MAX_DAYS).expect("in range").expect("closes");
    let shown = site.forecast("").await;
    let days = shown["data"].as_array().expect("days");
    assert_eq!((days.len(), &shown["warnings"]), (30, &json!([])));
    for (day, row) in days.iter().zip(&expected.rows) {
        let mut row = json!(row);
        row.as_object_mut().expect("an object").retain(|name, _| day.get(name).is_some());
        assert_eq!(*day, row);
    }
    assert!(days[0]["btc_price_usd_lower"].is_number() && days[29]["difficulty_upper"].is_number());
    assert_eq!(shown["basis"]["closes"], 120);
    assert_eq!(shown["basis"]["difficulty"]["next_retarget"], json!(expected.difficulty.next_retarget));
    assert_eq!(shown["as_of"], text(closes[119].at));
    assert_eq!(shown["metadata"]["source"], "database");
    assert_eq!(site.new_day().await, Some(first + 1), "each is the next version");
    let sql = format!("select count(*) from forecast_daily where version = {}", first + 1);
    let stored: i64 = site.db.scalar(&sql).await;
    assert_eq!(stored, 30);
}

#[tokio::test]
async fn a_short_history_is_said_and_no_number_invented() {
    let site = Site::open().await;
    let nothing = site.forecast("").await;
    assert_eq!((&nothing["data"], &nothing["warnings"]), (&json!([]), &json!(["no-snapshot"])));
    assert_eq!(site.new_day().await, None);
    site.history(29).await;
    site.new_day().await;
    let short = site.forecast("days=3").await;
    assert_eq!(short["warnings"], json!(["not-enough-price-history", "not-enough-retargets"]));
    let missing = json!({"have_days": 29, "need_days": 30});
    assert_eq!(short["basis"]["price"]["not_enough_history"], missing);
    for day in short["data"].as_array().expect("days") {
        assert_eq!((&day["btc_price_usd"], &day["hashprice_usd_ph_day"]), (&Value::Null, &Value::Null));
        assert!(day["difficulty"].is_number());
    }
    let of_difficulty = site.forecast("metric=difficulty").await;
    assert_eq!(of_difficulty["warnings"], json!(["not-enough-retargets"]));
}

#[tokio::test]
async fn an_answer_is_cut_to_what_was_asked_for() {
    let site = Site::open().await;
    site.history(120).await;
    site.new_day().await;
    let names = |shown: &Value| -> Vec<String> {
        shown["data"][0].as_object().expect("a day").keys().cloned().collect()
    };
    let of_hashrate = site.forecast("days=7&metric=network_hashrate_eh").await;
    assert_eq!(of_hashrate["data"].as_array().map(Vec::len), Some(7));
    let mut shown = names(&of_hashrate);
    shown.sort();
    let expected = [
        "confidence",
        "date",
        "difficulty_confidence",
        "network_hashrate_eh",
        "network_hashrate_eh_lower",
        "network_hashrate_eh_upper",
    ];
    assert_eq!(shown, expected);
    let both = site.forecast("metric=btc_price_usd,difficulty").await;
    assert!(both["data"][0]["difficulty_lower"].is_number() && both["data"][0]["btc_price_usd"].is_number());
    assert!(both["data"][0].get("network_hashrate_eh").is_none());
    assert_eq!(names(&site.forecast("metric=all,difficulty").await), names(&site.forecast("").await));
    for (query, field) in
        [("days=0", "days"), ("days=31", "days"), ("metric=price", "metric"), ("metric=", "metric")]
    {
        assert_eq!(site.api.get(&format!("{PATH}?{query}")).await.expect(400).fields(), [field], "{query}");
    }
    let api = &site.api;
    api.ask(&api.token_with(&["portfolio:read"]), Method::GET, PATH, None).await.expect(403);
    let foreign = api.ask(&api.foreign_token(), Method::GET, PATH, None).await.expect(200).body;
    assert_eq!((&foreign["data"], &foreign["warnings"]), (&json!([]), &json!(["no-snapshot"])));
}

#[tokio::test]
async fn a_new_day_is_scheduled_work() {
    let site = Site::open().await;
    let snapshot = site.api.post("/api/network/snapshots", super::snapshot()).await.expect(201).body;
    assert_eq!(run_job(&site.db, Arc::new(NewDay)).await, 0, "the group has not forecast yet");
    site.judge().await;
    let before = site.forecast("").await;
    assert_eq!((&before["version"], &before["event_id"]), (&json!(1), &snapshot["event_id"]));
    // Yesterday's.
    site.db.execute("update forecast_daily set date = date - 1").await;
    assert_eq!(run_job(&site.db, Arc::new(NewDay)).await, 1);
    let after = site.forecast("").await;
    assert_eq!((&after["version"], &after["event_id"]), (&json!(2), &Value::Null));
    assert_eq!(after["data"], before["data"]);
    // Another process finds it done, until the next midnight.
    let found = runner(&site.db, Arc::new(NewDay)).step(&CancellationToken::new()).await.expect("a step");
    assert!(matches!(found, Step::Waiting(_)), "{found:?}");
    let at_midnight: bool = site
        .db
        .scalar(
            "select (next_run_at at time zone 'UTC')::time = '00:00' and next_run_at > now() \
             and next_run_at <= now() + interval '1 day' from scheduled_job where name = 'forecast-new-day'",
        )
        .await;
    assert!(at_midnight);
}

/// A batch is one forecast, and a snapshot of another tenant's is none of this one's.
#[tokio::test]
async fn a_batch_is_one_forecast_per_tenant() {
    let site = Site::open().await;
    for price in [90_000, 91_000, 92_000] {
        let mut snapshot = super::snapshot();
        snapshot["btc_price_usd"] = json!(price);
        site.api.post("/api/network/snapshots", snapshot.clone()).await.expect(201);
        let foreign = site.api.foreign_token();
        site.api.ask(&foreign, Method::POST, "/api/network/snapshots", Some(snapshot)).await.expect(201);
    }
    site.judge().await;
    let made: Vec<(String, i64)> =
        sqlx::query_as("select tenant_id, max(version) from forecast_daily group by 1 order by 1")
            .fetch_all(&site.db.admin)
            .await
            .expect("versions");
    let other = format!("{}-other", site.api.tenant);
    assert_eq!(made, [(site.api.tenant.clone(), 1), (other, 1)]);
}
