//! How far publishing is, as the database tells: for metrics and for whoever looks after it.

use sqlx::PgConnection;

use super::OBSERVER;

/// Counting ends here.
pub const MOST_COUNTED: i64 = 100_000;

/// How far publishing is.
#[derive(Debug, Clone, PartialEq, sqlx::FromRow)]
pub struct Progress {
    /// A publisher holds the lead.
    pub leads: bool,
    /// It lets Debezium publish.
    pub observes: bool,
    /// The cursor was written in this cluster.
    pub same_cluster: bool,
    /// The timeline that somebody led on last; `None` before the first leader.
    pub led_on: Option<i32>,
    /// The one of the server; `None` on a standby.
    pub timeline: Option<i32>,
    /// Committed and not published, up to [`MOST_COUNTED`].
    pub backlog: i64,
    /// Age of the oldest of them.
    pub oldest_seconds: Option<f64>,
    /// Set aside because their topic or partition did not take them.
    pub stuck: i64,
}

/// Looks, with the rights of the pipeline.
pub async fn progress(conn: &mut PgConnection) -> Result<Progress, sqlx::Error> {
    sqlx::query_as(
        "with c as (select * from publisher_cursor where name = 'publisher'), \
         candidate as (select position, xid, occurred_at from event_outbox \
             where xid >= (select pg_snapshot_xmax(published) from c) \
           union all select position, xid, occurred_at from event_outbox \
             where xid = any (array(select pg_snapshot_xip(published) from c))), \
         waiting as (select occurred_at from candidate, c where position > floor_position \
           and not pg_visible_in_snapshot(xid, published) \
           and (reading is null or position > last_position or not pg_visible_in_snapshot(xid, reading)) limit $1) \
         select exists (select from pg_locks l join pg_database d on d.oid = l.database \
             where l.pid = c.leader_pid and l.locktype = 'advisory' and l.granted \
             and d.datname = current_database()) as leads, \
           exists (select from pg_stat_activity a where a.pid = c.leader_pid and a.application_name = $2) as observes, \
           system_identifier = (select system_identifier from pg_control_system()) as same_cluster, \
           timeline as led_on, hi_timeline() as timeline, \
           (select count(*) from waiting) as backlog, \
           (select extract(epoch from (clock_timestamp() at time zone 'UTC') - min(occurred_at))::float8 \
             from waiting) as oldest_seconds, \
           (select count(*) from outbox_stuck) as stuck from c",
    )
    .bind(MOST_COUNTED)
    .bind(OBSERVER)
    .fetch_one(conn)
    .await
}
