//! The backlog: events as the product writes them, written fast while nobody publishes.

use anyhow::Context as _;
use sqlx::{AssertSqlSafe, Connection};

use super::database::Database;
use crate::cli::Case;

/// One event in SQL. Owners are spread over the partitions, aggregates over the owners, and the id is a UUIDv7 as
/// [`crate::outbox::append`] makes it. `n` counts the events, `ballast` is text of a given length that hardly compresses, and
/// each tenant has so many users.
const EVENT: &str = "\
create function bench_event(n int, ballast int, users int) returns void language sql as $f$
    insert into event_outbox (id, aggregate_type, aggregate_id, event_key, event_type, tenant_id, user_id, payload)
    select e.id, 'miner', e.entity, e.tenant || ':' || e.usr, 'miner.updated', e.tenant, e.usr,
           jsonb_build_object(
               'event_id', e.id, 'kind', 'miner.updated', 'version', 1, 'tenant_id', e.tenant, 'user_id', e.usr,
               'entity_id', e.entity, 'correlation_id', null, 'causation_id', null,
               'data', jsonb_build_object('n', n, 'hashrate_ths', '234.5', 'ballast', e.ballast),
               'occurred_at', to_char(clock_timestamp() at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"'))
    from (select 'tenant-' || n % 4 as tenant, 'user-' || n / 4 % users as usr, 'miner-' || n % 5000 as entity,
                 (lpad(to_hex((extract(epoch from clock_timestamp()) * 1000)::bigint), 12, '0') || '7'
                  || substr(replace(gen_random_uuid()::text, '-', ''), 14))::uuid as id,
                 (select coalesce(left(string_agg(md5(n::text || '.' || i), ''), ballast), '')
                  from generate_series(1, (ballast + 31) / 32) i) as ballast) e
$f$";

/// Tenants of a backlog, as in [`EVENT`].
pub const TENANTS: u32 = 4;

/// Users of each, unless something else is asked for.
pub const USERS: u32 = 97;

/// Makes what filling needs.
pub async fn prepare(database: &Database) -> anyhow::Result<()> {
    let mut conn = database.owner().await?;
    sqlx::raw_sql(EVENT).execute(&mut conn).await?;
    conn.close().await?;
    Ok(())
}

/// Writes a backlog into the empty outbox. It is on the disk when this returns, and as if it had been for a while.
pub async fn fill(
    database: &Database,
    case: Case,
    events: u32,
    ballast: u32,
    users: u32,
) -> anyhow::Result<()> {
    let per_transaction = match case {
        Case::Single => 1,
        Case::Thousand => 1_000,
    };
    let mut conn = database.owner().await?;
    // Nobody waits for these commits, so they need not wait for the disk. `vacuum` afterwards does, and does what the
    // first reader would otherwise pay for everybody behind it.
    let fill = format!(
        "do $$ begin for n in 1..{events} loop perform bench_event(n, {ballast}, {users}); \
         if n % {per_transaction} = 0 then commit; end if; end loop; end $$"
    );
    let statements = [
        "set synchronous_commit = off",
        fill.as_str(),
        "set synchronous_commit = on",
        "vacuum (analyze) event_outbox",
    ];
    for statement in statements {
        // One at a time: several sent together are one transaction, in which none may commit or vacuum.
        sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut conn).await.context("writing the backlog")?;
    }
    conn.close().await?;
    Ok(())
}
