//! Owns lots: what was acquired when, how much of it is left at which cost, and which of it a sale consumes.
//! Promises that satoshi and cost are conserved: parts sold and lots remaining add up to what was there before.
//! May be called by every module; needs nothing but its arguments.

use super::TreasuryError;
use super::money::{booked_usd, value_usd};
use crate::economics::EconomicsError;
use crate::economics::exact::{self, add, div, product, sub};
use chrono::{DateTime, Utc};
use rust_decimal::Decimal;
use serde::{Deserialize, Serialize};
use std::cmp::Ordering;
use uuid::Uuid;

/// Bitcoin acquired together, as far as it is not sold yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lot {
    /// Identifies the lot; decides between lots of the same instant.
    pub id: Uuid,
    /// When it was mined or bought.
    pub acquired_at: DateTime<Utc>,
    /// Satoshi left, > 0.
    pub sat: u64,
    /// What the satoshi left cost altogether in USD, >= 0, fees of the purchase included. Counts with 8 decimals.
    pub cost_usd: Decimal,
}

impl Lot {
    /// Checks the figures against the ranges given at their definition.
    ///
    /// # Errors
    /// [`EconomicsError::OutOfRange`] naming the first field that is outside.
    pub fn check(&self) -> Result<(), EconomicsError> {
        exact::within(self.sat > 0, "sat")?;
        exact::not_negative(self.cost_usd, "cost_usd")
    }

    fn by_age(&self, other: &Self) -> Ordering {
        (self.acquired_at, self.id).cmp(&(other.acquired_at, other.id))
    }

    /// Cost of a satoshi; a lot that passed [`Lot::check`] has some.
    fn unit_cost(&self) -> Decimal {
        self.cost_usd.checked_div(Decimal::from(self.sat)).unwrap_or_default()
    }
}

/// Which lots a sale consumes first. Lots that tie are consumed from the oldest on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LotMethod {
    /// First in, first out.
    #[default]
    Fifo,
    /// Last in, first out.
    Lifo,
    /// Highest cost per BTC first: the smallest gain.
    Hifo,
    /// Oldest first, all at the average cost; what remains is held at that average from then on.
    Average,
    /// These lots in this order and no others.
    SpecificId(Vec<Uuid>),
}

/// What was sold, and for how much.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fill {
    /// Satoshi sold, > 0.
    pub sat: u64,
    /// Price in USD per BTC, >= 0.
    pub price_usd: Decimal,
    /// Fee of the venue in USD, >= 0.
    pub fee_usd: Decimal,
}

impl Fill {
    /// Checks the figures against the ranges given at their definition.
    ///
    /// # Errors
    /// [`EconomicsError::OutOfRange`] naming the first field that is outside.
    pub fn check(&self) -> Result<(), EconomicsError> {
        exact::within(self.sat > 0, "sat")?;
        exact::not_negative(self.price_usd, "price_usd")?;
        exact::not_negative(self.fee_usd, "fee_usd")
    }
}

/// What a sale takes out of one lot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LotPart {
    /// The lot.
    pub lot_id: Uuid,
    /// Satoshi taken, > 0.
    pub sat: u64,
    /// Their cost in USD.
    pub basis_usd: Decimal,
}

/// A sale booked against lots: `proceeds = basis + gain + fee`, to the last decimal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sale {
    /// What each lot gave, in the order of consumption.
    pub parts: Vec<LotPart>,
    /// Satoshi sold, the sum of the parts.
    pub sat: u64,
    /// Their cost in USD, the sum of the parts.
    pub basis_usd: Decimal,
    /// Price times satoshi in USD, before the fee.
    pub proceeds_usd: Decimal,
    /// Fee in USD.
    pub fee_usd: Decimal,
    /// Realised gain in USD, negative for a loss.
    pub gain_usd: Decimal,
    /// The lots afterwards, in the order given; a lot that is sold out is gone.
    pub remaining: Vec<Lot>,
}

/// Books a fill against the lots. The basis of a part of a lot is its share of the lot's cost, rounded to 8 decimals; the
/// rest keeps the remainder.
///
/// # Errors
/// [`TreasuryError::NotEnough`] when the lots hold less than is sold, [`TreasuryError::UnknownLot`] when a specific lot is
/// not among them, [`EconomicsError::OutOfRange`] and [`EconomicsError::Overflow`] for figures that cannot be.
pub fn sell(lots: &[Lot], fill: &Fill, method: &LotMethod) -> Result<Sale, TreasuryError> {
    let mut remaining = lots.to_vec();
    let booked = consume(&mut remaining, fill, method)?;
    Ok(Sale {
        sat: fill.sat,
        parts: booked.parts,
        basis_usd: booked.basis_usd,
        proceeds_usd: booked.proceeds_usd,
        fee_usd: booked.fee_usd,
        gain_usd: booked.gain_usd,
        remaining,
    })
}

/// A sale without the lots that remain: those stay where they are.
pub(super) struct Booked {
    pub(super) parts: Vec<LotPart>,
    pub(super) basis_usd: Decimal,
    pub(super) proceeds_usd: Decimal,
    pub(super) fee_usd: Decimal,
    pub(super) gain_usd: Decimal,
}

/// [`sell`] in place. After an error the lots are undefined.
pub(super) fn consume(lots: &mut Vec<Lot>, fill: &Fill, method: &LotMethod) -> Result<Booked, TreasuryError> {
    fill.check()?;
    for lot in lots.iter_mut() {
        lot.check()?;
        lot.cost_usd = booked_usd(lot.cost_usd);
    }
    let order = consumption_order(lots, method)?;
    let available_sat = total_sat(order.iter().map(|at| &lots[*at]))?;
    if fill.sat > available_sat {
        return Err(TreasuryError::NotEnough { requested_sat: fill.sat, available_sat });
    }
    if *method == LotMethod::Average {
        level(lots, &order, available_sat)?;
    }
    let parts = take(lots, &order, fill.sat)?;
    lots.retain(|lot| lot.sat > 0);

    let basis_usd =
        parts.iter().try_fold(Decimal::ZERO, |sum, part| add(sum, part.basis_usd, "basis_usd"))?;
    let proceeds_usd = booked_usd(value_usd(fill.sat, fill.price_usd)?);
    let fee_usd = booked_usd(fill.fee_usd);
    let gain_usd = sub(sub(proceeds_usd, basis_usd, "gain_usd")?, fee_usd, "gain_usd")?;
    Ok(Booked { parts, basis_usd, proceeds_usd, fee_usd, gain_usd })
}

/// Satoshi of all lots together.
///
/// # Errors
/// [`EconomicsError::Overflow`] beyond a `u64`.
pub(super) fn total_sat<'a>(lots: impl Iterator<Item = &'a Lot>) -> Result<u64, EconomicsError> {
    let mut sum: u64 = 0;
    for lot in lots {
        sum = sum.checked_add(lot.sat).ok_or(EconomicsError::Overflow { figure: "sat" })?;
    }
    Ok(sum)
}

/// Cost of all lots together in USD.
///
/// # Errors
/// [`EconomicsError::Overflow`] beyond 7.9e28.
pub(super) fn total_cost_usd<'a>(lots: impl Iterator<Item = &'a Lot>) -> Result<Decimal, EconomicsError> {
    let mut sum = Decimal::ZERO;
    for lot in lots {
        sum = add(sum, booked_usd(lot.cost_usd), "cost_usd")?;
    }
    Ok(sum)
}

/// Where the lots stand that may be consumed, first to last.
fn consumption_order(lots: &[Lot], method: &LotMethod) -> Result<Vec<usize>, TreasuryError> {
    let mut order: Vec<_> = (0..lots.len()).collect();
    match method {
        LotMethod::Fifo | LotMethod::Average => order.sort_by(|a, b| lots[*a].by_age(&lots[*b])),
        LotMethod::Lifo => order.sort_by(|a, b| lots[*b].by_age(&lots[*a])),
        LotMethod::Hifo => {
            let costs: Vec<_> = lots.iter().map(Lot::unit_cost).collect();
            order.sort_by(|a, b| costs[*b].cmp(&costs[*a]).then_with(|| lots[*a].by_age(&lots[*b])));
        }
        LotMethod::SpecificId(ids) => {
            order.clear();
            for id in ids {
                let at = lots.iter().position(|lot| lot.id == *id);
                let at = at.ok_or(TreasuryError::UnknownLot { lot_id: *id })?;
                // A lot that is named twice is there once.
                if !order.contains(&at) {
                    order.push(at);
                }
            }
        }
    }
    Ok(order)
}

/// Spreads the whole cost evenly over all satoshi, `whole` of them. Each lot gets what lies between two shares of the
/// whole, so that rounding neither adds up nor loses anything.
fn level(lots: &mut [Lot], order: &[usize], whole: u64) -> Result<(), EconomicsError> {
    let total = total_cost_usd(order.iter().map(|at| &lots[*at]))?;
    let (mut reached, mut spread) = (0, Decimal::ZERO);
    for at in order {
        reached += lots[*at].sat;
        let until = prorated(total, reached, whole)?;
        lots[*at].cost_usd = sub(until, spread, "cost_usd")?;
        spread = until;
    }
    Ok(())
}

/// Takes `sat` out of the lots in this order; they hold at least as many.
fn take(lots: &mut [Lot], order: &[usize], sat: u64) -> Result<Vec<LotPart>, EconomicsError> {
    let (mut left, mut parts) = (sat, Vec::new());
    for at in order {
        if left == 0 {
            break;
        }
        let lot = &mut lots[*at];
        let taken = lot.sat.min(left);
        let basis_usd = prorated(lot.cost_usd, taken, lot.sat)?;
        lot.cost_usd = sub(lot.cost_usd, basis_usd, "cost_usd")?;
        lot.sat -= taken;
        left -= taken;
        parts.push(LotPart { lot_id: lot.id, sat: taken, basis_usd });
    }
    Ok(parts)
}

/// `cost * part / whole`, rounded to 8 decimals, and all of the cost for the whole. The cost is booked, a multiple of the
/// smallest amount, so that a part rounded up does not exceed it.
fn prorated(cost_usd: Decimal, part: u64, whole: u64) -> Result<Decimal, EconomicsError> {
    const FIGURE: &str = "basis_usd";
    if part == whole {
        return Ok(cost_usd);
    }
    let (part, whole) = (Decimal::from(part), Decimal::from(whole));
    // Dividing last keeps every digit. Whether it can be done must not depend on the part, or shares of one whole would
    // be rounded in two ways.
    let share = match cost_usd.checked_mul(whole) {
        Some(_) => div(product([cost_usd, part], FIGURE)?, whole, FIGURE)?,
        None => product([div(cost_usd, whole, FIGURE)?, part], FIGURE)?,
    };
    Ok(booked_usd(share))
}

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;
