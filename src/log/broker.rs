//! Owns the question what a Kafka broker is and can do.
//! Promises an answer or a failure within the deadline of a metadata request.
//! Called by `doctor`.

use std::time::Duration;

use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::{ApiKey, ApiVersionsRequest};
use kafka_protocol::protocol::StrBytes;

use super::LogError;
use super::security::{Cluster, Security};
use super::wire::{CLIENT_ID, Connection};
use crate::config::KafkaConfig;

/// A broker as it describes itself. It does not tell its release, only what it speaks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broker {
    pub address: String,
    /// The newest version of the group protocol of KIP-848 that it speaks.
    pub group_protocol: Option<i16>,
}

/// Asks whichever broker answers first.
pub async fn ask(config: &KafkaConfig) -> Result<Broker, LogError> {
    let deadline = Duration::from_millis(config.metadata_timeout_ms);
    let cluster = Cluster { brokers: config.broker_list(), security: Security::of(config)? };
    let mut connection = Connection::open_any(&cluster, deadline).await?;
    // A request without these names is invalid.
    let request = ApiVersionsRequest::default()
        .with_client_software_name(StrBytes::from_static_str(CLIENT_ID))
        .with_client_software_version(StrBytes::from_static_str(env!("CARGO_PKG_VERSION")));
    let answer = connection.request(&request).await?;
    if let Some(error) = ResponseError::try_from_code(answer.error_code) {
        return Err(LogError::Refused(format!("{}: {error}", connection.broker())));
    }
    let of_groups = answer.api_keys.iter().find(|key| key.api_key == ApiKey::ConsumerGroupHeartbeat as i16);
    Ok(Broker {
        address: connection.broker().to_owned(),
        group_protocol: of_groups.map(|key| key.max_version),
    })
}
