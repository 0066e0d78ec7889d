//! Owns the configuration: defaults, file, environment, in that order.
//! Promises that a value that starts the process was checked, and that a secret never prints.
//! Called by `main` once; every role receives the finished [`Config`].

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use config::{File, FileFormat, Map, Source, Value, ValueKind};
use rust_decimal::Decimal;
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;

/// The documented defaults, embedded in the binary.
pub const DEFAULTS: &str = include_str!("../config/default.toml");

/// Names that operators know from elsewhere, and the key each one sets. Each may also be given as
/// `NAME_FILE`, the path of a file that holds the value.
const WELL_KNOWN: [(&str, &str); 4] = [
    ("DATABASE_URL", "database.url"),
    ("REDIS_URL", "redis.url"),
    ("KAFKA_BROKERS", "kafka.brokers"),
    ("JWT_SECRET", "auth.jwt_secret"),
];

/// A configuration that cannot be used: which key, which value, what is allowed.
#[derive(Debug, thiserror::Error)]
#[error("configuration: {0}")]
pub struct ConfigError(pub String);

/// The effective configuration of this process.
#[derive(Debug, Clone, Deserialize)]
pub struct Config {
    pub database: DatabaseConfig,
    pub redis: RedisConfig,
    pub kafka: KafkaConfig,
    pub event_log: EventLogConfig,
    pub outbox: OutboxConfig,
    pub publisher: PublisherConfig,
    pub consumer: ConsumerConfig,
    pub group: GroupConfig,
    pub cache: CacheConfig,
    pub auth: AuthConfig,
    pub server: ServerConfig,
    pub economics: EconomicsConfig,
    pub log: LogConfig,
    pub shutdown: ShutdownConfig,
}

#[derive(Debug, Clone, Deserialize)]
pub struct DatabaseConfig {
    pub url: SecretString,
    pub max_connections: u32,
    pub acquire_timeout_ms: u64,
    pub statement_timeout_ms: u64,
}

#[derive(Debug, Clone, Deserialize)]
pub struct RedisConfig {
    pub url: SecretString,
    pub command_timeout_ms: u64,
}

impl RedisConfig {
    /// The address, when Redis is used at all.
    pub fn url(&self) -> Option<&str> {
        Some(self.url.expose_secret()).filter(|url| !url.is_empty())
    }
}

#[derive(Debug, Clone, Deserialize)]
pub struct KafkaConfig {
    pub brokers: String,
    pub topic_prefix: String,
    pub compression: Compression,
    pub partitions: i32,
    pub replication_factor: i16,
    pub connect_timeout_ms: u64,
    pub produce_timeout_ms: u64,
    pub metadata_timeout_ms: u64,
}

impl KafkaConfig {
    /// The brokers as `host:port`, empty when Kafka is not configured.
    pub fn broker_list(&self) -> Vec<String> {
        self.brokers.split(',').map(str::trim).filter(|b| !b.is_empty()).map(str::to_owned).collect()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    None,
    Snappy,
    Lz4,
    Gzip,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventLogKind {
    Kafka,
    Postgres,
}

#[derive(Debug, Clone, Deserialize)]
pub struct EventLogConfig {
    kind: String,
    pub retention_days: u32,
}

#[derive(Debug, Clone, Deserialize)]
pub struct OutboxConfig {
    pub partitions_ahead_days: u32,
}

#[derive(Debug, Clone, Deserialize)]
pub struct PublisherConfig {
    pub poll_interval_ms: u64,
    pub batch_size: u32,
}

#[derive(Debug, Clone, Deserialize)]
pub struct ConsumerConfig {
    pub batch_size: u32,
    pub fetch_max_bytes: u32,
    pub fetch_max_wait_ms: u64,
    pub attempts: u32,
    pub retry_backoff_ms: u64,
    pub statement_timeout_ms: u64,
    pub lock_timeout_ms: u64,
}

#[derive(Debug, Clone, Deserialize)]
pub struct GroupConfig {
    pub renew_interval_ms: u64,
}

#[derive(Debug, Clone, Deserialize)]
pub struct CacheConfig {
    pub portfolio_fresh_seconds: u64,
    pub memory_max_entries: u64,
}

#[derive(Debug, Clone, Deserialize)]
pub struct AuthConfig {
    pub jwt_secret: SecretString,
    issuer: String,
    audience: String,
}

impl AuthConfig {
    /// The required `iss`, if one is configured.
    pub fn issuer(&self) -> Option<&str> {
        Some(self.issuer.as_str()).filter(|s| !s.is_empty())
    }

    /// The required `aud`, if one is configured.
    pub fn audience(&self) -> Option<&str> {
        Some(self.audience.as_str()).filter(|s| !s.is_empty())
    }
}

#[derive(Debug, Clone, Deserialize)]
pub struct ServerConfig {
    pub bind: SocketAddr,
    pub request_timeout_ms: u64,
    pub header_timeout_ms: u64,
    pub max_body_bytes: usize,
    pub max_connections: usize,
    pub max_in_flight: usize,
}

#[derive(Debug, Clone, Deserialize)]
pub struct EconomicsConfig {
    pub pool_fee: Decimal,
    pub uptime: Decimal,
    pub pue: Decimal,
    pub tariff_usd_kwh: Decimal,
    pub degradation_per_month: Decimal,
    pub price_drift_per_month: Decimal,
    pub difficulty_drift_per_month: Decimal,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    Json,
}

#[derive(Debug, Clone, Deserialize)]
pub struct LogConfig {
    format: String,
}

impl LogConfig {
    /// The configured format; `None` leaves the choice to the terminal.
    pub fn format(&self) -> Option<LogFormat> {
        match self.format.as_str() {
            "text" => Some(LogFormat::Text),
            "json" => Some(LogFormat::Json),
            _ => None,
        }
    }
}

#[derive(Debug, Clone, Deserialize)]
pub struct ShutdownConfig {
    pub drain_seconds: u64,
}

impl ShutdownConfig {
    /// How long started work may finish after the first signal.
    pub fn drain(&self) -> Duration {
        Duration::from_secs(self.drain_seconds)
    }
}

/// One line of `hashinsight config`: a key, its value (masked if secret) and where it came from.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Origin {
    pub key: String,
    pub value: String,
    pub origin: String,
}

/// The configuration with the origin of each value.
#[derive(Debug, Clone)]
pub struct Loaded {
    pub config: Config,
    pub origins: Vec<Origin>,
}

/// Loads the configuration of this process: `file`, or else the file of `HASHINSIGHT_CONFIG`.
pub fn load(file: Option<&Path>) -> Result<Loaded, ConfigError> {
    let environment: BTreeMap<String, String> = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    load_from(file, &environment)
}

/// As [`load`], from a given environment: what the tests call.
pub fn load_from(file: Option<&Path>, environment: &BTreeMap<String, String>) -> Result<Loaded, ConfigError> {
    let file =
        file.map(Path::to_path_buf).or_else(|| environment.get("HASHINSIGHT_CONFIG").map(PathBuf::from));
    let mut builder = config::Config::builder().add_source(File::from_str(DEFAULTS, FileFormat::Toml));
    if let Some(path) = &file {
        let text = std::fs::read_to_string(path).map_err(|e| {
            ConfigError(format!(
                "cannot read the file of --config or HASHINSIGHT_CONFIG {}: {e}",
                path.display()
            ))
        })?;
        let mut values = config::Config::builder()
            .add_source(File::from_str(&text, FileFormat::Toml))
            .build()
            .map_err(|e| ConfigError(format!("{}: {e}", path.display())))?
            .cache
            .into_table()
            .map_err(|e| ConfigError(e.to_string()))?;
        name_origin(&mut values, &path.display().to_string());
        builder = builder.add_source(Layer(values));
    }
    let built = builder
        .add_source(Layer(sectioned(environment)))
        .add_source(Layer(well_known(environment)?))
        .build()
        .map_err(|e| ConfigError(one_line(&e.to_string())))?;

    let mut leaves = BTreeMap::new();
    flatten("", &built.cache, &mut leaves);
    refuse_unknown(&leaves)?;
    let config: Config = built.try_deserialize().map_err(|e| ConfigError(one_line(&e.to_string())))?;
    config.check()?;
    let origins = leaves
        .into_iter()
        .map(|(key, value)| Origin {
            value: masked(&key, &value.to_string()),
            origin: value.origin().unwrap_or("default").to_owned(),
            key,
        })
        .collect();
    Ok(Loaded { config, origins })
}

/// A secret that is made once and kept in the data folder, readable by its owner alone.
pub fn kept_secret(name: &str) -> Result<SecretString, ConfigError> {
    use std::io::Write;
    use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};

    let base = std::env::var_os("XDG_DATA_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".local/share")))
        .unwrap_or_else(std::env::temp_dir);
    let folder = base.join("hashinsight");
    let path = folder.join(name);
    let failed = |e: std::io::Error| ConfigError(format!("cannot keep a secret in {}: {e}", path.display()));
    if let Ok(kept) = std::fs::read_to_string(&path)
        && kept.trim().len() >= 32
    {
        return Ok(kept.trim().to_owned().into());
    }
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder).map_err(failed)?;
    let secret = format!("{}{}", uuid::Uuid::new_v4().simple(), uuid::Uuid::new_v4().simple());
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&path)
        .map_err(failed)?;
    file.write_all(secret.as_bytes()).map_err(failed)?;
    Ok(secret.into())
}

impl Config {
    /// The log this process uses. `standalone` falls back to PostgreSQL where no broker is named;
    /// the other roles refuse.
    pub fn event_log_kind(&self, standalone: bool) -> Result<EventLogKind, ConfigError> {
        let brokers = !self.kafka.broker_list().is_empty();
        match self.event_log.kind.as_str() {
            "postgres" => Ok(EventLogKind::Postgres),
            "" if !brokers && standalone => Ok(EventLogKind::Postgres),
            _ if brokers => Ok(EventLogKind::Kafka),
            _ => Err(ConfigError(
                "kafka.brokers is not set: set KAFKA_BROKERS=host:port, or event_log.kind = \"postgres\" for \
                 the log in PostgreSQL"
                    .to_owned(),
            )),
        }
    }

    /// The database address, or what to do about its absence.
    pub fn database_url(&self) -> Result<&str, ConfigError> {
        match self.database.url.expose_secret() {
            "" => Err(ConfigError(
                "database.url is not set: set DATABASE_URL=postgres://user:password@host:port/database"
                    .to_owned(),
            )),
            url => Ok(url),
        }
    }

    fn check(&self) -> Result<(), ConfigError> {
        one_of("event_log.kind", &self.event_log.kind, &["", "kafka", "postgres"])?;
        one_of("log.format", &self.log.format, &["", "text", "json"])?;
        let url = self.database.url.expose_secret();
        if !url.is_empty() && !url.starts_with("postgres://") && !url.starts_with("postgresql://") {
            return Err(ConfigError(
                "database.url must start with postgres:// or postgresql:// (the value is not shown)"
                    .to_owned(),
            ));
        }
        for broker in self.kafka.broker_list() {
            let port = broker.rsplit_once(':').filter(|(host, _)| !host.is_empty()).map(|(_, port)| port);
            if port.is_none_or(|port| port.parse::<u16>().is_err()) {
                return Err(bad("kafka.brokers", &broker, "host:port, several separated by commas"));
            }
        }
        let prefix = &self.kafka.topic_prefix;
        let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        if prefix.is_empty() || prefix.len() > 200 || !prefix.chars().all(legal) {
            return Err(bad("kafka.topic_prefix", prefix, "1 to 200 of letters, digits, '.', '_', '-'"));
        }
        let secret = self.auth.jwt_secret.expose_secret().len();
        if secret != 0 && secret < 32 {
            return Err(ConfigError(format!(
                "auth.jwt_secret has {secret} bytes: at least 32 are required (the value is not shown)"
            )));
        }
        within("database.max_connections", self.database.max_connections, 2, 1_000)?;
        within("database.acquire_timeout_ms", self.database.acquire_timeout_ms, 10, 600_000)?;
        within("database.statement_timeout_ms", self.database.statement_timeout_ms, 10, 3_600_000)?;
        within("redis.command_timeout_ms", self.redis.command_timeout_ms, 1, 60_000)?;
        within("kafka.partitions", self.kafka.partitions, 1, 10_000)?;
        within("kafka.replication_factor", self.kafka.replication_factor, 1, 100)?;
        within("kafka.connect_timeout_ms", self.kafka.connect_timeout_ms, 10, 600_000)?;
        within("kafka.produce_timeout_ms", self.kafka.produce_timeout_ms, 10, 600_000)?;
        within("kafka.metadata_timeout_ms", self.kafka.metadata_timeout_ms, 10, 600_000)?;
        within("event_log.retention_days", self.event_log.retention_days, 1, 3_650)?;
        within("outbox.partitions_ahead_days", self.outbox.partitions_ahead_days, 1, 60)?;
        within("publisher.poll_interval_ms", self.publisher.poll_interval_ms, 1, 3_600_000)?;
        within("publisher.batch_size", self.publisher.batch_size, 1, 100_000)?;
        within("consumer.batch_size", self.consumer.batch_size, 1, 10_000)?;
        within("consumer.fetch_max_bytes", self.consumer.fetch_max_bytes, 1_024, 52_428_800)?;
        within("consumer.fetch_max_wait_ms", self.consumer.fetch_max_wait_ms, 1, 30_000)?;
        within("consumer.attempts", self.consumer.attempts, 2, 100)?;
        within("consumer.retry_backoff_ms", self.consumer.retry_backoff_ms, 1, 3_600_000)?;
        within("consumer.statement_timeout_ms", self.consumer.statement_timeout_ms, 10, 600_000)?;
        within("consumer.lock_timeout_ms", self.consumer.lock_timeout_ms, 1, 600_000)?;
        within("group.renew_interval_ms", self.group.renew_interval_ms, 10, 60_000)?;
        within("cache.portfolio_fresh_seconds", self.cache.portfolio_fresh_seconds, 1, 86_400)?;
        within("cache.memory_max_entries", self.cache.memory_max_entries, 1, 100_000_000)?;
        within("server.request_timeout_ms", self.server.request_timeout_ms, 100, 600_000)?;
        within("server.header_timeout_ms", self.server.header_timeout_ms, 100, 600_000)?;
        within("server.max_body_bytes", self.server.max_body_bytes, 1_024, 67_108_864)?;
        within("server.max_connections", self.server.max_connections, 1, 1_000_000)?;
        within("server.max_in_flight", self.server.max_in_flight, 1, 1_000_000)?;
        within("shutdown.drain_seconds", self.shutdown.drain_seconds, 0, 3_600)?;
        let (zero, one) = (Decimal::ZERO, Decimal::ONE);
        let below_one = Decimal::new(9_999, 4);
        within("economics.pool_fee", self.economics.pool_fee, zero, below_one)?;
        within("economics.uptime", self.economics.uptime, zero, one)?;
        within("economics.pue", self.economics.pue, one, Decimal::from(5))?;
        within("economics.tariff_usd_kwh", self.economics.tariff_usd_kwh, zero, Decimal::from(10))?;
        within("economics.degradation_per_month", self.economics.degradation_per_month, zero, below_one)?;
        within("economics.price_drift_per_month", self.economics.price_drift_per_month, -below_one, one)?;
        within(
            "economics.difficulty_drift_per_month",
            self.economics.difficulty_drift_per_month,
            -below_one,
            one,
        )
    }
}

/// One layer of values that already know where they came from.
#[derive(Debug, Clone)]
struct Layer(Map<String, Value>);

impl Source for Layer {
    fn clone_into_box(&self) -> Box<dyn Source + Send + Sync> {
        Box::new(self.clone())
    }

    fn collect(&self) -> Result<Map<String, Value>, config::ConfigError> {
        Ok(self.0.clone())
    }
}

/// `HASHINSIGHT__SECTION__KEY` -> section.key. A name with another shape becomes an unknown key.
fn sectioned(environment: &BTreeMap<String, String>) -> Map<String, Value> {
    let mut layer: Map<String, Value> = Map::new();
    for (name, value) in environment {
        let Some(path) = name.strip_prefix("HASHINSIGHT__") else { continue };
        let path = path.to_ascii_lowercase();
        let leaf = Value::new(Some(name), ValueKind::String(value.clone()));
        match path.split_once("__") {
            Some((section, key)) => {
                let table = layer
                    .entry(section.to_owned())
                    .or_insert_with(|| Value::new(Some(name), ValueKind::Table(Map::new())));
                if let ValueKind::Table(table) = &mut table.kind {
                    table.insert(key.replace("__", "."), leaf);
                }
            }
            None => {
                layer.insert(path, leaf);
            }
        }
    }
    layer
}

fn well_known(environment: &BTreeMap<String, String>) -> Result<Map<String, Value>, ConfigError> {
    let mut layer: Map<String, Value> = Map::new();
    for (name, key) in WELL_KNOWN {
        let file_name = format!("{name}_FILE");
        let (origin, value) = match (environment.get(name), environment.get(&file_name)) {
            (Some(value), _) if !value.is_empty() => (name.to_owned(), value.clone()),
            (_, Some(path)) if !path.is_empty() => {
                let text = std::fs::read_to_string(path)
                    .map_err(|e| ConfigError(format!("{file_name}: cannot read {path}: {e}")))?;
                (file_name, text.trim_end().to_owned())
            }
            _ => continue,
        };
        let Some((section, leaf)) = key.split_once('.') else { continue };
        let leaf_value = Value::new(Some(&origin), ValueKind::String(value));
        let table =
            layer.entry(section.to_owned()).or_insert_with(|| Value::new(None, ValueKind::Table(Map::new())));
        if let ValueKind::Table(table) = &mut table.kind {
            table.insert(leaf.to_owned(), leaf_value);
        }
    }
    Ok(layer)
}

fn name_origin(table: &mut Map<String, Value>, origin: &str) {
    for value in table.values_mut() {
        match &mut value.kind {
            ValueKind::Table(inner) => name_origin(inner, origin),
            kind => *value = Value::new(Some(&origin.to_owned()), kind.clone()),
        }
    }
}

fn flatten(prefix: &str, value: &Value, leaves: &mut BTreeMap<String, Value>) {
    match &value.kind {
        ValueKind::Table(table) => {
            for (key, inner) in table {
                let path = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
                flatten(&path, inner, leaves);
            }
        }
        _ => {
            leaves.insert(prefix.to_owned(), value.clone());
        }
    }
}

/// The defaults name every key, so a key they lack is a mistake: usually a typing error.
fn refuse_unknown(leaves: &BTreeMap<String, Value>) -> Result<(), ConfigError> {
    let defaults = config::Config::builder()
        .add_source(File::from_str(DEFAULTS, FileFormat::Toml))
        .build()
        .map_err(|e| ConfigError(e.to_string()))?;
    let mut known = BTreeMap::new();
    flatten("", &defaults.cache, &mut known);
    for (key, value) in leaves {
        if known.contains_key(key) {
            continue;
        }
        let section = key.split_once('.').map_or(key.as_str(), |(section, _)| section);
        let of_section: Vec<&str> = known
            .keys()
            .filter_map(|k| k.split_once('.'))
            .filter(|(s, _)| *s == section)
            .map(|(_, k)| k)
            .collect();
        let sections: BTreeSet<&str> = known.keys().filter_map(|k| Some(k.split_once('.')?.0)).collect();
        let allowed = if of_section.is_empty() {
            format!("sections are {}", sections.into_iter().collect::<Vec<_>>().join(", "))
        } else {
            format!("keys of {section} are {}", of_section.join(", "))
        };
        let origin = value.origin().unwrap_or("file");
        return Err(ConfigError(format!("unknown key {key} (from {origin}): {allowed}")));
    }
    Ok(())
}

fn bad(key: &str, value: impl fmt::Display, allowed: &str) -> ConfigError {
    ConfigError(format!("{key} = {value:?} is not allowed: {allowed}", value = value.to_string()))
}

fn one_of(key: &str, value: &str, allowed: &[&str]) -> Result<(), ConfigError> {
    if allowed.contains(&value) {
        return Ok(());
    }
    let named: Vec<&str> = allowed.iter().copied().filter(|a| !a.is_empty()).collect();
    Err(bad(key, value, &named.join(" | ")))
}

fn within<T: PartialOrd + fmt::Display>(key: &str, value: T, low: T, high: T) -> Result<(), ConfigError> {
    if value >= low && value <= high {
        return Ok(());
    }
    Err(bad(key, value, &format!("{low} to {high}")))
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// A secret shows only whether it is set; an address shows no user information.
fn masked(key: &str, value: &str) -> String {
    match key {
        "auth.jwt_secret" if !value.is_empty() => "***".to_owned(),
        "database.url" | "redis.url" => mask_userinfo(value),
        _ => value.to_owned(),
    }
}

/// Replaces `user:password@` and a `password=` parameter of an address.
pub fn mask_userinfo(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    let (authority_and_path, query) = rest.split_once('?').map_or((rest, None), |(a, q)| (a, Some(q)));
    let shown = authority_and_path.rsplit_once('@').map_or_else(
        || authority_and_path.to_owned(),
        |(user, host)| format!("{}:***@{host}", user.split(':').next().unwrap_or_default()),
    );
    match query {
        Some(query) if query.contains("password") => format!("{scheme}://{shown}?***"),
        Some(query) => format!("{scheme}://{shown}?{query}"),
        None => format!("{scheme}://{shown}"),
    }
}

#[cfg(test)]
mod tests {
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
    fn secrets_do_not_print() {
        let loaded = from_env(&[
            ("JWT_SECRET", "0123456789abcdef0123456789abcdef"),
            ("DATABASE_URL", "postgres://u:hunter2@h/d?password=hunter2"),
            ("REDIS_URL", "redis://:hunter2@h:1"),
        ])
        .expect("valid");
        let printed = format!("{:?} {:?}", loaded.config, loaded.origins);
        assert!(!printed.contains("hunter2") && !printed.contains("0123456789abcdef"), "{printed}");
    }
}
