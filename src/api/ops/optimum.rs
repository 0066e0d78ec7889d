//! Owns the resource optimum: when a fleet best runs, over the prices of the request or those of a market.
//! Promises that the computing is bounded in size and number and holds up no other request.
//! Called by the router, and by the plans that are made of an optimum.

use axum::Json;
use axum::extract::State;
use chrono::{DateTime, TimeDelta, Utc};
use serde_json::{Map, Value, json};

use super::{Api, user_of};
use crate::api::auth::{Allowed, OpsRead};
use crate::api::extract::{JsonObject, Trace};
use crate::api::problem::Problem;
use crate::api::token::Principal;
use crate::domain::ops::{USER, price, settings};
use crate::domain::{FieldError, Input};
use crate::economics::curtailment::Search;
use crate::identifier::UserId;
use crate::read_model::optimum::{self, Basis, MOST_CLASSES, MOST_STEPS, Optimum, Prices};
use crate::read_model::portfolio_write::newest_snapshot;

const PRICES: &str = "prices";
/// Horizon unless the request says otherwise, and the longest.
const DEFAULT_HOURS: i64 = 24;
const MOST_HOURS: i64 = 288;

/// POST /api/intelligence/optimize/curtailment {user_id, hours, prices, market and the other fields of the settings}:
/// {success, data}.
pub(super) async fn compute(
    State(api): State<Api>,
    Allowed { who, .. }: Allowed<OpsRead>,
    trace: Trace,
    JsonObject(body): JsonObject,
) -> Result<Json<Value>, Problem> {
    let (user, optimum) = of_request(&api, &who, &trace, &body).await?;
    let mut data = json!(optimum);
    data["user_id"] = json!(user);
    Ok(Json(json!({"success": true, "data": data})))
}

/// The optimum that a request asks for, and whose.
pub(super) async fn of_request(
    api: &Api,
    who: &Principal,
    trace: &Trace,
    body: &Map<String, Value>,
) -> Result<(UserId, Optimum), Problem> {
    let mut input = Input::new(body);
    let named = input.identifier(USER).value();
    input.finish().map_err(Problem::invalid)?;
    let user = user_of(who, named)?;
    let now = trace.caller(&who.user).now;

    let mut tx = api.db.tenant(&who.tenant).await?;
    let stored = settings::get(&mut tx, &user).await?;
    let mut input = Input::new(body);
    let settings = stored.with(&mut input);
    let hours = input.integer(&["hours"], 1..=MOST_HOURS).value().unwrap_or(DEFAULT_HOURS);
    let given = body.get(PRICES).is_some_and(|prices| !prices.is_null());
    let horizon = if given {
        given_prices(&mut input, body, now)
    } else {
        (now, now + TimeDelta::hours(hours), Prices::default())
    };
    let (from, to, mut prices) = horizon;
    let (seconds, step) = ((to - from).num_seconds(), i64::from(settings.step_seconds.max(1)));
    let steps = seconds / step;
    if usize::try_from(steps).is_ok_and(|steps| steps > MOST_STEPS) {
        let what = if given { PRICES } else { "hours" };
        input.refuse(
            what,
            format!("must make at most {MOST_STEPS} steps of {} seconds", settings.step_seconds),
        );
    }
    if given && seconds % step != 0 && !input.refused(&[PRICES]) {
        input.refuse(PRICES, format!("must fill whole steps of {step} seconds"));
    }
    input.finish().map_err(Problem::invalid)?;
    let market = if given { None } else { settings.market.clone() };
    if let Some(market) = &market {
        prices = optimum::prices(tx.conn(), market, from, to).await?;
    }
    let mut fleets = optimum::fleets(tx.conn(), &[&user]).await?;
    let network = newest_snapshot(tx.conn()).await?;
    tx.commit().await?;

    let basis = Basis {
        market,
        step_seconds: u32::try_from(settings.step_seconds).unwrap_or_default(),
        terms: settings.terms(api.site_defaults),
        from,
        to,
        fleet: fleets.remove(&user).unwrap_or_default(),
        network,
        prices,
    };
    let computed = api.compute(move || basis.optimum(Search::Thorough)).await?;
    let mut optimum = computed.map_err(|error| {
        Problem::invalid(vec![FieldError::new("body", format!("no optimum can be computed: {error}"))])
    })?;
    let warnings = &mut optimum.warnings.0;
    if warnings.iter().any(|warning| warning == "too-many-classes") {
        let message = format!("has more than {MOST_CLASSES} classes of miners (models by rating)");
        return Err(Problem::invalid(vec![FieldError::new("user_id", message)]));
    }
    if given && warnings.iter().any(|warning| warning == "prices-incomplete" || warning == "no-prices") {
        let message =
            format!("must follow each other without a gap, in steps of {} s", settings.step_seconds);
        return Err(Problem::invalid(vec![FieldError::new(PRICES, message)]));
    }
    warnings.extend(optimum::stale(now, optimum.prices_as_of, optimum.network_as_of));
    Ok((user, optimum))
}

/// The prices of the request, and the time from the first to the last of them.
fn given_prices(
    input: &mut Input<'_>,
    body: &Map<String, Value>,
    now: DateTime<Utc>,
) -> (DateTime<Utc>, DateTime<Utc>, Prices) {
    let items = price::items(input, body);
    if items.len() > MOST_STEPS {
        input.refuse(PRICES, format!("must be at most {MOST_STEPS}"));
        return (now, now, Prices::default());
    }
    let (intervals, errors) = price::read(now, items);
    for error in errors {
        let row = error.row.unwrap_or_default();
        input.refuse(PRICES, format!("row {row}: {} {}", error.field, error.message));
    }
    let time = |seconds: Option<i64>| seconds.and_then(|s| DateTime::from_timestamp(s, 0)).unwrap_or(now);
    let from = time(intervals.iter().map(|interval| interval.start).min());
    let to = time(intervals.iter().map(|interval| interval.start + i64::from(interval.seconds)).max());
    (from, to, Prices { intervals, as_of: None })
}
