//! A database restored into another cluster: publishing is refused, `publish --rebase` repairs it, nothing is lost.

use std::collections::BTreeMap;
use std::time::Duration;

use hashinsight::config::{Config, load_from};
use hashinsight::db::{Db, TenantTx};
use hashinsight::identifier::{TenantId, UserId};
use hashinsight::outbox::{self, Kept, Leadership, NewEvent, Outcome, Reader, RebaseError, Retention};
use serde_json::{Value, json};
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection};
use tokio::process::Command;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::support::process::run;
use crate::support::{Cluster, TestDb, until};

const PAGE: u32 = 10;

fn tenant() -> TenantId {
    "acme".parse().expect("a tenant")
}

async fn append(tx: &mut TenantTx, entity: &str) -> Uuid {
    let user: UserId = "7".parse().expect("a user");
    let event = NewEvent {
        kind: "miner.updated",
        user_id: &user,
        entity_id: entity.parse().expect("an entity"),
        data: json!({}),
        correlation_id: None,
        causation_id: None,
        traceparent: "",
        idempotency_key: None,
    };
    outbox::append(tx, event).await.expect("appended")
}

/// Commits so many events, each of a transaction of its own.
async fn commit(db: &Db, count: usize) -> Vec<Uuid> {
    let mut ids = Vec::new();
    for n in 0..count {
        let mut tx = db.tenant(&tenant()).await.expect("begin");
        ids.push(append(&mut tx, &format!("m-{n}")).await);
        tx.commit().await.expect("commit");
    }
    ids
}

/// Publishes so many pages, or everything.
async fn publish(db: &Db, pages: usize) -> Vec<Uuid> {
    let (leadership, cursor) = Leadership::acquire(db).await.expect("acquire").expect("nobody leads");
    let (mut reader, mut published) = (Reader::new(cursor, PAGE), Vec::new());
    for _ in 0..pages {
        let mut tx = db.worker().await.expect("begin");
        let Some(page) = reader.next(tx.conn()).await.expect("read") else { break };
        assert!(leadership.store_in(&mut tx, &page.after).await.expect("store"));
        tx.commit().await.expect("commit");
        published.extend(page.rows.iter().map(|row| row.id));
        reader.advance(&page);
    }
    leadership.release().await.expect("release");
    published
}

async fn connect(config: &Config) -> PgConnection {
    PgConnection::connect(config.database_url().expect("set")).await.expect("connect")
}

async fn execute(conn: &mut PgConnection, sql: &str) {
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(conn).await.expect(sql);
}

async fn scalar<T>(conn: &mut PgConnection, sql: &str) -> T
where
    T: Send + Unpin + for<'r> sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres>,
{
    sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(conn).await.expect(sql)
}

/// A database in the states that a dump can find it in.
struct Source {
    test: TestDb,
    published: Vec<Uuid>,
    unpublished: Vec<Uuid>,
    /// An old partition with two published events.
    old_day: String,
}

impl Source {
    async fn new() -> Self {
        let test = TestDb::new().await;
        let old_day = old_day(&test).await;
        // The lowest position of all, and unpublished to the end.
        let mut held = test.db.tenant(&tenant()).await.expect("begin");
        let early = append(&mut held, "held").await;
        let mut published = commit(&test.db, 25).await;
        publish(&test.db, usize::MAX).await;
        // A window that is handed over in part, ...
        let window = commit(&test.db, 15).await;
        assert_eq!(publish(&test.db, 1).await, window[..PAGE as usize]);
        published.extend(&window[..PAGE as usize]);
        // ... what became visible since then, below its position and above.
        held.commit().await.expect("commit");
        let mut unpublished = vec![early];
        unpublished.extend(&window[PAGE as usize..]);
        unpublished.extend(commit(&test.db, 3).await);
        test.execute(&format!(
            "insert into outbox_stuck (position, occurred_at, topic, partition) \
             select position, occurred_at, 'events.miner', 0 from event_outbox where id = '{}'",
            published[3]
        ))
        .await;
        Self { test, published, unpublished, old_day }
    }
}

async fn old_day(test: &TestDb) -> String {
    let day: String = test.scalar("select to_char((now() at time zone 'UTC')::date - 60, 'YYYYMMDD')").await;
    let name = format!("event_outbox_p{day}");
    test.execute(&format!(
        "begin; set local role hi_owner; \
         create table {name} (like event_outbox including defaults including constraints including indexes); \
         select hi_protect('{name}'); alter table event_outbox attach partition {name} \
           for values from ('{day}'::timestamp) to ('{day}'::timestamp + interval '1 day'); commit"
    ))
    .await;
    for _ in 0..2 {
        test.execute(&format!(
            "insert into event_outbox (id, aggregate_type, aggregate_id, event_key, event_type, tenant_id, user_id, \
             payload, occurred_at) select id, 'miner', 'm', 't:u', 'miner.updated', 't', 'u', jsonb_build_object( \
               'event_id', id, 'kind', 'miner.updated', 'tenant_id', 't', 'user_id', 'u'), '{day}'::timestamp \
             from (select gen_random_uuid() as id) i"
        ))
        .await;
    }
    name
}

/// The same database in another cluster, by the way that the README describes.
struct Restored {
    environment: BTreeMap<String, String>,
    config: Config,
    db: Db,
    admin: PgConnection,
    // The last field: it ends after its connections.
    _cluster: Cluster,
}

impl Restored {
    /// `ahead`: more transactions have run in the other cluster than in the first one.
    async fn from(source: &Source, ahead: bool) -> Self {
        let cluster = Cluster::start(&[]).await;
        let mut postgres = PgConnection::connect(&cluster.url("postgres")).await.expect("connect");
        execute(&mut postgres, "create database restored").await;
        if ahead {
            let next: i64 = source.test.scalar("select pg_current_xact_id()::text::bigint + 5000").await;
            execute(&mut postgres, "set synchronous_commit = off").await;
            let burn = format!(
                "do $$ begin while pg_current_xact_id()::text::bigint < {next} loop commit; end loop; end $$"
            );
            execute(&mut postgres, &burn).await;
        }
        let url = cluster.url("restored");
        let mut admin = PgConnection::connect(&url).await.expect("connect");
        execute(&mut admin, include_str!("../../migrations/roles.sql")).await;
        let dump = std::env::temp_dir().join(format!("hi_dump_{}", Uuid::now_v7().simple()));
        let from = source.test.config.database_url().expect("set");
        // A role that row security does not filter, and no superuser.
        let mut pg_dump = Command::new("pg_dump");
        pg_dump.args(["--role=hi_backup", "--format=custom", "--dbname", from, "--file"]).arg(&dump);
        let mut pg_restore = Command::new("pg_restore");
        pg_restore.args(["--exit-on-error", "--dbname", &url]).arg(&dump);
        for command in [&mut pg_dump, &mut pg_restore] {
            let ended = command.output().await.expect("it runs");
            assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
        }
        std::fs::remove_file(dump).expect("removed");
        let mut environment = source.test.environment.clone();
        environment.insert("DATABASE_URL".to_owned(), url);
        environment.insert("HASHINSIGHT__EVENT_LOG__KIND".to_owned(), "postgres".to_owned());
        let config = load_from(None, &environment).expect("valid").config;
        let db = Db::open(&config).await.expect("the restored database");
        Self { environment, config, db, admin, _cluster: cluster }
    }

    /// Events written before anybody noticed: also inside a savepoint, where a row's xmin is not its transaction's id.
    async fn write(&mut self) -> Vec<Uuid> {
        let mut written = commit(&self.db, 4).await;
        let mut tx = self.db.tenant(&tenant()).await.expect("begin");
        written.push(append(&mut tx, "outside").await);
        for n in 0..2 {
            sqlx::query("savepoint inner_one").execute(tx.conn()).await.expect("savepoint");
            written.push(append(&mut tx, &format!("inside-{n}")).await);
        }
        tx.commit().await.expect("commit");
        written
    }

    async fn retained(&self, partition: &str) -> Outcome {
        let retention = Retention::of(&self.config);
        let pass = retention.pass(&self.db, &CancellationToken::new()).await.expect("a pass");
        let (_, outcome) = pass.partitions.into_iter().find(|(name, _)| name == partition).expect("old");
        outcome
    }
}

async fn restored_and_repaired(ahead: bool) {
    let source = Source::new().await;
    let mut restored = Restored::from(&source, ahead).await;
    let mut expected = source.unpublished.clone();
    expected.extend(restored.write().await);

    // Refused, with the remedy; what is old is kept, since nobody can tell what is published.
    let refused = Leadership::acquire(&restored.db).await.expect_err("refused").to_string();
    assert!(refused.contains("`hashinsight publish --rebase`"), "{refused}");
    let ended = run(&restored.environment, &["publish"]).await;
    assert_eq!(ended.code, 1, "{}", ended.stderr);
    assert!(ended.stderr.contains("`hashinsight publish --rebase`"), "{}", ended.stderr);
    assert_eq!(restored.retained(&source.old_day).await, Outcome::Kept(Kept::OtherCluster));
    let ended = run(&restored.environment, &["publish", "--rebase", "--xids-preserved"]).await;
    assert_eq!(ended.code, 1, "{}", ended.stderr);
    assert!(ended.stderr.contains("were not preserved"), "{}", ended.stderr);

    // A transaction that has its id, but has not written to the outbox yet, is not waited for.
    let mut open = restored.db.tenant(&tenant()).await.expect("begin");
    sqlx::query("select pg_current_xact_id()").execute(open.conn()).await.expect("an id");
    if ahead {
        // As after a load of the data alone, which leaves the sequence at its beginning.
        execute(&mut restored.admin, "select setval('event_outbox_position_seq', 1)").await;
    }
    let largest: i64 = scalar(&mut restored.admin, "select max(position) from event_outbox").await;
    let ended = run(&restored.environment, &["publish", "--rebase", "--json"]).await;
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    let report: Value = serde_json::from_str(&ended.stdout).expect("one document");
    assert_eq!(report["rebased"], true);
    assert_eq!(report["done"]["inserted_again"], expected.len(), "{report}");
    assert_eq!(report["done"]["floor_position"], largest, "{report}");
    let moved =
        "select position > floor_position from publisher_cursor, event_outbox order by position desc limit 1";
    assert!(scalar::<bool>(&mut restored.admin, moved).await, "new positions are above the floor");

    expected.push(append(&mut open, "open").await);
    open.commit().await.expect("commit");
    expected.extend(commit(&restored.db, 12).await);
    let published = publish(&restored.db, usize::MAX).await;
    let lost: Vec<&Uuid> = expected.iter().filter(|id| !published.contains(id)).collect();
    assert!(lost.is_empty(), "lost: {lost:?}");
    assert!(!published.iter().any(|id| source.published.contains(id)), "none that was published comes again");
    assert_eq!(published, expected, "each once, in the order of their first positions");

    let repeated = "select count(*) from (select id, count(distinct occurred_at) as moments, \
                    count(distinct payload) as payloads, count(*) from event_outbox group by id having count(*) > 1) r \
                    where moments = 1 and payloads = 1 and count = 2";
    let repeated: i64 = scalar(&mut restored.admin, repeated).await;
    assert_eq!(usize::try_from(repeated).expect("a count"), expected.len() - 13, "the copies are equal");
    let stuck = "select o.id from outbox_stuck s join event_outbox o on o.position = s.position";
    assert_eq!(
        scalar::<Uuid>(&mut restored.admin, stuck).await,
        source.published[3],
        "a stuck row stays what it was"
    );
    assert_eq!(restored.retained(&source.old_day).await, Outcome::Dropped);
    let ended = run(&restored.environment, &["publish", "--rebase"]).await;
    assert_eq!((ended.code, ended.stdout.trim()), (0, "nothing to do: the cursor is of this cluster"));
    restored.db.close().await;
}

#[tokio::test]
async fn a_restored_database_is_refused_and_repaired() {
    restored_and_repaired(false).await;
}

/// With ids beyond those of the dump, a restored row looks as if it could have been written here.
#[tokio::test]
async fn a_database_restored_into_a_busier_cluster_is_repaired() {
    restored_and_repaired(true).await;
}

/// As pg_upgrade leaves it: the same ids and snapshots, another system.
#[tokio::test]
async fn with_preserved_ids_only_the_system_changes() {
    let source = Source::new().await;
    source.test.execute("update publisher_cursor set system_identifier = 42").await;
    let refused = Leadership::acquire(&source.test.db).await.expect_err("refused").to_string();
    assert!(refused.contains("`hashinsight publish --rebase`"), "{refused}");
    let done = outbox::rebase(&source.test.db, true).await.expect("rebased").expect("done");
    assert_eq!((done.inserted_again, done.stored_system.as_str()), (0, "42"));
    let mut expected = source.unpublished.clone();
    expected.extend(commit(&source.test.db, 4).await);
    let mut published = publish(&source.test.db, usize::MAX).await;
    // The window that was begun comes first.
    published.sort_by_key(|id| expected.iter().position(|e| e == id));
    assert_eq!(published, expected, "each once, none that was published before");
}

#[tokio::test]
async fn a_rebase_refuses_what_it_cannot_repair() {
    let test = TestDb::new().await;
    let in_place = run(&test.environment, &["publish", "--rebase", "--json"]).await;
    assert_eq!(in_place.code, 0, "{}", in_place.stderr);
    let report: Value = serde_json::from_str(&in_place.stdout).expect("one document");
    assert_eq!(report, json!({ "rebased": false, "done": null }));

    let (leadership, _) = Leadership::acquire(&test.db).await.expect("acquire").expect("leads");
    test.execute("update publisher_cursor set system_identifier = 42").await;
    let ended = run(&test.environment, &["publish", "--rebase"]).await;
    assert_eq!(ended.code, 1, "{}", ended.stderr);
    assert!(ended.stderr.contains("a publisher leads"), "{}", ended.stderr);
    leadership.release().await.expect("release");

    let day = old_day(&test).await;
    test.execute(&format!("alter table event_outbox detach partition {day}")).await;
    let detached = outbox::rebase(&test.db, false).await.expect_err("refused");
    assert!(matches!(&detached, RebaseError::Detached(name) if *name == day), "{detached}");
    test.execute(&format!(
        "insert into outbox_stuck (position, occurred_at, topic, partition) \
           select position, occurred_at, 'events.miner', 0 from {day} limit 1; drop table {day}"
    ))
    .await;
    let dropped = outbox::rebase(&test.db, false).await.expect_err("refused");
    assert!(matches!(&dropped, RebaseError::StuckWithout { rows: 1, .. }), "{dropped}");
    assert_eq!(
        test.scalar::<i64>("select system_identifier from publisher_cursor").await,
        42,
        "nothing was changed"
    );
}

/// A writer that has begun is waited for, and its event is not forgotten; the old leader's epoch ends.
#[tokio::test]
async fn a_rebase_waits_for_writers() {
    let test = TestDb::new().await;
    let (stale, cursor) = Leadership::acquire(&test.db).await.expect("acquire").expect("leads");
    test.terminate_lock_holders().await;
    let mut writer = test.db.tenant(&tenant()).await.expect("begin");
    let event = append(&mut writer, "m").await;
    test.execute("update publisher_cursor set system_identifier = 42").await;
    let mut watch = connect(&test.config).await;
    let commits = async {
        let waits =
            "select exists (select from pg_locks where relation = 'event_outbox'::regclass and not granted)";
        until("the rebase waits for the writer", Duration::from_secs(5), async || {
            scalar::<bool>(&mut watch, waits).await.then_some(())
        })
        .await;
        writer.commit().await.expect("commit");
    };
    let (done, ()) = tokio::join!(outbox::rebase(&test.db, false), commits);
    assert_eq!(done.expect("rebased").expect("done").inserted_again, 1);
    let mut tx = test.db.worker().await.expect("begin");
    assert!(!stale.store_in(&mut tx, &cursor).await.expect("asked"), "it would undo the rebase");
    tx.rollback().await.expect("rollback");
    assert_eq!(publish(&test.db, usize::MAX).await, [event]);
}
