//! Where a webhook does not go.

use serde_json::json;
use tokio::net::TcpListener;

use super::receiver::{Receiver, Reply};
use super::{Sending, delivery, event, group_applies, nothing_is_queued, start, webhook};

#[tokio::test(flavor = "multi_thread")]
async fn a_redirect_is_not_followed() {
    let (db, api) = start(&[]).await;
    let secret = Receiver::answers(200).await;
    let to = secret.url("/admin");
    let receiver = Receiver::with(move |_| Reply::Redirect(to.clone())).await;
    let (id, _) = webhook(&api, &receiver.url("/")).await;
    nothing_is_queued(&db).await;
    event(&api).await;
    group_applies(&db).await;
    let sending = Sending::start(&db);
    let shown = delivery(&api, &id, |one| one["last_error"].is_string()).await;
    assert_eq!((&shown["last_status"], &shown["state"]), (&json!(307), &json!("pending")));
    sending.stop().await;
    assert_eq!((receiver.all().len(), secret.all().len()), (1, 0));
}

/// A name is resolved when it is connected to, not when it is written down.
#[tokio::test(flavor = "multi_thread")]
async fn a_name_of_a_private_address_is_not_connected_to() {
    // Only other hosts are allowed by name.
    let (db, api) = start(&[("HASHINSIGHT__WEBHOOKS__ALLOWED_HOSTS", "crm.internal,127.0.0.9")]).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let mut ids = Vec::new();
    // The second is 127.0.0.1 for whoever connects, and no address for whoever parses.
    for host in ["localhost", "2130706433"] {
        ids.push(webhook(&api, &format!("https://{host}:{port}/hook")).await.0);
    }
    nothing_is_queued(&db).await;
    event(&api).await;
    group_applies(&db).await;
    let sending = Sending::start(&db);
    for id in &ids {
        let shown = delivery(&api, id, |one| one["last_error"].is_string()).await;
        let error = shown["last_error"].as_str().expect("an error");
        assert!(error.contains("no public address") && error.contains("webhooks.allowed_hosts"), "{error}");
        assert!(!error.contains("127.0.0.1") && !error.contains("::1"), "{error}");
    }
    sending.stop().await;
    let connected = std::future::poll_fn(|context| match listener.poll_accept(context) {
        std::task::Poll::Ready(_) => std::task::Poll::Ready(true),
        std::task::Poll::Pending => std::task::Poll::Ready(false),
    });
    assert!(!connected.await, "nobody connected");

    for url in
        ["https://127.0.0.1/", "https://[::1]/", "https://169.254.169.254/", "http://example.com/", "x"]
    {
        let refused = api.post("/api/webhooks", json!({"url": url})).await.expect(422);
        assert_eq!(refused.fields(), ["url"], "{url}");
        let path = format!("/api/webhooks/{}", ids[0]);
        assert_eq!(api.patch(&path, json!({"url": url})).await.expect(422).fields(), ["url"], "{url}");
    }
}

/// What the operator allowed when the webhook was made may not be allowed any more.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_allowed_is_asked_at_every_attempt() {
    let (mut db, api) = start(&[]).await;
    let receiver = Receiver::answers(200).await;
    let (id, _) = webhook(&api, &receiver.url("/")).await;
    nothing_is_queued(&db).await;
    event(&api).await;
    group_applies(&db).await;
    db.config.webhooks.allowed_hosts = String::new();
    let sending = Sending::start(&db);
    let shown = delivery(&api, &id, |one| one["last_error"].is_string()).await;
    assert!(
        shown["last_error"].as_str().is_some_and(|error| error.contains("not allowed any more")),
        "{shown}"
    );
    sending.stop().await;
    assert!(receiver.all().is_empty());
}
