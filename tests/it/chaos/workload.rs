//! The clients: each asks one thing after the other through the API, by its own seed, and writes down what it was told.
//!
//! Clients of a tenant share its owners and miners, so that their writes meet. Every miner has a model of its own.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use hashinsight::config::Config;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::watch::micros;
use crate::history::{Action, Op, Outcome};
use crate::support::{token, unique};

const TENANTS: usize = 3;
const OWNERS: [&str; 3] = ["ann", "bob", "cem"];
const CLIENTS: usize = 12;
/// A tenant with more miners removes some.
const MOST_MINERS: usize = 40;
/// Shorter than the server allows itself, so that clients give up on what is still done.
const PATIENCE: Duration = Duration::from_secs(8);
/// How long a read waits for its write.
const WAIT_SECONDS: u64 = 5;

const STATUSES: [&str; 5] = ["online", "offline", "maintenance", "pending", "decommissioned"];

/// What the clients share.
pub(crate) struct Load {
    api: String,
    http: reqwest::Client,
    began: Instant,
    seed: u64,
    tenants: Vec<Tenant>,
    ops: Mutex<Vec<Op>>,
}

struct Tenant {
    name: String,
    /// With every right in the tenant.
    token: String,
    /// Miners that are believed to exist, each with its owner.
    herd: Mutex<Vec<(Uuid, String)>>,
}

impl Load {
    pub(crate) fn new(config: &Config, api: &str, seed: u64, began: Instant) -> Arc<Self> {
        let tenant = |_| {
            let name = unique("t");
            let token = token(config, &name, "clerk", &[], Some("admin"));
            Tenant { name, token, herd: Mutex::default() }
        };
        let http = reqwest::Client::builder().timeout(PATIENCE).build().expect("a client");
        let tenants = (0..TENANTS).map(tenant).collect();
        Arc::new(Self { api: api.to_owned(), http, began, seed, tenants, ops: Mutex::default() })
    }

    /// Runs every client until the stop.
    pub(crate) async fn run(self: Arc<Self>, stop: CancellationToken) {
        let mut clients = tokio::task::JoinSet::new();
        for index in 0..CLIENTS {
            let (load, stop) = (Arc::clone(&self), stop.clone());
            clients.spawn(async move { load.client(index, &stop).await });
        }
        while let Some(ended) = clients.join_next().await {
            ended.expect("a client");
        }
    }

    pub(crate) fn ops(&self) -> Vec<Op> {
        self.ops.lock().expect("no panic").clone()
    }

    /// Every acknowledged write that is the last of its owner is read once more.
    pub(crate) async fn read_at_rest(&self) {
        let mut last = std::collections::BTreeMap::new();
        for op in self.ops() {
            let owner = match &op.action {
                Action::Add { body } => body["owner_id"].as_str().map(str::to_owned),
                Action::Sync { owner } => Some(owner.clone()),
                _ => None,
            };
            if let Some((owner, event)) = owner.zip(op.event_id()) {
                last.insert((op.tenant, owner), event);
            }
        }
        for (n, ((tenant, owner), event)) in last.into_iter().enumerate() {
            let tenant = self.tenants.iter().find(|t| t.name == tenant).expect("known");
            self.ask(CLIENTS, n, tenant, Action::Read { owner, after: Some(event) }).await;
        }
    }

    async fn client(&self, index: usize, stop: &CancellationToken) {
        let mut rng = fastrand::Rng::with_seed(self.seed.wrapping_mul(1_000).wrapping_add(index as u64));
        let tenant = &self.tenants[index % TENANTS];
        let mut written: Option<(String, Uuid)> = None;
        for n in 0.. {
            if stop.is_cancelled() {
                return;
            }
            let action = match written.take() {
                Some((owner, after)) if rng.u8(..4) == 0 => Action::Read { owner, after: Some(after) },
                _ => tenant.choose(index, n, &mut rng),
            };
            let outcome = self.ask(index, n, tenant, action.clone()).await;
            if let Outcome::Ok { body, .. } = &outcome {
                let owner = tenant.learn(&action, body);
                let event = body["event_id"].as_str().and_then(|id| id.parse().ok());
                written = owner.zip(event);
            } else if let (Some(gone), Outcome::Fail { status: Some(404), .. }) = (action.miner(), &outcome) {
                tenant.herd().retain(|(miner, _)| *miner != gone);
            }
            let pause = rng.u64(10..100);
            // Whoever is told to come later does not come at once.
            let patient = if matches!(outcome, Outcome::Ok { .. }) { 1 } else { 4 };
            sleep(Duration::from_millis(patient * pause)).await;
        }
    }

    /// Asks, and writes down what was asked and answered.
    async fn ask(&self, client: usize, n: usize, tenant: &Tenant, action: Action) -> Outcome {
        let request_id = format!("chaos-{client}-{n}");
        let (method, path, body) = call(&action);
        let mut request = self
            .http
            .request(method, format!("http://{}{path}", self.api))
            .bearer_auth(&tenant.token)
            .header("x-request-id", &request_id);
        if let Some(body) = &body {
            request = request.json(body);
        }
        let invoked = micros(self.began);
        let outcome = told(request.send().await).await;
        let op = Op {
            client,
            request_id,
            tenant: tenant.name.clone(),
            idempotency_key: None,
            action,
            invoked,
            completed: micros(self.began),
            outcome: outcome.clone(),
        };
        self.ops.lock().expect("no panic").push(op);
        outcome
    }
}

fn call(action: &Action) -> (Method, String, Option<Value>) {
    match action {
        Action::Add { body } => (Method::POST, "/api/miners".to_owned(), Some(body.clone())),
        Action::Update { miner, body } => (Method::PATCH, format!("/api/miners/{miner}"), Some(body.clone())),
        Action::Status { miner, body } => {
            (Method::PATCH, format!("/api/miners/{miner}/status"), Some(body.clone()))
        }
        Action::Remove { miner } => (Method::DELETE, format!("/api/miners/{miner}"), None),
        Action::Sync { owner } => {
            (Method::POST, "/api/miners/sync".to_owned(), Some(json!({ "user_id": owner })))
        }
        Action::Snapshot { body } => (Method::POST, "/api/network/snapshots".to_owned(), Some(body.clone())),
        Action::Read { owner, after } => {
            let after = after.map(|id| format!("&after={id}&wait={WAIT_SECONDS}")).unwrap_or_default();
            (Method::GET, format!("/api/portfolio?user_id={owner}{after}"), None)
        }
    }
}

/// What an answer, or its absence, tells the client.
async fn told(answer: reqwest::Result<reqwest::Response>) -> Outcome {
    let answer = match answer {
        Ok(answer) => answer,
        // Nobody took the connection: nothing was sent.
        Err(error) if error.is_connect() => return Outcome::Fail { status: None, why: format!("{error:?}") },
        Err(error) => return Outcome::Info { status: None, why: format!("{error:?}") },
    };
    let status = answer.status();
    let Ok(body) = answer.json::<Value>().await else {
        return Outcome::Info { status: Some(status.as_u16()), why: "the answer broke off".to_owned() };
    };
    let (code, why) = (status.as_u16(), format!("{} {}", body["type"], body["detail"]));
    match status {
        _ if status.is_success() => Outcome::Ok { status: code, body },
        _ if status.is_server_error() || status == StatusCode::REQUEST_TIMEOUT => {
            Outcome::Info { status: Some(code), why }
        }
        _ => Outcome::Fail { status: Some(code), why },
    }
}

impl Tenant {
    fn herd(&self) -> MutexGuard<'_, Vec<(Uuid, String)>> {
        self.herd.lock().expect("no panic")
    }

    /// A write by chance.
    fn choose(&self, client: usize, n: usize, rng: &mut fastrand::Rng) -> Action {
        let herd = self.herd();
        let owner = OWNERS[rng.usize(..OWNERS.len())];
        let dice = rng.u8(..100);
        match dice {
            0..8 => return Action::Snapshot { body: snapshot(rng) },
            8..12 => return Action::Sync { owner: owner.to_owned() },
            _ => {}
        }
        if herd.is_empty() || (dice < 40 && herd.len() < MOST_MINERS) {
            return Action::Add { body: miner(client, n, owner, rng) };
        }
        let (miner, _) = herd[rng.usize(..herd.len())];
        match dice {
            0..40 => Action::Remove { miner },
            40..65 => {
                Action::Status { miner, body: json!({ "status": STATUSES[rng.usize(..STATUSES.len())] }) }
            }
            65..80 => Action::Update { miner, body: json!({ "quantity": rng.u32(1..50) }) },
            80..88 => Action::Update {
                miner,
                body: json!({ "hashrate_ths": rng.u32(50..400), "power_w": rng.u32(900..6_000) }),
            },
            88..94 => Action::Update { miner, body: json!({ "owner_id": owner }) },
            _ => Action::Remove { miner },
        }
    }

    /// Remembers what a success changed; the owner whose portfolio now follows.
    fn learn(&self, action: &Action, body: &Value) -> Option<String> {
        let mut herd = self.herd();
        match action {
            Action::Add { body: asked } => {
                let owner = asked["owner_id"].as_str()?.to_owned();
                herd.push((body["miner_id"].as_str()?.parse().ok()?, owner.clone()));
                Some(owner)
            }
            Action::Update { miner, body: asked } => {
                let known = herd.iter_mut().find(|(id, _)| id == miner)?;
                if let Some(owner) = asked["owner_id"].as_str() {
                    owner.clone_into(&mut known.1);
                }
                Some(known.1.clone())
            }
            Action::Status { miner, .. } => Some(herd.iter().find(|(id, _)| id == miner)?.1.clone()),
            Action::Remove { miner } => {
                let at = herd.iter().position(|(id, _)| id == miner)?;
                Some(herd.swap_remove(at).1)
            }
            Action::Sync { owner } => Some(owner.clone()),
            Action::Snapshot { .. } => Some(OWNERS[0].to_owned()),
            Action::Read { .. } => None,
        }
    }
}

fn miner(client: usize, n: usize, owner: &str, rng: &mut fastrand::Rng) -> Value {
    let mut body = json!({
        "model": format!("rig-{client:02}-{n:06}"), "hashrate_ths": rng.u32(50..400), "power_w": rng.u32(900..6_000),
        "quantity": rng.u32(1..50), "owner_id": owner, "status": STATUSES[rng.usize(..STATUSES.len())],
    });
    if rng.bool() {
        body["purchase_price_usd"] = rng.u32(500..9_000).into();
    }
    if rng.bool() {
        body["location"] = format!("site-{}", rng.u8(..4)).into();
    }
    if rng.bool() {
        body["electricity_cost_usd_kwh"] = json!(f64::from(rng.u32(1..20)) / 100.0);
    }
    body
}

fn snapshot(rng: &mut fastrand::Rng) -> Value {
    json!({
        "btc_price_usd": rng.u32(20_000..200_000), "difficulty": rng.u64(50..200) * 1_000_000_000_000,
        "block_height": rng.u32(900_000..1_000_000), "fees_btc_per_block": f64::from(rng.u32(..50)) / 100.0,
    })
}
