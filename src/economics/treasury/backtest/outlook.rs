//! Owns what the market of a backtest's day looks like against the year before it: hashprice percentile, Puell multiple.
//! Promises that a day without a full year behind it has no such figure, and that nothing looks ahead.
//! May be called by the backtest only.

use super::Day;
use crate::economics::difficulty::BLOCK_SECONDS;
use crate::economics::exact::product;
use crate::economics::mining::subsidy_btc;
use crate::economics::treasury::statistics::{PUELL_DAYS, percentile_rank, puell_multiple};
use crate::economics::treasury::strategy::{Strategy, StrategyKind};
use rust_decimal::Decimal;

const BLOCKS_PER_DAY: u64 = 86_400 / BLOCK_SECONDS;

/// The series that are compared with their year; none when a day of them is missing or nobody looks at them.
pub(super) struct Outlook {
    hashprice: Option<Vec<Decimal>>,
    issuance_usd: Option<Vec<Decimal>>,
}

impl Outlook {
    pub(super) fn new(days: &[Day], strategies: &[Strategy]) -> Self {
        if !strategies.iter().any(|strategy| strategy.kind() == StrategyKind::HashpriceCycle) {
            return Self { hashprice: None, issuance_usd: None };
        }
        Self {
            hashprice: days.iter().map(|day| day.hashprice_usd_ph_day).collect(),
            issuance_usd: days.iter().map(issuance_usd).collect(),
        }
    }

    pub(super) fn hashprice_percentile(&self, at: usize) -> Option<Decimal> {
        let hashprice = self.hashprice.as_ref()?;
        let first = (at + 1).checked_sub(PUELL_DAYS)?;
        percentile_rank(&hashprice[first..=at], hashprice[at])
    }

    pub(super) fn puell_multiple(&self, at: usize) -> Option<Decimal> {
        puell_multiple(&self.issuance_usd.as_ref()?[..=at])
    }
}

/// New bitcoin of a day in USD: 144 subsidies.
fn issuance_usd(day: &Day) -> Option<Decimal> {
    let subsidies = [subsidy_btc(day.block_height?), Decimal::from(BLOCKS_PER_DAY), day.price_usd];
    product(subsidies, "issuance_usd").ok()
}
