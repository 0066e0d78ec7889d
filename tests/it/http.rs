//! The surface of the API: ids, errors, limits, slow and silent clients, a database that is away.

use std::time::Duration;

use hashinsight::api::server;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};
use uuid::Uuid;

use crate::support::{Answer, TestApi, TestDb, settings, until, written};

/// Five times what a request may take while others misbehave.
const SOON: Duration = Duration::from_secs(1);

async fn send(request: reqwest::RequestBuilder) -> Answer {
    Answer::of(request.send().await.expect("an answer")).await
}

fn is_problem(answer: &Answer, name: &str) {
    assert_eq!(answer.header("content-type"), "application/problem+json", "{answer:?}");
    let problem = &answer.body;
    assert_eq!(problem["type"], format!("urn:hashinsight:problem:{name}"));
    assert_eq!(problem["status"], answer.status.as_u16());
    assert!(problem["title"].as_str().is_some_and(|t| !t.is_empty()));
    assert_eq!(problem["request_id"], answer.header("x-request-id"));
    assert!(problem["instance"].as_str().is_some_and(|i| i.starts_with('/')));
}

#[tokio::test]
async fn every_answer_has_a_request_id_and_every_refusal_is_a_problem() {
    let db = TestDb::new().await;
    let api = TestApi::start(&db).await;
    let token = api.token();
    let client = &api.client;

    let unknown =
        send(client.get(api.url("/api/nowhere?x=1")).header("x-request-id", "my.id_1")).await.expect(404);
    is_problem(&unknown, "unknown-route");
    assert_eq!(
        (unknown.header("x-request-id"), &unknown.body["instance"]),
        ("my.id_1", &json!("/api/nowhere"))
    );
    for bad in ["", "a b", "a:b", &"x".repeat(65)] {
        let answer = send(client.get(api.url("/livez")).header("x-request-id", bad)).await.expect(200);
        assert!(answer.header("x-request-id").parse::<Uuid>().is_ok(), "{bad:?} is replaced");
    }
    for (method, path, allow) in [
        (Method::PUT, "/api/miners", "GET,HEAD,POST"),
        (Method::GET, "/api/miners/sync", "POST"),
        (Method::POST, "/livez", "GET,HEAD"),
        (Method::DELETE, "/api/portfolio", "GET,HEAD"),
    ] {
        let answer = send(client.request(method.clone(), api.url(path))).await.expect(405);
        is_problem(&answer, "wrong-method");
        assert_eq!(answer.header("allow"), allow, "{method} {path}");
    }
    is_problem(&send(client.get(api.url("/api/miners"))).await.expect(401), "unauthorized");
    let nobodys = format!("/api/miners/{}", Uuid::now_v7());
    is_problem(&api.get(&nobodys).await.expect(404), "not-found");
    is_problem(&api.get("/api/miners?limit=0").await.expect(400), "bad-parameter");
    is_problem(&api.post("/api/miners", json!({})).await.expect(422), "invalid-field");
    is_problem(
        &api.ask(&token, Method::POST, "/api/miners", None).await.expect(415),
        "unsupported-media-type",
    );
}

#[tokio::test]
async fn a_body_is_json_of_a_bounded_size() {
    let db = TestDb::with(settings(&[("HASHINSIGHT__SERVER__MAX_BODY_BYTES", "2048")])).await;
    let api = TestApi::start(&db).await;
    let post = |content_type: Option<&'static str>, body: Vec<u8>| {
        let mut request = api.client.post(api.url("/api/miners")).bearer_auth(api.token()).body(body);
        if let Some(content_type) = content_type {
            request = request.header("content-type", content_type);
        }
        send(request)
    };
    let json = Some("application/json");
    let good = br#"{"model":"S21"}"#.to_vec();
    post(json, good.clone()).await.expect(201);
    post(Some("application/json; charset=utf-8"), good.clone()).await.expect(201);
    let before = written(&db).await;
    for other in [None, Some("text/plain"), Some("application/xml"), Some("application/json; charset=utf-16")]
    {
        is_problem(&post(other, good.clone()).await.expect(415), "unsupported-media-type");
    }
    for malformed in [
        &b""[..],
        b"{",
        b"{\"model\":\"S21\"",
        b"{\"model\":\"S21\"} x",
        b"{'model':'S21'}",
        b"{\"model\":\"\xff\"}",
        b"{\"model\":\"\\ud800\"}",
        b"{\"model\":NaN}",
        &[b'['; 1_000],
    ] {
        let answer = post(json, malformed.to_vec()).await.expect(400);
        is_problem(&answer, "malformed-json");
        let detail = answer.body["detail"].as_str().expect("a detail");
        assert!(detail.contains("line 1 column"), "{detail}");
    }
    let sized = |size: usize| {
        let mut body = good.clone();
        body.resize(size, b' ');
        body
    };
    post(json, sized(2_048)).await.expect(201);
    is_problem(&post(json, sized(2_049)).await.expect(413), "body-too-large");

    // Without a length the bytes are counted as they come.
    let mut socket = TcpStream::connect(api.address).await.expect("connect");
    let head = format!(
        "POST /api/miners HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\ncontent-type: application/json\r\n\
         transfer-encoding: chunked\r\n\r\n",
        api.token()
    );
    socket.write_all(head.as_bytes()).await.expect("write");
    for _ in 0..3 {
        socket.write_all(b"400\r\n").await.expect("write");
        socket.write_all(&[b' '; 1_024]).await.expect("write");
        let _ = socket.write_all(b"\r\n").await;
    }
    assert!(read_some(&mut socket).await.starts_with("HTTP/1.1 413 "));
    let after = written(&db).await;
    assert_eq!((after.0, after.1), (before.0 + 1, before.1 + 1), "only the one that fits");
}

async fn read_some(socket: &mut TcpStream) -> String {
    let mut buffer = vec![0; 65_536];
    let read = timeout(5 * SOON, socket.read(&mut buffer)).await.expect("an answer").expect("read");
    String::from_utf8_lossy(&buffer[..read]).into_owned()
}

#[tokio::test]
async fn beyond_the_limits_of_load_and_time_requests_are_refused() {
    let db = TestDb::with(settings(&[
        ("HASHINSIGHT__SERVER__MAX_IN_FLIGHT", "1"),
        ("HASHINSIGHT__SERVER__REQUEST_TIMEOUT_MS", "700"),
    ]))
    .await;
    let api = TestApi::start(&db).await;
    // Waits for an event that does not come.
    let waiting = format!("/api/portfolio?wait=5&after={}", Uuid::now_v7());
    let others = async {
        let mut shed = None;
        until("the first request is in", SOON, async || {
            let answer = api.get("/api/miners").await;
            (answer.status == 503).then(|| shed = Some(answer))
        })
        .await;
        let shed = shed.expect("refused");
        is_problem(&shed, "overloaded");
        assert_eq!(shed.header("retry-after"), "1");
        for probe in ["/livez", "/readyz"] {
            send(api.client.get(api.url(probe))).await.expect(200);
        }
    };
    let started = Instant::now();
    let (slow, ()) = tokio::join!(api.get(&waiting), others);
    is_problem(&slow.expect(503), "timeout");
    assert!(started.elapsed() < 2 * SOON);
    api.get("/api/miners").await.expect(200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silent_and_dribbling_clients_are_dropped_and_others_served() {
    let db = TestDb::with(settings(&[("HASHINSIGHT__SERVER__HEADER_TIMEOUT_MS", "1500")])).await;
    let api = TestApi::start(&db).await;
    let started = Instant::now();
    let mut silent = Vec::new();
    let mut dribbling = tokio::task::JoinSet::new();
    for _ in 0..100 {
        silent.push(TcpStream::connect(api.address).await.expect("connect"));
        let mut socket = TcpStream::connect(api.address).await.expect("connect");
        dribbling.spawn(async move {
            let text = b"GET /livez HTTP/1.1\r\nhost: x\r\nx-slow: ".iter().chain(std::iter::repeat(&b'a'));
            for byte in text {
                if socket.write_all(&[*byte]).await.is_err() {
                    break;
                }
                sleep(Duration::from_millis(50)).await;
            }
        });
    }
    // A body that stops half-way, and a connection that was used and then falls silent.
    let mut half = TcpStream::connect(api.address).await.expect("connect");
    let head = format!(
        "POST /api/miners HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\ncontent-type: application/json\r\n\
         content-length: 100\r\n\r\n{{",
        api.token()
    );
    half.write_all(head.as_bytes()).await.expect("write");
    let mut idle = TcpStream::connect(api.address).await.expect("connect");
    idle.write_all(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n").await.expect("write");
    assert!(read_some(&mut idle).await.starts_with("HTTP/1.1 200 "));

    for _ in 0..10 {
        let asked = Instant::now();
        api.get("/api/miners").await.expect(200);
        assert!(asked.elapsed() < SOON, "{:?}", asked.elapsed());
    }
    assert!(read_some(&mut half).await.starts_with("HTTP/1.1 408 "));
    let gone = async {
        for mut socket in silent {
            let mut byte = [0; 1];
            assert_eq!(socket.read(&mut byte).await.unwrap_or_default(), 0, "nothing is said to the silent");
        }
        let mut byte = [0; 1];
        assert_eq!(idle.read(&mut byte).await.unwrap_or_default(), 0);
        while dribbling.join_next().await.is_some() {}
    };
    timeout(5 * SOON, gone).await.expect("every slow connection is dropped");
    assert!(started.elapsed() >= Duration::from_millis(1_500));
}

#[tokio::test]
async fn connections_beyond_the_limit_wait_for_a_place() {
    let db = TestDb::with(settings(&[("HASHINSIGHT__SERVER__MAX_CONNECTIONS", "1")])).await;
    let api = TestApi::start(&db).await;
    let mut first = TcpStream::connect(api.address).await.expect("connect");
    first.write_all(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n").await.expect("write");
    assert!(read_some(&mut first).await.starts_with("HTTP/1.1 200 "));
    let second = send(api.client.get(api.url("/livez")));
    tokio::pin!(second);
    assert!(timeout(Duration::from_millis(200), &mut second).await.is_err(), "there is one place");
    drop(first);
    timeout(5 * SOON, second).await.expect("served once there is room").expect(200);
}

#[tokio::test]
async fn a_stop_lets_a_started_request_finish() {
    let db = TestDb::new().await;
    let api = TestApi::start(&db).await;
    let waiting = format!("/api/portfolio?wait=1&after={}", Uuid::now_v7());
    // A connection that never says a word does not hold up the stop.
    let silent = TcpStream::connect(api.address).await.expect("connect");
    let stop = async {
        sleep(Duration::from_millis(300)).await;
        let asked = Instant::now();
        api.stop().await;
        asked.elapsed()
    };
    let (answer, took) = tokio::join!(api.get(&waiting), stop);
    answer.expect(404);
    assert!(took > Duration::from_millis(400) && took < 3 * SOON, "{took:?}");
    assert!(TcpStream::connect(api.address).await.is_err(), "nobody listens any more");
    drop(silent);
}

#[tokio::test]
async fn a_taken_port_is_one_clear_line() {
    let db = TestDb::new().await;
    let api = TestApi::start(&db).await;
    let mut config = db.config.server.clone();
    config.bind = api.address;
    let refused = server::bind(&config).await.expect_err("taken").to_string();
    assert!(
        refused.contains(&api.address.to_string()) && refused.contains("HASHINSIGHT__SERVER__BIND"),
        "{refused}"
    );
    assert!(!refused.contains('\n'));
}

#[tokio::test]
async fn without_a_database_the_answer_is_503() {
    let db = TestDb::new().await;
    let api = TestApi::start(&db).await;
    db.db.close().await;
    for answer in [
        api.get("/api/miners").await,
        api.post("/api/miners", json!({"model": "S21"})).await,
        api.get("/api/portfolio").await,
        api.get("/api/miner-models").await,
        api.get("/readyz").await,
    ] {
        let answer = answer.expect(503);
        is_problem(&answer, "database-unavailable");
        assert_eq!(answer.header("retry-after"), "1");
    }
    api.get("/livez").await.expect(200);
}

/// Makes inserts into a table fail, the first so many times, with an error code.
async fn fail_inserts(db: &TestDb, table: &str, times: u32, code: &str) {
    db.execute(&format!(
        "create sequence broken; grant usage on sequence broken to hi_app; \
         create function break() returns trigger language plpgsql as $$ begin \
           if nextval('broken') <= {times} then raise exception 'secret detail' using errcode = '{code}'; end if; \
           return new; end $$; \
         create trigger break before insert on {table} for each row execute function break()"
    ))
    .await;
}

#[tokio::test]
async fn a_command_that_lost_to_another_is_repeated_once() {
    for (times, status) in [(1, 201), (2, 503)] {
        let db = TestDb::new().await;
        let api = TestApi::start(&db).await;
        fail_inserts(&db, "miners", times, "40001").await;
        let answer = api.post("/api/miners", json!({"model": "S21"})).await.expect(status);
        let expected = if status == 201 { (1, 1, 1) } else { (0, 0, 0) };
        assert_eq!(written(&db).await, expected, "{:?}", answer.body);
    }
}

/// State, event and audit row: whichever fails, nothing of the others stays, and nobody outside learns why.
#[tokio::test]
async fn a_failure_in_the_middle_leaves_nothing() {
    for table in ["miners", "event_outbox", "audit_log"] {
        let db = TestDb::new().await;
        let api = TestApi::start(&db).await;
        fail_inserts(&db, table, 100, "XX000").await;
        let answer = api.post("/api/miners", json!({"model": "S21"})).await.expect(500);
        is_problem(&answer, "internal");
        assert_eq!((&answer.body["detail"], &answer.body["errors"]), (&Value::Null, &Value::Null));
        assert!(!answer.body.to_string().contains("secret"));
        assert_eq!(written(&db).await, (0, 0, 0), "{table}");
    }
}
