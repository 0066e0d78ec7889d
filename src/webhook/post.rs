//! One request: resolve, check, connect to the address that was checked, POST, read the status. Redirects are answers
//! like any other.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use hyper::client::conn::http1;
use hyper::{Request, header};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::domain::webhook::{Target, is_public};

const USER_AGENT: &str = concat!("hashinsight/", env!("CARGO_PKG_VERSION"));

/// What a tenant is told of a name that does not resolve, and of one whose address is not for it: told apart, they would say
/// which names the operator's network has.
const NOT_PUBLIC: &str = "the host has no public address: check its name; a host with an address that is not public the \
                          operator has to allow in webhooks.allowed_hosts";

/// Why a request was not answered with success. Its text is for the tenant, what else it holds for the operator's log.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error("the URL is not allowed any more: it {0}")]
    Url(String),
    #[error("the secret was sealed with another webhooks.key: rotate it")]
    Secret,
    #[error("{NOT_PUBLIC}")]
    Name(io::Error),
    #[error("{NOT_PUBLIC}")]
    Address(IpAddr),
    #[error("no connection: {0}")]
    Connect(io::Error),
    #[error("no answer: {0}")]
    Http(hyper::Error),
    #[error("no answer within {} ms", .0.as_millis())]
    Timeout(Duration),
    #[error("answered with status {0}")]
    Status(u16),
}

impl Failure {
    /// The label of the metric.
    pub(super) fn result(&self) -> &'static str {
        match self {
            Self::Url(_) | Self::Address(_) => "refused",
            Self::Secret => "secret",
            Self::Name(_) | Self::Connect(_) | Self::Http(_) => "unreachable",
            Self::Timeout(_) => "timeout",
            Self::Status(_) => "status",
        }
    }

    pub(super) fn status(&self) -> Option<u16> {
        match self {
            Self::Status(status) => Some(*status),
            _ => None,
        }
    }
}

/// What is sent.
pub(super) struct Message<'a> {
    pub(super) id: &'a str,
    pub(super) timestamp: i64,
    pub(super) signatures: &'a str,
    pub(super) body: &'a str,
}

/// A client that trusts the authorities this system trusts.
pub(super) struct Client {
    tls: TlsConnector,
    deadline: Duration,
}

impl Client {
    pub(super) fn new(deadline: Duration) -> Result<Self, rustls::Error> {
        let mut roots = RootCertStore::empty();
        // None at all is no reason not to start: each attempt will say that the certificate is not trusted.
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self { tls: TlsConnector::from(Arc::new(config)), deadline })
    }

    /// Sends a message; the status where it is one of success.
    pub(super) async fn post(&self, target: &Target, message: &Message<'_>) -> Result<u16, Failure> {
        let exchange = Box::pin(self.exchange(target, message));
        let status =
            timeout(self.deadline, exchange).await.map_err(|_| Failure::Timeout(self.deadline))??;
        if (200..300).contains(&status) { Ok(status) } else { Err(Failure::Status(status)) }
    }

    async fn exchange(&self, target: &Target, message: &Message<'_>) -> Result<u16, Failure> {
        let found = lookup_host((target.host.as_str(), target.port)).await.map_err(Failure::Name)?;
        let addresses: Vec<SocketAddr> = found.collect();
        // One that is not public spoils them all: a name that has both kinds is up to something.
        let private = addresses.iter().find(|address| !is_public(address.ip()));
        if let Some(address) = private.filter(|_| !target.allowed) {
            return Err(Failure::Address(address.ip()));
        }
        let stream = TcpStream::connect(addresses.as_slice()).await.map_err(Failure::Connect)?;
        stream.set_nodelay(true).map_err(Failure::Connect)?;
        if !target.tls {
            return send(stream, target, message).await;
        }
        let invalid = |error| Failure::Connect(io::Error::new(io::ErrorKind::InvalidInput, error));
        let name = ServerName::try_from(target.host.clone()).map_err(invalid)?;
        let stream = self.tls.connect(name, stream).await.map_err(Failure::Connect)?;
        send(stream, target, message).await
    }
}

async fn send<S>(stream: S, target: &Target, message: &Message<'_>) -> Result<u16, Failure>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let request = Request::post(target.path.as_str())
        .header(header::HOST, target.authority.as_str())
        .header(header::USER_AGENT, USER_AGENT)
        .header(header::CONTENT_TYPE, "application/json")
        .header("webhook-id", message.id)
        .header("webhook-timestamp", message.timestamp)
        .header("webhook-signature", message.signatures)
        .body(Body::from(message.body.to_owned()))
        .map_err(|error| Failure::Url(error.to_string()))?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(Failure::Http)?;
    // The body of the answer is not read: what it says is not for us, and may not end.
    let mut asked =
        pin!(async move { sender.send_request(request).await.map(|answer| answer.status().as_u16()) });
    let status = tokio::select! {
        biased;
        status = &mut asked => status,
        _ = connection => asked.await,
    };
    status.map_err(Failure::Http)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenant_is_told_no_address() {
        let address = Failure::Address(IpAddr::from([10, 3, 4, 5]));
        let name = Failure::Name(io::Error::other("no such name"));
        assert_eq!(address.to_string(), name.to_string(), "nor whether there is one");
        assert!(!address.to_string().contains("10.3.4.5"), "{address}");
        assert!(address.to_string().contains("webhooks.allowed_hosts"));
        assert!(format!("{address:?}").contains("10.3.4.5"), "the log has it");
    }
}
