//! Owns one connection to one Kafka broker, for the requests that the client of the data plane does not know.
//! Promises that a request is answered within its deadline, or fails and the connection is not used again.
//! Called by `log::kafka` for topics, and by `group::kafka` for the group protocol.

mod sasl;

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::select_ok;
use kafka_protocol::messages::api_versions_response::{ApiVersion, FinalizedFeatureKey};
use kafka_protocol::messages::{
    ApiKey, ApiVersionsRequest, ApiVersionsResponse, ConsumerGroupDescribeRequest,
    ConsumerGroupDescribeResponse, ConsumerGroupHeartbeatRequest, ConsumerGroupHeartbeatResponse,
    CreatePartitionsRequest, CreatePartitionsResponse, CreateTopicsRequest, CreateTopicsResponse,
    DeleteTopicsRequest, DeleteTopicsResponse, DescribeConfigsRequest, DescribeConfigsResponse, FetchRequest,
    FetchResponse, FindCoordinatorRequest, FindCoordinatorResponse, MetadataRequest, MetadataResponse,
    OffsetCommitRequest, OffsetCommitResponse, OffsetFetchRequest, OffsetFetchResponse, RequestHeader,
    ResponseHeader, SaslAuthenticateRequest, SaslAuthenticateResponse, SaslHandshakeRequest,
    SaslHandshakeResponse,
};
use kafka_protocol::protocol::{Decodable, Encodable, HeaderVersion, Message, StrBytes, VersionRange};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsConnector;

use super::security::{Cluster, Security};

/// The name brokers see in their logs and quotas.
pub(crate) const CLIENT_ID: &str = "hashinsight";

/// The length of an answer comes from the wire: no longer one is read.
const LARGEST_ANSWER: usize = 16 << 20;

/// "The broker does not know this version of ApiVersions": the answer's body is in version 0.
const UNSUPPORTED_VERSION: i16 = 35;

/// Why a request has no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WireError {
    #[error("{broker}: {source}")]
    Io { broker: String, source: io::Error },
    #[error("{broker} did not answer within {} ms", deadline.as_millis())]
    Deadline { broker: String, deadline: Duration },
    /// One of us does not believe the other's certificate.
    #[error(
        "{broker}: TLS: {message}: check kafka.tls_ca_file, kafka.tls_cert_file, and that the broker's certificate \
         names its host and is valid now"
    )]
    Tls { broker: String, message: String },
    #[error(
        "{broker} refuses the user ({message}): check kafka.sasl_username, kafka.sasl_password and \
         kafka.sasl_mechanism"
    )]
    Authentication { broker: String, message: String },
    #[error("{broker} and this build have no version of {key:?} in common")]
    NoCommonVersion { broker: String, key: ApiKey },
    #[error("{broker} sent an answer that cannot be read: {message}")]
    Malformed { broker: String, message: String },
}

/// A request, its key and its answer: the crate pairs them only when it is built for brokers too.
pub(crate) trait Call: Encodable + HeaderVersion + Message {
    const KEY: ApiKey;
    type Answer: Decodable + HeaderVersion + Message;
}

macro_rules! calls {
    ($($key:ident: $request:ty => $answer:ty,)*) => {
        $(impl Call for $request {
            const KEY: ApiKey = ApiKey::$key;
            type Answer = $answer;
        })*
    };
}

calls! {
    ApiVersions: ApiVersionsRequest => ApiVersionsResponse,
    ConsumerGroupDescribe: ConsumerGroupDescribeRequest => ConsumerGroupDescribeResponse,
    ConsumerGroupHeartbeat: ConsumerGroupHeartbeatRequest => ConsumerGroupHeartbeatResponse,
    CreatePartitions: CreatePartitionsRequest => CreatePartitionsResponse,
    CreateTopics: CreateTopicsRequest => CreateTopicsResponse,
    DeleteTopics: DeleteTopicsRequest => DeleteTopicsResponse,
    DescribeConfigs: DescribeConfigsRequest => DescribeConfigsResponse,
    Fetch: FetchRequest => FetchResponse,
    FindCoordinator: FindCoordinatorRequest => FindCoordinatorResponse,
    Metadata: MetadataRequest => MetadataResponse,
    OffsetCommit: OffsetCommitRequest => OffsetCommitResponse,
    OffsetFetch: OffsetFetchRequest => OffsetFetchResponse,
    SaslAuthenticate: SaslAuthenticateRequest => SaslAuthenticateResponse,
    SaslHandshake: SaslHandshakeRequest => SaslHandshakeResponse,
}

/// Bytes to and from a broker, encrypted or not.
trait Stream: AsyncRead + AsyncWrite + Send + Sync + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Sync + Unpin> Stream for T {}

/// One connection, one request at a time.
pub(crate) struct Connection {
    broker: String,
    stream: Box<dyn Stream>,
    deadline: Duration,
    versions: HashMap<i16, VersionRange>,
    features: BTreeMap<String, i16>,
    correlation: i32,
    /// An answer is outstanding or the framing is lost.
    broken: bool,
}

impl Connection {
    /// Connects to a broker and learns its versions, within `deadline`, which each later request has as well.
    pub(crate) async fn open(
        broker: &str,
        security: &Security,
        deadline: Duration,
    ) -> Result<Self, WireError> {
        let expired = || WireError::Deadline { broker: broker.to_owned(), deadline };
        let until = Instant::now() + deadline;
        let stream = timeout_at(until, connect(broker, security)).await.map_err(|_| expired())?;
        let stream = stream.map_err(|error| failed(broker, error))?;
        let mut connection = Self {
            broker: broker.to_owned(),
            stream,
            deadline,
            versions: HashMap::new(),
            features: BTreeMap::new(),
            correlation: 0,
            broken: false,
        };
        let ready = async {
            connection.negotiate().await?;
            match &security.sasl {
                Some(sasl) => sasl::authenticate(&mut connection, sasl).await,
                None => Ok(()),
            }
        };
        timeout_at(until, ready).await.map_err(|_| expired())??;
        Ok(connection)
    }

    /// Connects to whichever of `brokers` answers first: one that hangs must not keep us from the others.
    pub(crate) async fn open_any(cluster: &Cluster, deadline: Duration) -> Result<Self, WireError> {
        let open = |broker| Box::pin(Self::open(broker, &cluster.security, deadline));
        let attempts = cluster.brokers.iter().map(|broker| open(broker));
        select_ok(attempts).await.map(|(connection, _)| connection)
    }

    /// The broker at the other end, as it was named to us.
    pub(crate) fn broker(&self) -> &str {
        &self.broker
    }

    /// The newest version of a request that the broker knows, if any.
    pub(crate) fn newest(&self, key: ApiKey) -> Option<i16> {
        self.versions.get(&(key as i16)).map(|range| range.max)
    }

    /// The level of each feature that the cluster has agreed upon: a broker does not tell its release otherwise.
    pub(crate) fn features(&self) -> &BTreeMap<String, i16> {
        &self.features
    }

    /// Sends a request in the newest version both sides know and waits for its answer.
    pub(crate) async fn request<R: Call>(&mut self, request: &R) -> Result<R::Answer, WireError> {
        let version = self.version::<R>()?;
        let until = Instant::now() + self.deadline;
        let (deadline, broker) = (self.deadline, self.broker.clone());
        let answer = timeout_at(until, self.exchange(request, version))
            .await
            .map_err(|_| WireError::Deadline { broker, deadline })??;
        self.decode::<R>(&answer, version)
    }

    /// The newest version that broker, request and answer have in common: their ranges differ.
    pub(crate) fn version<R: Call>(&self) -> Result<i16, WireError> {
        let known = R::VERSIONS.intersect(&R::Answer::VERSIONS);
        let common = self.versions.get(&(R::KEY as i16)).map(|of_broker| known.intersect(of_broker));
        match common {
            Some(range) if !range.is_empty() => Ok(range.max),
            _ => Err(WireError::NoCommonVersion { broker: self.broker.clone(), key: R::KEY }),
        }
    }

    async fn negotiate(&mut self) -> Result<(), WireError> {
        let request = ApiVersionsRequest::default()
            .with_client_software_name(StrBytes::from_static_str(CLIENT_ID))
            .with_client_software_version(StrBytes::from_static_str(env!("CARGO_PKG_VERSION")));
        let newest = ApiVersionsRequest::VERSIONS.max;
        let answer = self.exchange(&request, newest).await?;
        // The error code comes first in every version, so it can be read before the version is known.
        let unsupported = answer.get(4..6) == Some(&UNSUPPORTED_VERSION.to_be_bytes());
        let answer = if unsupported {
            let oldest = self.exchange(&request, 0).await?;
            self.decode::<ApiVersionsRequest>(&oldest, 0)?
        } else {
            self.decode::<ApiVersionsRequest>(&answer, newest)?
        };
        if answer.error_code != 0 {
            return Err(self.malformed(&format!("ApiVersions error code {}", answer.error_code)));
        }
        let range = |v: &ApiVersion| (v.api_key, VersionRange { min: v.min_version, max: v.max_version });
        self.versions = answer.api_keys.iter().map(range).collect();
        let level = |f: &FinalizedFeatureKey| (f.name.to_string(), f.max_version_level);
        self.features = answer.finalized_features.iter().map(level).collect();
        Ok(())
    }

    /// One frame out, one frame in. Leaves the connection broken unless it completes: an answer that comes
    /// after its deadline must not be taken for the next request's.
    async fn exchange<R: Call>(&mut self, request: &R, version: i16) -> Result<Vec<u8>, WireError> {
        if std::mem::replace(&mut self.broken, true) {
            return Err(self.io(io::ErrorKind::NotConnected.into()));
        }
        self.correlation = self.correlation.wrapping_add(1);
        let header = RequestHeader::default()
            .with_request_api_key(R::KEY as i16)
            .with_request_api_version(version)
            .with_correlation_id(self.correlation)
            .with_client_id(Some(StrBytes::from_static_str(CLIENT_ID)));
        let mut frame = vec![0; 4];
        header.encode(&mut frame, R::header_version(version)).map_err(|e| self.malformed(&e.to_string()))?;
        request.encode(&mut frame, version).map_err(|e| self.malformed(&e.to_string()))?;
        let length = i32::try_from(frame.len() - 4).map_err(|e| self.malformed(&e.to_string()))?;
        frame[..4].copy_from_slice(&length.to_be_bytes());
        self.stream.write_all(&frame).await.map_err(|e| self.io(e))?;
        self.stream.flush().await.map_err(|e| self.io(e))?;

        let length = self.stream.read_i32().await.map_err(|e| self.io(e))?;
        let length = usize::try_from(length).ok().filter(|l| (4..=LARGEST_ANSWER).contains(l));
        let length = length.ok_or_else(|| self.malformed("a frame of impossible length"))?;
        let mut answer = vec![0; length];
        self.stream.read_exact(&mut answer).await.map_err(|e| self.io(e))?;
        if answer[..4] != self.correlation.to_be_bytes() {
            return Err(self.malformed("an answer to another request"));
        }
        self.broken = false;
        Ok(answer)
    }

    fn decode<R: Call>(&self, mut answer: &[u8], version: i16) -> Result<R::Answer, WireError> {
        ResponseHeader::decode(&mut answer, R::Answer::header_version(version))
            .and_then(|_| R::Answer::decode(&mut answer, version))
            .map_err(|e| self.malformed(&e.to_string()))
    }

    fn io(&self, source: io::Error) -> WireError {
        failed(&self.broker, source)
    }

    fn malformed(&self, message: &str) -> WireError {
        WireError::Malformed { broker: self.broker.clone(), message: message.to_owned() }
    }
}

async fn connect(broker: &str, security: &Security) -> io::Result<Box<dyn Stream>> {
    let stream = TcpStream::connect(broker).await?;
    stream.set_nodelay(true)?;
    let Some(tls) = &security.tls else { return Ok(Box::new(stream)) };
    let host = broker.rsplit_once(':').map_or(broker, |(host, _)| host).trim_matches(['[', ']']);
    let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
    Ok(Box::new(TlsConnector::from(Arc::clone(tls)).connect(name, stream).await?))
}

/// A certificate that is not believed comes as an I/O error of the handshake or, if it is ours, of a later read.
fn failed(broker: &str, source: io::Error) -> WireError {
    let broker = broker.to_owned();
    match source.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(error) => WireError::Tls { broker, message: error.to_string() },
        None => WireError::Io { broker, source },
    }
}
