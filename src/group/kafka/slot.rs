//! The slot of a member: a row in PostgreSQL, held by an advisory lock of a session of its own.
//!
//! Two living processes under one member id are both accepted by a broker. So the id is made of the slot, the slot is
//! held by a lock that dies with its holder, and the id's last part, the incarnation, is counted up by whoever evicts
//! the holder before Kafka hears of it: the leave for a dead member never meets the one that came back.

use sqlx::{Connection, PgConnection};

use super::observer::Seen;
use crate::db::Db;
use crate::doorbell::Bell;

/// The first key of the advisory locks: "hisl" in ASCII.
pub(in crate::group) const LOCK: i32 = 0x6869_736c;

/// Whose slot.
#[derive(Debug, Clone)]
pub(super) struct Holder {
    /// The group as Kafka names it.
    pub(super) group: String,
    pub(super) host: String,
}

/// A slot that we hold.
#[derive(Debug)]
pub(super) struct Slot {
    session: PgConnection,
    slot_id: i32,
    incarnation: i64,
    member_id: String,
}

/// The slots of a group as a look shows them.
#[derive(Debug, Default)]
pub(super) struct Look {
    /// Slots of others that have a member.
    pub(super) others: Vec<Seen>,
    /// Evicted ids of which Kafka may not have heard.
    pub(super) departed: Vec<String>,
}

impl Slot {
    /// Takes a free slot: one that a process of this host left behind, whose id then lives on, or one that is nobody's,
    /// or a new one. `before`: the slot that we had, if we had one.
    pub(super) async fn take(db: &Db, holder: &Holder, before: Option<i32>) -> Result<Self, sqlx::Error> {
        // A renewal need not wait for the disk: what a crash of the server takes back is renewed after it.
        let mut session = db.worker_session(&[("synchronous_commit", "off")]).await?;
        loop {
            let candidates: Vec<i32> = sqlx::query_scalar(
                "select slot_id from group_slot where group_id = $1 and (host = $2 or member_id is null) \
                 order by slot_id is not distinct from $3 desc, member_id is not null desc, slot",
            )
            .bind(&holder.group)
            .bind(&holder.host)
            .bind(before)
            .fetch_all(&mut session)
            .await?;
            for slot_id in candidates {
                if !lock(&mut session, slot_id).await? {
                    continue;
                }
                if let Some((incarnation, member_id)) = occupy(&mut session, slot_id, holder).await? {
                    return Ok(Self { session, slot_id, incarnation, member_id });
                }
                unlock(&mut session, slot_id).await?;
            }
            // Whoever makes the row need not be the one who gets it: then there is another round.
            sqlx::query(
                "insert into group_slot (group_id, slot, host) \
                 select $1, coalesce(max(slot), -1) + 1, $2 from group_slot where group_id = $1 on conflict do nothing",
            )
            .bind(&holder.group)
            .bind(&holder.host)
            .execute(&mut session)
            .await?;
        }
    }

    pub(super) fn member_id(&self) -> &str {
        &self.member_id
    }

    pub(super) fn slot_id(&self) -> i32 {
        self.slot_id
    }

    /// Says that the holder lives. `false`: it was taken for dead, and its id is used up.
    pub(super) async fn renew(&mut self) -> Result<bool, sqlx::Error> {
        let renewed = sqlx::query(
            "update group_slot set counter = counter + 1 where slot_id = $1 and incarnation = $2 and member_id = $3",
        )
        .bind(self.slot_id)
        .bind(self.incarnation)
        .bind(&self.member_id)
        .execute(&mut self.session)
        .await?
        .rows_affected();
        Ok(renewed == 1)
    }

    /// The slot's next id, after an eviction: the lock is still ours.
    pub(super) async fn start_over(&mut self, holder: &Holder) -> Result<bool, sqlx::Error> {
        let Some((incarnation, member_id)) = occupy(&mut self.session, self.slot_id, holder).await? else {
            return Ok(false);
        };
        (self.incarnation, self.member_id) = (incarnation, member_id);
        Ok(true)
    }

    /// What the slots of the group look like.
    pub(super) async fn look(&mut self, holder: &Holder) -> Result<Look, sqlx::Error> {
        let rows: Vec<(i32, i64, i64, bool, bool, Vec<String>)> = sqlx::query_as(
            "with held as materialized ( \
               select l.objid from pg_locks l where l.locktype = 'advisory' and l.granted \
               and l.database = (select oid from pg_database where datname = current_database()) \
               and l.classid = $2::int::oid and l.objsubid = 2) \
             select slot_id, incarnation, counter, member_id is not null, slot_id::oid in (select objid from held), \
               departed \
             from group_slot where group_id = $1 and (member_id is not null or departed <> '{}')",
        )
        .bind(&holder.group)
        .bind(LOCK)
        .fetch_all(&mut self.session)
        .await?;
        let mut look = Look::default();
        for (slot_id, incarnation, counter, has_member, held, departed) in rows {
            look.departed.extend(departed);
            if has_member && slot_id != self.slot_id {
                look.others.push(Seen { slot_id, incarnation, counter, held });
            }
        }
        Ok(look)
    }

    /// Gives the slot back. With `left`, Kafka has been told that its member is gone, and the others hear of it at once.
    pub(super) async fn release(mut self, left: bool) -> Result<(), sqlx::Error> {
        if left {
            sqlx::query(
                "update group_slot set member_id = null, backend_pid = null where slot_id = $1 and incarnation = $2",
            )
            .bind(self.slot_id)
            .bind(self.incarnation)
            .execute(&mut self.session)
            .await?;
        }
        // A closed session holds its locks until the server has noticed.
        unlock(&mut self.session, self.slot_id).await?;
        // This process stops: its bells ring no more.
        sqlx::query("select pg_notify($1, '')")
            .bind(Bell::Group.channel())
            .execute(&mut self.session)
            .await?;
        self.session.close().await
    }
}

/// Takes an id away from its holder, unless that one has moved since it was seen. The id comes back as departed.
pub(super) async fn evict(db: &Db, seen: &Seen) -> Result<Option<String>, sqlx::Error> {
    // Durable before Kafka hears of it: a crash must not bring the id back.
    let mut tx = db.worker().await?;
    let departed: Option<String> = sqlx::query_scalar(
        "update group_slot s set incarnation = incarnation + 1, departed = array_append(departed, before.member_id), \
           member_id = null, backend_pid = null \
         from (select slot_id, member_id from group_slot where slot_id = $1 for update) before \
         where s.slot_id = before.slot_id and s.incarnation = $2 and s.counter = $3 and before.member_id is not null \
         returning before.member_id",
    )
    .bind(seen.slot_id)
    .bind(seen.incarnation)
    .bind(seen.counter)
    .fetch_optional(tx.conn())
    .await?;
    tx.commit().await?;
    Ok(departed)
}

/// Kafka has been told that these ids left.
pub(super) async fn forget(db: &Db, group: &str, member_id: &str) -> Result<(), sqlx::Error> {
    let mut tx = db.worker().await?;
    sqlx::query(
        "update group_slot set departed = array_remove(departed, $2) where group_id = $1 and $2 = any(departed)",
    )
    .bind(group)
    .bind(member_id)
    .execute(tx.conn())
    .await?;
    tx.commit().await
}

/// How many members of a group hold their slots.
pub(super) async fn held(db: &Db, group: &str) -> Result<i64, sqlx::Error> {
    let mut tx = db.worker().await?;
    let held = sqlx::query_scalar(
        "select count(*) from pg_locks l join group_slot s on l.objid = s.slot_id::oid \
         where l.locktype = 'advisory' and l.granted and l.classid = $2::int::oid and l.objsubid = 2 \
         and l.database = (select oid from pg_database where datname = current_database()) and s.group_id = $1",
    )
    .bind(group)
    .bind(LOCK)
    .fetch_one(tx.conn())
    .await?;
    tx.rollback().await?;
    Ok(held)
}

async fn lock(session: &mut PgConnection, slot_id: i32) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar("select pg_try_advisory_lock($1, $2)")
        .bind(LOCK)
        .bind(slot_id)
        .fetch_one(session)
        .await
}

async fn unlock(session: &mut PgConnection, slot_id: i32) -> Result<(), sqlx::Error> {
    sqlx::query("select pg_advisory_unlock($1, $2)").bind(LOCK).bind(slot_id).execute(session).await.map(drop)
}

/// Writes us into a slot whose lock we hold; `None` if it still has a member of another host.
async fn occupy(
    session: &mut PgConnection,
    slot_id: i32,
    holder: &Holder,
) -> Result<Option<(i64, String)>, sqlx::Error> {
    sqlx::query_as(
        "update group_slot set counter = counter + 1, host = $2, backend_pid = pg_backend_pid(), \
           member_id = group_id || '-' || $2 || '-' || slot || '-' || incarnation \
         where slot_id = $1 and (host = $2 or member_id is null) returning incarnation, member_id",
    )
    .bind(slot_id)
    .bind(&holder.host)
    .fetch_optional(session)
    .await
}
