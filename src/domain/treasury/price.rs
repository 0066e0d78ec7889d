//! Owns the prices that trades and figures go by: the tenant's network snapshots.
//! Promises that a price is fresh for 30 minutes and no longer, and that none is of the future.
//! Called by the submission and the execution of trades, and by the group of the treasury.

use std::collections::{BTreeSet, HashMap};

use chrono::{DateTime, NaiveDate, Utc};
use rust_decimal::Decimal;
use sqlx::PgConnection;
use uuid::Uuid;

use crate::economics::age::{STALE_AFTER, is_stale};

/// The price of one BTC.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct Price {
    #[sqlx(rename = "id")]
    pub snapshot_id: Uuid,
    #[sqlx(rename = "btc_price_usd")]
    pub price_usd: Decimal,
    /// Since when it is known: when it was observed, or when it arrived if its clock was ahead.
    pub at: DateTime<Utc>,
    pub block_height: i64,
}

/// Prices as of a moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Prices {
    /// Those that are fresh, oldest first.
    pub fresh: Vec<Price>,
    /// The newest of all, fresh or not.
    pub newest: Option<Price>,
}

impl Prices {
    /// From what is known, oldest first, at `now`.
    #[must_use]
    pub fn at(mut known: Vec<Price>, now: DateTime<Utc>) -> Self {
        for price in &mut known {
            price.at = price.at.min(now);
        }
        let newest = known.last().cloned();
        known.retain(|price| !is_stale(price.at, now));
        Self { fresh: known, newest }
    }

    /// The newest price that is fresh.
    #[must_use]
    pub fn current(&self) -> Option<&Price> {
        self.fresh.last()
    }
}

/// The prices of the tenant as of `now`.
pub async fn recent(conn: &mut PgConnection, now: DateTime<Utc>) -> Result<Prices, sqlx::Error> {
    // A price is known no sooner than it was observed, so the index of observations finds all that can be fresh.
    let known = sqlx::query_as(
        "select id, btc_price_usd, least(observed_at, created_at) as at, block_height from network_snapshots \
         where observed_at >= $1 order by least(observed_at, created_at), id",
    )
    .bind(now - STALE_AFTER)
    .fetch_all(&mut *conn)
    .await?;
    let prices = Prices::at(known, now);
    if prices.newest.is_some() {
        return Ok(prices);
    }
    let newest = sqlx::query_as(
        "select id, btc_price_usd, least(observed_at, created_at) as at, block_height from network_snapshots \
         order by observed_at desc, id desc limit 1",
    )
    .fetch_optional(conn)
    .await?;
    Ok(Prices { newest, ..prices })
}

/// The last price of a day, UTC, with the network at that moment.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct Close {
    pub date: NaiveDate,
    #[sqlx(rename = "btc_price_usd")]
    pub price_usd: Decimal,
    pub difficulty: Decimal,
    pub block_height: i64,
    pub fees_btc_per_block: Decimal,
}

/// The closes of the days `from..=to` of which there is a price, oldest first.
pub async fn closes(
    conn: &mut PgConnection,
    from: NaiveDate,
    to: NaiveDate,
) -> Result<Vec<Close>, sqlx::Error> {
    sqlx::query_as(
        "select distinct on (date) (observed_at at time zone 'UTC')::date as date, btc_price_usd, difficulty, \
         block_height, fees_btc_per_block from network_snapshots \
         where observed_at >= $1::date::timestamp at time zone 'UTC' \
           and observed_at < ($2::date + 1)::timestamp at time zone 'UTC' \
         order by date, observed_at desc, id desc",
    )
    .bind(from)
    .bind(to)
    .fetch_all(conn)
    .await
}

/// The highest price since each of these moments, of those since which there is one. One look for all of them.
pub async fn highs_since(
    conn: &mut PgConnection,
    moments: &BTreeSet<DateTime<Utc>>,
) -> Result<HashMap<DateTime<Utc>, Decimal>, sqlx::Error> {
    if moments.is_empty() {
        return Ok(HashMap::new());
    }
    let moments: Vec<DateTime<Utc>> = moments.iter().copied().collect();
    // The highest between each moment and the next one.
    let between: Vec<(i32, Decimal)> = sqlx::query_as(
        "select width_bucket(observed_at, $1::timestamptz[]), max(btc_price_usd) from network_snapshots \
         where observed_at >= ($1::timestamptz[])[1] group by 1",
    )
    .bind(&moments)
    .fetch_all(conn)
    .await?;
    // Counted from 1.
    let numbered =
        between.into_iter().filter_map(|(n, high)| Some((usize::try_from(n).ok()?.checked_sub(1)?, high)));
    Ok(suffix_maxima(&moments, &numbered.collect()))
}

/// What is highest from each moment on, from what is highest between it and the next one.
fn suffix_maxima(
    moments: &[DateTime<Utc>],
    between: &HashMap<usize, Decimal>,
) -> HashMap<DateTime<Utc>, Decimal> {
    let (mut highs, mut so_far) = (HashMap::with_capacity(moments.len()), None);
    for (at, moment) in moments.iter().enumerate().rev() {
        so_far = so_far.max(between.get(&at).copied());
        highs.extend(so_far.map(|high| (*moment, high)));
    }
    highs
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;

    use super::*;

    #[test]
    fn the_high_since_a_moment_is_that_of_all_that_came_after_it() {
        let moments: Vec<_> = (0..4).map(|day| DateTime::UNIX_EPOCH + TimeDelta::days(day)).collect();
        let high = |usd: i64| Decimal::from(usd);
        let highs = suffix_maxima(&moments, &HashMap::from([(0, high(5)), (1, high(9)), (2, high(7))]));
        let of = |day: usize| highs.get(&moments[day]).copied();
        assert_eq!([of(0), of(1), of(2), of(3)], [Some(high(9)), Some(high(9)), Some(high(7)), None]);
    }

    #[test]
    fn a_price_is_fresh_for_thirty_minutes_and_never_of_the_future() {
        let now = DateTime::UNIX_EPOCH + TimeDelta::days(1);
        let price = |minutes| Price {
            snapshot_id: Uuid::nil(),
            price_usd: Decimal::from(100),
            at: now - TimeDelta::minutes(minutes),
            block_height: 1,
        };
        let old = price(30).at - TimeDelta::milliseconds(1);
        let prices = Prices::at(vec![Price { at: old, ..price(30) }, price(30), price(-5)], now);
        assert_eq!(prices.fresh.iter().map(|p| p.at).collect::<Vec<_>>(), [price(30).at, now]);
        let stale = Prices::at(vec![Price { at: old, ..price(30) }], now);
        assert!(stale.current().is_none() && stale.newest.is_some());
        assert_eq!(Prices::at(Vec::new(), now), Prices::default());
    }
}
