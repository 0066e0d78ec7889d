//! Owns the backtest: a set of strategies along a series of daily prices, beside holding everything.
//! Promises to pay the opex it claims to pay or to say what it could not, and to refuse a series without prices.
//! May be called by every module; needs nothing but its arguments.
//!
//! A day: what is mined arrives, at the day's price as its cost; the strategies decide by that price; their sales fill at it
//! less the fee; opex is paid from the cash. Opex that the cash does not cover is owed: it is reported as shortfall, counts
//! against the equity, and is paid first when there is cash again. Holding is the same run without strategies, so it mines
//! the same and owes what it cannot pay.

use super::TreasuryError;
use super::lots::{Lot, LotMethod};
use super::money::MONTH_DAYS;
use super::plan::{Caps, Unevaluated, check_set, plan};
use super::strategy::{Limit, Market, Progress, Strategy, StrategyKind, TreasuryState};
use crate::economics::EconomicsError;
use crate::economics::exact::{self, dec, product, sub};
use chrono::NaiveDate;
use ledger::Ledger;
use outlook::Outlook;
use rust_decimal::Decimal;
use serde::{Deserialize, Serialize};

mod ledger;
mod outlook;
mod performance;

pub use performance::Performance;

/// A day of the series.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Day {
    /// The day, UTC; one after the day before it in the series.
    pub date: NaiveDate,
    /// Price of one BTC in USD, > 0.
    pub price_usd: Decimal,
    /// Satoshi mined on the day.
    #[serde(default)]
    pub production_sat: u64,
    /// Operating expenses of the day in USD, >= 0.
    #[serde(default)]
    pub opex_usd: Decimal,
    /// Height of the newest block; halving_cycle and hashprice_cycle need it.
    #[serde(default)]
    pub block_height: Option<u64>,
    /// Hashprice in $/PH/day, >= 0; hashprice_cycle needs it.
    #[serde(default)]
    pub hashprice_usd_ph_day: Option<Decimal>,
}

/// What the treasury holds before the first day.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Start {
    /// Lots held; those acquired later than the first day count as acquired on it.
    pub lots: Vec<Lot>,
    /// Cash in USD, >= 0.
    pub cash_usd: Decimal,
}

/// How it sells.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Rules {
    /// The strategies, each at most once; none.
    pub strategies: Vec<Strategy>,
    /// The caps.
    pub caps: Caps,
    /// Share of the proceeds that the venue keeps, 0..1; 0.001.
    pub fee: Decimal,
    /// Which lots are sold first, not specific ones; fifo.
    pub method: LotMethod,
    /// Days of a cycle, > 0; 365. The first begins on the first day.
    pub cycle_days: u32,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            strategies: Vec::new(),
            caps: Caps::default(),
            fee: dec(1, 3),
            method: LotMethod::default(),
            cycle_days: 365,
        }
    }
}

impl Rules {
    /// Checks every field against the range given at its definition.
    ///
    /// # Errors
    /// [`EconomicsError::OutOfRange`] naming the first field that is outside.
    pub fn check(&self) -> Result<(), EconomicsError> {
        check_set(&self.strategies)?;
        self.caps.check()?;
        super::strategy::market::check_fee(self.fee)?;
        // The lots that are mined on the way have no names to be chosen by.
        exact::within(!matches!(self.method, LotMethod::SpecificId(_)), "method")?;
        exact::within(self.cycle_days > 0, "cycle_days")
    }
}

/// A sale of a backtest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BacktestSale {
    /// The day.
    pub date: NaiveDate,
    /// The strategy that sold.
    pub strategy: StrategyKind,
    /// Satoshi sold.
    pub sat: u64,
    /// Price in USD per BTC.
    pub price_usd: Decimal,
    /// Fee in USD.
    pub fee_usd: Decimal,
    /// Realised gain in USD.
    pub gain_usd: Decimal,
    /// What kept it from selling more.
    pub limit: Option<Limit>,
}

/// Days on which a strategy lacked an input.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct UnevaluatedDays {
    /// The strategy and what it lacked.
    #[serde(flatten)]
    pub what: Unevaluated,
    /// On how many days.
    pub days: u32,
}

/// A set of strategies along a series of prices, beside holding.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Backtest {
    /// First day of the series.
    pub first_day: NaiveDate,
    /// Last day of the series.
    pub last_day: NaiveDate,
    /// What the strategies made of it.
    pub strategies: Performance,
    /// What holding makes of it.
    pub hodl: Performance,
    /// Every sale, in order.
    pub sales: Vec<BacktestSale>,
    /// What could not be evaluated, and how often.
    pub unevaluated: Vec<UnevaluatedDays>,
}

/// Runs the rules along the days. The same input gives the same result.
///
/// # Errors
/// [`TreasuryError::NoPrices`] for an empty series, [`TreasuryError::PriceGap`] for one whose days do not follow each other,
/// [`EconomicsError::OutOfRange`] for an input outside its range, [`EconomicsError::Overflow`] for figures too large.
pub fn backtest(days: &[Day], start: &Start, rules: &Rules) -> Result<Backtest, TreasuryError> {
    rules.check()?;
    exact::not_negative(start.cash_usd, "cash_usd")?;
    check_days(days)?;
    let sold = run(days, start, rules, &rules.strategies)?;
    let held = run(days, start, rules, &[])?;
    Ok(Backtest {
        first_day: sold.first_day,
        last_day: sold.last_day,
        strategies: sold.performance,
        hodl: held.performance,
        sales: sold.sales,
        unevaluated: sold.unevaluated,
    })
}

fn check_days(days: &[Day]) -> Result<(), TreasuryError> {
    for day in days {
        exact::within(day.price_usd > Decimal::ZERO, "price_usd")?;
        exact::not_negative(day.opex_usd, "opex_usd")?;
        exact::not_negative(day.hashprice_usd_ph_day.unwrap_or_default(), "hashprice_usd_ph_day")?;
    }
    for pair in days.windows(2) {
        let date = pair[0].date.succ_opt().ok_or(EconomicsError::OutOfRange { field: "date" })?;
        if pair[1].date != date {
            return Err(TreasuryError::PriceGap { date });
        }
    }
    Ok(())
}

struct Run {
    first_day: NaiveDate,
    last_day: NaiveDate,
    performance: Performance,
    sales: Vec<BacktestSale>,
    unevaluated: Vec<UnevaluatedDays>,
}

fn run(days: &[Day], start: &Start, rules: &Rules, strategies: &[Strategy]) -> Result<Run, TreasuryError> {
    let (Some(first), Some(last)) = (days.first(), days.last()) else {
        return Err(TreasuryError::NoPrices);
    };
    let mut ledger = Ledger::new(start, first, rules)?;
    let outlook = Outlook::new(days, strategies);
    let closes: Vec<_> = days.iter().map(|day| day.price_usd).collect();
    let (mut sales, mut unevaluated) = (Vec::new(), Vec::new());
    let mut progress = Progress::new(first.date, ledger.sat);
    let mut high = first.price_usd;
    for (at, day) in days.iter().enumerate() {
        if (day.date - progress.started_on).num_days() >= i64::from(rules.cycle_days) {
            progress.renew(day.date, ledger.sat);
            high = day.price_usd;
        }
        high = high.max(day.price_usd);
        ledger.open(day)?;
        let state = TreasuryState {
            inventory_sat: ledger.sat,
            average_cost_usd: ledger.average_cost_usd()?,
            cash_usd: sub(ledger.cash_usd, ledger.owed_usd, "cash_usd")?,
            // A sale of a backtest fills at once.
            incoming_usd: Decimal::ZERO,
            opex_usd_month: product([day.opex_usd, MONTH_DAYS], "opex_usd_month")?,
            progress,
        };
        let market = Market {
            date: day.date,
            price_usd: day.price_usd,
            fee: rules.fee,
            high_usd: Some(high),
            closes_usd: &closes[..=at],
            production_sat: Some(day.production_sat),
            block_height: day.block_height,
            hashprice_percentile: outlook.hashprice_percentile(at),
            puell_multiple: outlook.puell_multiple(at),
        };
        let plan = plan(strategies, &rules.caps, &state, &market)?;
        progress = state.progress;
        for signal in plan.signals.iter().filter(|signal| signal.sat > 0) {
            let booked = ledger.sell(signal.sat, day.price_usd)?;
            let strategy = strategies.iter().find(|strategy| strategy.kind() == signal.strategy);
            progress.record(day.date, strategy, signal.sat);
            sales.push(BacktestSale {
                date: day.date,
                strategy: signal.strategy,
                sat: signal.sat,
                price_usd: day.price_usd,
                fee_usd: booked.fee_usd,
                gain_usd: booked.gain_usd,
                limit: signal.limit,
            });
        }
        plan.unevaluated.iter().for_each(|what| count(&mut unevaluated, *what));
        ledger.close(day)?;
    }
    Ok(Run {
        first_day: first.date,
        last_day: last.date,
        performance: ledger.into_performance(last)?,
        sales,
        unevaluated,
    })
}

fn count(unevaluated: &mut Vec<UnevaluatedDays>, what: Unevaluated) {
    match unevaluated.iter_mut().find(|known| known.what == what) {
        Some(known) => known.days += 1,
        None => unevaluated.push(UnevaluatedDays { what, days: 1 }),
    }
}

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;
