//! `hashinsight migrate`: roles, schema, policies, model catalogue, partitions.

use anyhow::Context;
use sqlx::migrate::{Migrate, Migrator};
use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, Connection, PgConnection};

use crate::config::Config;
use crate::db::{Db, connect_options};
use crate::doorbell::Doorbells;
use crate::economics::catalogue;
use crate::partitions;
use crate::role::app::{open_log, upkeep};
use crate::role::{print_json, topics};

static SCHEMA: Migrator = sqlx::migrate!("migrations/schema");
const ROLES: &str = include_str!("../../migrations/roles.sql");
const MODELS: &str = include_str!("../../migrations/data/miner_models.csv");

/// Roles belong to the cluster: two migrations of two databases would race on them.
const CLUSTER_LOCK: &str = "select pg_advisory_lock(hashtextextended('hashinsight.migrate', 0))";

/// What a migration did, or would do.
#[derive(Debug, serde::Serialize)]
pub struct Report {
    /// Schema versions applied by this run.
    pub applied: Vec<String>,
    /// Schema versions that are not applied: only with `--status`.
    pub pending: Vec<String>,
    /// Catalogue rows added or changed.
    pub models: u64,
    /// Daily partitions made.
    pub partitions: usize,
}

impl Report {
    /// Whether there was nothing to do.
    pub fn up_to_date(&self) -> bool {
        self.applied.is_empty() && self.pending.is_empty() && self.models == 0 && self.partitions == 0
    }
}

/// Migrates and prints what was done, or only what would be.
pub async fn run(config: &Config, only_status: bool, json: bool) -> anyhow::Result<()> {
    let report = if only_status { status(config).await? } else { migrate(config).await? };
    let topics = if only_status { Topics::default() } else { ensure_topics(config).await? };
    if json {
        return print_json(&serde_json::json!({"schema": report, "topics": topics}));
    }
    for version in &report.applied {
        println!("applied {version}");
    }
    for version in &report.pending {
        println!("pending {version}");
    }
    if report.models > 0 {
        println!("model catalogue: {} models added or changed", report.models);
    }
    if report.partitions > 0 {
        println!("partitions: {} made ahead", report.partitions);
    }
    for topic in &topics.created {
        println!("created topic {topic}");
    }
    if let Some(reason) = topics.skipped {
        println!("topics: skipped, {reason}");
    }
    if !only_status && report.up_to_date() && topics.created.is_empty() {
        println!("up to date");
    }
    Ok(())
}

/// What became of the topics.
#[derive(Debug, Default, serde::Serialize)]
struct Topics {
    created: Vec<String>,
    skipped: Option<&'static str>,
}

async fn ensure_topics(config: &Config) -> anyhow::Result<Topics> {
    let Ok(kind) = config.event_log_kind(false) else {
        let skipped = Some("KAFKA_BROKERS is not set");
        return Ok(Topics { skipped, ..Topics::default() });
    };
    let db = Db::open(config).await?;
    let log = open_log(config, kind, &db, &Doorbells::default()).await?;
    let created = log.ensure_topics(&topics::specs(config, kind)).await?;
    db.close().await;
    Ok(Topics { created, skipped: None })
}

/// Brings the database to the schema of this build. Running it again changes nothing.
pub async fn migrate(config: &Config) -> anyhow::Result<Report> {
    let login = connect_options(config)?
        .options([("statement_timeout", "0"), ("idle_in_transaction_session_timeout", "0")]);
    let mut cluster = connect(&login.clone().database("postgres"))
        .await
        .context("migrate needs the database `postgres` of the cluster for a lock around the roles")?;
    sqlx::query(CLUSTER_LOCK).execute(&mut cluster).await?;
    let mut conn = connect(&login).await?;
    sqlx::raw_sql(ROLES).execute(&mut conn).await.context(
        "the roles hi_owner, hi_app and hi_worker: the login of DATABASE_URL needs CREATEROLE and the right to grant \
         on schema public",
    )?;
    conn.close().await?;

    let mut conn = connect(&login.options([("role", "hi_owner")])).await?;
    let before = applied_versions(&mut conn).await?;
    SCHEMA.run_direct(None, &mut conn, false).await.context("schema")?;
    let applied = names().filter(|(version, _)| !before.contains(version)).map(|(_, name)| name).collect();
    let models = load_models(&mut conn).await.context("model catalogue")?;
    conn.close().await?;

    let db = Db::connect(config).await?;
    let partitions = partitions::make_ahead(&db, &upkeep(config)).await?;
    db.close().await;
    cluster.close().await?;
    Ok(Report { applied, pending: Vec::new(), models, partitions })
}

/// What `migrate` would apply.
pub async fn status(config: &Config) -> anyhow::Result<Report> {
    let mut conn = connect(&connect_options(config)?).await?;
    let before = applied_versions(&mut conn).await?;
    conn.close().await?;
    let (applied, pending): (Vec<_>, Vec<_>) = names().partition(|(version, _)| before.contains(version));
    let names = |list: Vec<(i64, String)>| list.into_iter().map(|(_, name)| name).collect();
    Ok(Report { applied: names(applied), pending: names(pending), models: 0, partitions: 0 })
}

async fn connect(options: &PgConnectOptions) -> anyhow::Result<PgConnection> {
    options.connect().await.with_context(|| {
        format!("cannot use the database {}:{} (DATABASE_URL)", options.get_host(), options.get_port())
    })
}

fn names() -> impl Iterator<Item = (i64, String)> {
    SCHEMA.iter().map(|m| (m.version, format!("{:04} {}", m.version, m.description)))
}

async fn applied_versions(conn: &mut PgConnection) -> anyhow::Result<Vec<i64>> {
    let exists: bool = sqlx::query_scalar("select to_regclass('_sqlx_migrations') is not null")
        .fetch_one(&mut *conn)
        .await?;
    if !exists {
        return Ok(Vec::new());
    }
    let table = SCHEMA.table_name.clone();
    Ok(conn.list_applied_migrations(&table).await?.into_iter().map(|m| m.version).collect())
}

/// One row of the catalogue file.
#[derive(serde::Deserialize)]
struct ModelRow {
    name: String,
    manufacturer: String,
    algorithm: String,
    hashrate_ths: rust_decimal::Decimal,
    power_w: rust_decimal::Decimal,
    efficiency_j_th: rust_decimal::Decimal,
    released: String,
    cooling: String,
    core: bool,
    confidence: String,
}

async fn load_models(conn: &mut PgConnection) -> anyhow::Result<u64> {
    let mut changed = 0;
    let mut tx = conn.begin().await?;
    for row in csv::Reader::from_reader(MODELS.as_bytes()).deserialize() {
        let model: ModelRow = row?;
        changed += sqlx::query(
            "insert into miner_model as m (name_key, name, manufacturer, algorithm, hashrate_ths, power_w, \
             efficiency_j_th, released, cooling, core, confidence) \
             values ($1, $2, $3, $4, $5, $6, $7, nullif($8, ''), nullif($9, ''), $10, $11) \
             on conflict (name_key) do update set name = excluded.name, manufacturer = excluded.manufacturer, \
               algorithm = excluded.algorithm, hashrate_ths = excluded.hashrate_ths, power_w = excluded.power_w, \
               efficiency_j_th = excluded.efficiency_j_th, released = excluded.released, cooling = excluded.cooling, \
               core = excluded.core, confidence = excluded.confidence \
             where m.* is distinct from excluded.*",
        )
        .bind(catalogue::normalise(&model.name))
        .bind(model.name)
        .bind(model.manufacturer)
        .bind(model.algorithm)
        .bind(model.hashrate_ths)
        .bind(model.power_w)
        .bind(model.efficiency_j_th)
        .bind(model.released)
        .bind(model.cooling)
        .bind(model.core)
        .bind(model.confidence)
        .execute(&mut *tx)
        .await?
        .rows_affected();
    }
    tx.commit().await?;
    Ok(changed)
}
