//! What a fill takes and brings, and the rows that it is: the fill itself, the lots it leaves, the lot of a purchase.

use rust_decimal::Decimal;
use uuid::Uuid;

use super::Step;
use crate::db::Tenanted;
use crate::domain::machine::State;
use crate::domain::treasury::lot::{self, Lot, Source};
use crate::domain::treasury::price::Price;
use crate::domain::treasury::trade::{Trade, TradeType};
use crate::economics::treasury as economics;
use crate::economics::treasury::money::{booked_usd, value_usd};
use crate::economics::treasury::{LotMethod, LotPart, TreasuryError};

/// A fill, booked.
pub(super) struct Booked {
    pub(super) sat: i64,
    pub(super) price_usd: Decimal,
    pub(super) proceeds_usd: Decimal,
    pub(super) fee_usd: Decimal,
    pub(super) basis_usd: Decimal,
    pub(super) gain_usd: Decimal,
    pub(super) parts: Vec<LotPart>,
}

impl<T: Tenanted> Step<'_, T> {
    /// What a fill takes and brings. A sale that the lots do not cover is refused: other trades took those it names.
    pub(super) async fn book(
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

    pub(super) async fn insert(
        &mut self,
        trade: &Trade,
        booked: &Booked,
        price: &Price,
    ) -> Result<(), sqlx::Error> {
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
    pub(super) async fn bought(&mut self, trade: &Trade, booked: &Booked) -> Result<(), sqlx::Error> {
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
}

fn signed(sat: u64) -> i64 {
    i64::try_from(sat).unwrap_or(i64::MAX)
}
