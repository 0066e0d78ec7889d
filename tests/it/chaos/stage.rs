//! What a run plays on: a database and a broker of its own, proxies, and every role as processes of the real binary.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hashinsight::config::EventLogKind;
use hashinsight::event::AggregateType;
use hashinsight::log::EventLog;
use hashinsight::read_model::portfolio;
use hashinsight::role::app::open_log;
use hashinsight::role::topics;
use tokio::sync::Mutex;

use super::role::Role;
use super::schedule::{CONSUMERS, GUEST, PUBLISHERS, SERVER, Wire};
use crate::history::{Topics, Witness};
use crate::support::broker::{self, Broker, free_port};
use crate::support::proxy::Proxy;
use crate::support::tap::Tap;
use crate::support::{Cluster, TestDb, service, settings};

/// What a publisher says when it works.
const LEADS_OR_STANDS_BY: [&str; 2] = ["this publisher leads", "standing by"];

pub(crate) struct Stage {
    pub(crate) roles: BTreeMap<&'static str, Mutex<Role>>,
    pub(crate) test: TestDb,
    pub(crate) cluster: Mutex<Cluster>,
    pub(crate) broker: Mutex<Broker>,
    /// Between each role and the database.
    pub(crate) taps: BTreeMap<&'static str, Tap>,
    pub(crate) publishers: Proxy,
    pub(crate) consumers: Proxy,
    /// Where the API listens, whichever process it is.
    pub(crate) api: String,
    /// Straight to the broker.
    pub(crate) log: Arc<dyn EventLog>,
    /// What the database and the broker write into.
    pub(crate) disks: [PathBuf; 2],
}

impl Stage {
    /// Builds it; nothing of the product runs yet.
    pub(crate) async fn build(folder: &Path, source: &'static str) -> Self {
        let (cluster, broker) = tokio::join!(
            Cluster::start(&[("max_wal_size", "256MB")]),
            Broker::start(broker::Settings::default())
        );
        let (publishers, consumers) =
            (Proxy::before(&broker.address()).await, Proxy::before(&broker.address()).await);
        let api = format!("127.0.0.1:{}", free_port());
        let test = TestDb::on(
            &cluster,
            settings(&[
                ("KAFKA_BROKERS", &broker.address()),
                ("REDIS_URL", &service("REDIS_URL")),
                ("HASHINSIGHT__SERVER__BIND", &api),
            ]),
        )
        .await;
        Witness::install(&test.admin).await.expect("the witness");
        let log = open_log(&test.config, EventLogKind::Kafka, &test.db, &test.bells).await.expect("the log");
        log.ensure_topics(&topics::specs(&test.config, EventLogKind::Kafka)).await.expect("topics");

        let (mut roles, mut taps) = (BTreeMap::new(), BTreeMap::new());
        let consume = ["consume", "--group", portfolio::GROUP];
        let names = [&[SERVER], &PUBLISHERS[..], &CONSUMERS, &[GUEST]].concat();
        for name in names {
            // A login of its own, by which the witness knows it.
            cluster.execute("postgres", &format!("create role \"{name}\" superuser login")).await;
            let mut environment = test.environment.clone();
            let tap = Tap::before(cluster.port()).await;
            let (_, database) =
                test.environment["DATABASE_URL"].rsplit_once('/').expect("it names a database");
            let url = format!("postgres://{name}@127.0.0.1:{}/{database}", tap.port);
            taps.insert(name, tap);
            environment.insert("DATABASE_URL".to_owned(), url);
            let role = if PUBLISHERS.contains(&name) {
                environment.insert("KAFKA_BROKERS".to_owned(), publishers.address().to_owned());
                Role::new(
                    name,
                    &["publish", "--source", source],
                    &LEADS_OR_STANDS_BY,
                    environment,
                    folder.into(),
                )
            } else if name == SERVER {
                Role::new(name, &["serve"], &["the API listens"], environment, folder.into())
            } else {
                environment.insert("KAFKA_BROKERS".to_owned(), consumers.address().to_owned());
                Role::new(name, &consume, &["joined the group"], environment, folder.into())
            };
            roles.insert(name, Mutex::new(role));
        }
        let disks = [cluster.folder().to_owned(), broker.folder().to_owned()];
        Self {
            roles,
            taps,
            test,
            cluster: Mutex::new(cluster),
            broker: Mutex::new(broker),
            publishers,
            consumers,
            api,
            log,
            disks,
        }
    }

    pub(crate) fn role(&self, name: &str) -> &Mutex<Role> {
        &self.roles[name]
    }

    pub(crate) fn wire(&self, wire: Wire) -> &Proxy {
        match wire {
            Wire::Publishers => &self.publishers,
            Wire::Consumers => &self.consumers,
        }
    }

    /// Everything that was published.
    pub(crate) async fn topics(&self) -> Topics {
        let prefix = &self.test.config.kafka.topic_prefix;
        let names: Vec<String> = AggregateType::ALL.iter().map(|aggregate| aggregate.topic(prefix)).collect();
        Topics::read(&*self.log, &names).await.expect("the topics")
    }
}
