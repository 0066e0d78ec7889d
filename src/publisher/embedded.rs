//! Publishing to the log in PostgreSQL: records, offsets and cursor become visible in one commit.

use std::collections::BTreeMap;
use std::pin::pin;

use tokio_util::sync::CancellationToken;

use super::poll::Poll;
use super::source::{Batch, Source};
use super::{BEAT, PublishError, Publisher, beat, record};
use crate::doorbell::Bell;
use crate::log::postgres::PostgresLog;
use crate::log::{EventLog, Record, partition_of};
use crate::metrics;
use crate::outbox::{Cursor, Leadership};

/// Publishes until the stop or until the lead is lost.
pub(super) async fn run(
    publisher: &Publisher,
    leadership: &Leadership,
    log: &PostgresLog,
    mut poll: Poll,
    stopping: &CancellationToken,
) -> Result<(), PublishError> {
    let mut beats = tokio::time::interval(BEAT);
    loop {
        let batch = {
            let mut next = pin!(poll.next());
            loop {
                tokio::select! {
                    () = stopping.cancelled() => return Ok(()),
                    batch = &mut next => break batch?,
                    _ = beats.tick() => beat(leadership).await?,
                }
            }
        };
        let Some(batch) = batch else { return Ok(()) };
        append(publisher, leadership, log, batch).await?;
    }
}

async fn append(
    publisher: &Publisher,
    leadership: &Leadership,
    log: &PostgresLog,
    batch: Batch<Cursor>,
) -> Result<(), PublishError> {
    let mut lanes: BTreeMap<(String, i32), Vec<Record>> = BTreeMap::new();
    for row in batch.rows {
        let topic = publisher.topic_of(&row.aggregate_type);
        let partition = partition_of(row.event_key.as_bytes(), log.topic(&topic).await?.partitions);
        lanes.entry((topic, partition)).or_default().push(record::of_row(row));
    }
    let mut tx = publisher.db.worker().await?;
    if !leadership.store_in(&mut tx, &batch.mark).await? {
        tx.rollback().await?;
        return Err(PublishError::Fenced);
    }
    for ((topic, partition), records) in &lanes {
        log.append_in(tx.conn(), topic, *partition, records).await?;
    }
    tx.commit().await?;
    publisher.bells.ring(Bell::Log);
    let now = publisher.db.now();
    for ((topic, _), records) in &lanes {
        metrics::events_published(topic, records.iter().map(|r| (now - r.timestamp).as_seconds_f64()));
    }
    Ok(())
}
