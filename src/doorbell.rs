//! Owns the wake-ups between workers, in this process and in others.
//! Promises only speed: a lost ring costs at most the listener's fallback poll.
//! Called by whoever commits (ring) and whoever waits (listen).
//!
//! NOTIFY inside the writer's transaction would serialise every commit of the cluster, so a ring is
//! sent after the commit, on a connection of its own, at most once per [`GATHER`].

use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::{PgConnection, PgExecutor, PgListener, PgPool};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::db::Db;

/// Rings within this time after a NOTIFY are gathered into the next.
const GATHER: Duration = Duration::from_millis(10);

/// Pause before a lost listening connection is made again.
const RECONNECT: Duration = Duration::from_millis(500);

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bell {
    /// An event was committed to the outbox.
    Outbox,
    /// Records were appended to the log in PostgreSQL.
    Log,
    /// A consumer group committed a batch.
    Applied,
    /// There is a new dead letter, or somebody asked for one to be replayed.
    Letters,
    /// A member of a consumer group came, went, or let a partition go.
    Group,
}

impl Bell {
    const ALL: [Self; 5] = [Self::Outbox, Self::Log, Self::Applied, Self::Letters, Self::Group];

    /// The name under which PostgreSQL carries it, for a session that rings by itself.
    pub fn channel(self) -> &'static str {
        match self {
            Self::Outbox => "hashinsight_outbox",
            Self::Log => "hashinsight_log",
            Self::Applied => "hashinsight_applied",
            Self::Letters => "hashinsight_letters",
            Self::Group => "hashinsight_group",
        }
    }
}

#[derive(Debug)]
struct Line {
    rung: watch::Sender<Rings>,
    /// Wakes the task that tells the other processes.
    outward: Notify,
}

#[derive(Debug, Clone, Copy, Default)]
struct Rings {
    /// Counted, so that a listener armed before it looked cannot miss one.
    count: u64,
    /// When another process was heard last.
    elsewhere: Option<Instant>,
}

/// The bells of one process. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Doorbells {
    lines: Arc<[Line; 5]>,
    /// Sent along, so that a process ignores the echo of its own rings.
    process: Arc<str>,
}

impl Default for Doorbells {
    fn default() -> Self {
        let line = || Line { rung: watch::Sender::default(), outward: Notify::new() };
        Self {
            lines: Arc::new([line(), line(), line(), line(), line()]),
            process: uuid::Uuid::now_v7().to_string().into(),
        }
    }
}

/// A listener. Arm it, look for work, and only then wait.
#[derive(Debug)]
pub struct Listener(watch::Receiver<Rings>);

impl Listener {
    /// Forgets rings so far: what they announced is seen by a look that comes after.
    pub fn arm(&mut self) {
        self.0.mark_unchanged();
    }

    /// Returns at the first ring since [`Listener::arm`].
    pub async fn rung(&mut self) {
        if self.0.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

impl Listener {
    /// Whether it has rung since [`Listener::arm`].
    pub fn has_rung(&self) -> bool {
        self.0.has_changed().unwrap_or(false)
    }

    /// Whether a process that rang gathers what it has to announce since: until it rings again, look by yourself.
    pub fn is_muffled(&self) -> bool {
        self.0.borrow().elsewhere.is_some_and(|heard| heard.elapsed() < GATHER)
    }
}

impl Doorbells {
    fn line(&self, bell: Bell) -> &Line {
        &self.lines[bell as usize]
    }

    /// Rings here at once and elsewhere soon. Never waits.
    pub fn ring(&self, bell: Bell) {
        let line = self.line(bell);
        line.rung.send_modify(|rings| rings.count += 1);
        line.outward.notify_one();
    }

    /// Listens from now on.
    pub fn listen(&self, bell: Bell) -> Listener {
        Listener(self.line(bell).rung.subscribe())
    }

    /// Carries rings to and from other processes until the stop.
    pub async fn run(self, db: Db, stopping: CancellationToken) -> anyhow::Result<()> {
        let pool = db.side_pool();
        tokio::select! {
            () = stopping.cancelled() => {}
            () = self.receive(&db) => {}
            () = self.send(Bell::Outbox, &pool) => {}
            () = self.send(Bell::Log, &pool) => {}
            () = self.send(Bell::Applied, &pool) => {}
            () = self.send(Bell::Letters, &pool) => {}
            () = self.send(Bell::Group, &pool) => {}
        }
        pool.close().await;
        Ok(())
    }

    async fn send(&self, bell: Bell, pool: &PgPool) {
        loop {
            self.line(bell).outward.notified().await;
            // Failure is no event: the listeners poll.
            let _ = notify(pool, bell, &self.process).await;
            tokio::time::sleep(GATHER).await;
        }
    }

    async fn receive(&self, db: &Db) {
        loop {
            if let Err(error) = self.receive_until_lost(db).await {
                warn!(%error, "wake-ups from other processes are lost; polling until the connection is back");
            }
            tokio::time::sleep(RECONNECT).await;
        }
    }

    async fn receive_until_lost(&self, db: &Db) -> Result<(), sqlx::Error> {
        let pool = db.side_pool();
        let mut listener = PgListener::connect_with(&pool).await?;
        listener.listen_all(Bell::ALL.map(Bell::channel)).await?;
        // What was rung before we listened is not known: everybody looks once.
        for bell in Bell::ALL {
            self.line(bell).rung.send_modify(|rings| rings.count += 1);
        }
        while let Some(notification) = listener.try_recv().await? {
            if notification.payload() == &*self.process {
                continue;
            }
            for bell in Bell::ALL.into_iter().filter(|b| b.channel() == notification.channel()) {
                self.line(bell).rung.send_modify(|rings| {
                    rings.count += 1;
                    rings.elsewhere = Some(Instant::now());
                });
            }
        }
        Ok(())
    }
}

/// Rings in the running processes, for a command that does not run the bells.
pub async fn ring_elsewhere(conn: &mut PgConnection, bell: Bell) -> Result<(), sqlx::Error> {
    notify(conn, bell, "").await
}

async fn notify<'c>(executor: impl PgExecutor<'c>, bell: Bell, process: &str) -> Result<(), sqlx::Error> {
    sqlx::query("select pg_notify($1, $2)")
        .bind(bell.channel())
        .bind(process)
        .execute(executor)
        .await
        .map(drop)
}
