//! A tenant's own system: a small HTTP server that remembers what it was sent.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use axum::body::to_bytes;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::digest::{SHA256, digest};
use tokio::net::TcpListener;
use tokio::sync::watch;

use super::LONG;

/// What a request is answered with; its number counts from 0.
type Answers = dyn Fn(usize) -> Reply + Send + Sync;

#[derive(Debug, Clone)]
pub(super) enum Reply {
    Status(u16),
    Redirect(String),
    /// The request is read, and no answer ever comes.
    Never,
}

/// A request that came.
#[derive(Debug, Clone)]
pub(super) struct Seen {
    pub(super) method: String,
    pub(super) path: String,
    headers: BTreeMap<String, String>,
    pub(super) body: String,
}

impl Seen {
    pub(super) fn header(&self, name: &str) -> &str {
        self.headers.get(name).unwrap_or_else(|| panic!("no {name} in {self:?}"))
    }

    /// The signature that this request has if it was signed with `secret`, by the text of Standard Webhooks and of
    /// RFC 2104, and by nothing of the product.
    pub(super) fn expected_signature(&self, secret: &str) -> String {
        let key = decode(secret.strip_prefix("whsec_").expect("the prefix of a secret"));
        assert!((24..=64).contains(&key.len()), "{}", key.len());
        let text =
            format!("{}.{}.{}", self.header("webhook-id"), self.header("webhook-timestamp"), self.body);
        let pad = |with: u8| -> Vec<u8> {
            (0..64).map(|n| key.get(n).copied().unwrap_or_default() ^ with).collect()
        };
        let inner = digest(&SHA256, &[pad(0x36), text.into_bytes()].concat());
        let outer = digest(&SHA256, &[pad(0x5c).as_slice(), inner.as_ref()].concat());
        format!("v1,{}", STANDARD.encode(outer))
    }
}

pub(super) fn decode(base64: &str) -> Vec<u8> {
    STANDARD.decode(base64).expect("base64")
}

struct Shared {
    answers: Box<Answers>,
    seen: Mutex<Vec<Seen>>,
    count: watch::Sender<usize>,
    open: AtomicUsize,
    most_open: AtomicUsize,
}

/// The server. Ends with the test.
pub(super) struct Receiver {
    pub(super) address: SocketAddr,
    shared: Arc<Shared>,
    serving: tokio::task::JoinHandle<()>,
}

impl Receiver {
    pub(super) async fn answers(status: u16) -> Self {
        Self::with(move |_| Reply::Status(status)).await
    }

    pub(super) async fn with(answers: impl Fn(usize) -> Reply + Send + Sync + 'static) -> Self {
        let shared = Arc::new(Shared {
            answers: Box::new(answers),
            seen: Mutex::default(),
            count: watch::Sender::default(),
            open: AtomicUsize::default(),
            most_open: AtomicUsize::default(),
        });
        let router = axum::Router::new().fallback(take).with_state(Arc::clone(&shared));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let serving = tokio::spawn(async move { axum::serve(listener, router).await.expect("serves") });
        Self { address, shared, serving }
    }

    pub(super) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// What has come so far.
    pub(super) fn all(&self) -> Vec<Seen> {
        self.shared.seen.lock().expect("not poisoned").clone()
    }

    /// Waits for the request of this number, counted from 1.
    pub(super) async fn next(&self, number: usize) -> Seen {
        let mut count = self.shared.count.subscribe();
        let came = count.wait_for(|count| *count >= number);
        tokio::time::timeout(LONG, came).await.expect("it comes in time").expect("the server runs");
        self.all()[number - 1].clone()
    }

    /// The most requests that were open at once.
    pub(super) fn most_open(&self) -> usize {
        self.shared.most_open.load(Ordering::SeqCst)
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// Counts a request as open for as long as somebody waits for its answer.
struct Open(Arc<Shared>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::SeqCst);
    }
}

async fn take(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let open = shared.open.fetch_add(1, Ordering::SeqCst) + 1;
    shared.most_open.fetch_max(open, Ordering::SeqCst);
    let _open = Open(Arc::clone(&shared));
    let (head, body) = request.into_parts();
    let body = to_bytes(body, 1 << 20).await.expect("a body");
    let headers = head
        .headers
        .iter()
        .map(|(name, value)| (name.to_string(), value.to_str().expect("visible").to_owned()));
    let seen = Seen {
        method: head.method.to_string(),
        path: head.uri.to_string(),
        headers: headers.collect(),
        body: String::from_utf8(body.to_vec()).expect("UTF-8"),
    };
    let number = {
        let mut all = shared.seen.lock().expect("not poisoned");
        all.push(seen);
        all.len()
    };
    shared.count.send_replace(number);
    match (shared.answers)(number - 1) {
        Reply::Status(status) => StatusCode::from_u16(status).expect("a status").into_response(),
        Reply::Redirect(to) => (StatusCode::TEMPORARY_REDIRECT, [("location", to)]).into_response(),
        Reply::Never => std::future::pending().await,
    }
}
