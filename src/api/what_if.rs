//! Owns what-ifs of a portfolio: its figures over a grid of price, difficulty, tariff and uptime.
//! Promises the figures of the stored fleet and the newest snapshot, and a bound on the work of one request.
//! Called by the router.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use rust_decimal::Decimal;
use serde_json::{Map, Value, json};

use super::Api;
use super::auth::{Allowed, PortfolioRead};
use super::cached::whose;
use super::extract::Params;
use super::problem::Problem;
use crate::economics::portfolio::Portfolio;
use crate::economics::{Assumptions, EconomicsError, MinerLine, Network, WhatIf, merged, what_if};
use crate::read_model::portfolio_write::{self, Snapshot};

/// Values of one axis.
const MOST_VALUES: usize = 21;
/// Cells of the grid.
const MOST_CELLS: usize = 441;
/// Cells times lines of the fleet, equal miners counted as one line.
const MOST_WORK: usize = 1_000_000;
/// The largest change, in percent.
const MOST_PERCENT: Decimal = Decimal::ONE_THOUSAND;

/// The axes as parameters, in the order of the cells: the last one runs fastest. Each with what it moves, as the economics
/// call it.
const AXES: [(&str, &str); 4] = [
    ("btc_price_percent", "btc_price_usd"),
    ("difficulty_percent", "difficulty"),
    ("tariff_percent", "tariff_usd_kwh"),
    ("uptime_percent", "uptime"),
];

/// GET /api/portfolio/what-if?user_id=&btc_price_percent=-20,0,20&difficulty_percent=&tariff_percent=&uptime_percent=:
/// {data: {user_id, axes, cells, base, snapshot_id, as_of, warnings}}. An axis that is not given stays as it is.
pub(super) async fn get(
    State(api): State<Api>,
    Allowed { who, .. }: Allowed<PortfolioRead>,
    params: Params,
) -> Result<Response, Problem> {
    let user = whose(&who, &params, "a portfolio")?;
    let mut axes: Vec<Vec<Decimal>> = Vec::with_capacity(AXES.len());
    for (name, _) in AXES {
        axes.push(axis(&params, name)?);
    }
    let cells: usize = axes.iter().map(Vec::len).product();
    if cells > MOST_CELLS {
        return Err(too_large(format!(
            "the grid has {cells} cells, at most {MOST_CELLS} are computed at once: ask for fewer values"
        )));
    }
    let mut tx = api.db.tenant(&who.tenant).await?;
    let mut lines = Vec::new();
    portfolio_write::lines(tx.conn(), std::iter::once(&user), |_, line| -> Result<(), sqlx::Error> {
        lines.push(line);
        Ok(())
    })
    .await?;
    let newest = portfolio_write::newest_snapshot(tx.conn()).await?;
    tx.commit().await?;
    let lines = merged(lines);
    if lines.len() * cells > MOST_WORK {
        let lines = lines.len();
        return Err(too_large(format!(
            "{cells} cells of {lines} different lines of miners: cells times lines may be {MOST_WORK} at most"
        )));
    }
    let grid = Grid { axes, assumptions: api.assumptions.clone() };
    let network = newest.as_ref().map(|newest| newest.network.clone());
    let (grid, computed) = api
        .compute(move || {
            let computed = grid.compute(&lines, network.as_ref());
            (grid, computed)
        })
        .await?;
    let computed = computed.map_err(|error| not_computable(&error))?;
    let mut warnings = json!(computed.first().map(|(_, figures)| &figures.warnings));
    if let Some(warnings) = warnings.as_array_mut() {
        let stale = newest.as_ref().is_some_and(|newest| newest.is_stale(api.db.now()));
        let said = [(stale, "snapshot-stale"), (grid.caps_uptime(), "uptime-capped")];
        warnings.extend(said.into_iter().filter(|(holds, _)| *holds).map(|(_, name)| json!(name)));
    }
    let cells: Vec<Value> = computed.iter().map(|(at, figures)| cell(*at, figures)).collect();
    let data = json!({
        "user_id": user, "axes": grid.shown(), "cells": cells, "base": grid.base(newest.as_ref()),
        "snapshot_id": newest.as_ref().map(|newest| newest.id),
        "as_of": newest.as_ref().map(|newest| newest.observed_at), "warnings": warnings,
    });
    Ok(Json(json!({"data": data})).into_response())
}

fn too_large(detail: String) -> Problem {
    Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "grid-too-large", "The grid is too large").detail(detail)
}

/// A change that leads to where nothing is defined is the parameter's fault.
fn not_computable(error: &EconomicsError) -> Problem {
    let moved = match error {
        EconomicsError::OutOfRange { field } => AXES.iter().find(|(_, moved)| moved == field),
        EconomicsError::Overflow { .. } => None,
    };
    match moved {
        Some((name, _)) => Problem::parameter(name, format!("asks for too much: {error}")),
        None => Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "no-such-figure", "A figure does not exist")
            .detail(format!("{error}: ask for smaller changes")),
    }
}

/// The changes of an axis in percent, each once and in their order.
fn axis(params: &Params, name: &str) -> Result<Vec<Decimal>, Problem> {
    let allowed = || {
        let message = format!(
            "must be at most {MOST_VALUES} percentages above -100 and up to {MOST_PERCENT}, such as -20,0,20"
        );
        Problem::parameter(name, message)
    };
    let Some(text) = params.text(name)? else { return Ok(vec![Decimal::ZERO]) };
    let mut values = Vec::new();
    for part in text.split(',') {
        let value: Decimal = part.trim().parse().map_err(|_| allowed())?;
        if value <= -Decimal::ONE_HUNDRED || value > MOST_PERCENT {
            return Err(allowed());
        }
        if !values.contains(&value) {
            values.push(value.normalize());
        }
    }
    if values.len() > MOST_VALUES { Err(allowed()) } else { Ok(values) }
}

/// The conditions under which the figures are computed.
struct Grid {
    /// The changes of each of [`AXES`], percent.
    axes: Vec<Vec<Decimal>>,
    assumptions: Assumptions,
}

impl Grid {
    /// The figures of every cell, with its changes.
    fn compute(
        &self,
        lines: &[MinerLine],
        network: Option<&Network>,
    ) -> Result<Vec<([Decimal; 4], Portfolio)>, EconomicsError> {
        let [prices, difficulties, tariffs, uptimes] = self.axes.as_slice() else { return Ok(Vec::new()) };
        let share = |percent: Decimal| percent / Decimal::ONE_HUNDRED;
        let mut cells = Vec::with_capacity(self.axes.iter().map(Vec::len).product());
        for price in prices {
            for difficulty in difficulties {
                for tariff in tariffs {
                    for uptime in uptimes {
                        let change = WhatIf {
                            btc_price: share(*price),
                            difficulty: share(*difficulty),
                            tariff: share(*tariff),
                            uptime: share(*uptime),
                        };
                        let figures = what_if(lines, network, &self.assumptions, &change)?;
                        cells.push(([*price, *difficulty, *tariff, *uptime], figures));
                    }
                }
            }
        }
        Ok(cells)
    }

    /// Whether a cell asks for more than the whole day.
    fn caps_uptime(&self) -> bool {
        let most = self.axes.last().and_then(|uptimes| uptimes.iter().max()).copied().unwrap_or_default();
        self.assumptions.uptime * (Decimal::ONE_HUNDRED + most) > Decimal::ONE_HUNDRED
    }

    fn shown(&self) -> Map<String, Value> {
        AXES.iter().zip(&self.axes).map(|((name, _), values)| ((*name).to_owned(), json!(values))).collect()
    }

    /// What the percentages are of. A tariff is each miner's own, or the one of the configuration.
    fn base(&self, newest: Option<&Snapshot>) -> Value {
        json!({
            "btc_price_usd": newest.map(|newest| newest.network.btc_price_usd),
            "difficulty": newest.map(|newest| newest.network.difficulty),
            "default_tariff_usd_kwh": self.assumptions.default_tariff_usd_kwh, "uptime": self.assumptions.uptime,
        })
    }
}

fn cell([price, difficulty, tariff, uptime]: [Decimal; 4], figures: &Portfolio) -> Value {
    json!({
        "btc_price_percent": price, "difficulty_percent": difficulty, "tariff_percent": tariff,
        "uptime_percent": uptime, "net_btc_day": figures.net_btc_day, "revenue_usd_day": figures.revenue_usd_day,
        "power_cost_usd_day": figures.power_cost_usd_day, "profit_usd_day": figures.profit_usd_day,
        "hashprice_usd_ph_day": figures.hashprice_usd_ph_day,
        "break_even_tariff_usd_kwh": figures.break_even_tariff_usd_kwh,
        "break_even_btc_price_usd": figures.break_even_btc_price_usd, "payback_days": figures.payback_days,
        "dynamic_payback_days": figures.dynamic_payback_days, "roi_percent": figures.roi_percent,
    })
}
