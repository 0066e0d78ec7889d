//! Requests to the broker that coordinates a group, and to whichever knows the topics.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::consumer_group_heartbeat_request::TopicPartitions;
use kafka_protocol::messages::metadata_request::MetadataRequestTopic;
use kafka_protocol::messages::offset_commit_request::{
    OffsetCommitRequestPartition, OffsetCommitRequestTopic,
};
use kafka_protocol::messages::offset_fetch_request::OffsetFetchRequestGroup;
use kafka_protocol::messages::{
    ConsumerGroupDescribeRequest, ConsumerGroupHeartbeatRequest, FindCoordinatorRequest, GroupId,
    MetadataRequest, OffsetCommitRequest, OffsetFetchRequest, TopicName,
};
use kafka_protocol::protocol::StrBytes;
use uuid::Uuid;

use super::codes::{self, Reaction, reaction};
use crate::group::TopicPartition;
use crate::log::security::Cluster;
use crate::log::wire::{Call, Connection, WireError};

/// The code of a group in FindCoordinator.
const KEY_GROUP: i8 = 0;

/// The epoch of a heartbeat that says goodbye.
const LEAVING: i32 = -1;

/// How long the coordinator waits for a member to let go of partitions: longer than any batch.
const REBALANCE_TIMEOUT_MS: i32 = 60_000;

/// Stands beside an offset that we mirrored, so that one which an operator set is told apart.
const MIRRORED: &str = "hashinsight";

/// Why a request has no result.
#[derive(Debug, thiserror::Error)]
pub(super) enum CoordinatorError {
    #[error(transparent)]
    Wire(#[from] WireError),
    #[error("{broker}: {message}")]
    Refused { broker: String, message: String, reaction: Reaction },
}

/// What a member says about itself; always whole, so that a lost answer needs no special case.
pub(super) struct Beat<'a> {
    pub(super) member_id: &'a str,
    pub(super) epoch: i32,
    pub(super) topics: &'a BTreeSet<String>,
    pub(super) owned: &'a BTreeSet<TopicPartition>,
}

/// What the coordinator says.
#[derive(Debug)]
pub(super) struct Beaten {
    pub(super) epoch: i32,
    pub(super) assigned: BTreeSet<TopicPartition>,
}

/// An offset as Kafka has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Committed {
    pub(super) offset: i64,
    /// Whether we wrote it, as a copy of the database's.
    pub(super) mirrored: bool,
}

/// The coordinator of one group, found when it is needed.
pub(super) struct Coordinator {
    cluster: Arc<Cluster>,
    group: String,
    deadline: Duration,
    connection: Option<Connection>,
    /// The topics that were asked for, by what the protocol calls them.
    names: BTreeMap<Uuid, String>,
}

impl Coordinator {
    pub(super) fn new(cluster: Arc<Cluster>, group: &str, deadline: Duration) -> Self {
        Self { cluster, group: group.to_owned(), deadline, connection: None, names: BTreeMap::new() }
    }

    /// Says that a member lives and what it owns.
    pub(super) async fn beat(&mut self, beat: Beat<'_>) -> Result<Beaten, CoordinatorError> {
        if self.names.is_empty() {
            self.learn_topics(beat.topics).await?;
        }
        let mut by_topic: BTreeMap<Uuid, Vec<i32>> = BTreeMap::new();
        for (id, name) in &self.names {
            let partitions = beat.owned.iter().filter(|owned| owned.topic == *name);
            by_topic.entry(*id).or_default().extend(partitions.map(|owned| owned.partition));
        }
        let owned = by_topic.into_iter().filter(|(_, partitions)| !partitions.is_empty());
        let owned =
            owned.map(|(id, list)| TopicPartitions::default().with_topic_id(id).with_partitions(list));
        let request = ConsumerGroupHeartbeatRequest::default()
            .with_group_id(group_id(&self.group))
            .with_member_id(text(beat.member_id))
            .with_member_epoch(beat.epoch)
            .with_rebalance_timeout_ms(REBALANCE_TIMEOUT_MS)
            .with_subscribed_topic_names(Some(beat.topics.iter().map(|name| topic_name(name)).collect()))
            .with_topic_partitions(Some(owned.collect()));
        let answer = self.ask(&request).await?;
        self.check(answer.error_code, answer.error_message.as_deref())?;
        let assignment = answer.assignment.unwrap_or_default().topic_partitions;
        if assignment.iter().any(|topic| !self.names.contains_key(&topic.topic_id)) {
            self.learn_topics(beat.topics).await?;
        }
        let mut assigned = BTreeSet::new();
        for topic in assignment {
            // A topic that is not there any more is left out, until the coordinator has noticed as well.
            let Some(name) = self.names.get(&topic.topic_id) else { continue };
            let of_topic = |partition| TopicPartition { topic: name.clone(), partition };
            assigned.extend(topic.partitions.into_iter().map(of_topic));
        }
        Ok(Beaten { epoch: answer.member_epoch, assigned })
    }

    /// Says that a member is gone: ourselves, or one that cannot say it any more.
    pub(super) async fn leave(&mut self, member_id: &str) -> Result<(), CoordinatorError> {
        let request = ConsumerGroupHeartbeatRequest::default()
            .with_group_id(group_id(&self.group))
            .with_member_id(text(member_id))
            .with_member_epoch(LEAVING);
        let mut found_again = false;
        loop {
            let answer = self.ask(&request).await?;
            if codes::has_left(answer.error_code) {
                return Ok(());
            }
            let moved = reaction(answer.error_code) == Some(Reaction::Find);
            let refused = self.check(answer.error_code, answer.error_message.as_deref());
            if !moved || std::mem::replace(&mut found_again, true) {
                return refused;
            }
        }
    }

    /// Writes offsets beside a member's name; returns those that were refused.
    pub(super) async fn commit(
        &mut self,
        member_id: &str,
        epoch: i32,
        offsets: &BTreeMap<TopicPartition, i64>,
    ) -> Result<Vec<TopicPartition>, CoordinatorError> {
        let mut topics: BTreeMap<&str, Vec<OffsetCommitRequestPartition>> = BTreeMap::new();
        for (partition, offset) in offsets {
            let entry = OffsetCommitRequestPartition::default()
                .with_partition_index(partition.partition)
                .with_committed_offset(*offset)
                .with_committed_metadata(Some(text(MIRRORED)));
            topics.entry(&partition.topic).or_default().push(entry);
        }
        let topics = topics.into_iter().map(|(name, partitions)| {
            OffsetCommitRequestTopic::default().with_name(topic_name(name)).with_partitions(partitions)
        });
        let request = OffsetCommitRequest::default()
            .with_group_id(group_id(&self.group))
            .with_member_id(text(member_id))
            .with_generation_id_or_member_epoch(epoch)
            .with_topics(topics.collect());
        let answer = self.ask(&request).await?;
        let mut refused = Vec::new();
        for topic in answer.topics {
            for partition in topic.partitions {
                match reaction(partition.error_code) {
                    None => {}
                    Some(Reaction::Find) => self.check(partition.error_code, None)?,
                    Some(_) => refused.push(TopicPartition {
                        topic: topic.name.to_string(),
                        partition: partition.partition_index,
                    }),
                }
            }
        }
        Ok(refused)
    }

    /// The offsets that Kafka has for the group.
    pub(super) async fn committed(
        &mut self,
    ) -> Result<BTreeMap<TopicPartition, Committed>, CoordinatorError> {
        let group = OffsetFetchRequestGroup::default()
            .with_group_id(group_id(&self.group))
            .with_member_id(None)
            .with_member_epoch(LEAVING)
            .with_topics(None);
        let answer = self.ask(&OffsetFetchRequest::default().with_groups(vec![group])).await?;
        let mut committed = BTreeMap::new();
        for group in answer.groups {
            if codes::has_left(group.error_code) && group.error_code != 0 {
                continue;
            }
            self.check(group.error_code, None)?;
            for topic in group.topics {
                for found in topic.partitions {
                    // Minus one: none.
                    if found.error_code == 0 && found.committed_offset >= 0 {
                        let partition = TopicPartition {
                            topic: topic.name.to_string(),
                            partition: found.partition_index,
                        };
                        let mirrored = found.metadata.as_deref() == Some(MIRRORED);
                        committed.insert(partition, Committed { offset: found.committed_offset, mirrored });
                    }
                }
            }
        }
        Ok(committed)
    }

    /// The ids of the group's members, ours and others'.
    pub(super) async fn members(&mut self) -> Result<Vec<String>, CoordinatorError> {
        let request = ConsumerGroupDescribeRequest::default().with_group_ids(vec![group_id(&self.group)]);
        let answer = self.ask(&request).await?;
        let mut members = Vec::new();
        for group in answer.groups {
            if codes::has_left(group.error_code) && group.error_code != 0 {
                continue;
            }
            self.check(group.error_code, group.error_message.as_deref())?;
            members.extend(group.members.into_iter().map(|member| member.member_id.to_string()));
        }
        Ok(members)
    }

    /// Asks for the ids of topics anew.
    async fn learn_topics(&mut self, topics: &BTreeSet<String>) -> Result<(), CoordinatorError> {
        let wanted =
            topics.iter().map(|name| MetadataRequestTopic::default().with_name(Some(topic_name(name))));
        let request = MetadataRequest::default()
            .with_topics(Some(wanted.collect()))
            .with_allow_auto_topic_creation(false);
        let answer = self.ask(&request).await?;
        let known = answer.topics.into_iter().filter(|topic| !topic.topic_id.is_nil());
        self.names = known.filter_map(|topic| Some((topic.topic_id, topic.name?.to_string()))).collect();
        Ok(())
    }

    /// Sends a request to the coordinator, which is found first if need be. Every request of ours may be repeated.
    async fn ask<R: Call>(&mut self, request: &R) -> Result<R::Answer, CoordinatorError> {
        // Taken out: if this future is dropped on the way, so is the connection whose answer is outstanding.
        if let Some(mut connection) = self.connection.take() {
            match connection.request(request).await {
                // It died while nobody looked.
                Err(WireError::Io { .. }) => {}
                answered => {
                    let answer = answered?;
                    self.connection = Some(connection);
                    return Ok(answer);
                }
            }
        }
        let mut connection = self.find().await?;
        let answer = connection.request(request).await?;
        self.connection = Some(connection);
        Ok(answer)
    }

    async fn find(&self) -> Result<Connection, CoordinatorError> {
        let mut any = Connection::open_any(&self.cluster, self.deadline).await?;
        let request = FindCoordinatorRequest::default()
            .with_key_type(KEY_GROUP)
            .with_coordinator_keys(vec![text(&self.group)]);
        let answer = any.request(&request).await?;
        let refused = |code: i16, message: Option<&str>| refusal(any.broker(), code, message);
        if let Some(error) = refused(answer.error_code, answer.error_message.as_deref()) {
            return Err(error);
        }
        let Some(found) = answer.coordinators.first() else {
            return Err(CoordinatorError::Refused {
                broker: any.broker().to_owned(),
                message: "it names no coordinator".to_owned(),
                reaction: Reaction::Wait,
            });
        };
        if let Some(error) = refused(found.error_code, found.error_message.as_deref()) {
            return Err(error);
        }
        let host = found.host.as_str();
        let address = if host.contains(':') {
            format!("[{host}]:{}", found.port)
        } else {
            format!("{host}:{}", found.port)
        };
        if address == any.broker() {
            return Ok(any);
        }
        Ok(Connection::open(&address, &self.cluster.security, self.deadline).await?)
    }

    fn check(&mut self, code: i16, message: Option<&str>) -> Result<(), CoordinatorError> {
        let broker = self.connection.as_ref().map_or("the coordinator", Connection::broker);
        let Some(error) = refusal(broker, code, message) else { return Ok(()) };
        match reaction(code) {
            Some(Reaction::Find) => self.connection = None,
            Some(Reaction::Refresh) => self.names.clear(),
            _ => {}
        }
        Err(error)
    }
}

fn refusal(broker: &str, code: i16, message: Option<&str>) -> Option<CoordinatorError> {
    let reaction = reaction(code)?;
    let named =
        ResponseError::try_from_code(code).map_or_else(|| code.to_string(), |error| error.to_string());
    let message = message.filter(|text| !text.is_empty()).map_or(named, str::to_owned);
    Some(CoordinatorError::Refused {
        broker: broker.to_owned(),
        message: format!("{message} (code {code})"),
        reaction,
    })
}

fn text(text: &str) -> StrBytes {
    StrBytes::from_string(text.to_owned())
}

fn group_id(name: &str) -> GroupId {
    GroupId(text(name))
}

fn topic_name(name: &str) -> TopicName {
    TopicName(text(name))
}
