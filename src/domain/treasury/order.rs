//! Owns the submission of a trade.
//! Promises that no more is sold than is held and not promised to other open trades, also of two requests at once.
//! Called by the API.

use rust_decimal::Decimal;
use serde_json::{Map, Value};
use sqlx::PgConnection;
use uuid::Uuid;

use super::account::{self, Settings};
use super::trade::{Strategy, Trade, TradeState, TradeType};
use super::venue::{VENUE, Venue};
use super::{lot, price};
use crate::db::TenantTx;
use crate::domain::amount::btc;
use crate::domain::change::{broken, object};
use crate::domain::input::{Given, Low, Names};
use crate::domain::machine::State;
use crate::domain::network::MAX_PRICE_USD;
use crate::domain::{Caller, CommandError, FieldError, Input, emit};
use crate::event::kind;
use crate::identifier::UserId;

const TYPE: Names = &["trade_type"];
const ASSET: Names = &["asset"];
const AMOUNT: Names = &["amount", "amount_btc"];
const EXECUTION: Names = &["execution_strategy"];
const TARGET: Names = &["target_price_usd", "target_price"];
const EXCHANGE: Names = &["exchange"];
const FOLLOWS: Names = &["strategy"];
const NOTES: Names = &["notes"];
const LOTS: &str = "lot_ids";
/// The one asset there is.
const BTC: &str = "BTC";
const LONGEST_NOTES: usize = 2_000;
const LONGEST_NAME: usize = 50;
const MOST_LOTS: usize = 100;

/// A submitted trade and its event.
#[derive(Debug)]
pub struct Submitted {
    pub trade: Trade,
    pub event_id: Uuid,
    /// How long the venue takes once it has the trade, in ISO 8601; none where only the price decides.
    pub estimated_execution_time: Option<&'static str>,
}

/// What a request asks for, before the account is looked at.
struct Asked {
    trade_type: TradeType,
    sat: i64,
    execution_strategy: Strategy,
    target_price_usd: Option<Decimal>,
    strategy: Option<String>,
    notes: Option<String>,
    lot_ids: Option<Vec<Uuid>>,
}

/// Submits a trade of the caller's account; emits `treasury.trade_submitted`.
///
/// # Errors
/// A field that breaks a rule, more than is held and not reserved (`more-than-owned`), or a purchase beyond all the bitcoin
/// that will be (`more-than-exist`).
pub async fn submit(
    tx: &mut TenantTx,
    caller: Caller<'_>,
    given: &Map<String, Value>,
) -> Result<Submitted, CommandError> {
    let asked = read(given)?;
    let user = caller.actor;
    // From here to the commit nobody else sells, reserves or fills of this account.
    let settings = account::open(tx, user).await?;
    if let Some(strategy) = asked.strategy.as_ref().filter(|strategy| !settings.follows(strategy)) {
        return Err(refused(FOLLOWS[0], format!("{strategy} is none of the account's strategies")));
    }
    check_owned(tx.conn(), user, &asked).await?;
    let prices = price::recent(tx.conn(), caller.now).await?;
    let price_usd = prices.current().map(|price| price.price_usd);
    let trade = asked.trade(caller, &settings, price_usd)?;
    insert(tx, &trade).await?;
    let data = object(&trade)?.into();
    let event_id =
        emit(tx, caller, kind::TREASURY_TRADE_SUBMITTED, user, trade.trade_id.into(), data).await?;
    let estimated_execution_time = VENUE.takes(trade.execution_strategy);
    Ok(Submitted { trade, event_id, estimated_execution_time })
}

fn refused(field: &str, message: impl Into<String>) -> CommandError {
    CommandError::Invalid(vec![FieldError::new(field, message)])
}

fn read(given: &Map<String, Value>) -> Result<Asked, CommandError> {
    let mut input = Input::new(given);
    let trade_type = input.choice(TYPE);
    let trade_type = input.required(TYPE, trade_type);
    let asset = input.text(ASSET, LONGEST_NAME);
    if input.required(ASSET, asset).is_some_and(|asset| !asset.eq_ignore_ascii_case(BTC)) {
        input.refuse(ASSET[0], "must be BTC");
    }
    let sat = btc(&mut input, AMOUNT);
    let sat = input.required(AMOUNT, sat);
    let execution_strategy = input.choice(EXECUTION);
    let execution_strategy = input.required(EXECUTION, execution_strategy);
    let target = input.decimal(TARGET, Low::Above(Decimal::ZERO), MAX_PRICE_USD);
    let target_price_usd = if execution_strategy == Some(Strategy::Limit) {
        input.required(TARGET, target)
    } else {
        target.value()
    };
    if let Given::Value(exchange) = input.text(EXCHANGE, LONGEST_NAME)
        && exchange != VENUE.name()
    {
        input.refuse(EXCHANGE[0], format!("must be {}: no other venue is connected", VENUE.name()));
    }
    let strategy = input.text(FOLLOWS, LONGEST_NAME).value();
    let notes = input.text(NOTES, LONGEST_NOTES).value();
    let lot_ids = lots(&mut input);
    for (field, is_given) in [(FOLLOWS[0], strategy.is_some()), (LOTS, lot_ids.is_some())] {
        if is_given && trade_type.is_some_and(|trade_type| trade_type != TradeType::Sell) {
            input.refuse(field, "is for a sale");
        }
    }
    input.finish().map_err(CommandError::Invalid)?;
    let (Some(trade_type), Some(sat), Some(execution_strategy)) = (trade_type, sat, execution_strategy)
    else {
        return Err(CommandError::Invalid(Vec::new()));
    };
    Ok(Asked { trade_type, sat, execution_strategy, target_price_usd, strategy, notes, lot_ids })
}

/// The lots that a sale names.
fn lots(input: &mut Input<'_>) -> Option<Vec<Uuid>> {
    let given = input.raw(LOTS).filter(|given| !given.is_null())?;
    let ids: Option<Vec<Uuid>> =
        given.as_array().and_then(|ids| ids.iter().map(|id| id.as_str()?.parse().ok()).collect());
    match ids {
        Some(ids) if (1..=MOST_LOTS).contains(&ids.len()) => Some(ids),
        _ => {
            input.refuse(LOTS, format!("must be 1 to {MOST_LOTS} ids of lots"));
            None
        }
    }
}

impl Asked {
    fn trade(
        self,
        caller: Caller<'_>,
        settings: &Settings,
        price_usd: Option<Decimal>,
    ) -> Result<Trade, CommandError> {
        let worth = |price| Trade::worth_usd(self.sat, self.target_price_usd, price);
        let value_usd = price_usd.map(worth).transpose();
        let value_usd =
            value_usd.map_err(|_| refused(AMOUNT[0], "is worth more than can be computed exactly"))?;
        Ok(Trade {
            trade_id: Uuid::now_v7(),
            user_id: caller.actor.clone(),
            submitted_by: caller.actor.clone(),
            trade_type: self.trade_type,
            asset: BTC.to_owned(),
            sat: self.sat,
            execution_strategy: self.execution_strategy,
            target_price_usd: self.target_price_usd,
            exchange: VENUE.name().to_owned(),
            strategy: self.strategy,
            notes: self.notes,
            lot_ids: self.lot_ids,
            state: TradeState::Submitted,
            state_reason: None,
            value_usd,
            // What nobody knows the worth of may be above the limit.
            needs_approval: value_usd.is_none_or(|value| value > settings.approval_limit_usd),
            decided_by: None,
            decided_at: None,
            started_at: None,
            filled_sat: 0,
            proceeds_usd: Decimal::ZERO,
            fee_usd: Decimal::ZERO,
            realised_gain_usd: Decimal::ZERO,
            fills: 0,
            filled_at: None,
            waiting: None,
            created_at: caller.now,
            updated_at: caller.now,
        })
    }
}

/// Satoshi of an account: held, promised to sales that are open, and hedged or promised to hedges.
async fn owned(conn: &mut PgConnection, user: &UserId) -> Result<(i64, i64, i64), sqlx::Error> {
    sqlx::query_as(
        "select (select coalesce(sum(left_sat), 0)::bigint from treasury_lot where user_id = $1), \
         coalesce(sum(sat - filled_sat) filter (where trade_type = 'sell' and open), 0)::bigint, \
         coalesce(sum(case when open then sat else filled_sat end) filter (where trade_type = 'hedge'), 0)::bigint \
         from (select *, state in ('submitted', 'approved', 'executing', 'partially_filled') as open \
               from treasury_trade where user_id = $1) t",
    )
    .bind(user)
    .fetch_one(conn)
    .await
}

async fn check_owned(conn: &mut PgConnection, user: &UserId, asked: &Asked) -> Result<(), CommandError> {
    let (held, reserved, hedged) = owned(&mut *conn, user).await?;
    let (taken, by) = match asked.trade_type {
        TradeType::Buy => return lot::check_exist(conn, user, asked.sat).await,
        TradeType::Sell => (reserved, "reserved by open trades"),
        TradeType::Hedge => (hedged, "hedged"),
    };
    if asked.sat > held - taken {
        let detail =
            format!("{} sat are asked for: {held} sat are held, {taken} of them are {by}", asked.sat);
        return Err(broken("more-than-owned", detail));
    }
    let Some(ids) = &asked.lot_ids else { return Ok(()) };
    let (found, left, promised): (i64, i64, i64) = sqlx::query_as(
        "select count(*), coalesce(sum(left_sat), 0)::bigint, \
         (select coalesce(sum(sat - filled_sat), 0)::bigint from treasury_trade \
          where user_id = $1 and trade_type = 'sell' and lot_ids && $2 \
            and state in ('submitted', 'approved', 'executing', 'partially_filled')) \
         from treasury_lot where user_id = $1 and id = any($2)",
    )
    .bind(user)
    .bind(ids)
    .fetch_one(conn)
    .await?;
    let mut distinct = ids.clone();
    distinct.sort_unstable();
    distinct.dedup();
    if i64::try_from(distinct.len()).ok() != Some(found) {
        return Err(refused(LOTS, "must be ids of lots of this account"));
    }
    if asked.sat > left - promised {
        let detail = format!(
            "{} sat are asked for: {left} sat are left in these lots, {promised} of them are reserved by open trades that \
             name one of them",
            asked.sat
        );
        return Err(broken("more-than-owned", detail));
    }
    Ok(())
}

async fn insert(tx: &mut TenantTx, trade: &Trade) -> Result<(), sqlx::Error> {
    let tenant = tx.tenant().clone();
    sqlx::query(
        "insert into treasury_trade (tenant_id, id, user_id, submitted_by, trade_type, asset, sat, execution_strategy, \
         target_price_usd, venue, strategy, notes, lot_ids, state, value_usd, needs_approval, created_at, updated_at) \
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $17)",
    )
    .bind(tenant.as_str())
    .bind(trade.trade_id)
    .bind(&trade.user_id)
    .bind(&trade.submitted_by)
    .bind(trade.trade_type.as_str())
    .bind(&trade.asset)
    .bind(trade.sat)
    .bind(trade.execution_strategy.as_str())
    .bind(trade.target_price_usd)
    .bind(&trade.exchange)
    .bind(&trade.strategy)
    .bind(&trade.notes)
    .bind(&trade.lot_ids)
    .bind(trade.state.as_str())
    .bind(trade.value_usd)
    .bind(trade.needs_approval)
    .bind(trade.created_at)
    .execute(tx.conn())
    .await
    .map(drop)
}
