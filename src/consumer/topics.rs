//! Keeps an eye on the topics that a group reads: a partition that is new has an offset soon, whoever made it.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::{partitions_of, register};
use crate::db::Db;
use crate::log::EventLog;
use crate::projection::Group;

/// How often it is looked. `topics alter` registers what it makes by itself.
const LOOK_EVERY: Duration = Duration::from_secs(30);

/// Registers new partitions until the stop.
pub async fn follow_topics(
    db: Db,
    log: Arc<dyn EventLog>,
    group: Group,
    topic_prefix: String,
    stopping: CancellationToken,
) -> anyhow::Result<()> {
    loop {
        tokio::select! {
            () = stopping.cancelled() => return Ok(()),
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
        let found = match partitions_of(&*log, &group, &topic_prefix).await {
            Ok(found) => found,
            Err(error) => {
                warn!(group = group.name, %error, "new partitions would not be noticed now; looking again later");
                continue;
            }
        };
        if let Err(error) = register(&db, group.name, &found).await {
            warn!(group = group.name, %error, "new partitions are not registered; trying again later");
        }
    }
}
