//! The locks of owners around a batch: they save work, and whatever happens to them no event is lost, repeated, delayed
//! for long, or blamed.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use async_trait::async_trait;
use hashinsight::config::{ConsumerConfig, EventLogKind};
use hashinsight::db::WorkerTx;
use hashinsight::event::Event;
use hashinsight::lock::{Lease, Locks};
use hashinsight::log::{EventLog, Record};
use hashinsight::projection::{self, Dirty, EventHandler, HandlerError, Owner};
use hashinsight::role::app::assumptions;
use serde_json::json;
use tokio::time::Instant;
use uuid::Uuid;

use crate::pipeline::{Stubborn, record, soon};
use crate::support::consuming::{Setup, miners};
use crate::support::kafka::spec;
use crate::support::{RedisServer, TestDb, settings, until};

/// Longer than anything takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

const LOCK: &str = "lock:user:t:u:portfolio";

/// Remembers the events in a table, and recomputes their users as far as locks are concerned.
#[derive(Default)]
struct Owning {
    calls: AtomicUsize,
    /// The first call is in a long statement for a while, and then never ends by itself.
    first_hangs: bool,
}

#[async_trait]
impl EventHandler for Owning {
    fn consumes(&self, _: &str) -> bool {
        true
    }

    fn owners(&self, events: &[&Event]) -> BTreeSet<Owner> {
        let owner = |event: &&Event| Owner {
            tenant_id: event.tenant_id.clone(),
            user_id: event.user_id.clone(),
            read_model: "portfolio",
        };
        events.iter().map(owner).collect()
    }

    async fn apply(&self, tx: &mut WorkerTx, events: &[&Event]) -> Result<Vec<Dirty>, HandlerError> {
        let entities: Vec<&str> = events.iter().map(|e| e.entity_id.as_str()).collect();
        sqlx::query("insert into effect select unnest($1::text[])").bind(entities).execute(tx.conn()).await?;
        if self.calls.fetch_add(1, Ordering::SeqCst) == 0 && self.first_hangs {
            sqlx::query("select pg_sleep(2)").execute(tx.conn()).await?;
            std::future::pending::<()>().await;
        }
        Ok(Vec::new())
    }
}

/// A database with one topic of miners, and its Redis.
struct Scene {
    test: TestDb,
    log: Arc<dyn EventLog>,
    topic: String,
}

impl Scene {
    async fn with(redis: &RedisServer, partitions: i32) -> Self {
        let with = [("REDIS_URL", redis.url()), ("HASHINSIGHT__KAFKA__PARTITIONS", partitions.to_string())];
        let test =
            TestDb::with(settings(&with.each_ref().map(|(name, value)| (*name, value.as_str())))).await;
        test.execute("create table effect (entity text); grant insert on effect to hi_worker").await;
        let (log, topic) = miners(&test, EventLogKind::Postgres).await;
        log.ensure_topics(&[spec(&topic, partitions)]).await.expect("a topic");
        Self { test, log, topic }
    }

    async fn append(&self, partition: i32, records: &[Record]) {
        self.log.append(&self.topic, partition, records).await.expect("appended");
    }

    /// Appends events of one user one after the other, each when the one before is applied.
    async fn one_by_one(&self, name: &str, count: usize) {
        for n in 0..count {
            let entity = format!("{name}-{n}");
            self.append(0, &[record("t:u", &entity, Uuid::now_v7())]).await;
            self.holds(&format!("count(*) = 1 from effect where entity = '{entity}'")).await;
        }
    }

    async fn holds(&self, condition: &str) {
        let sql = format!("select coalesce((select {condition}), false)");
        until(condition, PATIENCE, async || self.test.scalar::<bool>(&sql).await.then_some(())).await;
    }

    async fn count(&self, of: &str) -> i64 {
        self.test.scalar(&format!("select count(*) from {of}")).await
    }

    /// So many events, each applied once, and none of them failed.
    async fn all_is_well(&self, events: i64) {
        assert_eq!(self.count("event_inbox where outcome = 'applied'").await, events);
        assert_eq!(self.count("effect").await, events);
        assert_eq!((self.count("parked_event").await, self.count("event_dlq").await), (0, 0));
    }
}

/// What fails would wait for its second attempt until the test is over.
fn slow_retries(settings: &mut ConsumerConfig) {
    (settings.retry_backoff_ms, settings.owner_locks) = (600_000, true);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_that_somebody_else_holds_costs_a_moment_and_no_attempt() {
    const BATCHES: usize = 20;
    let redis = RedisServer::start().await;
    let scene = Scene::with(&redis, 1).await;
    redis.ask(&format!("SET {LOCK} foreign")).await;
    let patience = Duration::from_millis(400);
    let member = Setup::of(&scene.test, Arc::new(Owning::default()))
        .await
        .settings(slow_retries)
        .settings(|s| s.owner_lock_wait_ms = patience.as_millis() as u64)
        .start();
    let started = Instant::now();
    scene.one_by_one("contended", 1).await;
    assert!(started.elapsed() >= patience, "it waited: {:?}", started.elapsed());
    scene.one_by_one("contended-again", BATCHES).await;
    member.stop().await;
    scene.all_is_well(1 + BATCHES as i64).await;
    assert_eq!(
        redis.ask(&format!("GET {LOCK}")).await.as_deref(),
        Some("foreign"),
        "it is still somebody else's"
    );
}

/// F30: without Redis the database guards alone.
#[tokio::test(flavor = "multi_thread")]
async fn redis_frozen_flushed_and_killed_in_the_middle_is_no_failure_of_an_event() {
    const EACH: usize = 10;
    let mut redis = RedisServer::start().await;
    let scene = Scene::with(&redis, 1).await;
    let member = Setup::of(&scene.test, Arc::new(Owning::default())).await.settings(slow_retries).start();
    scene.one_by_one("well", EACH).await;
    redis.freeze();
    // Nothing but locks asks Redis here, and no batch waits for them for longer than its patience.
    scene.one_by_one("frozen", EACH).await;
    redis.thaw();
    scene.one_by_one("thawed", EACH).await;
    redis.ask("FLUSHALL").await;
    scene.one_by_one("flushed", EACH).await;
    redis.kill();
    scene.one_by_one("killed", EACH).await;
    redis.restart().await;
    let mut n = 0;
    until("locks are taken again", PATIENCE, async || {
        n += 1;
        scene.one_by_one(&format!("back-{n}"), 1).await;
        redis.ask("INFO commandstats").await.is_some_and(|s| s.contains("cmdstat_set:")).then_some(())
    })
    .await;
    soon(member.stop()).await;
    scene.all_is_well(5 * EACH as i64 + n).await;
}

/// LOCK-01: a lost renewal cancels the work; what was done is rolled back, and done again without locks.
#[tokio::test(flavor = "multi_thread")]
async fn a_lock_that_is_lost_cancels_the_batch_which_is_applied_once() {
    let redis = RedisServer::start().await;
    let scene = Scene::with(&redis, 1).await;
    let handler = Arc::new(Owning { first_hangs: true, ..Owning::default() });
    let lease = Lease { ttl: Duration::from_secs(2), renew_every: Duration::from_millis(100) };
    let locks = Locks::new(scene.test.redis().await, lease, &scene.test.lifecycle);
    let mut setup = Setup::of(&scene.test, Arc::clone(&handler) as _).await.settings(slow_retries);
    setup.context.locks = locks;
    setup.context.settings.owner_lock_wait_ms = 10_000;
    scene.append(0, &[record("t:u", "a", Uuid::now_v7()), record("t:u", "b", Uuid::now_v7())]).await;
    let member = setup.start();
    until("the first call is at it", PATIENCE, async || {
        (handler.calls.load(Ordering::SeqCst) == 1).then_some(())
    })
    .await;
    assert_eq!(redis.ask(&format!("SET {LOCK} foreign XX")).await.as_deref(), Some("OK"), "it had the lock");
    scene.holds("count(*) = 2 from effect").await;
    member.stop().await;
    scene.all_is_well(2).await;
    assert_eq!(handler.calls.load(Ordering::SeqCst), 2);
    assert_eq!(redis.ask(&format!("GET {LOCK}")).await.as_deref(), Some("foreign"));
}

/// An event that recomputes the user `u` and somebody else, whose key decides its partition.
fn given_away(to: &str) -> Record {
    let mut event = record(&format!("t:{to}"), "given-away", Uuid::now_v7());
    let mut json: serde_json::Value = serde_json::from_slice(&event.value.expect("a value")).expect("json");
    json["data"] = json!({"changes": {"owner_id": {"old": "u", "new": to}}});
    event.value = Some(json.to_string().into_bytes());
    event
}

/// F31: the lock of one owner given to two workers at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn two_that_hold_the_same_lock_lose_no_update() {
    const WAITING: &str = "select count(*) from pg_locks where locktype = 'advisory' and not granted \
                           and database = (select oid from pg_database where datname = current_database())";
    let redis = RedisServer::start().await;
    let scene = Scene::with(&redis, 2).await;
    let test = &scene.test;
    // Whoever saw one miner writes last, if nobody keeps the other from reading and writing meanwhile.
    test.execute(
        "create function hold_back() returns trigger language plpgsql as \
         $$ begin if new.user_id = 'u' and new.miners_total = 1 then perform pg_advisory_xact_lock(4242); end if; \
         return new; end $$; \
         create trigger hold_back before insert on portfolio for each row execute function hold_back()",
    )
    .await;
    let add = async || {
        test.execute(
            "insert into miners (tenant_id, id, owner_id, model, hashrate_ths, power_w, quantity, status) \
             values ('t', gen_random_uuid(), 'u', 'Antminer S21', 200, 3500, 1, 'online')",
        )
        .await;
    };
    let mut gate = test.admin.acquire().await.expect("a connection");
    sqlx::query("select pg_advisory_lock(4242)").execute(&mut *gate).await.expect("locked");
    let handler = projection::groups(assumptions(&test.config.economics)).remove(0).handler;
    let member = Setup::of(test, handler).await.settings(slow_retries).start();

    add().await;
    scene.append(0, &[record("t:u", "m", Uuid::now_v7())]).await;
    until("the first has read and waits", PATIENCE, async || {
        (test.scalar::<i64>(WAITING).await == 1).then_some(())
    })
    .await;
    let first = redis.ask(&format!("GET {LOCK}")).await.expect("the first has the lock");
    redis.ask(&format!("DEL {LOCK}")).await;
    add().await;
    scene.append(1, &[given_away("v")]).await;
    until("the second waits, or is through", PATIENCE, async || {
        let through = test.scalar::<i64>("select count(*) from portfolio where user_id = 'v'").await == 1;
        (through || test.scalar::<i64>(WAITING).await == 2).then_some(())
    })
    .await;
    let second = redis.ask(&format!("GET {LOCK}")).await;
    assert!(second.as_ref().is_some_and(|second| *second != first), "both have it: {first} {second:?}");
    sqlx::query("select pg_advisory_unlock(4242)").execute(&mut *gate).await.expect("unlocked");
    scene.holds("count(*) = 2 from event_inbox where outcome = 'applied'").await;
    assert_eq!(
        test.scalar::<i64>("select miners_total from portfolio where user_id = 'u'").await,
        2,
        "nobody's miner is lost"
    );
    member.stop().await;
    assert_eq!((scene.count("parked_event").await, scene.count("event_dlq").await), (0, 0));
}

/// Stands still in its first call: its thread sleeps, so nothing is renewed.
struct StandingStill {
    inner: Owning,
    until: Mutex<Option<mpsc::Receiver<()>>>,
}

#[async_trait]
impl EventHandler for StandingStill {
    fn consumes(&self, kind: &str) -> bool {
        self.inner.consumes(kind)
    }

    fn owners(&self, events: &[&Event]) -> BTreeSet<Owner> {
        self.inner.owners(events)
    }

    async fn apply(&self, tx: &mut WorkerTx, events: &[&Event]) -> Result<Vec<Dirty>, HandlerError> {
        let until = self.until.lock().expect("lock").take();
        if let Some(until) = until {
            tokio::task::block_in_place(|| until.recv()).expect("released");
        }
        self.inner.apply(tx, events).await
    }
}

/// F31: a holder that stands still for longer than its lock lasts, while another takes its partition over.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_holder_that_stands_still_for_longer_than_its_lock_is_rejected_by_the_database() {
    let redis = RedisServer::start().await;
    let scene = Scene::with(&redis, 1).await;
    let lease = Lease { ttl: Duration::from_millis(500), renew_every: Duration::from_millis(100) };
    let member = async |handler: Arc<dyn EventHandler>| {
        let mut setup = Setup::of(&scene.test, handler).await.settings(slow_retries);
        setup.context.locks = Locks::new(scene.test.redis().await, lease, &scene.test.lifecycle);
        setup.context.settings.owner_lock_wait_ms = 10_000;
        let stubborn = Box::new(Stubborn(setup.partitions.iter().cloned().collect()));
        setup.start_as(stubborn)
    };
    let (release, until_released) = mpsc::channel();
    let standing = StandingStill { inner: Owning::default(), until: Mutex::new(Some(until_released)) };
    scene.append(0, &[record("t:u", "a", Uuid::now_v7())]).await;
    let late = member(Arc::new(standing)).await;
    let token = async || redis.ask(&format!("GET {LOCK}")).await;
    until("it has the lock", PATIENCE, async || token().await).await;
    until("the lock has ended", PATIENCE, async || token().await.is_none().then_some(())).await;

    let prompt = Arc::new(Owning::default());
    let survivor = member(Arc::clone(&prompt) as _).await;
    scene.holds("count(*) = 1 from effect").await;
    assert_eq!(prompt.calls.load(Ordering::SeqCst), 1, "the other one stands still");
    release.send(()).expect("it stands still");
    scene.append(0, &[record("t:u", "b", Uuid::now_v7())]).await;
    scene.holds("count(*) = 2 from effect").await;
    soon(late.stop()).await;
    soon(survivor.stop()).await;
    scene.all_is_well(2).await;
}
