//! The loop of a partition's worker and its retries, in this process: what fails, what waits, what is given up.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use hashinsight::config::{ConsumerConfig, EventLogKind};
use hashinsight::consumer;
use hashinsight::db::WorkerTx;
use hashinsight::domain::{Caller, miner};
use hashinsight::event::Event;
use hashinsight::identifier::TenantId;
use hashinsight::lag;
use hashinsight::log::{FetchLimits, Record};
use hashinsight::projection::{self, Dirty, EventHandler, HandlerError, Row};
use hashinsight::role::app::assumptions;
use sqlx::AssertSqlSafe;
use tokio::sync::{Barrier, Semaphore};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::pipeline::{Effect, Picky, Stubborn, member, member_on, record, soon};
use crate::support::consuming::{Member, Setup, Watch, Watched, miners};
use crate::support::kafka::{delete, spec};
use crate::support::pipeline::applied;
use crate::support::{Cluster, TestDb, service, settings, until};

/// Longer than anything takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

const NEXT_OFFSET: &str = "select next_offset from consumer_offset where consumer_name = 'picky'";

fn about(key: &str, entity: &str) -> Record {
    record(key, entity, Uuid::now_v7())
}

/// Waits for a condition in the database that nobody rings a bell for.
async fn holds(test: &TestDb, condition: &str) {
    let sql = format!("select coalesce((select {condition}), false)");
    until(condition, PATIENCE, async || test.scalar::<bool>(&sql).await.then_some(())).await;
}

async fn count(test: &TestDb, of: &str) -> i64 {
    test.scalar(&format!("select count(*) from {of}")).await
}

fn names(events: &[&Event]) -> Vec<String> {
    events.iter().map(|event| event.entity_id.as_str().to_owned()).collect()
}

/// Fails a statement with this code.
async fn raise(tx: &mut WorkerTx, code: &str) -> Result<(), sqlx::Error> {
    let statement = format!("do $$ begin raise exception 'on purpose' using errcode = '{code}'; end $$");
    sqlx::raw_sql(AssertSqlSafe(statement)).execute(tx.conn()).await.map(drop)
}

/// A handler that applies a batch for each permit, and remembers the batches.
struct Gated {
    permits: Semaphore,
    batches: Mutex<Vec<usize>>,
}

#[async_trait]
impl EventHandler for Gated {
    fn consumes(&self, _: &str) -> bool {
        true
    }

    async fn apply(&self, _: &mut WorkerTx, events: &[&Event]) -> Result<Vec<Dirty>, HandlerError> {
        self.permits.acquire().await.expect("open").forget();
        self.batches.lock().expect("lock").push(events.len());
        Ok(Vec::new())
    }
}

impl Gated {
    fn with(permits: usize) -> Arc<Self> {
        Arc::new(Self { permits: Semaphore::new(permits), batches: Mutex::default() })
    }

    fn applied(&self) -> usize {
        self.batches.lock().expect("lock").iter().sum()
    }
}

/// Remembers how far each fetch was ahead of what was applied.
struct Ahead {
    handler: Arc<Gated>,
    furthest: AtomicUsize,
    largest: AtomicUsize,
    fetches: AtomicUsize,
}

#[async_trait]
impl Watch for Ahead {
    async fn before_fetch(&self, _: i32, offset: i64, limits: FetchLimits) {
        let offset = usize::try_from(offset).expect("positive");
        self.furthest.fetch_max(offset - self.handler.applied().min(offset), Ordering::SeqCst);
        self.largest.fetch_max(limits.max_records, Ordering::SeqCst);
        self.fetches.fetch_add(1, Ordering::SeqCst);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_fetch_runs_while_a_slow_batch_is_applied_and_none_beyond_it() {
    const EVENTS: usize = 60;
    let test = TestDb::with_topics(1).await;
    let (log, topic) = miners(&test, EventLogKind::Postgres).await;
    let records: Vec<Record> = (0..EVENTS).map(|n| about("t:u", &format!("e-{n}"))).collect();
    log.append(&topic, 0, &records).await.expect("appended");
    let handler = Gated::with(0);
    let watch = Arc::new(Ahead {
        handler: Arc::clone(&handler),
        furthest: AtomicUsize::new(0),
        largest: AtomicUsize::new(0),
        fetches: AtomicUsize::new(0),
    });
    let member = Setup::of(&test, Arc::clone(&handler) as _)
        .await
        .settings(|s| s.batch_size = 2)
        .log(Arc::new(Watched { log, watch: Arc::clone(&watch) }))
        .start();

    // Not one batch is through, and the second fetch is there.
    until("the next fetch runs", PATIENCE, async || {
        (watch.fetches.load(Ordering::SeqCst) >= 2).then_some(())
    })
    .await;
    assert_eq!(handler.applied(), 0);
    for _ in 0..EVENTS / 2 {
        let before = handler.applied();
        handler.permits.add_permits(1);
        until("one batch more", PATIENCE, async || (handler.applied() > before).then_some(())).await;
    }
    member.stop().await;
    let (furthest, largest) = (watch.furthest.load(Ordering::SeqCst), watch.largest.load(Ordering::SeqCst));
    // A fetch begins behind the one in hand, of which at most everything is not applied.
    assert!(furthest <= largest, "a fetch was {furthest} records ahead, with {largest} in each");
    assert!(largest <= 8, "a fetch is bounded: {largest}");
}

/// Panics at what it is told to, forever or so many times.
struct Panicky {
    left: AtomicUsize,
    applied: Mutex<Vec<String>>,
}

#[async_trait]
impl EventHandler for Panicky {
    fn consumes(&self, _: &str) -> bool {
        true
    }

    async fn apply(&self, tx: &mut WorkerTx, events: &[&Event]) -> Result<Vec<Dirty>, HandlerError> {
        let names = names(events);
        sqlx::query("select 1").execute(tx.conn()).await?;
        assert!(!names.iter().any(|name| name.starts_with("poison")), "this one");
        self.applied.lock().expect("lock").extend(names);
        Ok(Vec::new())
    }
}

#[async_trait]
impl Watch for Panicky {
    async fn before_fetch(&self, partition: i32, _: i64, _: FetchLimits) {
        let panics = |left: usize| left.checked_sub(1);
        if partition == 0 && self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, panics).is_ok() {
            panic!("a fetch of partition 0");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_that_panics_is_one_that_fails() {
    let test = TestDb::with_topics(1).await;
    let (log, topic) = miners(&test, EventLogKind::Postgres).await;
    let records =
        [about("t:well", "a"), about("t:sick", "poison"), about("t:well", "b"), about("t:sick", "c")];
    log.append(&topic, 0, &records).await.expect("appended");
    let handler = Arc::new(Panicky { left: AtomicUsize::new(0), applied: Mutex::default() });
    let member = Member::start(&test, Arc::clone(&handler) as _).await;
    holds(&test, "count(*) = 4 from event_inbox where outcome in ('applied', 'dead')").await;
    member.stop().await;
    let (class, message, retries): (String, String, i32) =
        sqlx::query_as("select error_class, error_message, retry_count from event_dlq")
            .fetch_one(&test.admin)
            .await
            .expect("one dead letter");
    assert_eq!((class.as_str(), retries), ("panic", 3));
    assert!(message.contains("this one"), "{message}");
    assert_eq!(*handler.applied.lock().expect("lock"), ["a", "b", "c"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_panics_starts_anew_and_the_others_do_not_notice() {
    let test = TestDb::with_topics(2).await;
    let (log, topic) = miners(&test, EventLogKind::Postgres).await;
    let handler = Arc::new(Panicky { left: AtomicUsize::new(usize::MAX), applied: Mutex::default() });
    let watched = Watched { log: Arc::clone(&log), watch: Arc::clone(&handler) };
    let member = Setup::of(&test, Arc::clone(&handler) as _).await.log(Arc::new(watched)).start();
    let panics = || usize::MAX - handler.left.load(Ordering::SeqCst);
    until("it panics again and again", PATIENCE, async || (panics() >= 6).then_some(())).await;
    for partition in 0..2 {
        log.append(&topic, partition, &[about("t:u", &format!("p-{partition}"))]).await.expect("appended");
    }
    applied(&test.bells, async || count(&test, "event_inbox").await == 1).await;
    assert_eq!(*handler.applied.lock().expect("lock"), ["p-1"]);
    let (before, started) = (panics(), Instant::now());
    until("it goes on to panic", PATIENCE, async || (panics() >= before + 2).then_some(())).await;
    assert!(started.elapsed() > Duration::from_secs(1), "the pauses grow: {:?}", started.elapsed());
    handler.left.store(0, Ordering::SeqCst);
    applied(&test.bells, async || count(&test, "event_inbox").await == 2).await;
    member.stop().await;
    assert_eq!(count(&test, "consumer_offset where owner_id is not null").await, 0, "everything was let go");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_fenced_claims_again_after_a_pause() {
    let test = TestDb::with_topics(1).await;
    let (log, topic) = miners(&test, EventLogKind::Postgres).await;
    let handler = Arc::new(Picky::default());
    let (context, partitions) = member(&test, Arc::clone(&handler) as _).await;
    let stop = CancellationToken::new();
    let membership = Box::new(Stubborn(partitions.into_iter().collect()));
    let running = tokio::spawn(consumer::run(context, membership, stop.clone()));
    log.append(&topic, 0, &[about("t:u", "before")]).await.expect("appended");
    holds(&test, &format!("1 = ({NEXT_OFFSET})")).await;

    // Somebody claims and is never heard of again.
    test.execute("update consumer_offset set owner_epoch = owner_epoch + 1, owner_id = 'ghost'").await;
    let epoch: i64 = test.scalar("select max(owner_epoch) from consumer_offset").await;
    let started = Instant::now();
    log.append(&topic, 0, &[about("t:u", "after")]).await.expect("appended");
    holds(&test, &format!("2 = ({NEXT_OFFSET})")).await;
    assert!(started.elapsed() >= Duration::from_secs(1), "not at once: {:?}", started.elapsed());
    assert_eq!(test.scalar::<i64>("select max(owner_epoch) from consumer_offset").await, epoch + 1);
    stop.cancel();
    running.await.expect("no panic").expect("clean");
    assert_eq!(*handler.journal.lock().expect("lock"), ["before", "after"]);
}

/// Fails at events whose name begins with "poison", as long as it is told to, and remembers when.
#[derive(Default)]
struct Mendable {
    mended: AtomicBool,
    tried: Mutex<Vec<(String, Instant)>>,
}

#[async_trait]
impl EventHandler for Mendable {
    fn consumes(&self, _: &str) -> bool {
        true
    }

    async fn apply(&self, tx: &mut WorkerTx, events: &[&Event]) -> Result<Vec<Dirty>, HandlerError> {
        if let [event] = events {
            self.tried.lock().expect("lock").push((event.entity_id.as_str().to_owned(), Instant::now()));
        }
        if names(events).iter().any(|name| name.starts_with("poison")) && !self.mended.load(Ordering::SeqCst)
        {
            raise(tx, "22012").await?;
        }
        Ok(Vec::new())
    }
}

impl Mendable {
    fn times(&self, name: &str) -> Vec<Instant> {
        let tried = self.tried.lock().expect("lock");
        tried.iter().filter(|(tried, _)| tried == name).map(|(_, at)| *at).collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pauses_grow_and_a_key_beyond_help_gets_one_attempt_until_one_of_its_events_succeeds() {
    let test = TestDb::with_topics(1).await;
    let (log, topic) = miners(&test, EventLogKind::Postgres).await;
    let handler = Arc::new(Mendable::default());
    let member = Member::start(&test, Arc::clone(&handler) as _).await;
    let sick: Vec<Record> = (0..5).map(|n| about("t:sick", &format!("poison-{n}"))).collect();
    log.append(&topic, 0, &sick).await.expect("appended");
    holds(&test, "count(*) = 5 from event_dlq").await;
    // One that comes when nothing of the key is in the queue.
    log.append(&topic, 0, &[about("t:sick", "poison-5")]).await.expect("appended");
    holds(&test, "count(*) = 6 from event_dlq").await;
    let retries: Vec<i32> = sqlx::query_scalar("select retry_count from event_dlq order by log_offset")
        .fetch_all(&test.admin)
        .await
        .expect("dead letters");
    assert_eq!(retries, [3, 3, 3, 1, 1, 1]);
    assert_eq!(handler.times("poison-4").len(), 1);
    let tried = handler.times("poison-1");
    // It is tried first as the head of the queue: 20 ms and five times that, a fifth less at the most.
    assert!(tried[1] - tried[0] >= Duration::from_millis(16), "{:?}", tried[1] - tried[0]);
    assert!(tried[2] - tried[1] >= Duration::from_millis(80), "{:?}", tried[2] - tried[1]);

    log.append(&topic, 0, &[about("t:sick", "well"), about("t:sick", "poison-6")]).await.expect("appended");
    holds(&test, "count(*) = 7 from event_dlq").await;
    assert_eq!(
        test.scalar::<i32>("select retry_count from event_dlq order by log_offset desc limit 1").await,
        3
    );
    member.stop().await;
    assert_eq!(count(&test, "event_inbox where outcome = 'dead'").await, 7);
}

#[tokio::test(flavor = "multi_thread")]
async fn half_of_the_last_hundred_keys_failing_alike_pause_the_partition_and_nothing_dies() {
    let test = TestDb::with_topics(1).await;
    let (log, topic) = miners(&test, EventLogKind::Postgres).await;
    let handler = Arc::new(Mendable::default());
    // Nobody is given up before the fiftieth has failed.
    let slow = |s: &mut ConsumerConfig| (s.retry_backoff_ms, s.batch_size) = (300, 1);
    let member = Setup::of(&test, Arc::clone(&handler) as _).await.settings(slow).start();
    let sick: Vec<Record> = (0..60).map(|n| about(&format!("t:u{n}"), &format!("poison-{n}"))).collect();
    log.append(&topic, 0, &sick).await.expect("appended");
    holds(&test, "bool_or(trouble like '%fail alike (database 22012)%') from consumer_offset").await;
    let report = lag::measure(&test.db, &*log, Some("picky")).await.expect("measured");
    assert_eq!(report.groups[0].status, "critical");
    assert!(report.groups[0].partitions.iter().any(|p| p.trouble.is_some()));
    // It is tried now and then, and nothing comes of it.
    let tries = handler.tried.lock().expect("lock").len();
    let attempts = "select sum(attempts) from parked_event";
    let counted: i64 = test.scalar(attempts).await;
    until("it is tried again", PATIENCE, async || {
        (handler.tried.lock().expect("lock").len() > tries).then_some(())
    })
    .await;
    assert_eq!(count(&test, "event_dlq").await, 0);
    assert_eq!(test.scalar::<i64>(attempts).await, counted, "no attempt is counted");

    handler.mended.store(true, Ordering::SeqCst);
    holds(&test, "count(*) = 60 from event_inbox where outcome = 'applied'").await;
    holds(&test, "bool_and(trouble is null) from consumer_offset").await;
    member.stop().await;
    assert_eq!((count(&test, "event_dlq").await, count(&test, "parked_event").await), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn more_than_ten_thousand_parked_events_pause_the_partition() {
    let test = TestDb::with_topics(1).await;
    let (log, topic) = miners(&test, EventLogKind::Postgres).await;
    let handler = Arc::new(Mendable::default());
    let value = String::from_utf8(about("t:sick", "poison").value.expect("a value")).expect("text");
    let parked = format!(
        "insert into parked_event (consumer_name, topic, partition, log_offset, event_id, event_kind, tenant_id, user_id, \
         raw_key, raw_value, headers, record_time) \
         select 'picky', '{topic}', 0, n - 20000, gen_random_uuid(), 'miner.updated', 't', 'sick', 't:sick', \
         convert_to('{value}', 'UTF8'), '[]', now() from generate_series(1, 10001) n"
    );
    test.execute(&parked).await;
    let member = Member::start(&test, Arc::clone(&handler) as _).await;
    holds(&test, "bool_or(trouble like '%more than 10000 events%') from consumer_offset").await;
    log.append(&topic, 0, &[about("t:other", "other")]).await.expect("appended");
    until("the head is tried", PATIENCE, async || (handler.times("poison").len() >= 4).then_some(())).await;
    assert_eq!((count(&test, "event_dlq").await, count(&test, "event_inbox").await), (0, 0));
    test.execute("delete from parked_event where log_offset > -10002").await;
    applied(&test.bells, async || count(&test, "event_inbox where outcome = 'applied'").await == 1).await;
    holds(&test, "bool_and(trouble is null) from consumer_offset").await;
    member.stop().await;
}

/// Fails with the codes it is given, one a call, and remembers every batch.
#[derive(Default)]
struct Failing {
    codes: Mutex<VecDeque<&'static str>>,
    /// An entity at which every call fails with a lock time-out.
    locked: Option<&'static str>,
    batches: Mutex<Vec<Vec<String>>>,
}

#[async_trait]
impl EventHandler for Failing {
    fn consumes(&self, _: &str) -> bool {
        true
    }

    async fn apply(&self, tx: &mut WorkerTx, events: &[&Event]) -> Result<Vec<Dirty>, HandlerError> {
        let names = names(events);
        let code = self.codes.lock().expect("lock").pop_front();
        let locked = self.locked.is_some_and(|name| names.iter().any(|n| n == name)).then_some("55P03");
        self.batches.lock().expect("lock").push(names);
        if let Some(code) = code.or(locked) {
            raise(tx, code).await?;
        }
        Ok(Vec::new())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_database_asks_to_repeat_is_repeated_whole_and_no_attempt_is_counted() {
    // Serialisation, deadlock, lock, time-out, disk full, read only, going down, connection lost.
    const CODES: [&str; 8] = ["40001", "40P01", "55P03", "57014", "53100", "25006", "57P01", "08006"];
    let test = TestDb::with_topics(1).await;
    let (log, topic) = miners(&test, EventLogKind::Postgres).await;
    log.append(&topic, 0, &[about("t:u", "a"), about("t:v", "b")]).await.expect("appended");
    let handler = Arc::new(Failing { codes: Mutex::new(CODES.into()), ..Failing::default() });
    let member = Member::start(&test, Arc::clone(&handler) as _).await;
    holds(&test, &format!("2 = ({NEXT_OFFSET})")).await;
    member.stop().await;
    let batches = handler.batches.lock().expect("lock").clone();
    assert_eq!(batches, vec![vec!["a", "b"]; CODES.len() + 1]);
    let outcomes =
        (count(&test, "event_inbox where outcome = 'applied'").await, count(&test, "event_dlq").await);
    assert_eq!(outcomes, (2, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_alone_stays_locked_makes_way_and_in_the_end_that_counts() {
    let test = TestDb::with_topics(1).await;
    let (log, topic) = miners(&test, EventLogKind::Postgres).await;
    let handler = Arc::new(Failing { locked: Some("locked"), ..Failing::default() });
    let records = [
        about("t:a", "before"),
        about("t:stuck", "locked"),
        about("t:b", "after"),
        about("t:stuck", "behind"),
    ];
    log.append(&topic, 0, &records).await.expect("appended");
    let patient = |s: &mut ConsumerConfig| s.transient_patience_ms = 3_000;
    let member = Setup::of(&test, Arc::clone(&handler) as _).await.settings(patient).start();
    holds(&test, &format!("4 = ({NEXT_OFFSET})")).await;
    assert_eq!(count(&test, "parked_event where attempts = 0").await, 2, "the event and the one behind it");
    assert_eq!(count(&test, "event_inbox where outcome = 'applied'").await, 2, "other keys flow");
    // As long as others commit, its time runs.
    until("it has failed once", PATIENCE, async || {
        log.append(&topic, 0, &[about("t:a", "more")]).await.expect("appended");
        (count(&test, "parked_event where attempts = 1 and error_class = 'database'").await == 1)
            .then_some(())
    })
    .await;
    member.stop().await;
    assert_eq!(count(&test, "event_dlq").await, 0);
}

/// Changes two rows in an order that depends on the event, and meets the other partition in between.
struct Crossing {
    barrier: Barrier,
    met: AtomicUsize,
    deadlocks: AtomicUsize,
}

#[async_trait]
impl EventHandler for Crossing {
    fn consumes(&self, _: &str) -> bool {
        true
    }

    async fn apply(&self, tx: &mut WorkerTx, events: &[&Event]) -> Result<Vec<Dirty>, HandlerError> {
        let (first, second) = if events[0].entity_id.as_str() == "left" { ("a", "b") } else { ("b", "a") };
        let change = "update pair set changed = changed + 1 where name = $1";
        sqlx::query(change).bind(first).execute(tx.conn()).await?;
        if self.met.fetch_add(1, Ordering::SeqCst) < 2 {
            self.barrier.wait().await;
        }
        let changed = sqlx::query(change).bind(second).execute(tx.conn()).await;
        let code = changed.as_ref().err().and_then(|e| e.as_database_error()?.code().map(|c| c.into_owned()));
        self.deadlocks.fetch_add(usize::from(code.as_deref() == Some("40P01")), Ordering::SeqCst);
        changed?;
        Ok(Vec::new())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadlock_between_two_partitions_is_no_attempt() {
    let test = TestDb::with_topics(2).await;
    test.execute(
        "create table pair (name text primary key, changed int not null default 0); \
                  insert into pair values ('a'), ('b'); grant select, update on pair to hi_worker",
    )
    .await;
    let (log, topic) = miners(&test, EventLogKind::Postgres).await;
    for (partition, name) in [(0, "left"), (1, "right")] {
        log.append(&topic, partition, &[about("t:u", name)]).await.expect("appended");
    }
    let handler = Arc::new(Crossing {
        barrier: Barrier::new(2),
        met: AtomicUsize::new(0),
        deadlocks: AtomicUsize::new(0),
    });
    // What fails would wait for its second attempt until the test is over.
    let slow = |s: &mut ConsumerConfig| s.retry_backoff_ms = 600_000;
    let member = Setup::of(&test, Arc::clone(&handler) as _).await.settings(slow).start();
    holds(&test, "count(*) = 2 from event_inbox where outcome = 'applied'").await;
    member.stop().await;
    assert_eq!(handler.deadlocks.load(Ordering::SeqCst), 1);
    assert_eq!(
        test.scalar::<i64>("select sum(changed) from pair").await,
        4,
        "each event changed both rows once"
    );
    assert_eq!(count(&test, "event_dlq").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn after_an_owner_that_did_not_let_go_events_are_tried_one_by_one_for_a_batch() {
    let test = TestDb::with_topics(1).await;
    let (log, topic) = miners(&test, EventLogKind::Postgres).await;
    let append = async |count: usize| {
        let records: Vec<Record> = (0..count).map(|n| about("t:u", &format!("e-{n}"))).collect();
        log.append(&topic, 0, &records).await.expect("appended");
    };
    let run = async |test: &TestDb, upto: i64| {
        let handler = Gated::with(100);
        let small = |s: &mut ConsumerConfig| s.batch_size = 4;
        let member = Setup::of(test, Arc::clone(&handler) as _).await.settings(small).start();
        holds(test, &format!("{upto} = ({NEXT_OFFSET})")).await;
        let batches = handler.batches.lock().expect("lock").clone();
        (member, batches)
    };
    append(8).await;
    let (member, batches) = run(&test, 8).await;
    assert_eq!(batches, [4, 4], "nothing is suspected at first");
    member.stop().await;
    append(8).await;
    let (member, batches) = run(&test, 16).await;
    assert_eq!(batches, [4, 4], "nor after an orderly stop");
    member.die().await;
    append(8).await;
    let (member, batches) = run(&test, 24).await;
    assert_eq!(batches, [1, 1, 1, 1, 4], "but after a death");
    member.stop().await;
    let left: i64 = test.scalar("select count(*) from consumer_offset where suspect_attempts > 0").await;
    assert_eq!(left, 0, "an orderly stop clears the suspicion");
}

#[tokio::test(flavor = "multi_thread")]
async fn redelivery_changes_nothing_whatever_became_of_the_event() {
    let test = TestDb::with_topics(1).await;
    let (log, topic) = miners(&test, EventLogKind::Postgres).await;
    let handler = Arc::new(Mendable::default());
    let slow = |s: &mut ConsumerConfig| s.retry_backoff_ms = 600_000;
    let (well, parked) = (about("t:a", "well"), about("t:b", "poison"));
    log.append(&topic, 0, &[well.clone(), parked.clone(), well.clone(), parked.clone()])
        .await
        .expect("one batch");
    let member = Setup::of(&test, Arc::clone(&handler) as _).await.settings(slow).start();
    holds(&test, &format!("4 = ({NEXT_OFFSET})")).await;
    log.append(&topic, 0, &[parked.clone(), well.clone()]).await.expect("another batch");
    holds(&test, &format!("6 = ({NEXT_OFFSET})")).await;
    assert_eq!(count(&test, "parked_event where attempts = 1").await, 1);
    assert_eq!(count(&test, "event_inbox where outcome = 'parked'").await, 1);
    member.stop().await;

    // It dies, and comes again.
    test.execute("update parked_event set next_attempt_at = now()").await;
    let member = Member::start(&test, Arc::clone(&handler) as _).await;
    holds(&test, "count(*) = 1 from event_dlq").await;
    handler.mended.store(true, Ordering::SeqCst);
    log.append(&topic, 0, &[parked, well]).await.expect("and again");
    holds(&test, &format!("8 = ({NEXT_OFFSET})")).await;
    member.stop().await;
    let outcomes: Vec<(String, i64)> =
        sqlx::query_as("select outcome, count(*) from event_inbox group by 1 order by 1")
            .fetch_all(&test.admin)
            .await
            .expect("outcomes");
    assert_eq!(outcomes, [("applied".to_owned(), 1), ("dead".to_owned(), 1)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_newer_writer_adds_is_kept_while_the_event_waits() {
    let test = TestDb::with_topics(1).await;
    let (log, topic) = miners(&test, EventLogKind::Postgres).await;
    let mut event = about("t:u", "poison");
    let mut json: serde_json::Value = serde_json::from_slice(&event.value.expect("a value")).expect("json");
    json["from_the_future"] = serde_json::json!({"a": [1.50, null]});
    event.value = Some(json.to_string().into_bytes());
    event.headers.push(("later".to_owned(), vec![0xff]));
    log.append(&topic, 0, std::slice::from_ref(&event)).await.expect("appended");
    let handler = Arc::new(Mendable::default());
    let slow = |s: &mut ConsumerConfig| s.retry_backoff_ms = 600_000;
    let member = Setup::of(&test, Arc::clone(&handler) as _).await.settings(slow).start();
    holds(&test, "count(*) = 1 from parked_event").await;
    let (value, headers): (Vec<u8>, serde_json::Value) =
        sqlx::query_as("select raw_value, headers from parked_event")
            .fetch_one(&test.admin)
            .await
            .expect("parked");
    member.stop().await;
    assert_eq!(Some(value), event.value);
    assert_eq!(hashinsight::dead_letter::headers_from_json(&headers), event.headers);
}

/// Remembers from where it was fetched.
#[derive(Default)]
struct Offsets(Mutex<Vec<i64>>);

#[async_trait]
impl Watch for Offsets {
    async fn before_fetch(&self, _: i32, offset: i64, _: FetchLimits) {
        self.0.lock().expect("lock").push(offset);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_database_is_down_nothing_is_fetched_and_afterwards_work_goes_on() {
    let mut cluster = Cluster::start(&[]).await;
    let kafka = service("KAFKA_BROKERS");
    let with = settings(&[("KAFKA_BROKERS", &kafka), ("HASHINSIGHT__KAFKA__PARTITIONS", "1")]);
    let test = TestDb::on(&cluster, with).await;
    test.execute("create table effect (entity text); grant insert on effect to hi_worker").await;
    let (log, topic) = miners(&test, EventLogKind::Kafka).await;
    log.ensure_topics(&[spec(&topic, 1)]).await.expect("a topic");
    let watch = Arc::new(Offsets::default());
    let (context, partitions) = member_on(&test, Arc::new(Effect), Arc::clone(&log)).await;
    let context = Arc::into_inner(context).expect("one holder");
    let watched = Arc::new(Watched { log: Arc::clone(&log), watch: Arc::clone(&watch) });
    let eager = |s: &mut ConsumerConfig| s.fetch_max_wait_ms = 10;
    let member = Setup { context, partitions }.log(watched).settings(eager).start();
    let append = async |from: usize, count: usize| {
        let records: Vec<Record> = (from..from + count).map(|n| about("t:u", &format!("e-{n}"))).collect();
        log.append(&topic, 0, &records).await.expect("appended");
    };
    append(0, 10).await;
    holds(&test, "count(*) = 10 from effect").await;
    cluster.kill().await;
    append(10, 10).await;
    let beyond = || watch.0.lock().expect("lock").iter().filter(|offset| **offset == 20).count();
    until("one fetch is ahead", PATIENCE, async || (beyond() > 0).then_some(())).await;
    cluster.restart().await;
    // It waits behind what cannot be applied; a second one may have begun since the database is back.
    let fetched = beyond();
    assert!(fetched <= 2, "{fetched} fetches without a database");
    holds(&test, "count(*) = 20 from effect").await;
    append(20, 10).await;
    holds(&test, "count(*) = 30 and count(distinct entity) = 30 from effect").await;
    soon(member.stop()).await;
    assert_eq!(count(&test, "event_inbox where outcome = 'applied'").await, 30);
    assert_eq!((count(&test, "parked_event").await, count(&test, "event_dlq").await), (0, 0));
    delete(&kafka, &[topic]).await;
}

/// Changes a portfolio with each event.
struct Dirtying;

#[async_trait]
impl EventHandler for Dirtying {
    fn consumes(&self, _: &str) -> bool {
        true
    }

    async fn apply(&self, _: &mut WorkerTx, events: &[&Event]) -> Result<Vec<Dirty>, HandlerError> {
        let dirty = |event: &&Event| Dirty {
            tenant_id: event.tenant_id.clone(),
            row: Row::Portfolio(event.user_id.clone()),
            version: 1,
        };
        Ok(events.iter().map(dirty).collect())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_hangs_or_is_gone_is_no_failure_of_an_event() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    for address in [silent.local_addr().expect("an address").to_string(), "127.0.0.1:9".to_owned()] {
        let url = format!("redis://{address}");
        let test =
            TestDb::with(settings(&[("REDIS_URL", &url), ("HASHINSIGHT__KAFKA__PARTITIONS", "1")])).await;
        let (log, topic) = miners(&test, EventLogKind::Postgres).await;
        log.ensure_topics(&[spec(&topic, 1)]).await.expect("a topic");
        let member = Member::start(&test, Arc::new(Dirtying)).await;
        for n in 0..20 {
            log.append(&topic, 0, &[about("t:u", &format!("e-{n}"))]).await.expect("appended");
        }
        holds(&test, "count(*) = 20 from event_inbox where outcome = 'applied'").await;
        soon(member.stop()).await;
        assert_eq!((count(&test, "parked_event").await, count(&test, "event_dlq").await), (0, 0), "{url}");
    }
}

/// Two partitions bring events that recompute one owner: a snapshot of the network, and a miner of his.
#[tokio::test(flavor = "multi_thread")]
async fn two_that_recompute_one_owner_at_once_lose_nothing() {
    let slow = [
        ("HASHINSIGHT__CONSUMER__LOCK_TIMEOUT_MS", "60000"),
        ("HASHINSIGHT__CONSUMER__STATEMENT_TIMEOUT_MS", "60000"),
    ];
    let test = TestDb::with(settings(&slow)).await;
    let tenant: TenantId = "t".parse().expect("a tenant");
    let add = async |model: &str| {
        let actor = "u".parse().expect("a user");
        let caller = Caller { actor: &actor, request_id: "test", traceparent: "", now: chrono::Utc::now() };
        let serde_json::Value::Object(body) = serde_json::json!({"model": model, "status": "online"}) else {
            return;
        };
        let mut tx = test.db.tenant(&tenant).await.expect("begin");
        miner::add(&mut tx, caller, &body).await.expect("added");
        tx.commit().await.expect("commit");
    };
    let event = |kind: &str| Event {
        event_id: Uuid::now_v7(),
        kind: kind.to_owned(),
        version: 1,
        tenant_id: tenant.clone(),
        user_id: "u".parse().expect("a user"),
        entity_id: "e".parse().expect("an entity"),
        occurred_at: chrono::Utc::now(),
        data: serde_json::Value::Null,
        text: String::new(),
    };
    add("S21").await;
    test.execute(
        "insert into network_snapshots (tenant_id, id, btc_price_usd, difficulty, block_height, observed_at) \
         values ('t', gen_random_uuid(), 90000, 150000000000000, 925000, now())",
    )
    .await;
    // Who saw one miner writes last, if nobody keeps the other from reading and writing meanwhile.
    test.execute(
        "create function hold_back() returns trigger language plpgsql as \
         $$ begin if new.miners_total = 1 then perform pg_advisory_xact_lock(4242); end if; return new; end $$; \
         create trigger hold_back before insert on portfolio for each row execute function hold_back()",
    )
    .await;
    let mut gate = test.admin.acquire().await.expect("a connection");
    sqlx::query("select pg_advisory_lock(4242)").execute(&mut *gate).await.expect("locked");

    let handler = projection::groups(assumptions(&test.config.economics)).remove(0).handler;
    let apply = |event: Event| {
        let (handler, db) = (Arc::clone(&handler), test.db.clone());
        tokio::spawn(async move {
            let mut tx = db.worker().await.expect("begin");
            handler.apply(&mut tx, &[&event]).await.expect("applied");
            tx.commit().await.expect("commit");
        })
    };
    let waiting = "select count(*) from pg_locks where locktype = 'advisory' and not granted \
                   and database = (select oid from pg_database where datname = current_database())";
    let snapshot = apply(event("network.snapshot"));
    until("the first has read and waits", PATIENCE, async || {
        (test.scalar::<i64>(waiting).await == 1).then_some(())
    })
    .await;
    add("S19j Pro").await;
    let miner = apply(event("miner.added"));
    until("the second waits, or did not", PATIENCE, async || {
        (miner.is_finished() || test.scalar::<i64>(waiting).await == 2).then_some(())
    })
    .await;
    sqlx::query("select pg_advisory_unlock(4242)").execute(&mut *gate).await.expect("unlocked");
    snapshot.await.expect("no panic");
    miner.await.expect("no panic");
    assert_eq!(test.scalar::<i64>("select miners_total from portfolio").await, 2, "nobody's miner is lost");
}
