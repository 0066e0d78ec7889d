//! Looks after the roles while a run goes on: what they use, and whether they live.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hashinsight::outbox;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::stage::Stage;
use crate::history::{Ended, Sample};

const EVERY: Duration = Duration::from_millis(500);

/// What was seen.
#[derive(Default)]
pub(crate) struct Seen {
    pub(crate) samples: Mutex<Vec<Sample>>,
    pub(crate) ended: Mutex<Vec<Ended>>,
}

/// Until it is stopped: samples, and starts again what ended by itself, as whoever operates it would.
pub(crate) async fn run(stage: Arc<Stage>, seen: Arc<Seen>, began: Instant, stop: CancellationToken) {
    while !stop.is_cancelled() {
        let sample = sample(&stage, began).await;
        seen.samples.lock().expect("no panic").push(sample);
        for role in stage.roles.values() {
            // One that is held suffers.
            let Ok(mut role) = role.try_lock() else { continue };
            let Some(status) = role.ended() else { continue };
            let ended = Ended {
                role: role.name.to_owned(),
                at: micros(began),
                status: status.to_string(),
                was_ready: role.was_ready(),
                last_words: role.last_words(),
            };
            seen.ended.lock().expect("no panic").push(ended);
            role.start();
        }
        tokio::select! {
            () = stop.cancelled() => {}
            () = sleep(EVERY) => {}
        }
    }
}

pub(crate) async fn sample(stage: &Stage, began: Instant) -> Sample {
    let mut memory = std::collections::BTreeMap::new();
    for (name, role) in &stage.roles {
        if let Ok(role) = role.try_lock()
            && let Some(bytes) = role.memory()
        {
            memory.insert((*name).to_owned(), bytes);
        }
    }
    Sample {
        at: micros(began),
        memory,
        disk: stage.disks.iter().map(|folder| size(folder)).sum(),
        backlog: backlog(stage).await,
    }
}

/// None while the database does not answer.
async fn backlog(stage: &Stage) -> Option<i64> {
    let ask = async {
        let mut conn = stage.test.admin.acquire().await.ok()?;
        Some(outbox::progress(&mut conn).await.ok()?.backlog)
    };
    timeout(EVERY, ask).await.ok()?
}

pub(crate) fn micros(began: Instant) -> u64 {
    u64::try_from(began.elapsed().as_micros()).expect("a run is shorter")
}

/// Of the files in a folder; one that goes while it is looked at counts nothing.
fn size(folder: &Path) -> u64 {
    let of = |entry: std::fs::DirEntry| {
        let about = entry.metadata().ok()?;
        Some(if about.is_dir() { size(&entry.path()) } else { about.len() })
    };
    std::fs::read_dir(folder).map_or(0, |entries| entries.flatten().filter_map(of).sum())
}
