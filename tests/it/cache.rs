//! The cache by itself, in Redis and in memory: freshness, versions, single flight, and what a broken Redis costs.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use futures_util::future::join_all;
use hashinsight::cache::{Cache, Entry, Key, Origin, Source};
use hashinsight::config::{Config, load_from};
use hashinsight::lifecycle::Lifecycle;
use hashinsight::redis::Redis;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, Semaphore, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use crate::support::{service, settings, unique, until};

mod shared;

/// Five times what a read without Redis may take.
const SOON: Duration = Duration::from_secs(5);

/// A load that waits for another process does so for as long as this.
const PATIENCE: Duration = Duration::from_secs(10);

/// The same of a process that has less of it.
const HASTE: Duration = Duration::from_millis(200);

fn config(redis: &str, patience: Duration) -> Config {
    let patience = patience.as_millis().to_string();
    let environment = settings(&[
        ("REDIS_URL", redis),
        ("HASHINSIGHT__CACHE__PORTFOLIO_FRESH_SECONDS", "1"),
        ("HASHINSIGHT__CACHE__LOAD_WAIT_MS", &patience),
        ("HASHINSIGHT__REDIS__COMMAND_TIMEOUT_MS", "500"),
    ]);
    load_from(None, &environment).expect("valid").config
}

async fn cache(redis: &str) -> Arc<Cache> {
    cache_of(redis, PATIENCE, &Lifecycle::default()).await
}

async fn impatient_cache(redis: &str) -> Arc<Cache> {
    cache_of(redis, HASTE, &Lifecycle::default()).await
}

async fn cache_of(redis: &str, patience: Duration, lifecycle: &Lifecycle) -> Arc<Cache> {
    let config = config(redis, patience);
    Cache::new(&config.cache, Redis::connect(&config.redis).await.expect("an address"), lifecycle)
}

/// Both kinds of store, with the source each one names.
async fn stores() -> [(Arc<Cache>, Source); 2] {
    [(cache(&service("REDIS_URL")).await, Source::Redis), (cache("").await, Source::Memory)]
}

fn key() -> Key {
    Key::portfolio(&unique("t").parse().expect("a tenant"), &"u".parse().expect("a user"))
}

fn entry(version: i64) -> Entry {
    Entry { json: format!("{{\"version\":{version}}}").into(), version }
}

/// A row somewhere, and what it takes to read it.
struct Row {
    version: AtomicI64,
    loads: AtomicUsize,
    /// A load ends when there is a permit.
    gate: Semaphore,
    loading: Notify,
}

impl Row {
    fn new(version: i64) -> Arc<Self> {
        Arc::new(Self {
            version: AtomicI64::new(version),
            loads: AtomicUsize::new(0),
            gate: Semaphore::new(Semaphore::MAX_PERMITS),
            loading: Notify::new(),
        })
    }

    fn closed(version: i64) -> Arc<Self> {
        let row = Self::new(version);
        row.gate.forget_permits(Semaphore::MAX_PERMITS);
        row
    }

    fn loads(&self) -> usize {
        self.loads.load(SeqCst)
    }
}

struct Reader(Arc<Row>);

impl Origin for Reader {
    type Error = String;

    async fn load(&self) -> Result<Entry, String> {
        self.0.loads.fetch_add(1, SeqCst);
        let read = entry(self.0.version.load(SeqCst));
        self.0.loading.notify_one();
        let _permit = self.0.gate.acquire().await.map_err(|e| e.to_string())?;
        Ok(read)
    }

    async fn version(&self) -> Result<i64, String> {
        Ok(self.0.version.load(SeqCst))
    }
}

async fn read(cache: &Arc<Cache>, key: &Key, row: &Arc<Row>) -> (i64, hashinsight::cache::Metadata) {
    let (entry, metadata) = cache.read(key, Reader(Arc::clone(row))).await.expect("a value");
    assert_eq!(*entry.json, *format!("{{\"version\":{}}}", entry.version));
    (entry.version, metadata)
}

#[tokio::test]
async fn fresh_then_stale_then_refreshed_once() {
    for (cache, source) in stores().await {
        let (key, row) = (key(), Row::new(1));
        let (version, metadata) = read(&cache, &key, &row).await;
        assert_eq!((version, metadata.cache_hit, metadata.source), (1, false, Source::Database));
        let (_, metadata) = read(&cache, &key, &row).await;
        assert_eq!((metadata.cache_hit, metadata.stale, metadata.source), (true, false, source));
        assert_eq!((metadata.freshness_sec, row.loads()), (0, 1));

        sleep(Duration::from_millis(1_050)).await;
        row.gate.forget_permits(Semaphore::MAX_PERMITS);
        // The row may stand as it did: memory checks the version, so here it does in both.
        let answers = join_all((0..20).map(|_| timeout(SOON, read(&cache, &key, &row)))).await;
        for answer in answers {
            let (version, metadata) = answer.expect("nobody waits for the refresh");
            assert_eq!((version, metadata.cache_hit, metadata.stale), (1, true, true));
            assert_eq!(metadata.freshness_sec, 1);
        }
        until("a refresh", SOON, async || (row.loads() == 2).then_some(())).await;
        row.gate.add_permits(Semaphore::MAX_PERMITS);
        until("the refreshed value", SOON, async || {
            let (_, metadata) = read(&cache, &key, &row).await;
            (metadata.cache_hit && !metadata.stale).then_some(())
        })
        .await;
        assert_eq!(row.loads(), 2, "one refresher");
    }
}

#[tokio::test]
async fn a_value_is_gone_after_twice_its_freshness() {
    for (cache, _) in stores().await {
        let (key, row) = (key(), Row::new(1));
        let schedule = Key::schedule(&unique("t").parse().expect("a tenant"), &"u".parse().expect("a user"));
        read(&cache, &key, &row).await;
        read(&cache, &schedule, &row).await;
        sleep(Duration::from_millis(2_100)).await;
        let (_, metadata) = read(&cache, &key, &row).await;
        assert!(!metadata.cache_hit, "{metadata:?}");
        // Its own freshness is five minutes.
        let (_, metadata) = read(&cache, &schedule, &row).await;
        assert_eq!((metadata.cache_hit, metadata.stale, metadata.freshness_sec), (true, false, 2));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_misses_load_once() {
    for (cache, _) in stores().await {
        let (key, row) = (key(), Row::closed(1));
        let readers: Vec<_> = (0..100)
            .map(|_| {
                let (cache, key, row) = (Arc::clone(&cache), key.clone(), Arc::clone(&row));
                tokio::spawn(async move { read(&cache, &key, &row).await })
            })
            .collect();
        row.loading.notified().await;
        sleep(Duration::from_millis(100)).await;
        row.gate.add_permits(Semaphore::MAX_PERMITS);
        for reader in readers {
            assert_eq!(reader.await.expect("no panic").0, 1);
        }
        assert_eq!(row.loads(), 1);
    }
}

#[tokio::test]
async fn a_load_that_is_abandoned_leaves_the_next_reader_a_way() {
    let (cache, key, row) = (cache("").await, key(), Row::closed(1));
    assert!(timeout(Duration::from_millis(50), read(&cache, &key, &row)).await.is_err());
    row.gate.add_permits(Semaphore::MAX_PERMITS);
    let (version, _) = timeout(SOON, read(&cache, &key, &row)).await.expect("an answer");
    assert_eq!((version, row.loads()), (1, 2));
}

#[tokio::test]
async fn an_older_version_replaces_nothing() {
    for (cache, _) in stores().await {
        let (key, row) = (key(), Row::new(5));
        cache.put(&key, &entry(5)).await;
        cache.put(&key, &entry(4)).await;
        assert_eq!(read(&cache, &key, &row).await.0, 5);
        assert_eq!(row.loads(), 0, "from the cache");

        // An invalidation tells of a version that nobody has stored yet.
        cache.invalidate(&[(key.clone(), 6)]).await;
        cache.put(&key, &entry(5)).await;
        row.version.store(6, SeqCst);
        let (version, metadata) = read(&cache, &key, &row).await;
        assert_eq!((version, metadata.cache_hit), (6, false));
        // One that comes late is no reason to forget what is newer.
        cache.invalidate(&[(key.clone(), 5), (key.clone(), 6)]).await;
        let (version, metadata) = read(&cache, &key, &row).await;
        assert_eq!((version, metadata.cache_hit), (6, true));
    }
}

#[tokio::test]
async fn a_slow_reader_does_not_bring_back_what_was_invalidated() {
    for (cache, _) in stores().await {
        let (key, row) = (key(), Row::closed(1));
        let slow = {
            let (cache, key, row) = (Arc::clone(&cache), key.clone(), Arc::clone(&row));
            tokio::spawn(async move { read(&cache, &key, &row).await })
        };
        row.loading.notified().await;
        // The row changes and is invalidated while the reader holds the old one.
        row.version.store(2, SeqCst);
        cache.invalidate(&[(key.clone(), 2)]).await;
        // Who asks from now on does not share the old load.
        row.gate.add_permits(Semaphore::MAX_PERMITS);
        assert_eq!(read(&cache, &key, &row).await.0, 2);
        assert_eq!(slow.await.expect("no panic").0, 1);
        assert_eq!(read(&cache, &key, &row).await.0, 2);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_and_invalidations_race_and_the_last_version_wins() {
    for (cache, _) in stores().await {
        let (key, row) = (key(), Row::new(0));
        for version in 1..=200 {
            let readers = (0..3).map(|_| {
                let (cache, key, row) = (Arc::clone(&cache), key.clone(), Arc::clone(&row));
                tokio::spawn(async move { read(&cache, &key, &row).await })
            });
            let readers: Vec<_> = readers.collect();
            row.version.store(version, SeqCst);
            cache.invalidate(&[(key.clone(), version)]).await;
            assert_eq!(read(&cache, &key, &row).await.0, version);
            for reader in readers {
                reader.await.expect("no panic");
            }
            assert_eq!(read(&cache, &key, &row).await.0, version);
        }
    }
}

#[tokio::test]
async fn memory_is_not_believed_when_the_row_has_moved_on() {
    let (cache, key, row) = (cache("").await, key(), Row::new(1));
    read(&cache, &key, &row).await;
    // Another process applied an event: nothing was invalidated here.
    row.version.store(2, SeqCst);
    let (version, metadata) = read(&cache, &key, &row).await;
    assert_eq!((version, metadata.cache_hit), (2, false));
}

/// Nobody listens, or somebody who never says a word.
#[tokio::test]
async fn without_an_answer_from_redis_reads_go_to_the_origin() {
    let silent = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let silent_url = format!("redis://{}", silent.local_addr().expect("an address"));
    let closed = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let closed_url = format!("redis://{}", closed.local_addr().expect("an address"));
    drop(closed);
    let keeper = tokio::spawn(async move {
        let mut open = Vec::new();
        loop {
            open.push(silent.accept().await);
        }
    });
    for url in [silent_url, closed_url] {
        let started = Instant::now();
        let cache = cache(&url).await;
        assert!(
            started.elapsed() < Duration::from_secs(2),
            "start-up waits for the command time-out at most"
        );
        let (key, row) = (key(), Row::new(1));
        for _ in 0..5 {
            let (version, metadata) = timeout(SOON, read(&cache, &key, &row)).await.expect("an answer");
            assert_eq!((version, metadata.source), (1, Source::Database));
        }
        timeout(SOON, cache.invalidate(&[(key, 2)])).await.expect("the consumer is not held up");
        assert!(started.elapsed() < SOON, "{:?}", started.elapsed());
    }
    keeper.abort();
}

#[derive(Clone, Copy, PartialEq)]
enum Traffic {
    Flows,
    /// Connections stay open and nothing comes through.
    Stands,
    /// Connections end.
    Cut,
}

/// A way to Redis that can be blocked.
struct Way {
    url: String,
    traffic: Arc<watch::Sender<Traffic>>,
    task: JoinHandle<()>,
}

impl Way {
    async fn to_redis() -> Self {
        let target = service("REDIS_URL");
        let target =
            target.strip_prefix("redis://").expect("a plain address").trim_end_matches('/').to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("redis://{}", listener.local_addr().expect("an address"));
        let traffic = Arc::new(watch::Sender::new(Traffic::Flows));
        let state = Arc::clone(&traffic);
        let task = tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                tokio::spawn(Self::carry(near, target.clone(), state.subscribe()));
            }
        });
        Self { url, traffic, task }
    }

    async fn carry(mut near: TcpStream, target: String, mut traffic: watch::Receiver<Traffic>) {
        let Ok(mut far) = TcpStream::connect(&target).await else { return };
        loop {
            let now = *traffic.borrow_and_update();
            match now {
                Traffic::Cut => return,
                Traffic::Stands if traffic.changed().await.is_ok() => {}
                Traffic::Stands => return,
                Traffic::Flows => tokio::select! {
                    _ = copy_bidirectional(&mut near, &mut far) => return,
                    changed = traffic.changed() => if changed.is_err() { return },
                },
            }
        }
    }

    fn set(&self, traffic: Traffic) {
        self.traffic.send_replace(traffic);
    }
}

#[tokio::test]
async fn a_redis_that_falls_silent_costs_one_time_out() {
    let way = Way::to_redis().await;
    let (cache, key, row) = (cache(&way.url).await, key(), Row::new(1));
    read(&cache, &key, &row).await;
    assert!(read(&cache, &key, &row).await.1.cache_hit);

    way.set(Traffic::Stands);
    let started = Instant::now();
    for _ in 0..10 {
        let (version, metadata) = read(&cache, &key, &row).await;
        assert_eq!((version, metadata.source), (1, Source::Database));
    }
    cache.invalidate(&[(key.clone(), 2)]).await;
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());

    way.set(Traffic::Cut);
    way.set(Traffic::Flows);
    row.version.store(2, SeqCst);
    until("values come from Redis again", 2 * SOON, async || {
        let (version, metadata) = read(&cache, &key, &row).await;
        assert_eq!(version, 2);
        metadata.cache_hit.then_some(())
    })
    .await;
    way.task.abort();
}

#[tokio::test]
async fn an_invalidation_that_redis_missed_is_made_up_for() {
    let way = Way::to_redis().await;
    let lifecycle = Lifecycle::default();
    let through = cache_of(&way.url, PATIENCE, &lifecycle).await;
    let direct = cache(&service("REDIS_URL")).await;
    let (key, row) = (key(), Row::new(1));
    read(&through, &key, &row).await;
    assert!(read(&direct, &key, &row).await.1.cache_hit, "both see the same values");

    way.set(Traffic::Cut);
    row.version.store(2, SeqCst);
    through.invalidate(&[(key.clone(), 2)]).await;
    way.set(Traffic::Flows);
    // Until Redis has confirmed it, the process that knows better does not believe Redis.
    let end = Instant::now() + Duration::from_millis(1_500);
    while Instant::now() < end {
        assert_eq!(read(&through, &key, &row).await.0, 2);
        sleep(Duration::from_micros(200)).await;
    }
    until("the others hear of it", 2 * SOON, async || (read(&direct, &key, &row).await.0 == 2).then_some(()))
        .await;
    until("values come from Redis again", 2 * SOON, async || {
        read(&through, &key, &row).await.1.cache_hit.then_some(())
    })
    .await;
    lifecycle.stop();
    way.task.abort();
}

#[tokio::test]
async fn an_address_that_is_none_is_refused_by_name() {
    for url in
        ["nonsense", "redis://", "redis://host:port", "http://127.0.0.1:6379", "redis://u:hush@host:99999"]
    {
        let refused = Redis::connect(&config(url, PATIENCE).redis).await.expect_err(url).to_string();
        assert!(refused.contains("redis.url") && refused.contains("REDIS_URL"), "{refused}");
        assert!(!refused.contains("hush") && !refused.contains('\n'), "{refused}");
    }
}
