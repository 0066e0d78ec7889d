//! The API in this process, on a free port, and a client for it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hashinsight::api::token::{Grant, sign};
use hashinsight::api::{Api, server};
use hashinsight::cache::Cache;
use hashinsight::config::Config;
use hashinsight::doorbell::Doorbells;
use hashinsight::lifecycle::Lifecycle;
use reqwest::{Method, StatusCode};
use serde_json::Value;

use super::TestDb;

/// Every scope of this release, but that of second persons.
pub(crate) const SCOPES: &[&str] = &[
    "miners:read",
    "miners:write",
    "portfolio:read",
    "ops:read",
    "intelligence:read",
    "ops:plan",
    "crm:read",
    "crm:write",
    "treasury:read",
    "treasury:trade",
];

/// A running API, with a tenant and a user of its own. Stops with this value.
pub(crate) struct TestApi {
    pub(crate) address: SocketAddr,
    pub(crate) tenant: String,
    pub(crate) user: String,
    pub(crate) bells: Doorbells,
    pub(crate) cache: Arc<Cache>,
    pub(crate) client: reqwest::Client,
    config: Config,
    lifecycle: Lifecycle,
}

/// What came back.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: reqwest::header::HeaderMap,
    pub(crate) body: Value,
}

impl Answer {
    /// A header as text, empty when absent.
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default()
    }

    /// The fields that a problem names.
    pub(crate) fn fields(&self) -> Vec<&str> {
        self.body["errors"].as_array().into_iter().flatten().filter_map(|e| e["field"].as_str()).collect()
    }

    /// Reads an answer to its end; a body that is no JSON is null.
    pub(crate) async fn of(response: reqwest::Response) -> Self {
        let (status, headers) = (response.status(), response.headers().clone());
        let bytes = response.bytes().await.expect("a body");
        Self { status, headers, body: serde_json::from_slice(&bytes).unwrap_or_default() }
    }

    /// The event id of a write.
    pub(crate) fn event_id(&self) -> &str {
        self.body["event_id"].as_str().unwrap_or_else(|| panic!("no event_id in {self:?}"))
    }

    /// Fails the test unless the status is this.
    pub(crate) fn expect(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{:#}", self.body);
        self
    }
}

/// Settings as an operator would set them, for [`TestDb::with`].
pub(crate) fn settings(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

/// A name that no other test uses, and no other run: for tenants and users, which share one Redis.
pub(crate) fn unique(prefix: &str) -> String {
    format!("{prefix}-{}", uuid::Uuid::now_v7().simple())
}

/// Asks until the answer is there; fails the test after `deadline`.
pub(crate) async fn until<T, F>(what: &str, deadline: Duration, mut ask: F) -> T
where
    F: AsyncFnMut() -> Option<T>,
{
    let end = tokio::time::Instant::now() + deadline;
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(tokio::time::Instant::now() < end, "not within {deadline:?}: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Rows of state, of event_outbox and of audit_log: what a refused request leaves as they were.
pub(crate) async fn written(db: &TestDb) -> (i64, i64, i64) {
    let rows = "select (select count(*) from miners) + (select count(*) from network_snapshots) \
                + (select count(*) from crm_account) + (select count(*) from crm_lead) + (select count(*) from crm_deal) \
                + (select count(*) from crm_contract) + (select count(*) from crm_invoice) \
                + (select count(*) from crm_payment) + (select count(*) from crm_ticket) + (select count(*) from crm_asset) \
                + (select count(*) from treasury_settings) + (select count(*) from treasury_lot) \
                + (select count(*) from treasury_trade) + (select count(*) from treasury_fill) \
                + (select count(*) from power_price) + (select count(*) from ops_settings) + (select count(*) from ops_plan), \
                (select count(*) from event_outbox), (select count(*) from audit_log)";
    sqlx::query_as(rows).fetch_one(&db.admin).await.expect("count")
}

/// Fails unless the answer is a problem of this type.
pub(crate) fn problem(answer: &Answer, status: u16, name: &str) {
    assert_eq!(answer.status, status, "{:#}", answer.body);
    assert_eq!(answer.body["type"], format!("urn:hashinsight:problem:{name}"), "{:#}", answer.body);
    assert_eq!(answer.header("content-type"), "application/problem+json");
    assert!(answer.body["detail"].as_str().is_some_and(|detail| !detail.is_empty()));
}

/// A token that a configuration accepts, valid for an hour.
pub(crate) fn token(
    config: &Config,
    tenant: &str,
    user: &str,
    scopes: &[&str],
    role: Option<&str>,
) -> String {
    let (tenant, user) = (tenant.parse().expect("a tenant"), user.parse().expect("a user"));
    let scopes: Vec<String> = scopes.iter().map(|s| (*s).to_owned()).collect();
    let grant = Grant { tenant_id: &tenant, user_id: &user, scopes: &scopes, role };
    sign(&config.auth, &grant, Duration::from_secs(3_600)).expect("sign")
}

impl TestApi {
    /// The API on a database, with the cache its configuration names.
    pub(crate) async fn start(db: &TestDb) -> Self {
        // Of its own: a test may stop one API and go on with the database.
        let lifecycle = Lifecycle::default();
        let bells = db.bells.clone();
        let cache = Cache::new(&db.config.cache, db.redis().await, &lifecycle);
        let api = Api::new(&db.config, db.db.clone(), Arc::clone(&cache), bells.clone()).expect("a secret");
        let listener = server::bind(&db.config.server).await.expect("a free port");
        let address = listener.local_addr().expect("an address");
        lifecycle.spawn(
            "http",
            server::serve(listener, api.router(), db.config.server.clone(), lifecycle.clone()),
        );
        Self {
            address,
            tenant: unique("t"),
            user: unique("u"),
            bells,
            cache,
            client: reqwest::Client::new(),
            config: db.config.clone(),
            lifecycle,
        }
    }

    /// The same tenant and user under the configuration as it is by now.
    pub(crate) async fn under(&self, db: &TestDb) -> Self {
        let mut other = Self::start(db).await;
        (other.tenant, other.user) = (self.tenant.clone(), self.user.clone());
        other
    }

    /// The address of a path.
    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// A token of this API's tenant and user with every scope of [`SCOPES`].
    pub(crate) fn token(&self) -> String {
        self.token_with(SCOPES)
    }

    /// A token of this API's tenant and user.
    pub(crate) fn token_with(&self, scopes: &[&str]) -> String {
        token(&self.config, &self.tenant, &self.user, scopes, None)
    }

    /// A token of another user of this API's tenant.
    pub(crate) fn token_of(&self, user: &str, scopes: &[&str]) -> String {
        token(&self.config, &self.tenant, user, scopes, None)
    }

    /// A token of the role admin of this API's tenant.
    pub(crate) fn admin_token(&self) -> String {
        self.admin_token_of(&self.user)
    }

    /// A token of another admin of this API's tenant.
    pub(crate) fn admin_token_of(&self, user: &str) -> String {
        token(&self.config, &self.tenant, user, &[], Some("admin"))
    }

    /// A token of another tenant, for a user of the same name.
    pub(crate) fn foreign_token(&self) -> String {
        token(&self.config, &format!("{}-other", self.tenant), &self.user, &[], Some("admin"))
    }

    /// Asks with a token.
    pub(crate) async fn ask(&self, token: &str, method: Method, path: &str, body: Option<Value>) -> Answer {
        let mut request = self.client.request(method, self.url(path)).bearer_auth(token);
        if let Some(body) = body {
            request = request.json(&body);
        }
        Answer::of(request.send().await.expect("an answer")).await
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.ask(&self.token(), Method::GET, path, None).await
    }

    pub(crate) async fn post(&self, path: &str, body: Value) -> Answer {
        self.ask(&self.token(), Method::POST, path, Some(body)).await
    }

    pub(crate) async fn put(&self, path: &str, body: Value) -> Answer {
        self.ask(&self.token(), Method::PUT, path, Some(body)).await
    }

    pub(crate) async fn patch(&self, path: &str, body: Value) -> Answer {
        self.ask(&self.token(), Method::PATCH, path, Some(body)).await
    }

    pub(crate) async fn delete(&self, path: &str) -> Answer {
        self.ask(&self.token(), Method::DELETE, path, None).await
    }

    /// Adds a miner and returns its id.
    pub(crate) async fn add_miner(&self, body: Value) -> String {
        let answer = self.post("/api/miners", body).await.expect(201);
        answer.body["miner_id"].as_str().expect("a miner_id").to_owned()
    }

    /// Stops the API and waits until its connections are done.
    pub(crate) async fn stop(&self) {
        self.lifecycle.stop();
        self.lifecycle.run(Duration::from_secs(5)).await.expect("a clean stop");
    }
}

impl Drop for TestApi {
    fn drop(&mut self) {
        self.lifecycle.stop();
    }
}
