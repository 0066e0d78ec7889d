//! Owns the backtest: strategies along daily prices, given or stored, beside holding.
//! Promises a refusal where there are no prices or a day is missing, and that nothing is stored.
//! Called by the router.

use axum::Json;
use axum::extract::State;
use chrono::{Days, NaiveDate};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use crate::api::Api;
use crate::api::auth::{Allowed, TreasuryRead};
use crate::api::extract::{JsonObject, Params};
use crate::api::problem::Problem;
use crate::db::TenantTx;
use crate::domain::FieldError;
use crate::domain::treasury::price;
use crate::domain::treasury::{account, lot};
use crate::economics::treasury::money::{MONTH_DAYS, booked_usd};
use crate::economics::treasury::strategy::refusal_of;
use crate::economics::treasury::{Day, Rules, Start, Strategy, TreasuryError, backtest};
use crate::economics::{EconomicsError, Network};
use crate::identifier::UserId;

const DAYS: &str = "days";
const FROM: &str = "from";
const TO: &str = "to";
const START: &str = "start";
const STRATEGIES: &str = "strategies";
/// Ten years, and their leap days.
const MOST_DAYS: usize = 3_653;
/// How far back the stored closes go unless the request says otherwise.
const YEAR: Days = Days::new(364);

/// What a request asks for.
struct Asked {
    rules: Rules,
    days: Option<Vec<Day>>,
    from: Option<NaiveDate>,
    to: Option<NaiveDate>,
    start: Option<Start>,
}

/// POST /api/treasury/backtest?user_id= {strategies, caps, fee, method, cycle_days, start, days | from, to}: {data}. Without
/// `days` the stored daily closes are taken, with the opex of the account; without `start` its lots and cash.
pub(super) async fn run(
    State(api): State<Api>,
    Allowed { who, .. }: Allowed<TreasuryRead>,
    params: Params,
    JsonObject(body): JsonObject,
) -> Result<Json<Value>, Problem> {
    let user = super::account_of(&who, &params)?;
    let asked = read(body)?;
    let mut tx = api.db.tenant(&who.tenant).await?;
    let days = match asked.days {
        Some(days) => days,
        None => stored(&mut tx, &user, asked.from, asked.to).await?,
    };
    let start = match asked.start {
        Some(start) => start,
        None => held(&mut tx, &user).await?,
    };
    tx.commit().await?;
    if days.len() > MOST_DAYS {
        return Err(refused(DAYS, format!("must be at most {MOST_DAYS}")));
    }
    let rules = asked.rules;
    let done = api.compute(move || backtest(&days, &start, &rules)).await?;
    Ok(Json(json!({"data": done.map_err(refusal)?})))
}

fn refused(field: &str, message: impl Into<String>) -> Problem {
    Problem::invalid(vec![FieldError::new(field, message)])
}

fn refusal(error: TreasuryError) -> Problem {
    let field = match error {
        TreasuryError::Economics(EconomicsError::OutOfRange { field }) => {
            if let Some(refusal) = refusal_of(field) {
                return refused(STRATEGIES, refusal);
            }
            field
        }
        TreasuryError::Economics(EconomicsError::Overflow { figure }) => figure,
        TreasuryError::NoPrices | TreasuryError::PriceGap { .. } => DAYS,
        TreasuryError::NotEnough { .. } | TreasuryError::UnknownLot { .. } => START,
        TreasuryError::MissingInput { field, .. } => field,
    };
    refused(field, error.to_string())
}

fn read(mut body: Map<String, Value>) -> Result<Asked, Problem> {
    let days = taken(&mut body, DAYS)?;
    let from = taken(&mut body, FROM)?;
    let to = taken(&mut body, TO)?;
    let start = taken(&mut body, START)?;
    if days.is_some() && (from.is_some() || to.is_some()) {
        return Err(refused(DAYS, "days, or from and to for the stored closes: not both"));
    }
    let strategies: Option<Vec<Strategy>> = taken(&mut body, STRATEGIES)?;
    let mut rules: Rules =
        serde_json::from_value(Value::Object(body)).map_err(|error| refused("body", error.to_string()))?;
    rules.strategies = strategies.unwrap_or_default();
    rules.check().map_err(|error| refusal(error.into()))?;
    Ok(Asked { rules, days, from, to, start })
}

fn taken<T: DeserializeOwned>(body: &mut Map<String, Value>, name: &str) -> Result<Option<T>, Problem> {
    let given = body.remove(name).filter(|given| !given.is_null());
    given.map(serde_json::from_value).transpose().map_err(|error| refused(name, error.to_string()))
}

/// The stored closes from `from` to `to` (today); without `from` a year of them, from the first there is.
async fn stored(
    tx: &mut TenantTx,
    user: &UserId,
    from: Option<NaiveDate>,
    to: Option<NaiveDate>,
) -> Result<Vec<Day>, Problem> {
    let to = to.unwrap_or_else(|| tx.now().date_naive());
    let first = from.or_else(|| to.checked_sub_days(YEAR)).unwrap_or(to);
    if to < first || (to - first).num_days() >= MOST_DAYS as i64 {
        return Err(refused(FROM, format!("must be before to, by at most {MOST_DAYS} days")));
    }
    let settings = account::settings_of(tx.conn(), &[user.as_str()]).await?.pop();
    let opex_usd =
        settings.and_then(|settings| settings.opex_usd_month.checked_div(MONTH_DAYS)).map(booked_usd);
    let closes = price::closes(tx.conn(), first, to).await?;
    if let (Some(from), Some(close)) = (from, closes.first())
        && close.date != from
    {
        return Err(refusal(TreasuryError::PriceGap { date: from }));
    }
    let days = closes.into_iter().map(|close| {
        let block_height = close.block_height.unsigned_abs();
        let network = Network {
            btc_price_usd: close.price_usd,
            difficulty: close.difficulty,
            block_height,
            fees_btc_per_block: close.fees_btc_per_block,
        };
        Day {
            date: close.date,
            price_usd: close.price_usd,
            production_sat: 0,
            opex_usd: opex_usd.unwrap_or_default(),
            block_height: Some(block_height),
            hashprice_usd_ph_day: network.hashprice_usd_ph_day().ok(),
        }
    });
    Ok(days.collect())
}

/// What the account holds now.
async fn held(tx: &mut TenantTx, user: &UserId) -> Result<Start, sqlx::Error> {
    let lots = lot::held(tx.conn(), &[user.as_str()]).await?;
    let cash = account::cash_of(tx.conn(), &[user.as_str()]).await?;
    // A debt is no cash to start with.
    let cash_usd = cash.get(user).copied().unwrap_or_default().max(rust_decimal::Decimal::ZERO);
    Ok(Start { lots: lots.iter().map(Into::into).collect(), cash_usd })
}
