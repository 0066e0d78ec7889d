//! A source at work: our publisher or the peer, started, watched and ended alike.

use std::path::PathBuf;

use anyhow::Context as _;

use super::child::OwnProcess;
use super::database::Database;
use super::debezium::{self, Connector, Route};
use super::destination::Broker;
use super::process::Usage;
use crate::cli::Source;
use crate::connector::Connect;

impl Source {
    /// Its name in the report, which is the one of the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Poll => "poll",
            Self::Wal => "wal",
            Self::DebeziumDefault => "debezium-default",
            Self::DebeziumTuned => "debezium-tuned",
            Self::Rskafka => "rskafka",
            Self::PagedRead => "paged-read",
            Self::PgRecvlogical => "pg-recvlogical",
        }
    }

    /// How our own program is told to be it.
    fn arguments(self) -> Option<&'static [&'static str]> {
        match self {
            Self::Poll => Some(&["publish", "--source", "poll"]),
            Self::Wal => Some(&["publish", "--source", "wal"]),
            _ => None,
        }
    }

    /// Whether it is a build of ours.
    pub fn is_ours(self) -> bool {
        self.arguments().is_some()
    }

    /// Whether it is Debezium.
    pub fn is_peer(self) -> bool {
        matches!(self, Self::DebeziumDefault | Self::DebeziumTuned)
    }

    /// Whether it delivers what is committed, as opposed to a ceiling.
    pub fn delivers(self) -> bool {
        self.is_ours() || self.is_peer()
    }

    /// Whether it reads a slot that must be there before what it is to read.
    pub fn reads_slot(self) -> bool {
        self.is_peer() || matches!(self, Self::Wal | Self::PgRecvlogical)
    }
}

/// What sources need to start.
pub struct Starter {
    /// The configuration file of this process.
    pub file: Option<PathBuf>,
    pub connect: Option<Connect>,
    pub broker: Broker,
}

/// A started source.
pub enum Running {
    Publisher(OwnProcess),
    Connector(Connector),
}

impl Starter {
    /// Starts a source that delivers to topics of this prefix, from this slot if it reads one.
    pub async fn start(
        &self,
        source: Source,
        database: &Database,
        topic_prefix: &str,
        slot: Option<&str>,
    ) -> anyhow::Result<Running> {
        if let Some(arguments) = source.arguments() {
            let file = self.file.as_ref();
            let child = OwnProcess::start(&database.config, file, topic_prefix, slot, arguments)?;
            return Ok(Running::Publisher(child));
        }
        let connect = self.connect.as_ref().context("kafka.connect_url is not set: set KAFKA_CONNECT_URL")?;
        let slot = slot.context("Debezium reads a slot")?;
        self.broker.create(&debezium::heartbeat_topic(slot), 1).await?;
        let tuned = source == Source::DebeziumTuned;
        let route = Route { slot, topic_prefix, tuned };
        Ok(Running::Connector(Connector::start(connect, database, &route).await?))
    }
}

impl Running {
    /// Fails if it has ended or failed.
    pub async fn check(&mut self) -> anyhow::Result<()> {
        match self {
            Self::Publisher(child) => child.check(),
            Self::Connector(connector) => connector.check().await,
        }
    }

    /// What its process has used since that started: our publisher's own, or all of Connect's.
    pub fn usage(&self) -> anyhow::Result<Option<Usage>> {
        match self {
            Self::Publisher(child) => child.usage().map(Some),
            Self::Connector(connector) => Ok(connector.usage()),
        }
    }

    /// Ends it.
    pub async fn stop(self) -> anyhow::Result<()> {
        match self {
            Self::Publisher(child) => child.stop().await,
            Self::Connector(connector) => connector.stop().await,
        }
    }
}
