//! Those who recompute one row, or trade for one account, take turns: whoever comes later reads after the earlier one has
//! committed.

use sqlx::PgConnection;

/// Waits until nobody else is at one of these rows; held to the end of the transaction.
pub async fn take_turns(conn: &mut PgConnection, mut rows: Vec<String>) -> Result<(), sqlx::Error> {
    // By their bytes, whatever order they come in, a database's collation among them: two batches cannot wait for each other.
    rows.sort_unstable();
    rows.dedup();
    sqlx::query(
        "select pg_advisory_xact_lock(hashtextextended(k.key, 0)) \
         from (select key from unnest($1::text[]) with ordinality u(key, n) order by n offset 0) k",
    )
    .bind(rows)
    .execute(conn)
    .await
    .map(drop)
}
