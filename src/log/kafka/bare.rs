//! Owns the ceiling that an append is measured against: rskafka by itself, with nothing of ours around it.
//! Promises only what rskafka promises: no deadline, no retry that knows what it does, no care about request sizes.
//! Called by `bench` alone.

use std::time::{Duration, Instant};

use futures_util::future::try_join_all;
use rskafka::client::ClientBuilder;
use rskafka::client::partition::{PartitionClient, UnknownTopicHandling};

use super::{codec, to_kafka};
use crate::config::KafkaConfig;
use crate::log::wire::CLIENT_ID;
use crate::log::{LogError, Record};

/// Produces the records of each partition of a topic in requests of `per_request`, one in flight per partition and
/// the partitions side by side; returns how long each request took.
pub async fn produce(
    config: &KafkaConfig,
    topic: &str,
    lanes: &[Vec<Record>],
    per_request: usize,
) -> Result<Vec<Duration>, LogError> {
    let client =
        ClientBuilder::new(config.broker_list()).client_id(CLIENT_ID).build().await.map_err(failed)?;
    let mut partitions = Vec::new();
    for (partition, records) in (0..).zip(lanes) {
        let handling = UnknownTopicHandling::Error;
        partitions
            .push((client.partition_client(topic, partition, handling).await.map_err(failed)?, records));
    }
    let lanes = partitions.iter().map(|(client, records)| lane(client, records, per_request, config));
    Ok(try_join_all(lanes).await?.concat())
}

async fn lane(
    client: &PartitionClient,
    records: &[Record],
    per_request: usize,
    config: &KafkaConfig,
) -> Result<Vec<Duration>, LogError> {
    let mut took = Vec::new();
    for request in records.chunks(per_request.max(1)) {
        let records = request.iter().map(to_kafka).collect();
        let started = Instant::now();
        client.produce(records, codec(config.compression)).await.map_err(failed)?;
        took.push(started.elapsed());
    }
    Ok(took)
}

fn failed(error: rskafka::client::error::Error) -> LogError {
    LogError::Unavailable(error.to_string())
}
