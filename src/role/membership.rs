//! Which protocol makes a process a member of its group: Kafka's own, or leases in PostgreSQL.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context as _, bail};
use tracing::info;
use uuid::Uuid;

use crate::config::{ConfigError, GroupProtocol};
use crate::group::kafka::Settings;
use crate::group::{KafkaMembership, LeaseMembership, Membership, TopicPartition};
use crate::log::{EventLog, broker};
use crate::role::app::App;

/// The first version of the group protocol that is not a preview: Kafka 4.0.
pub(super) const KIP_848: i16 = 1;

/// The protocol that is configured, or else the one that log and brokers allow.
pub(super) async fn protocol(app: &App, group: &str, log: &dyn EventLog) -> anyhow::Result<GroupProtocol> {
    let (protocol, why) = choose(app, log).await?;
    let name = match protocol {
        GroupProtocol::Kafka => "kafka",
        GroupProtocol::Lease => "lease",
    };
    info!(group, protocol = name, why, "the group's protocol");
    Ok(protocol)
}

/// A member of a group that joins with its first heartbeat.
pub(super) fn member(
    app: &App,
    protocol: GroupProtocol,
    group: &str,
    partitions: Vec<TopicPartition>,
) -> anyhow::Result<Box<dyn Membership>> {
    let renew_interval = Duration::from_millis(app.config.group.renew_interval_ms);
    let topics: BTreeSet<String> = partitions.into_iter().map(|p| p.topic).collect();
    Ok(match protocol {
        GroupProtocol::Kafka => {
            let settings = Settings { consumer_name: group.to_owned(), renew_interval, topics };
            Box::new(KafkaMembership::new(&app.config.kafka, app.db.clone(), app.bells.clone(), settings)?)
        }
        GroupProtocol::Lease => {
            let id = Uuid::now_v7().to_string();
            Box::new(LeaseMembership::new(app.db.clone(), group, id, renew_interval, topics))
        }
    })
}

async fn choose(app: &App, log: &dyn EventLog) -> anyhow::Result<(GroupProtocol, String)> {
    let wanted = app.config.group.protocol();
    if log.transactional().is_some() {
        if wanted == Some(GroupProtocol::Kafka) {
            bail!(ConfigError(
                "group.protocol = \"kafka\" needs the log in Kafka, and this one is in PostgreSQL: set KAFKA_BROKERS, or \
                 leave group.protocol empty"
                    .to_owned()
            ));
        }
        return Ok((GroupProtocol::Lease, "the log is in PostgreSQL".to_owned()));
    }
    if wanted == Some(GroupProtocol::Lease) {
        return Ok((GroupProtocol::Lease, "group.protocol says so".to_owned()));
    }
    let broker = broker::ask(&app.config.kafka).await.context("group protocol")?;
    let speaks = broker.group_protocol.is_some_and(|version| version >= KIP_848);
    match (speaks, wanted) {
        (true, _) => Ok((GroupProtocol::Kafka, format!("{} speaks it", broker.address))),
        (false, None) => Ok((
            GroupProtocol::Lease,
            format!("{} does not speak Kafka's, which is of Kafka 4.0", broker.address),
        )),
        (false, Some(_)) => bail!(
            "group.protocol = \"kafka\" needs Kafka 4.0 or newer, and {} does not speak the group protocol of KIP-848: \
             upgrade the brokers and their feature group.version to 1, or leave group.protocol empty",
            broker.address
        ),
    }
}
