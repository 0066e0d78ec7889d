//! Fetches ahead: while one fetch is applied the next is on its way, and no more than that.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;

use super::Context;
use crate::group::TopicPartition;
use crate::log::{FetchLimits, Fetched, LogError, Record};

/// A fetch may bring so many batches: fewer requests, and little that is dropped because it was not asked for.
const BATCHES: usize = 4;

/// The records of one partition that are in memory: one fetch in hand and one on its way.
#[derive(Default)]
pub(super) struct Fetcher {
    hand: Vec<(i64, Record)>,
    next: i64,
    /// The end of the log as of the last fetch.
    pub(super) end: Option<i64>,
    /// At most one.
    on_its_way: JoinSet<Result<Fetched, LogError>>,
}

impl Fetcher {
    /// Begins anew at an offset.
    pub(super) fn at(offset: i64) -> Self {
        Self { next: offset, ..Self::default() }
    }

    /// Whether nothing is in hand.
    pub(super) fn is_empty(&self) -> bool {
        self.hand.is_empty()
    }

    /// The records in hand; they are given back with [`Fetcher::keep`].
    pub(super) fn take(&mut self) -> Vec<(i64, Record)> {
        std::mem::take(&mut self.hand)
    }

    /// Gives back what was not committed: records from this offset on.
    pub(super) fn keep(&mut self, mut records: Vec<(i64, Record)>, from: i64) {
        records.drain(..records.partition_point(|(offset, _)| *offset < from));
        self.hand = records;
    }

    /// Sends for more, unless that has been done.
    pub(super) fn ahead(&mut self, context: &Arc<Context>, partition: &TopicPartition) {
        if !self.on_its_way.is_empty() {
            return;
        }
        let settings = &context.settings;
        let limits = FetchLimits {
            max_records: settings.batch_size as usize * BATCHES,
            max_bytes: settings.fetch_max_bytes,
            max_wait: Duration::from_millis(settings.fetch_max_wait_ms),
        };
        let (log, partition, offset) = (Arc::clone(&context.log), partition.clone(), self.next);
        self.on_its_way
            .spawn(async move { log.fetch(&partition.topic, partition.partition, offset, limits).await });
    }

    /// Waits for what was sent for and takes it in hand. May be given up and asked again.
    pub(super) async fn arrival(&mut self) -> Result<(), LogError> {
        let fetched = match self.on_its_way.join_next().await {
            Some(Ok(fetched)) => fetched?,
            Some(Err(ended)) if ended.is_panic() => std::panic::resume_unwind(ended.into_panic()),
            Some(Err(_)) | None => return Err(LogError::Unavailable("the fetch was given up".to_owned())),
        };
        if let Some((last, _)) = fetched.records.last() {
            self.next = last + 1;
        }
        self.end = Some(fetched.end);
        self.hand = fetched.records;
        Ok(())
    }
}
