//! Those who recompute one row, or trade for one account, take turns: whoever comes later reads after the earlier one has
//! committed.

use sqlx::PgConnection;

/// Whoever is at more rows than this takes the whole scope: PostgreSQL has room for so many locks in all.
const MOST_ROWS: usize = 1_000;

/// Waits until nobody else is at it; held to the end of the transaction.
pub async fn take_turn(conn: &mut PgConnection, what: &str) -> Result<(), sqlx::Error> {
    sqlx::query("select pg_advisory_xact_lock(hashtextextended($1, 0))")
        .bind(what)
        .execute(conn)
        .await
        .map(drop)
}

/// Waits until nobody else is at one of these rows of a scope; held to the end of the transaction, which takes turns in a
/// scope once.
pub async fn take_turns(
    conn: &mut PgConnection,
    scope: &str,
    rows: impl IntoIterator<Item = impl std::fmt::Display>,
) -> Result<(), sqlx::Error> {
    let mut keys: Vec<String> = rows.into_iter().map(|row| format!("{scope}:{row}")).collect();
    if keys.is_empty() {
        return Ok(());
    }
    // By their bytes, whatever order they come in, a database's collation among them: two batches cannot wait for each other.
    keys.sort_unstable();
    keys.dedup();
    if keys.len() > MOST_ROWS {
        return take_turn(conn, scope).await;
    }
    sqlx::query("select pg_advisory_xact_lock_shared(hashtextextended($1, 0))")
        .bind(scope)
        .execute(&mut *conn)
        .await?;
    sqlx::query(
        "select pg_advisory_xact_lock(hashtextextended(k.key, 0)) \
         from (select key from unnest($1::text[]) with ordinality u(key, n) order by n offset 0) k",
    )
    .bind(keys)
    .execute(conn)
    .await
    .map(drop)
}
