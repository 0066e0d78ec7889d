//! Owns the connection to Redis: its address, its time-outs, and whether it answers.
//! Promises that a command takes no longer than the time-out, and that a Redis which is away costs one a second.
//! Called by the cache and the locks, which share one connection of the process. Only this room names fred.
//!
//! No answer is `None` and no error: nobody who asks Redis may depend on it.

use std::fmt::Display;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use fred::clients::Client;
use fred::interfaces::{ClientLike, FredResult, KeysInterface};
use fred::types::config::{Config, ReconnectPolicy};
use fred::types::{Builder, Expiration, InfoKind, SetOptions};
use tokio::time::{Instant, timeout};
use tracing::{info, warn};

use crate::config::{ConfigError, RedisConfig, mask_userinfo};

pub use fred::types::FromValue;
pub use fred::types::scripts::Script;

/// What an address may begin with.
const SCHEMES: [&str; 6] =
    ["redis", "rediss", "redis-cluster", "rediss-cluster", "redis-sentinel", "rediss-sentinel"];

/// After a failure nothing is asked for this long: otherwise everybody who asks would wait for the time-out.
pub const PAUSE: Duration = Duration::from_secs(1);

/// A connection on which an answer takes this long is given up.
const UNRESPONSIVE: Duration = Duration::from_secs(2);

/// The connection of this process.
#[derive(Debug)]
pub struct Redis {
    client: Client,
    /// For log lines, without user information.
    address: String,
    timeout: Duration,
    health: Mutex<Health>,
}

#[derive(Debug, Default)]
struct Health {
    away: bool,
    ask_again_at: Option<Instant>,
}

/// Asks the Redis at an address once for its version.
pub async fn probe(url: &str, config: &RedisConfig) -> Result<String, String> {
    let (client, _) = client(url, command_timeout(config)).map_err(|e| e.to_string())?;
    let asked = async {
        client.connect();
        client.wait_for_connect().await?;
        client.ping::<String>(None).await?;
        client.info::<String>(Some(InfoKind::Server)).await
    };
    let answer = timeout(UNRESPONSIVE, asked).await;
    // Not waited for: a server that does not answer does not hear it either.
    drop(client);
    let text = answer
        .map_err(|_| format!("no answer within {} ms", UNRESPONSIVE.as_millis()))?
        .map_err(|e| e.details().to_owned())?;
    let version = text.lines().find_map(|line| line.strip_prefix("redis_version:"));
    Ok(version.unwrap_or("unknown").trim().to_owned())
}

fn command_timeout(config: &RedisConfig) -> Duration {
    Duration::from_millis(config.command_timeout_ms)
}

/// A client that is not connected yet, and its address without user information.
fn client(url: &str, command_timeout: Duration) -> Result<(Client, String), ConfigError> {
    // Without a scheme there is no telling what of it is a password.
    let scheme = url.split_once("://").map(|(scheme, _)| scheme);
    let address = scheme.map_or_else(|| "***".to_owned(), |_| mask_userinfo(url));
    let refuse = |cause: &str| {
        ConfigError(format!(
            "redis.url = {address:?} is not allowed: {cause}; set REDIS_URL=redis://user:password@host:port/db"
        ))
    };
    if !scheme.is_some_and(|scheme| SCHEMES.contains(&scheme)) {
        return Err(refuse(&format!("the scheme must be one of {}", SCHEMES.join(", "))));
    }
    let mut config = Config::from_url(url).map_err(|e| refuse(e.details()))?;
    // The first connection is retried like any later one.
    config.fail_fast = false;
    let client = Builder::from_config(config)
        .with_performance_config(|c| c.default_command_timeout = command_timeout)
        .with_connection_config(|c| {
            c.connection_timeout = UNRESPONSIVE;
            c.internal_command_timeout = UNRESPONSIVE;
            c.max_command_attempts = 1;
            c.unresponsive.max_timeout = Some(UNRESPONSIVE);
            c.unresponsive.interval = UNRESPONSIVE / 4;
        })
        .set_policy(ReconnectPolicy::new_exponential(0, 50, 1_000, 2))
        .build()
        .map_err(|e| refuse(e.details()))?;
    Ok((client, address))
}

impl Redis {
    /// The Redis that the configuration names; `None` if it names none. Takes no longer than a command's time-out: one
    /// that does not answer is used once it does.
    ///
    /// # Errors
    /// An address of Redis that is none.
    pub async fn connect(config: &RedisConfig) -> Result<Option<Arc<Self>>, ConfigError> {
        let Some(url) = config.url() else {
            info!("REDIS_URL is not set: cache and locks are in this process");
            return Ok(None);
        };
        let timeout_after = command_timeout(config);
        let (client, address) = client(url, timeout_after)?;
        let redis = Self { client, address, timeout: timeout_after, health: Mutex::default() };
        redis.client.connect();
        match timeout(timeout_after, redis.client.wait_for_connect()).await {
            Ok(Ok(())) => info!(redis = redis.address, "connected to Redis"),
            Ok(Err(error)) => redis.failed(&error),
            Err(_) => redis.failed(&"no connection within the command time-out"),
        }
        Ok(Some(Arc::new(redis)))
    }

    /// Whether it is a cluster, which refuses a script about several keys: they may be on several of its nodes.
    pub fn is_cluster(&self) -> bool {
        self.client.is_clustered()
    }

    /// Runs a script on these keys.
    pub async fn eval<T: FromValue>(
        &self,
        script: &Script,
        keys: Vec<String>,
        arguments: Vec<String>,
    ) -> Option<T> {
        self.ask(script.evalsha_with_reload(&self.client, keys, arguments)).await
    }

    /// Sets a key that does not exist, for this long. `false`: it exists.
    pub async fn set_absent(&self, key: String, value: String, kept: Duration) -> Option<bool> {
        let expiry = Expiration::PX(i64::try_from(kept.as_millis()).unwrap_or(i64::MAX));
        let set =
            self.client.set::<Option<String>, _, _>(key, value, Some(expiry), Some(SetOptions::NX), false);
        self.ask(set).await.map(|done| done.is_some())
    }

    /// The answer, or nothing when there is none in time.
    async fn ask<T>(&self, command: impl Future<Output = FredResult<T>>) -> Option<T> {
        if self.health().ask_again_at.is_some_and(|at| Instant::now() < at) {
            return None;
        }
        // Without this the command would wait in a queue for the connection.
        if !self.client.is_connected() {
            self.failed(&"no connection");
            return None;
        }
        match timeout(self.timeout, command).await {
            Ok(Ok(answer)) => {
                self.answered();
                return Some(answer);
            }
            Ok(Err(error)) => self.failed(&error),
            Err(_) => self.failed(&"no answer within the command time-out"),
        }
        None
    }

    fn answered(&self) {
        let mut health = self.health();
        health.ask_again_at = None;
        if std::mem::take(&mut health.away) {
            info!(redis = self.address, "Redis answers again");
        }
    }

    fn failed(&self, error: &dyn Display) {
        let mut health = self.health();
        health.ask_again_at = Some(Instant::now() + PAUSE);
        if !std::mem::replace(&mut health.away, true) {
            warn!(
                redis = self.address,
                %error,
                "Redis does not answer: until it does, reads go to the database and nothing is locked outside of it"
            );
        }
    }

    /// The data is whole after every statement, so a panic elsewhere under the lock does no harm.
    fn health(&self) -> MutexGuard<'_, Health> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
