//! `hashinsight offsets adopt`: the offsets that an operator set in Kafka become the group's.

use anyhow::bail;
use serde_json::json;

use crate::cli::OffsetsAdopt;
use crate::config::{Config, ConfigError, EventLogKind};
use crate::db::Db;
use crate::doorbell::Doorbells;
use crate::group::kafka::operator::adopt;
use crate::role::app::{self, assumptions, open_log};
use crate::role::print_json;

/// Adopts Kafka's offsets of a group and prints what changed.
pub async fn run_adopt(config: &Config, args: &OffsetsAdopt) -> anyhow::Result<()> {
    let kind = config.event_log_kind(false)?;
    if kind == EventLogKind::Postgres {
        bail!(ConfigError("the log is in PostgreSQL: there are no offsets in Kafka to adopt".to_owned()));
    }
    let group = app::group_named(&args.group, assumptions(&config.economics))?;
    let db = Db::open(config).await?;
    let log = open_log(config, kind, &db, &Doorbells::default()).await?;
    let adopted = adopt(config, &db, &*log, group.name, args.dry_run).await?;
    db.close().await;
    if args.json.json {
        return print_json(&json!({"group": group.name, "dry_run": args.dry_run, "adopted": adopted}));
    }
    if adopted.is_empty() {
        println!("{}: Kafka's offsets are the same", group.name);
    }
    for change in &adopted {
        let verb = if args.dry_run { "would move" } else { "moved" };
        println!("{verb} {}/{} from {} to {}", change.topic, change.partition, change.from, change.to);
    }
    Ok(())
}
