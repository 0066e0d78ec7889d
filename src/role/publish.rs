//! `hashinsight publish`: outbox to log.

use anyhow::Context as _;
use serde_json::json;

use crate::config::{Config, EventSource};
use crate::db::Db;
use crate::outbox;
use crate::role::app::App;
use crate::role::print_json;

/// Publishes until a signal.
pub async fn run(mut config: Config, source: Option<EventSource>) -> anyhow::Result<()> {
    config.publisher.source = source.unwrap_or(config.publisher.source);
    let kind = config.event_log_kind(false)?;
    let app = App::open(config).await?;
    let log = app.log(kind).await?;
    app.spawn_publisher(&log)?;
    app.run().await
}

/// Repairs the cursor of a restored database and says what it did.
pub async fn rebase(config: &Config, xids_preserved: bool, json: bool) -> anyhow::Result<()> {
    let db = Db::open(config).await?;
    let rebased = outbox::rebase(&db, xids_preserved).await.context("publish --rebase")?;
    db.close().await;
    if json {
        return print_json(&json!({ "rebased": rebased.is_some(), "done": rebased }));
    }
    match rebased {
        None => println!("nothing to do: the cursor is of this cluster"),
        Some(done) => println!(
            "rebased from system {} to {}: {} events inserted again, positions up to {} are done with",
            done.stored_system, done.actual_system, done.inserted_again, done.floor_position
        ),
    }
    Ok(())
}
