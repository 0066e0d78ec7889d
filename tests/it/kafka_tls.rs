//! Owns the tests of TLS and of users' passwords against a real broker.
//! Promises that who is not who they say is refused with one line that says what to look at.
//! Called by `cargo test --test it kafka_tls`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use hashinsight::log::kafka::KafkaLog;
use hashinsight::log::{EventLog, LogError};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use uuid::Uuid;

use crate::support::broker::{Broker, Listener, Settings};
use crate::support::kafka::{configured, limits, record, spec};
use crate::support::process::run;
use crate::support::settings;

/// A certificate authority of the test's own.
struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Self {
        let mut parameters = CertificateParams::default();
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        // A certificate names its authority: two of one name would only differ in their signatures.
        parameters.distinguished_name.push(DnType::CommonName, Uuid::now_v7().to_string());
        let key = KeyPair::generate().expect("a key");
        Self(CertifiedIssuer::self_signed(parameters, key).expect("signed"))
    }

    fn pem(&self) -> String {
        self.0.pem()
    }

    /// Key and certificate, both in PEM, for a host or a client of this name.
    fn certify(&self, name: &str, until_year: i32) -> (String, String) {
        let mut parameters = CertificateParams::new([name.to_owned()]).expect("a name");
        parameters.not_after = rcgen::date_time_ymd(until_year, 1, 1);
        let key = KeyPair::generate().expect("a key");
        let certificate = parameters.signed_by(&key, &self.0).expect("signed");
        (key.serialize_pem(), certificate.pem())
    }
}

/// Files that go with the test.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        let folder = std::env::temp_dir().join(format!("hashinsight-tls-{}", Uuid::now_v7()));
        std::fs::create_dir(&folder).expect("a folder");
        Self(folder)
    }

    fn write(&self, name: &str, text: &str) -> String {
        let path = self.0.join(name);
        std::fs::write(&path, text).expect("written");
        path.display().to_string()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn listener(name: &'static str, identity: Option<(String, String)>, sasl: bool) -> Listener {
    let identity = identity.map(|(key, certificate)| key + &certificate);
    Listener { name, identity, client_authority: None, sasl }
}

/// Everything the log does, through both of its clients.
async fn works(address: &str, settings: &[(&str, &str)]) {
    let config = configured(address, settings);
    let log = KafkaLog::connect(&config.kafka).await.expect("connects");
    let topic = format!("{}one", config.kafka.topic_prefix);
    log.ensure_topics(&[spec(&topic, 1)]).await.expect("created");
    let records: Vec<_> = (0..200).map(|n| record(format!("{n} {}", "x".repeat(700)))).collect();
    log.append(&topic, 0, &records).await.expect("appended");
    let fetched = log.fetch(&topic, 0, 0, limits(1_000)).await.expect("fetched").records;
    assert!(fetched.into_iter().map(|(_, record)| record).eq(records));
}

/// The one line that says why it does not connect.
async fn refused(address: &str, settings: &[(&str, &str)]) -> String {
    let config = configured(address, settings);
    let error = KafkaLog::connect(&config.kafka).await.err().expect("refused");
    assert!(matches!(error, LogError::Refused(_)), "at once: {error}");
    let line = error.to_string();
    assert!(!line.contains('\n') && !line.contains("hush"), "{line}");
    line
}

#[tokio::test]
async fn a_broker_is_believed_only_with_a_valid_certificate_for_its_name() {
    let (ours, theirs, folder) = (Authority::new(), Authority::new(), Folder::new());
    let mutual = Listener {
        client_authority: Some(ours.pem()),
        ..listener("MUTUAL", Some(ours.certify("127.0.0.1", 2_100)), false)
    };
    let settings = Settings {
        listeners: vec![
            listener("GOOD", Some(ours.certify("127.0.0.1", 2_100)), false),
            listener("ELSEWHERE", Some(ours.certify("broker.example", 2_100)), false),
            listener("EXPIRED", Some(ours.certify("127.0.0.1", 2_020)), false),
            mutual,
        ],
        ..Settings::default()
    };
    let broker = Broker::start(settings).await;
    let authority = folder.write("ca.pem", &ours.pem());
    let trusting = [("TLS", "true"), ("TLS_CA_FILE", authority.as_str())];
    works(&broker.address_of("GOOD"), &trusting).await;

    let stranger = folder.write("other.pem", &theirs.pem());
    let wrong = [("TLS", "true"), ("TLS_CA_FILE", stranger.as_str())];
    for (listener, settings, why) in [
        ("GOOD", wrong, "UnknownIssuer"),
        ("ELSEWHERE", trusting, "not valid for name"),
        ("EXPIRED", trusting, "certificate expired"),
    ] {
        let line = refused(&broker.address_of(listener), &settings).await;
        assert!(line.contains(why) && line.contains("kafka.tls_ca_file"), "{listener}: {line}");
        assert!(line.contains(&broker.address_of(listener)), "{line}");
    }
    let system = refused(&broker.address_of("GOOD"), &[("TLS", "true")]).await;
    assert!(system.contains("UnknownIssuer") || system.contains("ca-certificates"), "{system}");

    let (key, certificate) = ours.certify("hashinsight", 2_100);
    let (key, certificate) = (folder.write("key.pem", &key), folder.write("certificate.pem", &certificate));
    let known = [trusting[0], trusting[1], ("TLS_CERT_FILE", &certificate), ("TLS_KEY_FILE", &key)];
    works(&broker.address_of("MUTUAL"), &known).await;
    let unknown = refused(&broker.address_of("MUTUAL"), &trusting).await;
    assert!(unknown.contains("kafka.tls_cert_file"), "{unknown}");
}

#[tokio::test]
async fn a_listener_of_another_kind_is_unavailable_and_the_settings_are_named() {
    let (ours, folder) = (Authority::new(), Folder::new());
    let settings = Settings {
        listeners: vec![
            listener("TLS", Some(ours.certify("127.0.0.1", 2_100)), false),
            listener("USERS", None, true),
        ],
        ..Settings::default()
    };
    let broker = Broker::start(settings).await;
    let authority = folder.write("ca.pem", &ours.pem());
    let tls = [("TLS", "true"), ("TLS_CA_FILE", authority.as_str()), ("CONNECT_TIMEOUT_MS", "1500")];
    for (address, settings) in [
        (broker.address_of("TLS"), &tls[2..]),
        (broker.address_of("USERS"), &tls[2..]),
        (broker.address(), &tls),
    ] {
        let config = configured(&address, settings);
        let line = KafkaLog::connect(&config.kafka).await.err().expect("not understood").to_string();
        assert!(line.contains("kafka.tls and kafka.sasl_mechanism"), "{address}: {line}");
    }
}

#[tokio::test]
async fn a_user_needs_the_right_password() {
    let (ours, folder) = (Authority::new(), Folder::new());
    let settings = Settings {
        listeners: vec![
            listener("USERS", None, true),
            listener("SAFE", Some(ours.certify("127.0.0.1", 2_100)), true),
        ],
        users: vec![("miner", "hush-hush")],
        ..Settings::default()
    };
    let broker = Broker::start(settings).await;
    let authority = folder.write("ca.pem", &ours.pem());
    for mechanism in ["plain", "scram-sha-256", "scram-sha-512"] {
        for (listener, tls) in [("USERS", "false"), ("SAFE", "true")] {
            let authority = if tls == "true" { authority.as_str() } else { "" };
            let user = |password| {
                [
                    ("TLS", tls),
                    ("TLS_CA_FILE", authority),
                    ("SASL_MECHANISM", mechanism),
                    ("SASL_USERNAME", "miner"),
                    ("SASL_PASSWORD", password),
                ]
            };
            let address = broker.address_of(listener);
            works(&address, &user("hush-hush")).await;
            let line = refused(&address, &user("hush")).await;
            assert!(line.contains("kafka.sasl_password") && line.contains(&address), "{mechanism}: {line}");
        }
    }
}

#[tokio::test]
async fn a_file_that_cannot_be_used_is_named_with_its_key() {
    let folder = Folder::new();
    let missing = Path::new(&folder.0).join("missing.pem").display().to_string();
    let nothing = folder.write("nothing.pem", "not PEM");
    let (ours, other) = (Authority::new(), Authority::new());
    let (key, certificate) = ours.certify("hashinsight", 2_100);
    let (other_key, _) = other.certify("hashinsight", 2_100);
    let authority = folder.write("ca.pem", &ours.pem());
    let (key, other_key) = (folder.write("key.pem", &key), folder.write("other.pem", &other_key));
    let certificate = folder.write("certificate.pem", &certificate);
    for (ca, cert, private, named) in [
        (&missing, "", "", "kafka.tls_ca_file"),
        (&nothing, "", "", "kafka.tls_ca_file"),
        (&authority, missing.as_str(), key.as_str(), "kafka.tls_cert_file"),
        (&authority, certificate.as_str(), nothing.as_str(), "kafka.tls_key_file"),
        (&authority, certificate.as_str(), other_key.as_str(), "kafka.tls_key_file"),
    ] {
        let settings =
            [("TLS", "true"), ("TLS_CA_FILE", ca), ("TLS_CERT_FILE", cert), ("TLS_KEY_FILE", private)];
        let line = refused("127.0.0.1:1", &settings).await;
        assert!(line.contains(&format!("{named} = ")) && line.contains(": name "), "{line}");
    }
}

#[tokio::test]
async fn the_password_may_come_from_a_file_and_is_never_shown() {
    let folder = Folder::new();
    let file = folder.write("password", "hush-hush\n");
    let environment = settings(&[
        ("KAFKA_SASL_PASSWORD_FILE", &file),
        ("HASHINSIGHT__KAFKA__SASL_MECHANISM", "scram-sha-512"),
        ("HASHINSIGHT__KAFKA__SASL_USERNAME", "miner"),
    ]);
    let shown =
        tokio::time::timeout(Duration::from_secs(60), run(&environment, &["config"])).await.expect("ends");
    let line = shown.stdout.lines().find(|line| line.starts_with("kafka.sasl_password")).expect("listed");
    assert!(line.contains("***") && line.contains("KAFKA_SASL_PASSWORD_FILE"), "{line}");
    assert!(!shown.stdout.contains("hush") && !shown.stderr.contains("hush"));
}
