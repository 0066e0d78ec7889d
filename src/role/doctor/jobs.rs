//! Scheduled work: when each job ran last, when it is due, what went wrong.

use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};

use super::Check;
use crate::cache::Cache;
use crate::config::Config;
use crate::db::Db;
use crate::jobs::{Entry, entry};
use crate::lifecycle::Lifecycle;
use crate::role::jobs;

/// A job that is due for longer, and that nobody runs, waits for a process.
const LATE: TimeDelta = TimeDelta::minutes(5);

const START: &str = "start `hashinsight consume --group G`, of any group, or `hashinsight standalone`";

pub(super) async fn examine(config: &Config, db: &Db) -> Result<Vec<Check>, sqlx::Error> {
    let mut checks = Vec::new();
    let mut tx = db.worker().await?;
    // Nothing is run: no copies are of interest.
    let none = Cache::new(&config.cache, None, &Lifecycle::default());
    for job in jobs::all(config, &none) {
        let name = job.name();
        checks.push(judge(name, entry(tx.conn(), name).await?.as_ref()));
    }
    tx.commit().await?;
    Ok(checks)
}

fn judge(name: &'static str, entry: Option<&Entry>) -> Check {
    let Some(entry) = entry else {
        return Check::warning(name, "job: no process that runs it has been started yet", START);
    };
    let last = match (entry.running, entry.started_at, entry.finished_at) {
        (true, Some(started), _) => format!("job: running since {}", shown(started)),
        (_, _, Some(finished)) => {
            format!("job: last run {} for {} tenants", shown(finished), entry.tenants)
        }
        _ => "job: no run yet".to_owned(),
    };
    let due = entry.retry_at.map_or(entry.next_run_at, |retry| retry.min(entry.next_run_at));
    let detail = format!("{last}, next {}", shown(due));
    if !entry.running && entry.now - due > LATE {
        return Check::failed(name, format!("{detail}, which is past, and nobody runs it"), START);
    }
    match &entry.error {
        None => Check::ok(name, detail),
        Some(error) => {
            let detail = format!(
                "{detail}, failed {} times in a row, now for {} tenants: {error}",
                entry.failures_in_a_row, entry.tenants_failed
            );
            let remedy = "mend what the error names; the table scheduled_job_failure has the tenants, which are tried \
                          again by themselves";
            Check::warning(name, detail, remedy)
        }
    }
}

fn shown(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Secs, true)
}

#[cfg(test)]
mod tests {
    use super::super::Status;
    use super::*;

    #[test]
    fn a_job_is_well_while_somebody_runs_it_in_time() {
        let now: DateTime<Utc> = "2026-03-01T12:00:00Z".parse().expect("a time");
        let entry = Entry {
            next_run_at: now + TimeDelta::minutes(3),
            retry_at: None,
            running: false,
            started_at: Some(now - TimeDelta::minutes(2)),
            finished_at: Some(now - TimeDelta::minutes(2)),
            tenants: 7,
            tenants_failed: 0,
            failures_in_a_row: 0,
            error: None,
            now,
        };
        let late = Entry { next_run_at: now - TimeDelta::minutes(6), ..entry.clone() };
        let failing = Entry {
            retry_at: Some(now + TimeDelta::minutes(1)),
            tenants_failed: 2,
            failures_in_a_row: 4,
            error: Some("division by zero".to_owned()),
            ..entry.clone()
        };
        let started = Entry { finished_at: None, started_at: None, ..entry.clone() };
        for (entry, status, says) in [
            (None, Status::Warning, "no process"),
            (
                Some(entry.clone()),
                Status::Ok,
                "last run 2026-03-01T11:58:00Z for 7 tenants, next 2026-03-01T12:03:00Z",
            ),
            (Some(started), Status::Ok, "no run yet, next"),
            (Some(late.clone()), Status::Failed, "nobody runs it"),
            (Some(Entry { running: true, ..late.clone() }), Status::Ok, "running since 2026-03-01T11:58:00Z"),
            (Some(Entry { next_run_at: now - TimeDelta::minutes(4), ..entry }), Status::Ok, "next"),
            (Some(failing.clone()), Status::Warning, "next 2026-03-01T12:01:00Z, failed 4 times in a row"),
            (Some(failing), Status::Warning, "2 tenants: division by zero"),
        ] {
            let check = judge("x", entry.as_ref());
            assert_eq!((check.name, check.status), ("x", status), "{check:?}");
            assert!(check.detail.contains(says), "{check:?}");
        }
    }
}
