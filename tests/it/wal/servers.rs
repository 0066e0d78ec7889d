//! What needs a server of the test's own: a lost slot, a silent server, another wal_level, passwords and certificates.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use hashinsight::config::load_from;
use hashinsight::lifecycle::Lifecycle;
use hashinsight::outbox::wal::{SlotError, SlotState, SlotWatch, WalError, WalSettings, WalStream, slot};
use hashinsight::role;

use super::{DEADLINE, end_of};
use crate::support::cluster::{Cluster, send};
use crate::support::{settings, until};

const SLOT: &str = "hashinsight_wal";

/// A migrated database on the cluster, and how to read from it.
async fn migrated(cluster: &Cluster) -> WalSettings {
    cluster.execute("postgres", "create database product").await;
    let url = cluster.url("product");
    let config = load_from(None, &settings(&[("DATABASE_URL", &url)])).expect("valid").config;
    role::migrate::migrate(&config).await.expect("migrated");
    assert!(role::migrate::migrate(&config).await.expect("again").up_to_date());
    WalSettings {
        status_interval: Duration::from_millis(20),
        ..WalSettings::new(&config, SLOT).expect("valid")
    }
}

async fn state(settings: &WalSettings) -> SlotState {
    let mut conn = settings.connect().await.expect("connected");
    slot::state(&mut conn, SLOT).await.expect("looked")
}

async fn refusal(settings: &WalSettings) -> WalError {
    WalStream::open(settings, &Lifecycle::default()).await.expect_err("refused")
}

#[tokio::test]
async fn a_lost_slot_is_told_and_made_anew() {
    let cluster = Cluster::start(&[
        ("max_slot_wal_keep_size", "4MB"),
        ("min_wal_size", "2MB"),
        ("max_wal_size", "2MB"),
    ])
    .await;
    let wal = migrated(&cluster).await;
    let mut conn = wal.connect().await.expect("connected");
    slot::create(&mut conn, SLOT).await.expect("made");
    let mut watch = SlotWatch::new(SLOT, 1 << 40);
    watch.look(&mut conn).await.expect("looked");
    assert!(!watch.alarmed());
    WalStream::open(&wal, &Lifecycle::default()).await.expect("opened").close().await;

    // Half of what may be kept, then past all of it.
    let write =
        "select pg_logical_emit_message(false, 'test', repeat('x', 100000)) from generate_series(1, 25)";
    cluster.execute("product", write).await;
    assert!(matches!(watch.look(&mut conn).await.expect("looked"), SlotState::Healthy(_)));
    assert!(watch.alarmed(), "at half");
    for _ in 0..4 {
        cluster.execute("product", write).await;
        cluster.execute("product", "select pg_switch_wal(); checkpoint").await;
    }
    let SlotState::Lost(slot) = state(&wal).await else { panic!("{:?}", state(&wal).await) };
    assert_eq!(slot.wal_status, "lost");
    assert_eq!(refusal(&wal).await, WalError::SlotLost);
    let refused = slot::create(&mut conn, SLOT).await.expect_err("lost");
    assert!(matches!(refused, SlotError::Lost(_)), "{refused}");
    slot::drop(&mut conn, SLOT, false).await.expect("dropped");
    slot::create(&mut conn, SLOT).await.expect("made anew");
    WalStream::open(&wal, &Lifecycle::default()).await.expect("opened").close().await;
}

#[tokio::test]
async fn a_frozen_server_is_given_up() {
    let cluster = Cluster::start(&[]).await;
    let wal = WalSettings { silence_timeout: Duration::from_secs(2), ..migrated(&cluster).await };
    let mut conn = wal.connect().await.expect("connected");
    slot::create(&mut conn, SLOT).await.expect("made");
    let mut stream = WalStream::open(&wal, &Lifecycle::default()).await.expect("opened");
    let walsender = state(&wal).await.slot().and_then(|slot| slot.active_pid).expect("a reader");
    let walsender = u32::try_from(walsender).expect("a process id");

    // A server that has nothing to say is not taken for one: it answers, for longer than the deadline.
    let quiet = tokio::time::timeout(2 * wal.silence_timeout, end_of(&mut stream)).await;
    assert!(quiet.is_err(), "{quiet:?}");

    send("STOP", walsender);
    assert_eq!(end_of(&mut stream).await, WalError::Silent);
    send("CONT", walsender);
    until("the slot is free", DEADLINE, async || {
        state(&wal).await.slot()?.active_pid.is_none().then_some(())
    })
    .await;
    WalStream::open(&wal, &Lifecycle::default()).await.expect("opened").close().await;
}

#[tokio::test]
async fn a_stopped_and_a_crashed_server_are_told_and_the_slot_survives() {
    let mut cluster = Cluster::start(&[]).await;
    let wal = migrated(&cluster).await;
    let mut conn = wal.connect().await.expect("connected");
    slot::create(&mut conn, SLOT).await.expect("made");
    let mut stream = WalStream::open(&wal, &Lifecycle::default()).await.expect("opened");
    cluster.stop().await;
    assert!(matches!(end_of(&mut stream).await, WalError::Connection(_)));
    assert!(matches!(refusal(&wal).await, WalError::Connection(_)));
    cluster.restart().await;
    let mut stream = WalStream::open(&wal, &Lifecycle::default()).await.expect("opened");
    cluster.kill().await;
    assert!(matches!(end_of(&mut stream).await, WalError::Connection(_)));
    cluster.restart().await;
    WalStream::open(&wal, &Lifecycle::default()).await.expect("opened").close().await;
}

#[tokio::test]
async fn without_logical_wal_it_migrates_and_names_the_remedy() {
    let cluster = Cluster::start(&[("wal_level", "replica")]).await;
    let wal = migrated(&cluster).await;
    let mut conn = wal.connect().await.expect("connected");
    let refused = slot::create(&mut conn, SLOT).await.expect_err("refused");
    assert!(refused.to_string().contains("set wal_level = logical"), "{refused}");
    let refused = refusal(&wal).await;
    assert!(
        matches!(&refused, WalError::Refused(text) if text.contains("wal_level = logical")),
        "{refused:?}"
    );
}

#[tokio::test]
async fn the_last_slot_names_the_remedy() {
    let cluster = Cluster::start(&[("max_replication_slots", "1")]).await;
    let wal = migrated(&cluster).await;
    let mut conn = wal.connect().await.expect("connected");
    slot::create(&mut conn, SLOT).await.expect("made");
    let refused = slot::create(&mut conn, "one_more").await.expect_err("refused");
    assert!(refused.to_string().contains("raise max_replication_slots"), "{refused}");
}

/// Makes keys with the command-line tool of OpenSSL, which comes with PostgreSQL's packages.
fn openssl(folder: &Path, arguments: &str) {
    let output =
        Command::new("openssl").current_dir(folder).args(arguments.split(' ')).output().expect("openssl");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

const CA: &str =
    "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=authority";

#[tokio::test]
async fn passwords_and_certificates_are_checked_as_the_address_says() {
    let mut cluster = Cluster::start(&[]).await;
    let wal = migrated(&cluster).await;
    let folder = cluster.folder().to_owned();
    openssl(&folder, &format!("{CA} -keyout ca.key -out ca.crt"));
    openssl(&folder, &format!("{CA} -keyout other.key -out other.crt"));
    openssl(
        &folder,
        "req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=db -keyout server.key -out db.csr",
    );
    std::fs::write(folder.join("names"), "subjectAltName=DNS:localhost").expect("written");
    openssl(
        &folder,
        "x509 -req -in db.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -extfile names -out server.crt",
    );
    openssl(&folder, "x509 -in ca.crt -out root.crt");
    // The server reads its key as its own user.
    let (key, owner) = (folder.join("server.key"), std::fs::metadata(&folder).expect("the folder").uid());
    std::os::unix::fs::chown(&key, Some(owner), None).expect("owned");
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).expect("private");
    std::fs::write(
        folder.join("pg_hba.conf"),
        "hostssl all scram all scram-sha-256\nhostnossl all scram all reject\nhost all all all trust\n",
    )
    .expect("written");
    cluster.execute("postgres", "create role scram login replication password 'p@ss w%rd'").await;
    cluster.execute("postgres", "alter system set ssl = on").await;
    cluster.restart().await;
    let mut conn = wal.connect().await.expect("connected");
    slot::create(&mut conn, SLOT).await.expect("made");

    let file = |name: &str| folder.join(name).display().to_string();
    let with = |login: &str, host: &str, query: &str| {
        let url = cluster.url_as(login, "product").replace("127.0.0.1", host) + "?" + query;
        WalSettings { database_url: url.into(), ..wal.clone() }
    };
    let full = format!("sslmode=verify-full&sslrootcert={}", file("root.crt"));
    let chain = format!("sslmode=verify-ca&sslrootcert={}", file("root.crt"));
    let wrong = format!("sslmode=verify-full&sslrootcert={}", file("other.crt"));
    for (login, host, query) in [
        ("scram:p%40ss%20w%25rd", "localhost", full.as_str()),
        ("scram:p%40ss%20w%25rd", "127.0.0.1", chain.as_str()),
        ("scram:p%40ss%20w%25rd", "127.0.0.1", "sslmode=require"),
        ("scram:p%40ss%20w%25rd", "127.0.0.1", ""),
        ("hashinsight", "127.0.0.1", "sslmode=disable"),
    ] {
        let stream = WalStream::open(&with(login, host, query), &Lifecycle::default()).await;
        stream.unwrap_or_else(|error| panic!("{host} {query}: {error}")).close().await;
    }
    for (login, host, query, expected) in [
        ("scram:wrong", "localhost", full.as_str(), "password authentication failed"),
        ("scram", "localhost", full.as_str(), "asks for the password of scram"),
        ("scram:p%40ss%20w%25rd", "127.0.0.1", full.as_str(), "certificate"),
        ("scram:p%40ss%20w%25rd", "localhost", wrong.as_str(), "certificate"),
        ("scram:p%40ss%20w%25rd", "localhost", "sslmode=verify-full", "certificate"),
        ("scram:p%40ss%20w%25rd", "localhost", "sslmode=disable", "pg_hba.conf"),
    ] {
        match refusal(&with(login, host, query)).await {
            WalError::Refused(text) if text.contains(expected) && !text.contains("w%rd") => {}
            other => panic!("{host} {query}: {other:?}"),
        }
    }
    let encrypted = with("hashinsight", "127.0.0.1", "sslmode=require");
    cluster.execute("postgres", "alter system set ssl = off").await;
    cluster.restart().await;
    let refused = refusal(&encrypted).await;
    assert!(matches!(&refused, WalError::Refused(text) if text.contains("offers no TLS")), "{refused:?}");
}
