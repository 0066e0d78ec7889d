//! The arguments of `bench`.

use clap::{Args, Subcommand, ValueEnum};

use super::Json;

/// Arguments of `bench`.
#[derive(Debug, Args)]
pub struct Bench {
    #[command(subcommand)]
    pub command: BenchCommand,
}

/// What to measure.
#[derive(Debug, Subcommand)]
pub enum BenchCommand {
    /// From the outbox to the log: how fast a backlog drains, and how late a record is at a given load.
    Publish(PublishBench),
    /// From the log to the read models: how fast a group applies a backlog, and how late an event at a given load.
    Consume(ConsumeBench),
    /// What the calculations take: backtests, curtailment, portfolios, telemetry.
    Business(BusinessBench),
}

/// Arguments of `bench business`.
#[derive(Debug, Clone, Args)]
pub struct BusinessBench {
    /// How often each is done.
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub rounds: u32,
    /// Miners of the large fleet of one owner.
    #[arg(long, value_name = "N", default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub miners: u32,
    /// Owners that change in one batch.
    #[arg(long, value_name = "N", default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub owners: u32,
    /// Points of telemetry a second, each of another miner.
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub points: u32,
    /// For how long telemetry comes.
    #[arg(long, value_name = "N", default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=3_600))]
    pub seconds: u32,
    #[command(flatten)]
    pub json: Json,
}

/// Arguments of `bench consume`.
#[derive(Debug, Clone, Args)]
pub struct ConsumeBench {
    /// Events of a backlog.
    #[arg(long, value_name = "N", default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    pub events: u32,
    /// Rounds in which everyone gets their turn, each time in another order.
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub pairs: u32,
    /// Owners of the events: a batch recomputes each of its owners once.
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub owners: u32,
    /// Loads in events per second under which lateness and memory are measured; none with "".
    #[arg(long, value_name = "RATE,..", value_delimiter = ',', default_value = "10000", value_parser = rate)]
    pub rates: Vec<Option<u32>>,
    /// How long each load lasts.
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=3_600))]
    pub seconds: u32,
    #[command(flatten)]
    pub json: Json,
}

/// Arguments of `bench publish`.
#[derive(Debug, Clone, Args)]
pub struct PublishBench {
    /// Events of a backlog.
    #[arg(long, value_name = "N", default_value_t = 200_000, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    pub events: u32,
    /// Rounds in which every source gets its turn, each time in another order.
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub pairs: u32,
    /// Loads in events per second at which latency is measured; none with "".
    #[arg(long, value_name = "RATE,..", value_delimiter = ',', default_value = "100,500", value_parser = rate)]
    pub rates: Vec<Option<u32>>,
    /// How long each load lasts.
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=3_600))]
    pub seconds: u32,
    /// Bytes that an event carries beside its envelope of about 300.
    #[arg(long, value_name = "BYTES", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=262_144))]
    pub ballast: u32,
    /// Hold a REPEATABLE READ transaction that has written an event open during each load: nothing that dies meanwhile
    /// can be cleaned away.
    #[arg(long)]
    pub hold_transaction: bool,
    /// What to measure.
    #[arg(long, value_name = "SOURCE,..", value_delimiter = ',', value_enum, default_values_t = Source::DEFAULT)]
    pub sources: Vec<Source>,
    /// How a backlog was written; none with "".
    #[arg(long, value_name = "CASE,..", value_delimiter = ',', default_value = "single,thousand", value_parser = case)]
    pub cases: Vec<Option<Case>>,
    #[command(flatten)]
    pub json: Json,
}

/// What is measured: our publishers, a peer, or a ceiling.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, ValueEnum, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// `publish`, which polls the outbox.
    Poll,
    /// `publish --source wal`, which reads the write-ahead log.
    Wal,
    /// Debezium in Kafka Connect, its settings left as they are.
    DebeziumDefault,
    /// Debezium in Kafka Connect, tuned for speed.
    DebeziumTuned,
    /// Ceiling: rskafka alone produces the same records from memory.
    Rskafka,
    /// Ceiling: the pages of the poll source are read and go nowhere.
    PagedRead,
    /// Ceiling: pg_recvlogical reads the same position of the WAL to nowhere.
    PgRecvlogical,
}

impl Source {
    const DEFAULT: [Self; 7] = [
        Self::Poll,
        Self::Wal,
        Self::DebeziumDefault,
        Self::DebeziumTuned,
        Self::Rskafka,
        Self::PagedRead,
        Self::PgRecvlogical,
    ];
}

/// How the events of a backlog were written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, ValueEnum, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Case {
    /// One event in a transaction.
    Single,
    /// A thousand events in a transaction.
    Thousand,
}

/// An empty word stands for none.
fn rate(text: &str) -> Result<Option<u32>, String> {
    match text {
        "" => Ok(None),
        text => match text.parse() {
            Ok(rate @ 1..=100_000) => Ok(Some(rate)),
            _ => Err(format!("{text:?} is no rate: 1 to 100000 events per second")),
        },
    }
}

fn case(text: &str) -> Result<Option<Case>, String> {
    if text.is_empty() { Ok(None) } else { Case::from_str(text, false).map(Some) }
}
