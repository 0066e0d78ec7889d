//! Owns the configuration: defaults, file, environment, in that order.
//! Promises that a value that starts the process was checked, and that a secret never prints.
//! Called by `main` once; every role receives the finished [`Config`].

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use rust_decimal::Decimal;
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;

mod kafka;
mod load;

pub use kafka::SaslMechanism;
pub use load::{Loaded, Origin, executable, kept_secret, load, load_from, mask_userinfo};

/// The documented defaults, embedded in the binary.
pub const DEFAULTS: &str = include_str!("../config/default.toml");

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
    pub miner_telemetry: MinerTelemetryConfig,
    pub portfolio_history: RetentionConfig,
    pub anomalies: RetentionConfig,
    pub publisher: PublisherConfig,
    pub wal: WalConfig,
    pub debezium: DebeziumConfig,
    pub consumer: ConsumerConfig,
    pub group: GroupConfig,
    pub jobs: JobsConfig,
    pub webhooks: WebhooksConfig,
    pub cache: CacheConfig,
    pub auth: AuthConfig,
    pub server: ServerConfig,
    pub metrics: MetricsConfig,
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
    connect_url: String,
    pub topic_prefix: String,
    group_prefix: String,
    pub tls: bool,
    pub tls_ca_file: String,
    pub tls_cert_file: String,
    pub tls_key_file: String,
    sasl_mechanism: String,
    pub sasl_username: String,
    pub sasl_password: SecretString,
    pub compression: Compression,
    pub partitions: i32,
    pub replication_factor: i16,
    pub connect_timeout_ms: u64,
    pub produce_timeout_ms: u64,
    pub metadata_timeout_ms: u64,
}

impl KafkaConfig {
    /// The address of Kafka Connect, when there is one.
    pub fn connect_url(&self) -> Option<&str> {
        Some(self.connect_url.as_str()).filter(|url| !url.is_empty())
    }

    /// The name in Kafka of a consumer group.
    pub fn group_id(&self, consumer_name: &str) -> String {
        format!("{}{consumer_name}", self.group_prefix)
    }

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
    pub retention_days: u32,
    pub idempotency_retention_days: u32,
}

#[derive(Debug, Clone, Deserialize)]
pub struct MinerTelemetryConfig {
    pub retention_days: u32,
    pub rollup_retention_days: u32,
    pub late_days: u32,
    pub partitions_ahead_days: u32,
}

/// What is kept, and for how long.
#[derive(Debug, Clone, Deserialize)]
pub struct RetentionConfig {
    pub retention_days: u32,
}

/// Where the publisher reads the outbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum EventSource {
    /// From the table.
    Poll,
    /// From the write-ahead log, through a replication slot.
    Wal,
    /// Not at all: the Debezium connector does, and the cursor follows it.
    Debezium,
}

#[derive(Debug, Clone, Deserialize)]
pub struct PublisherConfig {
    pub source: EventSource,
    pub poll_interval_ms: u64,
    pub batch_size: u32,
    pub lane_patience_ms: u64,
}

#[derive(Debug, Clone, Deserialize)]
pub struct WalConfig {
    database_url: SecretString,
    pub slot: String,
    pub status_interval_ms: u64,
    pub silence_timeout_ms: u64,
    pub retained_alarm_mb: u64,
}

#[derive(Debug, Clone, Deserialize)]
pub struct DebeziumConfig {
    pub slot: String,
    pub database_url: SecretString,
    /// A reference such as `${env:NAME}`: what it stands for is known to Connect alone.
    pub password: String,
}

#[derive(Debug, Clone, Deserialize)]
pub struct ConsumerConfig {
    pub batch_size: u32,
    pub fetch_max_bytes: u32,
    pub fetch_max_wait_ms: u64,
    pub attempts: u32,
    pub retry_backoff_ms: u64,
    pub transient_patience_ms: u64,
    pub statement_timeout_ms: u64,
    pub lock_timeout_ms: u64,
    pub owner_locks: bool,
    pub owner_lock_wait_ms: u64,
    pub inbox_retention_days: u32,
}

#[derive(Debug, Clone, Deserialize)]
pub struct GroupConfig {
    protocol: String,
    pub renew_interval_ms: u64,
}

/// How the members of a group share its partitions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GroupProtocol {
    /// Kafka's coordinator deals them.
    Kafka,
    /// The members deal them by leases in PostgreSQL.
    Lease,
}

impl GroupConfig {
    /// The configured protocol; `None` leaves the choice to what the log can do.
    pub fn protocol(&self) -> Option<GroupProtocol> {
        match self.protocol.as_str() {
            "kafka" => Some(GroupProtocol::Kafka),
            "lease" => Some(GroupProtocol::Lease),
            _ => None,
        }
    }
}

#[derive(Debug, Clone, Deserialize)]
pub struct JobsConfig {
    pub poll_ms: u64,
    pub lease_ms: u64,
}

#[derive(Debug, Clone, Deserialize)]
pub struct WebhooksConfig {
    pub key: SecretString,
    pub allowed_hosts: String,
    pub timeout_ms: u64,
    pub poll_ms: u64,
    pub in_flight: usize,
    pub in_flight_of_tenant: usize,
    pub in_flight_of_endpoint: usize,
}

impl WebhooksConfig {
    fn check(&self) -> Result<(), ConfigError> {
        long_enough("webhooks.key", &self.key)?;
        within("webhooks.timeout_ms", self.timeout_ms, 100, 60_000)?;
        within("webhooks.poll_ms", self.poll_ms, 10, 60_000)?;
        within("webhooks.in_flight", self.in_flight, 1, 10_000)?;
        within("webhooks.in_flight_of_tenant", self.in_flight_of_tenant, 1, self.in_flight)?;
        within("webhooks.in_flight_of_endpoint", self.in_flight_of_endpoint, 1, self.in_flight_of_tenant)
    }
}

#[derive(Debug, Clone, Deserialize)]
pub struct CacheConfig {
    pub portfolio_fresh_seconds: u64,
    pub schedule_fresh_seconds: u64,
    pub forecast_fresh_seconds: u64,
    pub load_wait_ms: u64,
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
    pub max_upload_bytes: usize,
    pub max_connections: usize,
    pub max_in_flight: usize,
}

#[derive(Debug, Clone, Deserialize)]
pub struct MetricsConfig {
    bind: String,
}

impl MetricsConfig {
    /// Where metrics are served, if anywhere.
    pub fn bind(&self) -> Option<SocketAddr> {
        self.bind.parse().ok()
    }
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

    /// The address that replication uses: a login with the attribute REPLICATION.
    pub fn wal_database_url(&self) -> Result<&str, ConfigError> {
        match self.wal.database_url.expose_secret() {
            "" => self.database_url(),
            url => Ok(url),
        }
    }

    /// What is kept for the sake of something else outlives it.
    fn check_retention(&self) -> Result<(), ConfigError> {
        let outbox = self.outbox.retention_days;
        if matches!(self.event_log_kind(true), Ok(EventLogKind::Postgres)) {
            let (least, why) = (self.event_log.retention_days + 7, "event_log.retention_days + 7");
            at_least("outbox.retention_days", outbox, least, why)?;
        }
        let keys = self.outbox.idempotency_retention_days;
        at_least("outbox.idempotency_retention_days", keys, outbox + 1, "outbox.retention_days + 1")?;
        let inbox = self.consumer.inbox_retention_days;
        at_least("consumer.inbox_retention_days", inbox, outbox + 24, "outbox.retention_days - 7 + 31")
    }

    /// The database as Kafka Connect reaches it; `None` when no address is configured at all.
    pub fn debezium_database_url(&self) -> Option<&str> {
        let urls = [&self.debezium.database_url, &self.database.url];
        urls.into_iter().map(ExposeSecret::expose_secret).find(|url| !url.is_empty())
    }

    fn check(&self) -> Result<(), ConfigError> {
        one_of("event_log.kind", &self.event_log.kind, &["", "kafka", "postgres"])?;
        one_of("group.protocol", &self.group.protocol, &["", "kafka", "lease"])?;
        one_of("log.format", &self.log.format, &["", "text", "json"])?;
        if !self.metrics.bind.is_empty() && self.metrics.bind().is_none() {
            return Err(bad("metrics.bind", &self.metrics.bind, "address:port such as 127.0.0.1:9100"));
        }
        database_address("database.url", &self.database.url)?;
        database_address("wal.database_url", &self.wal.database_url)?;
        let slot = &self.wal.slot;
        let legal = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        if slot.is_empty() || slot.len() > 63 || !slot.chars().all(legal) {
            return Err(bad("wal.slot", slot, "1 to 63 of lower-case letters, digits and '_'"));
        }
        let (status, silence) = (self.wal.status_interval_ms, self.wal.silence_timeout_ms);
        within("wal.status_interval_ms", status, 10, 10_000)?;
        if silence < 2 * status || silence > 600_000 {
            let allowed = format!("{} to 600000, at least twice wal.status_interval_ms", 2 * status);
            return Err(bad("wal.silence_timeout_ms", silence, &allowed));
        }
        within("wal.retained_alarm_mb", self.wal.retained_alarm_mb, 1, 1_000_000_000)?;
        database_address("debezium.database_url", &self.debezium.database_url)?;
        self.kafka.connect_url().map_or(Ok(()), check_connect_url)?;
        check_debezium(&self.debezium)?;
        for broker in self.kafka.broker_list() {
            let port = broker.rsplit_once(':').filter(|(host, _)| !host.is_empty()).map(|(_, port)| port);
            if port.is_none_or(|port| port.parse::<u16>().is_err()) {
                return Err(bad("kafka.brokers", &broker, "host:port, several separated by commas"));
            }
        }
        self.kafka.check_access()?;
        let prefix = &self.kafka.topic_prefix;
        let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        if prefix.is_empty() || prefix.len() > 200 || !prefix.chars().all(legal) {
            return Err(bad("kafka.topic_prefix", prefix, "1 to 200 of letters, digits, '.', '_', '-'"));
        }
        let prefix = &self.kafka.group_prefix;
        if prefix.len() > 200 || !prefix.chars().all(legal) {
            return Err(bad("kafka.group_prefix", prefix, "up to 200 of letters, digits, '.', '_', '-'"));
        }
        long_enough("auth.jwt_secret", &self.auth.jwt_secret)?;
        self.webhooks.check()?;
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
        within("outbox.retention_days", self.outbox.retention_days, 8, 3_650)?;
        let points = &self.miner_telemetry;
        within("miner_telemetry.retention_days", points.retention_days, 2, 3_650)?;
        within("miner_telemetry.rollup_retention_days", points.rollup_retention_days, 2, 36_500)?;
        within("miner_telemetry.late_days", points.late_days, 1, points.retention_days - 1)?;
        within("miner_telemetry.partitions_ahead_days", points.partitions_ahead_days, 1, 60)?;
        within("portfolio_history.retention_days", self.portfolio_history.retention_days, 1, 36_500)?;
        within("anomalies.retention_days", self.anomalies.retention_days, 1, 36_500)?;
        within("outbox.idempotency_retention_days", self.outbox.idempotency_retention_days, 9, 3_650)?;
        within("publisher.poll_interval_ms", self.publisher.poll_interval_ms, 1, 3_600_000)?;
        within("publisher.batch_size", self.publisher.batch_size, 1, 100_000)?;
        within("publisher.lane_patience_ms", self.publisher.lane_patience_ms, 10, 3_600_000)?;
        within("consumer.batch_size", self.consumer.batch_size, 1, 10_000)?;
        within("consumer.fetch_max_bytes", self.consumer.fetch_max_bytes, 1_024, 52_428_800)?;
        within("consumer.fetch_max_wait_ms", self.consumer.fetch_max_wait_ms, 1, 30_000)?;
        within("consumer.attempts", self.consumer.attempts, 2, 100)?;
        within("consumer.retry_backoff_ms", self.consumer.retry_backoff_ms, 1, 3_600_000)?;
        within("consumer.transient_patience_ms", self.consumer.transient_patience_ms, 100, 86_400_000)?;
        within("consumer.statement_timeout_ms", self.consumer.statement_timeout_ms, 10, 600_000)?;
        within("consumer.lock_timeout_ms", self.consumer.lock_timeout_ms, 1, 600_000)?;
        within("consumer.owner_lock_wait_ms", self.consumer.owner_lock_wait_ms, 1, 10_000)?;
        // Less, and the API would call an event pending that was applied and forgotten.
        within("consumer.inbox_retention_days", self.consumer.inbox_retention_days, 38, 3_650)?;
        self.check_retention()?;
        within("group.renew_interval_ms", self.group.renew_interval_ms, 10, 60_000)?;
        within("jobs.poll_ms", self.jobs.poll_ms, 10, 600_000)?;
        within("jobs.lease_ms", self.jobs.lease_ms, 1_000, 3_600_000)?;
        within("cache.portfolio_fresh_seconds", self.cache.portfolio_fresh_seconds, 1, 86_400)?;
        within("cache.forecast_fresh_seconds", self.cache.forecast_fresh_seconds, 1, 86_400)?;
        within("cache.load_wait_ms", self.cache.load_wait_ms, 1, 10_000)?;
        within("cache.schedule_fresh_seconds", self.cache.schedule_fresh_seconds, 1, 86_400)?;
        within("cache.memory_max_entries", self.cache.memory_max_entries, 1, 100_000_000)?;
        within("server.request_timeout_ms", self.server.request_timeout_ms, 100, 600_000)?;
        within("server.header_timeout_ms", self.server.header_timeout_ms, 100, 600_000)?;
        within("server.max_body_bytes", self.server.max_body_bytes, 1_024, 67_108_864)?;
        within("server.max_upload_bytes", self.server.max_upload_bytes, 1_024, 67_108_864)?;
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

fn database_address(key: &str, url: &SecretString) -> Result<(), ConfigError> {
    let url = url.expose_secret();
    if url.is_empty() || url.starts_with("postgres://") || url.starts_with("postgresql://") {
        return Ok(());
    }
    Err(ConfigError(format!("{key} must start with postgres:// or postgresql:// (the value is not shown)")))
}

/// A secret that is set has at least 32 bytes.
fn long_enough(key: &str, secret: &SecretString) -> Result<(), ConfigError> {
    match secret.expose_secret().len() {
        0 | 32.. => Ok(()),
        bytes => Err(ConfigError(format!(
            "{key} has {bytes} bytes: at least 32 are required (the value is not shown)"
        ))),
    }
}

fn check_connect_url(url: &str) -> Result<(), ConfigError> {
    let host = url.strip_prefix("http://").map(|rest| rest.split('/').next().unwrap_or_default());
    if host.is_none_or(|host| host.is_empty() || host.contains(['@', '?', '#'])) {
        return Err(bad("kafka.connect_url", mask_userinfo(url), "http://host:port"));
    }
    Ok(())
}

fn check_debezium(config: &DebeziumConfig) -> Result<(), ConfigError> {
    let legal = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    if !(1..=63).contains(&config.slot.len()) || !config.slot.chars().all(legal) {
        return Err(bad("debezium.slot", &config.slot, "1 to 63 of lower-case letters, digits and '_'"));
    }
    let reference = config.password.strip_prefix("${").and_then(|rest| rest.strip_suffix('}'));
    if reference.is_none_or(|name| !name.contains(':')) {
        return Err(ConfigError(
            "debezium.password must be a reference that Kafka Connect resolves, such as \
             ${env:HASHINSIGHT_DEBEZIUM_PASSWORD} or ${file:/run/secrets/debezium.properties:password} (the value is \
             not shown)"
                .to_owned(),
        ));
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

fn at_least(key: &str, value: u32, least: u32, why: &str) -> Result<(), ConfigError> {
    if value >= least {
        return Ok(());
    }
    Err(bad(key, value, &format!("at least {least} ({why})")))
}

#[cfg(test)]
mod tests;
