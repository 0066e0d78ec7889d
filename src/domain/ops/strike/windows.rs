//! Owns the windows of a market that have a price by now.
//! Promises one price a window, of the intervals as they were received.
//! Called by the automation.

use rust_decimal::Decimal;
use sqlx::PgConnection;

use crate::domain::CommandError;
use crate::economics::curtailment::automation::WINDOW_SECONDS;
use crate::economics::curtailment::{PriceInterval, PriceWindow, price_series};

/// How far back a window may lie whose price came late.
const LATE_WINDOWS: u64 = 12;

/// The priced windows up to the one of now, oldest first.
pub(super) async fn windows_of(
    conn: &mut PgConnection,
    market: &str,
    now: u64,
) -> Result<Vec<PriceWindow>, CommandError> {
    let slot = i64::try_from(WINDOW_SECONDS).unwrap_or(i64::MAX);
    let to = i64::try_from(now + 1).unwrap_or_default() * slot;
    let from = i64::try_from(now.saturating_sub(LATE_WINDOWS)).unwrap_or_default() * slot;
    let rows: Vec<(i64, i32, Decimal)> = sqlx::query_as(
        "select extract(epoch from starts_at)::bigint, seconds, price_usd_mwh from power_price_newest \
         where market = $1 and starts_at > to_timestamp($2) - interval '1 hour' and starts_at < to_timestamp($3) \
         order by received_at, reception_id",
    )
    .bind(market)
    .bind(from)
    .bind(to)
    .fetch_all(conn)
    .await?;
    let intervals: Vec<PriceInterval> = rows
        .into_iter()
        .map(|(start, seconds, price_usd_mwh)| PriceInterval {
            start,
            seconds: u32::try_from(seconds).unwrap_or_default(),
            price_usd_mwh,
        })
        .collect();
    let mut windows = Vec::new();
    for start in (from..to).step_by(usize::try_from(WINDOW_SECONDS).unwrap_or(300)) {
        let one = price_series(&intervals, start, start + slot, 300)
            .map_err(|error| CommandError::Sql(sqlx::Error::Decode(Box::new(error))))?;
        if let (Some(price), Ok(index)) = (one.prices.first(), u64::try_from(start / slot)) {
            windows.push(PriceWindow { index, price_usd_mwh: *price });
        }
    }
    Ok(windows)
}
