//! The boundary between tenants: through every endpoint, and in SQL with the rights of the API.

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures_util::FutureExt;
use hashinsight::db::Db;
use reqwest::Method;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, PgConnection};
use uuid::Uuid;

use crate::support::{TestApi, TestDb};

#[tokio::test]
async fn no_endpoint_shows_or_changes_another_tenants_rows() {
    let db = TestDb::new().await;
    let api = TestApi::start(&db).await;
    let added = api.post("/api/miners", json!({"model": "S21"})).await.expect(201);
    let id = added.body["miner_id"].as_str().expect("an id").to_owned();
    seed(&db, "portfolio", &api.tenant, &api.user).await;
    seed(&db, "event_inbox", &api.tenant, added.event_id()).await;
    assert_eq!(api.get("/api/portfolio").await.body["data"]["version"], 7, "the owner sees it");

    // The same user name, every right, in another tenant.
    let stranger = api.foreign_token();
    let path = format!("/api/miners/{id}");
    let status = format!("{path}/status");
    let after = format!("/api/portfolio?wait=0&after={}", added.event_id());
    for (method, path, body) in [
        (Method::GET, &path, None),
        (Method::PATCH, &path, Some(json!({"quantity": 9}))),
        (Method::PATCH, &status, Some(json!({"status": "offline"}))),
        (Method::DELETE, &path, None),
        (Method::GET, &after, None),
    ] {
        let answer = api.ask(&stranger, method.clone(), path, body).await;
        assert_eq!(answer.status, 404, "{method} {path}");
        let text = answer.body.to_string();
        assert!(!text.contains(&api.tenant) || text.contains("instance"), "{text}");
    }
    for query in ["", "?owner_id="] {
        let owner = if query.is_empty() { String::new() } else { format!("{query}{}", api.user) };
        let list = api.ask(&stranger, Method::GET, &format!("/api/miners{owner}"), None).await.expect(200);
        assert_eq!(list.body["data"], json!([]));
    }
    let portfolio = format!("/api/portfolio?user_id={}", api.user);
    let seen = api.ask(&stranger, Method::GET, &portfolio, None).await.expect(200);
    assert_eq!((&seen.body["data"]["version"], &seen.body["data"]["event_id"]), (&json!(0), &Value::Null));
    let body = Some(json!({"user_id": api.user, "tenant_id": api.tenant}));
    api.ask(&stranger, Method::POST, "/api/miners/sync", body).await.expect(202);

    let own: i64 = scalar(&db, "select count(*) from event_outbox where tenant_id = $1", &api.tenant).await;
    assert_eq!(own, 1, "nobody else wrote into the tenant");
    let miner = api.get(&format!("/api/miners/{id}")).await.expect(200);
    assert_eq!(
        (&miner.body["data"]["quantity"], &miner.body["data"]["status"]),
        (&json!(1), &json!("pending"))
    );
}

#[tokio::test]
async fn every_table_and_partition_with_a_tenant_forces_row_security() {
    let db = TestDb::new().await;
    let bare: Vec<String> = sqlx::query_scalar(
        "select c.relname from pg_class c join pg_attribute a on a.attrelid = c.oid and a.attname = 'tenant_id' \
         where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'p') and not a.attisdropped \
         and not (c.relrowsecurity and c.relforcerowsecurity)",
    )
    .fetch_all(&db.admin)
    .await
    .expect("catalogue");
    assert!(bare.is_empty(), "{bare:?}");
    let partitions: i64 =
        db.scalar("select count(*) from pg_inherits where inhparent = 'event_outbox'::regclass").await;
    assert!(partitions >= 8, "there are partitions to look at: {partitions}");
    let strong: i64 = db
        .scalar("select count(*) from pg_roles where rolname in ('hi_app', 'hi_worker') and (rolsuper or rolbypassrls)")
        .await;
    assert_eq!(strong, 0);
    let owned: i64 = db
        .scalar("select count(*) from pg_class where relowner in ('hi_app'::regrole, 'hi_worker'::regrole)")
        .await;
    assert_eq!(owned, 0);
    let definers: i64 = db
        .scalar("select count(*) from pg_proc where pronamespace = 'public'::regnamespace and prosecdef")
        .await;
    assert_eq!(definers, 0, "no function acts with its owner's rights");

    // The server refuses to start on a table that lost its protection.
    db.execute("alter table miners no force row level security").await;
    let refused = Db::open(&db.config).await.expect_err("refuses").to_string();
    assert!(refused.contains("miners"), "{refused}");
}

/// Tables that rows of other tables refer to, each behind those it refers to.
const PARENTS: [&str; 7] = [
    "crm_account",
    "crm_deal",
    "crm_contract",
    "crm_invoice",
    "ops_plan",
    "treasury_trade",
    "webhook_endpoint",
];

/// A row of a tenant, put there by the superuser; `what` is the id where the test needs to know it.
async fn seed(db: &TestDb, table: &str, tenant: &str, what: &str) {
    let insert = row_of(table).unwrap_or_else(|| panic!("say in row_of() how a row of {table} looks"));
    sqlx::query(insert)
        .bind(tenant)
        .bind(what)
        .execute(&db.admin)
        .await
        .unwrap_or_else(|e| panic!("{table}: {e}"));
}

/// An insert of one row: $1 is the tenant, $2 a UUID or a name.
fn row_of(table: &str) -> Option<&'static str> {
    Some(match table {
        "miners" => {
            "insert into miners (tenant_id, id, owner_id, model, hashrate_ths, power_w, quantity, status) \
             values ($1, $2::uuid, 'u', 'm', 1, 1, 1, 'online')"
        }
        "miner_telemetry" => {
            "insert into miner_telemetry (tenant_id, miner_id, at, hashrate_ths) values ($1, $2::uuid, now(), 1)"
        }
        "miner_telemetry_hourly" => {
            "insert into miner_telemetry_hourly (tenant_id, miner_id, hour, points, hashrate_ths_sum, \
             hashrate_ths_min, hashrate_ths_max, power_points, power_w_sum) \
             values ($1, $2::uuid, date_trunc('hour', now()), 1, 1, 1, 1, 0, 0)"
        }
        "network_snapshots" => {
            "insert into network_snapshots (tenant_id, id, btc_price_usd, difficulty, block_height, observed_at) \
             values ($1, $2::uuid, 1, 1000, 1, now())"
        }
        "anomaly" => {
            "insert into anomaly (tenant_id, id, user_id, miner_id, kind, state, opened_at, last_seen_at, measured, \
             warnings) values ($1, $2::uuid, 'u', gen_random_uuid(), 'heat', 'open', now(), now(), 80, '[]')"
        }
        "miner_detector" => {
            "insert into miner_detector (tenant_id, miner_id, judged_to, last_point_at, state) \
             values ($1, $2::uuid, now(), now(), '{}')"
        }
        "forecast_daily" => {
            "insert into forecast_daily (tenant_id, date, version, network_hashrate_eh, difficulty, snapshot_id, as_of, \
             closes, basis, warnings, made_at) values ($1, current_date + abs(hashtext($2)) % 100000, 1, 1, 1000, \
             gen_random_uuid(), now(), 1, '{}', '[]', now())"
        }
        "audit_log" => {
            "insert into audit_log (tenant_id, id, actor, action, entity_id, detail) \
             values ($1, $2::uuid, 'u', 'a', 'e', '{}')"
        }
        "portfolio" => {
            "insert into portfolio (tenant_id, user_id, version, miners_total, miners_online, hashrate_ths, \
             effective_hashrate_ths, power_kw, efficiency_j_th, power_cost_usd_day, capex_usd, by_model, by_location, \
             warnings, event_id, computed_at) \
             values ($1, $2, 7, 1, 1, 1, 1, 1, 1, 1, 1, '[]', '[]', '[]', gen_random_uuid(), now())"
        }
        "treasury_settings" => "insert into treasury_settings (tenant_id, user_id) values ($1, $2)",
        "treasury_trade" => {
            "insert into treasury_trade (tenant_id, id, user_id, submitted_by, trade_type, asset, sat, \
             execution_strategy, venue, state, needs_approval, created_at, updated_at) \
             values ($1, $2::uuid, 'u', 'u', 'sell', 'BTC', 1, 'market', 'paper', 'submitted', true, now(), now())"
        }
        "treasury_lot" => {
            "insert into treasury_lot (tenant_id, id, user_id, source, acquired_at, sat, cost_usd, left_sat, \
             left_cost_usd, created_at) values ($1, $2::uuid, 'u', 'mined', now(), 1, 1, 1, 1, now())"
        }
        "treasury_fill" => {
            "insert into treasury_fill (tenant_id, trade_id, number, user_id, trade_type, sat, price_usd, proceeds_usd, \
             fee_usd, basis_usd, gain_usd, lots, snapshot_id, price_at, filled_at) select $1, (select id from \
             treasury_trade where tenant_id = $1 limit 1), hashtext($2) & 65535 | 1, 'u', 'sell', 1, 1, 1, 0, 1, 0, \
             '[]', gen_random_uuid(), now(), now()"
        }
        "treasury_overview" => {
            "insert into treasury_overview (tenant_id, user_id, version, sat, reserved_sat, hedged_sat, lots, cost_usd, \
             realised_gain_usd, fees_usd, sold_sat, bought_sat, cash_usd, opex_usd_month, open_trades, unevaluated, \
             event_id, computed_at) values ($1, $2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, '[]', gen_random_uuid(), now())"
        }
        "treasury_signal" => {
            "insert into treasury_signal (tenant_id, user_id, strategy, sat, wanted_sat, reason, told_sat, told_at, \
             event_id, computed_at) values ($1, $2, 'hodl', 0, 0, 'r', 0, now(), gen_random_uuid(), now())"
        }
        "portfolio_history" => {
            "insert into portfolio_history (tenant_id, user_id, hour, version, computed_at, figures) \
             values ($1, $2, date_trunc('hour', now()), 1, now(), '{}')"
        }
        "event_outbox" => {
            "insert into event_outbox (id, aggregate_type, aggregate_id, event_key, event_type, tenant_id, user_id, \
             payload) values ($2::uuid, 'miner', 'm', $1 || ':u', 'miner.added', $1, 'u', jsonb_build_object( \
             'event_id', $2, 'kind', 'miner.added', 'tenant_id', $1, 'user_id', 'u'))"
        }
        "event_idempotency" => {
            "insert into event_idempotency (tenant_id, idempotency_key, event_id) values ($1, $2, gen_random_uuid())"
        }
        "event_inbox" => {
            "insert into event_inbox (consumer_name, event_id, tenant_id, event_kind, outcome) \
             values ('portfolio-recalc-group', $2::uuid, $1, 'miner.added', 'applied')"
        }
        "parked_event" => {
            "insert into parked_event (consumer_name, topic, partition, log_offset, event_id, event_kind, tenant_id, \
             user_id, raw_key, raw_value, headers, record_time) values ('g', 't', 0, hashtext($1), $2::uuid, \
             'miner.added', $1, 'u', '', '', '[]', now())"
        }
        "event_dlq" => {
            "insert into event_dlq (consumer_name, event_id, tenant_id, topic, partition, log_offset, headers, \
             error_class, error_message, retry_count, first_failed_at, last_failed_at) \
             values ('g', $2::uuid, $1, 't', 0, hashtext($1 || $2), '[]', 'c', 'm', 3, now(), now())"
        }
        "crm_account" => {
            "insert into crm_account (tenant_id, id, name, owner_id, portfolio_user_id, created_at, updated_at) \
             values ($1, $2::uuid, 'n', 'u', 'u', now(), now())"
        }
        "crm_lead" => {
            "insert into crm_lead (tenant_id, id, name, owner_id, state, created_at, updated_at) \
             values ($1, $2::uuid, 'n', 'u', 'NEW', now(), now())"
        }
        "crm_deal" => {
            "insert into crm_deal (tenant_id, id, account_id, name, value_usd, probability_percent, owner_id, state, \
             created_at, updated_at) values ($1, $2::uuid, (select id from crm_account where tenant_id = $1), 'n', 1, \
             10, 'u', 'PROSPECTING', now(), now())"
        }
        "crm_contract" => {
            "insert into crm_contract (tenant_id, id, account_id, deal_id, title, value_usd, first_invoice_usd, state, \
             created_at, updated_at) values ($1, $2::uuid, (select id from crm_account where tenant_id = $1), \
             (select id from crm_deal where tenant_id = $1), 't', 1, 1, 'draft', now(), now())"
        }
        "crm_invoice" => {
            "insert into crm_invoice (tenant_id, id, account_id, total_usd, due_at, state) \
             values ($1, $2::uuid, (select id from crm_account where tenant_id = $1), 1, now(), 'DRAFT')"
        }
        "crm_payment" => {
            "insert into crm_payment (tenant_id, id, account_id, invoice_id, amount_usd, received_at, created_at) \
             values ($1, $2::uuid, (select id from crm_account where tenant_id = $1), \
             (select id from crm_invoice where tenant_id = $1), 1, now(), now())"
        }
        "crm_ticket" => {
            "insert into crm_ticket (tenant_id, id, account_id, subject, priority, owner_id, state, created_at, \
             updated_at) values ($1, $2::uuid, (select id from crm_account where tenant_id = $1), 's', 'low', 'u', \
             'open', now(), now())"
        }
        "crm_asset" => {
            "insert into crm_asset (tenant_id, id, account_id, model, hashrate_ths, power_w, quantity, state, \
             created_at, updated_at) values ($1, $2::uuid, (select id from crm_account where tenant_id = $1), 'm', 1, \
             1, 1, 'ORDERED', now(), now())"
        }
        "crm_account_summary" => {
            "insert into crm_account_summary (tenant_id, account_id, version, deals_open, pipeline_usd, \
             pipeline_weighted_usd, billed_usd, paid_usd, overdue_usd, tickets_open, event_id, computed_at) \
             values ($1, $2::uuid, 1, 0, 0, 0, 0, 0, 0, 0, gen_random_uuid(), now())"
        }
        "webhook_endpoint" => {
            "insert into webhook_endpoint (tenant_id, id, url, owner_id, secret, created_at, updated_at) \
             values ($1, $2::uuid, 'https://crm.example.com', 'u', '', now(), now())"
        }
        "webhook_delivery" => {
            "insert into webhook_delivery (tenant_id, endpoint_id, event_id, event_kind, body) \
             values ($1, (select id from webhook_endpoint where tenant_id = $1), $2::uuid, 'crm.x', '{}')"
        }
        "scheduled_job_failure" => {
            "with job as (insert into scheduled_job (name, schedule, next_run_at) values ('j', 's', now()) \
             on conflict do nothing) insert into scheduled_job_failure (tenant_id, job, failures, retry_at, error) \
             values ($1, 'j', 1, now(), $2)"
        }
        "power_price" => {
            "insert into power_price (tenant_id, market, starts_at, seconds, reception_id, price_usd_mwh, received_at) \
             values ($1, 'm', date_trunc('hour', now()) - interval '401 days', 3600, $2::uuid, 1, now())"
        }
        "ops_settings" => {
            "insert into ops_settings (tenant_id, owner_id, step_seconds, min_online_share, start_cost_usd, \
             min_up_steps, min_down_steps, delivery_usd_mwh, tier, recovery_minutes, updated_at) \
             values ($1, $2, 3600, 0, 0, 0, 0, 0, 'standard', 15, now())"
        }
        "ops_plan" => {
            "insert into ops_plan (tenant_id, id, owner_id, kind, status, starts_at, ends_at, peak_kw, detail, \
             created_by, created_at, updated_at) \
             values ($1, $2::uuid, 'u', 'cut', 'pending', now(), now() + interval '1 hour', 1, '{}', 'u', now(), now())"
        }
        "ops_plan_row" => {
            "insert into ops_plan_row (tenant_id, plan_id, starts_at, seconds, miners_online, miners_offline, kw) \
             values ($1, (select id from ops_plan where tenant_id = $1), \
             now() + make_interval(secs => abs(hashtext($2))), 1, 0, 0, 0)"
        }
        "ops_strike" => {
            "insert into ops_strike (tenant_id, owner_id, market, phase, windows, last_window, since) \
             values ($1, $2, 'm', 'running', 0, 1, now())"
        }
        "ops_schedule_due" => {
            "insert into ops_schedule_due (tenant_id, user_id, event_id, since) \
             values ($1, $2, gen_random_uuid(), now())"
        }
        "ops_schedule" => {
            "insert into ops_schedule (tenant_id, user_id, version, classes, groups, rows, warnings, event_id, \
             computed_at) values ($1, $2, 1, '[]', '[]', '[]', '[]', gen_random_uuid(), now())"
        }
        _ => return None,
    })
}

async fn scalar(db: &TestDb, query: &'static str, value: &str) -> i64 {
    sqlx::query_scalar(query).bind(value).fetch_one(&db.admin).await.expect(query)
}

const OWN: &str = "own-tenant";
const OTHER: &str = "other-tenant";

/// Runs a statement in a transaction with the rights of the API, which is rolled back: the rows it touched, or nothing
/// where PostgreSQL refused (42501: no right, or row security).
async fn as_app(db: &TestDb, context: Option<&str>, statement: &str, bound: &[&str]) -> Option<u64> {
    let mut tx = db.admin.begin().await.expect("begin");
    sqlx::query("set local role hi_app").execute(&mut *tx).await.expect("role");
    if let Some(tenant) = context {
        let set = sqlx::query("select set_config('app.tenant_id', $1, true)").bind(tenant);
        set.execute(&mut *tx).await.expect("context");
    }
    let mut query = sqlx::query(AssertSqlSafe(statement));
    for value in bound {
        query = query.bind(*value);
    }
    let conn: &mut PgConnection = &mut tx;
    match query.execute(conn).await {
        Ok(done) => Some(done.rows_affected()),
        Err(error) => {
            let code = error.as_database_error().and_then(|e| e.code()).map(|c| c.into_owned());
            assert_eq!(code.as_deref(), Some("42501"), "{statement}: {error}");
            None
        }
    }
}

/// Every table with a tenant x verb x {own, other, none}.
#[tokio::test]
async fn sql_of_the_api_meets_its_own_tenant_only() {
    let db = TestDb::new().await;
    let tables: Vec<String> = sqlx::query_scalar(
        "select c.relname::text from pg_class c join pg_attribute a on a.attrelid = c.oid \
         where a.attname = 'tenant_id' and not a.attisdropped and c.relnamespace = 'public'::regnamespace \
         and c.relkind in ('r', 'p') and not c.relispartition order by 1",
    )
    .fetch_all(&db.admin)
    .await
    .expect("catalogue");
    assert!(tables.len() >= 18, "{tables:?}");
    // What others refer to comes first.
    for table in
        PARENTS.iter().copied().chain(tables.iter().map(String::as_str).filter(|t| !PARENTS.contains(t)))
    {
        for tenant in [OWN, OTHER] {
            seed(&db, table, tenant, &Uuid::now_v7().to_string()).await;
        }
    }
    for table in &tables {
        let may: Vec<bool> = sqlx::query_scalar(
            "select has_table_privilege('hi_app', $1, p) or (p = 'insert' and has_any_column_privilege('hi_app', $1, p)) \
             from unnest(array['select', 'update', 'delete', 'insert']) p",
        )
        .bind(table)
        .fetch_all(&db.admin)
        .await
        .expect("privileges");
        let [select, update, delete, insert] = may.as_slice() else { panic!("four verbs") };
        let new_row = row_of(table).expect("seeded above");
        let looks = format!("select 1 from {table} where tenant_id = $1");
        let changes = format!("update {table} set tenant_id = tenant_id where tenant_id = $1");
        let deletes = format!("delete from {table} where tenant_id = $1");
        let granted = |may: &bool| may.then_some(1);
        assert_eq!(as_app(&db, Some(OWN), &looks, &[OWN]).await, granted(select), "{table}");
        assert_eq!(as_app(&db, Some(OWN), &changes, &[OWN]).await, granted(update), "{table}");
        assert_eq!(as_app(&db, Some(OWN), &deletes, &[OWN]).await, granted(delete), "{table}");
        let id = Uuid::now_v7().to_string();
        assert_eq!(as_app(&db, Some(OWN), new_row, &[OWN, &id]).await, granted(insert), "{table}");

        let moves = format!("update {table} set tenant_id = '{OTHER}' where tenant_id = $1");
        assert_eq!(as_app(&db, Some(OWN), &moves, &[OWN]).await, None, "{table}: a row may not change sides");
        for context in [Some(OWN), Some(""), None] {
            // With no tenant not even a tenant's own rows.
            let victims: &[&str] = if context == Some(OWN) { &[OTHER] } else { &[OWN, OTHER, ""] };
            for victim in victims {
                for verb in [&looks, &changes, &deletes] {
                    let touched = as_app(&db, context, verb, &[victim]).await.unwrap_or_default();
                    assert_eq!(touched, 0, "{context:?}: {verb} of {victim}");
                }
                let id = Uuid::now_v7().to_string();
                let inserted = as_app(&db, context, new_row, &[victim, &id]).await;
                assert_eq!(inserted, None, "{context:?}: {new_row} of {victim}");
            }
        }
        // Without naming a tenant either.
        let all = as_app(&db, Some(OWN), &format!("select 1 from {table}"), &[]).await;
        assert_eq!(all, granted(select), "{table}");
    }
    // Partitions are reached through their root only.
    let partitions: Vec<String> =
        sqlx::query_scalar("select inhrelid::regclass::text from pg_inherits join pg_class c on c.oid = inhrelid where c.relkind = 'r'")
            .fetch_all(&db.admin)
            .await
            .expect("partitions");
    assert!(partitions.len() > 8);
    for partition in partitions {
        assert_eq!(
            as_app(&db, Some(OWN), &format!("select 1 from {partition}"), &[]).await,
            None,
            "{partition}"
        );
    }
}

/// Rows of miners that a transaction without a tenant sees, and what is left of an earlier one's settings.
async fn leaked(db: &Db) -> (i64, String) {
    let mut tx = db.without_tenant().await.expect("begin");
    sqlx::query_as("select count(*), coalesce(current_setting('app.tenant_id', true), '') from miners")
        .fetch_one(tx.conn())
        .await
        .expect("look")
}

#[tokio::test]
async fn one_connection_serves_many_tenants_and_keeps_none() {
    let mut test = TestDb::new().await;
    test.config.database.max_connections = 1;
    test.db = Db::open(&test.config).await.expect("open");
    let api = TestApi::start(&test).await;
    api.add_miner(json!({"model": "S21"})).await;
    let (own, foreign) = (api.token(), api.foreign_token());
    for _ in 0..3 {
        let mine = api.ask(&own, Method::GET, "/api/miners", None).await.expect(200);
        assert_eq!(mine.body["data"].as_array().map(Vec::len), Some(1));
        let theirs = api.ask(&foreign, Method::GET, "/api/miners", None).await.expect(200);
        assert_eq!(theirs.body["data"], json!([]));
        assert_eq!(leaked(&test.db).await, (0, String::new()));
    }
    let tenant = api.tenant.parse().expect("a tenant");
    let db = &test.db;

    // Rolled back, dropped in the middle of a statement, lost in a panic: each returns the connection clean.
    drop(db.tenant(&tenant).await.expect("begin"));
    assert_eq!(leaked(db).await, (0, String::new()));
    let sleep = async {
        let mut tx = db.tenant(&tenant).await.expect("begin");
        sqlx::query("select pg_sleep(0.3)").execute(tx.conn()).await.map(drop)
    };
    assert!(tokio::time::timeout(Duration::from_millis(100), sleep).await.is_err(), "cut off in flight");
    assert_eq!(leaked(db).await, (0, String::new()));
    let panics = async {
        let _tx = db.tenant(&tenant).await.expect("begin");
        std::panic::resume_unwind(Box::new("on purpose"));
    };
    assert!(AssertUnwindSafe(panics).catch_unwind().await.is_err());
    assert_eq!(leaked(db).await, (0, String::new()));
    let failed = async {
        let mut tx = db.tenant(&tenant).await.expect("begin");
        sqlx::query("select 1 / 0").execute(tx.conn()).await.map(drop)
    };
    assert!(failed.await.is_err());
    assert_eq!(leaked(db).await, (0, String::new()));
}
