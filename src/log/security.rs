//! Owns how we and the brokers make sure of each other: certificates and the user's password.
//! Promises that a broker is believed only with a certificate for its name, and that no password prints.
//! Called by both clients of Kafka, `wire` and `kafka`.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};
use secrecy::SecretString;
use tracing::warn;

use super::LogError;
use crate::config::{KafkaConfig, SaslMechanism};

/// The brokers by name, and how they are spoken to.
pub(crate) struct Cluster {
    pub(crate) brokers: Vec<String>,
    pub(crate) security: Security,
}

/// How a connection is made safe.
#[derive(Clone, Default)]
pub(crate) struct Security {
    pub(crate) tls: Option<Arc<ClientConfig>>,
    pub(crate) sasl: Option<Sasl>,
}

/// The user.
#[derive(Clone)]
pub(crate) struct Sasl {
    pub(crate) mechanism: SaslMechanism,
    pub(crate) username: String,
    pub(crate) password: SecretString,
}

impl Security {
    /// Reads the files that the configuration names.
    pub(crate) fn of(config: &KafkaConfig) -> Result<Self, LogError> {
        let tls = if config.tls { Some(Arc::new(client_config(config)?)) } else { None };
        let sasl = config.sasl_mechanism().map(|mechanism| Sasl {
            mechanism,
            username: config.sasl_username.clone(),
            password: config.sasl_password.clone(),
        });
        if tls.is_none() && sasl.as_ref().is_some_and(|sasl| sasl.mechanism == SaslMechanism::Plain) {
            warn!(
                "kafka.sasl_mechanism = plain without kafka.tls: the password crosses the network as it is"
            );
        }
        Ok(Self { tls, sasl })
    }
}

fn client_config(config: &KafkaConfig) -> Result<ClientConfig, LogError> {
    // The provider is named, not looked up: the process may have another one in mind.
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| LogError::Refused(format!("TLS: {error}")))?
        .with_root_certificates(authorities(&config.tls_ca_file)?);
    if config.tls_cert_file.is_empty() {
        return Ok(builder.with_no_client_auth());
    }
    let chain = certificates("kafka.tls_cert_file", &config.tls_cert_file)?;
    let (name, path) = ("kafka.tls_key_file", &config.tls_key_file);
    let key = PrivateKeyDer::from_pem_slice(&read(name, path)?)
        .map_err(|error| unusable(name, path, error, "a private key in PEM without a password"))?;
    builder
        .with_client_auth_cert(chain, key)
        .map_err(|error| unusable(name, path, error, "the key of kafka.tls_cert_file"))
}

/// Those of the file, or else those that the system trusts.
fn authorities(file: &str) -> Result<RootCertStore, LogError> {
    let mut roots = RootCertStore::empty();
    if file.is_empty() {
        let found = rustls_native_certs::load_native_certs();
        let (usable, _) = roots.add_parsable_certificates(found.certs);
        if usable == 0 {
            return Err(LogError::Refused(
                "this system trusts no certificate authority: install ca-certificates, or set kafka.tls_ca_file"
                    .to_owned(),
            ));
        }
        return Ok(roots);
    }
    let key = "kafka.tls_ca_file";
    for certificate in certificates(key, file)? {
        roots.add(certificate).map_err(|error| unusable(key, file, error, "certificates of authorities"))?;
    }
    Ok(roots)
}

fn certificates(key: &str, path: &str) -> Result<Vec<CertificateDer<'static>>, LogError> {
    let wanted = "certificates in PEM (-----BEGIN CERTIFICATE-----)";
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&read(key, path)?).collect();
    let found = found.map_err(|error| unusable(key, path, error, wanted))?;
    if found.is_empty() {
        return Err(unusable(key, path, "it has none", wanted));
    }
    Ok(found)
}

fn read(key: &str, path: &str) -> Result<Vec<u8>, LogError> {
    std::fs::read(Path::new(path)).map_err(|error| unusable(key, path, error, "a file that can be read"))
}

fn unusable(key: &str, path: &str, error: impl fmt::Display, wanted: &str) -> LogError {
    LogError::Refused(format!("{key} = {path:?} cannot be used ({error}): name {wanted}"))
}
