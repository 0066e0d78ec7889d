//! Replication slots: what they hold back, who reads them, making and dropping them.
//!
//! A slot belongs to one database but its name to the cluster, and it outlives whoever made it: a forgotten one keeps
//! write-ahead log for ever.

use sqlx::postgres::PgConnection;

use super::Lsn;
use crate::db::APPLICATION_NAME;

/// PostgreSQL's limit of a name.
const LONGEST_NAME: usize = 63;

/// A slot as PostgreSQL describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slot {
    pub name: String,
    pub plugin: String,
    pub database: String,
    /// Whether that is the database we asked in.
    pub here: bool,
    /// The backend that reads it.
    pub active_pid: Option<i32>,
    /// The reader's own name, as far as the server shows it.
    pub application_name: Option<String>,
    /// The oldest place that is still needed.
    pub restart_lsn: Option<Lsn>,
    /// None while the slot is still being made.
    pub confirmed_flush_lsn: Option<Lsn>,
    /// reserved | extended | unreserved | lost
    pub wal_status: String,
    /// How many bytes may be written before the slot is in danger; none without max_slot_wal_keep_size.
    pub safe_wal_size: Option<i64>,
    /// What is kept for it.
    pub retained_bytes: u64,
    /// max_slot_wal_keep_size, if it is limited.
    pub keep_bytes: Option<u64>,
}

/// Whether a slot can be read from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SlotState {
    Missing,
    Healthy(Slot),
    /// What was not confirmed is gone; the slot is of no more use.
    Lost(Slot),
}

impl Slot {
    /// What was not confirmed is gone.
    pub fn is_lost(&self) -> bool {
        self.wal_status == "lost"
    }
}

impl SlotState {
    /// In one word.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Healthy(_) => "healthy",
            Self::Lost(_) => "lost",
        }
    }

    /// The slot, if there is one.
    pub fn slot(&self) -> Option<&Slot> {
        match self {
            Self::Missing => None,
            Self::Healthy(slot) | Self::Lost(slot) => Some(slot),
        }
    }
}

/// What [`create`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Created {
    New,
    Existed,
}

/// Why a slot was not made or not dropped.
#[derive(Debug, thiserror::Error)]
pub enum SlotError {
    #[error("the replication slot {0} does not exist: `hashinsight slot create`")]
    Missing(String),
    #[error("the replication slot {0} is lost: `hashinsight slot drop`, `hashinsight slot create`")]
    Lost(String),
    #[error(
        "the replication slot {name} belongs to {owner}: name another one with HASHINSIGHT__WAL__SLOT or \
         HASHINSIGHT__DEBEZIUM__SLOT"
    )]
    Foreign { name: String, owner: String },
    #[error("the replication slot {name} is read by {reader}: {remedy}")]
    Active { name: String, reader: String, remedy: &'static str },
    #[error("{0}: set wal_level = logical in postgresql.conf and restart the server")]
    WalLevel(String),
    #[error(
        "{0}: raise max_replication_slots, or drop a slot that nobody needs: `select * from pg_replication_slots`"
    )]
    TooMany(String),
    #[error("{0}: {1}")]
    Privilege(String, String),
    #[error(transparent)]
    Sql(#[from] sqlx::Error),
}

/// What a login without the right to replicate needs.
pub(super) fn needs_replication(login: &str) -> String {
    format!(
        "`alter role \"{login}\" replication`, or name a login that has it in HASHINSIGHT__WAL__DATABASE_URL \
         (replication is not inherited from a role one is member of)"
    )
}

/// The name of our slot in this database: the base, or with the database's name where the base is another database's.
pub async fn name(conn: &mut PgConnection, base: &str) -> Result<String, sqlx::Error> {
    let database: String =
        sqlx::query_scalar("select current_database()::text").fetch_one(&mut *conn).await?;
    let own = own_name(base, &database);
    // One of our own that was made while the base was taken stays ours when the base becomes free.
    let taken: bool = sqlx::query_scalar(
        "select exists (select from pg_replication_slots where slot_name = $1 and database is distinct from $3 \
         or slot_name = $2 and database = $3)",
    )
    .bind(base)
    .bind(&own)
    .bind(&database)
    .fetch_one(conn)
    .await?;
    Ok(if taken { own } else { base.to_owned() })
}

fn own_name(base: &str, database: &str) -> String {
    let legal = |c: char| if c.is_ascii_digit() || c.is_ascii_lowercase() { c } else { '_' };
    let appended: String = database.to_lowercase().chars().map(legal).collect();
    format!("{base}_{appended}").chars().take(LONGEST_NAME).collect()
}

#[derive(sqlx::FromRow)]
struct SlotRow {
    slot_name: String,
    plugin: Option<String>,
    database: Option<String>,
    here: Option<bool>,
    active_pid: Option<i32>,
    application_name: Option<String>,
    restart_lsn: Option<String>,
    confirmed_flush_lsn: Option<String>,
    wal_status: Option<String>,
    safe_wal_size: Option<i64>,
    written: String,
    keep_mb: Option<i64>,
}

/// One slot by its name, or with `$2` those of our own readers in this database as well.
const SLOTS: &str = "select s.slot_name::text, s.plugin::text, s.database::text, s.database = current_database() as here, \
       s.active_pid, a.application_name, s.restart_lsn::text, s.confirmed_flush_lsn::text, s.wal_status, \
       s.safe_wal_size, pg_current_wal_insert_lsn()::text as written, \
       (select nullif(setting::bigint, -1) from pg_settings where name = 'max_slot_wal_keep_size') as keep_mb \
     from pg_replication_slots s left join pg_stat_activity a on a.pid = s.active_pid where s.slot_name = $1 \
     or ($2 and s.database = current_database() and starts_with(s.slot_name::text, 'hashinsight')) \
     order by s.slot_name";

/// Looks at a slot. Any login may.
pub async fn state(conn: &mut PgConnection, name: &str) -> Result<SlotState, sqlx::Error> {
    let row = sqlx::query_as(SLOTS).bind(name).bind(false).fetch_optional(conn).await?;
    let Some(slot) = row.map(slot_of).transpose()? else { return Ok(SlotState::Missing) };
    Ok(if slot.is_lost() { SlotState::Lost(slot) } else { SlotState::Healthy(slot) })
}

/// The slot of this name, and those of our own readers in this database.
pub async fn with_ours(conn: &mut PgConnection, name: &str) -> Result<Vec<Slot>, sqlx::Error> {
    let rows: Vec<SlotRow> = sqlx::query_as(SLOTS).bind(name).bind(true).fetch_all(conn).await?;
    rows.into_iter().map(slot_of).collect()
}

fn slot_of(row: SlotRow) -> Result<Slot, sqlx::Error> {
    let lsn = |text: String| text.parse::<Lsn>().map_err(|e| sqlx::Error::Decode(e.into()));
    let restart_lsn = row.restart_lsn.map(lsn).transpose()?;
    let written = lsn(row.written)?;
    Ok(Slot {
        name: row.slot_name,
        plugin: row.plugin.unwrap_or_default(),
        database: row.database.unwrap_or_default(),
        here: row.here.unwrap_or_default(),
        active_pid: row.active_pid,
        application_name: row.application_name,
        restart_lsn,
        confirmed_flush_lsn: row.confirmed_flush_lsn.map(lsn).transpose()?,
        wal_status: row.wal_status.unwrap_or_default(),
        safe_wal_size: row.safe_wal_size,
        retained_bytes: restart_lsn.map_or(0, |restart| written.bytes_since(restart)),
        keep_bytes: row.keep_mb.and_then(|mb| u64::try_from(mb).ok()).map(|mb| mb << 20),
    })
}

/// How far the write-ahead log is written: a slot confirmed beyond it has delivered all that is visible now.
pub async fn current_wal_insert_lsn(conn: &mut PgConnection) -> Result<Lsn, sqlx::Error> {
    let text: String = sqlx::query_scalar("select pg_current_wal_insert_lsn()::text").fetch_one(conn).await?;
    text.parse().map_err(|e: super::InvalidLsn| sqlx::Error::Decode(e.into()))
}

/// Makes the slot, on a connection of [`super::WalSettings::connect`]: waits until every transaction that is open now
/// has ended.
pub async fn create(conn: &mut PgConnection, name: &str) -> Result<Created, SlotError> {
    match state(conn, name).await? {
        SlotState::Missing => {}
        SlotState::Lost(slot) => return Err(SlotError::Lost(slot.name)),
        SlotState::Healthy(slot) if slot.here && slot.plugin == "pgoutput" => return Ok(Created::Existed),
        SlotState::Healthy(slot) => return Err(foreign(slot)),
    }
    let made = sqlx::query("select pg_create_logical_replication_slot($1, 'pgoutput')")
        .bind(name)
        .execute(&mut *conn)
        .await;
    let Err(sqlx::Error::Database(error)) = made else { return Ok(made.map(|_| Created::New)?) };
    let message = error.message().to_owned();
    Err(match error.code().as_deref() {
        Some("55000") => SlotError::WalLevel(message),
        Some("53400") => SlotError::TooMany(message),
        Some("42501") => {
            let login: String = sqlx::query_scalar("select session_user::text").fetch_one(conn).await?;
            SlotError::Privilege(message, needs_replication(&login))
        }
        _ => SlotError::Sql(sqlx::Error::Database(error)),
    })
}

/// Drops the slot. One that is read is left alone, unless `force` is set and the reader is ours.
pub async fn drop(conn: &mut PgConnection, name: &str, force: bool) -> Result<(), SlotError> {
    let found = state(conn, name).await?;
    let Some(slot) = found.slot() else { return Err(SlotError::Missing(name.to_owned())) };
    if !slot.here {
        return Err(foreign(slot.clone()));
    }
    if let Some(pid) = slot.active_pid {
        let active = |remedy| {
            let application = slot.application_name.as_deref().unwrap_or("an unknown application");
            SlotError::Active {
                name: name.to_owned(),
                reader: format!("{application} (process id {pid})"),
                remedy,
            }
        };
        if !force {
            return Err(active("stop it first, or end a reader of ours with --force"));
        }
        if !terminate_reader(conn, name, pid).await? {
            return Err(active("it is not ours and is not ended; stop it first"));
        }
    }
    sqlx::query("select pg_drop_replication_slot($1)").bind(name).execute(conn).await?;
    Ok(())
}

fn foreign(slot: Slot) -> SlotError {
    let owner = if slot.here {
        format!("the output plugin {:?}", slot.plugin)
    } else if slot.database.is_empty() {
        "a physical standby".to_owned()
    } else {
        format!("the database {}", slot.database)
    };
    SlotError::Foreign { name: slot.name, owner }
}

/// Ends the backend that reads the slot, if it is this one and its application name says it is ours, and waits up to
/// five seconds for its end. `false`: it is not ours, or does not end.
pub async fn terminate_reader(conn: &mut PgConnection, name: &str, pid: i32) -> Result<bool, sqlx::Error> {
    let ended: Option<bool> = sqlx::query_scalar(
        "select pg_terminate_backend(a.pid, 5000) from pg_stat_activity a \
         join pg_replication_slots s on s.active_pid = a.pid \
         where s.slot_name = $1 and a.pid = $2 and starts_with(a.application_name, $3)",
    )
    .bind(name)
    .bind(pid)
    .bind(APPLICATION_NAME)
    .fetch_optional(conn)
    .await?;
    Ok(ended == Some(true))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_of_the_databases_own_is_legal() {
        assert_eq!(own_name("hashinsight_wal", "Acme-Prod \u{e4}"), "hashinsight_wal_acme_prod__");
        let long = own_name("hashinsight_wal", &"x".repeat(63));
        assert_eq!((long.len(), long.starts_with("hashinsight_wal_xxx")), (63, true));
    }
}
