//! Which letters a filter meets; asking for their replay, and discarding one.

use std::collections::HashMap;

use sqlx::PgConnection;
use uuid::Uuid;

use crate::inbox::{self, Outcome};

/// Which dead letters to replay.
#[derive(Debug, Clone, Copy)]
pub struct Filter<'a> {
    /// Every group and the publisher, if none.
    pub group: Option<&'a str>,
    pub kind: Option<&'a str>,
    /// Not older than so many hours.
    pub hours: i32,
    pub limit: i64,
}

/// A letter that a filter meets.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct Candidate {
    pub id: Uuid,
    /// Absent where the bytes tell none.
    pub tenant_id: Option<String>,
}

/// The dead letters that a filter meets and the connection may see: the oldest key first, and of each key the letters
/// in the order of the log.
pub async fn matching(conn: &mut PgConnection, filter: Filter<'_>) -> Result<Vec<Candidate>, sqlx::Error> {
    sqlx::query_as(
        "select id, tenant_id from ( \
           select id, tenant_id, consumer_name, topic, partition, raw_key, log_offset, \
             min(created_at) over (partition by consumer_name, topic, partition, raw_key) as first_of_key \
           from event_dlq where status = 'dead' and ($1::text is null or consumer_name = $1) \
           and ($2::text is null or event_kind = $2) and created_at >= now() - make_interval(hours => $3)) letter \
         order by first_of_key, consumer_name, topic, partition, raw_key, log_offset limit $4",
    )
    .bind(filter.group)
    .bind(filter.kind)
    .bind(filter.hours)
    .bind(filter.limit)
    .fetch_all(conn)
    .await
}

/// What came of asking for a replay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Queued,
    /// Not dead any more: somebody else was quicker.
    Settled,
    /// An older letter of its key is dead, and is not asked for.
    Behind(Uuid),
}

/// Asks for letters to be replayed, in this order, and says of each what came of it. A key's letter goes only with the
/// older ones of the key, or after them.
pub async fn ask_for_replay(
    conn: &mut PgConnection,
    ids: &[Uuid],
    actor: &str,
) -> Result<Vec<Verdict>, sqlx::Error> {
    // Locked in the order of their ids, so that two who ask at once do not wait for each other. In one partition the
    // offset tells which letter is older; a topic that grew may have moved a key to another. `not in` is looked up in a
    // hash, however few rows the planner expects: a key may have thousands of letters.
    let rows: Vec<(Uuid, Option<Uuid>, bool)> = sqlx::query_as(
        "with locked as materialized ( \
           select id from event_dlq where id = any ($1) and status = 'dead' order by id for update), \
         chosen as materialized ( \
           select d.id, a.n, d.consumer_name, d.topic, d.partition, d.raw_key, d.log_offset, d.created_at \
           from unnest($1::uuid[]) with ordinality a(id, n) join locked using (id) join event_dlq d using (id)), \
         key as (select distinct consumer_name, topic, raw_key from chosen where raw_key is not null), \
         outside as materialized ( \
           select o.consumer_name, o.topic, o.partition, o.raw_key, min(o.log_offset) as first_offset, \
             min(o.created_at) as first_death, (array_agg(o.id order by o.log_offset))[1] as first \
           from event_dlq o join key k on o.consumer_name = k.consumer_name and o.topic = k.topic \
             and sha256(o.raw_key) = sha256(k.raw_key) and o.raw_key = k.raw_key \
           where o.status = 'dead' and o.id not in (select id from chosen) \
           group by o.consumer_name, o.topic, o.partition, o.raw_key), \
         judged as ( \
           select c.id, c.n, (select o.first from outside o \
             where o.consumer_name = c.consumer_name and o.topic = c.topic and o.raw_key = c.raw_key \
             and case when o.partition = c.partition then o.first_offset < c.log_offset \
               else o.first_death < c.created_at end limit 1) as older \
           from chosen c), \
         asked as ( \
           update event_dlq d set status = 'replaying', last_actor = $2, \
             requested_at = statement_timestamp() + j.n * interval '1 microsecond' \
           from judged j where d.id = j.id and j.older is null and d.status = 'dead' returning d.id) \
         select j.id, j.older, asked.id is not null from judged j left join asked using (id)",
    )
    .bind(ids)
    .bind(actor)
    .fetch_all(conn)
    .await?;
    let found: HashMap<Uuid, Verdict> = rows
        .into_iter()
        .map(|(id, older, asked)| {
            let refused = older.map_or(Verdict::Settled, Verdict::Behind);
            (id, if asked { Verdict::Queued } else { refused })
        })
        .collect();
    Ok(ids.iter().map(|id| found.get(id).copied().unwrap_or(Verdict::Settled)).collect())
}

/// What came of discarding a letter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Discarded {
    Done {
        tenant_id: Option<String>,
    },
    /// It has another status than dead.
    Refused {
        status: String,
    },
    /// There is none that the connection may see.
    NotFound,
}

/// Settles a dead letter for good: its event will not be applied.
pub async fn discard(
    conn: &mut PgConnection,
    id: Uuid,
    reason: &str,
    actor: &str,
) -> Result<Discarded, sqlx::Error> {
    let done: Option<(String, Option<Uuid>, Option<String>)> = sqlx::query_as(
        "update event_dlq set status = 'discarded', resolved_at = statement_timestamp(), last_actor = $2, \
         discard_reason = $3 where id = $1 and status = 'dead' returning consumer_name, event_id, tenant_id",
    )
    .bind(id)
    .bind(actor)
    .bind(reason)
    .fetch_optional(&mut *conn)
    .await?;
    if let Some((group, event_id, tenant_id)) = done {
        if let Some(event_id) = event_id {
            inbox::settle(conn, &group, event_id, Outcome::Dead, Outcome::Discarded).await?;
        }
        return Ok(Discarded::Done { tenant_id });
    }
    let status: Option<String> = sqlx::query_scalar("select status from event_dlq where id = $1")
        .bind(id)
        .fetch_optional(conn)
        .await?;
    Ok(status.map_or(Discarded::NotFound, |status| Discarded::Refused { status }))
}
