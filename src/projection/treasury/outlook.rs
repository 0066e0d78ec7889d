//! What the strategies of an account look at: the market as its prices tell, the account, and what it has sold.

use std::collections::HashMap;

use chrono::{DateTime, Days, NaiveDate, TimeDelta, Utc};
use rust_decimal::Decimal;
use sqlx::PgConnection;
use tracing::error;

use super::Account;
use crate::domain::treasury::Settings;
use crate::domain::treasury::price::{self, Close, Price};
use crate::economics::mining::subsidy_btc;
use crate::economics::treasury::money::{booked_usd, value_usd};
use crate::economics::treasury::statistics::{PUELL_DAYS, VOLATILITY_DAYS, percentile_rank, puell_multiple};
use crate::economics::treasury::strategy::Strategy;
use crate::economics::treasury::{
    Inventory, Market, Plan, Progress, StrategyKind, TreasuryError, TreasuryState, Unevaluated,
    plan as plan_of,
};
use crate::economics::{EconomicsError, Network};
use crate::projection::HandlerError;
use crate::read_model::treasury_write;

/// Days of a cycle.
const CYCLE: TimeDelta = TimeDelta::days(365);
const BLOCKS_PER_DAY: i64 = 144;

/// The market at a price, as far as any of the accounts looks at it: read once for all of them.
pub(super) struct Outlook {
    price: Price,
    now: DateTime<Utc>,
    /// Up to the day of the price.
    closes_usd: Vec<Decimal>,
    hashprice_percentile: Option<Decimal>,
    puell_multiple: Option<Decimal>,
    /// By the beginning of the cycle that they are of.
    highs_usd: HashMap<DateTime<Utc>, Decimal>,
}

impl Outlook {
    /// What the strategies of these accounts look at.
    pub(super) async fn of(
        conn: &mut PgConnection,
        accounts: &[Settings],
        price: &Price,
        now: DateTime<Utc>,
    ) -> Result<Self, sqlx::Error> {
        let chosen = |kind| accounts.iter().any(|settings| follows(settings, kind));
        let days = if chosen(StrategyKind::HashpriceCycle) {
            PUELL_DAYS
        } else if chosen(StrategyKind::VolatilityTrigger) {
            VOLATILITY_DAYS + 1
        } else {
            0
        };
        // Just after midnight the newest price is of yesterday: the day that has begun has no close to miss yet.
        let closes = if days > 0 { closes(conn, price.at.date_naive(), days).await? } else { Vec::new() };
        let stops = accounts.iter().filter(|settings| follows(settings, StrategyKind::TrailingStop));
        let cycles = stops.map(|settings| cycle_begin(settings.cycle_started_at, now)).collect();
        Ok(Self {
            price: price.clone(),
            now,
            closes_usd: closes.iter().map(|close| close.price_usd).collect(),
            hashprice_percentile: hashprice_percentile(&closes),
            puell_multiple: puell(&closes),
            highs_usd: price::highs_since(conn, &cycles).await?,
        })
    }

    /// What the strategies of the account would sell at this price. What cannot be computed is unevaluated.
    pub(super) async fn plan(
        &self,
        conn: &mut PgConnection,
        account: &Account,
        inventory: &Inventory,
    ) -> Result<Plan, HandlerError> {
        let (settings, price_usd) = (&account.settings, self.price.price_usd);
        let strategies = &settings.strategies.0;
        if strategies.is_empty() {
            return Ok(Plan::default());
        }
        let cycle = cycle_begin(settings.cycle_started_at, self.now);
        let (progress, mined_sat) = progress(conn, account, inventory, cycle, self.now).await?;
        let high_usd = follows(settings, StrategyKind::TrailingStop)
            .then(|| self.highs_usd.get(&cycle).map(|high| (*high).max(price_usd)))
            .flatten();
        let market = Market {
            date: self.now.date_naive(),
            price_usd,
            fee: settings.fee_share,
            high_usd,
            closes_usd: &self.closes_usd,
            production_sat: Some(mined_sat),
            block_height: Some(self.price.block_height.unsigned_abs()),
            hashprice_percentile: self.hashprice_percentile,
            puell_multiple: self.puell_multiple,
        };
        let reserved_sat = account.sums.reserved_sat.unsigned_abs();
        let planned = incoming_usd(reserved_sat, price_usd, settings.fee_share).and_then(|incoming_usd| {
            let state = TreasuryState {
                // What is promised to open sales is no longer there for the strategies; what it will bring is.
                inventory_sat: inventory.sat.saturating_sub(reserved_sat),
                average_cost_usd: inventory.average_cost_usd,
                cash_usd: account.cash_usd,
                incoming_usd,
                opex_usd_month: settings.opex_usd_month,
                progress,
            };
            plan_of(strategies, &settings.caps(), &state, &market)
        });
        Ok(planned.unwrap_or_else(|error| {
            let user = &settings.user_id;
            error!(%user, %error, "the strategies of a treasury cannot be computed from what is stored");
            let field = field_of(&error);
            let unevaluated =
                strategies.iter().map(|strategy| Unevaluated { strategy: strategy.kind(), field });
            Plan { signals: Vec::new(), unevaluated: unevaluated.collect() }
        }))
    }
}

fn follows(settings: &Settings, kind: StrategyKind) -> bool {
    settings.strategies.iter().any(|strategy| strategy.kind() == kind)
}

/// What open sales of so many satoshi bring at a price, after the fee.
fn incoming_usd(sat: u64, price_usd: Decimal, fee: Decimal) -> Result<Decimal, TreasuryError> {
    let value = booked_usd(value_usd(sat, price_usd)?);
    Ok(value - booked_usd(value * fee))
}

/// What an error is about.
fn field_of(error: &TreasuryError) -> &'static str {
    match error {
        TreasuryError::Economics(
            EconomicsError::OutOfRange { field } | EconomicsError::Overflow { figure: field },
        )
        | TreasuryError::MissingInput { field, .. } => field,
        _ => "strategies",
    }
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
    let sold_sat = sold.iter().filter(|sold| sold.in_cycle).map(|sold| sold.sat).fold(0, i64::saturating_add);
    let gone = sold_sat.saturating_sub(account.sums.reserved_sat);
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

/// The closes of so many days up to `until`, as far back as none is missing.
async fn closes(conn: &mut PgConnection, until: NaiveDate, days: usize) -> Result<Vec<Close>, sqlx::Error> {
    let back = u64::try_from(days.saturating_sub(1)).unwrap_or_default();
    let from = until.checked_sub_days(Days::new(back)).unwrap_or(until);
    Ok(unbroken(price::closes(conn, from, until).await?, until))
}

/// The closes up to `until` that no missing day divides from it.
fn unbroken(mut closes: Vec<Close>, until: NaiveDate) -> Vec<Close> {
    let in_place = closes
        .iter()
        .rev()
        .zip(0_u64..)
        .take_while(|(close, ago)| until.checked_sub_days(Days::new(*ago)) == Some(close.date));
    let count = in_place.count();
    closes.drain(..closes.len() - count);
    closes
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

    fn close(date: NaiveDate) -> Close {
        Close {
            date,
            price_usd: Decimal::ONE,
            difficulty: Decimal::ONE,
            block_height: 900_000,
            fees_btc_per_block: Decimal::ZERO,
        }
    }

    /// At midnight the last close is of the day before, and nothing is missing before the first price of the new day.
    #[test]
    fn closes_reach_back_from_the_day_of_the_price_to_the_first_gap() {
        let day = |n: u64| NaiveDate::MIN + Days::new(n);
        let closes = |days: &[u64]| days.iter().map(|n| close(day(*n))).collect::<Vec<_>>();
        assert_eq!(unbroken(closes(&[1, 2, 4, 5]), day(5)), closes(&[4, 5]));
        assert_eq!(unbroken(closes(&[1, 2, 3]), day(3)), closes(&[1, 2, 3]));
        assert_eq!(unbroken(closes(&[1, 2, 3]), day(4)), []);
        assert_eq!(unbroken(Vec::new(), day(4)), []);
    }

    #[test]
    fn open_sales_bring_their_value_less_the_fee() {
        let d = |text: &str| text.parse::<Decimal>().expect("a decimal");
        assert_eq!(incoming_usd(55_555_556, d("90000"), Decimal::ZERO), Ok(d("50000.0004")));
        assert_eq!(incoming_usd(100_000_000, d("90000"), d("0.001")), Ok(d("89910")));
    }

    #[test]
    fn a_year_is_needed_for_what_is_compared_with_one() {
        let of_day = |day: u64| Close {
            price_usd: Decimal::from(if day == 364 { 200 } else { 100 }),
            difficulty: Decimal::from(100_000_000_000_000_u64),
            ..close(NaiveDate::MIN + Days::new(day))
        };
        let year: Vec<Close> = (0..365).map(of_day).collect();
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
