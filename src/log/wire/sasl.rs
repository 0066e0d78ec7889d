//! The user's password, shown to a broker the way the mechanism wants it.

use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::{SaslAuthenticateRequest, SaslHandshakeRequest};
use kafka_protocol::protocol::StrBytes;
use rsasl::config::SASLConfig;
use rsasl::prelude::{Mechname, SASLClient};
use secrecy::ExposeSecret;

use super::{Connection, WireError};
use crate::config::SaslMechanism;
use crate::log::security::Sasl;

/// Proves who we are; with SCRAM the broker proves that it knows us as well.
pub(super) async fn authenticate(connection: &mut Connection, sasl: &Sasl) -> Result<(), WireError> {
    let name = match sasl.mechanism {
        SaslMechanism::Plain => "PLAIN",
        SaslMechanism::ScramSha256 => "SCRAM-SHA-256",
        SaslMechanism::ScramSha512 => "SCRAM-SHA-512",
    };
    let broker = connection.broker().to_owned();
    let refused = |message: String| WireError::Authentication { broker: broker.clone(), message };
    let handshake = SaslHandshakeRequest::default().with_mechanism(StrBytes::from_static_str(name));
    let answer = connection.request(&handshake).await?;
    if let Some(error) = ResponseError::try_from_code(answer.error_code) {
        let offered: Vec<&str> = answer.mechanisms.iter().map(StrBytes::as_str).collect();
        return Err(refused(format!("{error}; it offers {}", offered.join(", "))));
    }
    let password = sasl.password.expose_secret().to_owned();
    let config = SASLConfig::with_credentials(None, sasl.username.clone(), password)
        .map_err(|error| refused(error.to_string()))?;
    let mechanism = Mechname::parse(name.as_bytes()).map_err(|error| refused(error.to_string()))?;
    let mut session =
        SASLClient::new(config).start_suggested(&[mechanism]).map_err(|error| refused(error.to_string()))?;
    let mut received: Option<Vec<u8>> = None;
    loop {
        let mut message = Vec::new();
        let state =
            session.step(received.as_deref(), &mut message).map_err(|error| refused(error.to_string()))?;
        if state.has_sent_message() {
            let request = SaslAuthenticateRequest::default().with_auth_bytes(message.into());
            let answer = connection.request(&request).await?;
            if let Some(error) = ResponseError::try_from_code(answer.error_code) {
                let message = answer.error_message.map_or_else(|| error.to_string(), |text| text.to_string());
                return Err(refused(message));
            }
            received = Some(answer.auth_bytes.to_vec());
        }
        if state.is_finished() {
            return Ok(());
        }
    }
}
