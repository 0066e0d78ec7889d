//! The database of a bench: made at its start, dropped at its end, and the slots that read it.

use std::time::Duration;

use anyhow::{Context as _, bail};
use secrecy::{ExposeSecret, SecretString};
use serde::Serialize;
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, PgConnection};
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use crate::config::{Config, ConfigError};
use crate::db::connect_options;
use crate::role::migrate;

/// A connector that was deleted winds down by itself.
const RELEASED_WITHIN: Duration = Duration::from_secs(60);

/// Dead rows that a load left behind.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct DeadRows {
    pub outbox: i64,
    pub cursor: i64,
}

/// The database, reached past the roles of the product: a bench empties tables and makes slots.
pub struct Database {
    /// With this database's address.
    pub config: Config,
    name: String,
    options: PgConnectOptions,
    cluster: PgConnectOptions,
}

impl Database {
    /// Makes and migrates a database of this name on the server of the configuration.
    pub async fn create(mut config: Config, name: &str) -> anyhow::Result<Self> {
        // Filling and draining take as long as they take.
        let unlimited = [("statement_timeout", "0"), ("idle_in_transaction_session_timeout", "0")];
        let cluster = connect_options(&config)?.options(unlimited);
        let mut conn = connect(&cluster).await?;
        sqlx::raw_sql(AssertSqlSafe(format!("create database {name}")))
            .execute(&mut conn)
            .await
            .context("a bench makes a database of its own: the login of DATABASE_URL needs CREATEDB")?;
        conn.close().await?;
        config.database.url = renamed(config.database.url.expose_secret(), name)?.into();
        config.debezium.database_url = SecretString::default();
        let options = connect_options(&config)?.options(unlimited);
        let database = Self { config, name: name.to_owned(), options, cluster };
        if let Err(error) = migrate::migrate(&database.config).await {
            database.drop().await?;
            return Err(error);
        }
        Ok(database)
    }

    /// Drops the database with its slots, whoever still uses them.
    pub async fn drop(&self) -> anyhow::Result<()> {
        self.drop_slots().await?;
        let mut conn = connect(&self.cluster).await?;
        sqlx::raw_sql(AssertSqlSafe(format!("drop database if exists {} with (force)", self.name)))
            .execute(&mut conn)
            .await?;
        conn.close().await?;
        Ok(())
    }

    /// A connection as the login.
    pub async fn connect(&self) -> anyhow::Result<PgConnection> {
        connect(&self.options).await
    }

    /// A connection as the owner of the tables.
    pub async fn owner(&self) -> anyhow::Result<PgConnection> {
        connect(&self.options.clone().options([("role", "hi_owner")])).await
    }

    /// Where and as whom peers connect.
    pub fn options(&self) -> &PgConnectOptions {
        &self.options
    }

    /// Empties the outbox, and the cursor's table of dead rows.
    pub async fn empty(&self) -> anyhow::Result<()> {
        let mut conn = self.owner().await?;
        for statement in ["truncate event_outbox", "vacuum publisher_cursor"] {
            sqlx::raw_sql(statement).execute(&mut conn).await?;
        }
        conn.close().await?;
        Ok(())
    }

    /// Begins a transaction that has written an event and keeps what it sees, until its connection is closed.
    pub async fn hold(&self) -> anyhow::Result<PgConnection> {
        let mut conn = self.owner().await?;
        sqlx::raw_sql("begin isolation level repeatable read; select bench_event(0, 0, 1)")
            .execute(&mut conn)
            .await?;
        Ok(conn)
    }

    /// Rows that nobody needs and that were not cleaned away, as far as their writers have told.
    pub async fn dead_rows(&self) -> anyhow::Result<DeadRows> {
        let mut conn = self.owner().await?;
        let (outbox, cursor) = sqlx::query_as(
            "select coalesce(sum(n_dead_tup) filter (where relname like 'event_outbox%'), 0)::bigint, \
               coalesce(sum(n_dead_tup) filter (where relname = 'publisher_cursor'), 0)::bigint \
             from pg_stat_user_tables",
        )
        .fetch_one(&mut conn)
        .await?;
        conn.close().await?;
        Ok(DeadRows { outbox, cursor })
    }

    /// Everything up to now counts as published.
    pub async fn snapshot(&self) -> anyhow::Result<String> {
        let mut conn = self.connect().await?;
        let snapshot = sqlx::query_scalar("select pg_current_snapshot()::text").fetch_one(&mut conn).await?;
        conn.close().await?;
        Ok(snapshot)
    }

    /// Sets the cursor of the publisher back. The epoch moves on, so that a publisher that was just killed and whose
    /// last statement is still under way changes nothing.
    pub async fn rewind(&self, snapshot: &str) -> anyhow::Result<()> {
        let mut conn = self.owner().await?;
        sqlx::query(
            "update publisher_cursor set published = $1::text::pg_snapshot, reading = null, last_position = 0, \
             floor_position = 0, epoch = epoch + 1",
        )
        .bind(snapshot)
        .execute(&mut conn)
        .await?;
        conn.close().await?;
        Ok(())
    }

    /// The ids of all events.
    pub async fn ids(&self) -> anyhow::Result<Vec<Uuid>> {
        let mut conn = self.owner().await?;
        let ids = sqlx::query_scalar("select id from event_outbox").fetch_all(&mut conn).await?;
        conn.close().await?;
        Ok(ids)
    }

    /// When the transaction of each event committed, in microseconds since 1970.
    pub async fn commit_times(&self) -> anyhow::Result<Vec<(Uuid, i64)>> {
        let mut conn = self.owner().await?;
        let times = sqlx::query_as(
            "select id, (extract(epoch from pg_xact_commit_timestamp(xid::xid)) * 1000000)::bigint from event_outbox",
        )
        .fetch_all(&mut conn)
        .await?;
        conn.close().await?;
        Ok(times)
    }

    /// When the transaction that applied each event committed, in microseconds since 1970.
    pub async fn applied_times(&self) -> anyhow::Result<Vec<(Uuid, i64)>> {
        let mut conn = self.owner().await?;
        let times = sqlx::query_as(
            "select event_id, (extract(epoch from pg_xact_commit_timestamp(xmin)) * 1000000)::bigint from event_inbox \
             where outcome = 'applied'",
        )
        .fetch_all(&mut conn)
        .await?;
        conn.close().await?;
        Ok(times)
    }

    /// Without the times of commits there is no latency.
    pub async fn check_commit_times(&self) -> anyhow::Result<()> {
        if !self.is_on("track_commit_timestamp").await? {
            bail!(
                "track_commit_timestamp is off: latency is measured from PostgreSQL's commit times. Set \
                 track_commit_timestamp = on in postgresql.conf and restart the server"
            );
        }
        Ok(())
    }

    /// Whether a setting of the server is on.
    async fn is_on(&self, setting: &str) -> anyhow::Result<bool> {
        Ok(self.setting(setting).await? == "on")
    }

    /// Whether the WAL holds what a logical slot needs.
    pub async fn is_logical(&self) -> anyhow::Result<bool> {
        Ok(self.setting("wal_level").await? == "logical")
    }

    async fn setting(&self, name: &str) -> anyhow::Result<String> {
        let mut conn = self.connect().await?;
        let value = sqlx::query_scalar("select current_setting($1)").bind(name).fetch_one(&mut conn).await?;
        conn.close().await?;
        Ok(value)
    }

    /// The average size of a payload, rounded; 0 where there is none.
    pub async fn payload_bytes(&self) -> anyhow::Result<i64> {
        let mut conn = self.owner().await?;
        let bytes = sqlx::query_scalar(
            "select coalesce(avg(octet_length(payload::text)), 0)::bigint from event_outbox",
        )
        .fetch_one(&mut conn)
        .await?;
        conn.close().await?;
        Ok(bytes)
    }

    /// Makes a slot that keeps everything from now on.
    pub async fn create_slot(&self, slot: &str) -> anyhow::Result<()> {
        let mut conn = self.connect().await?;
        sqlx::query("select pg_create_logical_replication_slot($1, 'pgoutput')")
            .bind(slot)
            .execute(&mut conn)
            .await
            .context("a replication slot: the login of DATABASE_URL needs REPLICATION")?;
        conn.close().await?;
        Ok(())
    }

    /// Drops the slots of this database; whoever reads one is cut off.
    pub async fn drop_slots(&self) -> anyhow::Result<()> {
        let mut conn = connect(&self.cluster).await?;
        let slots: Vec<String> =
            sqlx::query_scalar("select slot_name::text from pg_replication_slots where database = $1")
                .bind(&self.name)
                .fetch_all(&mut conn)
                .await?;
        for slot in slots {
            // A backend that was told to end is still there for a moment, and the slot with it.
            sqlx::query(
                "select pg_terminate_backend(active_pid, 10000) from pg_replication_slots \
                 where slot_name = $1 and active_pid is not null",
            )
            .bind(&slot)
            .execute(&mut conn)
            .await?;
            sqlx::query("select pg_drop_replication_slot($1)").bind(&slot).execute(&mut conn).await?;
        }
        conn.close().await?;
        Ok(())
    }

    /// Waits until nobody reads the slot, if there is one.
    pub async fn released(&self, slot: &str) -> anyhow::Result<()> {
        let mut conn = self.connect().await?;
        let until = Instant::now() + RELEASED_WITHIN;
        loop {
            let active: Option<bool> =
                sqlx::query_scalar("select active from pg_replication_slots where slot_name = $1")
                    .bind(slot)
                    .fetch_optional(&mut conn)
                    .await?;
            if active != Some(true) {
                conn.close().await?;
                return Ok(());
            }
            if Instant::now() >= until {
                bail!(
                    "the slot {slot} is still read {} s after its reader was ended",
                    RELEASED_WITHIN.as_secs()
                );
            }
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// The end of the WAL.
    pub async fn wal_end(&self) -> anyhow::Result<String> {
        let mut conn = self.connect().await?;
        let end = sqlx::query_scalar("select pg_current_wal_insert_lsn()::text").fetch_one(&mut conn).await?;
        conn.close().await?;
        Ok(end)
    }
}

async fn connect(options: &PgConnectOptions) -> anyhow::Result<PgConnection> {
    options.connect().await.with_context(|| {
        format!("cannot use the database {}:{} (DATABASE_URL)", options.get_host(), options.get_port())
    })
}

/// The address of another database of the same server.
fn renamed(url: &str, database: &str) -> Result<String, ConfigError> {
    let (base, query) = url.split_once('?').map_or((url, None), |(base, query)| (base, Some(query)));
    let authority = base.find("://").map_or(0, |at| at + 3);
    let server = base[authority..].find('/').map_or(base, |slash| &base[..authority + slash]);
    if server.len() == authority {
        return Err(ConfigError("database.url names no server (the value is not shown)".to_owned()));
    }
    Ok(query.map_or_else(|| format!("{server}/{database}"), |query| format!("{server}/{database}?{query}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_database_of_an_address_changes() {
        for (url, expected) in [
            ("postgres://u:p@h:1/d", "postgres://u:p@h:1/bench"),
            ("postgres://u:p@h:1/d?sslmode=require", "postgres://u:p@h:1/bench?sslmode=require"),
            ("postgres://h", "postgres://h/bench"),
        ] {
            assert_eq!(renamed(url, "bench").expect("an address"), expected);
        }
        assert!(renamed("postgres://", "bench").is_err());
    }
}
