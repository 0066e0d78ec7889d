//! F33: PostgreSQL has no room left. Nothing is acknowledged that is not kept, and everything goes on once there is.

use std::time::Duration;

use reqwest::{Client, StatusCode, header};
use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::processes::{GROUP, LEADS, WORKS, ready};
use crate::support::broker::free_port;
use crate::support::process::Process;
use crate::support::volume::Volume;
use crate::support::{Cluster, TestDb, service, settings, token, until};

/// Longer than recovery takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

const OWNERS: usize = 4;

/// Everything that writes, as processes, on a cluster of the test's own.
struct Fleet {
    test: TestDb,
    clients: Clients,
    publisher: Process,
    server: Process,
}

impl Fleet {
    async fn start(cluster: &Cluster) -> Self {
        let brokers = service("KAFKA_BROKERS");
        let api = format!("127.0.0.1:{}", free_port());
        let settings = settings(&[
            ("KAFKA_BROKERS", brokers.as_str()),
            ("HASHINSIGHT__KAFKA__PARTITIONS", "2"),
            ("HASHINSIGHT__PUBLISHER__POLL_INTERVAL_MS", "20"),
            ("HASHINSIGHT__SERVER__BIND", &api),
        ]);
        let test = ready(TestDb::on(cluster, settings).await).await;
        let publisher = Process::start(&test.environment, &["publish"], LEADS).await;
        let server = Process::start(&test.environment, &["serve"], "the API listens").await;
        let clients = Clients::new(&test, &api);
        Self { test, clients, publisher, server }
    }

    /// None of them died of it.
    async fn end(self, consumer: Process) {
        for process in [consumer, self.publisher, self.server] {
            process.signal("TERM").await;
            let (status, said) = process.ended().await;
            assert_eq!(status.code(), Some(0), "{said}");
        }
    }

    /// Every write of these is in the tables once, and its event applied once; none of the others left a trace.
    async fn has(&self, acknowledged: &[Write], refused: &[Write]) {
        let rows = "select count(*) from miners m join event_outbox o on o.aggregate_id = m.id::text \
                    where m.model = any($1)";
        let count = async |writes: &[Write]| -> i64 {
            let models: Vec<&str> = writes.iter().map(|write| write.model.as_str()).collect();
            sqlx::query_scalar(rows).bind(models).fetch_one(&self.test.admin).await.expect("counted")
        };
        assert_eq!(
            count(acknowledged).await,
            acknowledged.len() as i64,
            "what was acknowledged is kept, once"
        );
        assert_eq!(count(refused).await, 0, "what was refused is not");
    }
}

/// One write and what became of it.
#[derive(Debug, Clone)]
struct Write {
    model: String,
    status: StatusCode,
}

/// A client of the API that adds miners, each of a model of its own.
#[derive(Clone)]
struct Clients {
    http: Client,
    url: String,
    tokens: Vec<String>,
}

impl Clients {
    fn new(test: &TestDb, api: &str) -> Self {
        let of = |owner| token(&test.config, "acme", &format!("owner-{owner}"), &["miners:write"], None);
        let tokens = (0..OWNERS).map(of).collect();
        Self { http: Client::new(), url: format!("http://{api}/api/miners"), tokens }
    }

    /// One write. Whatever is not done is refused as a thing to try again.
    async fn write(&self, name: &str, n: usize) -> Write {
        let model = format!("{name}-{n:06}");
        let body = json!({ "model": model, "hashrate_ths": 200, "power_w": 3_500, "quantity": n % 9 + 1,
                           "location": "x".repeat(60) });
        let token = &self.tokens[n % OWNERS];
        let answer =
            self.http.post(&self.url).bearer_auth(token).json(&body).send().await.expect("an answer");
        let (status, headers) = (answer.status(), answer.headers().clone());
        let body: Value = answer.json().await.expect("json");
        match status {
            StatusCode::CREATED => assert!(body["event_id"].is_string(), "{body}"),
            StatusCode::SERVICE_UNAVAILABLE => {
                assert_eq!(headers.get(header::RETRY_AFTER).map(|v| v.as_bytes()), Some(&b"1"[..]), "{body}");
                assert_eq!(body["type"], "urn:hashinsight:problem:database-unavailable");
                assert_eq!(body["detail"], Value::Null, "nothing of the cause is told");
            }
            _ => panic!("{status}: {body}"),
        }
        Write { model, status }
    }

    async fn write_all(&self, name: &str, count: usize) -> Vec<Write> {
        let mut writes = Vec::new();
        for n in 0..count {
            writes.push(self.write(name, n).await);
        }
        writes
    }

    /// Writes until the stop.
    fn keep_writing(&self, stop: &CancellationToken) -> JoinSet<Vec<Write>> {
        let mut writers = JoinSet::new();
        for writer in 0..OWNERS {
            let (clients, stop) = (self.clone(), stop.clone());
            writers.spawn(async move {
                let mut writes = Vec::new();
                for n in 0.. {
                    if stop.is_cancelled() {
                        break;
                    }
                    writes.push(clients.write(&format!("load-{writer}"), n).await);
                }
                writes
            });
        }
        writers
    }
}

fn split(writes: Vec<Write>) -> (Vec<Write>, Vec<Write>) {
    writes.into_iter().partition(|write| write.status == StatusCode::CREATED)
}

/// Tables cannot grow, the write-ahead log can.
#[tokio::test(flavor = "multi_thread")]
async fn without_room_for_tables_writes_are_refused_and_nothing_else_happens() {
    let volume = Volume::mount(128);
    let wal = std::env::temp_dir();
    let cluster = Cluster::start_in(volume.folder(), Some(&wal), &[]).await;
    let fleet = Fleet::start(&cluster).await;
    // A member that was here before needs room for nothing but what it applies.
    let consumer = Process::start(&fleet.test.environment, &GROUP, WORKS).await;
    consumer.signal("TERM").await;
    consumer.ended().await;
    // More than the first pages of the inbox take.
    let (mut acknowledged, refused) = split(fleet.clients.write_all("before", 300).await);
    assert_eq!(refused.len(), 0);

    volume.fill();
    let mut refused = Vec::new();
    for round in 0.. {
        let (done, not) = split(fleet.clients.write_all(&format!("full-{round}"), 20).await);
        acknowledged.extend(done);
        refused.extend(not);
        if refused.len() >= 20 {
            break;
        }
        assert!(round < 100, "the disk is full, and {} writes were taken", acknowledged.len());
    }
    let consumer = Process::start(&fleet.test.environment, &GROUP, "No space left on device").await;
    let applied: i64 = fleet.test.scalar("select count(*) from event_inbox").await;
    assert!(
        applied < acknowledged.len() as i64,
        "{applied} of {}: the inbox has no room",
        acknowledged.len()
    );

    volume.relieve();
    let (done, not) = split(fleet.clients.write_all("after", 20).await);
    assert_eq!((done.len(), not.len()), (20, 0));
    acknowledged.extend(done);
    fleet.test.everything_is_applied_once().await;
    assert_eq!(
        fleet.test.scalar::<i64>("select count(*) from parked_event").await,
        0,
        "no event is at fault"
    );
    fleet.has(&acknowledged, &refused).await;
    assert!(cluster.said().contains("could not extend file"), "the tables were full");
    assert!(!cluster.said().contains("PANIC"), "and nothing else was");
    fleet.end(consumer).await;
}

/// The write-ahead log cannot grow: PostgreSQL gives up, and its recovery may not succeed before there is room.
#[tokio::test(flavor = "multi_thread")]
async fn without_room_for_the_write_ahead_log_everybody_waits_for_the_database() {
    let volume = Volume::mount(192);
    let place = std::env::temp_dir();
    // No checkpoint makes room, and few files wait to be used again.
    let sizes = [("min_wal_size", "2MB"), ("max_wal_size", "4GB")];
    let mut cluster = Cluster::start_in(&place, Some(volume.folder()), &sizes).await;
    let fleet = Fleet::start(&cluster).await;
    let consumer = Process::start(&fleet.test.environment, &GROUP, "joined the group").await;
    let (mut acknowledged, refused) = split(fleet.clients.write_all("before", 20).await);
    assert_eq!(refused.len(), 0);

    volume.fill();
    let stop = CancellationToken::new();
    let mut writers = fleet.clients.keep_writing(&stop);
    // Each switch takes another file; the last there is cannot be followed by one.
    let mut filler = PgConnection::connect(&cluster.url("postgres")).await.expect("connected");
    let fill = "select pg_logical_emit_message(true, 'test', repeat('x', 1000)), pg_switch_wal()";
    while sqlx::raw_sql(fill).execute(&mut filler).await.is_ok() {}
    until("the server has given up", PATIENCE, async || cluster.said().contains("PANIC").then_some(())).await;
    let mut tries = 0..;
    until("a write is refused", PATIENCE, async || {
        let write = fleet.clients.write("away", tries.next()?).await;
        if write.status == StatusCode::CREATED {
            acknowledged.push(write);
            return None;
        }
        Some(())
    })
    .await;

    volume.relieve();
    cluster.revive().await;
    until("writes are taken again", PATIENCE, async || {
        let write = fleet.clients.write("again", tries.next()?).await;
        (write.status == StatusCode::CREATED).then(|| acknowledged.push(write))
    })
    .await;
    stop.cancel();
    let mut unknown = Vec::new();
    while let Some(writes) = writers.join_next().await {
        let (done, not) = split(writes.expect("a writer"));
        acknowledged.extend(done);
        unknown.extend(not);
    }
    assert!(!unknown.is_empty(), "somebody was refused");
    fleet.test.everything_is_applied_once().await;
    assert_eq!(
        fleet.test.scalar::<i64>("select count(*) from parked_event").await,
        0,
        "no event is at fault"
    );
    fleet.has(&acknowledged, &[]).await;
    // Whose commit was under way may have been done nevertheless, like any whose answer is lost, but once.
    let twice: i64 = fleet
        .test
        .scalar("select count(*) from (select model from miners group by model having count(*) > 1) m")
        .await;
    assert_eq!(twice, 0);
    fleet.end(consumer).await;
}
