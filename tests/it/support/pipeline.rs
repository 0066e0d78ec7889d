//! Every role in this process, wired as `standalone` wires them, on either log and either cache.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hashinsight::config::EventLogKind;
use hashinsight::doorbell::{Bell, Doorbells};
use hashinsight::economics::Assumptions;
use hashinsight::event::{self, Event};
use hashinsight::log::EventLog;
use hashinsight::projection;
use hashinsight::read_model::{anomaly, crm, portfolio, treasury};
use hashinsight::role::app::{App, open_log};
use hashinsight::role::topics;
use reqwest::Method;
use serde_json::Value;

use super::{Answer, SCOPES, TestDb, service, settings, token, unique};

/// Five times what the bench allows from a write to its visibility is less; this is for a busy machine.
const VISIBLE: Duration = Duration::from_secs(10);

/// Where cached answers are kept.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Store {
    Memory,
    Redis,
}

/// Running roles; stop them with [`Pipeline::stop`].
pub(crate) struct Pipeline {
    app: App,
    address: SocketAddr,
    client: reqwest::Client,
    /// Tenants share one Redis with other tests.
    run: String,
    /// The last field, dropped when nothing uses the database any more.
    test: TestDb,
}

impl Pipeline {
    pub(crate) async fn start(kind: EventLogKind, store: Store) -> Self {
        let redis = match store {
            Store::Memory => String::new(),
            Store::Redis => service("REDIS_URL"),
        };
        let brokers = match kind {
            EventLogKind::Kafka => service("KAFKA_BROKERS"),
            EventLogKind::Postgres => String::new(),
        };
        let test = TestDb::with(settings(&[("REDIS_URL", &redis), ("KAFKA_BROKERS", &brokers)])).await;
        let app = App::open(test.config.clone()).await.expect("the app opens");
        let log = app.log(kind).await.expect("the log");
        log.ensure_topics(&topics::specs(&app.config, kind)).await.expect("topics");
        let redis = app.redis().await.expect("an address");
        let (cache, locks) = (app.cache(redis.clone()), app.locks(redis));
        app.spawn_publisher(&log).expect("the publisher");
        for group in [portfolio::GROUP, crm::GROUP, treasury::GROUP, anomaly::GROUP] {
            app.spawn_consumer(group, &log, &cache, &locks).await.expect("the consumer");
        }
        let address = app.spawn_api(&cache).await.expect("the API");
        Self { test, app, address, client: reqwest::Client::new(), run: unique("run") }
    }

    /// The bells of this process.
    pub(crate) fn bells(&self) -> &Doorbells {
        &self.app.bells
    }

    /// The settings of its processes.
    pub(crate) fn environment(&self) -> BTreeMap<String, String> {
        self.test.environment.clone()
    }

    /// A client with every scope of a tenant, as one of its users.
    pub(crate) fn user(&self, tenant: &str, user: &str) -> User<'_> {
        let tenant = format!("{tenant}-{}", self.run);
        User { pipeline: self, token: token(&self.app.config, &tenant, user, SCOPES, None) }
    }

    /// A client of the role admin.
    pub(crate) fn admin(&self, tenant: &str, user: &str) -> User<'_> {
        let tenant = format!("{tenant}-{}", self.run);
        User { pipeline: self, token: token(&self.app.config, &tenant, user, &[], Some("admin")) }
    }

    /// The newest event of a kind.
    pub(crate) async fn event_of(&self, kind: &str) -> Value {
        sqlx::query_scalar(
            "select payload from event_outbox where event_type = $1 order by position desc limit 1",
        )
        .bind(kind)
        .fetch_one(&self.test.admin)
        .await
        .expect(kind)
    }

    /// Waits until a group has applied an event.
    pub(crate) async fn has_applied(&self, group: &str, event_id: &Value) {
        let event_id: uuid::Uuid = event_id.as_str().expect("an event id").parse().expect("a UUID");
        let is_applied = async || {
            sqlx::query_scalar(
                "select exists (select from event_inbox \
                 where consumer_name = $1 and event_id = $2 and outcome = 'applied')",
            )
            .bind(group)
            .bind(event_id)
            .fetch_one(&self.test.admin)
            .await
            .expect("the inbox")
        };
        applied(self.bells(), is_applied).await;
    }

    /// Stops every role; fails if one of them failed or did not end in time.
    pub(crate) async fn stop(self) {
        self.app.lifecycle.stop();
        self.app.run().await.expect("a clean stop");
    }
}

/// A client of the API.
pub(crate) struct User<'a> {
    pipeline: &'a Pipeline,
    token: String,
}

impl User<'_> {
    async fn ask(&self, method: Method, path: &str, body: Option<&Value>) -> Value {
        let url = format!("http://{}{path}", self.pipeline.address);
        let mut request = self.pipeline.client.request(method, url).bearer_auth(&self.token);
        if let Some(body) = body {
            request = request.json(body);
        }
        let answer = Answer::of(request.send().await.expect("an answer")).await;
        assert!(answer.status.is_success(), "{path}: {:#}", answer.body);
        answer.body
    }

    pub(crate) async fn get(&self, path: &str) -> Value {
        self.ask(Method::GET, path, None).await
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> Value {
        self.ask(Method::POST, path, Some(body)).await
    }

    pub(crate) async fn put(&self, path: &str, body: &Value) -> Value {
        self.ask(Method::PUT, path, Some(body)).await
    }

    pub(crate) async fn patch(&self, path: &str, body: &Value) -> Value {
        self.ask(Method::PATCH, path, Some(body)).await
    }

    /// The portfolio as soon as an event is in it.
    pub(crate) async fn portfolio_after(&self, event_id: &Value) -> Value {
        let event_id = event_id.as_str().expect("an event id");
        self.get(&format!("/api/portfolio?after={event_id}&wait={}", VISIBLE.as_secs())).await
    }
}

impl TestDb {
    /// A database whose log in PostgreSQL has topics of so many partitions.
    pub(crate) async fn with_topics(partitions: i32) -> Self {
        let partitions = partitions.to_string();
        let test = Self::with(settings(&[("HASHINSIGHT__KAFKA__PARTITIONS", &partitions)])).await;
        let kind = EventLogKind::Postgres;
        let log = test.log(kind).await;
        log.ensure_topics(&topics::specs(&test.config, kind)).await.expect("topics");
        test
    }

    /// The log of this database.
    pub(crate) async fn log(&self, kind: EventLogKind) -> Arc<dyn EventLog> {
        open_log(&self.config, kind, &self.db, &self.bells).await.expect("the log")
    }

    /// Ends the sessions that hold an advisory lock in this database, and waits until they are gone.
    pub(crate) async fn terminate_lock_holders(&self) {
        self.execute(
            "select pg_terminate_backend(pid, 5000) from pg_locks where locktype = 'advisory' \
             and database = (select oid from pg_database where datname = current_database())",
        )
        .await;
    }
}

/// Returns when the condition holds: it is looked at whenever a group has committed.
pub(crate) async fn applied(bells: &Doorbells, holds: impl AsyncFn() -> bool) {
    let mut bell = bells.listen(Bell::Applied);
    let wait = async {
        loop {
            bell.arm();
            if holds().await {
                return;
            }
            bell.rung().await;
        }
    };
    tokio::time::timeout(VISIBLE, wait).await.expect("the condition holds in time");
}

/// The events of the outbox behind a position, in order, as a group reads them; and the position of the last.
pub(crate) async fn events_behind(db: &TestDb, position: i64) -> (Vec<Event>, i64) {
    let rows: Vec<(i64, String, String, String)> = sqlx::query_as(
        "select position, event_key, payload::text, tenant_id from event_outbox where position > $1 order by position",
    )
    .bind(position)
    .fetch_all(&db.admin)
    .await
    .expect("events");
    let decode = |(_, key, value, tenant): &(i64, String, String, String)| {
        event::decode(Some(key.as_bytes()), Some(value.as_bytes()), Some(tenant.as_bytes()))
    };
    let events = rows.iter().map(|row| decode(row).expect("an event")).collect();
    (events, rows.last().map_or(position, |row| row.0))
}

/// Applies events as one batch of a group.
pub(crate) async fn apply(db: &TestDb, group: &str, events: &[Event]) {
    let groups = projection::groups(Assumptions::default());
    let group = groups.iter().find(|known| known.name == group).expect("the group");
    let mut tx = db.db.worker().await.expect("begin");
    group.handler.apply(&mut tx, &events.iter().collect::<Vec<_>>()).await.expect("applied");
    tx.commit().await.expect("commit");
}
