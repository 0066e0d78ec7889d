//! `hashinsight replay`: dead letters that are handed over again. The running publisher does it.

use std::time::Duration;

use serde::Serialize;
use tokio::time::{MissedTickBehavior, interval};

use crate::cli;
use crate::config::Config;
use crate::db::Db;
use crate::dead_letter::{self, Filter};
use crate::role::print_json;

#[derive(Debug, Serialize)]
struct Report {
    dry_run: bool,
    matched: usize,
    queued: usize,
    /// Somebody else settled them meanwhile.
    skipped: usize,
}

/// Asks for the replay and prints how many it asked for.
pub async fn run(config: &Config, args: &cli::Replay) -> anyhow::Result<()> {
    let db = Db::open(config).await?;
    let mut session = db.worker_session(&[]).await?;
    let filter = Filter {
        group: &args.consumer,
        kind: args.event_kind.as_deref(),
        hours: args.hours,
        limit: args.limit,
    };
    let letters = dead_letter::matching(&mut session, filter).await?;
    let mut report = Report { dry_run: args.dry_run, matched: letters.len(), queued: 0, skipped: 0 };
    let mut pace = args.rate.map(|rate| {
        let mut pace = interval(Duration::from_secs(1) / rate);
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        pace
    });
    for id in letters.into_iter().filter(|_| !args.dry_run) {
        if let Some(pace) = &mut pace {
            pace.tick().await;
        }
        if dead_letter::ask_for_replay(&mut session, id).await? {
            report.queued += 1;
        } else {
            report.skipped += 1;
        }
    }
    db.close().await;
    if args.json.json {
        return print_json(&report);
    }
    let Report { matched, queued, skipped, .. } = report;
    println!("{matched} dead letters matched, {queued} queued, {skipped} skipped");
    Ok(())
}
