//! The turns that batches and requests take: in one order, whoever asks in whichever.

use std::time::Duration;

use hashinsight::db::serial::take_turns;

use crate::support::{TestDb, until};

const LONG: Duration = Duration::from_secs(60);

/// Waits until so many wait for a turn.
async fn waiting(db: &TestDb, number: i64) {
    until("somebody waits", LONG, async || {
        let waits = "select count(*) from pg_locks where locktype = 'advisory' and not granted \
                     and database = (select oid from pg_database where datname = current_database())";
        (db.scalar::<i64>(waits).await == number).then_some(())
    })
    .await;
}

/// Two that want the same rows in opposite orders would wait for each other for ever.
#[tokio::test(flavor = "multi_thread")]
async fn rows_are_locked_in_one_order_whatever_order_they_are_given_in() {
    let db = TestDb::new().await;
    let mut first = db.db.worker().await.expect("begin");
    take_turns(first.conn(), "scope", ["A"]).await.expect("free");
    let mut second = db.db.worker().await.expect("begin");
    let waits = async {
        take_turns(second.conn(), "scope", ["a", "B", "A", "a"]).await.expect("in its turn");
        second.commit().await.expect("commit");
    };
    let meanwhile = async {
        waiting(&db, 1).await;
        // It has none of the rows behind the one it waits for.
        let mut third = db.db.worker().await.expect("begin");
        let free: bool = sqlx::query_scalar(
            "select bool_and(pg_try_advisory_xact_lock(hashtextextended(key, 0))) from unnest(array['scope:B', 'scope:a']) key",
        )
        .fetch_one(third.conn())
        .await
        .expect("an answer");
        assert!(free);
        third.commit().await.expect("commit");
        first.commit().await.expect("commit");
    };
    tokio::join!(waits, meanwhile);
}

/// A change that concerns everybody takes one lock, however many there are, and its turn with whoever is at one of them.
#[tokio::test(flavor = "multi_thread")]
async fn whoever_is_at_very_many_rows_takes_the_scope() {
    let db = TestDb::new().await;
    let many: Vec<String> = (0..1_001).map(|n| n.to_string()).collect();
    let mut one = db.db.worker().await.expect("begin");
    take_turns(one.conn(), "scope", ["7"]).await.expect("free");
    let mut beside = db.db.worker().await.expect("begin");
    take_turns(beside.conn(), "scope", ["8"]).await.expect("another row");
    beside.commit().await.expect("commit");
    let mut all = db.db.worker().await.expect("begin");
    let everybody = async {
        take_turns(all.conn(), "scope", &many).await.expect("in its turn");
        let held: i64 = sqlx::query_scalar(
            "select count(*) from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()",
        )
        .fetch_one(all.conn())
        .await
        .expect("an answer");
        assert_eq!(held, 1);
    };
    let end = async {
        waiting(&db, 1).await;
        one.commit().await.expect("commit");
    };
    tokio::join!(everybody, end);
    let mut later = db.db.worker().await.expect("begin");
    let waits = async {
        take_turns(later.conn(), "scope", ["9"]).await.expect("in its turn");
        later.commit().await.expect("commit");
    };
    let end = async {
        waiting(&db, 1).await;
        all.commit().await.expect("commit");
    };
    tokio::join!(waits, end);
}
