//! Webhooks on real sockets: what is sent, signed and retried, to whom, and who is not held up by it.

mod endpoints;
mod failing;
mod processes;
mod receiver;
mod shares;
mod switching;
mod targets;

use std::collections::BTreeMap;
use std::time::Duration;

use hashinsight::config::Config;
use hashinsight::db::WorkerTx;
use hashinsight::domain::webhook::{AllowedHosts, Vault};
use hashinsight::economics::Assumptions;
use hashinsight::event::Event;
use hashinsight::projection;
use hashinsight::read_model::crm::GROUP;
use hashinsight::webhook::{Sender, Settings};
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::support::{TestApi, TestDb, settings, until};
use receiver::Receiver;

const LONG: Duration = Duration::from_secs(60);
const KEY: &str = "a key of the tests, long enough for it";

/// Settings with a key; the receivers of the tests are allowed by name.
fn with_key(further: &[(&str, &str)]) -> BTreeMap<String, String> {
    let own = [("WEBHOOKS_KEY", KEY), ("HASHINSIGHT__WEBHOOKS__ALLOWED_HOSTS", "127.0.0.1")];
    settings(&[&own[..], further].concat())
}

async fn start(further: &[(&str, &str)]) -> (TestDb, TestApi) {
    let db = TestDb::with(with_key(further)).await;
    let api = TestApi::start(&db).await;
    (db, api)
}

/// Makes a webhook: its id and its secret.
async fn webhook(api: &TestApi, url: &str) -> (String, String) {
    let made = api.post("/api/webhooks", json!({"url": url})).await.expect(201);
    let text = |name: &str| made.body[name].as_str().unwrap_or_else(|| panic!("{name}")).to_owned();
    (text("webhook_id"), text("secret"))
}

/// Makes an account, which is one event; returns its id.
async fn event(api: &TestApi) -> String {
    api.post("/api/crm/accounts", json!({"name": "Northern Hash"})).await.expect(201).event_id().to_owned()
}

/// Applies every event of the outbox as the group does, in one batch: those it has seen have no effect.
async fn group_applies(db: &TestDb) {
    group_has_applied(db).await.commit().await.expect("commit");
}

/// The group's transaction, before its end.
async fn group_has_applied(db: &TestDb) -> WorkerTx {
    let rows: Vec<(String, String, String)> = sqlx::query_as(
        "select event_key, payload::text, tenant_id from event_outbox where aggregate_type = 'crm' order by position",
    )
    .fetch_all(&db.admin)
    .await
    .expect("events");
    let decode = |(key, value, tenant): &(String, String, String)| {
        hashinsight::event::decode(Some(key.as_bytes()), Some(value.as_bytes()), Some(tenant.as_bytes()))
    };
    let events: Vec<Event> = rows.iter().map(|row| decode(row).expect("an event")).collect();
    let groups = projection::groups(Assumptions::default());
    let group = groups.iter().find(|group| group.name == GROUP).expect("the group");
    let mut tx = db.db.worker().await.expect("begin");
    group.handler.apply(&mut tx, &events.iter().collect::<Vec<_>>()).await.expect("applied");
    tx
}

/// What was queued before the test begins is not its subject.
async fn nothing_is_queued(db: &TestDb) {
    group_applies(db).await;
    db.execute("delete from webhook_delivery; truncate event_outbox").await;
}

/// A sender in this process. Stop it with [`Sending::stop`].
struct Sending {
    stop: CancellationToken,
    task: JoinHandle<anyhow::Result<()>>,
}

impl Sending {
    fn start(db: &TestDb) -> Self {
        let stop = CancellationToken::new();
        let Config { webhooks, .. } = &db.config;
        let settings = Settings {
            allowed: AllowedHosts::parse(&webhooks.allowed_hosts),
            poll: Duration::from_millis(20),
            timeout: Duration::from_millis(webhooks.timeout_ms),
            in_flight: webhooks.in_flight,
            in_flight_of_tenant: webhooks.in_flight_of_tenant,
            in_flight_of_endpoint: webhooks.in_flight_of_endpoint,
        };
        let vault = Vault::new(&webhooks.key).expect("a key");
        let sender = Sender::new(db.db.clone(), db.bells.clone(), vault, settings).expect("TLS");
        Self { task: tokio::spawn(sender.run(stop.clone())), stop }
    }

    /// As if the process had died.
    async fn die(self) {
        self.task.abort();
        let _ = self.task.await;
    }

    async fn stop(self) {
        self.stop.cancel();
        self.task.await.expect("no panic").expect("clean");
    }
}

/// The deliveries of a webhook, the newest event first.
async fn deliveries(api: &TestApi, webhook: &str) -> Vec<Value> {
    let list = api.get(&format!("/api/webhooks/{webhook}/deliveries")).await.expect(200).body;
    list["data"].as_array().expect("rows").clone()
}

/// Waits until the only delivery of a webhook looks like this.
async fn delivery(api: &TestApi, webhook: &str, like: impl Fn(&Value) -> bool) -> Value {
    until("the delivery is as it should be", LONG, async || {
        let all = deliveries(api, webhook).await;
        let [one] = all.as_slice() else { panic!("{all:?}") };
        like(one).then(|| one.clone())
    })
    .await
}

/// As if the pause before the next attempt were over.
async fn time_passes(db: &TestDb) {
    db.execute("update webhook_delivery set next_attempt_at = now() where state = 'pending'").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_is_posted_once_as_it_is_and_signed() {
    let (db, api) = start(&[]).await;
    let receiver = Receiver::answers(200).await;
    let (id, secret) = webhook(&api, &receiver.url("/hook?tenant=7")).await;
    nothing_is_queued(&db).await;
    let event_id = event(&api).await;
    group_applies(&db).await;
    group_applies(&db).await;
    let sending = Sending::start(&db);
    let shown = delivery(&api, &id, |one| one["state"] == "delivered").await;
    sending.stop().await;
    let all = receiver.all();
    let [seen] = all.as_slice() else { panic!("{} requests", all.len()) };
    assert_eq!((seen.method.as_str(), seen.path.as_str()), ("POST", "/hook?tenant=7"));
    assert_eq!(seen.header("content-type"), "application/json");
    assert_eq!(seen.header("host"), receiver.address.to_string());
    assert_eq!(seen.header("webhook-id"), event_id);
    let at: i64 = seen.header("webhook-timestamp").parse().expect("seconds");
    assert!((chrono::Utc::now().timestamp() - at).abs() < 60, "{at}");
    assert_eq!(seen.header("webhook-signature"), seen.expected_signature(&secret));
    let stored: String = db.scalar("select payload::text from event_outbox").await;
    assert_eq!(seen.body, stored, "the envelope, to the byte");
    let expected = json!({
        "delivery_id": shown["delivery_id"], "event_id": event_id, "kind": "crm.account_created", "state": "delivered",
        "attempts": 1, "next_attempt_at": null, "last_attempt_at": shown["last_attempt_at"], "last_status": 200,
        "last_error": null, "delivered_at": shown["delivered_at"], "created_at": shown["created_at"],
    });
    assert_eq!(shown, expected);
    assert!(shown["delivered_at"].is_string());
}

#[tokio::test(flavor = "multi_thread")]
async fn every_endpoint_of_the_tenant_gets_every_event_and_no_other_tenants() {
    let (db, api) = start(&[]).await;
    let stranger = TestApi::start(&db).await;
    let (one, two, foreign) =
        (Receiver::answers(200).await, Receiver::answers(204).await, Receiver::answers(200).await);
    for (api, receiver) in [(&api, &one), (&api, &two), (&stranger, &foreign)] {
        webhook(api, &receiver.url("/")).await;
    }
    nothing_is_queued(&db).await;
    let lead = api.post("/api/crm/leads", json!({"name": "Ada"})).await.expect(201).event_id().to_owned();
    let account = event(&api).await;
    let other = event(&stranger).await;
    group_applies(&db).await;
    // Two senders: what one has claimed the other leaves alone.
    let (first, second) = (Sending::start(&db), Sending::start(&db));
    until("everything is delivered", LONG, async || {
        let left = "select count(*) from webhook_delivery where state <> 'delivered'";
        (db.scalar::<i64>(left).await == 0).then_some(())
    })
    .await;
    first.stop().await;
    second.stop().await;
    let mut own = vec![lead, account];
    own.sort();
    for receiver in [&one, &two] {
        let mut ids: Vec<String> =
            receiver.all().iter().map(|seen| seen.header("webhook-id").to_owned()).collect();
        ids.sort();
        assert_eq!(ids, own);
    }
    let ids: Vec<String> = foreign.all().iter().map(|seen| seen.header("webhook-id").to_owned()).collect();
    assert_eq!(ids, [other]);
}

#[tokio::test(flavor = "multi_thread")]
async fn both_secrets_sign_until_the_old_one_ends() {
    let (db, api) = start(&[]).await;
    let receiver = Receiver::answers(200).await;
    let (id, old) = webhook(&api, &receiver.url("/")).await;
    let rotated = api.post(&format!("/api/webhooks/{id}/rotate"), json!({})).await.expect(200);
    let new = rotated.body["secret"].as_str().expect("a secret").to_owned();
    assert_ne!(new, old);
    nothing_is_queued(&db).await;
    let sending = Sending::start(&db);
    let until: bool = db
        .scalar("select previous_secret_until between now() + interval '23 hours' and now() + interval '24 hours' from webhook_endpoint")
        .await;
    assert!(until, "a day, unless said otherwise");
    event(&api).await;
    group_applies(&db).await;
    let seen = receiver.next(1).await;
    let both = [seen.expected_signature(&new), seen.expected_signature(&old)].join(" ");
    assert_eq!(seen.header("webhook-signature"), both);

    db.execute("update webhook_endpoint set previous_secret_until = now() - interval '1 second'").await;
    event(&api).await;
    group_applies(&db).await;
    let seen = receiver.next(2).await;
    assert_eq!(seen.header("webhook-signature"), seen.expected_signature(&new));

    api.post(&format!("/api/webhooks/{id}/rotate"), json!({"overlap_hours": 0})).await.expect(200);
    group_applies(&db).await;
    let seen = receiver.next(3).await;
    assert!(!seen.header("webhook-signature").contains(' '), "without an overlap");
    sending.stop().await;

    // Who reads the database has no secret: not as text, and not as bytes.
    let row: String = db.scalar("select row_to_json(e)::text from webhook_endpoint e").await;
    for secret in [&old, &new] {
        let base64 = secret.trim_start_matches("whsec_");
        let hex: String = receiver::decode(base64).iter().map(|byte| format!("{byte:02x}")).collect();
        assert!(!row.contains(base64) && !row.contains(&hex), "{row}");
    }
}
