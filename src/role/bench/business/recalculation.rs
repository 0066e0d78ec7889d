//! The group of the portfolios with its rows: a fleet of one owner, and many owners in one batch.

use std::time::Instant;

use anyhow::{Context as _, ensure};
use serde::Serialize;
use serde_json::json;
use sqlx::Connection;
use uuid::Uuid;

use super::ms;
use crate::cli::BusinessBench;
use crate::db::Db;
use crate::event::{Event, VERSION, kind};
use crate::identifier::{EntityId, TenantId, UserId};
use crate::projection::{self, Group};
use crate::read_model::portfolio;
use crate::role::app::assumptions;
use crate::role::bench::database::Database;
use crate::role::bench::process::{mib, own_memory};
use crate::role::bench::statistics::Spread;

pub(super) const TENANT: &str = "bench";

/// One recalculation of a fleet: read, computed, stored, committed.
#[derive(Debug, Serialize)]
pub struct FleetRow {
    /// Rows of the table of miners.
    pub miners: u32,
    /// Rows that differ in more than their id.
    pub lines: u32,
    pub ms: Option<Spread>,
    /// By how much the most memory of this process exceeded what it had before.
    pub memory_mib: Option<Spread>,
}

/// A batch in which many owners changed.
#[derive(Debug, Serialize)]
pub struct OwnersRow {
    pub owners: u32,
    pub events: u32,
    /// Of each round.
    pub recalculations: u32,
    pub ms: Option<Spread>,
}

/// A thousand miners, then as many as asked for: of as many models, halls and terms.
pub async fn fleets(database: &Database, db: &Db, args: &BusinessBench) -> anyhow::Result<Vec<FleetRow>> {
    let group = group(database)?;
    let mut rows = Vec::new();
    for miners in [args.miners.min(1_000), args.miners] {
        let owner = format!("owner-of-{miners}");
        let mut conn = database.owner().await?;
        sqlx::query(
            "insert into miners (tenant_id, id, owner_id, model, hashrate_ths, power_w, quantity, location, \
             purchase_price_usd, electricity_cost_usd_kwh, status) \
             select $1, gen_random_uuid(), $2, 'Model ' || n % 20, 100 + n % 20, 3000 + 10 * (n % 20), 1 + n % 3, \
               'Hall ' || n / 20 % 12, 2500 + 50 * (n / 240 % 15), 0.05 + 0.005 * (n / 3600 % 4), \
               case n % 50 when 7 then 'offline' else 'online' end from generate_series(1, $3) n",
        )
        .bind(TENANT)
        .bind(&owner)
        .bind(i32::try_from(miners)?)
        .execute(&mut conn)
        .await?;
        sqlx::raw_sql("vacuum analyze miners").execute(&mut conn).await?;
        let lines: i64 = sqlx::query_scalar(
            "select count(*) from (select distinct model, hashrate_ths, power_w, purchase_price_usd, \
             electricity_cost_usd_kwh, status, location from miners where owner_id = $1) l",
        )
        .bind(&owner)
        .fetch_one(&mut conn)
        .await?;
        conn.close().await?;
        let event = asked(&owner)?;
        let (mut took, mut memory) = (Vec::new(), Vec::new());
        // The first round only warms up.
        for round in 0..=args.rounds {
            let before = own_memory()?;
            let began = Instant::now();
            apply(db, &group, &[&event]).await?;
            if round > 0 {
                took.push(began.elapsed());
                memory.push(mib(before.exceeded_by()?));
            }
        }
        rows.push(FleetRow {
            miners,
            lines: u32::try_from(lines)?,
            ms: ms(took),
            memory_mib: Spread::of(memory),
        });
    }
    Ok(rows)
}

/// Several events of each owner, in turn, applied as one batch.
pub async fn owners(database: &Database, db: &Db, args: &BusinessBench) -> anyhow::Result<OwnersRow> {
    const EVENTS_OF_EACH: usize = 5;
    let group = group(database)?;
    let mut conn = database.owner().await?;
    sqlx::query(
        "insert into miners (tenant_id, id, owner_id, model, hashrate_ths, power_w, quantity, status) \
         select $1, gen_random_uuid(), 'owner-' || n, 'Antminer S21', 200, 3500, 10, 'online' \
         from generate_series(1, $2) n",
    )
    .bind(TENANT)
    .bind(i32::try_from(args.owners)?)
    .execute(&mut conn)
    .await?;
    sqlx::raw_sql("vacuum analyze miners").execute(&mut conn).await?;
    let events: Vec<Event> =
        (1..=args.owners).map(|n| asked(&format!("owner-{n}"))).collect::<anyhow::Result<_>>()?;
    let batch: Vec<&Event> = events.iter().cycle().take(events.len() * EVENTS_OF_EACH).collect();
    let versions = "select coalesce(sum(version), 0)::bigint from portfolio";
    let (mut took, mut recalculations) = (Vec::new(), 0);
    for round in 0..=args.rounds {
        let before: i64 = sqlx::query_scalar(versions).fetch_one(&mut conn).await?;
        let began = Instant::now();
        apply(db, &group, &batch).await?;
        if round > 0 {
            took.push(began.elapsed());
        }
        let after: i64 = sqlx::query_scalar(versions).fetch_one(&mut conn).await?;
        recalculations = u32::try_from(after - before)?;
        ensure!(recalculations == args.owners, "{recalculations} recalculations for {} owners", args.owners);
    }
    conn.close().await?;
    Ok(OwnersRow { owners: args.owners, events: u32::try_from(batch.len())?, recalculations, ms: ms(took) })
}

fn group(database: &Database) -> anyhow::Result<Group> {
    projection::groups(assumptions(&database.config.economics))
        .into_iter()
        .find(|group| group.name == portfolio::GROUP)
        .context("the group is not of this build")
}

/// An event that asks for an owner's portfolio.
fn asked(owner: &str) -> anyhow::Result<Event> {
    let (tenant_id, user_id): (TenantId, UserId) = (TENANT.parse()?, owner.parse()?);
    Ok(Event {
        event_id: Uuid::now_v7(),
        kind: kind::MINER_SYNC_REQUESTED.to_owned(),
        version: VERSION,
        tenant_id,
        entity_id: EntityId::from(&user_id),
        data: json!({"user_id": user_id}),
        user_id,
        occurred_at: chrono::Utc::now(),
        text: String::new(),
    })
}

async fn apply(db: &Db, group: &Group, events: &[&Event]) -> anyhow::Result<()> {
    let mut tx = db.worker().await?;
    group.handler.apply(&mut tx, events).await?;
    tx.commit().await?;
    Ok(())
}
