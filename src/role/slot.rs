//! `hashinsight slot`: the replication slot of the publisher or of Debezium.

use serde::Serialize;
use sqlx::{Connection, PgConnection};

use crate::cli::{SlotChoice, SlotCommand, SlotDrop, SlotReader};
use crate::config::Config;
use crate::outbox::wal::{Created, SlotState, WalSettings, slot};
use crate::role::print_json;

/// What is printed of a slot.
#[derive(Debug, Serialize)]
struct Shown {
    slot: String,
    state: &'static str,
    plugin: Option<String>,
    database: Option<String>,
    active_pid: Option<i32>,
    application_name: Option<String>,
    restart_lsn: Option<String>,
    confirmed_flush_lsn: Option<String>,
    wal_status: Option<String>,
    safe_wal_size: Option<i64>,
    retained_bytes: Option<u64>,
}

impl Shown {
    fn new(name: &str, state: &SlotState) -> Self {
        let slot = state.slot();
        Self {
            slot: name.to_owned(),
            state: state.as_str(),
            plugin: slot.map(|s| s.plugin.clone()),
            database: slot.map(|s| s.database.clone()),
            active_pid: slot.and_then(|s| s.active_pid),
            application_name: slot.and_then(|s| s.application_name.clone()),
            restart_lsn: slot.and_then(|s| s.restart_lsn).map(|lsn| lsn.to_string()),
            confirmed_flush_lsn: slot.and_then(|s| s.confirmed_flush_lsn).map(|lsn| lsn.to_string()),
            wal_status: slot.map(|s| s.wal_status.clone()),
            safe_wal_size: slot.and_then(|s| s.safe_wal_size),
            retained_bytes: slot.map(|s| s.retained_bytes),
        }
    }
}

/// Creates, shows or drops.
pub async fn run(config: &Config, command: &SlotCommand) -> anyhow::Result<()> {
    let (SlotCommand::Create(choice)
    | SlotCommand::Show(choice)
    | SlotCommand::Drop(SlotDrop { choice, .. })) = command;
    let mut conn = WalSettings::new(config, &config.wal.slot)?.connect().await?;
    let name = match choice.slot {
        SlotReader::Wal => slot::name(&mut conn, &config.wal.slot).await?,
        // The connector takes the name as it is.
        SlotReader::Debezium => config.debezium.slot.clone(),
    };
    match command {
        SlotCommand::Create(_) => create(&mut conn, &name, choice).await?,
        SlotCommand::Show(_) => show(&mut conn, &name, choice).await?,
        SlotCommand::Drop(args) => drop_slot(&mut conn, &name, args).await?,
    }
    conn.close().await?;
    Ok(())
}

async fn create(conn: &mut PgConnection, name: &str, choice: &SlotChoice) -> anyhow::Result<()> {
    let created = slot::create(conn, name).await? == Created::New;
    if choice.json.json {
        return print_json(&serde_json::json!({"slot": name, "created": created}));
    }
    println!("{}", if created { format!("created slot {name}") } else { format!("slot {name} exists") });
    Ok(())
}

async fn show(conn: &mut PgConnection, name: &str, choice: &SlotChoice) -> anyhow::Result<()> {
    let shown = Shown::new(name, &slot::state(conn, name).await?);
    if choice.json.json {
        return print_json(&shown);
    }
    let or_none = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    println!("{}  {}", shown.slot, shown.state);
    if shown.state == "missing" {
        return Ok(());
    }
    let reader =
        shown.active_pid.map(|pid| format!("{} (process id {pid})", or_none(shown.application_name)));
    for (label, value) in [
        ("retained bytes", shown.retained_bytes.map(|bytes| bytes.to_string())),
        ("wal status", shown.wal_status),
        (
            "safe wal size",
            Some(shown.safe_wal_size.map_or("unlimited".to_owned(), |bytes| bytes.to_string())),
        ),
        ("confirmed", shown.confirmed_flush_lsn),
        ("restarts at", shown.restart_lsn),
        ("reader", reader),
        ("database", shown.database),
        ("plugin", shown.plugin),
    ] {
        println!("  {label:<14}  {}", or_none(value));
    }
    Ok(())
}

async fn drop_slot(conn: &mut PgConnection, name: &str, args: &SlotDrop) -> anyhow::Result<()> {
    slot::drop(conn, name, args.force).await?;
    if args.choice.json.json {
        return print_json(&serde_json::json!({"slot": name, "dropped": true}));
    }
    println!("dropped slot {name}");
    Ok(())
}
