//! Two caches of two processes on one Redis (CACHE-01): who loads, and whose value stays.

use super::*;
use crate::support::RedisServer;

/// The caches of two processes.
async fn pair() -> [Arc<Cache>; 2] {
    let url = service("REDIS_URL");
    [cache(&url).await, cache(&url).await]
}

#[tokio::test]
async fn a_stale_value_is_refreshed_by_one_process() {
    let ([here, there], key, row) = (pair().await, key(), Row::new(1));
    read(&here, &key, &row).await;
    assert!(read(&there, &key, &row).await.1.cache_hit, "both see the same values");
    sleep(Duration::from_millis(1_050)).await;
    row.gate.forget_permits(Semaphore::MAX_PERMITS);
    assert!(read(&here, &key, &row).await.1.stale);
    until("a refresh", SOON, async || (row.loads() == 2).then_some(())).await;
    // Each of these would start one, were the key not claimed.
    for _ in 0..20 {
        assert!(read(&there, &key, &row).await.1.stale);
    }
    row.gate.add_permits(Semaphore::MAX_PERMITS);
    until("the refreshed value", SOON, async || {
        let [here, there] = [read(&here, &key, &row).await.1, read(&there, &key, &row).await.1];
        (!here.stale && !there.stale).then_some(())
    })
    .await;
    assert_eq!(row.loads(), 2);
}

#[tokio::test]
async fn a_hundred_misses_in_two_processes_load_once() {
    let (caches, key, row) = (pair().await, key(), Row::closed(1));
    let readers: Vec<_> = (0..100)
        .map(|n| {
            let (cache, key, row) = (Arc::clone(&caches[n % 2]), key.clone(), Arc::clone(&row));
            tokio::spawn(async move { read(&cache, &key, &row).await })
        })
        .collect();
    // Behind theirs on the same connections: after the third of these everybody has asked and missed, and one in each
    // process has asked whether to load.
    for _ in 0..3 {
        for cache in &caches {
            read(cache, &self::key(), &Row::new(1)).await;
        }
    }
    until("somebody loads", SOON, async || (row.loads() > 0).then_some(())).await;
    row.gate.add_permits(Semaphore::MAX_PERMITS);
    for reader in readers {
        assert_eq!(reader.await.expect("no panic").0, 1);
    }
    assert_eq!(row.loads(), 1);
}

#[tokio::test]
async fn a_process_that_dies_while_it_loads_holds_nobody_up_for_long() {
    let (url, key, row) = (service("REDIS_URL"), key(), Row::closed(1));
    let [patient, hasty] = [cache(&url).await, impatient_cache(&url).await];
    let loading = tokio::spawn({
        let (cache, key, row) = (Arc::clone(&patient), key.clone(), Arc::clone(&row));
        async move { read(&cache, &key, &row).await }
    });
    row.loading.notified().await;
    loading.abort();
    assert!(loading.await.expect_err("aborted").is_cancelled());
    row.gate.add_permits(Semaphore::MAX_PERMITS);
    let started = Instant::now();
    assert_eq!(timeout(SOON, read(&hasty, &key, &row)).await.expect("an answer").0, 1);
    assert!(started.elapsed() >= HASTE, "it waited: {:?}", started.elapsed());
    assert_eq!(row.loads(), 2);
}

/// What a process claimed is no reason for itself to wait.
#[tokio::test]
async fn a_process_whose_reader_left_while_it_loaded_loads_at_once_for_the_next() {
    let (cache, key, row) = (cache(&service("REDIS_URL")).await, key(), Row::closed(1));
    let loading = tokio::spawn({
        let (cache, key, row) = (Arc::clone(&cache), key.clone(), Arc::clone(&row));
        async move { read(&cache, &key, &row).await }
    });
    row.loading.notified().await;
    loading.abort();
    assert!(loading.await.expect_err("aborted").is_cancelled());
    row.gate.add_permits(Semaphore::MAX_PERMITS);
    let (version, _) = timeout(PATIENCE / 2, read(&cache, &key, &row)).await.expect("an answer");
    assert_eq!((version, row.loads()), (1, 2));
}

#[tokio::test]
async fn a_slow_reader_does_not_bring_back_what_another_process_invalidated() {
    let ([here, there], key, row) = (pair().await, key(), Row::closed(1));
    let slow = tokio::spawn({
        let (there, key, row) = (Arc::clone(&there), key.clone(), Arc::clone(&row));
        async move { read(&there, &key, &row).await }
    });
    row.loading.notified().await;
    row.version.store(2, SeqCst);
    here.invalidate(&[(key.clone(), 2)]).await;
    row.gate.add_permits(Semaphore::MAX_PERMITS);
    assert_eq!(slow.await.expect("no panic").0, 1);
    for cache in [&there, &here] {
        assert_eq!(read(cache, &key, &row).await.0, 2);
    }
    assert!(read(&there, &key, &row).await.1.cache_hit);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_here_and_invalidations_there_race_and_the_last_version_wins() {
    let ([here, there], key, row) = (pair().await, key(), Row::new(0));
    for version in 1..=200 {
        let readers: Vec<_> = [&here, &there, &there, &here, &there]
            .into_iter()
            .map(|cache| {
                let (cache, key, row) = (Arc::clone(cache), key.clone(), Arc::clone(&row));
                tokio::spawn(async move { read(&cache, &key, &row).await })
            })
            .collect();
        row.version.store(version, SeqCst);
        here.invalidate(&[(key.clone(), version)]).await;
        assert_eq!(read(&here, &key, &row).await.0, version);
        for reader in readers {
            reader.await.expect("no panic");
        }
        // Whoever loaded the old value over there could not store it.
        assert_eq!(read(&there, &key, &row).await.0, version);
        assert_eq!(read(&here, &key, &row).await.0, version);
    }
}

/// F30, for the cache.
#[tokio::test]
async fn a_redis_that_is_frozen_flushed_or_killed_costs_reads_of_the_row() {
    let mut redis = RedisServer::start().await;
    let (cache, key, row) = (cache(&redis.url()).await, key(), Row::new(1));
    let is_used_again = async || {
        until("values come from Redis", 6 * SOON, async || {
            read(&cache, &key, &row).await.1.cache_hit.then_some(())
        })
        .await;
    };
    let is_done_without = async || {
        let (version, metadata) = timeout(SOON, read(&cache, &key, &row)).await.expect("an answer");
        assert_eq!((version, metadata.source), (1, Source::Database));
    };
    is_used_again().await;
    redis.freeze();
    is_done_without().await;
    redis.thaw();
    is_used_again().await;
    redis.ask("FLUSHALL").await;
    // What it was told before it was frozen may come after the flush: then the value is there already.
    assert_eq!(timeout(SOON, read(&cache, &key, &row)).await.expect("an answer").0, 1);
    is_used_again().await;
    redis.kill();
    is_done_without().await;
    redis.restart().await;
    is_used_again().await;
}
