//! Owns a network that fails on demand: a TCP proxy that stands before a Kafka broker and knows its requests.
//! Promises that clients stay on it: it calls itself the broker in every answer.
//! Used by tests of what happens when requests, answers or connections are lost, late, or answered with an error.
//!
//! The broker must be known as 127.0.0.1 with as many digits in its port, and speak without TLS.

mod frame;
mod link;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use frame::Frame;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::broker::free_port;

pub(crate) use frame::{
    CONSUMER_GROUP_HEARTBEAT, FIND_COORDINATOR, METADATA, OFFSET_COMMIT, PRODUCE, SASL_AUTHENTICATE,
};

/// What the proxy does with the connections it has and gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Forward,
    /// Nothing listens; what was open ends with a reset.
    Refuse,
    /// Connections open and stay, nothing goes through; a connection that lost a frame to this stays dead for ever.
    Blackhole,
    /// Requests get through; no answer comes back, now or later.
    LoseAnswers,
    /// Connections end with a reset, those to come as well.
    Reset,
    /// Each frame, in both directions, so much later.
    Delay(Duration),
    /// A connection is reset after so many bytes of answers, in the middle of a frame if need be.
    CutAfter(usize),
}

/// What happens to the requests that a [`Rule`] meets.
#[derive(Debug, Clone)]
pub(crate) enum Fate {
    /// The broker gets it; its answer is lost.
    LoseAnswer,
    /// The answer waits until the token is cancelled.
    HoldAnswer(CancellationToken),
    /// The broker gets it when the token is cancelled, though its client may be gone by then.
    HoldRequest(CancellationToken),
    /// Neither it nor anything else of this connection gets through.
    Swallow,
    /// A Produce request is answered with this error code; the broker never sees it.
    Refuse(i16),
    /// The broker gets it; what follows the correlation id of its answer is replaced.
    Garble(Vec<u8>),
    /// A Produce request is answered with this error code, though the broker gets it and appends.
    AppendButRefuse(i16),
}

/// Requests that are not simply forwarded.
#[derive(Debug, Clone)]
pub(crate) struct Rule {
    pub(crate) api_key: i16,
    /// Only Produce requests for this topic and partition.
    pub(crate) lane: Option<(String, i32)>,
    /// So many are forwarded first.
    pub(crate) skip: usize,
    /// So many then meet the fate.
    pub(crate) times: usize,
    pub(crate) fate: Fate,
}

/// The proxy; ends with the runtime of its test.
pub(crate) struct Proxy {
    address: String,
    mode: watch::Sender<Mode>,
    shared: Arc<Shared>,
}

struct Shared {
    broker: String,
    /// The broker's and our own address as they stand in an answer.
    names: (Vec<u8>, Vec<u8>),
    rules: Mutex<Vec<Rule>>,
    seen: watch::Sender<Seen>,
}

#[derive(Default)]
struct Seen {
    accepted: usize,
    open: usize,
    requests: BTreeMap<i16, usize>,
}

impl Proxy {
    /// A proxy before the broker at `host:port`.
    pub(crate) async fn before(broker: &str) -> Self {
        let address = format!("127.0.0.1:{}", free_port());
        let names = (frame::name_on_the_wire(broker), frame::name_on_the_wire(&address));
        assert_eq!(names.0.len(), names.1.len(), "the broker must be known as 127.0.0.1");
        let (mode, current) = watch::channel(Mode::Forward);
        let seen = watch::Sender::new(Seen::default());
        let shared = Arc::new(Shared { broker: broker.to_owned(), names, rules: Mutex::default(), seen });
        let listener = TcpListener::bind(&address).await.expect("a port");
        tokio::spawn(accept(listener, address.clone(), current, Arc::clone(&shared)));
        Self { address, mode, shared }
    }

    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    pub(crate) fn set(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }

    /// From now on; the first rule that meets a request decides.
    pub(crate) fn rule(&self, rule: Rule) {
        self.shared.rules().push(rule);
    }

    /// Requests are forwarded again.
    pub(crate) fn forget_rules(&self) {
        self.shared.rules().clear();
    }

    /// Connections accepted so far.
    pub(crate) fn connections(&self) -> usize {
        self.shared.seen.borrow().accepted
    }

    /// Requests of a kind so far.
    pub(crate) fn requests(&self, api_key: i16) -> usize {
        self.shared.seen.borrow().requests.get(&api_key).copied().unwrap_or_default()
    }

    /// Waits until so many requests of a kind have come.
    pub(crate) async fn requested(&self, api_key: i16, at_least: usize) {
        let enough = |seen: &Seen| seen.requests.get(&api_key).is_some_and(|count| *count >= at_least);
        self.shared.seen.subscribe().wait_for(enough).await.expect("the proxy runs");
    }

    /// Waits until no connection is open.
    pub(crate) async fn all_closed(&self) {
        self.shared.seen.subscribe().wait_for(|seen| seen.open == 0).await.expect("the proxy runs");
    }
}

impl Shared {
    fn rules(&self) -> MutexGuard<'_, Vec<Rule>> {
        self.rules.lock().expect("no test panics in here")
    }

    /// Counts a request and says what is to become of it.
    fn judge(&self, request: &Frame) -> Option<Fate> {
        self.seen.send_modify(|seen| *seen.requests.entry(request.api_key()).or_default() += 1);
        let mut rules = self.rules();
        let meets = |rule: &Rule| {
            rule.api_key == request.api_key()
                && rule.times > 0
                && rule.lane.as_ref().is_none_or(|lane| request.lane().as_ref() == Some(lane))
        };
        let rule = rules.iter_mut().find(|rule| meets(rule))?;
        if rule.skip > 0 {
            rule.skip -= 1;
            return None;
        }
        rule.times -= 1;
        Some(rule.fate.clone())
    }
}

async fn accept(
    listener: TcpListener,
    address: String,
    mut mode: watch::Receiver<Mode>,
    shared: Arc<Shared>,
) {
    let mut listener = Some(listener);
    loop {
        if *mode.borrow_and_update() == Mode::Refuse {
            listener = None;
            if mode.changed().await.is_err() {
                return;
            }
            continue;
        }
        let listening = match listener.take() {
            Some(listening) => listening,
            None => TcpListener::bind(&address).await.expect("the port is ours"),
        };
        tokio::select! {
            accepted = listening.accept() => {
                let (client, _) = accepted.expect("accepts");
                shared.seen.send_modify(|seen| { seen.accepted += 1; seen.open += 1; });
                let (mode, shared) = (mode.clone(), Arc::clone(&shared));
                tokio::spawn(async move {
                    link::run(client, mode, &shared).await;
                    shared.seen.send_modify(|seen| seen.open -= 1);
                });
            }
            changed = mode.changed() => if changed.is_err() { return },
        }
        listener = Some(listening);
    }
}
