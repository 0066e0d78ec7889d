//! `hashinsight doctor`: is everything there that this product needs, and as it should be?
//!
//! A check that fails names its remedy and keeps no other from running: whatever does not answer in time has failed.

use std::future::Future;
use std::time::Duration;

use anyhow::bail;
use serde::Serialize;
use tokio::time::{Instant, timeout_at};

use crate::config::Config;
use crate::role::print_json;

mod connect;
mod database;
mod jobs;
mod kafka;
mod publisher;
mod redis;
mod replication;
mod tenancy;

pub(super) use connect::transactions;
pub(super) use replication::prerequisites;

/// Each dependency has this long for all that is asked of it.
const DEADLINE: Duration = Duration::from_secs(20);

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    Ok,
    Warning,
    Failed,
}

impl Status {
    fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Failed => "failed",
        }
    }
}

/// One line of the report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    pub name: &'static str,
    pub status: Status,
    pub detail: String,
    /// What to do; null where there is nothing to do.
    pub remedy: Option<String>,
}

impl Check {
    fn ok(name: &'static str, detail: impl Into<String>) -> Self {
        Self { name, status: Status::Ok, detail: detail.into(), remedy: None }
    }

    fn warning(name: &'static str, detail: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { name, status: Status::Warning, detail: detail.into(), remedy: Some(remedy.into()) }
    }

    fn failed(name: &'static str, detail: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { name, status: Status::Failed, detail: detail.into(), remedy: Some(remedy.into()) }
    }
}

/// The report.
#[derive(Debug, Serialize)]
struct Report {
    checks: Vec<Check>,
}

/// Checks everything and prints one line each; an error if a check failed.
pub async fn run(config: &Config, json: bool) -> anyhow::Result<()> {
    let checks = examine(config).await;
    let failed = checks.iter().filter(|check| check.status == Status::Failed).count();
    if json {
        print_json(&Report { checks })?;
    } else {
        for Check { name, status, detail, remedy } in &checks {
            let remedy = remedy.as_ref().map_or_else(String::new, |remedy| format!("; remedy: {remedy}"));
            println!("{:<8} {name:<18} {detail}{remedy}", status.as_str());
        }
    }
    match failed {
        0 => Ok(()),
        1 => bail!("1 check failed"),
        _ => bail!("{failed} checks failed"),
    }
}

/// All checks, in the order of the flow.
async fn examine(config: &Config) -> Vec<Check> {
    let (database, redis, kafka, connect) = tokio::join!(
        Box::pin(database::examine(config)),
        Box::pin(redis::examine(config)),
        Box::pin(kafka::examine(config)),
        Box::pin(connect::examine(config)),
    );
    let mut checks = database.checks;
    checks.extend(database.publisher.map(|facts| publisher::judge(&facts, connect.runs)));
    checks.push(redis);
    checks.extend(kafka);
    checks.extend(connect.checks);
    checks
}

/// The time by which a dependency has answered all that is asked of it, or has failed.
#[derive(Debug, Clone, Copy)]
struct Limit(Instant);

impl Limit {
    fn start() -> Self {
        Self(Instant::now() + DEADLINE)
    }

    /// The answer, or why there is none in one line.
    async fn ask<T, E: std::fmt::Display>(
        self,
        question: impl Future<Output = Result<T, E>>,
    ) -> Result<T, String> {
        match timeout_at(self.0, question).await {
            Ok(Ok(answer)) => Ok(answer),
            // The alternate form of an error with causes is one line.
            Ok(Err(error)) => Err(format!("{error:#}").split_whitespace().collect::<Vec<_>>().join(" ")),
            Err(_) => Err(format!("no answer within {} s", DEADLINE.as_secs())),
        }
    }

    /// The checks that a question answers, or its failure as a check.
    async fn check<E: std::fmt::Display>(
        self,
        name: &'static str,
        remedy: &str,
        question: impl Future<Output = Result<Vec<Check>, E>>,
    ) -> Vec<Check> {
        self.ask(question).await.unwrap_or_else(|cause| vec![Check::failed(name, cause, remedy)])
    }
}
