//! PostgreSQL: reachable, new enough, migrated, set up as it must be, and of one mind with us about the time.

use chrono::Utc;
use sqlx::PgConnection;

use super::{Check, Limit, jobs, replication, tenancy};
use crate::config::Config;
use crate::db::{Db, Protection};
use crate::outbox::{self, Progress};
use crate::role::migrate;

/// The oldest version with what the schema uses: column lists of publications.
const OLDEST: i32 = 15;

/// Clocks that differ by more show wrong ages.
const SKEW_WARNING: f64 = 1.0;

/// Clocks that differ by more refuse valid tokens.
const SKEW_FAILED: f64 = 60.0;

const MIGRATE: &str = "run `hashinsight migrate`";

/// The checks, and what is said about the publisher together with Debezium.
#[derive(Default)]
pub(super) struct Examined {
    pub(super) checks: Vec<Check>,
    pub(super) publisher: Option<Progress>,
}

pub(super) async fn examine(config: &Config) -> Examined {
    let limit = Limit::start();
    let opened = limit.ask(async {
        let db = Db::connect(config).await?;
        let session = db.session().await?;
        Ok::<_, crate::db::DbError>((db, session))
    });
    let (db, mut session) = match opened.await {
        Ok(opened) => opened,
        Err(cause) => {
            let check = Check::failed("database", cause, "start PostgreSQL, or correct DATABASE_URL");
            return Examined { checks: vec![check], publisher: None };
        }
    };
    let conn = &mut session;
    let mut checks = limit.check("database", "see PostgreSQL's log", version(conn)).await;
    checks.extend(limit.check("clock", "see PostgreSQL's log", clock(conn)).await);
    let protection = match limit.ask(Protection::read(conn)).await {
        Ok(protection) if protection.migrated => protection,
        Ok(_) => {
            checks.push(Check::failed("schema", "the database has no schema yet", MIGRATE));
            return Examined { checks, publisher: None };
        }
        Err(cause) => {
            checks.push(Check::failed("schema", cause, MIGRATE));
            return Examined { checks, publisher: None };
        }
    };
    checks.extend(limit.check("schema", MIGRATE, schema(config)).await);
    checks.extend(tenancy::judge(&protection));
    checks.extend(limit.check("login", MIGRATE, tenancy::login(conn)).await);
    checks.extend(limit.check("policies", MIGRATE, tenancy::policies(conn)).await);
    checks.extend(limit.check("commit", MIGRATE, commit(conn)).await);
    let ahead = config.outbox.partitions_ahead_days;
    checks.extend(limit.check("partitions", MIGRATE, partitions(conn, ahead)).await);
    let debezium = config.kafka.connect_url().is_some();
    let server = async {
        let server = replication::server(conn).await?;
        Ok::<_, sqlx::Error>(replication::judge_server(&server, debezium))
    };
    checks.extend(limit.check("wal_level", "see PostgreSQL's log", server).await);
    checks.extend(limit.check("publication", MIGRATE, replication::examine(conn, config)).await);
    let publisher = match limit.ask(progress(&db)).await {
        Ok(facts) => Some(facts),
        Err(cause) => {
            checks.push(Check::failed("publisher", cause, MIGRATE));
            None
        }
    };
    checks.extend(limit.check("jobs", MIGRATE, jobs::examine(config, &db)).await);
    Examined { checks, publisher }
}

async fn version(conn: &mut PgConnection) -> Result<Vec<Check>, sqlx::Error> {
    let (version, number): (String, i32) = sqlx::query_as(
        "select split_part(current_setting('server_version'), ' ', 1), \
         current_setting('server_version_num')::int",
    )
    .fetch_one(conn)
    .await?;
    Ok(vec![if number / 10_000 >= OLDEST {
        Check::ok("database", format!("PostgreSQL {version} answers"))
    } else {
        Check::failed(
            "database",
            format!("PostgreSQL {version} is too old"),
            format!("upgrade to PostgreSQL {OLDEST} or newer"),
        )
    }])
}

/// The clock of the server against ours, taken in the middle of the round trip.
async fn clock(conn: &mut PgConnection) -> Result<Vec<Check>, sqlx::Error> {
    let before = Utc::now();
    let theirs: f64 =
        sqlx::query_scalar("select extract(epoch from clock_timestamp())::float8").fetch_one(conn).await?;
    let half = (Utc::now() - before) / 2;
    let ours = (before + half).timestamp_micros() as f64 / 1e6;
    Ok(vec![judge_clock(theirs - ours)])
}

fn judge_clock(skew: f64) -> Check {
    let direction = if skew > 0.0 { "ahead of" } else { "behind" };
    let detail = format!("PostgreSQL's clock is {:.1} s {direction} this host's", skew.abs());
    let remedy = "let NTP set the clocks of both hosts";
    match skew.abs() {
        skew if skew > SKEW_FAILED => Check::failed("clock", detail, remedy),
        skew if skew > SKEW_WARNING => Check::warning("clock", detail, remedy),
        _ => Check::ok("clock", "this host and PostgreSQL agree"),
    }
}

async fn schema(config: &Config) -> anyhow::Result<Vec<Check>> {
    let status = migrate::status(config).await?;
    Ok(vec![if status.pending.is_empty() {
        Check::ok("schema", format!("up to date, {} migrations", status.applied.len()))
    } else {
        Check::failed("schema", format!("not applied: {}", status.pending.join(", ")), MIGRATE)
    }])
}

async fn commit(conn: &mut PgConnection) -> Result<Vec<Check>, sqlx::Error> {
    let (commit, fsync): (String, String) =
        sqlx::query_as("select current_setting('synchronous_commit'), current_setting('fsync')")
            .fetch_one(conn)
            .await?;
    Ok(vec![if commit == "off" {
        Check::failed(
            "commit",
            "synchronous_commit is off: no event can be written",
            "`alter database ... set synchronous_commit = on`, and the same for the login if it has a setting",
        )
    } else if fsync == "off" {
        Check::failed(
            "commit",
            "fsync is off: a crash loses what was committed",
            "`alter system set fsync = on` and reload",
        )
    } else {
        Check::ok("commit", format!("synchronous_commit is {commit}, fsync is on"))
    }])
}

/// Daily partitions of today and of the days ahead. The last day may be due: a running role makes it within the hour.
async fn partitions(conn: &mut PgConnection, ahead: u32) -> Result<Vec<Check>, sqlx::Error> {
    let missing: Vec<(String, i32)> = sqlx::query_as(
        "select root || '_p' || to_char(today + n, 'YYYYMMDD'), n \
         from (select (now() at time zone 'UTC')::date as today) t, generate_series(0, $1) n, \
           unnest(array['event_outbox', 'event_inbox']) root \
         where not exists (select from pg_inherits i join pg_class c on c.oid = i.inhrelid \
           where i.inhparent = root::regclass and c.relname = root || '_p' || to_char(today + n, 'YYYYMMDD')) \
         order by n, root",
    )
    .bind(i32::try_from(ahead).unwrap_or(i32::MAX).saturating_sub(1))
    .fetch_all(conn)
    .await?;
    Ok(vec![judge_partitions(&missing, ahead)])
}

fn judge_partitions(missing: &[(String, i32)], ahead: u32) -> Check {
    let name = "partitions";
    let Some((_, nearest)) = missing.first() else {
        return Check::ok(name, format!("of today and the next {ahead} days"));
    };
    let names: Vec<&str> = missing.iter().map(|(name, _)| name.as_str()).collect();
    let detail = format!("missing: {}", names.join(", "));
    let remedy = format!("{MIGRATE}, and keep a role running: each makes them ahead");
    // Tomorrow is soon: without its partition every write fails from midnight on.
    if *nearest <= 1 { Check::failed(name, detail, remedy) } else { Check::warning(name, detail, remedy) }
}

async fn progress(db: &Db) -> Result<Progress, sqlx::Error> {
    let mut tx = db.worker().await?;
    let progress = outbox::progress(tx.conn()).await?;
    tx.rollback().await?;
    Ok(progress)
}

#[cfg(test)]
mod tests {
    use super::super::Status;
    use super::*;

    #[test]
    fn clocks_agree_or_not() {
        for (skew, status) in [
            (0.3, Status::Ok),
            (-0.9, Status::Ok),
            (1.5, Status::Warning),
            (-59.0, Status::Warning),
            (61.0, Status::Failed),
            (-3_600.0, Status::Failed),
        ] {
            assert_eq!(judge_clock(skew).status, status, "{skew}");
        }
        assert!(judge_clock(-2.0).detail.contains("2.0 s behind"));
    }

    #[test]
    fn a_near_partition_is_more_urgent_than_a_far_one() {
        let missing = |day| [("event_outbox_p20260101".to_owned(), day)];
        assert_eq!(judge_partitions(&[], 7).status, Status::Ok);
        assert_eq!(judge_partitions(&missing(0), 7).status, Status::Failed);
        assert_eq!(judge_partitions(&missing(1), 7).status, Status::Failed);
        assert_eq!(judge_partitions(&missing(2), 7).status, Status::Warning);
    }
}
