//! The replication connection: from an address to a stream that copies the write-ahead log.
//!
//! Messages and SCRAM are those of pgwire-replication; its own client is not used, because it hands out no socket:
//! a server that has fallen silent could not be told from one that has nothing to say, and its TLS brings a second
//! cryptography provider.

use bytes::{Buf, Bytes, BytesMut};
use pgwire_replication::auth::ScramClient;
use pgwire_replication::protocol::framing::{write_password_message, write_query, write_startup_message};
use pgwire_replication::protocol::messages::{ErrorFields, auth, parse_auth_request};
use secrecy::{ExposeSecret, SecretString};
use sqlx::ConnectOptions;
use sqlx::postgres::PgConnectOptions;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

use super::tls::{Tls, Upgraded};
use super::{PUBLICATION, SlotState, WalError, WalSettings, slot};

/// Version 3.0 of PostgreSQL's protocol.
const PROTOCOL: i32 = 3 << 16;

/// What is read at once.
const READ: usize = 64 * 1024;

/// A message that claims to be longer is none: PostgreSQL's own limit of a value is 1 GB.
const LONGEST: usize = 1 << 30;

/// Any kind of socket.
trait Socket: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Socket for S {}

/// A connection with the bytes that were read and not yet taken.
pub(super) struct Wire {
    socket: Box<dyn Socket>,
    buffer: BytesMut,
}

impl Wire {
    /// Connects, proves who we are and starts copying from where the slot stands.
    pub(super) async fn open(settings: &WalSettings) -> Result<Self, WalError> {
        let address = Address::of(settings)?;
        let mut wire = Self { socket: address.connect().await?, buffer: BytesMut::with_capacity(READ) };
        wire.log_in(&address).await?;
        wire.start(settings).await?;
        Ok(wire)
    }

    /// The next message if all of it was read.
    pub(super) fn buffered(&mut self) -> Result<Option<(u8, Bytes)>, WalError> {
        let Some(head) = self.buffer.first_chunk::<5>() else { return Ok(None) };
        let [tag, length @ ..] = *head;
        // The length counts itself.
        let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
        if !(4..LONGEST).contains(&length) {
            return Err(WalError::Decode(format!("a message of the server claims {length} bytes")));
        }
        if self.buffer.len() <= length {
            self.buffer.reserve(1 + length - self.buffer.len());
            return Ok(None);
        }
        let mut message = self.buffer.split_to(1 + length);
        message.advance(5);
        Ok(Some((tag, message.freeze())))
    }

    /// Waits for more bytes and returns how many came. Cancelling it loses none.
    pub(super) async fn fill(&mut self) -> Result<usize, WalError> {
        self.buffer.reserve(1);
        if self.buffer.is_empty() {
            self.buffer.reserve(READ);
        }
        match self.socket.read_buf(&mut self.buffer).await {
            Ok(0) => Err(WalError::Connection("the server closed the connection".to_owned())),
            Ok(read) => Ok(read),
            Err(error) => Err(WalError::Connection(error.to_string())),
        }
    }

    /// Where to write.
    pub(super) fn writer(&mut self) -> &mut (impl AsyncWrite + Unpin + use<>) {
        &mut self.socket
    }

    async fn message(&mut self) -> Result<(u8, Bytes), WalError> {
        loop {
            if let Some(message) = self.buffered()? {
                return Ok(message);
            }
            self.fill().await?;
        }
    }

    async fn log_in(&mut self, address: &Address) -> Result<(), WalError> {
        let options = &address.options;
        // Values are copied in the text form of the session: the decoder knows ISO dates.
        let session = format!("{} -c datestyle=ISO", options.get_options().unwrap_or_default());
        let parameters = [
            ("user", options.get_username()),
            ("database", options.get_database().unwrap_or(options.get_username())),
            ("replication", "database"),
            ("client_encoding", "UTF8"),
            ("application_name", super::APPLICATION_NAME),
            ("options", session.as_str()),
        ];
        write_startup_message(&mut self.socket, PROTOCOL, &parameters).await?;
        loop {
            match self.message().await? {
                (b'R', payload) => {
                    let (code, data) = parse_auth_request(&payload)?;
                    self.authenticate(address, code, data).await?;
                }
                (b'E', payload) => return Err(refused(&payload, options.get_username())),
                (b'Z', _) => return Ok(()),
                _ => {}
            }
        }
    }

    async fn authenticate(&mut self, address: &Address, code: i32, data: &[u8]) -> Result<(), WalError> {
        let user = address.options.get_username();
        let password = || {
            address.password.as_ref().map(ExposeSecret::expose_secret).ok_or_else(|| {
                WalError::Refused(format!(
                    "the server asks for the password of {user}, and the address has none"
                ))
            })
        };
        match code {
            auth::OK => Ok(()),
            auth::CLEARTEXT_PASSWORD => {
                let terminated = [password()?.as_bytes(), b"\0"].concat();
                Ok(write_password_message(&mut self.socket, &terminated).await?)
            }
            auth::SASL if data.split(|b| *b == 0).any(|mechanism| mechanism == b"SCRAM-SHA-256") => {
                self.scram(user, password()?).await
            }
            _ => Err(WalError::Refused(format!(
                "the server asks {user} for a kind of authentication that is not supported here ({code}): use \
                 scram-sha-256, a client certificate or trust in pg_hba.conf"
            ))),
        }
    }

    async fn scram(&mut self, user: &str, password: &str) -> Result<(), WalError> {
        let scram = ScramClient::new(user);
        let first = scram.client_first.as_bytes();
        let length = u32::try_from(first.len()).unwrap_or(u32::MAX).to_be_bytes();
        let initial = [&b"SCRAM-SHA-256\0"[..], &length, first].concat();
        write_password_message(&mut self.socket, &initial).await?;
        let challenge = self.authentication(auth::SASL_CONTINUE, user).await?;
        let (proof, signed, key) = scram.client_final(password, &challenge)?;
        write_password_message(&mut self.socket, proof.as_bytes()).await?;
        let signature = self.authentication(auth::SASL_FINAL, user).await?;
        Ok(ScramClient::verify_server_final(&signature, &key, &signed)?)
    }

    async fn authentication(&mut self, expected: i32, user: &str) -> Result<String, WalError> {
        loop {
            match self.message().await? {
                (b'R', payload) => {
                    let (code, data) = parse_auth_request(&payload)?;
                    if code == expected {
                        return Ok(String::from_utf8_lossy(data).into_owned());
                    }
                    return Err(WalError::Connection(format!("authentication answered {code}")));
                }
                (b'E', payload) => return Err(refused(&payload, user)),
                _ => {}
            }
        }
    }

    async fn start(&mut self, settings: &WalSettings) -> Result<(), WalError> {
        // 0/0: where the slot was last confirmed.
        let command = format!(
            "START_REPLICATION SLOT \"{}\" LOGICAL 0/0 (proto_version '1', publication_names '{PUBLICATION}')",
            settings.slot
        );
        write_query(&mut self.socket, &command).await?;
        loop {
            match self.message().await? {
                (b'W', _) => return Ok(()),
                (b'E', payload) => return Err(not_started(&payload, settings).await),
                _ => {}
            }
        }
    }
}

/// Why START_REPLICATION was refused. Codes decide, not texts, which may be translated.
async fn not_started(payload: &[u8], settings: &WalSettings) -> WalError {
    let fields = ErrorFields::parse(payload);
    let message = fields.to_error_string();
    match fields.code.as_deref() {
        Some("42704") => WalError::SlotMissing,
        Some("55006") => {
            // `... is active for PID 123`
            let text = fields.message.unwrap_or_default();
            let pid = text.rsplit(|c: char| !c.is_ascii_digit()).find(|digits| !digits.is_empty());
            pid.and_then(|p| p.parse().ok())
                .map_or(WalError::Connection(message), |pid| WalError::SlotActive { pid })
        }
        Some("55000") => match state(settings).await {
            Some(SlotState::Lost(_)) => WalError::SlotLost,
            _ => WalError::Refused(format!(
                "{message}: the server needs wal_level = logical and a restart, and the slot must belong to this \
                 database: see `hashinsight slot show`"
            )),
        },
        Some(code) if passing(code) => WalError::Connection(message),
        _ => WalError::Refused(message),
    }
}

async fn state(settings: &WalSettings) -> Option<SlotState> {
    let mut conn = settings.connect().await.ok()?;
    slot::state(&mut conn, &settings.slot).await.ok()
}

/// Why the server does not let us in.
fn refused(payload: &[u8], user: &str) -> WalError {
    let fields = ErrorFields::parse(payload);
    let message = fields.to_error_string();
    match fields.code.as_deref() {
        Some("42501") => WalError::Refused(format!("{message}: {}", slot::needs_replication(user))),
        Some("53300") => WalError::Connection(format!("{message}: raise max_wal_senders or max_connections")),
        Some(code) if passing(code) => WalError::Connection(message),
        _ => WalError::Refused(message),
    }
}

/// The server said this in the middle of the stream.
pub(super) fn interrupted(payload: &[u8]) -> WalError {
    let fields = ErrorFields::parse(payload);
    let message = fields.to_error_string();
    match fields.code.as_deref() {
        Some("42704") => WalError::Refused(format!(
            "{message}: `hashinsight migrate` makes the publication {PUBLICATION}; a slot that is older than the \
             publication must be made anew: `hashinsight slot drop`, `hashinsight slot create`"
        )),
        _ => WalError::Connection(message),
    }
}

/// Connection trouble, lack of resources, an operator, the system: another attempt may succeed.
fn passing(code: &str) -> bool {
    ["08", "53", "57", "58"].iter().any(|class| code.starts_with(class))
}

/// Where and how to connect.
struct Address {
    options: PgConnectOptions,
    password: Option<SecretString>,
    tls: Tls,
}

impl Address {
    /// Read by sqlx, so that it means the same as for every other connection.
    fn of(settings: &WalSettings) -> Result<Self, WalError> {
        let options = settings.options()?;
        let url = options.to_url_lossy();
        // sqlx writes a path as `file: path`.
        let parameter = |name: &str| {
            let (_, value) = url.query_pairs().find(|(key, _)| key == name)?;
            Some(value.strip_prefix("file: ").unwrap_or(&value).into())
        };
        let client = parameter("sslcert").zip(parameter("sslkey"));
        let tls = Tls { mode: options.get_ssl_mode(), authorities: parameter("sslrootcert"), client };
        let password = url.password().map(|encoded| percent_decoded(encoded).into());
        Ok(Self { options, password, tls })
    }

    async fn connect(&self) -> Result<Box<dyn Socket>, WalError> {
        let port = self.options.get_port();
        if let Some(folder) = self.options.get_socket() {
            let path = folder.join(format!(".s.PGSQL.{port}"));
            let failed = |e| WalError::Connection(format!("{}: {e}", path.display()));
            return Ok(Box::new(UnixStream::connect(&path).await.map_err(failed)?));
        }
        // An IPv6 address stands in brackets in a URL only.
        let host = self.options.get_host().trim_start_matches('[').trim_end_matches(']');
        let failed = |e| WalError::Connection(format!("{host}:{port}: {e}"));
        let stream = TcpStream::connect((host, port)).await.map_err(failed)?;
        stream.set_nodelay(true).map_err(failed)?;
        Ok(match self.tls.upgrade(stream, host).await? {
            Upgraded::Plain(stream) => Box::new(stream),
            Upgraded::Encrypted(stream) => stream,
        })
    }
}

fn percent_decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        let pair = after.get(..2).filter(|_| *first == b'%').and_then(|pair| std::str::from_utf8(pair).ok());
        match pair.and_then(|pair| u8::from_str_radix(pair, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[2..];
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_comes_back_as_it_was_written() {
        let password = "p@ss/w%rd: \u{e4}+?";
        let options = PgConnectOptions::new_without_pgpass().username("u").password(password);
        let url = options.to_url_lossy();
        assert_eq!(percent_decoded(url.password().expect("in the address")), password);
        assert_eq!(percent_decoded("100%"), "100%");
    }
}
