//! Owns what time and prices do to the trades: the venue takes them, fills them, and they end.
//! Promises that a fill takes exact lots, is booked to the last decimal, and happens once: it is computed from what is
//! filled already, under the lock of the account, and its number within the trade is a key.
//! A trade that needs no second person is looked at once more before the venue takes it: its worth may have changed.
//! Called by whoever runs scheduled work ([`advance`]) and by the group of the treasury ([`advance_accounts`]).

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde_json::json;
use uuid::Uuid;

use super::account::{self, Settings};
use super::price::{self, Price, Prices};
use super::trade::{Rule, Trade, TradeState, TradeType};
use super::venue::{Order, Quote, VENUE, Venue};
use crate::db::Tenanted;
use crate::domain::{Caller, CommandError, follow_up};
use crate::economics::treasury::TreasuryError;
use crate::event::kind;
use crate::identifier::UserId;
use booking::Booked;

mod approval;
mod booking;

/// What happened to the trades.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Advanced {
    pub fills: usize,
    pub failed: usize,
    /// Trades that wait for a price that counts.
    pub blind: usize,
}

/// Fills what is due of every open trade of the tenant as of `now`, by the database's clock.
pub async fn advance<T: Tenanted>(tx: &mut T, now: DateTime<Utc>) -> Result<Advanced, CommandError> {
    let users: Vec<UserId> = sqlx::query_scalar(
        "select distinct user_id from treasury_trade \
         where state in ('submitted', 'approved', 'executing', 'partially_filled') order by 1",
    )
    .fetch_all(tx.conn())
    .await?;
    account::lock(tx, users.iter()).await?;
    let accounts = users.into_iter().map(|user| (user, None)).collect();
    advance_accounts(tx, &accounts, now).await
}

/// As [`advance`], of these accounts, which are locked; each with the event that is the reason to look at it.
pub async fn advance_accounts<T: Tenanted>(
    tx: &mut T,
    accounts: &BTreeMap<UserId, Option<Uuid>>,
    now: DateTime<Utc>,
) -> Result<Advanced, CommandError> {
    let users: Vec<&str> = accounts.keys().map(UserId::as_str).collect();
    let trades: Vec<Trade> = sqlx::query_as(
        "select * from treasury_trade where user_id = any($1) \
         and (state in ('approved', 'executing', 'partially_filled') or state = 'submitted' and not needs_approval) \
         order by user_id, id",
    )
    .bind(&users)
    .fetch_all(tx.conn())
    .await?;
    let mut done = Advanced::default();
    if trades.is_empty() {
        return Ok(done);
    }
    let users: Vec<&str> = trades.iter().map(|trade| trade.user_id.as_str()).collect();
    let prices = price::recent(tx.conn(), now).await?;
    let settings = account::settings_of(tx.conn(), &users).await?;
    let actor = VENUE.name().parse::<UserId>().map_err(|error| sqlx::Error::Encode(Box::new(error)))?;
    let venue = Caller { actor: &actor, request_id: "", traceparent: "", now };
    for trade in trades {
        // Every account has settings from its first trade on.
        let Some(settings) = settings.iter().find(|settings| settings.user_id == trade.user_id) else {
            continue;
        };
        let cause = accounts.get(&trade.user_id).copied().flatten();
        let mut step = Step { tx: &mut *tx, venue, cause, settings, prices: &prices };
        step.take(trade, &mut done).await?;
    }
    Ok(done)
}

/// What one trade is shown.
struct Step<'a, T> {
    tx: &'a mut T,
    venue: Caller<'a>,
    cause: Option<Uuid>,
    settings: &'a Settings,
    prices: &'a Prices,
}

impl<T: Tenanted> Step<'_, T> {
    async fn take(&mut self, mut trade: Trade, done: &mut Advanced) -> Result<(), CommandError> {
        let (now, before) = (self.venue.now, trade.clone());
        if trade.state == TradeState::Submitted && !self.goes_by_itself(&mut trade, done).await? {
            return self.keep(trade, &before).await;
        }
        if matches!(trade.state, TradeState::Submitted | TradeState::Approved) {
            trade.go(TradeState::Executing, |rule| rule != Rule::SecondPerson)?;
            trade.started_at = Some(now);
        }
        let order = order_of(&trade, now);
        match VENUE.quote(&order, self.prices, now) {
            Quote::Fill { sat, price_usd, price } => {
                trade.waiting = None;
                match self.book(&trade, sat, price_usd).await? {
                    Ok(booked) => {
                        self.fill(&mut trade, &booked, &price).await?;
                        done.fills += 1;
                    }
                    Err(refusal) => {
                        self.fail(&mut trade, &refusal).await?;
                        done.failed += 1;
                    }
                }
                return Ok(());
            }
            Quote::Nothing => trade.waiting = None,
            Quote::Blind(blind) => {
                trade.waiting = Some(blind.as_str().to_owned());
                done.blind += 1;
            }
        }
        self.keep(trade, &before).await
    }

    /// Stores what a look at a trade changed, if anything.
    async fn keep(&mut self, mut trade: Trade, before: &Trade) -> Result<(), CommandError> {
        if trade != *before {
            trade.updated_at = self.venue.now;
            trade.store(self.tx).await?;
        }
        Ok(())
    }

    async fn fill(&mut self, trade: &mut Trade, booked: &Booked, price: &Price) -> Result<(), CommandError> {
        let now = self.venue.now;
        trade.fills += 1;
        trade.filled_sat += booked.sat;
        trade.proceeds_usd = (trade.proceeds_usd + booked.proceeds_usd).normalize();
        trade.fee_usd = (trade.fee_usd + booked.fee_usd).normalize();
        trade.realised_gain_usd = (trade.realised_gain_usd + booked.gain_usd).normalize();
        (trade.filled_at, trade.updated_at) = (Some(now), now);
        let to = if trade.left_sat() == 0 { TradeState::Executed } else { TradeState::PartiallyFilled };
        if to != trade.state {
            trade.go(to, |rule| rule == Rule::Venue)?;
        }
        trade.store(self.tx).await?;
        self.insert(trade, booked, price).await?;
        if trade.trade_type == TradeType::Buy {
            self.bought(trade, booked).await?;
        }
        let data = json!({
            "trade_id": trade.trade_id, "fill": trade.fills, "trade_type": trade.trade_type, "state": trade.state,
            "sat": booked.sat, "price_usd": booked.price_usd.normalize(),
            "proceeds_usd": booked.proceeds_usd.normalize(), "fee_usd": booked.fee_usd.normalize(),
            "basis_usd": booked.basis_usd.normalize(), "realised_gain_usd": booked.gain_usd.normalize(),
            "lots": booked.parts, "filled_sat": trade.filled_sat, "total_sat": trade.sat,
            "snapshot_id": price.snapshot_id, "price_at": price.at,
        });
        self.tell(kind::TREASURY_TRADE_EXECUTED, trade, data).await
    }

    async fn fail(&mut self, trade: &mut Trade, refusal: &TreasuryError) -> Result<(), CommandError> {
        trade.go(TradeState::Failed, |rule| rule == Rule::Venue)?;
        (trade.state_reason, trade.updated_at) = (Some(refusal.to_string()), self.venue.now);
        trade.store(self.tx).await?;
        let data = json!({
            "trade_id": trade.trade_id, "reason": trade.state_reason, "trade_type": trade.trade_type,
            "filled_sat": trade.filled_sat, "total_sat": trade.sat,
        });
        self.tell(kind::TREASURY_TRADE_FAILED, trade, data).await
    }

    async fn tell(&mut self, kind: &str, trade: &Trade, data: serde_json::Value) -> Result<(), CommandError> {
        let about = (kind, &trade.user_id, trade.trade_id.into());
        follow_up(self.tx, self.venue, self.cause, about, data).await.map(drop)
    }
}

fn order_of(trade: &Trade, now: DateTime<Utc>) -> Order {
    Order {
        trade_type: trade.trade_type,
        strategy: trade.execution_strategy,
        sat: trade.sat.unsigned_abs(),
        filled_sat: trade.filled_sat.unsigned_abs(),
        target_price_usd: trade.target_price_usd,
        started_at: trade.started_at.unwrap_or(now),
        filled_at: trade.filled_at,
    }
}
