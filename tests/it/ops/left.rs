//! Schedules that a batch leaves to the job: which, what a reader is told meanwhile, and that none is forgotten.

use std::sync::Arc;
use std::time::Duration;

use hashinsight::economics::Assumptions;
use hashinsight::event::Event;
use hashinsight::identifier::TenantId;
use hashinsight::jobs::{Job, Progress, Run};
use hashinsight::projection::Row;
use hashinsight::read_model::schedule::GROUP;
use hashinsight::role::schedules::LeftSchedules;
use reqwest::Method;
use serde_json::json;

use super::schedule::{apply, events};
use super::{MARKET, receive, this_hour};
use crate::support::{TestApi, TestDb, problem, service, settings, until};

/// A network snapshot concerns every user of a tenant: a transaction computes so many schedules, the job the others.
#[tokio::test]
async fn what_a_batch_leaves_the_job_computes() {
    const AT_ONCE: usize = 16;
    let db = TestDb::with(settings(&[("REDIS_URL", &service("REDIS_URL"))])).await;
    let api = TestApi::start(&db).await;
    let job = job(&api);
    let admin = api.admin_token();
    let users: Vec<String> = (1..=AT_ONCE + 4).map(|n| format!("u{n:02}")).collect();
    for user in &users {
        let body = json!({"user_id": user, "market": MARKET});
        api.ask(&admin, Method::PUT, "/api/ops/settings", Some(body)).await.expect(200);
    }
    let read = async |user: &str, more: &str| {
        api.ask(&admin, Method::GET, &format!("/api/ops/schedule?user_id={user}{more}"), None).await
    };
    let left = async || db.scalar::<i64>("select count(*) from ops_schedule_due").await;
    assert_eq!(apply(&db, &events(&db).await).await.len(), AT_ONCE);
    assert_eq!((left().await, run(&db, &api, &job).await, left().await), (4, 4, 0));
    for user in &users {
        let shown = read(user, "").await.expect(200);
        assert_eq!(
            (&shown.body["data"]["version"], &shown.body["data"]["warnings"]),
            (&json!(1), &json!(["no-snapshot", "no-prices", "no-miners"])),
            "{user}"
        );
    }

    // Whom an event names comes first, whatever the order of the names.
    let known = events(&db).await.len();
    let named = json!({"model": "S21", "status": "online", "owner_id": "u20"});
    api.ask(&admin, Method::POST, "/api/miners", Some(named)).await.expect(201);
    receive(&api, this_hour(), 3_600, &[50; 26]).await;
    let new = events(&db).await.split_off(known);
    let dirty = apply(&db, &new).await;
    assert_eq!(dirty.len(), AT_ONCE);
    assert!(dirty.iter().any(|d| d.row == Row::Schedule("u20".parse().expect("a user"))));
    applied(&db, &new).await;
    let price = new.last().expect("the prices").event_id;
    let after = format!("&after={price}&wait=0");
    read("u20", &after).await.expect(200);
    // Applied, but of this user not yet computed: no answer claims to hold it.
    problem(&read("u19", &after).await, 503, "not-yet-visible");
    assert_eq!(read("u19", "").await.expect(200).body["metadata"]["cache_hit"], true);
    // Asked for again before the job came: computed once, with the newest event.
    let again = apply(&db, &new[1..]).await;
    assert_eq!((again.len(), left().await), (AT_ONCE, 5));
    assert_eq!((run(&db, &api, &job).await, left().await), (5, 0));
    let shown = read("u19", "").await.expect(200);
    assert_eq!(shown.body["metadata"]["cache_hit"], false, "the copy from before was dropped");
    assert_eq!((&shown.body["data"]["version"], &shown.body["data"]["event_id"]), (&json!(2), &json!(price)));
    read("u19", &after).await.expect(200);
}

/// Leaves the schedule of everybody with settings, as a batch does.
const LEAVE: &str = "insert into ops_schedule_due (tenant_id, user_id, event_id, since) \
     select tenant_id, owner_id, gen_random_uuid(), clock_timestamp() from ops_settings \
     on conflict (tenant_id, user_id) do update set event_id = excluded.event_id";

/// An event that asks for a schedule while the job computes it leaves it once more.
#[tokio::test]
async fn an_event_during_the_computing_is_not_forgotten() {
    let db = TestDb::new().await;
    let api = TestApi::start(&db).await;
    let job = job(&api);
    api.put("/api/ops/settings", json!({"market": MARKET})).await.expect(200);
    let left = async || db.scalar::<i64>("select count(*) from ops_schedule_due").await;
    db.execute(LEAVE).await;
    assert_eq!((run(&db, &api, &job).await, left().await), (1, 0));

    db.execute(LEAVE).await;
    let asked = db.scalar::<uuid::Uuid>("select event_id from ops_schedule_due").await;
    // Whoever holds the row stops the job after it has computed and before it is done.
    let mut holds = db.admin.begin().await.expect("begin");
    sqlx::query("select from ops_schedule for update").execute(&mut *holds).await.expect("held");
    let again = async {
        until("the job waits for the row", Duration::from_secs(30), async || {
            let waits = "select exists (select from pg_stat_activity where datname = current_database() \
                         and wait_event_type = 'Lock' and query like '%ops_schedule%')";
            db.scalar::<bool>(waits).await.then_some(())
        })
        .await;
        db.execute(LEAVE).await;
        holds.commit().await.expect("commit");
    };
    let the_run = Run { id: "again".to_owned() };
    let (progress, ()) = tokio::join!(step(&db, &api, &job, &the_run), again);
    assert_eq!((progress, left().await), (Progress::More, 1));
    let computed_for = db.scalar::<uuid::Uuid>("select event_id from ops_schedule").await;
    assert_eq!(computed_for, asked, "what was asked for before");
    // Not by the run that goes on: it would never end where prices come faster than schedules are computed.
    assert_eq!((step(&db, &api, &job, &the_run).await, left().await), (Progress::Done, 1));
    assert_eq!((run(&db, &api, &job).await, left().await), (1, 0));
}

/// What is left while a run goes on is the next one's.
#[tokio::test]
async fn a_run_ends_whatever_is_left_meanwhile() {
    let db = TestDb::new().await;
    let api = TestApi::start(&db).await;
    let job = job(&api);
    api.put("/api/ops/settings", json!({"market": MARKET})).await.expect(200);
    db.execute(LEAVE).await;
    let the_run = Run { id: "one".to_owned() };
    assert_eq!(step(&db, &api, &job, &the_run).await, Progress::More);
    db.execute(LEAVE).await;
    assert_eq!(step(&db, &api, &job, &the_run).await, Progress::Done);
    assert_eq!(db.scalar::<i64>("select count(*) from ops_schedule_due").await, 1);
    assert_eq!(step(&db, &api, &job, &Run { id: "two".to_owned() }).await, Progress::More);
    assert_eq!(db.scalar::<i64>("select count(*) from ops_schedule_due").await, 0);
}

fn job(api: &TestApi) -> LeftSchedules {
    LeftSchedules::new(Assumptions::default(), Arc::clone(&api.cache))
}

/// One transaction of a run in the API's tenant.
async fn step(db: &TestDb, api: &TestApi, job: &LeftSchedules, run: &Run) -> Progress {
    let mut tx = db.db.tenant(&api.tenant.parse().expect("a tenant")).await.expect("begin");
    let progress = job.run(&mut tx, run).await.expect("run");
    tx.commit().await.expect("commit");
    progress
}

/// Runs the job in the API's tenant until it is done; how many transactions computed something.
async fn run(db: &TestDb, api: &TestApi, job: &LeftSchedules) -> usize {
    let due: Vec<(TenantId,)> = db.db.across_tenants(job.tenants(), &[]).await.expect("tenants");
    assert_eq!(due, [(api.tenant.parse().expect("a tenant"),)]);
    let run = Run { id: uuid::Uuid::now_v7().to_string() };
    let mut computed = 0;
    while step(db, api, job, &run).await == Progress::More {
        computed += 1;
    }
    computed
}

/// Enters events in the group's inbox, as the worker does that applies them.
async fn applied(db: &TestDb, events: &[Event]) {
    for event in events {
        sqlx::query(
            "insert into event_inbox (consumer_name, event_id, tenant_id, event_kind, outcome) \
             values ($1, $2, $3, $4, 'applied')",
        )
        .bind(GROUP)
        .bind(event.event_id)
        .bind(event.tenant_id.as_str())
        .bind(&event.kind)
        .execute(&db.admin)
        .await
        .expect("entered");
    }
}
