//! Reads the outbox from the write-ahead log: a replication slot keeps what was not confirmed, a publication says what
//! is sent.
//!
//! ```text
//!   walsender ──► wire ──► decode ──► stream: batches of rows, each with the place to confirm once it is published
//!       ▲                                │
//!       └──────── confirmed place ◄──────┘      never past what the caller confirmed
//! ```
//!
//! Only committed transactions arrive, in the order of their commits. After a restart the stream begins again at the
//! confirmed place: nothing is lost, some may come twice.

use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use sqlx::ConnectOptions;
use sqlx::postgres::{PgConnectOptions, PgConnection};

use crate::config::{Config, ConfigError};
use crate::outbox::OutboxRow;

mod decode;
mod lsn;
mod pace;
pub mod slot;
mod stream;
mod tls;
mod visibility;
mod watch;
mod wire;

pub use decode::{DecodeError, Decoder, Message};
pub use lsn::{InvalidLsn, Lsn};
pub use slot::{Created, Slot, SlotError, SlotState};
pub use stream::{Confirmer, WalStream};
pub use visibility::Visibility;
pub use watch::SlotWatch;

/// The publication of the outbox; a migration makes it.
pub const PUBLICATION: &str = "hashinsight_outbox";

/// The name of our reader's connections: takeover knows it by the prefix that all of ours have.
pub const APPLICATION_NAME: &str = "hashinsight wal";

/// What reading from the write-ahead log needs.
#[derive(Debug, Clone)]
pub struct WalSettings {
    /// A login with the attribute REPLICATION, in the database of the outbox.
    pub database_url: SecretString,
    /// The slot's name; see [`slot::name`].
    pub slot: String,
    /// Rows handed out at once.
    pub batch_rows: usize,
    /// How often the confirmed place is reported, and an answer asked for.
    pub status_interval: Duration,
    /// A server that says nothing for so long is given up.
    pub silence_timeout: Duration,
}

impl WalSettings {
    /// Of the configuration, for a slot of this name.
    pub fn new(config: &Config, slot: &str) -> Result<Self, ConfigError> {
        Ok(Self {
            database_url: config.wal_database_url()?.into(),
            slot: slot.to_owned(),
            batch_rows: usize::try_from(config.publisher.batch_size).unwrap_or(usize::MAX),
            status_interval: Duration::from_millis(config.wal.status_interval_ms),
            silence_timeout: Duration::from_millis(config.wal.silence_timeout_ms),
        })
    }

    /// An ordinary connection of the same login, for [`slot`]. Making a slot waits for older transactions, so no
    /// statement has a deadline; a lost client is noticed within a second, or it would wait on and leave a slot behind.
    pub async fn connect(&self) -> Result<PgConnection, WalError> {
        let limits = [("statement_timeout", "0"), ("client_connection_check_interval", "1000")];
        let options = self.options()?.options(limits);
        let connected = tokio::time::timeout(self.silence_timeout, options.connect()).await;
        connected.map_err(|_| WalError::Silent)?.map_err(|e| WalError::Connection(e.to_string()))
    }

    fn options(&self) -> Result<PgConnectOptions, WalError> {
        // The cause may quote the address.
        let unreadable =
            |_| WalError::Refused("HASHINSIGHT__WAL__DATABASE_URL or DATABASE_URL is no address".to_owned());
        let options: PgConnectOptions = self.database_url.expose_secret().parse().map_err(unreadable)?;
        Ok(options.application_name(APPLICATION_NAME).disable_statement_logging())
    }
}

/// Rows to publish, in the order of their commits.
#[derive(Debug)]
pub struct WalBatch {
    /// May end within a transaction, and may be none.
    pub rows: Vec<OutboxRow>,
    /// Where the last transaction ends that is whole in the batches so far: to be confirmed when every row of them is
    /// published. `None`: nothing new may be confirmed.
    pub confirm: Option<Lsn>,
    /// The transactions that wrote them, by the lower half of their ids.
    pub transactions: Vec<u32>,
}

/// Why the stream ended or does not start.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WalError {
    /// No slot of this name: everything since it was lost must be read from the table.
    #[error("the replication slot does not exist: `hashinsight slot create`")]
    SlotMissing,
    /// The server has removed what the slot had not confirmed yet.
    #[error(
        "the replication slot is lost: the server has removed write-ahead log that was not read yet \
         (max_slot_wal_keep_size): `hashinsight slot drop`, `hashinsight slot create`"
    )]
    SlotLost,
    /// Another connection reads from the slot.
    #[error("the replication slot is being read by the backend with process id {pid}")]
    SlotActive { pid: i32 },
    /// Nothing arrived, although answers were asked for.
    #[error("the server has not answered for wal.silence_timeout_ms")]
    Silent,
    /// The connection was lost or not made; another attempt may succeed.
    #[error("replication connection: {0}")]
    Connection(String),
    /// What arrived is no message we know.
    #[error("write-ahead log: {0}")]
    Decode(String),
    /// It will be refused again until somebody changes something.
    #[error("replication is refused: {0}")]
    Refused(String),
}

impl From<DecodeError> for WalError {
    fn from(error: DecodeError) -> Self {
        Self::Decode(error.to_string())
    }
}

impl From<pgwire_replication::PgWireError> for WalError {
    fn from(error: pgwire_replication::PgWireError) -> Self {
        match error {
            pgwire_replication::PgWireError::Auth(reason) => Self::Refused(reason),
            other => Self::Connection(other.to_string()),
        }
    }
}
