//! The clock of invoices as processes run it: it needs no caller.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::json;

use crate::support::process::{Process, run};
use crate::support::skew::SkewedClock;
use crate::support::{TestApi, TestDb, settings, until};

const CONSUME: [&str; 3] = ["consume", "--group", "portfolio-recalc-group"];
const RUNS: &str = "a job has run job=\"crm-invoices\"";
/// Said where whoever reads the log asks for it.
const IDLES: &str = "a job has run with nothing to do job=\"crm-invoices\"";
const LONG: Duration = Duration::from_secs(60);

/// An invoice of this tenant in each state that the clock changes.
async fn due(db: &TestDb, api: &TestApi) {
    let account = api.post("/api/crm/accounts", json!({"name": "Northern Hash"})).await.expect(201);
    for _ in 0..3 {
        let body = json!({"account_id": account.body["account_id"], "total_usd": 10});
        api.post("/api/crm/invoices", body).await.expect(201);
    }
    let tenant = &api.tenant;
    for (n, set) in [
        "state = 'ISSUED', due_at = now() - interval '1 second'",
        "state = 'OVERDUE', due_at = now() - interval '8 days'",
        "created_at = now() - interval '8 days'",
    ]
    .iter()
    .enumerate()
    {
        db.execute(&format!(
            "update crm_invoice set {set} where id = (select id from crm_invoice where tenant_id = '{tenant}' order by id offset {n} limit 1)"
        ))
        .await;
    }
}

/// What the clock has told of each tenant.
async fn told(db: &TestDb) -> Vec<(String, i64)> {
    sqlx::query_as(
        "select event_type, count(*) from event_outbox where event_type in ('crm.invoice_overdue', \
         'crm.invoice_reminder_due', 'crm.invoice_status_changed') group by 1 order by 1",
    )
    .fetch_all(&db.admin)
    .await
    .expect("events")
}

fn of_each(count: i64) -> Vec<(String, i64)> {
    ["crm.invoice_overdue", "crm.invoice_reminder_due", "crm.invoice_status_changed"]
        .map(|kind| (kind.to_owned(), count))
        .into()
}

async fn on_postgres() -> (TestDb, BTreeMap<String, String>) {
    let quick = [("HASHINSIGHT__EVENT_LOG__KIND", "postgres"), ("HASHINSIGHT__JOBS__POLL_MS", "50")];
    let test = TestDb::with(settings(&quick)).await;
    let ended = run(&test.environment, &["topics", "ensure"]).await;
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    let environment = test.environment.clone();
    (test, environment)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_process_leaves_its_job_to_the_other() {
    let (test, environment) = on_postgres().await;
    let (one, two) = (TestApi::start(&test).await, TestApi::start(&test).await);
    due(&test, &one).await;
    due(&test, &two).await;
    let mut failing = environment.clone();
    failing.insert("FAILPOINTS".to_owned(), "jobs.before_commit=1*off->pause".to_owned());
    let dying = Process::start(&failing, &CONSUME, "working on the partition").await;
    // One tenant is done, the other's transaction is open.
    until("it is in the middle", LONG, async || (told(&test).await == of_each(1)).then_some(())).await;
    let survivor = Process::start(&environment, &CONSUME, "joined the group").await;
    dying.kill().await;
    until("its transaction is gone", LONG, async || {
        let open = "select count(*) from pg_stat_activity where datname = current_database() and state = 'idle in transaction'";
        (test.scalar::<i64>(open).await == 0).then_some(())
    })
    .await;
    // As long as the lease lasts the dead process counts as at work.
    assert!(test.scalar::<bool>("select lease_until > now() + interval '10 seconds' from scheduled_job where name = 'crm-invoices'").await);
    assert_eq!(told(&test).await, of_each(1));
    test.execute(
        "update scheduled_job set lease_until = now() - interval '1 second' where owner is not null",
    )
    .await;
    until("the other went on", LONG, async || (told(&test).await == of_each(2)).then_some(())).await;
    let by: Vec<String> =
        sqlx::query_scalar("select distinct request_id from audit_log where actor = 'system' order by 1")
            .fetch_all(&test.admin)
            .await
            .expect("audit");
    assert_eq!(by, ["job:crm-invoices:1", "job:crm-invoices:2"]);
    until("it has ended", LONG, async || {
        let ended = "select owner is null and error is null and tenants = 1 from scheduled_job where name = 'crm-invoices'";
        test.scalar::<bool>(ended).await.then_some(())
    })
    .await;
    drop(survivor);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_with_a_clock_of_its_own_waits_for_the_databases() {
    let (test, mut environment) = on_postgres().await;
    let api = TestApi::start(&test).await;
    let clock = SkewedClock::off_by("+40d");
    environment.extend(clock.variables().map(|(name, value)| (name.to_owned(), value.to_owned())));
    let account = api.post("/api/crm/accounts", json!({"name": "Northern Hash"})).await.expect(201);
    let body = json!({"account_id": account.body["account_id"], "total_usd": 10});
    let invoice = api.post("/api/crm/invoices", body).await.expect(201);
    let path =
        format!("/api/crm/invoices/{}/transitions", invoice.body["invoice_id"].as_str().expect("an id"));
    api.post(&path, json!({"to": "ISSUED"})).await.expect(200);
    environment.insert("RUST_LOG".to_owned(), "info,hashinsight::jobs=debug".to_owned());
    let mut process = Process::start(&environment, &CONSUME, IDLES).await;
    assert!(told(&test).await.is_empty(), "due in 30 days");
    let next: bool = test
        .scalar("select next_run_at between now() and now() + interval '300 seconds' from scheduled_job where name = 'crm-invoices'")
        .await;
    assert!(next, "not by its own clock");
    test.execute("update crm_invoice set due_at = now() - interval '1 second'; update scheduled_job set next_run_at = now()")
        .await;
    process.says(RUNS).await;
    assert_eq!(told(&test).await, [("crm.invoice_overdue".to_owned(), 1)]);
    let doctor = run(&test.environment, &["doctor"]).await;
    let line = doctor.stdout.lines().find(|line| line.contains(" crm-invoices ")).unwrap_or_default();
    assert!(line.starts_with("ok") && line.contains("for 1 tenants, next "), "{line}: {}", doctor.stdout);
}
