//! Owns the lots: what was mined or bought, and what sales have left of it.
//! Promises that the satoshi of a lot are what is left and what was sold of it.
//! Called by the commands of this folder, by the group of the treasury and, to read, by the API.

use chrono::{DateTime, TimeDelta, Utc};
use rust_decimal::Decimal;
use serde::Serialize;
use serde_json::{Map, Value};
use sqlx::PgConnection;
use uuid::Uuid;

use super::account::{self, MAX_SAT};
use crate::db::{TenantTx, Tenanted};
use crate::domain::amount::{btc, usd};
use crate::domain::change::{broken, object};
use crate::domain::input::{Low, Names};
use crate::domain::machine::{State, states};
use crate::domain::{Caller, CommandError, Input, emit};
use crate::economics::treasury as economics;
use crate::event::kind;
use crate::identifier::UserId;

const AMOUNT: Names = &["amount", "amount_btc"];
const COST: Names = &["cost_usd", "cost"];
const ACQUIRED: Names = &["acquired_at"];
const SOURCE: Names = &["source"];
const NOTES: Names = &["notes"];
const LONGEST_NOTES: usize = 2_000;
/// How far a clock that dates a lot may be ahead.
const MAX_AHEAD: TimeDelta = TimeDelta::hours(1);

states! {
    /// Where a lot comes from.
    Source {
        Mined = "mined",
        Bought = "bought",
        Trade = "trade",
    }
}

/// A lot, as it is stored and shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, sqlx::FromRow)]
pub struct Lot {
    #[sqlx(rename = "id")]
    pub lot_id: Uuid,
    pub user_id: UserId,
    #[sqlx(try_from = "String")]
    pub source: Source,
    pub acquired_at: DateTime<Utc>,
    pub sat: i64,
    pub cost_usd: Decimal,
    pub left_sat: i64,
    pub left_cost_usd: Decimal,
    /// The purchase that made it.
    pub trade_id: Option<Uuid>,
    pub notes: Option<String>,
    pub created_at: DateTime<Utc>,
}

impl From<&Lot> for economics::Lot {
    fn from(lot: &Lot) -> Self {
        Self {
            id: lot.lot_id,
            acquired_at: lot.acquired_at,
            sat: lot.left_sat.unsigned_abs(),
            cost_usd: lot.left_cost_usd,
        }
    }
}

/// Adds a lot of `amount` BTC that cost `cost_usd` altogether; emits `treasury.lot_added`.
///
/// # Errors
/// A field that breaks a rule, or more than 21,000,000 BTC with what is held and being bought (`more-than-exist`).
pub async fn add(
    tx: &mut TenantTx,
    caller: Caller<'_>,
    user: &UserId,
    given: &Map<String, Value>,
) -> Result<(Uuid, Uuid), CommandError> {
    let mut input = Input::new(given);
    let sat = btc(&mut input, AMOUNT);
    let sat = input.required(AMOUNT, sat);
    let cost_usd = usd(&mut input, COST, Low::From(Decimal::ZERO));
    let cost_usd = input.required(COST, cost_usd);
    let source = input.choice(SOURCE).value().unwrap_or(Source::Mined);
    if source == Source::Trade {
        input.refuse(SOURCE[0], "trade is for what a purchase here made: must be mined or bought");
    }
    let acquired_at = input.timestamp(ACQUIRED).value().unwrap_or(caller.now);
    if acquired_at > caller.now + MAX_AHEAD || acquired_at < DateTime::UNIX_EPOCH {
        input.refuse(ACQUIRED[0], "must be since 1970 and not more than an hour in the future");
    }
    let notes = input.text(NOTES, LONGEST_NOTES).value();
    input.finish().map_err(CommandError::Invalid)?;
    let (Some(sat), Some(cost_usd)) = (sat, cost_usd) else {
        return Err(CommandError::Invalid(Vec::new()));
    };
    account::open(tx, user).await?;
    check_exist(tx.conn(), user, sat).await?;
    let lot = Lot {
        lot_id: Uuid::now_v7(),
        user_id: user.clone(),
        source,
        acquired_at,
        sat,
        cost_usd,
        left_sat: sat,
        left_cost_usd: cost_usd,
        trade_id: None,
        notes,
        created_at: caller.now,
    };
    lot.insert(tx).await?;
    let data = object(&lot)?.into();
    let event_id = emit(tx, caller, kind::TREASURY_LOT_ADDED, user, lot.lot_id.into(), data).await?;
    Ok((lot.lot_id, event_id))
}

/// Refuses what would bring an account to more bitcoin than will ever be. What open purchases bring counts as held, so a
/// fill needs no check of its own, and sums over lots stay in range.
pub(super) async fn check_exist(
    conn: &mut PgConnection,
    user: &UserId,
    more_sat: i64,
) -> Result<(), CommandError> {
    let held: i64 = sqlx::query_scalar(
        "select ((select coalesce(sum(left_sat), 0) from treasury_lot where user_id = $1) \
         + (select coalesce(sum(sat - filled_sat), 0) from treasury_trade where user_id = $1 and trade_type = 'buy' \
            and state in ('submitted', 'approved', 'executing', 'partially_filled')))::bigint",
    )
    .bind(user)
    .fetch_one(conn)
    .await?;
    if more_sat > MAX_SAT.saturating_sub(held) {
        let detail = format!(
            "{held} sat are held or being bought: with {more_sat} more it were more than the 21,000,000 BTC that will ever be"
        );
        return Err(broken("more-than-exist", detail));
    }
    Ok(())
}

impl Lot {
    pub(super) async fn insert<T: Tenanted>(&self, tx: &mut T) -> Result<(), sqlx::Error> {
        let tenant = tx.tenant().clone();
        sqlx::query(
            "insert into treasury_lot (tenant_id, id, user_id, source, acquired_at, sat, cost_usd, left_sat, \
             left_cost_usd, trade_id, notes, created_at) values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)",
        )
        .bind(tenant.as_str())
        .bind(self.lot_id)
        .bind(&self.user_id)
        .bind(self.source.as_str())
        .bind(self.acquired_at)
        .bind(self.sat)
        .bind(self.cost_usd.normalize())
        .bind(self.left_sat)
        .bind(self.left_cost_usd.normalize())
        .bind(self.trade_id)
        .bind(&self.notes)
        .bind(self.created_at)
        .execute(tx.conn())
        .await
        .map(drop)
    }
}

/// The lots of these accounts of which something is left.
pub async fn held(conn: &mut PgConnection, users: &[&str]) -> Result<Vec<Lot>, sqlx::Error> {
    sqlx::query_as(
        "select * from treasury_lot where user_id = any($1) and left_sat > 0 order by acquired_at, id",
    )
    .bind(users)
    .fetch_all(conn)
    .await
}

/// Stores what a sale has left of the lots: `before` it and after it, where one that is gone is sold out.
pub(super) async fn keep<T: Tenanted>(
    tx: &mut T,
    before: &[economics::Lot],
    after: &[economics::Lot],
) -> Result<(), sqlx::Error> {
    let (mut ids, mut sats, mut costs) = (Vec::new(), Vec::new(), Vec::new());
    for lot in before {
        let left = after.iter().find(|left| left.id == lot.id);
        let (sat, cost) = left.map_or((0, Decimal::ZERO), |left| (left.sat, left.cost_usd));
        if (sat, cost) != (lot.sat, lot.cost_usd) {
            ids.push(lot.id);
            sats.push(i64::try_from(sat).unwrap_or(i64::MAX));
            costs.push(cost.normalize());
        }
    }
    sqlx::query(
        "update treasury_lot l set left_sat = n.sat, left_cost_usd = n.cost \
         from unnest($1::uuid[], $2::bigint[], $3::numeric[]) n (id, sat, cost) where l.id = n.id",
    )
    .bind(ids)
    .bind(sats)
    .bind(costs)
    .execute(tx.conn())
    .await
    .map(drop)
}

/// Up to `limit` lots of an account in the order they came in, behind `after`.
pub async fn list(
    tx: &mut TenantTx,
    user: &UserId,
    after: Option<Uuid>,
    limit: i64,
) -> Result<Vec<Lot>, sqlx::Error> {
    sqlx::query_as("select * from treasury_lot where user_id = $1 and ($2::uuid is null or id > $2) order by id limit $3")
        .bind(user)
        .bind(after)
        .bind(limit)
        .fetch_all(tx.conn())
        .await
}
