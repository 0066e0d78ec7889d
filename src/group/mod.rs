//! Owns membership: which member of a consumer group works on which partition.
//! Promises an owner for every partition as long as a member lives; never that there is only one: the epoch in
//! `consumer_offset` makes a second one harmless.
//! Called by the consumer's supervisor.

use std::collections::BTreeSet;
use std::time::Duration;

use async_trait::async_trait;

pub mod kafka;
mod lease;
mod living;

pub use kafka::KafkaMembership;
pub use lease::LeaseMembership;
pub use living::living;

/// A partition of a topic.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TopicPartition {
    pub topic: String,
    pub partition: i32,
}

/// Why a heartbeat failed.
#[derive(Debug, thiserror::Error)]
pub enum MembershipError {
    /// Nobody answered: the assignment stands until it expires.
    #[error("membership: {0}")]
    Unavailable(String),
    /// The group does not count on us, or we cannot say who we are: work stops, and a later heartbeat joins again.
    #[error("the group does not count on this member")]
    Evicted,
    /// What is configured cannot work, and trying again changes nothing.
    #[error("membership: {0}")]
    Refused(String),
}

impl From<sqlx::Error> for MembershipError {
    fn from(error: sqlx::Error) -> Self {
        Self::Unavailable(error.to_string())
    }
}

/// A member of one group.
#[async_trait]
pub trait Membership: Send {
    /// Its name, unique in the group.
    fn member_id(&self) -> &str;

    /// How often it must be heard of.
    fn interval(&self) -> Duration;

    /// Says that the member lives and works on `owned`; returns the partitions it should work on.
    /// One that another member still works on is given only after that member let it go.
    async fn heartbeat(
        &mut self,
        owned: &BTreeSet<TopicPartition>,
    ) -> Result<BTreeSet<TopicPartition>, MembershipError>;

    /// Returns when a heartbeat should not wait for its time.
    async fn nudged(&mut self) {
        std::future::pending().await
    }

    /// Whether so long ago that others may have taken over: work must stop.
    fn expired(&self) -> bool;

    /// Leaves the group, so that others need not wait for the lease to run out.
    async fn leave(&mut self) -> Result<(), MembershipError>;
}
