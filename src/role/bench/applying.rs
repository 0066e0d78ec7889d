//! The same events applied by others: the SQL of our batches alone, and the predecessor's way.
//!
//! Both begin with decoded events in memory and know neither offsets in Kafka nor a log: what they reach is a ceiling for
//! whoever applies events with these statements.

use std::sync::Arc;
use std::time::Instant;

use tokio::task::JoinSet;

use super::drain::Drain;
use super::process::own_usage;
use crate::db::Db;
use crate::event::Event;
use crate::inbox::{self, Outcome};
use crate::projection::Group;

/// The events of one partition with its number.
pub type Lane = (i32, Arc<[Event]>);

/// How the events of a partition are applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// One transaction for so many events: fence and offset, inbox, read model.
    Batches(usize),
    /// As the predecessor did: has it been applied, apply it, write down that it was, each in a transaction of its own.
    ThreeTransactions,
}

/// Applies every lane, all at the same time, as a group's workers would.
pub async fn apply(db: &Db, group: &Group, topic: &str, lanes: &[Lane], way: Way) -> anyhow::Result<Drain> {
    let (started, before) = (Instant::now(), own_usage()?);
    let mut working = JoinSet::new();
    for (partition, events) in lanes.iter().cloned() {
        let worker = Worker { db: db.clone(), group: group.clone(), topic: topic.to_owned(), partition };
        working.spawn(async move {
            match way {
                Way::Batches(size) => worker.batches(&events, size).await,
                Way::ThreeTransactions => worker.three_transactions(&events).await,
            }
        });
    }
    while let Some(done) = working.join_next().await {
        done??;
    }
    Ok(Drain {
        events: lanes.iter().map(|(_, events)| events.len()).sum(),
        duplicates: 0,
        seconds: started.elapsed().as_secs_f64(),
        cpu_seconds: Some((own_usage()?.cpu - before.cpu).as_secs_f64()),
        peak_rss_bytes: None,
    })
}

struct Worker {
    db: Db,
    group: Group,
    topic: String,
    partition: i32,
}

impl Worker {
    async fn batches(&self, events: &[Event], size: usize) -> anyhow::Result<()> {
        for batch in events.chunks(size) {
            let mut tx = self.db.worker().await?;
            sqlx::query(
                "update consumer_offset set next_offset = next_offset + $4 \
                 where consumer_name = $1 and topic = $2 and partition = $3",
            )
            .bind(self.group.name)
            .bind(&self.topic)
            .bind(self.partition)
            .bind(i64::try_from(batch.len())?)
            .execute(tx.conn())
            .await?;
            let entries: Vec<(&Event, Outcome)> =
                batch.iter().map(|event| (event, Outcome::Applied)).collect();
            inbox::admit(tx.conn(), self.group.name, &entries).await?;
            let all: Vec<&Event> = batch.iter().collect();
            self.group.handler.apply(&mut tx, &all).await?;
            tx.commit().await?;
        }
        Ok(())
    }

    async fn three_transactions(&self, events: &[Event]) -> anyhow::Result<()> {
        for event in events {
            let mut tx = self.db.worker().await?;
            let known: bool = sqlx::query_scalar(
                "select exists (select from event_inbox where consumer_name = $1 and event_id = $2)",
            )
            .bind(self.group.name)
            .bind(event.event_id)
            .fetch_one(tx.conn())
            .await?;
            tx.commit().await?;
            if known {
                continue;
            }
            let mut tx = self.db.worker().await?;
            self.group.handler.apply(&mut tx, &[event]).await?;
            tx.commit().await?;
            let mut tx = self.db.worker().await?;
            inbox::admit(tx.conn(), self.group.name, &[(event, Outcome::Applied)]).await?;
            tx.commit().await?;
        }
        Ok(())
    }
}
