//! Members of the group as processes, and who of them owns what.

use std::collections::BTreeMap;
use std::time::Duration;

use hashinsight::db::Db;
use hashinsight::identifier::TenantId;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::process::{Process, run};
use super::publishing::commit;
use super::{TestDb, until};
use crate::processes::{GROUP, add_miners};

/// Longer than any rebalance takes on a busy machine, shorter than Kafka's own session timeout of 45 s.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) const JOINED: &str = "joined the group";

/// Two topics of three partitions.
pub(crate) const PARTITIONS: i64 = 6;

/// A member, and where it serves its metrics.
pub(crate) struct Member {
    pub(crate) process: Process,
    metrics: String,
}

impl Member {
    /// Starts one and waits until it has joined.
    pub(crate) async fn start(test: &TestDb) -> Self {
        Self::start_with(test, &[]).await
    }

    pub(crate) async fn start_with(test: &TestDb, further: &[(&str, &str)]) -> Self {
        let free = std::net::TcpListener::bind("127.0.0.1:0")
            .and_then(|l| l.local_addr())
            .expect("a port")
            .to_string();
        let mut environment = test.environment.clone();
        environment.insert("HASHINSIGHT__METRICS__BIND".to_owned(), free.clone());
        environment.extend(further.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())));
        Self { process: Process::start(&environment, &GROUP, JOINED).await, metrics: free }
    }

    /// Where it serves its metrics.
    pub(crate) fn metrics(&self) -> &str {
        &self.metrics
    }

    /// The sum of a metric over its labels.
    pub(crate) async fn metric(&self, name: &str) -> f64 {
        let url = format!("http://{}/metrics", self.metrics);
        let text = reqwest::get(url).await.expect("served").text().await.expect("text");
        let values = text.lines().filter(|line| line.starts_with(name));
        values.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum()
    }

    /// SIGTERM, and its orderly end; returns what it said.
    pub(crate) async fn stop(self) -> String {
        self.process.signal("TERM").await;
        let (status, log) = self.process.ended().await;
        assert_eq!(status.code(), Some(0), "{log}");
        log
    }
}

async fn write_event(db: &Db, owner: usize) {
    let tenant: TenantId = "acme".parse().expect("a tenant");
    add_miners(db, &tenant, owner, 1).await;
    commit(db, "ops.noted", owner, "site", json!({})).await;
}

impl TestDb {
    /// How many partitions each member works on, by its id.
    pub(crate) async fn owners(&self) -> BTreeMap<String, i64> {
        let sql = "select owner_id, count(*) from consumer_offset where owner_id is not null group by 1";
        sqlx::query_as::<_, (String, i64)>(sql)
            .fetch_all(&self.admin)
            .await
            .expect("owners")
            .into_iter()
            .collect()
    }

    /// Waits until so many members share the partitions, each with so many; returns their ids.
    pub(crate) async fn shared(&self, shares: &[i64]) -> Vec<String> {
        let mut shares = shares.to_vec();
        shares.sort_unstable();
        until(&format!("partitions are shared {shares:?}"), PATIENCE, async || {
            let owners = self.owners().await;
            let mut found: Vec<i64> = owners.values().copied().collect();
            found.sort_unstable();
            (found == shares).then(|| owners.into_keys().collect())
        })
        .await
    }

    /// Commits events of so many owners, one on each topic that the group reads.
    pub(crate) async fn write_events(&self, owners: usize) {
        for owner in 0..owners {
            write_event(&self.db, owner).await;
        }
    }

    /// Writes until the task is dropped.
    pub(crate) fn keep_writing(&self) -> JoinSet<()> {
        let db = self.db.clone();
        let mut writer = JoinSet::new();
        writer.spawn(async move {
            for owner in (0..12).cycle() {
                write_event(&db, owner).await;
            }
        });
        writer
    }

    /// Waits until every committed event is applied; then checks that each was applied once and nothing else was.
    pub(crate) async fn everything_is_applied_once(&self) {
        let missing = "select count(*) from event_outbox o full join event_inbox i on i.event_id = o.id \
                       where o.id is null or i.event_id is null or i.outcome <> 'applied'";
        until("every event is applied", PATIENCE, async || {
            (self.scalar::<i64>(missing).await == 0).then_some(())
        })
        .await;
        assert_eq!(self.scalar::<i64>("select count(*) from event_dlq").await, 0);
        let wrong: i64 = self
            .scalar(
                "select count(*) from portfolio p full join (select owner_id, sum(quantity) as miners from miners \
                 group by 1) m on m.owner_id = p.user_id where p.miners_total is distinct from m.miners",
            )
            .await;
        assert_eq!(wrong, 0, "every portfolio counts every miner once");
    }

    /// What `hashinsight offsets adopt` answers.
    pub(crate) async fn adopt(&self, further: &[&str]) -> (i32, Value, String) {
        let arguments = [&["offsets", "adopt", "--group", GROUP[2], "--json"], further].concat();
        let ended = run(&self.environment, &arguments).await;
        let answer = serde_json::from_str(&ended.stdout).unwrap_or_default();
        (ended.code, answer, ended.stderr)
    }

    /// The group as Kafka names it.
    pub(crate) fn group_id(&self) -> String {
        self.config.kafka.group_id(GROUP[2])
    }
}
