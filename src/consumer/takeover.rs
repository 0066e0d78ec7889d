//! Takes a partition over, also from an owner that is frozen inside a transaction and so holds its row.
//!
//! Membership has given the partition to us: whoever still holds its row stands still, or will be fenced when it
//! commits. A claim waits briefly and is tried again; after that the backend in its way is ended, if it is ours.

use std::time::Duration;

use tokio::time::sleep;
use tracing::warn;

use super::offset::Claim;
use crate::db::{APPLICATION_NAME, Db};
use crate::group::TopicPartition;

/// Claims in a row that waited in vain before their obstacle is removed. Each waits for a second.
const PATIENCE: u32 = 3;

/// How often the waiting claim is asked what it waits for.
const LOOK: Duration = Duration::from_millis(100);

/// The attempts to claim one partition.
#[derive(Debug, Default)]
pub(super) struct Takeover {
    in_vain: u32,
}

impl Takeover {
    /// One attempt.
    pub(super) async fn attempt(
        &mut self,
        db: &Db,
        group: &str,
        partition: &TopicPartition,
        member_id: &str,
    ) -> Result<Claim, sqlx::Error> {
        let mut tx = db.worker().await?;
        let pid: i32 =
            sqlx::query_scalar("select pg_backend_pid() from set_config('lock_timeout', '1000', true)")
                .fetch_one(tx.conn())
                .await?;
        let taken = {
            let mut take = Box::pin(Claim::take(tx.conn(), group, partition, member_id));
            loop {
                tokio::select! {
                    taken = &mut take => break taken,
                    () = sleep(LOOK), if self.in_vain >= PATIENCE => end_blockers(db, pid, partition).await,
                }
            }
        };
        match taken {
            Ok(claim) => {
                tx.commit().await?;
                Ok(claim)
            }
            Err(error) => {
                if error.as_database_error().and_then(|e| e.code()).as_deref() == Some("55P03") {
                    self.in_vain += 1;
                }
                Err(error)
            }
        }
    }
}

/// Ends the backends of ours that a waiting claim waits for; not those that wait like it.
async fn end_blockers(db: &Db, pid: i32, partition: &TopicPartition) {
    let ended = async {
        // As the login itself: the pipeline's role may end nobody.
        let mut session = db.session().await?;
        // The blockers are found first, and then ended: a condition that ends backends would be asked of all of them.
        sqlx::query_scalar::<_, i32>(
            "with blocker as materialized ( \
               select a.pid from pg_stat_activity a where a.pid = any (pg_blocking_pids($1)) \
               and a.datname = current_database() and a.application_name like $2 || '%' \
               and a.wait_event_type is distinct from 'Lock') \
             select pid from (select pid, pg_terminate_backend(pid, 1000) as ended from blocker offset 0) b where ended",
        )
        .bind(pid)
        .bind(APPLICATION_NAME)
        .fetch_all(&mut session)
        .await
    };
    match ended.await {
        Ok(ended) if ended.is_empty() => {}
        Ok(ended) => warn!(
            topic = partition.topic,
            partition = partition.partition,
            backends = ?ended,
            "the previous owner stood still inside a transaction: its session was ended"
        ),
        Err(error) => warn!(%error, "what a claim waits for cannot be ended; PostgreSQL ends it after 10 s"),
    }
}
