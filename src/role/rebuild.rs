//! `hashinsight rebuild`: the read models of a group, recomputed from the tables of record while everything runs.
//!
//! Each step is a transaction that takes the same locks as the group's batches, so a row is never older than what the group
//! made of it. A rebuild that is cut off is run again.

use std::io::{IsTerminal, Write};

use anyhow::bail;
use serde::Serialize;
use tracing::warn;

use crate::backoff::Backoff;
use crate::cache::Cache;
use crate::cli;
use crate::config::Config;
use crate::consumer;
use crate::db::Db;
use crate::doorbell::{Bell, ring_elsewhere};
use crate::identifier::TenantId;
use crate::lifecycle::Lifecycle;
use crate::projection::{Group, HandlerError, Rebuilt};
use crate::redis::Redis;
use crate::role::app::{assumptions, group_named};
use crate::role::print_json;

#[derive(Debug, Serialize)]
struct Report {
    group: &'static str,
    /// Those that were rebuilt to their end.
    tenants: usize,
    rows: usize,
}

/// Rebuilds and prints how many rows there are.
pub async fn run(config: Config, args: &cli::Rebuild) -> anyhow::Result<()> {
    let group = group_named(&args.group, assumptions(&config.economics))?;
    let db = Db::open(&config).await?;
    let redis = Redis::connect(&config.redis).await?;
    let cache = Cache::new(&config.cache, redis, &Lifecycle::default());
    let mut tenants: Vec<(TenantId,)> = match group.handler.tenants() {
        Some(statement) => db.across_tenants(statement, &[]).await?,
        None => Vec::new(),
    };
    if let Some(only) = &args.tenant {
        tenants.retain(|(tenant,)| tenant == only);
        if tenants.is_empty() {
            bail!("there is nothing to rebuild of the tenant {only} in {}", group.name);
        }
    }
    let mut report = Report { group: group.name, tenants: 0, rows: 0 };
    let (terminal, all) = (std::io::stderr().is_terminal(), tenants.len());
    let mut failed = Vec::new();
    for (tenant,) in &tenants {
        let mut after = None;
        loop {
            let rebuilt = match step(&db, &group, tenant, after.as_deref()).await {
                Ok(rebuilt) => rebuilt,
                Err(error) => {
                    let behind = after.map(|key: String| format!(" behind {key}")).unwrap_or_default();
                    failed.push(format!("{tenant}{behind}: {error}"));
                    break;
                }
            };
            cache.invalidate(&consumer::copies(&rebuilt.dirty)).await;
            report.rows += rebuilt.rows;
            if terminal {
                eprint!("\r{} of {all} tenants, {} rows", report.tenants, report.rows);
                std::io::stderr().flush()?;
            }
            after = rebuilt.last;
            if after.is_none() {
                report.tenants += 1;
                break;
            }
        }
    }
    if terminal {
        eprintln!();
    }
    // What it led to is published at once.
    ring_elsewhere(&mut db.session().await?, Bell::Outbox).await?;
    db.close().await;
    if args.json.json {
        print_json(&report)?;
    } else {
        println!("{}: {} rows of {} tenants are rebuilt", report.group, report.rows, report.tenants);
    }
    if !failed.is_empty() {
        bail!("rows of these tenants are as they were: {}", failed.join("; "));
    }
    Ok(())
}

/// One step, until it succeeds or fails for good.
async fn step(
    db: &Db,
    group: &Group,
    tenant: &TenantId,
    after: Option<&str>,
) -> Result<Rebuilt, HandlerError> {
    let mut backoff = Backoff::default();
    loop {
        match try_step(db, group, tenant, after).await {
            Err(error) if error.is_transient() => {
                warn!(%tenant, %error, "a step of the rebuild failed; it is tried again");
                tokio::time::sleep(backoff.pause()).await;
            }
            done => return done,
        }
    }
}

async fn try_step(
    db: &Db,
    group: &Group,
    tenant: &TenantId,
    after: Option<&str>,
) -> Result<Rebuilt, HandlerError> {
    let mut tx = db.worker().await?;
    let rebuilt = group.handler.rebuild(&mut tx, tenant, after).await?;
    tx.commit().await?;
    Ok(rebuilt)
}
