//! `hashinsight rebuild`: the same rows from the tables of record, for one tenant or all, while everything runs.

use std::collections::BTreeMap;
use std::time::Duration;

use chrono::{DurationRound, TimeDelta};
use hashinsight::config::EventLogKind;
use hashinsight::read_model::{anomaly, crm, portfolio, treasury};
use reqwest::Method;
use rust_decimal::Decimal;
use serde_json::{Value, json};

use crate::support::pipeline::{Pipeline, Store, apply, events_behind};
use crate::support::process::run;
use crate::support::{TestApi, TestDb, service, settings, until};

/// Each group with the tables it keeps.
const KEPT: [(&str, &[&str]); 4] = [
    (portfolio::GROUP, &["portfolio"]),
    (crm::GROUP, &["crm_account_summary"]),
    (treasury::GROUP, &["treasury_overview", "treasury_signal"]),
    (anomaly::GROUP, &["forecast_daily"]),
];

/// What somebody who makes a mistake by hand leaves of a figure of each table.
const SPOILED: [(&str, &str); 5] = [
    ("portfolio", "profit_usd_day = -1, miners_total = 99, warnings = '[]'"),
    ("crm_account_summary", "deals_open = 99, billed_usd = 0"),
    ("treasury_overview", "sat = 0, cost_usd = 0, cash_usd = 0"),
    ("treasury_signal", "sat = 1, wanted_sat = 1"),
    ("forecast_daily", "hashprice_usd_ph_day = 0"),
];

/// A tenant with something in every read model: two owners with miners, an account with a deal and an invoice, a treasury.
async fn fill(db: &TestDb) -> TestApi {
    let api = TestApi::start(db).await;
    let snapshot = json!({"btc_price_usd": 90_000, "difficulty": 150e12, "block_height": 925_000, "fees_btc_per_block": 0.05});
    api.post("/api/network/snapshots", snapshot).await.expect(201);
    for owner in ["ann", "bob"] {
        let miner =
            json!({"model": "S21", "owner_id": owner, "status": "online", "purchase_price_usd": 3_000});
        api.ask(&api.admin_token(), Method::POST, "/api/miners", Some(miner)).await.expect(201);
    }
    let account = api.post("/api/crm/accounts", json!({"name": "Northern Hash"})).await.expect(201);
    let account = &account.body["account_id"];
    api.post("/api/crm/deals", json!({"account_id": account, "name": "Hall 3", "value_usd": 50_000}))
        .await
        .expect(201);
    api.post("/api/crm/invoices", json!({"account_id": account, "total_usd": 1_200})).await.expect(201);
    let settings =
        json!({"cash_usd": 10_000, "opex_usd_month": 30_000, "strategies": ["layered", "opex_coverage"]});
    api.ask(&api.admin_token(), Method::PUT, "/api/treasury/settings", Some(settings)).await.expect(200);
    for _ in 0..2 {
        api.ask(
            &api.admin_token(),
            Method::POST,
            "/api/treasury/lots",
            Some(json!({"amount": "1", "cost_usd": 45_000})),
        )
        .await
        .expect(201);
    }
    api
}

/// Lets every group apply everything.
async fn apply_all(db: &TestDb) {
    for (group, _) in KEPT {
        let (events, _) = events_behind(db, 0).await;
        apply(db, group, &events).await;
    }
}

/// The rows of a table by their keys, without what counts and dates their computations.
async fn rows(db: &TestDb, table: &str) -> BTreeMap<String, Value> {
    let rows: Vec<(String, Value)> = sqlx::query_as(sqlx::AssertSqlSafe(format!(
        "select concat_ws(':', t ->> 'tenant_id', t ->> 'user_id', t ->> 'account_id', t ->> 'strategy', t ->> 'date'), \
         t - array['version', 'computed_at', 'made_at'] from (select to_jsonb(x) as t from {table} x) j"
    )))
    .fetch_all(&db.admin)
    .await
    .expect(table);
    rows.into_iter().map(|(key, row)| (key, plain(row))).collect()
}

/// Numbers without idle zeros: how many there are follows from how the assumptions were written.
fn plain(value: Value) -> Value {
    match value {
        Value::Number(number) => match number.to_string().parse::<Decimal>() {
            Ok(number) => json!(number.normalize()),
            Err(_) => Value::Number(number),
        },
        Value::Array(values) => values.into_iter().map(plain).collect(),
        Value::Object(fields) => {
            Value::Object(fields.into_iter().map(|(name, value)| (name, plain(value))).collect())
        }
        other => other,
    }
}

async fn spoil(db: &TestDb, table: &str) {
    let (_, set) = SPOILED.iter().find(|(known, _)| *known == table).expect("known");
    db.execute(&format!("update {table} set {set}")).await;
}

async fn rebuild(db: &TestDb, further: &[&str]) -> Value {
    let ended = run(&db.environment, &[&["rebuild", "--json"], further].concat()).await;
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    serde_json::from_str(&ended.stdout).expect("one document")
}

#[tokio::test]
async fn the_same_rows_come_from_the_tables_of_record() {
    let db = TestDb::new().await;
    let (one, _two) = (fill(&db).await, fill(&db).await);
    apply_all(&db).await;
    for (group, tables) in KEPT {
        let mut before = BTreeMap::new();
        for table in tables {
            let known = rows(&db, table).await;
            assert!(known.len() >= 2, "{table}: {known:?}");
            spoil(&db, table).await;
            assert_ne!(rows(&db, table).await, known, "{table} is spoiled");
            before.insert(*table, known);
        }
        // Of one tenant: the other's are as they were.
        let report = rebuild(&db, &["--group", group, "--tenant", &one.tenant]).await;
        assert_eq!((&report["group"], &report["tenants"]), (&json!(group), &json!(1)));
        for table in tables {
            for (key, row) in rows(&db, table).await {
                if key.starts_with(&one.tenant) {
                    assert_eq!(row, before[table][&key], "{table} {key}");
                } else {
                    assert_ne!(row, before[table][&key], "{table} {key}");
                }
            }
        }
        let report = rebuild(&db, &["--group", group]).await;
        assert_eq!(report["tenants"], 2);
        assert!(report["rows"].as_u64() >= Some(2), "{report}");
        let told: i64 = db.scalar("select count(*) from event_outbox").await;
        for table in tables {
            assert_eq!(rows(&db, table).await, before[table], "{table}");
            db.execute(&format!("truncate {table}")).await;
        }
        assert_eq!(db.scalar::<i64>("select count(*) from event_outbox").await, told, "nothing is news");
        // Rows that are lost come back; which event they were of is not on record.
        rebuild(&db, &["--group", group]).await;
        for table in tables.iter().filter(|table| **table != "treasury_signal") {
            let without = |mut rows: BTreeMap<String, Value>| {
                rows.values_mut().for_each(|row| row["event_id"] = Value::Null);
                rows
            };
            assert_eq!(
                without(rows(&db, table).await),
                without(before.remove(table).expect("kept")),
                "{table}"
            );
        }
    }
}

/// A schedule is of the hours from now on, so it is compared with what the group makes of it at the same time.
#[tokio::test]
async fn a_schedule_is_rebuilt_as_the_group_computes_it() {
    let db = TestDb::new().await;
    let api = fill(&db).await;
    let hour = db.db.now().duration_trunc(TimeDelta::hours(1)).expect("an hour");
    let prices: Vec<Value> = (0..30)
        .map(|n| json!({"start": hour + TimeDelta::hours(n), "seconds": 3_600, "price_usd_mwh": 40 + 10 * (n % 9)}))
        .collect();
    let admin = api.admin_token();
    for user in ["ann", "bob"] {
        let settings = json!({"user_id": user, "market": "WEST", "cap_kw": 10});
        api.ask(&admin, Method::PUT, "/api/ops/settings", Some(settings)).await.expect(200);
    }
    api.post("/api/ops/prices", json!({"market": "WEST", "prices": prices})).await.expect(201);
    apply_all(&db).await;
    assert!(rows(&db, "ops_schedule").await.len() >= 2);
    for lost in [false, true] {
        db.execute(if lost {
            "truncate ops_schedule"
        } else {
            "update ops_schedule set value_usd = -1, rows = '[]', warnings = '[\"spoiled\"]'"
        })
        .await;
        rebuild(&db, &["--group", anomaly::GROUP]).await;
        let rebuilt = rows(&db, "ops_schedule").await;
        apply_all(&db).await;
        let mut computed = rows(&db, "ops_schedule").await;
        assert!(computed.values().any(|row| row["value_usd"].as_f64() > Some(0.0)), "{computed:?}");
        if lost {
            computed.values_mut().for_each(|row| row["event_id"] = Value::Null);
        }
        assert_eq!(rebuilt, computed);
    }
}

/// A copy in Redis of a row that was lost is no newer than the row that is made anew.
#[tokio::test]
async fn no_copy_of_a_lost_row_outlives_it() {
    let db = TestDb::with(settings(&[("REDIS_URL", &service("REDIS_URL"))])).await;
    let api = fill(&db).await;
    let admin = api.admin_token();
    let miners = async || {
        let read = api.ask(&admin, Method::GET, "/api/portfolio?user_id=ann", None).await.expect(200).body;
        (read["metadata"]["cache_hit"] == true, read["data"]["miners_total"].clone())
    };
    for _ in 0..3 {
        apply_all(&db).await;
    }
    assert_eq!((miners().await, miners().await), ((false, json!(1)), (true, json!(1))));
    db.execute("truncate portfolio").await;
    db.execute("update miners set quantity = 7").await;
    assert_eq!(miners().await, (true, json!(1)), "the copy");
    rebuild(&db, &["--group", portfolio::GROUP]).await;
    assert_eq!(miners().await, (false, json!(7)));
    assert_eq!(miners().await, (true, json!(7)));
    assert!(db.scalar::<bool>("select bool_and(version > 1000000) from portfolio").await);
}

#[tokio::test]
async fn what_cannot_be_rebuilt_is_named() {
    let db = TestDb::new().await;
    let ended = run(&db.environment, &["rebuild", "--group", "nobody"]).await;
    assert_eq!(ended.code, 2, "{}", ended.stderr);
    assert!(ended.stderr.contains(portfolio::GROUP), "the groups that there are: {}", ended.stderr);
    let ended = run(&db.environment, &["rebuild", "--group", portfolio::GROUP, "--tenant", "nobody"]).await;
    assert_eq!(ended.code, 1, "{}", ended.stderr);
    assert!(ended.stderr.contains("nothing to rebuild of the tenant nobody"), "{}", ended.stderr);
}

/// The API and the groups go on: no write is lost behind a rebuild that read before it.
#[tokio::test(flavor = "multi_thread")]
async fn everything_goes_on_meanwhile() {
    let pipeline = Pipeline::start(EventLogKind::Postgres, Store::Memory).await;
    let owner = pipeline.user("acme", "ann");
    let environment = pipeline.environment();
    let rebuilding = tokio::spawn(async move {
        let mut rebuilds = 0;
        for _ in 0..3 {
            let ended = run(&environment, &["rebuild", "--group", portfolio::GROUP]).await;
            assert_eq!(ended.code, 0, "{}", ended.stderr);
            rebuilds += 1;
        }
        rebuilds
    });
    let mut written = 0;
    let mut event = Value::Null;
    while !rebuilding.is_finished() || written < 20 {
        let added = owner.post("/api/miners", &json!({"model": "S21", "status": "online"})).await;
        event = added["event_id"].clone();
        written += 1;
        let seen = owner.portfolio_after(&event).await;
        assert_eq!(seen["data"]["miners_total"], written, "it is read at once");
    }
    assert_eq!(rebuilding.await.expect("rebuilt"), 3);
    until("the cached copy is no older", Duration::from_secs(10), async || {
        (owner.get("/api/portfolio").await["data"]["miners_total"] == written).then_some(())
    })
    .await;
    let seen = owner.portfolio_after(&event).await;
    assert_eq!(seen["data"]["miners_total"], written);
    pipeline.stop().await;
}
