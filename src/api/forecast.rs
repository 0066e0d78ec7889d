//! Owns the resource forecast: the network on the days to come, cut to what was asked for.
//! Promises that an answer to `after` holds the event, whatever the cache holds, and that what is not known is null.
//! Called by the router.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, NaiveDate, Utc};
use rust_decimal::Decimal;
use serde_json::{Map, Value, json};

use super::Api;
use super::auth::{Allowed, IntelligenceRead};
use super::extract::Params;
use super::problem::Problem;
use super::visible::{After, ReadModel};
use crate::cache::{Entry, Key, Metadata, Origin};
use crate::db::Db;
use crate::economics::age::is_stale;
use crate::economics::forecast::MAX_DAYS;
use crate::identifier::TenantId;
use crate::read_model::forecast::{self, ForecastView, GROUP, KINDS};

const MODEL: ReadModel = ReadModel { group: GROUP, kinds: KINDS, name: "a forecast" };

/// A figure that can be asked for.
struct Metric {
    name: &'static str,
    /// Where its confidence stands: the network hashrate is the difficulty in other units.
    confidence: &'static str,
}

static METRICS: [Metric; 3] = [
    Metric { name: "btc_price_usd", confidence: "btc_price_usd_confidence" },
    Metric { name: "network_hashrate_eh", confidence: "difficulty_confidence" },
    Metric { name: "difficulty", confidence: "difficulty_confidence" },
];

/// GET /api/intelligence/forecast?days=&metric=&after=&wait=: {success, data, warnings, basis, metadata}.
pub(super) async fn get(
    State(api): State<Api>,
    Allowed { who, .. }: Allowed<IntelligenceRead>,
    params: Params,
) -> Result<Response, Problem> {
    let days = days(&params)?;
    let metrics = metrics(&params)?;
    let after = After::of(&params)?;
    let now = api.db.now();
    let today = now.date_naive();
    let key = Key::forecast(&who.tenant, today);
    let row = Rows { db: api.db.clone(), tenant: who.tenant, today };
    let (entry, metadata) = if after.event_id.is_none() {
        api.cache.read(&key, row).await?
    } else {
        after.wait(&api, &row.tenant, &MODEL).await?;
        let entry = row.load().await?;
        api.cache.put(&key, &entry).await;
        (entry, Metadata::LOADED)
    };
    let view: ForecastView =
        serde_json::from_str(&entry.json).map_err(|e| sqlx::Error::Decode(Box::new(e)))?;
    Ok(Json(answer(view, days, &metrics, now, metadata)).into_response())
}

fn days(params: &Params) -> Result<usize, Problem> {
    let allowed = format!("must be an integer from 1 to {MAX_DAYS}");
    match params.parsed::<u32>("days", &allowed)? {
        None => Ok(MAX_DAYS as usize),
        Some(days) if (1..=MAX_DAYS).contains(&days) => Ok(days as usize),
        Some(_) => Err(Problem::parameter("days", allowed)),
    }
}

/// The figures of a list such as `btc_price_usd,difficulty`; all of them without one, and where `all` is in it.
fn metrics(params: &Params) -> Result<Vec<&'static Metric>, Problem> {
    let given: Vec<&str> = params.text("metric")?.unwrap_or("all").split(',').map(str::trim).collect();
    let names: Vec<&str> = METRICS.iter().map(|metric| metric.name).collect();
    if given.iter().any(|name| *name != "all" && !names.contains(name)) {
        let allowed = format!("must be all, or a list of {}", names.join(", "));
        return Err(Problem::parameter("metric", allowed));
    }
    let wanted = |metric: &&Metric| given.contains(&"all") || given.contains(&metric.name);
    Ok(METRICS.iter().filter(wanted).collect())
}

fn answer(
    view: ForecastView,
    days: usize,
    metrics: &[&Metric],
    now: DateTime<Utc>,
    metadata: Metadata,
) -> Value {
    let priced = metrics.iter().any(|metric| metric.name == "btc_price_usd");
    let all = metrics.len() == METRICS.len();
    let data: Vec<Value> = view.days.iter().take(days).map(|day| row(day, metrics, all)).collect();
    let mut warnings: Vec<&str> = view.warnings.iter().map(String::as_str).collect();
    // What is not asked for needs no excuse.
    warnings.retain(|warning| priced || *warning != "not-enough-price-history");
    warnings.retain(|warning| {
        *warning != "not-enough-retargets" || metrics.iter().any(|m| m.name != "btc_price_usd")
    });
    match view.as_of {
        None => warnings.push("no-snapshot"),
        Some(as_of) if is_stale(as_of, now) => warnings.push("snapshot-stale"),
        Some(_) => {}
    }
    json!({
        "success": true, "data": data, "warnings": warnings, "basis": view.basis, "as_of": view.as_of,
        "snapshot_id": view.snapshot_id, "version": view.version, "made_at": view.made_at, "event_id": view.event_id,
        "metadata": metadata,
    })
}

fn row(day: &Map<String, Value>, metrics: &[&Metric], all: bool) -> Value {
    let mut row = Map::new();
    let mut show = |name: &str| {
        row.insert(name.to_owned(), day.get(name).cloned().unwrap_or_default());
    };
    show("date");
    for metric in metrics {
        show(metric.name);
        show(&format!("{}_lower", metric.name));
        show(&format!("{}_upper", metric.name));
        show(metric.confidence);
    }
    if all {
        show("hashprice_usd_ph_day");
    }
    row.insert("confidence".to_owned(), confidence(day, metrics));
    Value::Object(row)
}

/// The least confidence among the figures that the day has; null if that of one of them is not known.
fn confidence(day: &Map<String, Value>, metrics: &[&Metric]) -> Value {
    let shown = metrics.iter().filter(|metric| day.get(metric.name).is_some_and(|figure| !figure.is_null()));
    let of = |metric: &&Metric| {
        let number = day.get(metric.confidence)?.as_number()?;
        Some((number.as_str().parse::<Decimal>().ok()?, Value::Number(number.clone())))
    };
    let known: Option<Vec<(Decimal, Value)>> = shown.map(of).collect();
    let least = known.and_then(|all| all.into_iter().min_by_key(|(confidence, _)| *confidence));
    least.map(|(_, number)| number).unwrap_or_default()
}

/// The rows of the read model, as the origin of a cached value.
struct Rows {
    db: Db,
    tenant: TenantId,
    today: NaiveDate,
}

impl Origin for Rows {
    type Error = sqlx::Error;

    async fn load(&self) -> Result<Entry, sqlx::Error> {
        let mut tx = self.db.tenant(&self.tenant).await?;
        let view = forecast::get(&mut tx, self.today).await?;
        tx.commit().await?;
        let json = serde_json::to_string(&view).map_err(|e| sqlx::Error::Encode(Box::new(e)))?;
        Ok(Entry { json: json.into(), version: view.version })
    }

    async fn version(&self) -> Result<i64, sqlx::Error> {
        let mut tx = self.db.tenant(&self.tenant).await?;
        let version = forecast::version(&mut tx, self.today).await?;
        tx.commit().await?;
        Ok(version)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn day() -> Map<String, Value> {
        let json = json!({
            "date": "2026-01-02", "btc_price_usd": 1, "btc_price_usd_lower": 0.5, "btc_price_usd_upper": 2,
            "btc_price_usd_confidence": 0.7, "network_hashrate_eh": 3, "difficulty": 4, "difficulty_confidence": 0.8,
            "hashprice_usd_ph_day": 9,
        });
        json.as_object().cloned().expect("an object")
    }

    #[test]
    fn a_row_shows_what_was_asked_for_with_the_confidence_of_that() {
        let all: Vec<&Metric> = METRICS.iter().collect();
        let shown = row(&day(), &all, true);
        assert_eq!((&shown["confidence"], &shown["hashprice_usd_ph_day"]), (&json!(0.7), &json!(9)));
        let shown = row(&day(), &all[2..], false);
        let expected = json!({
            "date": "2026-01-02", "difficulty": 4, "difficulty_lower": null, "difficulty_upper": null,
            "difficulty_confidence": 0.8, "confidence": 0.8,
        });
        assert_eq!(shown, expected);
    }

    #[test]
    fn a_confidence_that_is_not_known_is_null_and_a_figure_that_is_not_there_has_none() {
        let all: Vec<&Metric> = METRICS.iter().collect();
        let mut unknown = day();
        unknown.insert("difficulty_confidence".to_owned(), Value::Null);
        assert_eq!(row(&unknown, &all, true)["confidence"], Value::Null);
        let mut priceless = day();
        priceless.insert("btc_price_usd".to_owned(), Value::Null);
        priceless.insert("btc_price_usd_confidence".to_owned(), Value::Null);
        assert_eq!(row(&priceless, &all, true)["confidence"], json!(0.8));
    }
}
