//! The source that reads the table: at a ring, at the fallback interval, and while the bells are muffled.

use std::time::Duration;

use sqlx::PgConnection;

use super::source::{Batch, Source};
use super::{PublishError, Publisher};
use crate::backoff::jittered;
use crate::doorbell::{Bell, Listener};
use crate::outbox::{Cursor, Leadership, READER_SETTINGS, Reader};

/// Between two looks while a ring may be held back. It costs a fraction of that.
const LOOK_AGAIN: Duration = Duration::from_millis(1);

/// Reads the outbox by polling.
pub(super) struct Poll {
    session: PgConnection,
    reader: Reader,
    bell: Listener,
    interval: Duration,
    ends: bool,
}

impl Poll {
    /// Reads on from the cursor that the leader found.
    pub(super) async fn open(
        publisher: &Publisher,
        leadership: &Leadership,
        cursor: Cursor,
    ) -> Result<Self, PublishError> {
        let mut session = publisher.db.worker_session(&READER_SETTINGS).await?;
        leadership.is_of(&mut session).await?;
        Ok(Self {
            session,
            reader: Reader::new(cursor, publisher.page_size),
            bell: publisher.bells.listen(Bell::Outbox),
            interval: publisher.poll_interval,
            ends: false,
        })
    }

    /// Ends where nothing is left, instead of waiting for more.
    pub(super) fn that_ends(self) -> Self {
        Self { ends: true, ..self }
    }
}

impl Source for Poll {
    type Mark = Cursor;

    async fn next(&mut self) -> Result<Option<Batch<Cursor>>, PublishError> {
        loop {
            self.bell.arm();
            if let Some(page) = self.reader.next(&mut self.session).await? {
                self.reader.advance(&page);
                return Ok(Some(Batch { rows: page.rows, mark: page.after }));
            }
            if self.ends {
                return Ok(None);
            }
            let pause = if self.bell.is_muffled() { LOOK_AGAIN } else { jittered(self.interval) };
            tokio::select! {
                () = self.bell.rung() => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
    }
}
