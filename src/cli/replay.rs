//! `replay`: dead letters.

use clap::{Args, Subcommand};
use uuid::Uuid;

use super::Json;

/// Arguments of `replay`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Replay {
    #[command(subcommand)]
    pub command: Option<ReplayCommand>,
    #[command(flatten)]
    pub letters: Letters,
}

/// What to do with dead letters; without a word, replay them.
#[derive(Debug, Subcommand)]
pub enum ReplayCommand {
    /// Count dead letters by group, kind and status.
    Stats(Json),
    /// Settle one for good: its event will not be applied.
    Discard(Discard),
    /// The same as without this word.
    Replay(Letters),
}

/// Which dead letters to replay. The login name of the operating system is recorded in the audit log.
#[derive(Debug, Args)]
pub struct Letters {
    /// Only those of this group, or of `publisher`: events that could not be published.
    #[arg(long, value_name = "NAME")]
    pub consumer: Option<String>,
    /// Only those that died within so many hours.
    #[arg(long, value_name = "HOURS", default_value_t = 24, value_parser = clap::value_parser!(i32).range(1..=87_600))]
    pub hours: i32,
    /// Only events of this kind, such as miner.added.
    #[arg(long, value_name = "KIND")]
    pub event_kind: Option<String>,
    /// At most so many, the oldest first.
    #[arg(long, value_name = "COUNT", default_value_t = 1_000, value_parser = clap::value_parser!(i64).range(1..=1_000_000))]
    pub limit: i64,
    /// At most so many a second.
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub rate: Option<u32>,
    /// Only say how many there are.
    #[arg(long)]
    pub dry_run: bool,
    #[command(flatten)]
    pub json: Json,
}

/// Arguments of `replay discard`. The login name of the operating system is recorded in the audit log.
#[derive(Debug, Args)]
pub struct Discard {
    /// The dead letter.
    #[arg(long, value_name = "ID")]
    pub id: Uuid,
    /// Why; recorded beside it.
    #[arg(long, value_name = "TEXT", value_parser = reason)]
    pub reason: String,
    #[command(flatten)]
    pub json: Json,
}

/// Some text, and not a novel: as the API takes it.
fn reason(text: &str) -> Result<String, String> {
    let text = text.trim();
    match text.chars().count() {
        1..=500 => Ok(text.to_owned()),
        _ => Err("a reason has 1 to 500 characters".to_owned()),
    }
}
