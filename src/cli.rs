//! Owns the command line: one subcommand per role, one struct per subcommand's arguments.
//! Promises that what is listed works.
//! Called by `main`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use crate::config::EventSource;
use crate::identifier::TenantId;

mod bench;
mod replay;

pub use bench::{Bench, BenchCommand, BusinessBench, Case, ConsumeBench, PublishBench, Source};
pub use replay::{Discard, Letters, Replay, ReplayCommand};

/// Bitcoin-mining portfolios, current in real time.
#[derive(Debug, Parser)]
#[command(name = "hashinsight", version, propagate_version = true, arg_required_else_help = true)]
pub struct Cli {
    /// Configuration file in TOML; the environment wins over it.
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Bring the database to this version: roles, schema, policies, model catalogue, partitions, topics.
    Migrate(Migrate),
    /// Serve the HTTP API.
    Serve,
    /// Publish committed events from the outbox to the log.
    Publish(Publish),
    /// Run one consumer group.
    Consume(Consume),
    /// Run every role in one process, on PostgreSQL alone where no broker is configured.
    Standalone(Standalone),
    /// Create or show the topics.
    Topics(Topics),
    /// Create, show or drop the replication slot that keeps what was not published yet.
    Slot(Slot),
    /// Show or register the Debezium connector, which can publish in place of `publish`.
    Connector(Connector),
    /// Check every dependency, role, policy, slot, topic, version and clock; each failure names its remedy.
    Doctor(Json),
    /// Show how far each group is behind the log.
    Lag(Lag),
    /// Use the offsets that were set in Kafka.
    Offsets(Offsets),
    /// Recompute the read models of a group from the tables of record, while everything runs.
    Rebuild(Rebuild),
    /// Hand dead letters over again to the group that failed, count them, or discard one.
    Replay(Replay),
    /// Show the effective configuration and where each value comes from; secrets are masked.
    Config(Json),
    /// Issue tokens.
    Token(Token),
    /// Measure this build against its peers on the services that are configured.
    Bench(Bench),
}

/// Arguments of `migrate`.
#[derive(Debug, Args)]
pub struct Migrate {
    /// Only show what is applied and what is not.
    #[arg(long)]
    pub status: bool,
    #[command(flatten)]
    pub json: Json,
}

/// Arguments of `publish`.
#[derive(Debug, Args)]
pub struct Publish {
    /// Where events are read: the outbox table, or the write-ahead log; overrides publisher.source.
    #[arg(long, value_name = "SOURCE")]
    pub source: Option<EventSource>,
    /// Repair the cursor of a restored or moved database and end: what was not published is published again.
    #[arg(long)]
    pub rebase: bool,
    /// With --rebase: the transaction ids are the same as before, which pg_upgrade alone promises.
    #[arg(long, requires = "rebase")]
    pub xids_preserved: bool,
    /// With --rebase: print one JSON document.
    #[arg(long, requires = "rebase")]
    pub json: bool,
}

/// Arguments of `consume`.
#[derive(Debug, Args)]
pub struct Consume {
    /// The group to be a member of.
    #[arg(long, value_name = "NAME")]
    pub group: String,
}

/// Arguments of `standalone`.
#[derive(Debug, Args)]
pub struct Standalone {
    /// Simulate a fleet whose miners, prices and difficulty keep changing; prints a token and calls to try.
    #[arg(long)]
    pub demo: bool,
    /// End by itself after this long, such as 30s or 5m, with a summary.
    #[arg(long = "for", value_name = "TIME", value_parser = duration, requires = "demo")]
    pub run_for: Option<Duration>,
    /// Print the summary as one JSON document and nothing else.
    #[arg(long, requires = "run_for")]
    pub json: bool,
}

/// Arguments of `topics`.
#[derive(Debug, Args)]
pub struct Topics {
    #[command(subcommand)]
    pub command: TopicsCommand,
}

/// What to do with the topics.
#[derive(Debug, Subcommand)]
pub enum TopicsCommand {
    /// Create the topics that are missing.
    Ensure(Json),
    /// Show the topics and what differs from what they should be.
    Describe(Json),
    /// Give the topics of events more partitions while everything runs. Publishing pauses until every group has
    /// applied what is published, so that the events of one miner are applied in their order. Run again after a crash.
    Alter(TopicsAlter),
}

/// Arguments of `topics alter`.
#[derive(Debug, Args)]
pub struct TopicsAlter {
    /// How many each topic is to have; more than now.
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(i32).range(1..=10_000))]
    pub partitions: i32,
    /// Only this topic, such as events.miner.
    #[arg(long, value_name = "TOPIC")]
    pub topic: Option<String>,
    /// How long publishing may pause; when the groups take longer, nothing is changed.
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub wait: u64,
    #[command(flatten)]
    pub json: Json,
}

/// Arguments of `slot`.
#[derive(Debug, Args)]
pub struct Slot {
    #[command(subcommand)]
    pub command: SlotCommand,
}

/// What to do with a replication slot.
#[derive(Debug, Subcommand)]
pub enum SlotCommand {
    /// Create it; waits for transactions that are open now.
    Create(SlotChoice),
    /// Show its state, what it holds back, and who reads it.
    Show(SlotChoice),
    /// Drop it.
    Drop(SlotDrop),
}

/// Whose slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum SlotReader {
    /// Our own publisher's: wal.slot.
    Wal,
    /// The Debezium connector's.
    Debezium,
}

/// Which slot, and how to print.
#[derive(Debug, Args)]
pub struct SlotChoice {
    /// Whose slot.
    #[arg(long, value_enum, value_name = "READER", default_value = "wal")]
    pub slot: SlotReader,
    #[command(flatten)]
    pub json: Json,
}

/// Arguments of `slot drop`.
#[derive(Debug, Args)]
pub struct SlotDrop {
    #[command(flatten)]
    pub choice: SlotChoice,
    /// End a reader of ours that holds it.
    #[arg(long)]
    pub force: bool,
}

/// Arguments of `connector`.
#[derive(Debug, Args)]
pub struct Connector {
    #[command(subcommand)]
    pub command: ConnectorCommand,
}

/// What to do with the connector.
#[derive(Debug, Subcommand)]
pub enum ConnectorCommand {
    /// Print its name and settings as JSON.
    Print,
    /// Register it with Kafka Connect, or change its settings there, and wait until it runs.
    Register,
    /// Show whether it runs, and what differs from the settings that would be registered.
    Status(Json),
}

/// Arguments of `lag`.
#[derive(Debug, Args)]
pub struct Lag {
    /// Only this group.
    #[arg(long, value_name = "NAME")]
    pub group: Option<String>,
    #[command(flatten)]
    pub json: Json,
}

/// Arguments of `rebuild`.
#[derive(Debug, Args)]
pub struct Rebuild {
    /// The group whose read models are recomputed.
    #[arg(long, value_name = "NAME")]
    pub group: String,
    /// Only those of this tenant.
    #[arg(long, value_name = "TENANT")]
    pub tenant: Option<TenantId>,
    #[command(flatten)]
    pub json: Json,
}

/// Arguments of `offsets`.
#[derive(Debug, Args)]
pub struct Offsets {
    #[command(subcommand)]
    pub command: OffsetsCommand,
}

/// What to do with a group's offsets.
#[derive(Debug, Subcommand)]
pub enum OffsetsCommand {
    /// Continue where Kafka says instead of where the database says: after kafka-consumer-groups.sh --reset-offsets.
    /// Refused while the group has members. Going back repeats nothing that the inbox remembers; going forward skips.
    Adopt(OffsetsAdopt),
}

/// Arguments of `offsets adopt`.
#[derive(Debug, Args)]
pub struct OffsetsAdopt {
    /// Whose offsets.
    #[arg(long, value_name = "NAME")]
    pub group: String,
    /// Only say what would change.
    #[arg(long)]
    pub dry_run: bool,
    #[command(flatten)]
    pub json: Json,
}

/// Arguments of `token`.
#[derive(Debug, Args)]
pub struct Token {
    #[command(subcommand)]
    pub command: TokenCommand,
}

/// Kinds of tokens.
#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Sign a JWT for development with JWT_SECRET.
    Jwt(Jwt),
}

/// Arguments of `token jwt`.
#[derive(Debug, Args)]
pub struct Jwt {
    /// The tenant the token opens.
    #[arg(long, value_name = "TENANT")]
    pub tenant: String,
    /// The user it speaks for.
    #[arg(long, value_name = "USER")]
    pub user: String,
    /// A scope such as miners:read; may be repeated or separated by commas.
    #[arg(long = "scope", value_name = "SCOPE", value_delimiter = ',')]
    pub scopes: Vec<String>,
    /// Role, such as admin: every scope in the tenant.
    #[arg(long, value_name = "ROLE")]
    pub role: Option<String>,
    /// How long it is valid, such as 1h.
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = duration)]
    pub ttl: Duration,
}

/// Output for scripts.
#[derive(Debug, Clone, Copy, Args)]
pub struct Json {
    /// Print one JSON document.
    #[arg(long)]
    pub json: bool,
}

/// A whole number and a unit: ms, s, m, h or d.
fn duration(text: &str) -> Result<Duration, String> {
    let allowed = || format!("{text:?} is no duration: a whole number and ms, s, m, h or d, such as 30s");
    let digits = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(allowed)?;
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| allowed())?;
    let millis = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err(allowed()),
    };
    match number.checked_mul(millis).filter(|ms| (1..=366 * 86_400_000).contains(ms)) {
        Some(ms) => Ok(Duration::from_millis(ms)),
        None => Err(format!("{text:?} is out of range: 1ms to 366d")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn durations_have_units() {
        assert_eq!(duration("30s"), Ok(Duration::from_secs(30)));
        assert_eq!(duration("150ms"), Ok(Duration::from_millis(150)));
        assert_eq!(duration("1h"), Ok(Duration::from_secs(3_600)));
        for refused in ["30", "s", "", "-1s", "1.5s", "1w", "0s", "99999999999999999999s", "400d"] {
            assert!(duration(refused).is_err(), "{refused}");
        }
    }
}
