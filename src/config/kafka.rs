//! What brokers are told about us, and we about them: which of these settings go together.

use secrecy::ExposeSecret;

use super::{ConfigError, KafkaConfig, one_of};

/// How a password is shown to a broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SaslMechanism {
    Plain,
    ScramSha256,
    ScramSha512,
}

impl KafkaConfig {
    /// How brokers ask for a user, if they do.
    pub fn sasl_mechanism(&self) -> Option<SaslMechanism> {
        match self.sasl_mechanism.as_str() {
            "plain" => Some(SaslMechanism::Plain),
            "scram-sha-256" => Some(SaslMechanism::ScramSha256),
            "scram-sha-512" => Some(SaslMechanism::ScramSha512),
            _ => None,
        }
    }

    pub(super) fn check_access(&self) -> Result<(), ConfigError> {
        one_of(
            "kafka.sasl_mechanism",
            &self.sasl_mechanism,
            &["", "plain", "scram-sha-256", "scram-sha-512"],
        )?;
        let files = [
            ("kafka.tls_ca_file", &self.tls_ca_file),
            ("kafka.tls_cert_file", &self.tls_cert_file),
            ("kafka.tls_key_file", &self.tls_key_file),
        ];
        if let Some((key, _)) = files.iter().find(|(_, path)| !self.tls && !path.is_empty()) {
            return Err(ConfigError(format!("{key} is set, but kafka.tls is not: set kafka.tls = true")));
        }
        let (certificate, key) = (self.tls_cert_file.is_empty(), self.tls_key_file.is_empty());
        needs(!certificate && key, "kafka.tls_key_file", "the key of kafka.tls_cert_file, a PEM file")?;
        needs(
            certificate && !key,
            "kafka.tls_cert_file",
            "the certificate of kafka.tls_key_file, a PEM file",
        )?;
        let (name, password) = (self.sasl_username.is_empty(), self.sasl_password.expose_secret().is_empty());
        let (mechanism, user) = (self.sasl_mechanism().is_some(), !name || !password);
        needs(mechanism && name, "kafka.sasl_username", "the user of kafka.sasl_mechanism")?;
        needs(
            mechanism && password,
            "kafka.sasl_password",
            "the password of kafka.sasl_username, in KAFKA_SASL_PASSWORD or the file of KAFKA_SASL_PASSWORD_FILE",
        )?;
        needs(
            user && !mechanism,
            "kafka.sasl_mechanism",
            "how the brokers check kafka.sasl_username: plain | scram-sha-256 | scram-sha-512",
        )
    }
}

fn needs(missing: bool, key: &str, what: &str) -> Result<(), ConfigError> {
    if missing { Err(ConfigError(format!("{key} is not set: set {what}"))) } else { Ok(()) }
}
