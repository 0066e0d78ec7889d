//! Owns the formulas of one hashrate against the network: subsidy, revenue, energy, break-evens, strike price.
//! Promises at least 12 significant digits in every rate for 1e3 <= difficulty <= 1e18 and a reward above 1e-3 BTC.
//! May be called by every module; needs nothing but its arguments.

use super::EconomicsError;
use super::exact::{self, dec, div, product, sub};
use rust_decimal::Decimal;
use serde::{Deserialize, Serialize};

/// Blocks between two halvings of the subsidy (consensus).
pub const HALVING_INTERVAL: u64 = 210_000;
/// Smallest difficulty the formulas accept.
pub const MIN_DIFFICULTY: Decimal = dec(1_000, 0);
/// Largest difficulty the formulas accept: times 2^32 it still fits a decimal's 28 digits.
pub const MAX_DIFFICULTY: Decimal = dec(1_000_000_000_000_000_000, 0);

const FIRST_SUBSIDY_SAT: u64 = 5_000_000_000;
/// Expected hashes per unit of difficulty, 2^32.
const HASHES_PER_DIFFICULTY: Decimal = dec(1 << 32, 0);
const SECONDS_PER_BLOCK: Decimal = dec(600, 0);
/// Hashes of one TH/s in a day, 1e12 * 86,400.
const HASHES_PER_TH_DAY: Decimal = dec(86_400_000_000_000_000, 0);
/// No block can carry more fees than there will ever be bitcoin.
const MAX_FEES_BTC: Decimal = dec(21_000_000, 0);
const HOURS_PER_DAY: Decimal = dec(24, 0);
/// $/PH/day per (J/TH * $/MWh): 24 h * 1e3 TH/PH / 1e6 W/MW.
const HASHPRICE_PER_J_TH_USD_MWH: Decimal = dec(24, 3);

/// A snapshot of the network: what revenue is computed from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// Price of one BTC in USD, >= 0.
    pub btc_price_usd: Decimal,
    /// Difficulty as a plain number, 1e3..=1e18.
    pub difficulty: Decimal,
    /// Height of the newest block; decides the subsidy.
    pub block_height: u64,
    /// Mean fees per block in BTC (144-block mean), 0..=21e6.
    #[serde(default)]
    pub fees_btc_per_block: Decimal,
}

impl Network {
    /// Checks every field against the range given at its definition.
    ///
    /// # Errors
    /// [`EconomicsError::OutOfRange`] naming the first field that is outside.
    pub fn check(&self) -> Result<(), EconomicsError> {
        exact::not_negative(self.btc_price_usd, "btc_price_usd")?;
        check_difficulty(self.difficulty)?;
        check_fees(self.fees_btc_per_block)
    }

    /// Reward per block in BTC: subsidy at this height plus mean fees.
    #[must_use]
    pub fn reward_btc(&self) -> Decimal {
        subsidy_btc(self.block_height).saturating_add(self.fees_btc_per_block)
    }

    /// BTC per TH/s and day, see [`btc_per_th_day`].
    ///
    /// # Errors
    /// As [`Network::check`].
    pub fn btc_per_th_day(&self) -> Result<Decimal, EconomicsError> {
        self.check()?;
        btc_per_th_day(self.difficulty, self.reward_btc())
    }

    /// Hashprice in $/PH/day, see [`hashprice_usd_ph_day`].
    ///
    /// # Errors
    /// As [`Network::check`], or [`EconomicsError::Overflow`] for an absurd price.
    pub fn hashprice_usd_ph_day(&self) -> Result<Decimal, EconomicsError> {
        hashprice_usd_ph_day(self.btc_per_th_day()?, self.btc_price_usd)
    }
}

/// Block subsidy in satoshi: `5_000_000_000 >> (height / 210_000)`, 0 from height 6,930,000 on (consensus).
#[must_use]
pub fn subsidy_sat(height: u64) -> u64 {
    // From 64 halvings on the shift itself would be undefined; the subsidy has been 0 since the 33rd.
    match u32::try_from(height / HALVING_INTERVAL) {
        Ok(halvings @ 0..64) => FIRST_SUBSIDY_SAT >> halvings,
        _ => 0,
    }
}

/// Block subsidy in BTC, exact to the satoshi.
#[must_use]
pub fn subsidy_btc(height: u64) -> Decimal {
    dec(subsidy_sat(height), 8)
}

/// Network rate in H/s: `difficulty * 2^32 / 600`. Preferred over a reported hashrate, whose one-day estimate has a
/// relative standard deviation of 8.3 %.
///
/// # Errors
/// [`EconomicsError::OutOfRange`] for a difficulty outside 1e3..=1e18.
pub fn network_hashrate_hs(difficulty: Decimal) -> Result<Decimal, EconomicsError> {
    const FIGURE: &str = "network_hashrate_hs";
    check_difficulty(difficulty)?;
    let hashes_per_block = product([difficulty, HASHES_PER_DIFFICULTY], FIGURE)?;
    div(hashes_per_block, SECONDS_PER_BLOCK, FIGURE)
}

/// BTC that one TH/s earns per day before fees: `1e12 * 86400 * reward / (difficulty * 2^32)`.
/// `reward_btc` is subsidy plus mean fees per block, in BTC.
///
/// # Errors
/// [`EconomicsError::OutOfRange`] for a difficulty outside 1e3..=1e18 or a negative reward,
/// [`EconomicsError::Overflow`] for a reward above 9e11 BTC.
pub fn btc_per_th_day(difficulty: Decimal, reward_btc: Decimal) -> Result<Decimal, EconomicsError> {
    const FIGURE: &str = "btc_per_th_day";
    check_difficulty(difficulty)?;
    exact::not_negative(reward_btc, "reward_btc")?;
    // One division, last: both products are large whole numbers, so no digit is lost before it.
    let earned = product([HASHES_PER_TH_DAY, reward_btc], FIGURE)?;
    let hashes_per_block = product([difficulty, HASHES_PER_DIFFICULTY], FIGURE)?;
    div(earned, hashes_per_block, FIGURE)
}

/// Hashprice in $/PH/day: BTC per TH and day * 1000 * price.
///
/// # Errors
/// [`EconomicsError::Overflow`] beyond 7.9e28.
pub fn hashprice_usd_ph_day(
    btc_per_th_day: Decimal,
    btc_price_usd: Decimal,
) -> Result<Decimal, EconomicsError> {
    product([btc_per_th_day, Decimal::ONE_THOUSAND, btc_price_usd], "hashprice_usd_ph_day")
}

/// Net of a gross amount: `gross * uptime * (1 - curtailed_share) * (1 - pool_fee)`; all three are shares in 0..=1.
///
/// # Errors
/// [`EconomicsError::OutOfRange`] for a share outside 0..=1.
pub fn net_of_gross(
    gross: Decimal,
    uptime: Decimal,
    curtailed_share: Decimal,
    pool_fee: Decimal,
) -> Result<Decimal, EconomicsError> {
    exact::share(uptime, "uptime")?;
    exact::share(curtailed_share, "curtailed_share")?;
    exact::share(pool_fee, "pool_fee")?;
    let kept = [gross, uptime, Decimal::ONE - curtailed_share, Decimal::ONE - pool_fee];
    product(kept, "net")
}

/// Energy in kWh of `power_w` watt over `hours_on` hours: `W / 1000 * hours * PUE`. Hours off cost nothing here and
/// earn nothing in [`net_of_gross`].
///
/// # Errors
/// [`EconomicsError::Overflow`] beyond 7.9e28.
pub fn energy_kwh(power_w: Decimal, hours_on: Decimal, pue: Decimal) -> Result<Decimal, EconomicsError> {
    product([power_w, dec(1, 3), hours_on, pue], "energy_kwh")
}

/// Energy in kWh of a day at `uptime` (share of the 24 hours).
///
/// # Errors
/// As [`energy_kwh`].
pub fn energy_kwh_day(power_w: Decimal, uptime: Decimal, pue: Decimal) -> Result<Decimal, EconomicsError> {
    energy_kwh(power_w, HOURS_PER_DAY.saturating_mul(uptime), pue)
}

/// Hashrate after `months` of degradation: `hashrate * (1 - degradation_month)^months`.
///
/// # Errors
/// [`EconomicsError::OutOfRange`] for a degradation outside 0..=1.
pub fn degraded_hashrate_ths(
    hashrate_ths: Decimal,
    degradation_month: Decimal,
    months: u32,
) -> Result<Decimal, EconomicsError> {
    const FIGURE: &str = "degraded_hashrate_ths";
    exact::share(degradation_month, "degradation_month")?;
    let left = sub(Decimal::ONE, degradation_month, FIGURE)?;
    let factor = exact::power(left, months).ok_or(EconomicsError::Overflow { figure: FIGURE })?;
    product([hashrate_ths, factor], FIGURE)
}

/// Tariff in $/kWh at which revenue pays exactly for its energy: net revenue per day / kWh per day.
/// `None` without energy.
#[must_use]
pub fn break_even_tariff_usd_kwh(revenue_usd_day: Decimal, energy_kwh_day: Decimal) -> Option<Decimal> {
    revenue_usd_day.checked_div(energy_kwh_day)
}

/// Hashprice in $/PH/day at which revenue pays exactly for energy: `J/TH * tariff * 24 / (1 - fee)`.
/// `None` when the pool keeps everything.
#[must_use]
pub fn break_even_hashprice_usd_ph_day(
    efficiency_j_th: Decimal,
    tariff_usd_kwh: Decimal,
    pool_fee: Decimal,
) -> Option<Decimal> {
    efficiency_j_th
        .checked_mul(tariff_usd_kwh)?
        .checked_mul(HOURS_PER_DAY)?
        .checked_div(Decimal::ONE.checked_sub(pool_fee)?)
}

/// BTC price in USD at which revenue pays exactly for energy: energy cost / net BTC. `None` when nothing is mined.
#[must_use]
pub fn break_even_btc_price_usd(power_cost_usd_day: Decimal, net_btc_day: Decimal) -> Option<Decimal> {
    power_cost_usd_day.checked_div(net_btc_day)
}

/// Strike price in $/MWh above which a class loses money by running: `hashprice * (1 - fee) / (J/TH * 0.024)`.
/// `None` for an efficiency of 0.
#[must_use]
pub fn strike_usd_mwh(
    hashprice_usd_ph_day: Decimal,
    efficiency_j_th: Decimal,
    pool_fee: Decimal,
) -> Option<Decimal> {
    hashprice_usd_ph_day
        .checked_mul(Decimal::ONE.checked_sub(pool_fee)?)?
        .checked_div(efficiency_j_th.checked_mul(HASHPRICE_PER_J_TH_USD_MWH)?)
}

/// Efficiency in J/TH, the same number as W per TH/s; 0 without hashrate.
///
/// # Errors
/// [`EconomicsError::Overflow`] for a hashrate so small that the quotient leaves the decimal's range.
pub fn efficiency_j_th(power_w: Decimal, hashrate_ths: Decimal) -> Result<Decimal, EconomicsError> {
    if hashrate_ths.is_zero() {
        return Ok(Decimal::ZERO);
    }
    div(power_w, hashrate_ths, "efficiency_j_th")
}

/// Profit of a day in USD: net revenue less power cost.
///
/// # Errors
/// [`EconomicsError::Overflow`] beyond 7.9e28.
pub fn profit_usd_day(
    revenue_usd_day: Decimal,
    power_cost_usd_day: Decimal,
) -> Result<Decimal, EconomicsError> {
    sub(revenue_usd_day, power_cost_usd_day, "profit_usd_day")
}

pub(super) fn check_difficulty(difficulty: Decimal) -> Result<(), EconomicsError> {
    exact::within((MIN_DIFFICULTY..=MAX_DIFFICULTY).contains(&difficulty), "difficulty")
}

pub(super) fn check_fees(fees_btc_per_block: Decimal) -> Result<(), EconomicsError> {
    exact::within((Decimal::ZERO..=MAX_FEES_BTC).contains(&fees_btc_per_block), "fees_btc_per_block")
}

#[cfg(test)]
mod tests;
