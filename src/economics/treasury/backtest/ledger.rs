//! Owns the books of a backtest: lots, cash, what is owed, and the sums of what happened.
//! Promises that satoshi, cash and opex add up to the last decimal from the first day to the last.
//! May be called by the backtest only.

use super::performance::{factor, judge};
use super::{Day, Performance, Rules, Start};
use crate::economics::EconomicsError;
use crate::economics::exact::{add, product, sub};
use crate::economics::treasury::TreasuryError;
use crate::economics::treasury::lots::{Booked, Fill, Lot, LotMethod, consume, total_cost_usd, total_sat};
use crate::economics::treasury::money::{booked_usd, per_btc_usd, value_usd};
use chrono::NaiveTime;
use rust_decimal::Decimal;
use uuid::Uuid;

pub(super) struct Ledger<'a> {
    rules: &'a Rules,
    lots: Vec<Lot>,
    pub(super) sat: u64,
    cost_usd: Decimal,
    pub(super) cash_usd: Decimal,
    /// Opex that could not be paid yet. Not both this and cash are positive at the end of a day.
    pub(super) owed_usd: Decimal,
    equity_start_usd: Decimal,
    mined_sat: u64,
    sold_sat: u64,
    proceeds_usd: Decimal,
    fees_usd: Decimal,
    gain_usd: Decimal,
    opex_usd: Decimal,
    opex_paid_usd: Decimal,
    shortfall_days: u32,
    /// At the end of each day.
    equity_usd: Vec<Decimal>,
    /// Inventory and cash at the end of the day before.
    assets_usd: Decimal,
    /// Inventory and cash of today before anything is sold, at today's price.
    at_work_usd: Decimal,
    /// By what factor each day multiplies the index of returns.
    growth: Vec<f64>,
}

impl<'a> Ledger<'a> {
    pub(super) fn new(start: &Start, first: &Day, rules: &'a Rules) -> Result<Self, TreasuryError> {
        start.lots.iter().try_for_each(Lot::check)?;
        let first_instant = first.date.and_time(NaiveTime::MIN).and_utc();
        let lots: Vec<_> = start
            .lots
            .iter()
            .map(|lot| Lot { acquired_at: lot.acquired_at.min(first_instant), ..lot.clone() })
            .collect();
        let (sat, cash_usd) = (total_sat(lots.iter())?, booked_usd(start.cash_usd));
        let assets_usd = add(value_usd(sat, first.price_usd)?, cash_usd, EQUITY)?;
        Ok(Self {
            rules,
            sat,
            cost_usd: total_cost_usd(lots.iter())?,
            lots,
            cash_usd,
            owed_usd: Decimal::ZERO,
            equity_start_usd: assets_usd,
            mined_sat: 0,
            sold_sat: 0,
            proceeds_usd: Decimal::ZERO,
            fees_usd: Decimal::ZERO,
            gain_usd: Decimal::ZERO,
            opex_usd: Decimal::ZERO,
            opex_paid_usd: Decimal::ZERO,
            shortfall_days: 0,
            equity_usd: Vec::new(),
            assets_usd,
            at_work_usd: assets_usd,
            growth: Vec::new(),
        })
    }

    pub(super) fn average_cost_usd(&self) -> Result<Option<Decimal>, EconomicsError> {
        per_btc_usd(self.cost_usd, self.sat)
    }

    /// Inventory and cash at a price.
    fn assets_usd(&self, price_usd: Decimal) -> Result<Decimal, EconomicsError> {
        add(value_usd(self.sat, price_usd)?, self.cash_usd, EQUITY)
    }

    /// The price moves what is held; what is mined becomes a lot that cost its value.
    pub(super) fn open(&mut self, day: &Day) -> Result<(), TreasuryError> {
        self.growth.push(factor(self.assets_usd, self.assets_usd(day.price_usd)?));
        self.mine(day)?;
        self.at_work_usd = self.assets_usd(day.price_usd)?;
        Ok(())
    }

    fn mine(&mut self, day: &Day) -> Result<(), TreasuryError> {
        let sat = day.production_sat;
        if sat == 0 {
            return Ok(());
        }
        self.sat = self.sat.checked_add(sat).ok_or(EconomicsError::Overflow { figure: "sat" })?;
        self.mined_sat =
            self.mined_sat.checked_add(sat).ok_or(EconomicsError::Overflow { figure: "mined_sat" })?;
        let cost_usd = booked_usd(value_usd(sat, day.price_usd)?);
        self.cost_usd = add(self.cost_usd, cost_usd, "cost_usd")?;
        match self.lots.last_mut().filter(|_| self.rules.method == LotMethod::Average) {
            // At the average cost of everything, where one lot ends makes no difference.
            Some(lot) => {
                lot.sat += sat;
                lot.cost_usd = add(lot.cost_usd, cost_usd, "cost_usd")?;
            }
            None => {
                // At noon, after the lots of the start.
                let noon = NaiveTime::from_hms_opt(12, 0, 0).unwrap_or_default();
                let acquired_at = day.date.and_time(noon).and_utc();
                self.lots.push(Lot { id: Uuid::nil(), acquired_at, sat, cost_usd });
            }
        }
        Ok(())
    }

    pub(super) fn sell(&mut self, sat: u64, price_usd: Decimal) -> Result<Booked, TreasuryError> {
        let fee_usd = product([value_usd(sat, price_usd)?, self.rules.fee], "fee_usd")?;
        let booked = consume(&mut self.lots, &Fill { sat, price_usd, fee_usd }, &self.rules.method)?;
        self.sat -= sat;
        self.sold_sat =
            self.sold_sat.checked_add(sat).ok_or(EconomicsError::Overflow { figure: "sold_sat" })?;
        self.cost_usd = sub(self.cost_usd, booked.basis_usd, "cost_usd")?;
        let net = sub(booked.proceeds_usd, booked.fee_usd, "cash_usd")?;
        self.cash_usd = add(self.cash_usd, net, "cash_usd")?;
        self.proceeds_usd = add(self.proceeds_usd, booked.proceeds_usd, "proceeds_usd")?;
        self.fees_usd = add(self.fees_usd, booked.fee_usd, "fees_usd")?;
        self.gain_usd = add(self.gain_usd, booked.gain_usd, "realised_gain_usd")?;
        Ok(booked)
    }

    /// Pays the opex of the day and of the days before, as far as the cash goes.
    pub(super) fn close(&mut self, day: &Day) -> Result<(), EconomicsError> {
        let kept = factor(self.at_work_usd, self.assets_usd(day.price_usd)?);
        self.growth.last_mut().into_iter().for_each(|growth| *growth *= kept);
        let opex = booked_usd(day.opex_usd);
        self.opex_usd = add(self.opex_usd, opex, "opex_usd")?;
        let due = add(self.owed_usd, opex, "opex_usd")?;
        let paid = due.min(self.cash_usd);
        self.cash_usd = sub(self.cash_usd, paid, "cash_usd")?;
        self.owed_usd = sub(due, paid, "opex_usd")?;
        self.opex_paid_usd = add(self.opex_paid_usd, paid, "opex_usd")?;
        self.shortfall_days += u32::from(!self.owed_usd.is_zero());
        self.assets_usd = self.assets_usd(day.price_usd)?;
        self.equity_usd.push(sub(self.assets_usd, self.owed_usd, EQUITY)?.normalize());
        Ok(())
    }

    pub(super) fn into_performance(self, last: &Day) -> Result<Performance, EconomicsError> {
        let judgement = judge(&self.growth);
        let value = value_usd(self.sat, last.price_usd)?;
        let unrealised_usd = sub(value, self.cost_usd, "unrealised_usd")?;
        Ok(Performance {
            equity_start_usd: self.equity_start_usd.normalize(),
            equity_end_usd: self.equity_usd.last().copied().unwrap_or_default(),
            sat: self.sat,
            cash_usd: self.cash_usd.normalize(),
            mined_sat: self.mined_sat,
            sold_sat: self.sold_sat,
            proceeds_usd: self.proceeds_usd.normalize(),
            fees_usd: self.fees_usd.normalize(),
            realised_gain_usd: self.gain_usd.normalize(),
            unrealised_usd: unrealised_usd.normalize(),
            opex_usd: self.opex_usd.normalize(),
            opex_paid_usd: self.opex_paid_usd.normalize(),
            shortfall_usd: self.owed_usd.normalize(),
            shortfall_days: self.shortfall_days,
            total_return: judgement.total_return,
            max_drawdown: judgement.max_drawdown,
            sharpe: judgement.sharpe,
            equity_usd: self.equity_usd,
        })
    }
}

const EQUITY: &str = "equity_usd";
