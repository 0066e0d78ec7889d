//! `hashinsight replay`: dead letters that are handed over again, counted, or discarded. The running consumers and the
//! publisher do the handing over.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use anyhow::bail;
use serde::Serialize;
use serde_json::json;
use tokio::time::{MissedTickBehavior, interval};
use uuid::Uuid;

use crate::cli;
use crate::config::Config;
use crate::db::{Db, WorkerTx};
use crate::dead_letter::{self, Action, Actor, Candidate, Discarded, Filter, Stats, Verdict};
use crate::doorbell::{Bell, ring_elsewhere};
use crate::identifier::TenantId;
use crate::role::print_json;

/// Letters asked for in one transaction.
const CHUNK: u32 = 500;

/// Steps a second, where a rate is asked for.
const STEPS: u32 = 20;

/// Reasons that are told before the rest is only counted.
const MOST_REASONS: usize = 20;

#[derive(Debug, Serialize)]
struct Report {
    dry_run: bool,
    matched: usize,
    queued: usize,
    /// Somebody else settled them meanwhile, or they have to wait for an older letter of their key.
    skipped: usize,
}

/// Asks for the replay and prints how many it asked for.
pub async fn run(config: &Config, args: &cli::Letters) -> anyhow::Result<()> {
    let db = Db::open(config).await?;
    let filter = Filter {
        group: args.consumer.as_deref(),
        kind: args.event_kind.as_deref(),
        hours: args.hours,
        limit: args.limit,
    };
    let mut tx = db.worker().await?;
    let letters = dead_letter::matching(tx.conn(), filter).await?;
    tx.rollback().await?;
    let mut report = Report { dry_run: args.dry_run, matched: letters.len(), queued: 0, skipped: 0 };
    if !args.dry_run {
        ask_for_all(&db, &letters, args.rate, &mut report).await?;
    }
    db.close().await;
    if args.json.json {
        return print_json(&report);
    }
    let Report { matched, queued, skipped, .. } = report;
    println!("{matched} dead letters matched, {queued} queued, {skipped} skipped");
    Ok(())
}

async fn ask_for_all(
    db: &Db,
    letters: &[Candidate],
    rate: Option<u32>,
    report: &mut Report,
) -> anyhow::Result<()> {
    let actor = operator();
    let chunk = rate.map_or(CHUNK, |rate| (rate / STEPS).clamp(1, CHUNK));
    let mut pace = rate.map(|rate| {
        let mut pace = interval(Duration::from_secs(1) * chunk / rate);
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        pace
    });
    let progress = std::io::stderr().is_terminal();
    let mut reasons = Vec::new();
    for chunk in letters.chunks(chunk as usize) {
        if let Some(pace) = &mut pace {
            pace.tick().await;
        }
        let verdicts = ask(db, chunk, &actor).await?;
        for (letter, verdict) in chunk.iter().zip(verdicts) {
            match verdict {
                Verdict::Queued => report.queued += 1,
                Verdict::Settled => reasons.push(format!("{}: it is not dead any more", letter.id)),
                Verdict::Behind(older) => reasons.push(format!(
                    "{}: {older} of the same key is older and dead; include it or discard it",
                    letter.id
                )),
            }
        }
        report.skipped = reasons.len();
        if progress {
            eprint!("\r{} of {}", report.queued + report.skipped, report.matched);
            std::io::stderr().flush()?;
        }
    }
    if progress && !letters.is_empty() {
        eprintln!();
    }
    for reason in reasons.iter().take(MOST_REASONS) {
        eprintln!("skipped {reason}");
    }
    if reasons.len() > MOST_REASONS {
        eprintln!("skipped {} more", reasons.len() - MOST_REASONS);
    }
    Ok(())
}

/// Asks for some in one transaction, with an entry in the audit log of each letter's tenant.
async fn ask(db: &Db, letters: &[Candidate], actor: &str) -> anyhow::Result<Vec<Verdict>> {
    let ids: Vec<Uuid> = letters.iter().map(|letter| letter.id).collect();
    let mut tx = db.worker().await?;
    let verdicts = dead_letter::ask_for_replay(tx.conn(), &ids, actor).await?;
    let mut by_tenant: BTreeMap<&str, Vec<Uuid>> = BTreeMap::new();
    for (letter, verdict) in letters.iter().zip(&verdicts) {
        if let (Some(tenant), Verdict::Queued) = (&letter.tenant_id, verdict) {
            by_tenant.entry(tenant).or_default().push(letter.id);
        }
    }
    for (tenant, ids) in by_tenant {
        audit(&mut tx, tenant, actor, Action::Replay, &ids, &json!({})).await?;
    }
    tx.commit().await?;
    ring(db).await?;
    Ok(verdicts)
}

/// Prints how many letters there are.
pub async fn stats(config: &Config, json: bool) -> anyhow::Result<()> {
    let db = Db::open(config).await?;
    let mut tx = db.worker().await?;
    let stats = dead_letter::stats(tx.conn()).await?;
    tx.rollback().await?;
    db.close().await;
    if json {
        return print_json(&stats);
    }
    print_table(&stats);
    Ok(())
}

fn print_table(Stats { open, groups }: &Stats) {
    if !groups.is_empty() {
        println!(
            "{:<26} {:<24} {:<10} {:>8} {:<20} {:<20} last error",
            "group", "kind", "status", "count", "oldest", "newest"
        );
    }
    for count in groups {
        let kind = count.event_kind.as_deref().unwrap_or("-");
        let time = |time: chrono::DateTime<chrono::Utc>| time.format("%Y-%m-%dT%H:%M:%SZ").to_string();
        let (oldest, newest) = (time(count.oldest), time(count.newest));
        let error: String =
            count.last_error.chars().map(|c| if c.is_control() { ' ' } else { c }).take(100).collect();
        println!(
            "{:<26} {kind:<24} {:<10} {:>8} {oldest:<20} {newest:<20} {error}",
            count.consumer_name, count.status, count.count
        );
    }
    println!("{open} open");
}

/// Discards one letter.
pub async fn discard(config: &Config, args: &cli::Discard) -> anyhow::Result<()> {
    let db = Db::open(config).await?;
    let (id, actor) = (args.id, operator());
    let mut tx = db.worker().await?;
    match dead_letter::discard(tx.conn(), id, &args.reason, &actor).await? {
        Discarded::Done { tenant_id } => {
            if let Some(tenant) = tenant_id {
                let detail = json!({"reason": args.reason});
                audit(&mut tx, &tenant, &actor, Action::Discard, &[id], &detail).await?;
            }
        }
        Discarded::Refused { status } => {
            bail!("dead letter {id} is {status}: only a dead one can be discarded")
        }
        Discarded::NotFound => {
            bail!("there is no dead letter {id}: `hashinsight replay stats` counts those there are")
        }
    }
    tx.commit().await?;
    db.close().await;
    if args.json.json {
        return print_json(&json!({"id": id, "status": "discarded"}));
    }
    println!("{id} is discarded");
    Ok(())
}

/// In the name of the letters' tenant. What has no tenant has no audit log; who acted stands in the letter.
async fn audit(
    tx: &mut WorkerTx,
    tenant: &str,
    actor: &str,
    action: Action,
    letters: &[Uuid],
    detail: &serde_json::Value,
) -> anyhow::Result<()> {
    let id: TenantId = tenant.parse()?;
    let conn = tx.for_tenant(&id).await?;
    let actor = Actor { name: actor, request_id: None };
    dead_letter::audit(conn, tenant, actor, action, letters, detail).await?;
    Ok(())
}

async fn ring(db: &Db) -> anyhow::Result<()> {
    let mut tx = db.worker().await?;
    ring_elsewhere(tx.conn(), Bell::Letters).await?;
    tx.commit().await?;
    Ok(())
}

/// Who runs this command: `cli:` and a login name, which no user of a tenant can be called. It is the name of whoever
/// logged in, also behind sudo, where the system keeps it, or else the process's own.
fn operator() -> String {
    let login = std::fs::read_to_string("/proc/self/loginuid").ok().and_then(|id| id.trim().parse().ok());
    let own = || std::fs::metadata("/proc/self").ok().map(|me| me.uid());
    let Some(uid) = login.filter(|id| *id != u32::MAX).or_else(own) else {
        return "cli:unknown".to_owned();
    };
    let users = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    name_of(uid, &users).map_or_else(|| format!("cli:uid-{uid}"), |name| format!("cli:{name}"))
}

/// The name of a user in the form of /etc/passwd: name, password, id, ...
fn name_of(uid: u32, users: &str) -> Option<&str> {
    users.lines().find_map(|line| {
        let mut fields = line.split(':');
        let (name, _, id) = (fields.next()?, fields.next()?, fields.next()?);
        (id.parse() == Ok(uid)).then_some(name)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_login_has_a_name() {
        let users = "root:x:0:0:root:/root:/bin/sh\nbroken\nalice:x:1000:1000::/home/alice:/bin/sh\n";
        assert_eq!((name_of(0, users), name_of(1_000, users)), (Some("root"), Some("alice")));
        assert_eq!(name_of(7, users), None);
        assert!(operator().starts_with("cli:"));
    }
}
