//! Owns payback: static payback and ROI from today's profit, dynamic payback under drift, degradation and halvings.
//! Promises the right day from at most 600 month steps and a dozen halvings; beyond 50 years the answer is "never".
//! May be called by every module; needs nothing but its arguments.

use super::EconomicsError;
use super::exact::{self, add, dec, div, product, sub};
use super::mining::{HALVING_INTERVAL, check_fees, subsidy_sat};
use rust_decimal::Decimal;
use rust_decimal::prelude::ToPrimitive;
use serde::{Deserialize, Serialize};

/// Length of a month in days, 365.25 / 12.
pub const MONTH_DAYS: Decimal = dec(304_375, 4);
/// How far the dynamic payback looks: 50 years.
pub const HORIZON_MONTHS: u32 = 600;
const BLOCKS_PER_DAY: Decimal = dec(144, 0);
const DAYS_PER_YEAR: Decimal = dec(365, 0);
/// Decimals of a day kept before rounding up: swallows the last digits' division error, far below a second.
const DAY_DECIMALS: u32 = 12;

/// Days until today's profit has paid for the fleet: capex / profit per day.
/// `None` without a capex or when the profit is not positive.
#[must_use]
pub fn static_payback_days(capex_usd: Decimal, profit_usd_day: Decimal) -> Option<Decimal> {
    if capex_usd <= Decimal::ZERO || profit_usd_day <= Decimal::ZERO {
        return None;
    }
    capex_usd.checked_div(profit_usd_day)
}

/// Yearly return in percent at today's profit: `100 * profit per day * 365 / capex`, negative for a loss.
/// `None` without a capex.
#[must_use]
pub fn roi_percent(capex_usd: Decimal, profit_usd_day: Decimal) -> Option<Decimal> {
    if capex_usd <= Decimal::ZERO {
        return None;
    }
    profit_usd_day.checked_mul(DAYS_PER_YEAR)?.checked_mul(Decimal::ONE_HUNDRED)?.checked_div(capex_usd)
}

/// Where the halvings lie for a dynamic payback, counted at 144 blocks a day.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HalvingClock {
    /// Height of the newest block on day 0.
    pub block_height: u64,
    /// Mean fees per block in BTC, constant over the horizon: a halving cuts the subsidy, not the fees.
    pub fees_btc_per_block: Decimal,
}

/// What a dynamic payback starts from. Drifts are relative changes per month of 30.4375 days.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DynamicCase {
    /// Money to be earned back, USD.
    pub capex_usd: Decimal,
    /// Net revenue on day 0, USD.
    pub revenue_usd_day: Decimal,
    /// Power cost per day in USD, constant: degradation costs hashrate, not power.
    pub power_cost_usd_day: Decimal,
    /// Hashrate lost per month, 0..=1.
    pub degradation_month: Decimal,
    /// Change of the BTC price per month, > -1.
    pub price_drift_month: Decimal,
    /// Change of the difficulty per month, > -1.
    pub difficulty_drift_month: Decimal,
    /// `None` leaves the halvings out.
    pub halving: Option<HalvingClock>,
}

/// When a fleet has paid for itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Payback {
    /// On this day, counted from 1, cumulative profit reaches the capex.
    Day(u32),
    /// Not within the horizon of 50 years.
    Never {
        /// Month, counted from 0, in which running first stops being profitable; `None` if it never does.
        unprofitable_month: Option<u32>,
        /// Cumulative profit in USD until then (over the whole horizon if it stays profitable).
        earned_usd: Decimal,
    },
}

impl Payback {
    /// The day, if there is one.
    #[must_use]
    pub const fn day(&self) -> Option<u32> {
        match self {
            Self::Day(day) => Some(*day),
            Self::Never { .. } => None,
        }
    }
}

/// First day on which cumulative profit reaches the capex, with monthly drift and halvings.
///
/// Revenue of month `m` (from 0) is `revenue * f^m`, `f = (1 - degradation) * (1 + price drift) / (1 + difficulty
/// drift)`, times the reward after the halvings so far over today's. Profit is constant between two month ends or
/// halvings, so the day follows by division instead of by counting days. The fleet is taken to run throughout: months
/// of loss are subtracted from what was earned. `None` without a capex.
///
/// # Errors
/// [`EconomicsError::OutOfRange`] for a drift, degradation or fee outside its range,
/// [`EconomicsError::Overflow`] when sums exceed 7.9e28.
pub fn dynamic_payback(case: &DynamicCase) -> Result<Option<Payback>, EconomicsError> {
    const FIGURE: &str = "dynamic_payback_days";
    if case.capex_usd <= Decimal::ZERO {
        return Ok(None);
    }
    let factor = month_factor(case)?;
    let mut reward = RewardPath::new(case.halving.as_ref())?;
    let (mut day, mut month_end) = (Decimal::ZERO, Decimal::ZERO);
    let (mut revenue, mut earned) = (case.revenue_usd_day, Decimal::ZERO);
    let mut unprofitable = None;
    'horizon: for month in 0..HORIZON_MONTHS {
        month_end = add(month_end, MONTH_DAYS, FIGURE)?;
        while day < month_end {
            let halving_day = reward.next_day.filter(|next| *next <= month_end);
            let until = halving_day.unwrap_or(month_end);
            let revenue_day = product([revenue, reward.share()?], FIGURE)?;
            let profit = sub(revenue_day, case.power_cost_usd_day, FIGURE)?;
            if profit <= Decimal::ZERO {
                unprofitable.get_or_insert((month, earned));
                // Revenue that cannot rise again cannot pay again: the common case need not walk 50 years.
                if factor <= Decimal::ONE && case.power_cost_usd_day >= Decimal::ZERO {
                    break 'horizon;
                }
            }
            let gain = product([profit, sub(until, day, FIGURE)?], FIGURE)?;
            let total = add(earned, gain, FIGURE)?;
            if profit > Decimal::ZERO && total >= case.capex_usd {
                let left = sub(case.capex_usd, earned, FIGURE)?;
                let at = add(day, div(left, profit, FIGURE)?, FIGURE)?;
                return whole_day(at).map(|day| Some(Payback::Day(day)));
            }
            (day, earned) = (until, total);
            if halving_day.is_some() {
                reward.halve();
            }
        }
        revenue = product([revenue, factor], FIGURE)?;
    }
    let (unprofitable_month, earned_usd) = match unprofitable {
        Some((month, earned_then)) => (Some(month), earned_then),
        None => (None, earned),
    };
    Ok(Some(Payback::Never { unprofitable_month, earned_usd }))
}

fn month_factor(case: &DynamicCase) -> Result<Decimal, EconomicsError> {
    const FIGURE: &str = "dynamic_payback_days";
    exact::share(case.degradation_month, "degradation_month")?;
    exact::drift(case.price_drift_month, "price_drift_month")?;
    exact::drift(case.difficulty_drift_month, "difficulty_drift_month")?;
    let hashrate = sub(Decimal::ONE, case.degradation_month, FIGURE)?;
    let price = add(Decimal::ONE, case.price_drift_month, FIGURE)?;
    let difficulty = add(Decimal::ONE, case.difficulty_drift_month, FIGURE)?;
    div(product([hashrate, price], FIGURE)?, difficulty, FIGURE)
}

fn whole_day(at: Decimal) -> Result<u32, EconomicsError> {
    at.round_dp(DAY_DECIMALS)
        .ceil()
        .to_u32()
        .ok_or(EconomicsError::Overflow { figure: "dynamic_payback_days" })
}

/// The block reward along the horizon, as a share of the reward on day 0.
struct RewardPath {
    subsidy_sat: u64,
    fees_btc: Decimal,
    first_btc: Decimal,
    next_day: Option<Decimal>,
}

impl RewardPath {
    fn new(clock: Option<&HalvingClock>) -> Result<Self, EconomicsError> {
        let Some(clock) = clock else {
            return Ok(Self {
                subsidy_sat: 0,
                fees_btc: Decimal::ZERO,
                first_btc: Decimal::ZERO,
                next_day: None,
            });
        };
        check_fees(clock.fees_btc_per_block)?;
        let subsidy = subsidy_sat(clock.block_height);
        let blocks_left = HALVING_INTERVAL - clock.block_height % HALVING_INTERVAL;
        let days_left = div(Decimal::from(blocks_left), BLOCKS_PER_DAY, "dynamic_payback_days")?;
        Ok(Self {
            subsidy_sat: subsidy,
            fees_btc: clock.fees_btc_per_block,
            first_btc: dec(subsidy, 8).saturating_add(clock.fees_btc_per_block),
            next_day: (subsidy > 0).then_some(days_left),
        })
    }

    fn share(&self) -> Result<Decimal, EconomicsError> {
        // Without halvings, or without any reward at all, there is nothing that could shrink.
        if self.first_btc.is_zero() {
            return Ok(Decimal::ONE);
        }
        let now = dec(self.subsidy_sat, 8).saturating_add(self.fees_btc);
        div(now, self.first_btc, "dynamic_payback_days")
    }

    fn halve(&mut self) {
        self.subsidy_sat >>= 1;
        let interval = Decimal::from(HALVING_INTERVAL) / BLOCKS_PER_DAY;
        self.next_day =
            self.next_day.filter(|_| self.subsidy_sat > 0).and_then(|day| day.checked_add(interval));
    }
}

#[cfg(test)]
mod tests;
