//! The members that live, of every group: a name that is left in `consumer_offset` proves nothing.

use std::collections::BTreeSet;

use sqlx::PgConnection;

use super::kafka::SLOT_LOCK;

/// The ids of the members whose slot is held, or whose lease nobody has taken away.
pub async fn living(conn: &mut PgConnection) -> Result<BTreeSet<String>, sqlx::Error> {
    let ids: Vec<String> = sqlx::query_scalar(
        "with held as materialized ( \
           select l.objid from pg_locks l where l.locktype = 'advisory' and l.granted \
           and l.database = (select oid from pg_database where datname = current_database()) \
           and l.classid = $1::int::oid and l.objsubid = 2) \
         select member_id from group_slot where member_id is not null and slot_id::oid in (select objid from held) \
         union select member_id from group_member",
    )
    .bind(SLOT_LOCK)
    .fetch_all(conn)
    .await?;
    Ok(ids.into_iter().collect())
}
