//! Retention: what is old goes, and nothing that is still needed goes with it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use hashinsight::config::load_from;
use hashinsight::db::Db;
use hashinsight::identifier::{TenantId, UserId};
use hashinsight::outbox::{self, AppendError, Kept, Leadership, NewEvent, Outcome, Pass, Reader, Retention};
use serde_json::json;
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection};
use tokio_util::sync::CancellationToken;

use crate::support::process::Process;
use crate::support::{TestDb, until};

/// How long an append may wait behind a drop.
const APPEND_WAIT: Duration = Duration::from_millis(300);

/// For a test that is not about the wait: on a busy machine a moment is long.
const PATIENT: Duration = Duration::from_secs(20);

/// Days beyond every retention.
const OLD: i32 = 60;

fn retention(test: &TestDb) -> Retention {
    Retention { lock_wait: PATIENT, ..Retention::of(&test.config) }
}

async fn pass(test: &TestDb, retention: &Retention) -> Pass {
    retention.pass(&test.db, &CancellationToken::new()).await.expect("a pass")
}

/// What became of one partition; `None` when it was not old enough to be looked at.
fn outcome<'a>(pass: &'a Pass, partition: &str) -> Option<&'a Outcome> {
    pass.partitions.iter().find(|(name, _)| name == partition).map(|(_, outcome)| outcome)
}

/// Attaches the outbox partition of a day in the past, as it was made when it was ahead; returns its name.
async fn outbox_day(test: &TestDb, days_ago: i32) -> String {
    let day: String = test
        .scalar(&format!("select to_char((now() at time zone 'UTC')::date - {days_ago}, 'YYYYMMDD')"))
        .await;
    let name = format!("event_outbox_p{day}");
    let bounds = format!("from ('{day}'::timestamp) to ('{day}'::timestamp + interval '1 day')");
    attach(test, "event_outbox", &name, &bounds).await;
    name
}

/// Attaches the inbox partition of a day in the past; returns its name and an id inside it.
async fn inbox_day(test: &TestDb, days_ago: i32) -> (String, uuid::Uuid) {
    let day = chrono::Utc::now().date_naive() - chrono::Days::new(u64::try_from(days_ago).expect("days"));
    let id = |day: chrono::NaiveDate| {
        let midnight = day.and_time(chrono::NaiveTime::MIN).and_utc();
        uuid::Uuid::from_u128(u128::try_from(midnight.timestamp_millis()).expect("positive") << 80)
    };
    let name = format!("event_inbox_p{}", day.format("%Y%m%d"));
    let bounds = format!("from ('{}') to ('{}')", id(day), id(day + chrono::Days::new(1)));
    attach(test, "event_inbox", &name, &bounds).await;
    (name, uuid::Uuid::from_u128(id(day).as_u128() | (7 << 76) | (1 << 63) | 1))
}

async fn attach(test: &TestDb, root: &str, name: &str, bounds: &str) {
    test.execute(&format!(
        "begin; set local role hi_owner; \
         create table {name} (like {root} including defaults including constraints including indexes); \
         select hi_protect('{name}'); alter table {root} attach partition {name} for values {bounds}; commit"
    ))
    .await;
}

/// The statement that writes one event of a past day.
fn old_event(days_ago: i32) -> String {
    format!(
        "insert into event_outbox (id, aggregate_type, aggregate_id, event_key, event_type, tenant_id, user_id, \
         payload, occurred_at) select id, 'miner', 'm', 't:u', 'miner.updated', 't', 'u', jsonb_build_object( \
           'event_id', id, 'kind', 'miner.updated', 'tenant_id', 't', 'user_id', 'u'), \
           (now() at time zone 'UTC')::date - {days_ago} + interval '1 hour' from (select gen_random_uuid() as id) i"
    )
}

async fn exists(test: &TestDb, table: &str) -> bool {
    test.scalar(&format!("select to_regclass('{table}') is not null")).await
}

/// Publishes everything: moves the cursor over all rows, as the publisher does.
async fn publish(test: &TestDb) -> usize {
    let (leadership, cursor) = Leadership::acquire(&test.db).await.expect("acquire").expect("nobody leads");
    let (mut reader, mut published) = (Reader::new(cursor, 100), 0);
    loop {
        let mut tx = test.db.worker().await.expect("begin");
        let Some(page) = reader.next(tx.conn()).await.expect("read") else { break };
        assert!(leadership.store_in(&mut tx, &page.after).await.expect("store"));
        tx.commit().await.expect("commit");
        published += page.rows.len();
        reader.advance(&page);
    }
    leadership.release().await.expect("release");
    published
}

/// A connection beside the pool, for what is held open.
async fn beside(test: &TestDb) -> PgConnection {
    PgConnection::connect(test.config.database_url().expect("set")).await.expect("connect")
}

async fn execute(conn: &mut PgConnection, sql: &str) {
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(conn).await.expect(sql);
}

/// Returns once somebody waits for an exclusive lock on a table.
async fn somebody_waits(conn: &mut PgConnection, table: &str) {
    let waits = "select exists (select from pg_locks where relation = $1::text::regclass and not granted \
                 and mode = 'AccessExclusiveLock')";
    until("somebody waits for the lock", PATIENT, async || {
        let waits: bool = sqlx::query_scalar(waits).bind(table).fetch_one(&mut *conn).await.expect("locks");
        waits.then_some(())
    })
    .await;
}

async fn append(test: &TestDb, key: Option<&str>) -> Result<(), AppendError> {
    let (tenant, user): (TenantId, UserId) = ("t".parse().expect("tenant"), "u".parse().expect("user"));
    let mut tx = test.db.tenant(&tenant).await?;
    let event = NewEvent {
        kind: "miner.updated",
        user_id: &user,
        entity_id: "m".parse().expect("an entity"),
        data: json!({}),
        correlation_id: None,
        causation_id: None,
        traceparent: "",
        idempotency_key: key,
    };
    outbox::append(&mut tx, event).await?;
    Ok(tx.commit().await?)
}

#[tokio::test]
async fn a_published_day_is_dropped_when_it_is_old() {
    let test = TestDb::new().await;
    let keep = i32::try_from(test.config.outbox.retention_days).expect("days");
    let (old, just, young) =
        (outbox_day(&test, OLD).await, outbox_day(&test, keep + 1).await, outbox_day(&test, keep).await);
    for days_ago in [OLD, keep + 1, keep] {
        test.execute(&old_event(days_ago)).await;
    }
    assert_eq!(publish(&test).await, 3);
    let pass = pass(&test, &retention(&test)).await;
    assert_eq!(
        (outcome(&pass, &old), outcome(&pass, &just)),
        (Some(&Outcome::Dropped), Some(&Outcome::Dropped))
    );
    assert_eq!(outcome(&pass, &young), None, "its last hour is younger");
    assert!(!exists(&test, &old).await && !exists(&test, &just).await && exists(&test, &young).await);
    append(&test, None).await.expect("the outbox works as before");
}

#[tokio::test]
async fn nothing_is_dropped_before_a_publisher_ever_ran() {
    let test = TestDb::new().await;
    let day = outbox_day(&test, OLD).await;
    test.execute(&old_event(OLD)).await;
    let pass = pass(&test, &retention(&test)).await;
    assert_eq!(outcome(&pass, &day), Some(&Outcome::Kept(Kept::Unpublished(1))));
    assert!(exists(&test, &day).await);
}

#[tokio::test]
async fn one_unpublished_row_keeps_its_day() {
    let test = TestDb::new().await;
    let (day, other) = (outbox_day(&test, OLD).await, outbox_day(&test, OLD + 1).await);
    test.execute(&old_event(OLD)).await;
    test.execute(&old_event(OLD + 1)).await;
    // A transaction that is open while everything else is published, and one that comes after.
    let mut held = beside(&test).await;
    execute(&mut held, &format!("begin; {}", old_event(OLD))).await;
    publish(&test).await;
    execute(&mut held, "commit").await;
    test.execute(&old_event(OLD)).await;
    let first = pass(&test, &retention(&test)).await;
    assert_eq!(outcome(&first, &day), Some(&Outcome::Kept(Kept::Unpublished(2))));
    assert_eq!(outcome(&first, &other), Some(&Outcome::Dropped), "another day is not kept with it");
    assert_eq!(test.scalar::<i64>(&format!("select count(*) from {day}")).await, 3);
    assert_eq!(publish(&test).await, 2);
    assert_eq!(outcome(&pass(&test, &retention(&test)).await, &day), Some(&Outcome::Dropped));
}

/// Behind a waiting drop the appends wait; a drop that gets no lock gives up in time, and loses nothing.
#[tokio::test]
async fn an_append_waits_only_briefly_for_a_drop_that_waits() {
    let test = TestDb::new().await;
    let day = outbox_day(&test, OLD).await;
    let (mut held, mut watch) = (beside(&test).await, beside(&test).await);
    execute(&mut held, &format!("begin; {}", old_event(OLD))).await;
    append(&test, None).await.expect("connections are open");

    let retention = Retention::of(&test.config);
    let started = Instant::now();
    let behind_it = async {
        somebody_waits(&mut watch, "event_outbox").await;
        let began = Instant::now();
        append(&test, None).await.expect("appended");
        began.elapsed()
    };
    let (passed, waited) = tokio::join!(pass(&test, &retention), behind_it);
    let tried = started.elapsed();
    assert_eq!(outcome(&passed, &day), Some(&Outcome::Busy));
    assert!(passed.busy());
    assert!(waited <= APPEND_WAIT, "an append waited {waited:?}");
    assert!(tried >= Duration::from_millis(200), "the drop waited for its lock: {tried:?}");

    execute(&mut held, "commit").await;
    assert_eq!(test.scalar::<i64>(&format!("select count(*) from {day}")).await, 1, "nothing is lost");
    // What must be kept anyway is not waited for, whoever holds the table.
    execute(&mut held, &format!("begin; {}", old_event(OLD))).await;
    let after = pass(&test, &retention).await;
    assert_eq!(outcome(&after, &day), Some(&Outcome::Kept(Kept::Unpublished(1))));
}

/// The order of lock and guard: what commits while the drop waits is seen.
#[tokio::test]
async fn a_row_that_commits_while_the_drop_waits_keeps_its_day() {
    let test = TestDb::new().await;
    let day = outbox_day(&test, OLD).await;
    test.execute(&old_event(OLD)).await;
    publish(&test).await;
    // Whatever isolation the login has by default, the look comes after the lock.
    test.execute(
        "do $$ begin execute format('alter database %I set default_transaction_isolation = ''repeatable read''', \
         current_database()); end $$",
    )
    .await;
    let db = Db::open(&test.config).await.expect("new connections");
    let (mut held, mut watch) = (beside(&test).await, beside(&test).await);
    execute(&mut held, &format!("begin; {}", old_event(OLD))).await;
    let (retention, stopping) = (retention(&test), CancellationToken::new());
    let commits = async {
        somebody_waits(&mut watch, "event_outbox").await;
        execute(&mut held, "commit").await;
    };
    let (passed, ()) = tokio::join!(retention.pass(&db, &stopping), commits);
    let passed = passed.expect("a pass");
    assert_eq!(outcome(&passed, &day), Some(&Outcome::Kept(Kept::Unpublished(1))));
    assert_eq!(test.scalar::<i64>(&format!("select count(*) from {day}")).await, 2);
}

#[tokio::test]
async fn a_stuck_row_keeps_its_day() {
    let test = TestDb::new().await;
    let (day, other) = (outbox_day(&test, OLD).await, outbox_day(&test, OLD + 1).await);
    test.execute(&old_event(OLD)).await;
    test.execute(&old_event(OLD + 1)).await;
    publish(&test).await;
    test.execute(&format!(
        "insert into outbox_stuck (position, occurred_at, topic, partition) \
         select position, occurred_at, 'events.miner', 0 from {day}"
    ))
    .await;
    let first = pass(&test, &retention(&test)).await;
    assert_eq!(outcome(&first, &day), Some(&Outcome::Kept(Kept::Stuck(1))));
    assert_eq!(outcome(&first, &other), Some(&Outcome::Dropped));
    test.execute("delete from outbox_stuck").await;
    assert_eq!(outcome(&pass(&test, &retention(&test)).await, &day), Some(&Outcome::Dropped));
}

/// The cursor's word counts only where its transaction ids mean something, and only for rows the owner sees.
#[tokio::test]
async fn a_guard_that_cannot_know_refuses() {
    let test = TestDb::new().await;
    let day = outbox_day(&test, OLD).await;
    test.execute(&old_event(OLD)).await;
    publish(&test).await;
    test.execute("update publisher_cursor set system_identifier = system_identifier - 1").await;
    let moved = pass(&test, &retention(&test)).await;
    assert_eq!(outcome(&moved, &day), Some(&Outcome::Kept(Kept::OtherCluster)));
    test.execute("update publisher_cursor set system_identifier = system_identifier + 1").await;

    test.execute(&old_event(OLD)).await;
    test.execute("drop policy owner_all on event_outbox").await;
    let blind = pass(&test, &retention(&test)).await;
    assert_eq!(outcome(&blind, &day), Some(&Outcome::Kept(Kept::Hidden)), "it sees no rows at all");
    test.execute("create policy owner_all on event_outbox to hi_owner using (true) with check (true)").await;
    let sees = pass(&test, &retention(&test)).await;
    assert_eq!(outcome(&sees, &day), Some(&Outcome::Kept(Kept::Unpublished(1))));
}

/// Rows below the floor were handled by a rebase, whatever their ids say here.
#[tokio::test]
async fn a_row_below_the_floor_counts_as_handled() {
    let test = TestDb::new().await;
    let (day, above) = (outbox_day(&test, OLD).await, outbox_day(&test, OLD + 1).await);
    test.execute(&old_event(OLD)).await;
    test.execute("update publisher_cursor set floor_position = (select max(position) from event_outbox)")
        .await;
    test.execute(&old_event(OLD + 1)).await;
    let pass = pass(&test, &retention(&test)).await;
    assert_eq!(outcome(&pass, &day), Some(&Outcome::Dropped));
    assert_eq!(outcome(&pass, &above), Some(&Outcome::Kept(Kept::Unpublished(1))));
}

#[tokio::test]
async fn what_is_not_ours_is_never_dropped() {
    let test = TestDb::new().await;
    test.execute(
        "create extension if not exists file_fdw; create server archive foreign data wrapper file_fdw; \
         create foreign table archived (position bigint, xid xid8, id uuid, aggregate_type text, aggregate_id text, \
           event_key text, event_type text, tenant_id text, user_id text, payload jsonb, schema_version int, \
           traceparent text, occurred_at timestamp, idempotency_key text) \
           server archive options (filename '/dev/null', format 'csv'); \
         alter foreign table archived alter position set not null",
    )
    .await;
    // What indexes the root has, a foreign table cannot have; none is unique, so it may be attached.
    let columns = "position, id, aggregate_type, aggregate_id, event_key, event_type, tenant_id, user_id, payload, \
                   schema_version, traceparent, occurred_at, xid";
    for column in columns.split(", ") {
        test.execute(&format!("alter foreign table archived alter {column} set not null")).await;
    }
    test.execute(
        "do $$ declare c record; begin \
           for c in select conname, pg_get_constraintdef(oid) as def from pg_constraint \
             where conrelid = 'event_outbox'::regclass and contype = 'c' loop \
             execute format('alter foreign table archived add constraint %I %s', c.conname, c.def); \
           end loop; end $$; \
         alter table event_outbox attach partition archived for values from ('2020-01-01') to ('2020-01-02')",
    )
    .await;
    // A published day that nobody attached: perhaps somebody keeps it.
    let detached = outbox_day(&test, OLD).await;
    test.execute(&format!("alter table event_outbox detach partition {detached}")).await;
    let default_of_inbox = exists(&test, "event_inbox_default").await;
    publish(&test).await;
    let pass = pass(&test, &retention(&test)).await;
    assert!(pass.partitions.is_empty(), "{pass:?}");
    assert!(exists(&test, "archived").await && exists(&test, &detached).await && default_of_inbox);
    assert!(exists(&test, "event_inbox_default").await);
}

#[tokio::test]
async fn a_day_of_the_inbox_goes_unless_an_event_of_it_is_parked() {
    let test = TestDb::new().await;
    let keep = i32::try_from(test.config.consumer.inbox_retention_days).expect("days");
    let (old, old_id) = inbox_day(&test, keep + 2).await;
    let (parked, parked_id) = inbox_day(&test, keep + 3).await;
    let (young, young_id) = inbox_day(&test, keep - 1).await;
    for (id, outcome) in [(old_id, "applied"), (parked_id, "parked"), (young_id, "applied")] {
        test.execute(&format!(
            "insert into event_inbox (consumer_name, event_id, tenant_id, event_kind, outcome) \
             values ('g', '{id}', 't', 'miner.updated', '{outcome}')"
        ))
        .await;
    }
    let first = pass(&test, &retention(&test)).await;
    assert_eq!(outcome(&first, &old), Some(&Outcome::Dropped));
    assert_eq!(outcome(&first, &parked), Some(&Outcome::Kept(Kept::Parked(1))));
    assert_eq!(outcome(&first, &young), None);
    assert!(!exists(&test, &old).await && exists(&test, &parked).await && exists(&test, &young).await);
    test.execute("update event_inbox set outcome = 'dead' where outcome = 'parked'").await;
    assert_eq!(outcome(&pass(&test, &retention(&test)).await, &parked), Some(&Outcome::Dropped));
}

#[tokio::test]
async fn foreign_ids_leave_the_inbox_in_batches() {
    let test = TestDb::new().await;
    // Beyond every day: a random id may lie within one that has a partition.
    test.execute(
        "insert into event_inbox (consumer_name, event_id, tenant_id, event_kind, outcome, processed_at) \
         select 'g', ('ffffffff' || substr(gen_random_uuid()::text, 9))::uuid, 't', 'miner.updated', 'applied', now() - interval '39 days' \
           from generate_series(1, 2500) union all \
         select 'g', ('ffffffff' || substr(gen_random_uuid()::text, 9))::uuid, 't', 'miner.updated', 'parked', now() - interval '39 days' union all \
         select 'g', ('ffffffff' || substr(gen_random_uuid()::text, 9))::uuid, 't', 'miner.updated', 'applied', now() - interval '37 days'",
    )
    .await;
    assert_eq!(pass(&test, &retention(&test)).await.foreign_ids, 2_500);
    assert_eq!(
        test.scalar::<i64>("select count(*) from event_inbox").await,
        2,
        "one is parked, one is young"
    );
}

#[tokio::test]
async fn old_idempotency_keys_go_in_batches_and_young_ones_are_still_refused() {
    let test = TestDb::new().await;
    append(&test, Some("young")).await.expect("the first");
    test.execute(
        "insert into event_idempotency (tenant_id, idempotency_key, event_id, created_at) \
         select 't', 'old-' || n, gen_random_uuid(), now() - interval '39 days' from generate_series(1, 2500) n; \
         create table batches (deleted bigint); \
         create function count_batch() returns trigger language plpgsql security definer as $$ begin \
           insert into batches select count(*) from gone; return null; end $$; \
         create trigger count_batch after delete on event_idempotency referencing old table as gone \
           for each statement execute function count_batch()",
    )
    .await;
    assert_eq!(pass(&test, &retention(&test)).await.idempotency_keys, 2_500);
    let batches: Vec<i64> = sqlx::query_scalar("select deleted from batches order by deleted desc")
        .fetch_all(&test.admin)
        .await
        .expect("batches");
    assert_eq!(batches, [1_000, 1_000, 500]);
    assert!(matches!(append(&test, Some("young")).await, Err(AppendError::Duplicate)));
    append(&test, Some("old-1")).await.expect("an old key may come again");
}

/// A key stands for its event for as long as that is there.
#[tokio::test]
async fn a_key_outlives_the_day_of_its_event() {
    let test = TestDb::new().await;
    outbox_day(&test, OLD).await;
    test.execute(&old_event(OLD)).await;
    test.execute(&format!(
        "insert into event_idempotency (tenant_id, idempotency_key, event_id, created_at) \
         select 't', 'kept', id, now() - interval '{OLD} days' + interval '1 day' from event_outbox"
    ))
    .await;
    assert_eq!(pass(&test, &retention(&test)).await.idempotency_keys, 0, "its day is kept, so is the key");
    publish(&test).await;
    // The day goes first, and in the same pass the key.
    assert_eq!(pass(&test, &retention(&test)).await.idempotency_keys, 1);
}

/// A login as in production: no superuser, only a member of the three roles.
struct Login<'a> {
    test: &'a TestDb,
    name: String,
}

impl<'a> Login<'a> {
    async fn new(test: &'a TestDb) -> Self {
        let name = format!("hi_test_login_{}", uuid::Uuid::now_v7().simple());
        test.execute(&format!("create role {name} login nosuperuser in role hi_owner, hi_app, hi_worker"))
            .await;
        Self { test, name }
    }

    fn environment(&self) -> BTreeMap<String, String> {
        let mut environment = self.test.environment.clone();
        let url = environment.get_mut("DATABASE_URL").expect("set");
        let (_, server) = url.split_once('@').expect("a user");
        *url = format!("postgres://{}@{server}", self.name);
        environment
    }
}

impl Drop for Login<'_> {
    fn drop(&mut self) {
        let url = self.test.config.database_url().expect("set").to_owned();
        let statement = format!("drop role {}", self.name);
        // A runtime of its own, also when the test fails: the role belongs to the cluster, not to the test's database.
        let dropped = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let mut conn = PgConnection::connect(&url).await.expect("connect");
                execute(&mut conn, &statement).await;
                Ok::<_, std::io::Error>(())
            })
        });
        let _ = dropped.join();
    }
}

#[tokio::test]
async fn the_guard_sees_every_row_as_the_production_role() {
    let test = TestDb::new().await;
    let (day, published) = (outbox_day(&test, OLD).await, outbox_day(&test, OLD + 1).await);
    let (inbox, id) = inbox_day(&test, OLD).await;
    test.execute(&old_event(OLD + 1)).await;
    publish(&test).await;
    test.execute(&old_event(OLD)).await;
    test.execute(&format!(
        "insert into event_inbox (consumer_name, event_id, tenant_id, event_kind, outcome) \
           values ('g', '{id}', 't', 'miner.updated', 'parked'); \
         insert into event_inbox (consumer_name, event_id, tenant_id, event_kind, outcome, processed_at) \
           values ('g', gen_random_uuid(), 't', 'miner.updated', 'applied', now() - interval '39 days'); \
         insert into event_idempotency (tenant_id, idempotency_key, event_id, created_at) \
           values ('t', 'old', gen_random_uuid(), now() - interval '61 days')"
    ))
    .await;
    let login = Login::new(&test).await;
    let config = load_from(None, &login.environment()).expect("valid").config;
    let db = Db::open(&config).await.expect("the login may");
    let pass = retention(&test).pass(&db, &CancellationToken::new()).await.expect("a pass");
    db.close().await;
    assert_eq!(outcome(&pass, &day), Some(&Outcome::Kept(Kept::Unpublished(1))));
    assert_eq!(outcome(&pass, &published), Some(&Outcome::Dropped));
    assert_eq!(outcome(&pass, &inbox), Some(&Outcome::Kept(Kept::Parked(1))));
    assert_eq!((pass.foreign_ids, pass.idempotency_keys), (1, 1));
}

/// The real process: a role drops what is old by itself, as the production login, and raises the alarm for the rest.
#[tokio::test]
async fn a_running_publisher_drops_what_is_old() {
    let test = TestDb::with_topics(1).await;
    let (kept, old) = (outbox_day(&test, OLD).await, outbox_day(&test, OLD + 1).await);
    test.execute(&old_event(OLD + 1)).await;
    publish(&test).await;
    test.execute(&old_event(OLD)).await;
    // Not published by the process under test: its row waits in a lane that is stuck.
    test.execute(&format!(
        "insert into outbox_stuck (position, occurred_at, topic, partition) \
         select position, occurred_at, 'nowhere', -1 from {kept}"
    ))
    .await;
    let login = Login::new(&test).await;
    let mut environment = login.environment();
    environment.insert("HASHINSIGHT__EVENT_LOG__KIND".to_owned(), "postgres".to_owned());
    let mut process = Process::start(&environment, &["publish"], "dropped, older than its retention").await;
    process.says("kept beyond its retention").await;
    assert!(!exists(&test, &old).await && exists(&test, &kept).await);
    process.signal("TERM").await;
    let (status, log) = process.ended().await;
    assert!(status.success(), "{log}");
}
