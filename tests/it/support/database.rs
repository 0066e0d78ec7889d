//! A database of its own for every test, copied from a template that is migrated once per cluster.

use std::collections::BTreeMap;
use std::sync::Arc;

use hashinsight::cache::Cache;
use hashinsight::config::{Config, load_from};
use hashinsight::db::Db;
use hashinsight::doorbell::Doorbells;
use hashinsight::lifecycle::Lifecycle;
use hashinsight::lock::{Lease, Locks};
use hashinsight::redis::Redis;
use hashinsight::role;
use sqlx::postgres::{PgConnection, PgPool, PgPoolOptions};
use sqlx::{AssertSqlSafe, Connection, Executor};
use tokio::sync::OnceCell;
use uuid::Uuid;

use super::cluster::Cluster;

/// A service's address, or what to run.
pub(crate) fn service(variable: &str) -> String {
    std::env::var(variable)
        .unwrap_or_else(|_| panic!("{variable} is not set: run  eval \"$(dev/services up)\""))
}

/// A database, dropped at the end of the test.
pub(crate) struct TestDb {
    pub(crate) config: Config,
    /// What a process of the real binary gets to use this database.
    pub(crate) environment: BTreeMap<String, String>,
    pub(crate) db: Db,
    /// As the superuser: for what no role of the product may do.
    pub(crate) admin: PgPool,
    pub(crate) bells: Doorbells,
    pub(crate) lifecycle: Lifecycle,
    /// To be dropped at the end; a cluster of the test's own goes as a whole.
    name: Option<String>,
}

impl TestDb {
    /// A migrated database without topics.
    pub(crate) async fn new() -> Self {
        Self::with(BTreeMap::new()).await
    }

    /// With settings of the test's own.
    pub(crate) async fn with(settings: BTreeMap<String, String>) -> Self {
        let template = template().await;
        let name = format!("hi_test_{}_{}", std::process::id(), Uuid::now_v7().simple());
        let mut cluster = cluster().await;
        create(&mut cluster, &name, Some(template)).await;
        Self::open(&url_of(&name), &name, settings, Some(name.clone())).await
    }

    /// On a cluster of the test's own.
    pub(crate) async fn on(cluster: &Cluster, settings: BTreeMap<String, String>) -> Self {
        let name = format!("hi_test_{}", Uuid::now_v7().simple());
        Self::at(cluster, &name, &cluster.url(&name), settings).await
    }

    /// On a cluster of the test's own that is reached through another port: without a question about encryption, so that
    /// a connection begins by saying what it is for.
    pub(crate) async fn behind(cluster: &Cluster, port: u16, settings: BTreeMap<String, String>) -> Self {
        let name = format!("hi_test_{}", Uuid::now_v7().simple());
        let url = format!("postgres://hashinsight@127.0.0.1:{port}/{name}?sslmode=disable");
        Self::at(cluster, &name, &url, settings).await
    }

    async fn at(cluster: &Cluster, name: &str, url: &str, settings: BTreeMap<String, String>) -> Self {
        cluster.execute("postgres", &format!("create database {name}")).await;
        let environment = BTreeMap::from([("DATABASE_URL".to_owned(), url.to_owned())]);
        let config = load_from(None, &environment).expect("valid").config;
        role::migrate::migrate(&config).await.expect("migrated");
        Self::open(url, name, settings, None).await
    }

    async fn open(url: &str, prefix: &str, settings: BTreeMap<String, String>, name: Option<String>) -> Self {
        let mut environment = BTreeMap::from([
            ("DATABASE_URL".to_owned(), url.to_owned()),
            ("HASHINSIGHT__KAFKA__TOPIC_PREFIX".to_owned(), format!("{prefix}.")),
            ("HASHINSIGHT__KAFKA__GROUP_PREFIX".to_owned(), format!("{prefix}.")),
            ("JWT_SECRET".to_owned(), "a secret of the tests, long enough".to_owned()),
            ("HASHINSIGHT__SERVER__BIND".to_owned(), "127.0.0.1:0".to_owned()),
        ]);
        environment.extend(settings);
        let config = load_from(None, &environment).expect("a valid configuration").config;
        let db = Db::open(&config).await.expect("the test's database");
        let admin = PgPoolOptions::new().max_connections(2).connect(url).await.expect("superuser");
        Self {
            config,
            environment,
            db,
            admin,
            bells: Doorbells::default(),
            lifecycle: Lifecycle::default(),
            name,
        }
    }

    /// The Redis of the configuration, if it names one.
    pub(crate) async fn redis(&self) -> Option<Arc<Redis>> {
        Redis::connect(&self.config.redis).await.expect("an address")
    }

    /// What the roles of a process keep in Redis, or without one in memory.
    pub(crate) async fn cache_and_locks(&self) -> (Arc<Cache>, Arc<Locks>) {
        let redis = self.redis().await;
        let cache = Cache::new(&self.config.cache, redis.clone(), &self.lifecycle);
        (cache, Locks::new(redis, Lease::default(), &self.lifecycle))
    }

    /// One value.
    pub(crate) async fn scalar<T>(&self, sql: &str) -> T
    where
        T: Send + Unpin + for<'r> sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres>,
    {
        sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(&self.admin).await.expect(sql)
    }

    /// A statement as the superuser.
    pub(crate) async fn execute(&self, sql: &str) {
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&self.admin).await.expect(sql);
    }
}

impl Drop for TestDb {
    fn drop(&mut self) {
        let Some(name) = self.name.clone() else { return };
        // A runtime of its own: the test's may be gone already.
        let dropped = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let mut cluster = cluster().await;
                drop_database(&mut cluster, &name).await;
                Ok::<_, std::io::Error>(())
            })
        });
        let _ = dropped.join();
    }
}

async fn cluster() -> PgConnection {
    PgConnection::connect(&url_of("postgres")).await.expect("the database postgres of DATABASE_URL's cluster")
}

/// The address of another database of the same cluster.
fn url_of(database: &str) -> String {
    let url = service("DATABASE_URL");
    let (base, query) = url.split_once('?').map_or((url.as_str(), ""), |(b, q)| (b, q));
    let (server, _) = base.rsplit_once('/').expect("DATABASE_URL names a database");
    if query.is_empty() { format!("{server}/{database}") } else { format!("{server}/{database}?{query}") }
}

async fn create(cluster: &mut PgConnection, name: &str, template: Option<&str>) {
    // Copying files is quicker here than through the WAL, and nobody is connected to the template.
    let from = template.map_or(String::new(), |t| format!(" template {t} strategy file_copy"));
    cluster.execute(AssertSqlSafe(format!("create database {name}{from}"))).await.expect("create database");
}

async fn drop_database(cluster: &mut PgConnection, name: &str) {
    // A slot that is being read keeps its database; any other goes with it.
    let _ = sqlx::query(
        "select pg_terminate_backend(active_pid, 5000) from pg_replication_slots \
         where database = $1 and active_pid is not null",
    )
    .bind(name)
    .execute(&mut *cluster)
    .await;
    let _ = cluster.execute(AssertSqlSafe(format!("drop database if exists {name} with (force)"))).await;
}

/// The name of the migrated template; made by whoever comes first.
async fn template() -> &'static str {
    static TEMPLATE: OnceCell<String> = OnceCell::const_new();
    TEMPLATE
        .get_or_init(|| async {
            let day = chrono::Utc::now().format("%Y%m%d");
            let name = format!("hi_template_{day}_{:016x}", fingerprint());
            let mut cluster = cluster().await;
            sqlx::query("select pg_advisory_lock(hashtextextended('hi_template', 0))")
                .execute(&mut cluster)
                .await
                .expect("lock");
            drop_leftovers(&mut cluster, &format!("hi_template_{day}")).await;
            let exists: bool =
                sqlx::query_scalar("select exists (select from pg_database where datname = $1)")
                    .bind(&name)
                    .fetch_one(&mut cluster)
                    .await
                    .expect("catalogue");
            if !exists {
                // Under another name until it is whole.
                let unfinished = format!("{name}_new");
                drop_database(&mut cluster, &unfinished).await;
                create(&mut cluster, &unfinished, None).await;
                let environment = BTreeMap::from([("DATABASE_URL".to_owned(), url_of(&unfinished))]);
                let config = load_from(None, &environment).expect("valid").config;
                role::migrate::migrate(&config).await.expect("the template migrates");
                let rename = format!("alter database {unfinished} rename to {name}");
                cluster.execute(AssertSqlSafe(rename)).await.expect("rename");
            }
            cluster.close().await.expect("close");
            name
        })
        .await
}

/// Databases of test processes that are gone, and templates of other days. Those of today may be in use from another
/// checkout.
async fn drop_leftovers(cluster: &mut PgConnection, today: &str) {
    let names: Vec<String> = sqlx::query_scalar(
        "select datname from pg_database where datname like 'hi\\_test\\_%' or datname like 'hi\\_template\\_%'",
    )
    .fetch_all(&mut *cluster)
    .await
    .expect("catalogue");
    for name in names {
        let owner = name.strip_prefix("hi_test_").and_then(|rest| rest.split('_').next());
        let alive = owner.is_some_and(|pid| std::path::Path::new("/proc").join(pid).exists());
        if !alive && !name.starts_with(today) {
            drop_database(cluster, &name).await;
        }
    }
}

/// Of this build, which has the migrations inside: the files beside it may be of another day.
fn fingerprint() -> u64 {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    let program = std::env::current_exe().expect("a program");
    let file = std::fs::metadata(&program).expect("readable");
    (program, file.len(), file.modified().expect("a time")).hash(&mut hasher);
    hasher.finish()
}
