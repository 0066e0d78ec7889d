//! Owns the figures of a fleet: totals, per model and per location, as GET /api/portfolio gives them.
//! Promises that groups add up to the totals, and that what needs a price is `None` until there is a snapshot.
//! May be called by every module; needs nothing but its arguments.

use super::catalogue::normalise;
use super::exact::product;
use super::miner::{MinerLine, MinerStatus};
use super::mining::{self, Network};
use super::payback::{self, DynamicCase, HalvingClock, Payback};
use super::{Assumptions, EconomicsError};
use rust_decimal::Decimal;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use tally::{Income, Rates, Tally};

mod tally;

/// Name of the group of miners without a location.
pub const UNASSIGNED: &str = "unassigned";

/// What the reader of a portfolio should know about its figures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Warning {
    /// No network snapshot yet: figures that need a price or a difficulty are null.
    NoSnapshot,
    /// Some miners have a purchase price and some have none: capex, payback and ROI cover the former only.
    CapexIncomplete,
}

/// Figures of a fleet. Hashrate, power, revenue, cost and efficiency count online miners; `miners_total` and
/// `capex_usd` count all but decommissioned ones. `None` is a figure that does not exist (yet).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Portfolio {
    /// Miners owned, all but decommissioned.
    pub miners_total: u64,
    /// Miners online.
    pub miners_online: u64,
    /// Rated hashrate, TH/s.
    pub hashrate_ths: Decimal,
    /// Rated hashrate times uptime, TH/s.
    pub effective_hashrate_ths: Decimal,
    /// Nameplate power, kW; uptime and PUE enter the cost only.
    pub power_kw: Decimal,
    /// Nameplate power per rated hashrate, J/TH; 0 without hashrate.
    pub efficiency_j_th: Decimal,
    /// BTC per day at full uptime, before the pool's fee.
    pub gross_btc_day: Option<Decimal>,
    /// BTC per day after uptime and fee.
    pub net_btc_day: Option<Decimal>,
    /// Net revenue per day, USD.
    pub revenue_usd_day: Option<Decimal>,
    /// Power cost per day, USD, each line at its own tariff.
    pub power_cost_usd_day: Decimal,
    /// Net revenue less power cost per day, USD.
    pub profit_usd_day: Option<Decimal>,
    /// Hashprice before the pool's fee, $/PH/day.
    pub hashprice_usd_ph_day: Option<Decimal>,
    /// Tariff at which the profit is 0, $/kWh; none without energy.
    pub break_even_tariff_usd_kwh: Option<Decimal>,
    /// BTC price at which the profit is 0, USD; none without production.
    pub break_even_btc_price_usd: Option<Decimal>,
    /// Sum of the known purchase prices, USD.
    pub capex_usd: Decimal,
    /// Capex over today's profit, days; none without capex or profit.
    pub payback_days: Option<Decimal>,
    /// First day on which cumulative profit reaches the capex; none without capex or when it never does.
    pub dynamic_payback_days: Option<u32>,
    /// The dynamic payback in full: the day, or what is earned until running turns unprofitable.
    pub dynamic_payback: Option<Payback>,
    /// Yearly return on capex at today's profit, percent.
    pub roi_percent: Option<Decimal>,
    /// One row per model, sorted by name.
    pub by_model: Vec<ModelRow>,
    /// One row per location, sorted by name.
    pub by_location: Vec<LocationRow>,
    /// What to know about these figures.
    pub warnings: Vec<Warning>,
}

/// The two rows differ in the name of their first field only. A flattened part would be shorter, but its counts could
/// not be read back while JSON numbers keep their exact text.
macro_rules! row {
    ($(#[$doc:meta])* $row:ident, $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
        pub struct $row {
            /// Name of the group.
            pub $name: String,
            /// Miners owned, all but decommissioned.
            pub miners_total: u64,
            /// Miners online.
            pub miners_online: u64,
            /// Rated hashrate, TH/s.
            pub hashrate_ths: Decimal,
            /// Nameplate power, kW.
            pub power_kw: Decimal,
            /// J/TH; 0 without hashrate.
            pub efficiency_j_th: Decimal,
            /// Net revenue per day, USD.
            pub revenue_usd_day: Option<Decimal>,
            /// Power cost per day, USD.
            pub power_cost_usd_day: Decimal,
            /// Net revenue less power cost per day, USD.
            pub profit_usd_day: Option<Decimal>,
            /// Tariff at which the profit is 0, $/kWh.
            pub break_even_tariff_usd_kwh: Option<Decimal>,
        }

        impl $row {
            fn new($name: String, tally: &Tally, rates: Option<&Rates>) -> Result<Self, EconomicsError> {
                let income = rates.map(|rates| tally.income(rates)).transpose()?;
                Ok(Self {
                    $name,
                    miners_total: tally.miners_total,
                    miners_online: tally.miners_online,
                    hashrate_ths: tally.hashrate_ths.normalize(),
                    power_kw: tally.power_kw()?,
                    efficiency_j_th: tally.efficiency_j_th()?,
                    revenue_usd_day: income.as_ref().map(|i| i.revenue_usd.normalize()),
                    power_cost_usd_day: tally.cost_usd.normalize(),
                    profit_usd_day: income.as_ref().map(|i| i.profit_usd.normalize()),
                    break_even_tariff_usd_kwh: income.and_then(|i| i.break_even_tariff(tally)),
                })
            }
        }
    };
}

row!(
    /// Figures of one model. Spellings that [`normalise`] to the same key are one model, under the first in order.
    ModelRow,
    model
);
row!(
    /// Figures of one location; miners without one are under [`UNASSIGNED`].
    LocationRow,
    location
);

/// A fleet as it is added up, line by line and in any order: what this holds grows with models and locations, not with lines.
#[derive(Debug)]
pub struct Fleet {
    assumptions: Assumptions,
    total: Tally,
    /// By their [`normalise`]d names, with the smallest spelling, so that the order of the lines does not show.
    models: BTreeMap<String, (String, Tally)>,
    locations: BTreeMap<String, Tally>,
}

impl Fleet {
    /// One without miners.
    ///
    /// # Errors
    /// [`EconomicsError::OutOfRange`] naming an assumption outside its range.
    pub fn new(assumptions: &Assumptions) -> Result<Self, EconomicsError> {
        assumptions.check()?;
        Ok(Self {
            assumptions: assumptions.clone(),
            total: Tally::default(),
            models: BTreeMap::new(),
            locations: BTreeMap::new(),
        })
    }

    /// Adds equal miners; decommissioned ones are not looked at.
    ///
    /// # Errors
    /// [`EconomicsError::OutOfRange`] naming an input outside its range, [`EconomicsError::Overflow`] when sums exceed
    /// 7.9e28.
    pub fn add(&mut self, line: &MinerLine) -> Result<(), EconomicsError> {
        if line.status == MinerStatus::Decommissioned {
            return Ok(());
        }
        line.check()?;
        let tally = Tally::of(line, &self.assumptions)?;
        self.total.merge(&tally)?;
        let (name, model) = self
            .models
            .entry(normalise(&line.model))
            .or_insert_with(|| (line.model.clone(), Tally::default()));
        if line.model < *name {
            name.clone_from(&line.model);
        }
        model.merge(&tally)?;
        let location = location(line);
        match self.locations.get_mut(location) {
            Some(known) => known.merge(&tally),
            None => {
                self.locations.insert(location.to_owned(), tally);
                Ok(())
            }
        }
    }

    /// The figures at the newest snapshot, if there is one.
    ///
    /// # Errors
    /// [`EconomicsError::OutOfRange`] naming an input outside its range, [`EconomicsError::Overflow`] when figures exceed
    /// 7.9e28.
    pub fn figures(&self, network: Option<&Network>) -> Result<Portfolio, EconomicsError> {
        let (total, assumptions) = (&self.total, &self.assumptions);
        let rates = network.map(|n| Rates::new(n, assumptions)).transpose()?;
        let rates = rates.as_ref();
        let income = rates.map(|rates| total.income(rates)).transpose()?;
        let profit = income.as_ref().map(|i| i.profit_usd);
        let dynamic = match (&income, network) {
            (Some(income), Some(network)) => dynamic(total, income, network, assumptions)?,
            _ => None,
        };
        let mut by_model = self
            .models
            .values()
            .map(|(name, tally)| ModelRow::new(name.clone(), tally, rates))
            .collect::<Result<Vec<_>, _>>()?;
        by_model.sort_by(|a, b| a.model.cmp(&b.model));
        let by_location = self
            .locations
            .iter()
            .map(|(name, tally)| LocationRow::new(name.clone(), tally, rates))
            .collect::<Result<Vec<_>, _>>()?;

        Ok(Portfolio {
            miners_total: total.miners_total,
            miners_online: total.miners_online,
            hashrate_ths: total.hashrate_ths.normalize(),
            effective_hashrate_ths: product(
                [total.hashrate_ths, assumptions.uptime],
                "effective_hashrate_ths",
            )?
            .normalize(),
            power_kw: total.power_kw()?,
            efficiency_j_th: total.efficiency_j_th()?,
            gross_btc_day: income.as_ref().map(|i| i.gross_btc.normalize()),
            net_btc_day: income.as_ref().map(|i| i.net_btc.normalize()),
            revenue_usd_day: income.as_ref().map(|i| i.revenue_usd.normalize()),
            power_cost_usd_day: total.cost_usd.normalize(),
            profit_usd_day: profit.map(|p| p.normalize()),
            hashprice_usd_ph_day: rates.map(|r| r.hashprice_usd_ph_day.normalize()),
            break_even_tariff_usd_kwh: income.as_ref().and_then(|i| i.break_even_tariff(total)),
            break_even_btc_price_usd: income
                .as_ref()
                .and_then(|i| mining::break_even_btc_price_usd(total.cost_usd, i.net_btc)),
            capex_usd: total.capex_usd.normalize(),
            payback_days: profit.and_then(|p| payback::static_payback_days(total.capex_usd, p)),
            dynamic_payback_days: dynamic.as_ref().and_then(Payback::day),
            dynamic_payback: dynamic,
            roi_percent: profit.and_then(|p| payback::roi_percent(total.capex_usd, p)),
            by_model,
            by_location,
            warnings: total.warnings(network.is_some()),
        })
    }
}

/// The figures of a fleet that is at hand.
///
/// # Errors
/// As of [`Fleet`].
pub fn portfolio(
    lines: &[MinerLine],
    network: Option<&Network>,
    assumptions: &Assumptions,
) -> Result<Portfolio, EconomicsError> {
    let mut fleet = Fleet::new(assumptions)?;
    for line in lines {
        fleet.add(line)?;
    }
    fleet.figures(network)
}

fn location(line: &MinerLine) -> &str {
    match line.location.as_deref().map(str::trim) {
        None | Some("") => UNASSIGNED,
        Some(location) => location,
    }
}

fn dynamic(
    total: &Tally,
    income: &Income,
    network: &Network,
    assumptions: &Assumptions,
) -> Result<Option<Payback>, EconomicsError> {
    payback::dynamic_payback(&DynamicCase {
        capex_usd: total.capex_usd,
        revenue_usd_day: income.revenue_usd,
        power_cost_usd_day: total.cost_usd,
        degradation_month: assumptions.degradation_month,
        price_drift_month: assumptions.price_drift_month,
        difficulty_drift_month: assumptions.difficulty_drift_month,
        halving: Some(HalvingClock {
            block_height: network.block_height,
            fees_btc_per_block: network.fees_btc_per_block,
        }),
    })
}

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;
