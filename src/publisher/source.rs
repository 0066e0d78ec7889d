//! Where rows come from, and where it is kept how far they are handed over.

use std::future::Future;

use super::PublishError;
use crate::outbox::{Cursor, Leadership, OutboxRow};

/// Rows in the order in which they are to be handed over.
pub(super) struct Batch<M> {
    pub(super) rows: Vec<OutboxRow>,
    /// To be kept once these rows and all before them are settled.
    pub(super) mark: M,
}

/// A reader of the outbox.
pub(super) trait Source: Send {
    type Mark: Send;

    /// The next rows, as soon as there are some; `None` at the end of a source that has one.
    fn next(&mut self) -> impl Future<Output = Result<Option<Batch<Self::Mark>>, PublishError>> + Send;
}

/// Remembers a mark beyond this process.
pub(super) trait Keeper: Sync {
    type Mark: Send;

    /// Everything up to the mark is settled.
    fn keep(&self, mark: Self::Mark) -> impl Future<Output = Result<(), PublishError>> + Send;
}

impl Keeper for &Leadership {
    type Mark = Cursor;

    async fn keep(&self, mark: Cursor) -> Result<(), PublishError> {
        if self.store(&mark).await? { Ok(()) } else { Err(PublishError::Fenced) }
    }
}
