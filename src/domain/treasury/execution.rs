//! Owns what time and prices do to the trades: the venue takes them, fills them, and they end.
//! Promises that a fill takes exact lots, is booked to the last decimal, and happens once: it is computed from what is
//! filled already, under the lock of the account, and its number within the trade is a key.
//! Called by whoever runs scheduled work ([`advance`]) and by the group of the treasury ([`advance_accounts`]).

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use rust_decimal::Decimal;
use serde_json::json;
use uuid::Uuid;

use super::account::{self, Settings};
use super::lot::{self, Lot, Source};
use super::price::{self, Price, Prices};
use super::trade::{Rule, Trade, TradeState, TradeType};
use super::venue::{Order, Quote, VENUE, Venue};
use crate::db::Tenanted;
use crate::domain::machine::State;
use crate::domain::{Caller, CommandError, follow_up};
use crate::economics::treasury as economics;
use crate::economics::treasury::money::{booked_usd, value_usd};
use crate::economics::treasury::{LotMethod, LotPart, TreasuryError};
use crate::event::kind;
use crate::identifier::UserId;

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

/// A fill, booked.
struct Booked {
    sat: i64,
    price_usd: Decimal,
    proceeds_usd: Decimal,
    fee_usd: Decimal,
    basis_usd: Decimal,
    gain_usd: Decimal,
    parts: Vec<LotPart>,
}

impl<T: Tenanted> Step<'_, T> {
    async fn take(&mut self, mut trade: Trade, done: &mut Advanced) -> Result<(), CommandError> {
        let (now, before) = (self.venue.now, trade.clone());
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
        if trade != before {
            trade.updated_at = now;
            trade.store(self.tx).await?;
        }
        Ok(())
    }

    /// What a fill takes and brings. A sale that the lots do not cover is refused: other trades took those it names.
    async fn book(
        &mut self,
        trade: &Trade,
        sat: u64,
        price_usd: Decimal,
    ) -> Result<Result<Booked, TreasuryError>, sqlx::Error> {
        let value = value_usd(sat, price_usd).map(booked_usd);
        let fee_share = self.settings.fee_share;
        let (proceeds_usd, fee_usd) = match value.map(|value| (value, booked_usd(value * fee_share))) {
            Ok(both) => both,
            Err(error) => return Ok(Err(error.into())),
        };
        let mut booked = Booked {
            sat: signed(sat),
            price_usd,
            proceeds_usd,
            fee_usd,
            basis_usd: Decimal::ZERO,
            gain_usd: Decimal::ZERO,
            parts: Vec::new(),
        };
        match trade.trade_type {
            // Its fee is in the cost of the lot that it makes.
            TradeType::Buy => booked.basis_usd = proceeds_usd + fee_usd,
            // It moves no bitcoin: what it gains stands open until somebody closes it.
            TradeType::Hedge => booked.gain_usd = -fee_usd,
            TradeType::Sell => {
                let held = lot::held(self.tx.conn(), &[trade.user_id.as_str()]).await?;
                let held: Vec<economics::Lot> = held.iter().map(economics::Lot::from).collect();
                let method = match &trade.lot_ids {
                    Some(ids) => {
                        // A named lot that is sold out has nothing to give; the others may.
                        let there = ids.iter().filter(|id| held.iter().any(|lot| lot.id == **id));
                        LotMethod::SpecificId(there.copied().collect())
                    }
                    None => self.settings.lot_method.into(),
                };
                let fill = economics::Fill { sat, price_usd, fee_usd };
                let sale = match economics::sell(&held, &fill, &method) {
                    Ok(sale) => sale,
                    Err(error) => return Ok(Err(error)),
                };
                lot::keep(self.tx, &held, &sale.remaining).await?;
                (booked.basis_usd, booked.gain_usd) = (sale.basis_usd, sale.gain_usd);
                (booked.proceeds_usd, booked.fee_usd) = (sale.proceeds_usd, sale.fee_usd);
                booked.parts = sale.parts;
            }
        }
        Ok(Ok(booked))
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

    async fn insert(&mut self, trade: &Trade, booked: &Booked, price: &Price) -> Result<(), sqlx::Error> {
        let tenant = self.tx.tenant().clone();
        sqlx::query(
            "insert into treasury_fill (tenant_id, trade_id, number, user_id, trade_type, strategy, sat, price_usd, \
             proceeds_usd, fee_usd, basis_usd, gain_usd, lots, snapshot_id, price_at, filled_at) \
             values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, clock_timestamp())",
        )
        .bind(tenant.as_str())
        .bind(trade.trade_id)
        .bind(trade.fills)
        .bind(&trade.user_id)
        .bind(trade.trade_type.as_str())
        .bind(&trade.strategy)
        .bind(booked.sat)
        .bind(booked.price_usd.normalize())
        .bind(booked.proceeds_usd.normalize())
        .bind(booked.fee_usd.normalize())
        .bind(booked.basis_usd.normalize())
        .bind(booked.gain_usd.normalize())
        .bind(sqlx::types::Json(&booked.parts))
        .bind(price.snapshot_id)
        .bind(price.at)
        .execute(self.tx.conn())
        .await
        .map(drop)
    }

    /// What was bought is a lot of its own, whose cost has the fee in it.
    async fn bought(&mut self, trade: &Trade, booked: &Booked) -> Result<(), sqlx::Error> {
        let now = self.venue.now;
        let lot = Lot {
            lot_id: Uuid::now_v7(),
            user_id: trade.user_id.clone(),
            source: Source::Trade,
            acquired_at: now,
            sat: booked.sat,
            cost_usd: booked.basis_usd,
            left_sat: booked.sat,
            left_cost_usd: booked.basis_usd,
            trade_id: Some(trade.trade_id),
            notes: None,
            created_at: now,
        };
        lot.insert(self.tx).await
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

fn signed(sat: u64) -> i64 {
    i64::try_from(sat).unwrap_or(i64::MAX)
}
