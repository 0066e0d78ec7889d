//! `hashinsight lag`: how far each group is behind.

use tracing::warn;

use crate::config::Config;
use crate::db::Db;
use crate::doorbell::Doorbells;
use crate::lag::{LagReport, measure, without_log};
use crate::role::app::open_log;
use crate::role::print_json;

/// Prints the lag of all groups, or of one.
pub async fn run(config: &Config, group: Option<&str>, json: bool) -> anyhow::Result<()> {
    // As `standalone`: a database used without a broker has its log in itself.
    let kind = config.event_log_kind(true)?;
    let db = Db::open(config).await?;
    let report = match open_log(config, kind, &db, &Doorbells::default()).await {
        Ok(log) => measure(&db, &*log, group).await?,
        Err(error) => {
            warn!("the log cannot be asked, so how far behind the groups are is unknown: {error:#}");
            without_log(&db, group).await?
        }
    };
    db.close().await;
    if json {
        return print_json(&report);
    }
    print(&report);
    Ok(())
}

fn print(report: &LagReport) {
    if report.groups.is_empty() {
        println!("no group has started yet");
    }
    for group in &report.groups {
        println!("{}  {}  lag {}", group.group, group.status, or_unknown(group.lag));
        println!(
            "  {:<24} {:>9} {:>12} {:>12} {:>8} {:>9}  owner",
            "topic", "partition", "committed", "end", "lag", "seconds"
        );
        for p in &group.partitions {
            println!(
                "  {:<24} {:>9} {:>12} {:>12} {:>8} {:>9}  {}",
                p.topic,
                p.partition,
                p.committed,
                or_unknown(p.end),
                or_unknown(p.lag),
                p.lag_seconds.map_or_else(|| "unknown".to_owned(), |s| format!("{s:.1}")),
                p.owner.as_deref().unwrap_or("-"),
            );
            if let Some(trouble) = &p.trouble {
                println!("  {:<24} stands still: {trouble}", "");
            }
        }
    }
}

fn or_unknown(number: Option<i64>) -> String {
    number.map_or_else(|| "unknown".to_owned(), |n| n.to_string())
}
