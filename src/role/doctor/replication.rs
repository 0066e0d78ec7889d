//! What readers of the WAL need: settings of the server, publication, slots.

use sqlx::PgConnection;

use super::Check;
use crate::config::Config;
use crate::connector::{self, PUBLICATION, create_statement};
use crate::outbox::wal::{Slot, slot};

/// A slot that retains more than this share of what it may loses its WAL soon.
const ALARM: f64 = 0.5;

/// Settings of the server.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub(super) struct Server {
    pub(super) wal_level: String,
    /// In MiB; -1 without a limit.
    pub(super) max_slot_wal_keep_size: i64,
}

pub(super) async fn server(conn: &mut PgConnection) -> Result<Server, sqlx::Error> {
    sqlx::query_as(
        "select current_setting('wal_level') as wal_level, \
         (select setting::bigint from pg_settings where name = 'max_slot_wal_keep_size') as max_slot_wal_keep_size",
    )
    .fetch_one(conn)
    .await
}

pub(super) fn judge_server(server: &Server, debezium: bool) -> Vec<Check> {
    let level = match (server.wal_level.as_str(), debezium) {
        ("logical", _) => Check::ok("wal_level", "logical"),
        (level, true) => Check::failed(
            "wal_level",
            format!("{level}: Debezium cannot read the WAL"),
            "`alter system set wal_level = logical` and restart PostgreSQL",
        ),
        (level, false) => Check::warning(
            "wal_level",
            format!("{level}: enough for publishing from the table, not for readers of the WAL"),
            "`alter system set wal_level = logical` and restart PostgreSQL",
        ),
    };
    let name = "slot keep size";
    let keep = if server.max_slot_wal_keep_size < 0 {
        Check::warning(
            name,
            "max_slot_wal_keep_size is -1: a slot that nobody reads fills the disk",
            "`alter system set max_slot_wal_keep_size = '10GB'`, or what the disk can spare, and reload",
        )
    } else {
        Check::ok(name, format!("max_slot_wal_keep_size is {} MiB", server.max_slot_wal_keep_size))
    };
    vec![level, keep]
}

/// The publication and the slots, as checks.
pub(super) async fn examine(conn: &mut PgConnection, config: &Config) -> Result<Vec<Check>, sqlx::Error> {
    let mut checks = vec![publication(conn).await?];
    let debezium = &config.debezium.slot;
    let found = slot::with_ours(conn, debezium).await?;
    checks.extend(judge_slots(&found, debezium, config.kafka.connect_url().is_some()));
    if config.kafka.connect_url().is_some() {
        checks.push(login(conn, config).await?);
    }
    Ok(checks)
}

/// What Debezium needs of PostgreSQL and does not find, each with its remedy.
pub(in crate::role) async fn prerequisites(
    conn: &mut PgConnection,
    config: &Config,
) -> Result<Vec<String>, sqlx::Error> {
    let mut checks = judge_server(&server(conn).await?, true);
    checks.push(publication(conn).await?);
    let found = slot::state(conn, &config.debezium.slot).await?;
    checks.extend(judge_slots(found.slot().map_or(&[], std::slice::from_ref), &config.debezium.slot, true));
    checks.push(login(conn, config).await?);
    let failed = checks.into_iter().filter(|check| check.status == super::Status::Failed);
    Ok(failed
        .map(|check| format!("{}; remedy: {}", check.detail, check.remedy.unwrap_or_default()))
        .collect())
}

async fn publication(conn: &mut PgConnection) -> Result<Check, sqlx::Error> {
    let name = "publication";
    let Some(publication) = connector::publication(conn).await? else {
        return Ok(Check::failed(name, format!("{PUBLICATION} is missing"), "run `hashinsight migrate`"));
    };
    let wrong = publication.wrong(&connector::columns());
    Ok(if wrong.is_empty() {
        Check::ok(name, format!("{PUBLICATION} publishes the inserts of the outbox"))
    } else {
        Check::failed(
            name,
            format!("{PUBLICATION}: {}", wrong.join("; ")),
            format!(
                "`alter publication {PUBLICATION} set (publish = 'insert', publish_via_partition_root = true)` and `alter \
                 publication {PUBLICATION} set table event_outbox`"
            ),
        )
    })
}

/// One check a slot; a slot that is missing is worth a line only where Debezium is used.
fn judge_slots(slots: &[Slot], debezium: &str, used: bool) -> Vec<Check> {
    let mut checks: Vec<Check> = slots.iter().map(judge_slot).collect();
    if used && slots.iter().all(|slot| slot.name != debezium) {
        checks.push(Check::failed(
            "slot",
            format!("{debezium} is missing: what is committed before it exists does not reach Debezium"),
            format!(
                "as a login with REPLICATION, while `hashinsight publish` runs: `{}`",
                create_statement(debezium)
            ),
        ));
    } else if slots.is_empty() {
        checks.push(Check::ok("slot", "none: nobody reads the WAL"));
    }
    checks
}

fn judge_slot(slot: &Slot) -> Check {
    let name = "slot";
    if let Some((detail, remedy)) = unusable(slot) {
        return Check::failed(name, detail, remedy);
    }
    let mib = slot.retained_bytes / (1 << 20);
    let used = slot.safe_wal_size.map(|safe| {
        let safe = safe.max(0) as f64;
        slot.retained_bytes as f64 / (slot.retained_bytes as f64 + safe).max(1.0)
    });
    if slot.wal_status == "unreserved" || used.is_some_and(|used| used > ALARM) {
        return Check::warning(
            name,
            format!("{} retains {mib} MiB, more than half of what it may: then it is lost", slot.name),
            "start its reader, or drop the slot if it has none any more",
        );
    }
    let reader = if slot.active_pid.is_some() { "is read" } else { "has no reader now" };
    Check::ok(name, format!("{} {reader}, retains {mib} MiB", slot.name))
}

/// Why a reader cannot use it, with the remedy.
fn unusable(slot: &Slot) -> Option<(String, String)> {
    if !slot.here || slot.plugin != "pgoutput" {
        let or_none = |text: &str| if text.is_empty() { "none".to_owned() } else { text.to_owned() };
        return Some((
            format!(
                "slot {} belongs to the plugin {} in the database {}",
                slot.name,
                or_none(&slot.plugin),
                or_none(&slot.database)
            ),
            "give each database of the cluster a slot name of its own (HASHINSIGHT__DEBEZIUM__SLOT)"
                .to_owned(),
        ));
    }
    slot.is_lost().then(|| {
        let remedy = format!(
            "let `hashinsight publish` publish from the table, then drop the slot and make it again: `select \
             pg_drop_replication_slot('{}')`, `{}`",
            slot.name,
            create_statement(&slot.name)
        );
        (format!("slot {} is lost: WAL it needs was removed", slot.name), remedy)
    })
}

async fn login(conn: &mut PgConnection, config: &Config) -> Result<Check, sqlx::Error> {
    let name = "replication login";
    let login = match connector::login(config) {
        Ok(login) => login.unwrap_or_default(),
        Err(error) => return Ok(Check::failed(name, error.0, "correct HASHINSIGHT__DEBEZIUM__DATABASE_URL")),
    };
    let may: Option<bool> =
        sqlx::query_scalar("select rolreplication or rolsuper from pg_roles where rolname = $1")
            .bind(&login)
            .fetch_optional(conn)
            .await?;
    Ok(match may {
        Some(true) => Check::ok(name, format!("{login} may replicate")),
        Some(false) => Check::failed(
            name,
            format!("{login} may not replicate"),
            format!("`alter role {login} replication`"),
        ),
        None => Check::failed(
            name,
            format!("{login} does not exist"),
            format!(
                "`create role {login} login replication password ...`, or correct HASHINSIGHT__DEBEZIUM__DATABASE_URL"
            ),
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::super::Status;
    use super::*;

    #[test]
    fn the_server_must_be_ready_for_whoever_reads_the_wal() {
        let judged = |level: &str, keep, debezium| -> Vec<Status> {
            let server = Server { wal_level: level.to_owned(), max_slot_wal_keep_size: keep };
            judge_server(&server, debezium).into_iter().map(|check| check.status).collect()
        };
        assert_eq!(judged("logical", 1_024, true), [Status::Ok, Status::Ok]);
        assert_eq!(judged("replica", 1_024, true), [Status::Failed, Status::Ok]);
        assert_eq!(judged("replica", 1_024, false), [Status::Warning, Status::Ok]);
        assert_eq!(judged("logical", -1, false), [Status::Ok, Status::Warning]);
    }

    fn good() -> Slot {
        Slot {
            name: "s".to_owned(),
            plugin: "pgoutput".to_owned(),
            database: "d".to_owned(),
            here: true,
            active_pid: Some(1),
            application_name: None,
            restart_lsn: None,
            confirmed_flush_lsn: None,
            wal_status: "reserved".to_owned(),
            safe_wal_size: None,
            retained_bytes: 1,
            keep_bytes: None,
        }
    }

    #[test]
    fn a_slot_warns_before_it_is_lost() {
        let slot = |wal_status: &str, retained_bytes, safe_wal_size| Slot {
            wal_status: wal_status.to_owned(),
            retained_bytes,
            safe_wal_size,
            ..good()
        };
        for (slot, status) in [
            (slot("reserved", 1 << 40, None), Status::Ok),
            (slot("reserved", 40, Some(60)), Status::Ok),
            (slot("extended", 60, Some(40)), Status::Warning),
            (slot("unreserved", 60, Some(-5)), Status::Warning),
            (slot("lost", 0, None), Status::Failed),
        ] {
            assert_eq!(judge_slot(&slot).status, status, "{slot:?}");
        }
        let missing = |used| judge_slots(&[], "s", used).remove(0).status;
        assert_eq!((missing(false), missing(true)), (Status::Ok, Status::Failed));
    }

    #[test]
    fn a_slot_is_usable_or_says_why_not() {
        assert_eq!(unusable(&good()), None);
        let lost = unusable(&Slot { wal_status: "lost".to_owned(), ..good() }).expect("wrong");
        assert!(
            lost.0.contains("lost") && lost.1.contains("pg_create_logical_replication_slot('s'"),
            "{lost:?}"
        );
        let elsewhere = unusable(&Slot { here: false, ..good() }).expect("wrong");
        assert!(
            elsewhere.0.contains("database d") && elsewhere.1.contains("DEBEZIUM__SLOT"),
            "{elsewhere:?}"
        );
        let decoding = unusable(&Slot { plugin: "test_decoding".to_owned(), ..good() }).expect("wrong");
        assert!(decoding.0.contains("test_decoding"), "{decoding:?}");
    }
}
