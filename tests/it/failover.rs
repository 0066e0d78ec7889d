//! F21: the database fails over to a standby that lacks the end of what was committed.
//!
//! ```text
//!   old primary   A ─ published, applied │ B ─ published │ C │ lost ─ published, applied │ crash
//!   standby       ───────────────────── has all of this ─────┤ promoted ─ fresh, with the lost ones' ids
//! ```

use std::collections::HashSet;

use hashinsight::db::Db;
use hashinsight::outbox::{HistoryError, Leadership, Reader};
use serde_json::json;
use uuid::Uuid;

use crate::processes::{GROUP, WORKS, add_miners};
use crate::support::process::{Process, run};
use crate::support::publishing::{LEADS, Publishing, commit, ready};
use crate::support::tap::Tap;
use crate::support::{Cluster, TestDb, service};

/// Everything committed is visible in the stored cursor.
const PUBLISHED: &str = "not exists (select from event_outbox, publisher_cursor \
                         where not pg_visible_in_snapshot(xid, published))";

/// Every event is applied.
const APPLIED: &str = "not exists (select from event_outbox o where not exists \
                       (select from event_inbox i where i.event_id = o.id and i.outcome = 'applied'))";

/// A primary and its standby, behind one address.
struct Pair {
    primary: Cluster,
    standby: Cluster,
    tap: Tap,
    publishing: Publishing,
}

impl Pair {
    async fn start(with: &[(&str, &str)]) -> Self {
        let primary = Cluster::start(&[]).await;
        let tap = Tap::before(primary.port()).await;
        let kafka = service("KAFKA_BROKERS");
        let quick =
            [("HASHINSIGHT__KAFKA__PARTITIONS", "2"), ("HASHINSIGHT__GROUP__RENEW_INTERVAL_MS", "200")];
        let settings = Publishing::settings(&kafka, &[&quick, with].concat());
        let test = TestDb::behind(&primary, tap.port, settings).await;
        let publishing = Publishing::of(test, &kafka).await;
        let standby = primary.standby().await;
        Self { primary, standby, tap, publishing }
    }

    /// Adds miners of so many owners.
    async fn write(&self, owners: usize) {
        let tenant = "acme".parse().expect("a tenant");
        for owner in 0..owners {
            add_miners(&self.publishing.test.db, &tenant, owner, 1).await;
        }
    }

    async fn published(&self) {
        self.publishing.holds(PUBLISHED).await;
    }

    async fn applied(&self) {
        self.publishing.holds(APPLIED).await;
    }

    async fn consumer(&self) -> Process {
        Process::start(&self.publishing.test.environment, &GROUP, WORKS).await
    }

    async fn ids(&self) -> HashSet<Uuid> {
        self.publishing.ids("select id from event_outbox").await.into_iter().collect()
    }

    /// The lowest transaction id of some events.
    async fn first_transaction(&self, of: &HashSet<Uuid>) -> i64 {
        sqlx::query_scalar("select min(xid::text::bigint) from event_outbox where id = any($1)")
            .bind(of.iter().copied().collect::<Vec<_>>())
            .fetch_one(&self.publishing.test.admin)
            .await
            .expect("a transaction id")
    }
}

async fn end(process: Process) -> String {
    process.signal("TERM").await;
    let (status, said) = process.ended().await;
    assert_eq!(status.code(), Some(0), "{said}");
    said
}

async fn a_failover_with_a_lost_tail(source: &str) {
    let mut pair = Pair::start(&[]).await;
    // A: the standby has it with everything that was done about it.
    let publisher = pair.publishing.publisher(source, ready(source)).await;
    let consumer = pair.consumer().await;
    pair.write(8).await;
    pair.applied().await;
    end(consumer).await;
    // B: and this without its effect, C: this with nothing.
    pair.write(8).await;
    pair.published().await;
    end(publisher).await;
    pair.write(8).await;
    let kept = pair.ids().await;
    pair.primary.is_followed_by(&pair.standby).await;
    pair.primary.cut_off(&pair.standby).await;

    let mut publisher = pair.publishing.publisher(source, ready(source)).await;
    let consumer = pair.consumer().await;
    for _ in 0..10 {
        pair.write(12).await;
    }
    let lost: HashSet<Uuid> = pair.ids().await.difference(&kept).copied().collect();
    let last_lost: i64 = pair.publishing.test.scalar("select max(xid::text::bigint) from event_outbox").await;
    pair.published().await;
    pair.applied().await;

    pair.primary.kill().await;
    pair.standby.promote().await;
    pair.tap.aim(pair.standby.port());
    publisher.says("the timeline is another").await;
    publisher.says(ready(source)).await;
    let survived = pair.ids().await;
    assert_eq!(survived, kept, "the standby has what it had received");
    for _ in 0..20 {
        pair.write(12).await;
    }

    // What the database has is published and applied, ...
    let fresh: HashSet<Uuid> = pair.ids().await.difference(&kept).copied().collect();
    let first = pair.first_transaction(&fresh).await;
    assert!(first <= last_lost, "ids are given again: {first} after {last_lost}");
    pair.publishing.read_until_there(pair.ids().await).await;
    pair.applied().await;
    pair.published().await;
    // ... what it has not is in the topics and therefore in the inbox, which is how one sees it, and does no harm.
    pair.publishing
        .holds(&format!(
            "count(*) = {} from event_inbox i where not exists (select from event_outbox o where o.id = i.event_id)",
            lost.len()
        ))
        .await;
    let phantoms = "select event_id from event_inbox i where outcome = 'applied' \
                    and not exists (select from event_outbox o where o.id = i.event_id)";
    let phantoms: HashSet<Uuid> = pair.publishing.ids(phantoms).await.into_iter().collect();
    assert_eq!(phantoms, lost);
    for nothing in ["event_dlq", "parked_event", "outbox_stuck"] {
        let count: i64 = pair.publishing.test.scalar(&format!("select count(*) from {nothing}")).await;
        assert_eq!(count, 0, "{nothing}");
    }
    let wrong: i64 = pair
        .publishing
        .test
        .scalar(
            "select count(*) from portfolio p full join (select owner_id, sum(quantity) as miners from miners group by 1) m \
             on m.owner_id = p.user_id where p.miners_total is distinct from m.miners",
        )
        .await;
    assert_eq!(wrong, 0, "no portfolio counts a miner that is lost");
    let ahead: bool = pair
        .publishing
        .test
        .scalar(
            "select pg_snapshot_xmax(published) > pg_snapshot_xmax(pg_current_snapshot()) from publisher_cursor",
        )
        .await;
    assert!(!ahead, "the cursor names no transaction that this server has not begun");
    let said = end(publisher).await;
    assert_eq!(said.matches("the timeline is another").count(), 1, "{said}");
    end(consumer).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn polling_goes_on_from_the_cursor_of_the_standby() {
    a_failover_with_a_lost_tail("poll").await;
}

/// Slots are not copied: the stream begins anew behind the table.
#[tokio::test(flavor = "multi_thread")]
async fn streaming_goes_on_with_a_slot_of_the_standby() {
    a_failover_with_a_lost_tail("wal").await;
}

/// What a leader has read from the old primary must not move the cursor of the new one, whose epoch is the same: an
/// id in the old snapshot is that of another transaction there.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_read_on_one_timeline_is_not_stored_on_the_next() {
    let pair = Pair::start(&[]).await;
    let test = &pair.publishing.test;
    let (old, cursor) = Leadership::acquire(&test.db).await.expect("asked").expect("alone");
    pair.primary.is_followed_by(&pair.standby).await;
    pair.primary.cut_off(&pair.standby).await;
    for owner in 0..20 {
        commit(&test.db, "miner.updated", owner, "m-0", json!({})).await;
    }
    let mut tx = test.db.worker().await.expect("begin");
    let page = Reader::new(cursor, 500).next(tx.conn()).await.expect("read").expect("a page");
    assert!(old.store_in(&mut tx, &page.after).await.expect("stored"), "it leads there");
    tx.rollback().await.expect("rolled back");

    pair.standby.promote().await;
    pair.tap.aim(pair.standby.port());
    let promoted = Db::open(&test.config).await.expect("connected");
    let mut tx = promoted.worker().await.expect("begin");
    let epochs: (bool, i64) = sqlx::query_as("select pg_is_in_recovery(), epoch from publisher_cursor")
        .fetch_one(tx.conn())
        .await
        .expect("read");
    assert_eq!(epochs, (false, 1), "its epoch is known here");
    assert!(!old.store_in(&mut tx, &page.after).await.expect("asked"), "and not valid");
    tx.rollback().await.expect("rolled back");

    // Also when another has got the epoch that it had.
    let mut tx = promoted.worker().await.expect("begin");
    sqlx::query("update publisher_cursor set epoch = 0").execute(tx.conn()).await.expect("set");
    tx.commit().await.expect("commit");
    let (new, _) = Leadership::acquire(&promoted).await.expect("asked").expect("alone");
    let mut tx = promoted.worker().await.expect("begin");
    assert!(!old.store_in(&mut tx, &page.after).await.expect("asked"), "the epoch is another's");
    assert!(new.store_in(&mut tx, &page.after).await.expect("asked"));
    tx.rollback().await.expect("rolled back");

    // A session of the old server is no place to read for the leader of the new one.
    let mut session = test.db.session().await.expect("of the new");
    new.is_of(&mut session).await.expect("the same server");
    pair.tap.aim(pair.primary.port());
    let mut session = test.db.session().await.expect("of the old");
    let refused = new.is_of(&mut session).await.expect_err("another timeline");
    assert!(matches!(refused, HistoryError::Other { .. }), "{refused}");
    assert!(refused.to_string().contains("timeline 1"), "{refused}");
}

/// The old primary was not fenced, and some addresses still lead there: what it holds does not count, and does not touch
/// the cursor of the new one.
#[tokio::test(flavor = "multi_thread")]
async fn an_old_primary_that_still_runs_is_not_read() {
    let mut pair = Pair::start(&[]).await;
    pair.primary.is_followed_by(&pair.standby).await;
    pair.primary.cut_off(&pair.standby).await;
    // Ids that will be given again, and a slot.
    pair.write(40).await;
    let database: String = pair.publishing.test.scalar("select current_database()::text").await;
    let mut environment = pair.publishing.test.environment.clone();
    environment.insert("HASHINSIGHT__WAL__DATABASE_URL".to_owned(), pair.primary.url(&database));
    let slot = run(&environment, &["slot", "create"]).await;
    assert_eq!(slot.code, 0, "{}", slot.stderr);
    pair.standby.promote().await;

    // The reading session is recognised by its settings.
    pair.tap.divert(pair.standby.port(), "enable_seqscan", pair.primary.port());
    let mut publisher =
        Process::start(&environment, &["publish"], "leads to another server than the one").await;
    pair.tap.aim(pair.standby.port());
    publisher.says(LEADS).await;
    // The pools of the test have connections to the old one.
    let promoted = Db::open(&pair.publishing.test.config).await.expect("connected");
    let mut committed = HashSet::new();
    for owner in 0..10 {
        committed.insert(commit(&promoted, "miner.updated", owner, "m-1", json!({})).await);
    }
    pair.publishing.read_until_there(committed).await;
    end(publisher).await;

    // A slot of the old server is none.
    let publisher =
        Process::start(&environment, &["publish", "--source", "wal"], "leads to another server than the one")
            .await;
    let behind = commit(&promoted, "miner.updated", 0, "m-2", json!({})).await;
    pair.publishing.read_until_there(HashSet::from([behind])).await;
    publisher.signal("TERM").await;
    let (status, said) = publisher.ended().await;
    assert_eq!(status.code(), Some(0), "{said}");
    assert!(!said.contains("streaming from"), "{said}");
}
