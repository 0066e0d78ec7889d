//! Owns topics: making them with their retention, giving them more partitions, and what they are like.
//! Promises that a topic or partition that was made can be used when the call returns.
//! Called by `log::kafka`.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::create_partitions_request::CreatePartitionsTopic;
use kafka_protocol::messages::create_topics_request::{CreatableTopic, CreatableTopicConfig};
use kafka_protocol::messages::describe_configs_request::DescribeConfigsResource;
use kafka_protocol::messages::metadata_request::MetadataRequestTopic;
use kafka_protocol::messages::metadata_response::MetadataResponseTopic;
use kafka_protocol::messages::{
    CreatePartitionsRequest, CreateTopicsRequest, DescribeConfigsRequest, MetadataRequest, TopicName,
};
use kafka_protocol::protocol::StrBytes;
use tokio::time::{Instant, sleep};

use crate::backoff::Backoff;
use crate::log::security::Cluster;
use crate::log::wire::Connection;
use crate::log::{LogError, TopicDescription, TopicSpec};

const RETENTION: &str = "retention.ms";

/// The code of a topic in DescribeConfigs.
const RESOURCE_TOPIC: i8 = 2;

/// Makes the topics that are missing; returns the names of those it made.
pub(super) async fn ensure(
    cluster: &Cluster,
    deadline: Duration,
    specs: &[TopicSpec],
) -> Result<Vec<String>, LogError> {
    ensure_with(cluster, deadline, specs, &[]).await
}

/// As [`ensure`], with further settings of the topics that are made.
pub(super) async fn ensure_with(
    cluster: &Cluster,
    deadline: Duration,
    specs: &[TopicSpec],
    settings: &[(&'static str, &'static str)],
) -> Result<Vec<String>, LogError> {
    let mut connection = Connection::open_any(cluster, deadline).await?;
    let names: Vec<String> = specs.iter().map(|spec| spec.name.clone()).collect();
    let existing = metadata(&mut connection, &names).await?;
    let missing: Vec<&TopicSpec> = specs.iter().filter(|spec| !existing.contains_key(&spec.name)).collect();
    if missing.is_empty() {
        return Ok(Vec::new());
    }
    let request = CreateTopicsRequest::default()
        .with_topics(missing.iter().map(|spec| creatable(spec, settings)).collect())
        .with_timeout_ms(i32::try_from(deadline.as_millis()).unwrap_or(i32::MAX));
    let answer = connection.request(&request).await?;
    let mut created = Vec::new();
    for topic in answer.topics {
        match ResponseError::try_from_code(topic.error_code) {
            None => created.push(topic.name.to_string()),
            // Somebody else made it meanwhile.
            Some(ResponseError::TopicAlreadyExists) => {}
            Some(error) => {
                let message = format!(
                    "topic {} cannot be created: {}",
                    topic.name.as_str(),
                    topic.error_message.as_deref().unwrap_or(&error.to_string())
                );
                return Err(by_retry(error, message));
            }
        }
    }
    until_led(&mut connection, &names, 1, deadline).await?;
    Ok(created)
}

/// Gives topics more partitions: so many each.
pub(super) async fn grow(
    cluster: &Cluster,
    deadline: Duration,
    names: &[String],
    partitions: i32,
) -> Result<(), LogError> {
    let mut connection = Connection::open_any(cluster, deadline).await?;
    let grows = |name: &String| {
        CreatePartitionsTopic::default()
            .with_name(topic(name))
            .with_count(partitions)
            // Where they go is the brokers' to decide.
            .with_assignments(None)
    };
    let request = CreatePartitionsRequest::default()
        .with_topics(names.iter().map(grows).collect())
        .with_timeout_ms(i32::try_from(deadline.as_millis()).unwrap_or(i32::MAX));
    for topic in connection.request(&request).await?.results {
        if let Some(error) = ResponseError::try_from_code(topic.error_code) {
            let message = format!(
                "topic {} cannot grow: {}",
                topic.name.as_str(),
                topic.error_message.as_deref().unwrap_or(&error.to_string())
            );
            return Err(by_retry(error, message));
        }
    }
    until_led(&mut connection, names, partitions, deadline).await
}

/// Waits until topics have so many partitions at least, and each of them a leader: a broker answers when they are
/// decided upon, which is earlier.
async fn until_led(
    connection: &mut Connection,
    names: &[String],
    partitions: i32,
    deadline: Duration,
) -> Result<(), LogError> {
    let least = usize::try_from(partitions).unwrap_or_default();
    let until = Instant::now() + deadline;
    let mut backoff = Backoff::default();
    loop {
        let usable = metadata(connection, names).await?;
        let led = |topic: &MetadataResponseTopic| {
            topic.partitions.len() >= least && topic.partitions.iter().all(|p| p.leader_id.0 >= 0)
        };
        let Some(waiting) = names.iter().find(|name| !usable.get(*name).is_some_and(led)) else {
            return Ok(());
        };
        if Instant::now() >= until {
            return Err(LogError::Unavailable(format!(
                "topic {waiting} has partitions without a leader after {} ms",
                deadline.as_millis()
            )));
        }
        sleep(backoff.pause()).await;
    }
}

/// The topics of these names that exist, by name.
pub(super) async fn describe(
    cluster: &Cluster,
    deadline: Duration,
    names: &[String],
) -> Result<Vec<TopicDescription>, LogError> {
    let mut connection = Connection::open_any(cluster, deadline).await?;
    let found = metadata(&mut connection, names).await?;
    if found.is_empty() {
        return Ok(Vec::new());
    }
    let resources = found.keys().map(|name| {
        DescribeConfigsResource::default()
            .with_resource_type(RESOURCE_TOPIC)
            .with_resource_name(StrBytes::from_string(name.clone()))
            .with_configuration_keys(Some(vec![StrBytes::from_static_str(RETENTION)]))
    });
    let request = DescribeConfigsRequest::default().with_resources(resources.collect());
    let answer = connection.request(&request).await?;
    let mut retentions = BTreeMap::new();
    for result in answer.results {
        if let Some(error) = ResponseError::try_from_code(result.error_code) {
            let name = result.resource_name.as_str();
            return Err(by_retry(error, format!("settings of topic {name}: {error}")));
        }
        let value = result.configs.iter().find(|config| config.name.as_str() == RETENTION);
        let ms = value.and_then(|config| config.value.as_deref()?.parse().ok());
        retentions.insert(result.resource_name.to_string(), ms.filter(|ms: &i64| *ms >= 0));
    }
    let describe = |(name, topic): (String, MetadataResponseTopic)| TopicDescription {
        partitions: i32::try_from(topic.partitions.len()).unwrap_or(i32::MAX),
        replication_factor: topic
            .partitions
            .iter()
            .map(|p| i16::try_from(p.replica_nodes.len()).unwrap_or(i16::MAX))
            .min(),
        retention_ms: retentions.get(&name).copied().flatten(),
        topic_id: Some(topic.topic_id).filter(|id| !id.is_nil()),
        topic: name,
    };
    Ok(found.into_iter().map(describe).collect())
}

/// The topics of these names that exist.
pub(super) async fn metadata(
    connection: &mut Connection,
    names: &[String],
) -> Result<BTreeMap<String, MetadataResponseTopic>, LogError> {
    let unique: BTreeSet<&String> = names.iter().collect();
    let topics = unique.into_iter().map(|name| MetadataRequestTopic::default().with_name(Some(topic(name))));
    let request =
        MetadataRequest::default().with_topics(Some(topics.collect())).with_allow_auto_topic_creation(false);
    let answer = connection.request(&request).await?;
    let mut found = BTreeMap::new();
    for topic in answer.topics {
        let name = topic.name.as_ref().map(|name| name.to_string()).unwrap_or_default();
        match ResponseError::try_from_code(topic.error_code) {
            None | Some(ResponseError::LeaderNotAvailable) => {
                found.insert(name, topic);
            }
            Some(ResponseError::UnknownTopicOrPartition) => {}
            Some(error) => return Err(by_retry(error, format!("topic {name}: {error}"))),
        }
    }
    Ok(found)
}

/// The retention is always set; what is not among `settings` stays with the broker's defaults.
fn creatable(spec: &TopicSpec, settings: &[(&'static str, &'static str)]) -> CreatableTopic {
    let setting = |name, value| {
        CreatableTopicConfig::default().with_name(StrBytes::from_static_str(name)).with_value(Some(value))
    };
    let retention = StrBytes::from_string(spec.retention.as_millis().to_string());
    let further = settings.iter().map(|(name, value)| setting(name, StrBytes::from_static_str(value)));
    CreatableTopic::default()
        .with_name(topic(&spec.name))
        .with_num_partitions(spec.partitions)
        .with_replication_factor(spec.replication_factor)
        .with_configs(std::iter::once(setting(RETENTION, retention)).chain(further).collect())
}

pub(super) fn topic(name: &str) -> TopicName {
    TopicName(StrBytes::from_string(name.to_owned()))
}

pub(super) fn by_retry(error: ResponseError, message: String) -> LogError {
    if error.is_retriable() { LogError::Unavailable(message) } else { LogError::Refused(message) }
}
