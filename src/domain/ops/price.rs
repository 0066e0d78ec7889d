//! Owns the reception of power prices: intervals of a market, five minutes or an hour long.
//! Promises that a bad row is named by its number and keeps no other out, that no reception overwrites an earlier one,
//! and one event a request.
//! Called by the API; [`PriceRetention`] by the runner of scheduled work.

use std::collections::BTreeMap;

use chrono::{DateTime, TimeDelta, Utc};
use rust_decimal::Decimal;
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::MARKET;
use crate::db::TenantTx;
use crate::domain::input::Low;
use crate::domain::{Caller, CommandError, FieldError, Input, emit};
use crate::economics::curtailment::PriceInterval;
use crate::economics::curtailment::series::LENGTHS;
use crate::event::kind;
use crate::identifier::EntityId;

mod retention;

pub use retention::PriceRetention;

/// The most rows of a request: a week of five minutes.
pub const MOST_ROWS: usize = 2_016;
/// So many mistakes are listed; the others are counted.
const MOST_ERRORS: usize = 100;
/// How old and how far ahead an interval may be.
const MAX_AGE: TimeDelta = TimeDelta::days(400);
const MAX_AHEAD: TimeDelta = TimeDelta::days(32);
/// No market has ever gone beyond it, in either direction.
pub(super) const MAX_PRICE_USD_MWH: Decimal = Decimal::from_parts(100_000, 0, 0, false, 0);
pub(super) const MIN_PRICE_USD_MWH: Decimal = Decimal::from_parts(100_000, 0, 0, true, 0);

/// What became of a request.
#[derive(Debug)]
pub struct Received {
    pub market: EntityId,
    pub total_count: usize,
    pub accepted_count: usize,
    pub received_at: DateTime<Utc>,
    pub event_id: Uuid,
    /// The first of the mistakes, in the order of the rows.
    pub errors: Vec<FieldError>,
}

/// The rows of the field `prices`; mistakes of the field itself are recorded.
pub fn items<'a>(input: &mut Input<'_>, object: &'a Map<String, Value>) -> &'a [Value] {
    let items = object.get("prices").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    if items.is_empty() {
        input.refuse("prices", "must be an array of at least one {start, seconds, price_usd_mwh}");
    }
    items
}

/// Takes in `prices` of a `market`; emits `ops.price_received`.
///
/// # Errors
/// [`CommandError::Invalid`] if no row is good.
pub async fn receive(
    tx: &mut TenantTx,
    caller: Caller<'_>,
    object: &Map<String, Value>,
) -> Result<Received, CommandError> {
    let mut input = Input::new(object);
    let market = input.identifier::<EntityId>(MARKET);
    let market = input.required(MARKET, market);
    let items = items(&mut input, object);
    input.finish().map_err(CommandError::Invalid)?;
    let (intervals, mut errors) = read(caller.now, items);
    errors.truncate(MOST_ERRORS);
    let (Some(market), false) = (market, intervals.is_empty()) else {
        return Err(CommandError::Invalid(errors));
    };
    let reception = Uuid::now_v7();
    store(tx, caller, &market, reception, &intervals).await?;
    let from = intervals.iter().map(|interval| interval.start).min();
    let to = intervals.iter().map(|interval| interval.start + i64::from(interval.seconds)).max();
    let time = |seconds: Option<i64>| seconds.and_then(|s| DateTime::from_timestamp(s, 0));
    let data = json!({
        "market": market, "reception_id": reception, "intervals": intervals.len(), "from": time(from),
        "to": time(to), "received_at": caller.now,
    });
    let event_id = emit(tx, caller, kind::OPS_PRICE_RECEIVED, caller.actor, market.clone(), data).await?;
    Ok(Received {
        market,
        total_count: items.len(),
        accepted_count: intervals.len(),
        received_at: caller.now,
        event_id,
        errors,
    })
}

/// The good rows, and what is wrong with the others, in the order of the rows. Of two that overlap the first is good.
pub fn read(now: DateTime<Utc>, items: &[Value]) -> (Vec<PriceInterval>, Vec<FieldError>) {
    let (mut intervals, mut errors) = (Vec::with_capacity(items.len()), Vec::new());
    let mut taken: BTreeMap<i64, (i64, usize)> = BTreeMap::new();
    for (row, item) in (1..).zip(items) {
        let interval = match read_one(now, item) {
            Ok(interval) => interval,
            Err(of_row) => {
                errors.extend(of_row.into_iter().map(|error| error.of_row(row)));
                continue;
            }
        };
        let end = interval.start + i64::from(interval.seconds);
        match taken.range(..end).next_back() {
            Some((_, (taken_to, other))) if *taken_to > interval.start => {
                let message = format!("overlaps the interval of row {other}");
                errors.push(FieldError::new("start", message).of_row(row));
            }
            _ => {
                taken.insert(interval.start, (end, row));
                intervals.push(interval);
            }
        }
    }
    (intervals, errors)
}

fn read_one(now: DateTime<Utc>, item: &Value) -> Result<PriceInterval, Vec<FieldError>> {
    let Some(object) = item.as_object() else {
        return Err(vec![FieldError::new("row", "must be an object")]);
    };
    let mut input = Input::new(object);
    let start = input.timestamp(&["start"]);
    let start = input.required(&["start"], start);
    let seconds = input.integer(&["seconds"], 1..=i64::from(u32::MAX));
    let seconds = input.required(&["seconds"], seconds).and_then(|s| u32::try_from(s).ok());
    if seconds.is_some_and(|s| !LENGTHS.contains(&s)) {
        input.refuse("seconds", "must be 300 or 3600");
    } else if let (Some(start), Some(seconds)) = (start, seconds) {
        if start.timestamp_subsec_nanos() != 0 || start.timestamp() % i64::from(seconds) != 0 {
            input.refuse("start", format!("must be a whole multiple of {seconds} seconds"));
        } else if start > now + MAX_AHEAD || start < now - MAX_AGE {
            let (old, ahead) = (MAX_AGE.num_days(), MAX_AHEAD.num_days());
            input.refuse("start", format!("must be at most {old} days ago and {ahead} days ahead"));
        }
    }
    let price = input.decimal(&["price_usd_mwh"], Low::From(MIN_PRICE_USD_MWH), MAX_PRICE_USD_MWH);
    let price = input.required(&["price_usd_mwh"], price);
    input.finish()?;
    match (start, seconds, price) {
        (Some(start), Some(seconds), Some(price_usd_mwh)) => {
            Ok(PriceInterval { start: start.timestamp(), seconds, price_usd_mwh })
        }
        _ => Err(Vec::new()),
    }
}

async fn store(
    tx: &mut TenantTx,
    caller: Caller<'_>,
    market: &EntityId,
    reception: Uuid,
    intervals: &[PriceInterval],
) -> Result<(), sqlx::Error> {
    let tenant = tx.tenant().clone();
    sqlx::query(
        "insert into power_price (tenant_id, market, starts_at, seconds, reception_id, price_usd_mwh, received_at) \
         select $1, $2, to_timestamp(start), seconds, $3, price, $4 \
         from unnest($5::bigint[], $6::int[], $7::numeric[]) u (start, seconds, price)",
    )
    .bind(tenant.as_str())
    .bind(market.as_str())
    .bind(reception)
    .bind(caller.now)
    .bind(intervals.iter().map(|i| i.start).collect::<Vec<_>>())
    .bind(intervals.iter().map(|i| i32::try_from(i.seconds).unwrap_or(i32::MAX)).collect::<Vec<_>>())
    .bind(intervals.iter().map(|i| i.price_usd_mwh).collect::<Vec<_>>())
    .execute(tx.conn())
    .await
    .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> DateTime<Utc> {
        "2026-01-31T12:00:00Z".parse().expect("a time")
    }

    fn rows(items: &[(&str, u32)]) -> Vec<Value> {
        items.iter().map(|(at, s)| json!({"start": at, "seconds": s, "price_usd_mwh": "-4.5"})).collect()
    }

    #[test]
    fn a_bad_row_is_named_and_the_others_go_in() {
        let (good, errors) = read(
            now(),
            &[
                json!({"start": "2026-01-31T12:00:00Z", "seconds": 300, "price_usd_mwh": 1e3}),
                json!({"start": "2026-01-31T12:05:00+00:00", "seconds": 600, "price_usd_mwh": 1}),
                json!({"start": "2026-01-31T13:05:00Z", "seconds": 3600, "price_usd_mwh": 1}),
                json!({"start": "2026-01-31T13:00:00.5Z", "seconds": 300, "price_usd_mwh": 1}),
                json!({"start": "2026-01-31T13:00:00Z", "seconds": 300, "price_usd_mwh": 100_001}),
                json!({"start": "2026-03-31T13:00:00Z", "seconds": 300, "price_usd_mwh": 1}),
                json!({"seconds": 300}),
                json!(5),
            ],
        );
        assert_eq!(good.len(), 1);
        let named: Vec<_> = errors.iter().map(|e| (e.row.unwrap_or_default(), e.field.as_str())).collect();
        let expected = [
            (2, "seconds"),
            (3, "start"),
            (4, "start"),
            (5, "price_usd_mwh"),
            (6, "start"),
            (7, "start"),
            (7, "price_usd_mwh"),
            (8, "row"),
        ];
        assert_eq!(named, expected);
    }

    #[test]
    fn of_rows_that_overlap_the_first_is_good() {
        let (good, errors) = read(
            now(),
            &rows(&[
                ("2026-01-31T12:05:00Z", 300),
                ("2026-01-31T12:00:00Z", 3_600),
                ("2026-01-31T12:05:00Z", 300),
                ("2026-01-31T12:10:00Z", 300),
                ("2026-01-31T13:00:00Z", 3_600),
                ("2026-01-31T13:55:00Z", 300),
                ("2026-01-31T14:00:00Z", 300),
            ]),
        );
        assert_eq!(good.len(), 4);
        let named: Vec<_> = errors.iter().map(|e| (e.row.unwrap_or_default(), e.message.as_str())).collect();
        let of = |row| format!("overlaps the interval of row {row}");
        assert_eq!(named, [(2, of(1).as_str()), (3, of(1).as_str()), (6, of(5).as_str())]);
    }
}
