//! Owns the Debezium connector `hashinsight-outbox`: its settings, what the database must have for it, and Kafka
//! Connect, which runs it.
//! Promises settings under which Debezium writes the bytes that our publisher writes, and that no secret is in them.
//! Called by `connector`, `topics` and `doctor`.

use std::collections::{BTreeMap, BTreeSet};

use sqlx::postgres::{PgConnectOptions, PgSslMode};

use crate::config::{Config, ConfigError, mask_userinfo};
use crate::event::header;
pub use crate::outbox::wal::PUBLICATION;

mod rest;
mod source;

pub use rest::{Connect, RestError, State, Status, Task, Worker};
pub use source::{Publication, create_statement, publication};

/// The name of the connector.
pub const NAME: &str = "hashinsight-outbox";

/// The one table of the publication.
pub const TABLE: &str = "event_outbox";

/// Debezium's name of this source, part of the names of its own topics.
const SOURCE: &str = "hashinsight";

/// Without this topic the connector stands still once it has nothing to deliver for a while.
pub const HEARTBEAT_TOPIC: &str = "__debezium-heartbeat.hashinsight";

/// The class that Connect loads.
pub const CLASS: &str = "io.debezium.connector.postgresql.PostgresConnector";

/// Columns that become headers. Debezium writes `id` by itself, first, and the others in this order.
const HEADERS: [(&str, &str); 5] = [
    ("position", header::POSITION),
    ("tenant_id", header::TENANT_ID),
    ("traceparent", header::TRACEPARENT),
    ("event_type", header::TYPE),
    ("schema_version", header::VERSION),
];

/// Further columns by what EventRouter calls them.
const COLUMNS: [(&str, &str); 5] = [
    ("id", header::ID),
    ("key", "event_key"),
    ("type", "event_type"),
    ("payload", "payload"),
    ("timestamp", "occurred_at"),
];

/// Decides the topic.
const ROUTE: &str = "aggregate_type";

/// Moves the slot on when the outbox is idle and other tables are busy. It must not write a row: that would be an
/// event or need a table of its own.
const HEARTBEAT_QUERY: &str = "select pg_logical_emit_message(false, 'hashinsight.heartbeat', '')";

/// The settings of a connector, sorted by name.
pub type Settings = BTreeMap<String, String>;

/// The settings to register. Without a database address those of a usual local one.
pub fn settings(config: &Config) -> Result<Settings, ConfigError> {
    let database = database(config)?;
    let headers: Vec<String> =
        HEADERS.iter().map(|(column, name)| format!("{column}:header:{name}")).collect();
    let router = |name: &str| format!("transforms.outbox.{name}");
    let fixed = [
        ("connector.class", CLASS),
        ("tasks.max", "1"),
        ("plugin.name", "pgoutput"),
        ("publication.name", PUBLICATION),
        // The publication has a column list and is ours: Debezium must neither make nor change it.
        ("publication.autocreate.mode", "disabled"),
        ("slot.name", config.debezium.slot.as_str()),
        ("snapshot.mode", "no_data"),
        ("topic.prefix", SOURCE),
        ("table.include.list", "public.event_outbox"),
        ("heartbeat.interval.ms", "10000"),
        ("heartbeat.action.query", HEARTBEAT_QUERY),
        // Logical messages would be records of a topic that does not exist, and the connector would stand still.
        ("message.prefix.exclude.list", ".*"),
        ("tombstones.on.delete", "false"),
        ("extended.headers.enabled", "false"),
        ("key.converter", "org.apache.kafka.connect.storage.StringConverter"),
        ("value.converter", "org.apache.kafka.connect.storage.StringConverter"),
        ("header.converter", "org.apache.kafka.connect.storage.SimpleHeaderConverter"),
        ("transforms", "outbox"),
    ];
    let routed = [
        ("type", "io.debezium.transforms.outbox.EventRouter".to_owned()),
        ("route.by.field", ROUTE.to_owned()),
        ("route.topic.replacement", format!("{}${{routedByValue}}", config.kafka.topic_prefix)),
        ("table.fields.additional.placement", headers.join(",")),
        // As text: taken apart it would lose nulls and empty arrays.
        ("table.expand.json.payload", "false".to_owned()),
        ("table.op.invalid.behavior", "warn".to_owned()),
    ];
    let mut settings: Settings = fixed.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
    settings.extend(routed.map(|(key, value)| (router(key), value)));
    settings.extend(
        COLUMNS.map(|(field, column)| (router(&format!("table.field.event.{field}")), column.to_owned())),
    );
    settings.extend(database);
    Ok(settings)
}

/// The columns of the outbox that the connector reads.
pub fn columns() -> BTreeSet<&'static str> {
    let headers = HEADERS.iter().map(|(column, _)| *column);
    headers.chain(COLUMNS.iter().map(|(_, column)| *column)).chain([ROUTE]).collect()
}

/// The login that Debezium uses.
pub fn login(config: &Config) -> Result<Option<String>, ConfigError> {
    let Some(url) = config.debezium_database_url() else { return Ok(None) };
    Ok(Some(options(url)?.get_username().to_owned()))
}

fn database(config: &Config) -> Result<Settings, ConfigError> {
    let setting = |key: &str, value: &str| (format!("database.{key}"), value.to_owned());
    let password = setting("password", &config.debezium.password);
    let Some(url) = config.debezium_database_url() else {
        let local = [("hostname", "localhost"), ("port", "5432"), ("user", SOURCE), ("dbname", SOURCE)];
        return Ok(local.map(|(key, value)| setting(key, value)).into_iter().chain([password]).collect());
    };
    let options = options(url)?;
    if options.get_socket().is_some() || options.get_host().starts_with('/') {
        return Err(ConfigError(
            "Kafka Connect reaches PostgreSQL over TCP alone: set debezium.database_url to an address with a host"
                .to_owned(),
        ));
    }
    let user = options.get_username();
    let mut settings = Settings::from([
        setting("hostname", options.get_host().trim_matches(['[', ']'])),
        setting("port", &options.get_port().to_string()),
        setting("user", user),
        setting("dbname", options.get_database().unwrap_or(user)),
        password,
    ]);
    let mode = match options.get_ssl_mode() {
        PgSslMode::Disable => Some("disable"),
        PgSslMode::Require => Some("require"),
        PgSslMode::VerifyCa => Some("verify-ca"),
        PgSslMode::VerifyFull => Some("verify-full"),
        // Debezium's own choice.
        PgSslMode::Allow | PgSslMode::Prefer => None,
    };
    settings.extend(mode.map(|mode| setting("sslmode", mode)));
    Ok(settings)
}

fn options(url: &str) -> Result<PgConnectOptions, ConfigError> {
    url.parse()
        .map_err(|cause| ConfigError(format!("{} is no database address: {cause}", mask_userinfo(url))))
}

/// A setting that is not what we would register.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Difference {
    pub key: String,
    /// Null for a setting that we would not make.
    pub expected: Option<String>,
    /// Null for a setting that is missing.
    pub actual: Option<String>,
}

/// What differs between the settings we would register and those that run. Secrets show only that they differ.
pub fn differences(expected: &Settings, running: &Settings) -> Vec<Difference> {
    let keys: BTreeSet<&String> =
        expected.keys().chain(running.keys()).filter(|key| *key != "name").collect();
    keys.into_iter()
        .filter(|key| expected.get(*key) != running.get(*key))
        .map(|key| Difference {
            key: key.clone(),
            expected: expected.get(key).cloned(),
            actual: running.get(key).map(|value| shown(key, value)),
        })
        .collect()
}

/// A setting that may hold a secret shows its value only while that is a reference.
fn shown(key: &str, value: &str) -> String {
    let secret = ["password", "secret", "token", "jaas", "key.pem", "sslkey"].iter().any(|s| key.contains(s));
    if secret && !(value.starts_with("${") && value.ends_with('}')) {
        return "***".to_owned();
    }
    value.to_owned()
}

/// The settings that make Connect's producer write transactions, as `key=value`. Their control records stop every
/// consumer that uses our Kafka client.
pub fn transactional(running: &Settings) -> Vec<String> {
    let asks = |key: &str, value: &str| match key {
        "exactly.once.support" => value.eq_ignore_ascii_case("required"),
        "producer.override.transactional.id" => !value.is_empty(),
        _ => key.starts_with("transaction.boundary"),
    };
    running.iter().filter(|(key, value)| asks(key, value)).map(|(k, v)| format!("{k}={v}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::load_from;

    fn with(pairs: &[(&str, &str)]) -> Config {
        let environment = pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        load_from(None, &environment).expect("valid").config
    }

    #[test]
    fn headers_come_in_the_order_of_our_publisher() {
        let names: Vec<&str> = [header::ID].into_iter().chain(HEADERS.map(|(_, name)| name)).collect();
        assert!(names.is_sorted(), "{names:?}");
        let settings = settings(&with(&[])).expect("settings");
        assert_eq!(
            settings["transforms.outbox.table.fields.additional.placement"],
            "position:header:position,tenant_id:header:tenantId,traceparent:header:traceparent,\
             event_type:header:type,schema_version:header:version"
        );
        assert_eq!(settings["transforms.outbox.route.topic.replacement"], "events.${routedByValue}");
        assert_eq!(HEARTBEAT_TOPIC, format!("__debezium-heartbeat.{}", settings["topic.prefix"]));
    }

    #[test]
    fn the_database_is_the_configured_one_and_the_password_a_reference() {
        let settings_of = |url| settings(&with(&[("DATABASE_URL", url)]));
        let settings =
            settings_of("postgres://me:hunter2@db.example:6543/fleet?sslmode=verify-full").expect("settings");
        for (key, value) in [
            ("hostname", "db.example"),
            ("port", "6543"),
            ("user", "me"),
            ("dbname", "fleet"),
            ("sslmode", "verify-full"),
            ("password", "${env:HASHINSIGHT_DEBEZIUM_PASSWORD}"),
        ] {
            assert_eq!(settings[&format!("database.{key}")], value);
        }
        assert!(!format!("{settings:?}").contains("hunter2"));
        let socket = settings_of("postgres://me@localhost/x?host=/run/postgresql").expect_err("refused");
        assert!(socket.to_string().contains("debezium.database_url"), "{socket}");
        let other = with(&[
            ("DATABASE_URL", "postgres://me@inside/x"),
            ("HASHINSIGHT__DEBEZIUM__DATABASE_URL", "postgres://reader@outside/x"),
        ]);
        assert_eq!(super::settings(&other).expect("settings")["database.hostname"], "outside");
        assert_eq!(login(&other).expect("a login").as_deref(), Some("reader"));
    }

    #[test]
    fn what_differs_is_named_and_a_secret_is_not() {
        let expected = settings(&with(&[])).expect("settings");
        let mut running = expected.clone();
        running.insert("name".to_owned(), NAME.to_owned());
        assert_eq!(differences(&expected, &running), []);
        running.insert("database.password".to_owned(), "hunter2".to_owned());
        running.insert("poll.interval.ms".to_owned(), "5".to_owned());
        running.remove("transforms");
        let found = differences(&expected, &running);
        let named: Vec<_> = found.iter().map(|d| (d.key.as_str(), d.actual.as_deref())).collect();
        let wanted =
            [("database.password", Some("***")), ("poll.interval.ms", Some("5")), ("transforms", None)];
        assert_eq!(named, wanted);
    }

    #[test]
    fn transactions_are_seen() {
        let running = |key: &str, value: &str| Settings::from([(key.to_owned(), value.to_owned())]);
        assert_eq!(transactional(&settings(&with(&[])).expect("settings")), [""; 0]);
        assert_eq!(transactional(&running("exactly.once.support", "requested")), [""; 0]);
        for (key, value) in [
            ("exactly.once.support", "required"),
            ("producer.override.transactional.id", "x"),
            ("transaction.boundary", "poll"),
        ] {
            assert_eq!(transactional(&running(key, value)), [format!("{key}={value}")]);
        }
    }
}
