//! The ceilings: what reading alone and producing alone can do with the same backlog.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use sqlx::ConnectOptions;
use tokio::process::Command;
use tokio::time::timeout;

use super::database::Database;
use super::destination::Broker;
use super::drain::Drain;
use super::process::own_usage;
use crate::config::Config;
use crate::db::Db;
use crate::log::kafka::bare;
use crate::log::{Record, partition_of};
use crate::outbox::wal::PUBLICATION;
use crate::outbox::{Cursor, OutboxRow, READER_SETTINGS, Reader};
use crate::publisher::record;

/// Records of one request of the bare producer.
const PER_REQUEST: usize = 1_000;

/// Requests of one record, one after the other: the round trip.
const ROUND_TRIPS: usize = 500;

/// pg_recvlogical has an end to reach: beyond this it will not.
const LONGEST_READ: Duration = Duration::from_secs(300);

/// Reads what became visible after a snapshot as the poll source does, page by page.
pub async fn paged_read(
    db: &Db,
    snapshot: &str,
    page_size: u32,
    mut each: impl FnMut(&[OutboxRow]),
) -> anyhow::Result<Drain> {
    let cursor =
        Cursor { published: snapshot.to_owned(), reading: None, last_position: 0, floor_position: 0 };
    let mut reader = Reader::new(cursor, page_size);
    let mut events = 0;
    let mut session = db.worker_session(&READER_SETTINGS).await?;
    let (started, before) = (Instant::now(), own_usage()?);
    while let Some(page) = reader.next(&mut session).await? {
        reader.advance(&page);
        events += page.rows.len();
        each(&page.rows);
    }
    Ok(Drain {
        events,
        duplicates: 0,
        seconds: started.elapsed().as_secs_f64(),
        cpu_seconds: Some((own_usage()?.cpu - before.cpu).as_secs_f64()),
        peak_rss_bytes: None,
    })
}

/// What became visible after a snapshot.
pub async fn rows(db: &Db, snapshot: &str, page_size: u32) -> anyhow::Result<Vec<OutboxRow>> {
    let mut rows = Vec::new();
    paged_read(db, snapshot, page_size, |page| rows.extend_from_slice(page)).await?;
    Ok(rows)
}

/// Produces the records of these rows from memory to a topic that has nothing else.
pub async fn produce(
    config: &Config,
    broker: &Broker,
    topic: &str,
    rows: &[OutboxRow],
) -> anyhow::Result<Drain> {
    broker.create(topic, broker.partitions).await?;
    let mut lanes: Vec<Vec<Record>> = vec![Vec::new(); usize::try_from(broker.partitions)?];
    for row in rows {
        let partition = partition_of(row.event_key.as_bytes(), broker.partitions);
        lanes[usize::try_from(partition)?].push(record(row.clone()));
    }
    let (started, before) = (Instant::now(), own_usage()?);
    bare::produce(&config.kafka, topic, &lanes, PER_REQUEST).await?;
    let drain = Drain {
        events: rows.len(),
        duplicates: 0,
        seconds: started.elapsed().as_secs_f64(),
        cpu_seconds: Some((own_usage()?.cpu - before.cpu).as_secs_f64()),
        peak_rss_bytes: None,
    };
    broker.topics.delete(topic).await?;
    Ok(drain)
}

/// How long a request of one record takes.
pub async fn round_trips(
    config: &Config,
    broker: &Broker,
    topic: &str,
    row: &OutboxRow,
) -> anyhow::Result<Vec<Duration>> {
    broker.create(topic, 1).await?;
    let lane = vec![record(row.clone()); ROUND_TRIPS];
    let took = bare::produce(&config.kafka, topic, &[lane], 1).await?;
    broker.topics.delete(topic).await?;
    Ok(took)
}

/// Reads a slot up to a position with PostgreSQL's own client, to nowhere.
pub async fn recvlogical(
    program: &PathBuf,
    database: &Database,
    slot: &str,
    end: &str,
    events: usize,
) -> anyhow::Result<Drain> {
    let (options, url) = (database.options(), database.options().to_url_lossy());
    let started = Instant::now();
    let reading = Command::new(program)
        // In the environment, because everybody can read the arguments of a process.
        .env("PGPASSWORD", url.password().unwrap_or_default())
        .arg(format!("--host={}", options.get_host()))
        .arg(format!("--port={}", options.get_port()))
        .arg(format!("--username={}", options.get_username()))
        .arg(format!("--dbname={}", options.get_database().unwrap_or_default()))
        .arg(format!("--slot={slot}"))
        .arg(format!("--endpos={end}"))
        .args(["--start", "--no-loop", "--file=/dev/null", "--fsync-interval=0", "--option=proto_version=1"])
        .arg(format!("--option=publication_names={PUBLICATION}"))
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = timeout(LONGEST_READ, reading)
        .await
        .with_context(|| format!("pg_recvlogical did not reach {end} within {} s", LONGEST_READ.as_secs()))?
        .context("pg_recvlogical cannot be started")?;
    if !output.status.success() {
        bail!("pg_recvlogical failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let seconds = started.elapsed().as_secs_f64();
    Ok(Drain { events, duplicates: 0, seconds, cpu_seconds: None, peak_rss_bytes: None })
}

/// PostgreSQL's client: where Debian puts it, the newest first, or on the path.
pub async fn find_recvlogical() -> Option<PathBuf> {
    let mut found: Vec<(u32, PathBuf)> = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            Some((entry.file_name().to_str()?.parse().ok()?, entry.path().join("bin/pg_recvlogical")))
        })
        .filter(|(_, program)| program.exists())
        .collect();
    found.sort();
    if let Some((_, newest)) = found.pop() {
        return Some(newest);
    }
    let on_path = PathBuf::from("pg_recvlogical");
    let answers = Command::new(&on_path).arg("--version").stdin(Stdio::null()).output().await;
    answers.is_ok_and(|output| output.status.success()).then_some(on_path)
}
