//! The turns that batches and requests take: in one order, whoever asks in whichever.

use std::time::Duration;

use hashinsight::db::serial::take_turns;

use crate::support::{TestDb, until};

const LONG: Duration = Duration::from_secs(60);

fn rows(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

/// Two that want the same rows in opposite orders would wait for each other for ever.
#[tokio::test(flavor = "multi_thread")]
async fn rows_are_locked_in_one_order_whatever_order_they_are_given_in() {
    let db = TestDb::new().await;
    let mut first = db.db.worker().await.expect("begin");
    take_turns(first.conn(), rows(&["A"])).await.expect("free");
    let mut second = db.db.worker().await.expect("begin");
    let waits = async {
        take_turns(second.conn(), rows(&["a", "B", "A", "a"])).await.expect("in its turn");
        second.commit().await.expect("commit");
    };
    let meanwhile = async {
        until("the second waits", LONG, async || {
            let waits = "select count(*) from pg_locks where locktype = 'advisory' and not granted \
                         and database = (select oid from pg_database where datname = current_database())";
            (db.scalar::<i64>(waits).await == 1).then_some(())
        })
        .await;
        // It has none of the rows behind the one it waits for.
        let mut third = db.db.worker().await.expect("begin");
        let free: bool = sqlx::query_scalar(
            "select bool_and(pg_try_advisory_xact_lock(hashtextextended(key, 0))) from unnest(array['B', 'a']) key",
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
