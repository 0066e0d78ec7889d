//! TLS of the replication connection, with the meaning that `sslmode` has for every other connection.
//!
//! The cryptography is ring's, named outright: a process with two providers would otherwise have to choose one.

use std::path::PathBuf;
use std::sync::Arc;

use sqlx::postgres::PgSslMode;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::client::WebPkiServerVerifier;
use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio_rustls::rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
};

use super::WalError;

/// What the address says about TLS.
#[derive(Debug)]
pub(super) struct Tls {
    pub(super) mode: PgSslMode,
    /// `sslrootcert`: authorities beside those of the system.
    pub(super) authorities: Option<PathBuf>,
    /// `sslcert` and `sslkey`.
    pub(super) client: Option<(PathBuf, PathBuf)>,
}

/// A stream before or after the upgrade.
pub(super) enum Upgraded<S> {
    Plain(S),
    Encrypted(Box<TlsStream<S>>),
}

impl Tls {
    /// Asks the server for TLS where the mode wants it.
    pub(super) async fn upgrade<S>(&self, mut stream: S, host: &str) -> Result<Upgraded<S>, WalError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        if matches!(self.mode, PgSslMode::Disable | PgSslMode::Allow) {
            return Ok(Upgraded::Plain(stream));
        }
        let lost = |e: &dyn std::fmt::Display| WalError::Connection(format!("asking for TLS: {e}"));
        pgwire_replication::protocol::framing::write_ssl_request(&mut stream).await.map_err(|e| lost(&e))?;
        let answer = stream.read_u8().await.map_err(|e| lost(&e))?;
        if answer != b'S' {
            return match self.mode {
                PgSslMode::Prefer => Ok(Upgraded::Plain(stream)),
                _ => Err(WalError::Refused(
                    "the server offers no TLS: turn on its `ssl`, or set sslmode=disable in \
                     HASHINSIGHT__WAL__DATABASE_URL or DATABASE_URL"
                        .to_owned(),
                )),
            };
        }
        let unusable = |e: &dyn std::fmt::Display| {
            WalError::Refused(format!("TLS to {host}: {e}; check sslmode, sslrootcert, sslcert and sslkey"))
        };
        let name = ServerName::try_from(host.to_owned()).map_err(|e| unusable(&e))?;
        let config = self.config().map_err(|e| unusable(&e))?;
        let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await.map_err(|e| {
            // A certificate that is not trusted stays so; anything else may pass.
            match e.get_ref().and_then(|inner| inner.downcast_ref()) {
                Some(Error::InvalidCertificate(_)) => unusable(&e),
                _ => lost(&e),
            }
        })?;
        Ok(Upgraded::Encrypted(Box::new(stream)))
    }

    fn config(&self) -> anyhow::Result<ClientConfig> {
        let provider = Arc::new(ring::default_provider());
        let verify = match self.mode {
            PgSslMode::VerifyFull => Verify::All(self.chain(&provider)?),
            PgSslMode::VerifyCa => Verify::Chain(self.chain(&provider)?),
            _ => Verify::Nothing,
        };
        let config = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Verifier { verify, provider }));
        let Some((certificate, key)) = &self.client else { return Ok(config.with_no_client_auth()) };
        let chain = CertificateDer::pem_file_iter(certificate)?.collect::<Result<Vec<_>, _>>()?;
        Ok(config.with_client_auth_cert(chain, PrivateKeyDer::from_pem_file(key)?)?)
    }

    fn chain(&self, provider: &Arc<CryptoProvider>) -> anyhow::Result<Arc<WebPkiServerVerifier>> {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        if let Some(path) = &self.authorities {
            for certificate in CertificateDer::pem_file_iter(path)? {
                roots.add(certificate?)?;
            }
        }
        Ok(WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider)).build()?)
    }
}

/// How much of the server's certificate is checked.
#[derive(Debug)]
enum Verify {
    /// Who signed it, and that it names the host.
    All(Arc<WebPkiServerVerifier>),
    /// Who signed it.
    Chain(Arc<WebPkiServerVerifier>),
    Nothing,
}

#[derive(Debug)]
struct Verifier {
    verify: Verify,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let check = |chain: &WebPkiServerVerifier| {
            chain.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
        };
        match &self.verify {
            Verify::All(chain) => check(chain),
            Verify::Chain(chain) => match check(chain) {
                Err(Error::InvalidCertificate(
                    CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
                )) => Ok(ServerCertVerified::assertion()),
                verdict => verdict,
            },
            Verify::Nothing => Ok(ServerCertVerified::assertion()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
