//! What the strategies of an account look at: the market as its prices tell, the account, and what it has sold.

use chrono::{DateTime, Days, NaiveDate, TimeDelta, Utc};
use rust_decimal::Decimal;
use sqlx::PgConnection;

use super::Account;
use crate::domain::treasury::price::{self, Close, Price};
use crate::economics::Network;
use crate::economics::mining::subsidy_btc;
use crate::economics::treasury::statistics::{PUELL_DAYS, VOLATILITY_DAYS, percentile_rank, puell_multiple};
use crate::economics::treasury::strategy::Strategy;
use crate::economics::treasury::{
    Inventory, Market, Plan, Progress, StrategyKind, TreasuryState, plan as plan_of,
};
use crate::projection::HandlerError;
use crate::read_model::treasury_write;

/// Days of a cycle.
const CYCLE: TimeDelta = TimeDelta::days(365);
const BLOCKS_PER_DAY: i64 = 144;

/// What the strategies of the account would sell at this price.
pub(super) async fn plan(
    conn: &mut PgConnection,
    account: &Account,
    inventory: &Inventory,
    price: &Price,
    now: DateTime<Utc>,
) -> Result<Plan, HandlerError> {
    let settings = &account.settings;
    let strategies = &settings.strategies.0;
    if strategies.is_empty() {
        return Ok(Plan::default());
    }
    let today = now.date_naive();
    let cycle = cycle_begin(settings.cycle_started_at, now);
    let (progress, mined_sat) = progress(conn, account, inventory, cycle, now).await?;
    let chosen = |kind| strategies.iter().any(|strategy| strategy.kind() == kind);
    let days = if chosen(StrategyKind::HashpriceCycle) { PUELL_DAYS } else { VOLATILITY_DAYS + 1 };
    let compares = chosen(StrategyKind::HashpriceCycle) || chosen(StrategyKind::VolatilityTrigger);
    let closes = if compares { closes(conn, today, days).await? } else { Vec::new() };
    let high_usd = if chosen(StrategyKind::TrailingStop) {
        price::high_since(conn, cycle).await?.map(|high| high.max(price.price_usd))
    } else {
        None
    };
    let closes_usd: Vec<Decimal> = closes.iter().map(|close| close.price_usd).collect();
    let market = Market {
        date: today,
        price_usd: price.price_usd,
        fee: settings.fee_share,
        high_usd,
        closes_usd: &closes_usd,
        production_sat: Some(mined_sat),
        block_height: Some(price.block_height.unsigned_abs()),
        hashprice_percentile: hashprice_percentile(&closes),
        puell_multiple: puell(&closes),
    };
    let state = TreasuryState {
        // What is promised to open sales is no longer there for the strategies.
        inventory_sat: inventory.sat.saturating_sub(account.sums.reserved_sat.unsigned_abs()),
        average_cost_usd: inventory.average_cost_usd,
        cash_usd: account.cash_usd,
        opex_usd_month: account.settings.opex_usd_month,
        progress,
    };
    Ok(plan_of(strategies, &settings.caps(), &state, &market)?)
}

/// When the cycle began that is open at `now`.
fn cycle_begin(started_at: DateTime<Utc>, now: DateTime<Utc>) -> DateTime<Utc> {
    let cycles = ((now - started_at).num_days() / CYCLE.num_days()).max(0);
    started_at + TimeDelta::days(cycles * CYCLE.num_days())
}

/// What was sold in the cycle and in the windows of days, and what was mined today.
async fn progress(
    conn: &mut PgConnection,
    account: &Account,
    inventory: &Inventory,
    cycle: DateTime<Utc>,
    now: DateTime<Utc>,
) -> Result<(Progress, u64), HandlerError> {
    let user = &account.settings.user_id;
    let sold = treasury_write::sold(conn, user, cycle, now).await?;
    let (came_in, mined_sat) = treasury_write::came_in(conn, user, cycle, now.date_naive()).await?;
    // Promised is not sold: it is still held.
    let gone: i64 = sold.iter().filter(|sold| sold.in_cycle).map(|sold| sold.sat).sum();
    let gone = gone - account.sums.reserved_sat;
    let held = i64::try_from(inventory.sat).unwrap_or(i64::MAX);
    let initial_sat = held.saturating_add(gone).saturating_sub(came_in).max(0).unsigned_abs();
    let strategy_of = |name: &Option<String>| -> Option<&Strategy> {
        let name = name.as_deref()?;
        account.settings.strategies.iter().find(|strategy| strategy.kind().as_str() == name)
    };
    let mut progress = Progress::new(cycle.date_naive(), initial_sat);
    for earlier in sold.iter().filter(|sold| !sold.in_cycle) {
        progress.record(earlier.date, strategy_of(&earlier.strategy), earlier.sat.unsigned_abs());
    }
    progress.renew(cycle.date_naive(), initial_sat);
    for sale in sold.iter().filter(|sold| sold.in_cycle) {
        progress.record(sale.date, strategy_of(&sale.strategy), sale.sat.unsigned_abs());
    }
    Ok((progress, mined_sat.unsigned_abs()))
}

/// The closes of the newest days up to today, as far back as none is missing.
async fn closes(conn: &mut PgConnection, today: NaiveDate, days: usize) -> Result<Vec<Close>, sqlx::Error> {
    let back = u64::try_from(days.saturating_sub(1)).unwrap_or_default();
    let from = today.checked_sub_days(Days::new(back)).unwrap_or(today);
    let mut closes = price::closes(conn, from, today).await?;
    let unbroken = closes
        .iter()
        .rev()
        .zip(0_u64..)
        .take_while(|(close, ago)| today.checked_sub_days(Days::new(*ago)) == Some(close.date));
    let count = unbroken.count();
    closes.drain(..closes.len() - count);
    Ok(closes)
}

/// Where today's hashprice stands in the past year; none without a year of closes.
fn hashprice_percentile(closes: &[Close]) -> Option<Decimal> {
    let first = closes.len().checked_sub(PUELL_DAYS)?;
    let year: Option<Vec<Decimal>> = closes[first..].iter().map(hashprice).collect();
    let year = year?;
    percentile_rank(&year, *year.last()?)
}

fn hashprice(close: &Close) -> Option<Decimal> {
    let network = Network {
        btc_price_usd: close.price_usd,
        difficulty: close.difficulty,
        block_height: close.block_height.unsigned_abs(),
        fees_btc_per_block: close.fees_btc_per_block,
    };
    network.hashprice_usd_ph_day().ok()
}

/// Today's issuance in USD over its mean of a year; none without a year of closes.
fn puell(closes: &[Close]) -> Option<Decimal> {
    let issuance = |close: &Close| {
        let coins = subsidy_btc(close.block_height.unsigned_abs()).checked_mul(BLOCKS_PER_DAY.into())?;
        coins.checked_mul(close.price_usd)
    };
    let issued: Option<Vec<Decimal>> = closes.iter().map(issuance).collect();
    puell_multiple(&issued?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cycle_begins_again_after_a_year() {
        let start = DateTime::UNIX_EPOCH;
        for (days, began) in [(0, 0), (364, 0), (365, 365), (729, 365), (730, 730)] {
            assert_eq!(cycle_begin(start, start + TimeDelta::days(days)), start + TimeDelta::days(began));
        }
        assert_eq!(cycle_begin(start, start - TimeDelta::days(1)), start, "a clock that was set back");
    }

    #[test]
    fn a_year_is_needed_for_what_is_compared_with_one() {
        let close = |day: u64| Close {
            date: NaiveDate::MIN + Days::new(day),
            price_usd: Decimal::from(if day == 364 { 200 } else { 100 }),
            difficulty: Decimal::from(100_000_000_000_000_u64),
            block_height: 900_000,
            fees_btc_per_block: Decimal::ZERO,
        };
        let year: Vec<Close> = (0..365).map(close).collect();
        assert_eq!(hashprice_percentile(&year[1..]), None);
        assert_eq!(puell(&year[1..]), None);
        // 364 days below and one equal: (364 + 0.5) / 365.
        assert_eq!(
            hashprice_percentile(&year).map(|rank| rank.round_dp(6)),
            Some("99.863014".parse().expect("a rank"))
        );
        // 200 / ((364 * 100 + 200) / 365).
        assert_eq!(
            puell(&year).map(|puell| puell.round_dp(6)),
            Some("1.994536".parse().expect("a multiple"))
        );
    }
}
