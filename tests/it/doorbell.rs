//! Bells between processes: what rings here is heard there, soon and not too often.

use std::time::{Duration, Instant};

use hashinsight::doorbell::{Bell, Doorbells, Listener};
use sqlx::postgres::PgListener;
use tokio::time::timeout;

use crate::support::TestDb;

/// Longer than anything takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// At most one NOTIFY in this time, since each takes a lock of the whole cluster.
const GATHER: Duration = Duration::from_millis(10);

/// The bells of another process, as soon as they are heard.
async fn process(test: &TestDb) -> Doorbells {
    let bells = Doorbells::default();
    let mut connected = bells.listen(Bell::Outbox);
    test.lifecycle.spawn("doorbells", bells.clone().run(test.db.clone(), test.lifecycle.stopping().clone()));
    heard(&mut connected).await;
    bells
}

async fn heard(bell: &mut Listener) {
    timeout(PATIENCE, bell.rung()).await.expect("it rings");
}

/// Hears what the processes tell each other.
async fn ear(test: &TestDb) -> PgListener {
    let mut ear = PgListener::connect(&test.environment["DATABASE_URL"]).await.expect("connected");
    ear.listen(Bell::Outbox.channel()).await.expect("listens");
    ear
}

async fn told(ear: &mut PgListener) {
    timeout(PATIENCE, ear.recv()).await.expect("it is told").expect("a notification");
}

#[tokio::test]
async fn a_ring_is_heard_in_every_other_process_and_not_again_in_its_own() {
    let test = TestDb::new().await;
    let (one, other, third) = (process(&test).await, process(&test).await, process(&test).await);
    let mut echo = one.listen(Bell::Outbox);
    let mut elsewhere = [other.listen(Bell::Outbox), third.listen(Bell::Outbox)];
    one.ring(Bell::Outbox);
    assert!(echo.has_rung(), "here at once");
    echo.arm();
    for bell in &mut elsewhere {
        heard(bell).await;
    }
    // What is told later arrives later: when this is heard, the echo was.
    let mut letters = one.listen(Bell::Letters);
    other.ring(Bell::Letters);
    heard(&mut letters).await;
    assert!(!echo.has_rung());
}

#[tokio::test(flavor = "multi_thread")]
async fn however_often_it_rings_the_others_are_told_once_in_ten_milliseconds() {
    const TIMES: u32 = 50;
    let test = TestDb::new().await;
    let (bells, mut ear) = (process(&test).await, ear(&test).await);
    let started = Instant::now();
    let rings = tokio::spawn(async move {
        let mut often = tokio::time::interval(Duration::from_millis(1));
        loop {
            often.tick().await;
            bells.ring(Bell::Outbox);
        }
    });
    for _ in 0..=TIMES {
        told(&mut ear).await;
    }
    let took = started.elapsed();
    rings.abort();
    assert!(took >= GATHER * TIMES, "{TIMES} more in {took:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ring_while_others_are_gathered_is_told_when_they_are() {
    let test = TestDb::new().await;
    let (bells, mut ear) = (process(&test).await, ear(&test).await);
    for _ in 0..20 {
        bells.ring(Bell::Outbox);
        told(&mut ear).await;
    }
}
