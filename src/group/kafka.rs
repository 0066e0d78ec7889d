//! Membership by Kafka's own group protocol (KIP-848), so that Kafka's tools show the group and its lag.
//!
//! A stock broker takes 45 s to believe that a member is dead. The members know better: each holds a slot in PostgreSQL
//! (`slot`), and the others tell Kafka that one is gone when its lock is free or its lease stands still (`keeper`,
//! `observer`). In return a member is one only while its own slot is confirmed.
//!
//! ```text
//!   slot, lock, lease ◄── keeper ──► who is dead ──► leave in his name
//!                           │ who we are
//!   supervisor ◄──► heartbeat ◄──► coordinator
//!                           └──► offsets, copied for Kafka's tools
//! ```

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use self::codes::Reaction;
use self::coordinator::{Beat, Coordinator, CoordinatorError};
use self::keeper::{Keeper, Standing};
use self::member::{Member, Step};
use self::mirror::Mirror;
pub(super) use self::slot::LOCK as SLOT_LOCK;
use self::slot::{Holder, Slot};
use super::{Membership, MembershipError, TopicPartition};
use crate::config::KafkaConfig;
use crate::db::Db;
use crate::doorbell::{Bell, Doorbells, Listener};
use crate::log::LogError;
use crate::log::security::{Cluster, Security};

mod codes;
mod coordinator;
mod keeper;
mod member;
mod mirror;
mod observer;
pub mod operator;
mod slot;

/// Whom we cannot tell within this that we leave will find out.
const GOODBYE: Duration = Duration::from_secs(1);

/// What a member of a group in Kafka needs.
pub struct Settings {
    /// The group as the database names it; in Kafka it has the prefix of the configuration.
    pub consumer_name: String,
    /// Between renewals of the lease.
    pub renew_interval: Duration,
    /// Every topic that the group reads.
    pub topics: BTreeSet<String>,
}

/// A member of a group in Kafka.
pub struct KafkaMembership {
    group: String,
    topics: BTreeSet<String>,
    coordinator: Coordinator,
    member: Member,
    mirror: Mirror,
    standing: watch::Receiver<Standing>,
    keeper: JoinSet<Option<Slot>>,
    keep: CancellationToken,
    bells: Doorbells,
    others: Listener,
    /// Whether the coordinator did not answer the last time: it is said once.
    silent: bool,
}

impl KafkaMembership {
    /// A member that takes its slot at once and joins with its first heartbeat.
    pub fn new(config: &KafkaConfig, db: Db, bells: Doorbells, settings: Settings) -> Result<Self, LogError> {
        let cluster = Arc::new(Cluster { brokers: config.broker_list(), security: Security::of(config)? });
        let group = config.group_id(&settings.consumer_name);
        let deadline = Duration::from_millis(config.metadata_timeout_ms);
        let coordinator = || Coordinator::new(Arc::clone(&cluster), &group, deadline);
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned();
        let (says, standing) = watch::channel(Standing::default());
        let keeper = Keeper {
            db: db.clone(),
            bells: bells.clone(),
            holder: Holder { group: group.clone(), host },
            interval: settings.renew_interval,
            coordinator: coordinator(),
            standing: says,
            untold: false,
        };
        let keep = CancellationToken::new();
        let mut task = JoinSet::new();
        task.spawn(keeper.keep(keep.clone()));
        let now = Instant::now();
        Ok(Self {
            coordinator: coordinator(),
            member: Member::new(now),
            mirror: Mirror::new(db, &settings.consumer_name, now),
            group,
            topics: settings.topics,
            standing,
            keeper: task,
            keep,
            others: bells.listen(Bell::Group),
            bells,
            silent: false,
        })
    }

    async fn beat(
        &mut self,
        running: &BTreeSet<TopicPartition>,
    ) -> Result<BTreeSet<TopicPartition>, MembershipError> {
        let owned = self.member.owned(running);
        // What was let go is copied before anybody else has it.
        let let_go: BTreeSet<TopicPartition> = self.member.last_owned().difference(&owned).cloned().collect();
        let (id, epoch) = (self.member.id().to_owned(), self.member.epoch());
        self.mirror.copy(&mut self.coordinator, (&id, epoch), &let_go).await;

        let beat = Beat { member_id: &id, epoch, topics: &self.topics, owned: &owned };
        let beaten = match self.coordinator.beat(beat).await {
            Ok(beaten) => beaten,
            Err(error) => return Err(self.failed(error)),
        };
        if std::mem::take(&mut self.silent) {
            info!(group = self.group, "the group's coordinator answers again");
        }
        if !self.member.is_joined() {
            info!(group = self.group, member = id, epoch = beaten.epoch, "joined the group");
        }
        let gained: BTreeSet<TopicPartition> =
            beaten.assigned.difference(self.member.assigned()).cloned().collect();
        let now = Instant::now();
        if self.member.answered(beaten.epoch, beaten.assigned.clone(), owned, now) {
            self.bells.ring(Bell::Group);
        }
        if !gained.is_empty() {
            self.mirror.compare(&mut self.coordinator, &gained).await;
        }
        self.mirror.copy_now_and_then(&mut self.coordinator, (&id, beaten.epoch), running, now).await;
        Ok(beaten.assigned)
    }

    async fn say_goodbye(&mut self) -> Result<(), CoordinatorError> {
        let id = self.member.retiring().unwrap_or(self.member.id()).to_owned();
        if id.is_empty() {
            return Ok(());
        }
        if self.member.is_joined() {
            let all = self.member.last_owned().clone();
            self.mirror.copy(&mut self.coordinator, (&id, self.member.epoch()), &all).await;
        }
        self.coordinator.leave(&id).await
    }

    fn failed(&mut self, error: CoordinatorError) -> MembershipError {
        let reaction = match &error {
            CoordinatorError::Wire(_) => Reaction::Wait,
            CoordinatorError::Refused { reaction, .. } => *reaction,
        };
        match reaction {
            Reaction::Rejoin if self.member.is_joined() => {
                debug!(group = self.group, member = self.member.id(), %error, "the coordinator does not know us");
                self.member.rejoin(Instant::now());
                MembershipError::Evicted
            }
            Reaction::Stop => MembershipError::Refused(format!("group {}: {error}", self.group)),
            Reaction::Rejoin | Reaction::Find | Reaction::Beat | Reaction::Refresh | Reaction::Wait => {
                if !std::mem::replace(&mut self.silent, true) {
                    warn!(group = self.group, %error, "the group's coordinator does not serve us; the assignment stands");
                }
                MembershipError::Unavailable(error.to_string())
            }
        }
    }
}

#[async_trait]
impl Membership for KafkaMembership {
    fn member_id(&self) -> &str {
        self.member.id()
    }

    fn interval(&self) -> Duration {
        self.member.interval(Instant::now())
    }

    async fn heartbeat(
        &mut self,
        running: &BTreeSet<TopicPartition>,
    ) -> Result<BTreeSet<TopicPartition>, MembershipError> {
        if self.standing.has_changed().is_err() {
            return Err(MembershipError::Refused(format!(
                "group {}: the keeper of the slot has ended",
                self.group
            )));
        }
        self.others.arm();
        let id = self.standing.borrow_and_update().member_id.clone();
        loop {
            match self.member.step(id.as_deref()) {
                Step::Stop => return Err(MembershipError::Evicted),
                Step::Wait => return Err(MembershipError::Unavailable("no slot is held".to_owned())),
                Step::Leave(old) => match self.coordinator.leave(&old).await {
                    Ok(()) => self.member.left(),
                    Err(error) => return Err(self.failed(error)),
                },
                Step::Beat => break,
            }
        }
        if !self.standing.borrow().is_confirmed(Instant::now()) {
            return Err(MembershipError::Unavailable(
                "the lease of the member's slot is not confirmed".to_owned(),
            ));
        }
        self.beat(running).await
    }

    async fn nudged(&mut self) {
        tokio::select! {
            () = self.others.rung() => self.member.stir(Instant::now()),
            _ = self.standing.changed() => {}
        }
    }

    fn expired(&self) -> bool {
        self.member.expired(Instant::now())
    }

    async fn leave(&mut self) -> Result<(), MembershipError> {
        let left = match timeout(GOODBYE, self.say_goodbye()).await {
            Ok(left) => left.map_err(|error| MembershipError::Unavailable(error.to_string())),
            Err(_) => Err(MembershipError::Unavailable("the coordinator does not answer".to_owned())),
        };
        self.member.rejoin(Instant::now());
        self.keep.cancel();
        let told = left.is_ok();
        let released = async {
            match self.keeper.join_next().await {
                Some(Ok(Some(slot))) => slot.release(told).await,
                _ => Ok(()),
            }
        };
        // Otherwise the others see the lock free as soon as this process is gone.
        timeout(GOODBYE, released).await.unwrap_or(Ok(()))?;
        left
    }
}
