//! Reading the outbox from the write-ahead log: nothing committed is lost, nothing rolled back arrives, and a slot says
//! what is wrong with it.

mod servers;

use std::collections::HashSet;
use std::time::Duration;

use hashinsight::db::TenantTx;
use hashinsight::outbox::wal::{
    Created, Lsn, SlotState, SlotWatch, WalBatch, WalError, WalSettings, WalStream, slot,
};
use hashinsight::outbox::{self, Leadership, NewEvent, OutboxRow, Reader};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};
use uuid::Uuid;

use crate::support::cluster::program;
use crate::support::process::run;
use crate::support::{TestDb, settings, until};

/// Longer than any answer takes on a busy machine.
const DEADLINE: Duration = Duration::from_secs(60);

/// A slot that does not outlive its test.
struct SlotGuard(WalSettings);

impl Drop for SlotGuard {
    fn drop(&mut self) {
        let settings = self.0.clone();
        let dropped = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let mut conn = settings.connect().await.expect("connected");
                let name = settings.slot.as_str();
                let _ = sqlx::query(
                    "select pg_terminate_backend(active_pid, 5000) from pg_replication_slots \
                     where slot_name = $1 and active_pid is not null",
                )
                .bind(name)
                .execute(&mut conn)
                .await;
                let _ = slot::drop(&mut conn, name, true).await;
                Ok::<_, std::io::Error>(())
            })
        });
        let _ = dropped.join();
    }
}

/// A database with a slot, which goes first.
struct Fixture {
    wal: WalSettings,
    _slot: SlotGuard,
    test: TestDb,
}

/// Batches are small, and the server hears of us often.
async fn fixture() -> Fixture {
    let name = crate::support::unique("t").replace('-', "_");
    let test = TestDb::with(settings(&[
        ("HASHINSIGHT__WAL__SLOT", &name),
        ("HASHINSIGHT__WAL__STATUS_INTERVAL_MS", "20"),
        ("HASHINSIGHT__PUBLISHER__BATCH_SIZE", "10"),
    ]))
    .await;
    let wal = WalSettings::new(&test.config, &name).expect("valid");
    let mut conn = wal.connect().await.expect("connected");
    assert_eq!(slot::create(&mut conn, &name).await.expect("made"), Created::New);
    conn.close().await.expect("closed");
    Fixture { _slot: SlotGuard(wal.clone()), wal, test }
}

impl Fixture {
    async fn open(&self) -> WalStream {
        WalStream::open(&self.wal, &self.test.lifecycle).await.expect("opened")
    }

    async fn state(&self) -> SlotState {
        let mut conn = self.wal.connect().await.expect("connected");
        slot::state(&mut conn, &self.wal.slot).await.expect("looked")
    }

    async fn confirmed(&self) -> Lsn {
        self.state().await.slot().and_then(|slot| slot.confirmed_flush_lsn).expect("a place")
    }

    async fn append(&self, tx: &mut TenantTx, entity: &str, data: Value) -> Uuid {
        let user = "7".parse().expect("a user");
        let event = NewEvent {
            kind: "miner.updated",
            user_id: &user,
            entity_id: entity.parse().expect("an entity"),
            data,
            correlation_id: None,
            causation_id: None,
            traceparent: "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            idempotency_key: None,
        };
        outbox::append(tx, event).await.expect("appended")
    }

    async fn begin(&self) -> TenantTx {
        self.test.db.tenant(&"acme".parse().expect("a tenant")).await.expect("begin")
    }

    /// A transaction with so many events.
    async fn commit(&self, count: usize) -> Vec<Uuid> {
        let mut tx = self.begin().await;
        let mut ids = Vec::new();
        for n in 0..count {
            ids.push(self.append(&mut tx, &format!("m-{n}"), json!({ "n": n })).await);
        }
        tx.commit().await.expect("commit");
        ids
    }
}

async fn next(stream: &mut WalStream) -> WalBatch {
    tokio::time::timeout(DEADLINE, stream.next()).await.expect("in time").expect("a batch")
}

/// Reads so many rows, and what was told to be confirmed with each batch.
async fn take(stream: &mut WalStream, count: usize) -> (Vec<OutboxRow>, Vec<Option<Lsn>>) {
    let (mut rows, mut confirms) = (Vec::new(), Vec::new());
    while rows.len() < count {
        let batch = next(stream).await;
        if !batch.rows.is_empty() {
            confirms.push(batch.confirm);
        }
        rows.extend(batch.rows);
    }
    assert_eq!(rows.len(), count, "no more than were committed");
    (rows, confirms)
}

/// Reads batches until the last transaction that was read may be confirmed.
async fn confirmable(stream: &mut WalStream) -> Lsn {
    loop {
        if let Some(lsn) = next(stream).await.confirm {
            return lsn;
        }
    }
}

/// How the stream ends.
async fn end_of(stream: &mut WalStream) -> WalError {
    let ended = async {
        loop {
            if let Err(error) = stream.next().await {
                return error;
            }
        }
    };
    tokio::time::timeout(DEADLINE, ended).await.expect("in time")
}

async fn refusal(settings: &WalSettings, test: &TestDb) -> WalError {
    WalStream::open(settings, &test.lifecycle).await.expect_err("refused")
}

fn ids(rows: &[OutboxRow]) -> Vec<Uuid> {
    rows.iter().map(|row| row.id).collect()
}

#[tokio::test]
async fn rows_are_those_of_the_poll_reader_byte_for_byte() {
    let it = fixture().await;
    let mut tx = it.begin().await;
    for (n, data) in [
        json!({}),
        json!({"text": "\u{e4}\u{1f600}\u{2028} \"quoted\" \\ / \u{1} \t\n"}),
        json!({"empty": {}, "list": [], "null": null, "deep": [[[{"a": [[], {}]}]]]}),
        serde_json::from_str(
            r#"{"large": 123456789012345678901234567890.5, "tiny": 1e-300, "zero": 1.0, "neg": -0.0}"#,
        )
        .expect("json"),
        json!({"long": "x".repeat(100 * 1024)}),
    ]
    .into_iter()
    .enumerate()
    {
        it.append(&mut tx, &format!("m-{n}"), data).await;
    }
    tx.commit().await.expect("commit");
    // Without a trace, and at the ends of a second.
    it.test
        .execute(
            "insert into event_outbox (id, aggregate_type, aggregate_id, event_key, event_type, tenant_id, user_id, \
               payload, occurred_at, schema_version) \
             select i.id, 'ops', 'net', 't:network', 'network.snapshot', 't', 'u', jsonb_build_object('event_id', i.id, \
               'kind', 'network.snapshot', 'tenant_id', 't', 'user_id', 'u'), i.at, 7 \
             from (select gen_random_uuid() as id, date_trunc('day', now() at time zone 'UTC') + part as at \
                   from unnest(array['0', '1 us', '100 ms', '999999 us']::interval[]) part) i",
        )
        .await;

    let (_leadership, cursor) = Leadership::acquire(&it.test.db).await.expect("asked").expect("alone");
    let mut tx = it.test.db.worker().await.expect("begin");
    let page = Reader::new(cursor, 100).next(tx.conn()).await.expect("read").expect("a page");
    assert_eq!(page.rows.len(), 9);
    let (rows, _) = take(&mut it.open().await, page.rows.len()).await;
    for (streamed, polled) in rows.iter().zip(&page.rows) {
        assert_eq!(format!("{streamed:?}"), format!("{polled:?}"));
    }
}

#[tokio::test]
async fn only_what_was_committed_arrives_in_the_order_of_commits() {
    let it = fixture().await;
    let mut stream = it.open().await;
    let mut early = it.begin().await;
    let first_drawn = it.append(&mut early, "early", json!({})).await;
    let mut gone = it.begin().await;
    it.append(&mut gone, "gone", json!({})).await;
    let mut partly = it.begin().await;
    let kept = it.append(&mut partly, "kept", json!({})).await;
    sqlx::query("savepoint s").execute(partly.conn()).await.expect("savepoint");
    it.append(&mut partly, "undone", json!({})).await;
    sqlx::query("rollback to savepoint s").execute(partly.conn()).await.expect("rollback to");
    partly.commit().await.expect("commit");
    drop(gone);
    early.commit().await.expect("commit");
    let last = it.commit(1).await;
    let (rows, _) = take(&mut stream, 3).await;
    assert_eq!(ids(&rows), [vec![kept, first_drawn], last].concat());
}

#[tokio::test]
async fn killed_between_reading_and_confirming_it_reads_again_what_was_not_confirmed() {
    let it = fixture().await;
    let first = it.commit(2).await;
    let mut stream = it.open().await;
    let (rows, confirms) = take(&mut stream, 2).await;
    assert_eq!(ids(&rows), first);
    let confirm = confirms.last().copied().flatten();
    drop(stream);

    // It was not confirmed: all of it again, and what came meanwhile.
    let second = it.commit(3).await;
    until("the slot is free", DEADLINE, async || it.state().await.slot()?.active_pid.is_none().then_some(()))
        .await;
    let mut stream = it.open().await;
    let (rows, _) = take(&mut stream, 5).await;
    assert_eq!(ids(&rows), [first, second.clone()].concat());
    // The first transaction is published, the second is not; then the end comes.
    stream.confirmer().confirm(confirm.expect("the end of a transaction"));
    stream.close().await;
    assert_eq!(Some(it.confirmed().await), confirm, "a close reports what is confirmed");

    let mut stream = it.open().await;
    let (rows, _) = take(&mut stream, 3).await;
    assert_eq!(ids(&rows), second, "what was confirmed does not come again");
}

#[tokio::test]
async fn a_transaction_larger_than_a_batch_is_confirmed_at_its_end() {
    let it = fixture().await;
    let large = it.commit(25).await;
    // Whatever is offered on the way is confirmed: the transaction still comes again, all of it.
    for part in [10, 20] {
        let mut stream = it.open().await;
        let mut read = Vec::new();
        while read.len() < part {
            let batch = next(&mut stream).await;
            assert!(batch.rows.len() <= 10, "{}", batch.rows.len());
            read.extend(ids(&batch.rows));
            stream.confirmer().confirm(batch.confirm.unwrap_or_default());
        }
        assert_eq!(read, large[..part]);
        stream.close().await;
    }
    let mut stream = it.open().await;
    let (rows, confirms) = take(&mut stream, 25).await;
    assert_eq!(ids(&rows), large);
    let confirm = confirms.last().copied().flatten().expect("its end");
    stream.confirmer().confirm(confirm);
    stream.close().await;
    let small = it.commit(1).await;
    let (rows, _) = take(&mut it.open().await, 1).await;
    assert_eq!(ids(&rows), small, "and then nothing of it");
}

#[tokio::test]
async fn an_idle_slot_moves_and_never_past_what_is_confirmed() {
    let it = fixture().await;
    let mut stream = it.open().await;
    let before = it.confirmed().await;
    it.test.execute("create table elsewhere as select generate_series(1, 1000) as n").await;
    let mut conn = it.wal.connect().await.expect("connected");
    let written = slot::current_wal_insert_lsn(&mut conn).await.expect("asked");
    let offered = loop {
        let batch = next(&mut stream).await;
        assert!(batch.rows.is_empty());
        match batch.confirm {
            Some(lsn) if lsn >= written => break lsn,
            _ => {}
        }
    };
    // The server has heard of us since, and what was offered is not taken for confirmed.
    let heard = "select reply_time::text from pg_stat_replication r \
                 join pg_replication_slots s on s.active_pid = r.pid where s.slot_name = '{}'"
        .replace("{}", &it.wal.slot);
    let first: String = it.test.scalar(&heard).await;
    until("another status", DEADLINE, async || {
        (it.test.scalar::<String>(&heard).await != first).then_some(())
    })
    .await;
    assert_eq!(it.confirmed().await, before);
    stream.confirmer().confirm(offered);
    until("the slot has moved", DEADLINE, async || (it.confirmed().await == offered).then_some(())).await;
    // A lower place does not take it back.
    stream.confirmer().confirm(before);
    assert_eq!(stream.confirmer().confirmed(), offered);
}

#[tokio::test]
async fn a_transaction_of_a_hundred_thousand_rows_streams_through_bounded_memory() {
    const ROWS: usize = 100_000;
    let it = fixture().await;
    let wal = WalSettings { batch_rows: 1_000, ..it.wal.clone() };
    it.test
        .execute(
            "insert into event_outbox (id, aggregate_type, aggregate_id, event_key, event_type, tenant_id, user_id, \
               payload) \
             select i.id, 'miner', 'm', 't:u', 'miner.updated', 't', 'u', jsonb_build_object('event_id', i.id, \
               'kind', 'miner.updated', 'tenant_id', 't', 'user_id', 'u', 'data', repeat('x', 600)) \
             from (select gen_random_uuid() as id from generate_series(1, 100000)) i",
        )
        .await;
    let mut stream = WalStream::open(&wal, &it.test.lifecycle).await.expect("opened");
    let first = loop {
        let batch = next(&mut stream).await;
        if !batch.rows.is_empty() {
            break batch;
        }
    };
    assert!((1..=1_000).contains(&first.rows.len()), "{}", first.rows.len());
    // Nobody takes more: the server waits until somebody does, and goes on hearing of us.
    let waits = format!(
        "select count(*) from pg_stat_activity a join pg_replication_slots s on s.active_pid = a.pid \
         where s.slot_name = '{}' and a.wait_event = 'WalSenderWriteData'",
        wal.slot
    );
    until("the server waits", DEADLINE, async || (it.test.scalar::<i64>(&waits).await == 1).then_some(()))
        .await;

    let mut last = first.rows.last().expect("rows").position;
    let mut seen = first.rows.len();
    let mut confirm = None;
    while seen < ROWS {
        let batch = next(&mut stream).await;
        assert!(batch.rows.len() <= 1_000);
        for row in &batch.rows {
            assert!(row.position > last, "in the order of insertion");
            last = row.position;
        }
        seen += batch.rows.len();
        assert!(batch.confirm.is_none() || seen == ROWS, "no part of a transaction is confirmed");
        confirm = batch.confirm;
    }
    let confirm = match confirm {
        Some(lsn) => lsn,
        None => confirmable(&mut stream).await,
    };
    stream.confirmer().confirm(confirm);
    stream.close().await;
    let after = it.commit(1).await;
    let (rows, _) = take(&mut it.open().await, 1).await;
    assert_eq!(ids(&rows), after, "none of it comes again");
}

#[tokio::test]
async fn rows_of_every_partition_arrive_as_the_roots_without_what_nobody_needs() {
    let it = fixture().await;
    it.test
        .execute(
            "insert into event_outbox (id, aggregate_type, aggregate_id, event_key, event_type, tenant_id, user_id, \
               payload, occurred_at) \
             select i.id, 'miner', 'm', 't:u', 'miner.updated', 't', 'u', jsonb_build_object('event_id', i.id, \
               'kind', 'miner.updated', 'tenant_id', 't', 'user_id', 'u'), now() at time zone 'UTC' + make_interval(days => i.day) \
             from (select gen_random_uuid() as id, day from generate_series(0, 4) day) i",
        )
        .await;
    let partitions: i64 = it.test.scalar("select count(distinct tableoid) from event_outbox").await;
    assert_eq!(partitions, 5);
    let (rows, _) = take(&mut it.open().await, 5).await;
    let days: HashSet<_> = rows.iter().map(|row| row.occurred_at.date()).collect();
    assert_eq!(days.len(), 5);

    let columns: Vec<String> = it
        .test
        .scalar("select attnames::text[] from pg_publication_tables where pubname = 'hashinsight_outbox'")
        .await;
    let published: HashSet<&str> = columns.iter().map(String::as_str).collect();
    let needed = "position id aggregate_type aggregate_id event_key event_type tenant_id payload schema_version \
                  traceparent occurred_at";
    assert_eq!(published, needed.split_whitespace().collect::<HashSet<_>>());
    let kinds: String = it
        .test
        .scalar("select concat(pubinsert, pubupdate, pubdelete, pubtruncate, pubviaroot) from pg_publication")
        .await;
    assert_eq!(kinds, "tffft", "inserts, as the root's");
}

#[tokio::test]
async fn a_slot_that_is_read_elsewhere_names_the_reader_and_only_ours_is_ended() {
    let it = fixture().await;
    let mut stream = it.open().await;
    let mut conn = it.wal.connect().await.expect("connected");
    let WalError::SlotActive { pid } = refusal(&it.wal, &it.test).await else { panic!("it is read") };
    let state = it.state().await;
    let reader = state.slot().expect("a slot");
    assert_eq!(reader.active_pid, Some(pid));
    assert!(
        reader.application_name.as_deref().is_some_and(|name| name.starts_with("hashinsight")),
        "{reader:?}"
    );
    let refused = slot::drop(&mut conn, &it.wal.slot, false).await.expect_err("it is read");
    assert!(refused.to_string().contains(&pid.to_string()), "{refused}");

    // Takeover from a reader that does not move any more.
    assert!(
        !slot::terminate_reader(&mut conn, &it.wal.slot, pid + 1).await.expect("asked"),
        "another's number"
    );
    assert!(slot::terminate_reader(&mut conn, &it.wal.slot, pid).await.expect("asked"));
    assert!(matches!(end_of(&mut stream).await, WalError::Connection(_)));
    it.open().await.close().await;

    // Somebody else's reader stays.
    let other = std::process::Command::new(program("pg_recvlogical"))
        .args(["--start", "-f", "-", "-o", "proto_version=1", "-o", "publication_names=hashinsight_outbox"])
        .args(["--slot", &it.wal.slot, "--dbname", &it.test.environment["DATABASE_URL"]])
        .stdout(std::process::Stdio::null())
        .spawn()
        .expect("pg_recvlogical");
    let other = Ended(other);
    until("it reads", DEADLINE, async || it.state().await.slot()?.active_pid).await;
    let refused = slot::drop(&mut conn, &it.wal.slot, true).await.expect_err("not ours");
    assert!(refused.to_string().contains("pg_recvlogical"), "{refused}");
    assert!(it.state().await.slot().expect("still there").active_pid.is_some());
    drop(other);
}

/// A child that ends with its test.
struct Ended(std::process::Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn a_missing_slot_right_publication_or_column_is_named() {
    let it = fixture().await;
    let missing = WalSettings { slot: "no_such_slot".to_owned(), ..it.wal.clone() };
    assert_eq!(refusal(&missing, &it.test).await, WalError::SlotMissing);

    let login = crate::support::unique("weak").replace('-', "_");
    it.test.execute(&format!("create role {login} login")).await;
    let url = it.test.environment["DATABASE_URL"].replace("//hashinsight@", &format!("//{login}@"));
    let weak = WalSettings { database_url: url.into(), ..it.wal.clone() };
    let refused = refusal(&weak, &it.test).await;
    let mut conn = weak.connect().await.expect("connected");
    let not_made = slot::create(&mut conn, "never_made").await.expect_err("refused").to_string();
    conn.close().await.expect("closed");
    it.test.execute(&format!("drop role {login}")).await;
    let remedy = format!("`alter role \"{login}\" replication`");
    assert!(matches!(&refused, WalError::Refused(text) if text.contains(&remedy)), "{refused:?}");
    assert!(not_made.contains(&remedy), "{not_made}");

    let mut stream = it.open().await;
    it.test
        .execute("alter publication hashinsight_outbox set table event_outbox (id, payload, position)")
        .await;
    it.commit(1).await;
    let ended = end_of(&mut stream).await;
    assert!(matches!(&ended, WalError::Decode(text) if text.contains("column aggregate_type")), "{ended:?}");
    until("the slot is free", DEADLINE, async || it.state().await.slot()?.active_pid.is_none().then_some(()))
        .await;

    // Seen at the first row that was written without it.
    let mut conn = it.wal.connect().await.expect("connected");
    slot::drop(&mut conn, &it.wal.slot, true).await.expect("dropped");
    it.test.execute("drop publication hashinsight_outbox").await;
    slot::create(&mut conn, &it.wal.slot).await.expect("made");
    it.commit(1).await;
    let ended = end_of(&mut it.open().await).await;
    assert!(matches!(&ended, WalError::Refused(text) if text.contains("hashinsight migrate")), "{ended:?}");
}

#[tokio::test]
async fn two_databases_of_a_cluster_have_slots_of_their_own() {
    let it = fixture().await;
    let second = TestDb::new().await;
    let settings =
        WalSettings { database_url: second.environment["DATABASE_URL"].clone().into(), ..it.wal.clone() };
    let mut conn = settings.connect().await.expect("connected");
    let database: String = second.scalar("select current_database()::text").await;
    let base = it.wal.slot.as_str();
    let name = slot::name(&mut conn, base).await.expect("named");
    let expected: String = format!("{base}_{database}").chars().take(63).collect();
    assert_eq!(name, expected);
    let taken = slot::create(&mut conn, base).await.expect_err("another database's");
    assert!(taken.to_string().contains("belongs to the database"), "{taken}");
    let settings = WalSettings { slot: name.clone(), ..settings };
    let guard = SlotGuard(settings.clone());
    slot::create(&mut conn, &name).await.expect("made");
    WalStream::open(&settings, &second.lifecycle).await.expect("opened").close().await;

    // The first one keeps its name, and the second keeps its own when the first is gone.
    let mut first = it.wal.connect().await.expect("connected");
    assert_eq!(slot::name(&mut first, base).await.expect("named"), base);
    slot::drop(&mut first, base, false).await.expect("dropped");
    assert_eq!(slot::name(&mut conn, base).await.expect("named"), name);
    drop(guard);
}

#[tokio::test]
async fn the_command_creates_shows_and_drops() {
    let name = crate::support::unique("t").replace('-', "_");
    let test = TestDb::with(settings(&[("HASHINSIGHT__WAL__SLOT", &name)])).await;
    let _guard = SlotGuard(WalSettings::new(&test.config, &name).expect("valid"));
    let slot = async |arguments: &[&str]| run(&test.environment, &[&["slot"], arguments].concat()).await;
    let json = async |arguments: &[&str]| {
        let ended = slot(arguments).await;
        assert_eq!(ended.code, 0, "{}", ended.stderr);
        serde_json::from_str::<Value>(&ended.stdout).expect("one document")
    };
    assert_eq!(json(&["show", "--json"]).await["state"], "missing");
    let missing = slot(&["drop"]).await;
    assert_eq!((missing.code, missing.stderr.contains("slot create")), (1, true), "{}", missing.stderr);
    assert_eq!(json(&["create", "--json"]).await, json!({"slot": name, "created": true}));
    assert_eq!(json(&["create", "--json"]).await, json!({"slot": name, "created": false}));
    let shown = json(&["show", "--json"]).await;
    assert_eq!((&shown["state"], &shown["plugin"]), (&json!("healthy"), &json!("pgoutput")));
    assert!(shown["retained_bytes"].is_u64() && shown["active_pid"].is_null(), "{shown}");
    let text = slot(&["show"]).await.stdout;
    assert!(text.contains("retained bytes") && text.contains("reserved"), "{text}");

    let settings = WalSettings::new(&test.config, &name).expect("valid");
    let mut stream = WalStream::open(&settings, &test.lifecycle).await.expect("opened");
    assert!(slot(&["show"]).await.stdout.contains("hashinsight wal"));
    let held = slot(&["drop"]).await;
    assert_eq!((held.code, held.stderr.contains("--force")), (1, true), "{}", held.stderr);
    assert_eq!(json(&["drop", "--force", "--json"]).await, json!({"slot": name, "dropped": true}));
    assert!(matches!(end_of(&mut stream).await, WalError::Connection(_)));
    assert_eq!(refusal(&settings, &test).await, WalError::SlotMissing);
}

/// The watch warns where nothing limits what is kept.
#[tokio::test]
async fn the_watch_tells_what_is_held_back() {
    let it = fixture().await;
    let mut conn = it.wal.connect().await.expect("connected");
    let mut watch = SlotWatch::new(&it.wal.slot, 1 << 40);
    assert!(matches!(watch.look(&mut conn).await.expect("looked"), SlotState::Healthy(_)));
    assert!(!watch.alarmed());
    let mut strict = SlotWatch::new(&it.wal.slot, 1);
    conn.execute(AssertSqlSafe("select pg_logical_emit_message(false, 'test', 'x')")).await.expect("written");
    strict.look(&mut conn).await.expect("looked");
    assert!(strict.alarmed());
    let mut absent = SlotWatch::new("no_such_slot", 1);
    assert_eq!(absent.look(&mut conn).await.expect("looked"), SlotState::Missing);
    PgConnection::close(conn).await.expect("closed");
}
