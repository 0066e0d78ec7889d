//! The locks by themselves, in Redis and in memory: who has one, for how long, and who gives it back.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use hashinsight::config::load_from;
use hashinsight::lifecycle::Lifecycle;
use hashinsight::lock::{Key, Lease, Locks};
use hashinsight::redis::Redis;
use tokio::time::{Instant, timeout};

use crate::support::{RedisServer, settings, until};

/// Longer than anything takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Short enough to see a lease end.
const SHORT: Lease = Lease { ttl: Duration::from_millis(400), renew_every: Duration::from_millis(100) };

/// The locks of a process of its own.
async fn locks(url: &str, lease: Lease) -> Arc<Locks> {
    locks_with(url, lease, Duration::from_secs(10)).await
}

async fn locks_with(url: &str, lease: Lease, command_timeout: Duration) -> Arc<Locks> {
    let command_timeout = command_timeout.as_millis().to_string();
    let environment =
        settings(&[("REDIS_URL", url), ("HASHINSIGHT__REDIS__COMMAND_TIMEOUT_MS", &command_timeout)]);
    let config = load_from(None, &environment).expect("valid").config;
    let redis = Redis::connect(&config.redis).await.expect("an address");
    Locks::new(redis, lease, &Lifecycle::default())
}

fn keys(users: &[&str]) -> BTreeSet<Key> {
    let tenant = "t".parse().expect("a tenant");
    users.iter().map(|user| Key::user(&tenant, &user.parse().expect("a user"), "portfolio")).collect()
}

const LOCK: &str = "lock:user:t:u:portfolio";

/// Takes and gives back, so that Redis knows the scripts: from now on commands are done in the order they are given.
async fn warm(locks: &Arc<Locks>, redis: &RedisServer) {
    for _ in 0..2 {
        assert_eq!(locks.take(keys(&["warm"]), PATIENCE).await.taken(), 1);
    }
    until("the last one is given back", PATIENCE, async || {
        let there = redis.ask("EXISTS lock:user:t:warm:portfolio").await;
        (there.as_deref() == Some("0")).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_lock_is_a_key_with_a_random_token_that_ends_after_a_minute() {
    let redis = RedisServer::start().await;
    let locks = locks(&redis.url(), Lease::default()).await;
    let mut tokens = BTreeSet::new();
    for _ in 0..3 {
        let held = locks.take(keys(&["u"]), PATIENCE).await;
        assert_eq!((held.taken(), held.refused()), (1, 0));
        let token = redis.ask(&format!("GET {LOCK}")).await.expect("a token");
        assert!(token.len() == 32 && token.bytes().all(|b| b.is_ascii_hexdigit()), "{token}");
        tokens.insert(token);
        let left: u64 = redis.ask(&format!("PTTL {LOCK}")).await.expect("it ends").parse().expect("ms");
        assert!((50_000..=60_000).contains(&left), "{left}");
    }
    assert_eq!(tokens.len(), 3, "another token each time");
    assert_eq!(Lease::default().renew_every, Duration::from_secs(20));
}

#[tokio::test]
async fn only_its_holder_gives_a_lock_back() {
    let redis = RedisServer::start().await;
    let locks = locks(&redis.url(), Lease::default()).await;
    warm(&locks, &redis).await;
    let held = locks.take(keys(&["u", "v"]), PATIENCE).await;
    redis.ask(&format!("SET {LOCK} foreign")).await;
    drop(held);
    // What was asked for before is done when this is.
    let held = locks.take(keys(&["w"]), PATIENCE).await;
    assert_eq!(held.taken(), 1);
    assert_eq!(redis.ask(&format!("GET {LOCK}")).await.as_deref(), Some("foreign"));
    assert_eq!(redis.ask("EXISTS lock:user:t:v:portfolio").await.as_deref(), Some("0"), "its own is gone");
}

#[tokio::test]
async fn a_lock_is_renewed_for_as_long_as_the_work_takes() {
    let redis = RedisServer::start().await;
    let locks = locks(&redis.url(), SHORT).await;
    let held = locks.take(keys(&["u"]), PATIENCE).await;
    let token = redis.ask(&format!("GET {LOCK}")).await;
    let taken = Instant::now();
    let work = until("three leases are over", PATIENCE, async || {
        assert_eq!(redis.ask(&format!("GET {LOCK}")).await, token, "after {:?}", taken.elapsed());
        (taken.elapsed() > 3 * SHORT.ttl).then_some("done")
    });
    assert_eq!(held.guard(work).await, Some("done"));
    // Renewed by nobody, it ends.
    until("the lock has ended", PATIENCE, async || {
        redis.ask(&format!("GET {LOCK}")).await.is_none().then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_lock_that_is_somebody_elses_or_nobodys_cancels_the_work() {
    let redis = RedisServer::start().await;
    let locks = locks(&redis.url(), SHORT).await;
    for loss in [format!("SET {LOCK} foreign"), "FLUSHALL".to_owned()] {
        redis.ask("FLUSHALL").await;
        let held = locks.take(keys(&["t", "u"]), PATIENCE).await;
        assert_eq!(held.taken(), 2);
        redis.ask(&loss).await;
        let ended = timeout(PATIENCE, held.guard(std::future::pending::<()>())).await;
        assert_eq!(ended.expect("it ends"), None, "{loss}");
    }
}

#[tokio::test]
async fn a_redis_that_does_not_answer_takes_no_lock_away() {
    let redis = RedisServer::start().await;
    // Less than a lease, so that renewals end without an answer meanwhile.
    let locks = locks_with(&redis.url(), SHORT, SHORT.ttl / 2).await;
    let held = locks.take(keys(&["u"]), PATIENCE).await;
    assert_eq!(held.taken(), 1);
    redis.freeze();
    let taken = Instant::now();
    let work = until("three leases are over", PATIENCE, async || {
        (taken.elapsed() > 3 * SHORT.ttl).then_some("done")
    });
    assert_eq!(held.guard(work).await, Some("done"));
    redis.thaw();
}

#[tokio::test]
async fn who_holds_a_lock_is_waited_for_and_not_for_long() {
    let redis = RedisServer::start().await;
    let memory = locks("", Lease::default()).await;
    let [here, there] =
        [locks(&redis.url(), Lease::default()).await, locks(&redis.url(), Lease::default()).await];
    for (holder, other, in_redis) in [(here, there, true), (Arc::clone(&memory), memory, false)] {
        let held = holder.take(keys(&["u", "v"]), PATIENCE).await;
        let waiting = tokio::spawn({
            let other = Arc::clone(&other);
            async move { other.take(keys(&["u", "w"]), PATIENCE).await }
        });
        // In memory it has the one that is free as soon as it runs.
        tokio::task::yield_now().await;
        until("it has the one that is free", PATIENCE, async || {
            let there = redis.ask("EXISTS lock:user:t:w:portfolio").await;
            (!in_redis || there.as_deref() == Some("1")).then_some(())
        })
        .await;
        assert!(!waiting.is_finished());
        drop(held);
        let got = waiting.await.expect("no panic");
        assert_eq!((got.taken(), got.refused()), (2, 0));

        let patience = Duration::from_millis(200);
        let started = Instant::now();
        let late = holder.take(keys(&["u", "x"]), patience).await;
        assert_eq!((late.taken(), late.refused()), (1, 1), "it goes on with what it has");
        assert!(started.elapsed() >= patience, "{:?}", started.elapsed());
        // The holder may be dead: the next ones are not held up as well.
        let next = timeout(patience, holder.take(keys(&["u"]), PATIENCE)).await.expect("at once");
        assert_eq!(next.taken(), 0);
    }
}

#[tokio::test]
async fn a_redis_that_does_not_answer_is_waited_for_as_long_as_for_a_command() {
    let redis = RedisServer::start().await;
    let command_timeout = Duration::from_millis(250);
    let locks = locks_with(&redis.url(), Lease::default(), command_timeout).await;
    warm(&locks, &redis).await;
    redis.freeze();
    let started = Instant::now();
    let held = timeout(PATIENCE, locks.take(keys(&["u"]), 60 * PATIENCE)).await.expect("it goes on");
    assert_eq!((held.taken(), held.refused()), (0, 0));
    assert!(started.elapsed() >= command_timeout, "{:?}", started.elapsed());
    // Not even that a second time.
    let next = locks.take(keys(&["u"]), 60 * PATIENCE);
    assert_eq!(next.now_or_never().expect("at once").taken(), 0);
    redis.thaw();
}

#[tokio::test]
async fn many_locks_are_taken_with_one_command_and_given_back_with_another() {
    let redis = RedisServer::start().await;
    let locks = locks(&redis.url(), Lease::default()).await;
    warm(&locks, &redis).await;
    redis.ask("CONFIG RESETSTAT").await;
    let users: Vec<String> = (0..500).map(|n| format!("u{n}")).collect();
    let users: Vec<&str> = users.iter().map(String::as_str).collect();
    let held = locks.take(keys(&users), PATIENCE).await;
    assert_eq!((held.taken(), held.refused()), (500, 0));
    drop(held);
    let again = locks.take(keys(&users), PATIENCE).await;
    assert_eq!(again.taken(), 500, "they were given back before");
    let commands = redis.ask("INFO commandstats").await.expect("figures");
    assert!(commands.contains("cmdstat_evalsha:calls=3,"), "{commands}");
}

/// A cluster refuses a command about keys of several of its nodes, and a script as well.
#[tokio::test]
async fn many_locks_are_taken_renewed_and_given_back_in_a_cluster() {
    let redis = RedisServer::start_cluster().await;
    let lease = Lease { ttl: Duration::from_secs(10), renew_every: Duration::from_millis(100) };
    let locks = locks(&redis.url(), lease).await;
    let users: Vec<String> = (0..200).map(|n| format!("u{n}")).collect();
    let users: Vec<&str> = users.iter().map(String::as_str).collect();
    let held = locks.take(keys(&users), PATIENCE).await;
    assert_eq!((held.taken(), held.refused()), (200, 0));
    for user in &users {
        assert_eq!(
            redis.ask(&format!("PEXPIRE lock:user:t:{user}:portfolio 5000")).await.as_deref(),
            Some("1")
        );
    }
    let renewed = until("the last one is renewed", PATIENCE, async || {
        let left = redis.ask("PTTL lock:user:t:u199:portfolio").await.expect("an answer");
        (left.parse::<u64>().expect("ms") > 5_000).then_some(())
    });
    assert_eq!(held.guard(renewed).await, Some(()));
    drop(held);
    let again = timeout(lease.ttl / 2, locks.take(keys(&users), PATIENCE))
        .await
        .expect("before they end by themselves");
    assert_eq!((again.taken(), again.refused()), (200, 0));
}
