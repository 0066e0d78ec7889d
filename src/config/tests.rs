use rust_decimal::Decimal;

use super::*;

fn from_env(pairs: &[(&str, &str)]) -> Result<Loaded, ConfigError> {
    load_from(None, &pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect())
}

#[test]
fn defaults_are_valid_and_complete() {
    let loaded = from_env(&[]).expect("defaults");
    assert_eq!(loaded.config.economics.pool_fee, Decimal::new(2, 2));
    assert_eq!(loaded.config.publisher.poll_interval_ms, 5_000);
    assert!(loaded.config.redis.url().is_none());
}

#[test]
fn later_layers_win_and_are_named() {
    let loaded = from_env(&[
        ("HASHINSIGHT__DATABASE__URL", "postgres://a/b"),
        ("DATABASE_URL", "postgres://me:hush@host/db"),
        ("HASHINSIGHT__KAFKA__TOPIC_PREFIX", "test."),
    ])
    .expect("valid");
    assert_eq!(loaded.config.database_url().expect("set"), "postgres://me:hush@host/db");
    let url = loaded.origins.iter().find(|o| o.key == "database.url").expect("listed");
    assert_eq!((url.value.as_str(), url.origin.as_str()), ("postgres://me:***@host/db", "DATABASE_URL"));
    let prefix = loaded.origins.iter().find(|o| o.key == "kafka.topic_prefix").expect("listed");
    assert_eq!(prefix.origin, "HASHINSIGHT__KAFKA__TOPIC_PREFIX");
}

#[test]
fn a_mistake_names_key_value_and_remedy() {
    for (name, value, expected) in [
        ("HASHINSIGHT__SERVER__BNID", "x", "unknown key server.bnid (from HASHINSIGHT__SERVER__BNID)"),
        ("HASHINSIGHT__NOWHERE__KEY", "x", "unknown key nowhere.key"),
        ("HASHINSIGHT__SERVER__BIND", "nonsense", "server.bind"),
        (
            "HASHINSIGHT__PUBLISHER__BATCH_SIZE",
            "0",
            "publisher.batch_size = \"0\" is not allowed: 1 to 100000",
        ),
        ("HASHINSIGHT__PUBLISHER__BATCH_SIZE", "many", "publisher.batch_size"),
        ("HASHINSIGHT__LOG__FORMAT", "xml", "log.format = \"xml\" is not allowed: text | json"),
        ("HASHINSIGHT__KAFKA__COMPRESSION", "zip", "compression"),
        ("KAFKA_BROKERS", "localhost", "kafka.brokers = \"localhost\" is not allowed: host:port"),
        ("DATABASE_URL", "mysql://x", "database.url must start with postgres://"),
        ("HASHINSIGHT__WAL__DATABASE_URL", "mysql://x", "wal.database_url must start with postgres://"),
        (
            "HASHINSIGHT__WAL__SLOT",
            "Bad-Name",
            "wal.slot = \"Bad-Name\" is not allowed: 1 to 63 of lower-case",
        ),
        ("HASHINSIGHT__WAL__STATUS_INTERVAL_MS", "60000", "wal.status_interval_ms"),
        (
            "HASHINSIGHT__WAL__SILENCE_TIMEOUT_MS",
            "1500",
            "2000 to 600000, at least twice wal.status_interval_ms",
        ),
        ("HASHINSIGHT__GROUP__PROTOCOL", "zookeeper", "group.protocol"),
        ("HASHINSIGHT__KAFKA__GROUP_PREFIX", "a b", "kafka.group_prefix"),
        ("JWT_SECRET", "short", "auth.jwt_secret has 5 bytes"),
    ] {
        let message = from_env(&[(name, value)]).expect_err(name).to_string();
        assert!(message.contains(expected), "{name}={value}: {message}");
        assert!(!message.contains('\n'), "{message}");
    }
}

#[test]
fn the_log_follows_the_brokers() {
    let without = from_env(&[]).expect("valid").config;
    assert_eq!(without.event_log_kind(true).expect("standalone"), EventLogKind::Postgres);
    assert!(without.event_log_kind(false).is_err());
    let with = from_env(&[("KAFKA_BROKERS", "h:9092")]).expect("valid").config;
    assert_eq!(with.event_log_kind(true).expect("kafka"), EventLogKind::Kafka);
}

#[test]
fn a_group_has_its_prefix_in_kafka_alone() {
    let plain = from_env(&[]).expect("valid").config;
    assert_eq!(plain.kafka.group_id("portfolio-recalc-group"), "portfolio-recalc-group");
    let ours = from_env(&[("HASHINSIGHT__KAFKA__GROUP_PREFIX", "north.")]).expect("valid").config;
    assert_eq!(ours.kafka.group_id("portfolio-recalc-group"), "north.portfolio-recalc-group");
}

#[test]
fn secrets_do_not_print() {
    let loaded = from_env(&[
        ("JWT_SECRET", "0123456789abcdef0123456789abcdef"),
        ("DATABASE_URL", "postgres://u:hunter2@h/d?password=hunter2"),
        ("HASHINSIGHT__WAL__DATABASE_URL", "postgres://w:hunter2@h/d"),
        ("REDIS_URL", "redis://:hunter2@h:1"),
    ])
    .expect("valid");
    let printed = format!("{:?} {:?}", loaded.config, loaded.origins);
    assert!(!printed.contains("hunter2") && !printed.contains("0123456789abcdef"), "{printed}");
}

#[test]
fn replication_has_a_login_of_its_own_if_one_is_named() {
    let shared = from_env(&[("DATABASE_URL", "postgres://a/b")]).expect("valid").config;
    assert_eq!(shared.wal_database_url().expect("set"), "postgres://a/b");
    let path = std::env::temp_dir().join(format!("hi_config_{}", std::process::id()));
    std::fs::write(&path, "postgres://w@a/b\n").expect("written");
    let file = path.display().to_string();
    let own = from_env(&[("DATABASE_URL", "postgres://a/b"), ("HASHINSIGHT__WAL__DATABASE_URL_FILE", &file)]);
    std::fs::remove_file(&path).expect("removed");
    assert_eq!(own.expect("valid").config.wal_database_url().expect("set"), "postgres://w@a/b");
}
