//! The outbox: nothing committed is missed, doubled or delayed, whoever holds a transaction open.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use hashinsight::db::TenantTx;
use hashinsight::identifier::{TenantId, UserId};
use hashinsight::outbox::{self, AppendError, Leadership, NewEvent, OutboxRow, Reader, Retention};
use hashinsight::partitions::Upkeep;
use serde_json::json;
use uuid::Uuid;

use crate::support::{TestDb, until};

const PAGE: u32 = 10;

/// Longer than anything takes on a busy machine.
const DEADLINE: Duration = Duration::from_secs(60);

fn tenant() -> TenantId {
    "acme".parse().expect("a tenant")
}

fn owner() -> UserId {
    "7".parse().expect("a user")
}

/// An event of one entity, caused by nothing and with no key of its own.
fn event<'a>(kind: &'a str, user_id: &'a UserId, entity: &str) -> NewEvent<'a> {
    NewEvent {
        kind,
        user_id,
        entity_id: entity.parse().expect("an entity"),
        data: json!({}),
        correlation_id: None,
        causation_id: None,
        traceparent: "",
        idempotency_key: None,
    }
}

async fn append(tx: &mut TenantTx, entity: &str, n: usize) -> Uuid {
    let user = owner();
    let event = NewEvent { data: json!({ "n": n }), ..event("miner.updated", &user, entity) };
    outbox::append(tx, event).await.expect("appended")
}

/// Commits one event of its own transaction.
async fn commit_one(test: &TestDb, entity: &str, n: usize) -> Uuid {
    let mut tx = test.db.tenant(&tenant()).await.expect("begin");
    let id = append(&mut tx, entity, n).await;
    tx.commit().await.expect("commit");
    id
}

/// Reads until nothing is left and stores the cursor page by page, as the publisher does.
async fn drain(test: &TestDb, leadership: &Leadership, reader: &mut Reader) -> Vec<OutboxRow> {
    let mut rows = Vec::new();
    loop {
        let mut tx = test.db.worker().await.expect("begin");
        let Some(page) = reader.next(tx.conn()).await.expect("read") else { return rows };
        assert!(page.rows.len() <= PAGE as usize);
        assert!(leadership.store_in(&mut tx, &page.after).await.expect("store"), "still leading");
        tx.commit().await.expect("commit");
        reader.advance(&page);
        rows.extend(page.rows);
    }
}

async fn lead(test: &TestDb) -> (Leadership, Reader) {
    let (leadership, cursor) =
        Leadership::acquire(&test.db).await.expect("acquire").expect("nobody else leads");
    (leadership, Reader::new(cursor, PAGE))
}

fn ids(rows: &[OutboxRow]) -> Vec<Uuid> {
    rows.iter().map(|r| r.id).collect()
}

#[tokio::test]
async fn a_transaction_held_open_loses_and_delays_nothing() {
    let test = TestDb::new().await;
    let (leadership, mut reader) = lead(&test).await;

    // It draws the lowest position, and its id is older than all that follow.
    let mut held = test.db.tenant(&tenant()).await.expect("begin");
    let early = append(&mut held, "early", 0).await;

    let mut others = Vec::new();
    for n in 0..25 {
        others.push(commit_one(&test, &format!("other-{n}"), n).await);
    }
    assert_eq!(
        ids(&drain(&test, &leadership, &mut reader).await),
        others,
        "nobody waits for the open transaction"
    );

    held.commit().await.expect("commit");
    assert_eq!(ids(&drain(&test, &leadership, &mut reader).await), [early], "and it is not passed over");

    let after = commit_one(&test, "after", 0).await;
    assert_eq!(ids(&drain(&test, &leadership, &mut reader).await), [after], "nothing is read twice");
}

#[tokio::test]
async fn a_rolled_back_transaction_leaves_nothing() {
    let test = TestDb::new().await;
    let (leadership, mut reader) = lead(&test).await;
    let mut tx = test.db.tenant(&tenant()).await.expect("begin");
    append(&mut tx, "gone", 0).await;
    drop(tx);
    let kept = commit_one(&test, "kept", 0).await;
    assert_eq!(ids(&drain(&test, &leadership, &mut reader).await), [kept]);
}

#[tokio::test]
async fn a_restart_inside_a_window_finishes_that_window() {
    let test = TestDb::new().await;
    let (leadership, mut reader) = lead(&test).await;
    let mut held = test.db.tenant(&tenant()).await.expect("begin");
    let low = append(&mut held, "held", 0).await;
    let mut expected = HashSet::new();
    for n in 0..35 {
        expected.insert(commit_one(&test, &format!("m-{n}"), n).await);
    }

    // One page of the window is handed over and stored; then the publisher dies.
    let mut seen = Vec::new();
    let mut tx = test.db.worker().await.expect("begin");
    let page = reader.next(tx.conn()).await.expect("read").expect("a page");
    assert!(page.after.reading.is_some(), "the window goes on");
    assert!(leadership.store_in(&mut tx, &page.after).await.expect("store"));
    tx.commit().await.expect("commit");
    seen.extend(ids(&page.rows));
    leadership.release().await.expect("release");

    // Meanwhile the row with the lowest position becomes visible: below the stored position, after the stored window.
    held.commit().await.expect("commit");
    expected.insert(low);
    for n in 0..5 {
        expected.insert(commit_one(&test, &format!("later-{n}"), n).await);
    }

    let (leadership, mut reader) = lead(&test).await;
    seen.extend(ids(&drain(&test, &leadership, &mut reader).await));
    assert_eq!(seen.len(), expected.len(), "none is read twice");
    assert_eq!(seen.into_iter().collect::<HashSet<_>>(), expected, "none is lost");
}

#[tokio::test]
async fn a_leader_without_its_lock_is_fenced() {
    let test = TestDb::new().await;
    let (old, mut reader) = lead(&test).await;
    assert!(Leadership::acquire(&test.db).await.expect("asked").is_none(), "one leads");
    commit_one(&test, "m", 0).await;
    test.terminate_lock_holders().await;
    let (new, _) = lead(&test).await;

    let mut tx = test.db.worker().await.expect("begin");
    let page = reader.next(tx.conn()).await.expect("read").expect("a page");
    assert!(!old.store_in(&mut tx, &page.after).await.expect("asked"), "the old leader stores nothing");
    tx.rollback().await.expect("rollback");
    let mut tx = test.db.worker().await.expect("begin");
    assert!(new.store_in(&mut tx, &page.after).await.expect("asked"));
}

/// Who is fenced and still has the lock, as when somebody takes the lead over, neither beats nor stores.
#[tokio::test]
async fn a_leader_with_its_lock_is_fenced_by_the_epoch_alone() {
    let test = TestDb::new().await;
    let (old, mut reader) = lead(&test).await;
    commit_one(&test, "m", 0).await;
    let mut tx = test.db.worker().await.expect("begin");
    let page = reader.next(tx.conn()).await.expect("read").expect("a page");
    tx.rollback().await.expect("rollback");
    assert!(old.beat().await.expect("asked"));
    let epoch: i64 = test.scalar("select epoch from publisher_cursor").await;
    let gives_way = async {
        until("the epoch is another", DEADLINE, async || {
            (test.scalar::<i64>("select epoch from publisher_cursor").await > epoch).then_some(())
        })
        .await;
        assert!(!old.beat().await.expect("asked"), "it does not live any more");
        assert!(!old.store(&page.after).await.expect("asked"), "nothing is stored");
        let mut tx = test.db.worker().await.expect("begin");
        assert!(!old.store_in(&mut tx, &page.after).await.expect("asked"), "nor in a transaction");
        tx.rollback().await.expect("rollback");
        old.release().await.expect("release");
    };
    let (taken, ()) = tokio::join!(Leadership::take_over(&test.db, DEADLINE), gives_way);
    let (new, cursor) = taken.expect("asked").expect("the lead");
    assert_ne!(cursor.published, page.after.published);
    assert!(new.beat().await.expect("asked"));
    assert!(new.store(&page.after).await.expect("asked"));
}

#[tokio::test]
async fn positions_of_one_aggregate_follow_its_commits() {
    let test = TestDb::new().await;
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..8 {
        let db = test.db.clone();
        writers.spawn(async move {
            for n in 0..20 {
                let mut tx = db.tenant(&tenant()).await.expect("begin");
                append(&mut tx, "contended", writer * 100 + n).await;
                tx.commit().await.expect("commit");
            }
        });
    }
    while let Some(done) = writers.join_next().await {
        done.expect("writer");
    }
    let (events, inversions): (i64, i64) = sqlx::query_as(
        "select count(at), count(*) filter (where at < before) from ( \
           select pg_xact_commit_timestamp(xid::xid) as at, \
           lag(pg_xact_commit_timestamp(xid::xid)) over (order by position) as before from event_outbox) o",
    )
    .fetch_one(&test.admin)
    .await
    .expect("track_commit_timestamp is on");
    assert_eq!((events, inversions), (160, 0), "a later position never commits earlier");
}

/// Many writers that hold, roll back, use savepoints and prepare, while a publisher reads and restarts.
#[tokio::test]
async fn under_concurrent_writers_every_event_is_read_once_and_in_order() {
    const WRITERS: usize = 6;
    const ROUNDS: usize = 60;
    let test = TestDb::new().await;
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..WRITERS {
        let db = test.db.clone();
        writers.spawn(async move {
            let mut committed = Vec::new();
            for round in 0..ROUNDS {
                let mut tx = db.tenant(&tenant()).await.expect("begin");
                let mut mine = Vec::new();
                for n in 0..1 + fastrand::usize(..4) {
                    // Aggregates are shared between writers; in the order of their names, so nobody deadlocks.
                    mine.push(append(&mut tx, &format!("shared-{n}"), round).await);
                    if fastrand::bool() {
                        tokio::task::yield_now().await;
                    }
                }
                sqlx::query("savepoint s").execute(tx.conn()).await.expect("savepoint");
                let inner = append(&mut tx, &format!("z-inner-{writer}"), round).await;
                if fastrand::bool() {
                    sqlx::query("rollback to savepoint s").execute(tx.conn()).await.expect("rollback to");
                } else {
                    mine.push(inner);
                }
                match fastrand::u8(..4) {
                    0 => drop(tx),
                    _ => {
                        tx.commit().await.expect("commit");
                        committed.extend(mine);
                    }
                }
            }
            committed
        });
    }
    let mut rows: Vec<OutboxRow> = Vec::new();
    let mut committed = HashSet::new();
    let (mut leadership, mut reader) = lead(&test).await;
    loop {
        rows.extend(drain(&test, &leadership, &mut reader).await);
        if fastrand::u8(..5) == 0 {
            leadership.release().await.expect("release");
            (leadership, reader) = lead(&test).await;
        }
        match writers.try_join_next() {
            Some(done) => committed.extend(done.expect("writer")),
            None if writers.is_empty() => break,
            None => tokio::task::yield_now().await,
        }
    }
    rows.extend(drain(&test, &leadership, &mut reader).await);

    let read: Vec<Uuid> = ids(&rows);
    assert_eq!(read.len(), committed.len(), "each once");
    assert_eq!(read.into_iter().collect::<HashSet<_>>(), committed, "exactly the committed ones");
    let mut last: HashMap<String, i64> = HashMap::new();
    for row in &rows {
        let entity =
            serde_json::from_str::<serde_json::Value>(&row.payload).expect("json")["entity_id"].to_string();
        let before = last.insert(entity.clone(), row.position);
        assert!(before.is_none_or(|b| b < row.position), "{entity} is out of order");
    }
}

/// The planner must take the index on xid for a look and the bounds of a window, and the index on position for its
/// pages: any other plan reads, or sorts, the whole outbox at every poll.
#[tokio::test]
async fn a_poll_uses_the_indexes() {
    let test = TestDb::new().await;
    let (leadership, mut reader) = lead(&test).await;
    test.execute(
        "insert into event_outbox (id, aggregate_type, aggregate_id, event_key, event_type, tenant_id, user_id, payload) \
         select i.id, 'miner', 'm', 't:u', 'miner.updated', 't', 'u', jsonb_build_object('event_id', i.id, \
           'kind', 'miner.updated', 'tenant_id', 't', 'user_id', 'u') \
         from (select gen_random_uuid() as id from generate_series(1, 20000)) i",
    )
    .await;
    test.execute("analyze event_outbox").await;
    drain(&test, &leadership, &mut reader).await;
    let (published, next): (String, String) =
        sqlx::query_as("select published::text, pg_current_snapshot()::text from publisher_cursor")
            .fetch_one(&test.admin)
            .await
            .expect("cursor");
    let mut session = test.db.worker_session(&outbox::READER_SETTINGS).await.expect("a session");
    let values = format!("'{published}', '{next}', 0");
    for (name, statement, parameters, values, index) in [
        ("look", outbox::STATEMENTS[0].1, "text, text, bigint, bigint", format!("{values}, 1000"), "xid"),
        ("bounds", outbox::STATEMENTS[1].1, "text, text, bigint", values.clone(), "xid"),
        (
            "page",
            outbox::STATEMENTS[2].1,
            "text, text, bigint, bigint, bigint",
            format!("{values}, 20001, 1000"),
            "position",
        ),
    ] {
        let prepare = format!("prepare {name}({parameters}) as {statement}");
        sqlx::raw_sql(sqlx::AssertSqlSafe(prepare)).execute(&mut session).await.expect("prepared");
        let explain = format!("explain execute {name}({values})");
        let plan: Vec<String> = sqlx::query_scalar(sqlx::AssertSqlSafe(explain))
            .fetch_all(&mut session)
            .await
            .expect("explained");
        let plan = plan.join("\n");
        let scans: Vec<&str> =
            plan.lines().filter(|l| l.contains("Scan")).filter(|l| l.contains("event_outbox")).collect();
        assert!(!scans.is_empty(), "{plan}");
        for scan in scans {
            assert!(scan.contains(&format!("{index}_idx")), "{name}: {scan}\n{plan}");
        }
        assert!(name != "page" || !plan.contains("Sort  ("), "{plan}");
    }
    commit_one(&test, "one-more", 0).await;
    assert_eq!(drain(&test, &leadership, &mut reader).await.len(), 1);
}

#[tokio::test]
async fn an_idempotency_key_is_unique_in_its_tenant() {
    let test = TestDb::new().await;
    let user = owner();
    let keyed = || NewEvent { idempotency_key: Some("once"), ..event("miner.updated", &user, "m") };
    let mut tx = test.db.tenant(&tenant()).await.expect("begin");
    outbox::append(&mut tx, keyed()).await.expect("the first");
    tx.commit().await.expect("commit");
    let mut tx = test.db.tenant(&tenant()).await.expect("begin");
    assert!(matches!(outbox::append(&mut tx, keyed()).await, Err(AppendError::Duplicate)));
    let mut tx = test.db.tenant(&"other".parse().expect("a tenant")).await.expect("begin");
    outbox::append(&mut tx, keyed()).await.expect("another tenant's");
}

#[tokio::test]
async fn append_refuses_what_would_be_lost_or_unroutable() {
    let test = TestDb::new().await;
    let user = owner();
    let of_kind = |kind| event(kind, &user, "m");
    let mut tx = test.db.tenant(&tenant()).await.expect("begin");
    assert!(matches!(outbox::append(&mut tx, of_kind("billing.paid")).await, Err(AppendError::Kind(_))));
    let mut tx = test.db.tenant(&tenant()).await.expect("begin");
    sqlx::query("set local synchronous_commit = off").execute(tx.conn()).await.expect("set");
    assert!(matches!(
        outbox::append(&mut tx, of_kind("miner.updated")).await,
        Err(AppendError::AsynchronousCommit)
    ));
}

#[tokio::test]
async fn partitions_exist_ahead_and_are_protected() {
    let test = TestDb::new().await;
    let retention = Retention::of(&test.config);
    let days = retention.days_ahead;
    let made = retention.make_ahead(&test.db).await.expect("again");
    assert_eq!(made, 0, "making them again makes none");
    let further = Retention { days_ahead: days + 2, ..retention };
    assert_eq!(further.make_ahead(&test.db).await.expect("more"), 4, "two days of two tables");
    let by_root: Vec<(String, i64, bool, bool)> = sqlx::query_as(
        "select p.relname, count(*), bool_and(c.relrowsecurity and c.relforcerowsecurity), \
         bool_and(c.relacl is null or not c.relacl::text ~ 'hi_app|hi_worker') \
         from pg_inherits i join pg_class c on c.oid = i.inhrelid join pg_class p on p.oid = i.inhparent \
         where p.relname in ('event_outbox', 'event_inbox') group by 1",
    )
    .fetch_all(&test.admin)
    .await
    .expect("catalogue");
    let counts: BTreeMap<String, i64> = by_root.iter().map(|(name, n, ..)| (name.clone(), *n)).collect();
    assert_eq!(counts["event_outbox"], i64::from(days) + 4, "yesterday, today and the days ahead");
    assert_eq!(counts["event_inbox"], i64::from(days) + 5, "and the default partition");
    assert!(by_root.iter().all(|(_, _, protected, ungranted)| *protected && *ungranted));
}

#[tokio::test]
async fn a_database_from_elsewhere_is_refused() {
    let test = TestDb::new().await;
    test.execute("update publisher_cursor set system_identifier = 42").await;
    let refused = Leadership::acquire(&test.db).await.expect_err("refused");
    assert!(refused.to_string().contains("restored from a dump"), "{refused}");
}
