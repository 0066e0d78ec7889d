//! Owns the connections to PostgreSQL and the only ways to begin a transaction.
//! Promises that a tenant's tables are reached under a role and a tenant that end with the transaction.
//! Called by every room that reads or writes; nobody else names the pool.

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::postgres::{PgConnectOptions, PgConnection, PgPool, PgPoolOptions, PgRow};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, FromRow, Postgres, Transaction};

use crate::config::{Config, ConfigError, mask_userinfo};
use crate::identifier::TenantId;

mod clock;
mod protection;
pub mod serial;
mod tenanted;

use clock::Clock;
pub use protection::{Complaint, Protection, Subject};
pub use tenanted::{Tenanted, WorkerTenant};

/// The name every connection of ours carries: takeover may end a backend only under this prefix.
pub const APPLICATION_NAME: &str = "hashinsight";

/// Why the database cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DbError {
    /// The address is missing or no address.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Nobody answers, or refuses us.
    #[error("cannot use the database {address} (DATABASE_URL): {source}")]
    Connect { address: String, source: sqlx::Error },
    /// The schema is missing or unprotected.
    #[error("{0}")]
    Schema(String),
    /// A statement failed.
    #[error(transparent)]
    Sql(#[from] sqlx::Error),
}

/// The pool of this process. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Db {
    pool: PgPool,
    options: PgConnectOptions,
    /// Begins a transaction of the pipeline in one round trip.
    begin_worker: Arc<str>,
    clock: Arc<Clock>,
}

/// Begins a transaction of a tenant; the tenant itself is bound in a statement of its own.
const BEGIN_TENANT: &str = "begin; set local role hi_app";

/// Begins a look across tenants, which writes nothing whatever the statement says.
const BEGIN_LOOK: &str = "begin isolation level read committed read only; set local role hi_owner";

/// Begins a transaction of the owner. Its locks are asked for briefly: a writer queued behind a waiting schema change
/// would wait as well.
/// A look after a lock must see what was committed before the lock was granted, whatever the login's default isolation.
const BEGIN_OWNER: &str =
    "begin isolation level read committed; set local role hi_owner; set local lock_timeout = 200";

/// The options of a connection: our name, and limits that free what a lost client would hold.
pub fn connect_options(config: &Config) -> Result<PgConnectOptions, DbError> {
    let url = config.database_url()?;
    let options: PgConnectOptions =
        url.parse().map_err(|source| DbError::Connect { address: mask_userinfo(url), source })?;
    let statement_timeout = config.database.statement_timeout_ms.to_string();
    Ok(options
        .application_name(APPLICATION_NAME)
        .options([
            ("statement_timeout", statement_timeout.as_str()),
            ("idle_in_transaction_session_timeout", "10000"),
        ])
        .disable_statement_logging())
}

impl Db {
    /// Connects, or says in one line why not.
    pub async fn connect(config: &Config) -> Result<Self, DbError> {
        let options = connect_options(config)?;
        let pool = PgPoolOptions::new()
            .max_connections(config.database.max_connections)
            .acquire_timeout(Duration::from_millis(config.database.acquire_timeout_ms))
            .connect_lazy_with(options.clone());
        // The first connection is made outside the pool: the pool would retry until its time-out
        // and then report only that.
        let mut probe = PgConnection::connect_with(&options).await.map_err(|source| DbError::Connect {
            address: mask_userinfo(config.database_url().unwrap_or_default()),
            source,
        })?;
        let shown = sqlx::query_scalar("select clock_timestamp()").fetch_one(&mut probe).await?;
        probe.close().await?;
        let begin_worker = format!(
            "begin; set local role hi_worker; set local statement_timeout = {}; set local lock_timeout = {}",
            config.consumer.statement_timeout_ms, config.consumer.lock_timeout_ms
        );
        let clock = Arc::new(Clock::heard(shown));
        Ok(Self { pool, options, begin_worker: begin_worker.into(), clock })
    }

    /// As [`Db::connect`], and refuses a schema that is absent, older, or does not protect tenants.
    pub async fn open(config: &Config) -> Result<Self, DbError> {
        let db = Self::connect(config).await?;
        db.assert_ready().await?;
        Ok(db)
    }

    /// Begins a transaction of one tenant with the rights of the API.
    pub async fn tenant(&self, tenant: &TenantId) -> Result<TenantTx, sqlx::Error> {
        let mut tx = self.pool.begin_with(BEGIN_TENANT).await?;
        let shown = sqlx::query_scalar("select clock_timestamp() from set_config('app.tenant_id', $1, true)")
            .bind(tenant.as_str())
            .fetch_one(&mut *tx)
            .await?;
        self.heard(shown);
        Ok(TenantTx { tx, tenant: tenant.clone(), clock: Arc::clone(&self.clock) })
    }

    /// Begins a transaction with the rights of the API and no tenant: it sees the tables that have none, and not one
    /// row of the others.
    pub async fn without_tenant(&self) -> Result<TenantlessTx, sqlx::Error> {
        let tx = self.pool.begin_with(BEGIN_TENANT).await?;
        Ok(TenantlessTx { tx })
    }

    /// Begins a transaction of the pipeline: its own tables at once, a tenant's through
    /// [`WorkerTx::for_tenant`].
    pub async fn worker(&self) -> Result<WorkerTx, sqlx::Error> {
        let tx = self.pool.begin_with(AssertSqlSafe(Arc::clone(&self.begin_worker))).await?;
        Ok(WorkerTx { tx, clock: Arc::clone(&self.clock), appended: false })
    }

    /// Begins a transaction that may change the schema.
    pub async fn owner(&self) -> Result<OwnerTx, sqlx::Error> {
        let tx = self.pool.begin_with(BEGIN_OWNER).await?;
        Ok(OwnerTx { tx })
    }

    /// One look across tenants, with the owner's eyes and no right to write: for lists of tenants with something to do.
    /// What is done about a tenant is done in a transaction of that tenant.
    pub async fn across_tenants<T>(
        &self,
        statement: &'static str,
        bound: &[&str],
    ) -> Result<Vec<T>, sqlx::Error>
    where
        T: for<'r> FromRow<'r, PgRow> + Send + Unpin,
    {
        let mut tx = self.pool.begin_with(BEGIN_LOOK).await?;
        let mut query = sqlx::query_as(statement);
        for value in bound {
            query = query.bind((*value).to_owned());
        }
        let rows = query.fetch_all(&mut *tx).await?;
        tx.commit().await?;
        Ok(rows)
    }

    /// A connection of its own, for what lives as long as a session: an advisory lock.
    pub async fn session(&self) -> Result<PgConnection, sqlx::Error> {
        PgConnection::connect_with(&self.options).await
    }

    /// As [`Db::session`], with the rights of the pipeline and settings of its own: for statements that are their own
    /// transaction. A process that is frozen between two of them leaves no lock behind.
    pub async fn worker_session(&self, settings: &[(&str, &str)]) -> Result<PgConnection, sqlx::Error> {
        let limits = [("role", "hi_worker"), ("statement_timeout", "10000"), ("lock_timeout", "1000")];
        let options = self.options.clone().options(limits).options(settings.iter().copied());
        PgConnection::connect_with(&options).await
    }

    /// A pool of one connection, so that wake-ups never queue behind work.
    pub fn side_pool(&self) -> PgPool {
        PgPoolOptions::new().max_connections(1).connect_lazy_with(self.options.clone())
    }

    /// The time by the database's clock, near enough: for what is compared with times that it wrote, or is kept beside
    /// them. This host's clock may be hours off, and step.
    pub fn now(&self) -> DateTime<Utc> {
        self.clock.now()
    }

    /// The database's clock shows this.
    pub fn heard(&self, shown: DateTime<Utc>) {
        self.clock.set(shown);
    }

    /// Whether the database answers.
    pub async fn ping(&self) -> Result<(), sqlx::Error> {
        sqlx::query("select 1").execute(&self.pool).await.map(drop)
    }

    /// Closes the pool: after this no statement runs.
    pub async fn close(&self) {
        self.pool.close().await;
    }

    /// Refuses a database whose catalogue says that tenants are not kept apart.
    async fn assert_ready(&self) -> Result<(), DbError> {
        let mut conn = self.pool.acquire().await?;
        let protection = Protection::read(&mut conn).await?;
        protection
            .complaints()
            .into_iter()
            .next()
            .map_or(Ok(()), |wrong| Err(DbError::Schema(wrong.to_string())))
    }
}

/// A transaction of one tenant, with the rights of the API.
#[derive(Debug)]
pub struct TenantTx {
    tx: Transaction<'static, Postgres>,
    tenant: TenantId,
    clock: Arc<Clock>,
}

impl TenantTx {
    /// The tenant whose rows this transaction sees.
    pub fn tenant(&self) -> &TenantId {
        &self.tenant
    }

    /// The time, as [`Db::now`].
    pub fn now(&self) -> DateTime<Utc> {
        self.clock.now()
    }

    /// The connection, for a statement.
    pub fn conn(&mut self) -> &mut PgConnection {
        &mut self.tx
    }

    /// Commits.
    pub async fn commit(self) -> Result<(), sqlx::Error> {
        self.tx.commit().await
    }
}

/// A transaction with the rights of the API and no tenant.
#[derive(Debug)]
pub struct TenantlessTx {
    tx: Transaction<'static, Postgres>,
}

impl TenantlessTx {
    /// The connection, for a statement.
    pub fn conn(&mut self) -> &mut PgConnection {
        &mut self.tx
    }

    /// Commits.
    pub async fn commit(self) -> Result<(), sqlx::Error> {
        self.tx.commit().await
    }
}

/// A transaction of the pipeline.
#[derive(Debug)]
pub struct WorkerTx {
    tx: Transaction<'static, Postgres>,
    clock: Arc<Clock>,
    /// Whether events were appended: the publisher is told after the commit.
    appended: bool,
}

impl WorkerTx {
    /// The connection, for a statement on the pipeline's own tables.
    pub fn conn(&mut self) -> &mut PgConnection {
        &mut self.tx
    }

    /// The connection, with the rows of one tenant in view until the next call.
    pub async fn for_tenant(&mut self, tenant: &TenantId) -> Result<&mut PgConnection, sqlx::Error> {
        sqlx::query("select set_config('app.tenant_id', $1, true)")
            .bind(tenant.as_str())
            .execute(&mut *self.tx)
            .await?;
        Ok(&mut self.tx)
    }

    /// As [`WorkerTx::for_tenant`], for what also writes events or goes by the clock.
    pub async fn within<'a>(&'a mut self, tenant: &'a TenantId) -> Result<WorkerTenant<'a>, sqlx::Error> {
        self.for_tenant(tenant).await?;
        Ok(WorkerTenant { tx: self, tenant })
    }

    /// Whether events were appended in it.
    pub fn appended(&self) -> bool {
        self.appended
    }

    /// Commits.
    pub async fn commit(self) -> Result<(), sqlx::Error> {
        self.tx.commit().await
    }

    /// Rolls back and waits for it, so that locks are gone when this returns.
    pub async fn rollback(self) -> Result<(), sqlx::Error> {
        self.tx.rollback().await
    }
}

/// A transaction that may change the schema.
#[derive(Debug)]
pub struct OwnerTx {
    tx: Transaction<'static, Postgres>,
}

impl OwnerTx {
    /// The connection, for a statement.
    pub fn conn(&mut self) -> &mut PgConnection {
        &mut self.tx
    }

    /// Commits.
    pub async fn commit(self) -> Result<(), sqlx::Error> {
        self.tx.commit().await
    }

    /// Rolls back and waits for it, so that locks are gone when this returns.
    pub async fn rollback(self) -> Result<(), sqlx::Error> {
        self.tx.rollback().await
    }
}

/// What a failed statement says about the next attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SqlFailure {
    /// The database is away, busy, or asked for the transaction to be repeated.
    Transient,
    /// The statement or its values are at fault.
    Permanent,
}

/// Classifies a failure by its SQLSTATE; what is not known to pass is permanent.
pub fn classify(error: &sqlx::Error) -> SqlFailure {
    match error {
        sqlx::Error::Io(_)
        | sqlx::Error::Tls(_)
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::PoolClosed
        | sqlx::Error::WorkerCrashed
        // The conversation broke: no statement and no value does that. A server that hangs up while the connection is
        // being made, as one does that is crashing or behind a proxy, is told in this way.
        | sqlx::Error::Protocol(_) => SqlFailure::Transient,
        sqlx::Error::Database(database) => match database.code().as_deref() {
            // serialization failure, deadlock, lock timeout, statement cancelled by a timeout
            Some("40001" | "40P01" | "55P03" | "57014" | "25P03" | "25006") => SqlFailure::Transient,
            // connection, resources, operator intervention
            Some(code) if ["08", "53", "57P", "58"].iter().any(|class| code.starts_with(class)) => {
                SqlFailure::Transient
            }
            _ => SqlFailure::Permanent,
        },
        _ => SqlFailure::Permanent,
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;
    use tokio::net::TcpListener;

    use super::*;

    /// F20: a server that ends before it has said a word is away, not broken.
    #[tokio::test]
    async fn a_server_that_hangs_up_at_once_is_away() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let hang_up = async {
            let (mut client, _) = listener.accept().await.expect("a client");
            // What was asked is read: unread, it would end in a reset.
            let _ = client.read(&mut [0; 64]).await;
        };
        let url = format!("postgres://nobody@{address}/x");
        let (refused, ()) = tokio::join!(PgConnection::connect(&url), hang_up);
        let error = refused.expect_err("nobody answers");
        assert_eq!(classify(&error), SqlFailure::Transient, "{error}");
    }
}
