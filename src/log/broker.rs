//! Owns the question what a Kafka broker is and can do.
//! Promises an answer or a failure within the deadline of a metadata request.
//! Called by `doctor` and by whoever becomes a member of a group.

use std::time::Duration;

use kafka_protocol::messages::ApiKey;

use super::LogError;
use super::security::{Cluster, Security};
use super::wire::Connection;
use crate::config::KafkaConfig;

/// The feature of a cluster that enables the group protocol of KIP-848.
const GROUP_FEATURE: &str = "group.version";

/// A broker as it describes itself. It does not tell its release, only what it speaks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broker {
    pub address: String,
    /// The newest version of the group protocol of KIP-848 that it speaks, where its cluster has it enabled.
    pub group_protocol: Option<i16>,
}

/// Asks whichever broker answers first.
pub async fn ask(config: &KafkaConfig) -> Result<Broker, LogError> {
    let deadline = Duration::from_millis(config.metadata_timeout_ms);
    let cluster = Cluster { brokers: config.broker_list(), security: Security::of(config)? };
    let connection = Connection::open_any(&cluster, deadline).await?;
    // A cluster that was upgraded knows the requests, and refuses them until its features are upgraded as well.
    let enabled = connection.features().get(GROUP_FEATURE).is_some_and(|level| *level >= 1);
    Ok(Broker {
        address: connection.broker().to_owned(),
        group_protocol: connection.newest(ApiKey::ConsumerGroupHeartbeat).filter(|_| enabled),
    })
}
