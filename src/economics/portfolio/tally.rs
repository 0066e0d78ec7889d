//! Owns the adding up of miners into groups, and what a group earns at given rates.
//! Promises that groups are summed as short exact decimals before any rate enters.
//! May be called by the portfolio only.

use super::super::exact::{add, div, product};
use super::super::miner::{MinerLine, MinerStatus};
use super::super::mining::{self, Network};
use super::super::{Assumptions, EconomicsError};
use super::Warning;
use rust_decimal::Decimal;

/// What one TH/s earns, from a snapshot and the assumptions.
pub(super) struct Rates {
    btc_per_th_day: Decimal,
    btc_price_usd: Decimal,
    pub(super) hashprice_usd_ph_day: Decimal,
    uptime: Decimal,
    pool_fee: Decimal,
}

impl Rates {
    pub(super) fn new(network: &Network, assumptions: &Assumptions) -> Result<Self, EconomicsError> {
        Ok(Self {
            btc_per_th_day: network.btc_per_th_day()?,
            btc_price_usd: network.btc_price_usd,
            hashprice_usd_ph_day: network.hashprice_usd_ph_day()?,
            uptime: assumptions.uptime,
            pool_fee: assumptions.pool_fee,
        })
    }
}

/// What a group of miners earns in a day.
pub(super) struct Income {
    pub(super) gross_btc: Decimal,
    pub(super) net_btc: Decimal,
    pub(super) revenue_usd: Decimal,
    pub(super) profit_usd: Decimal,
}

impl Income {
    pub(super) fn break_even_tariff(&self, tally: &Tally) -> Option<Decimal> {
        mining::break_even_tariff_usd_kwh(self.revenue_usd, tally.energy_kwh)
    }
}

/// The additive facts of a group of miners. Groups are added up from these, which are short exact decimals, and only
/// then multiplied by rates: so the groups' sums and the totals agree.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) miners_total: u64,
    pub(super) miners_online: u64,
    pub(super) hashrate_ths: Decimal,
    power_w: Decimal,
    energy_kwh: Decimal,
    pub(super) cost_usd: Decimal,
    pub(super) capex_usd: Decimal,
    priced: bool,
    unpriced: bool,
}

impl Tally {
    pub(super) fn of(line: &MinerLine, assumptions: &Assumptions) -> Result<Self, EconomicsError> {
        let quantity = Decimal::from(line.quantity);
        let price = line.purchase_price_usd;
        let mut tally = Self {
            miners_total: line.quantity,
            capex_usd: product([price.unwrap_or_default(), quantity], "capex_usd")?,
            priced: line.quantity > 0 && price.is_some(),
            unpriced: line.quantity > 0 && price.is_none(),
            ..Self::default()
        };
        if line.status == MinerStatus::Online {
            let tariff = line.tariff_usd_kwh.unwrap_or(assumptions.default_tariff_usd_kwh);
            tally.miners_online = tally.miners_total;
            tally.hashrate_ths = product([line.hashrate_ths, quantity], "hashrate_ths")?;
            tally.power_w = product([line.power_w, quantity], "power_kw")?;
            tally.energy_kwh = mining::energy_kwh_day(tally.power_w, assumptions.uptime, assumptions.pue)?;
            tally.cost_usd = product([tally.energy_kwh, tariff], "power_cost_usd_day")?;
        }
        Ok(tally)
    }

    pub(super) fn merge(&mut self, other: &Self) -> Result<(), EconomicsError> {
        self.miners_total = self.miners_total.saturating_add(other.miners_total);
        self.miners_online = self.miners_online.saturating_add(other.miners_online);
        self.hashrate_ths = add(self.hashrate_ths, other.hashrate_ths, "hashrate_ths")?;
        self.power_w = add(self.power_w, other.power_w, "power_kw")?;
        self.energy_kwh = add(self.energy_kwh, other.energy_kwh, "energy_kwh")?;
        self.cost_usd = add(self.cost_usd, other.cost_usd, "power_cost_usd_day")?;
        self.capex_usd = add(self.capex_usd, other.capex_usd, "capex_usd")?;
        self.priced |= other.priced;
        self.unpriced |= other.unpriced;
        Ok(())
    }

    pub(super) fn power_kw(&self) -> Result<Decimal, EconomicsError> {
        div(self.power_w, Decimal::ONE_THOUSAND, "power_kw").map(|kw| kw.normalize())
    }

    pub(super) fn efficiency_j_th(&self) -> Result<Decimal, EconomicsError> {
        mining::efficiency_j_th(self.power_w, self.hashrate_ths).map(|e| e.normalize())
    }

    pub(super) fn income(&self, rates: &Rates) -> Result<Income, EconomicsError> {
        let gross_btc = product([self.hashrate_ths, rates.btc_per_th_day], "gross_btc_day")?;
        let net_btc = mining::net_of_gross(gross_btc, rates.uptime, Decimal::ZERO, rates.pool_fee)?;
        let revenue_usd = product([net_btc, rates.btc_price_usd], "revenue_usd_day")?;
        Ok(Income {
            gross_btc,
            net_btc,
            revenue_usd,
            profit_usd: mining::profit_usd_day(revenue_usd, self.cost_usd)?,
        })
    }

    pub(super) fn warnings(&self, snapshot: bool) -> Vec<Warning> {
        let mut warnings = Vec::new();
        if !snapshot {
            warnings.push(Warning::NoSnapshot);
        }
        if self.priced && self.unpriced {
            warnings.push(Warning::CapexIncomplete);
        }
        warnings
    }
}
