//! Calculations that need nothing but their arguments: backtests and the optimum of a site.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use chrono::{DateTime, Days, NaiveDate, Utc};
use rust_decimal::Decimal;
use rust_decimal::prelude::FromPrimitive;
use serde::Serialize;

use super::ms;
use crate::economics::Network;
use crate::economics::curtailment::{FleetGroup, PriceInterval, Search, SiteTerms};
use crate::economics::treasury::{Day, Rules, Start, Strategy, StrategyKind, backtest};
use crate::read_model::optimum::{Basis, Prices};
use crate::read_model::portfolio_write::Snapshot;
use crate::role::bench::statistics::Spread;

const YEARS: u32 = 5;
const DAYS: u32 = YEARS * 365 + 1;
/// So that two runs compute the same.
const SEED: u64 = 2_026;

/// One strategy along the whole series.
#[derive(Debug, Serialize)]
pub struct BacktestRow {
    pub strategy: StrategyKind,
    pub days: u32,
    pub sales: usize,
    pub ms: Option<Spread>,
}

/// Every strategy with its defaults.
pub fn backtests(rounds: u32) -> anyhow::Result<Vec<BacktestRow>> {
    let days = series()?;
    let start = Start { cash_usd: Decimal::from(600_000), ..Start::default() };
    StrategyKind::ALL
        .into_iter()
        .map(|strategy| {
            let rules = Rules { strategies: vec![Strategy::with_defaults(strategy)], ..Rules::default() };
            let (mut took, mut sales) = (Vec::new(), 0);
            for _ in 0..rounds {
                let began = Instant::now();
                let done = backtest(&days, &start, &rules)?;
                took.push(began.elapsed());
                sales = done.sales.len();
            }
            Ok(BacktestRow { strategy, days: DAYS, sales, ms: ms(took) })
        })
        .collect()
}

/// A price that wanders, with a little mined and something to pay each day.
fn series() -> anyhow::Result<Vec<Day>> {
    let mut random = fastrand::Rng::with_seed(SEED);
    let first = NaiveDate::from_ymd_opt(2021, 1, 1).context("a date")?;
    let mut price = 30_000.0;
    (0..DAYS)
        .map(|day| {
            price *= (0.000_6 + 0.07 * (random.f64() - 0.5)).exp();
            let price_usd = Decimal::from_f64(price).context("a price")?.round_dp(2);
            Ok(Day {
                date: first.checked_add_days(Days::new(day.into())).context("a date")?,
                price_usd,
                production_sat: 3_000_000,
                opex_usd: Decimal::from(1_500),
                block_height: Some(664_000 + 144 * u64::from(day)),
                hashprice_usd_ph_day: Some((price_usd / Decimal::from(1_000)).round_dp(4)),
            })
        })
        .collect()
}

/// A day of a site under a cap.
#[derive(Debug, Serialize)]
pub struct CurtailmentRow {
    pub classes: usize,
    pub steps: usize,
    /// Of the power of all machines.
    pub cap_percent: u32,
    pub method: Option<String>,
    /// How far the schedule may be from the best one, of its own value.
    pub gap_percent: Option<Decimal>,
    pub ms: Option<Spread>,
}

/// Hashrate in TH/s and power in W of the classes.
const MODELS: [(u32, u32); 20] = [
    (860, 11_180),
    (500, 5_500),
    (270, 3_645),
    (234, 3_510),
    (216, 3_564),
    (200, 3_500),
    (335, 5_360),
    (255, 5_304),
    (140, 3_010),
    (104, 3_068),
    (120, 3_300),
    (121, 2_760),
    (110, 3_250),
    (95, 3_250),
    (190, 3_610),
    (212, 3_600),
    (172, 3_422),
    (213, 5_550),
    (114, 3_306),
    (100, 3_400),
];
const STEP_SECONDS: u32 = 300;
const STEPS: u32 = 86_400 / STEP_SECONDS;
const CAPS: [u32; 3] = [40, 60, 80];

/// The thorough search, as `POST /api/intelligence/optimize/curtailment` has it done.
pub fn curtailment(rounds: u32) -> anyhow::Result<Vec<CurtailmentRow>> {
    CAPS.into_iter()
        .map(|cap_percent| {
            let basis = site(cap_percent)?;
            let (mut took, mut found) = (Vec::<Duration>::new(), None);
            for _ in 0..rounds {
                let began = Instant::now();
                let optimum = basis.optimum(Search::Thorough)?;
                took.push(began.elapsed());
                found = Some(optimum);
            }
            let found = found.context("a round")?;
            Ok(CurtailmentRow {
                classes: found.classes.len(),
                steps: found.rows.len(),
                cap_percent,
                method: found.method,
                gap_percent: found.gap_percent,
                ms: ms(took),
            })
        })
        .collect()
}

/// A day of prices with noise and spikes, and machines of which a part may run.
fn site(cap_percent: u32) -> anyhow::Result<Basis> {
    let mut random = fastrand::Rng::with_seed(SEED + u64::from(cap_percent));
    let from = DateTime::<Utc>::UNIX_EPOCH;
    let mut spike = 0.0;
    let intervals = (0..STEPS)
        .map(|step| {
            spike = if random.u32(0..60) == 0 { random.f64() * 1_900.0 } else { spike * 0.6 };
            let hour = f64::from(step) * 24.0 / f64::from(STEPS);
            let day = 40.0 - 45.0 * (-((hour - 13.0) / 3.0).powi(2)).exp();
            let price = day + 16.0 * (random.f64() - 0.5) + spike;
            Ok(PriceInterval {
                start: i64::from(step * STEP_SECONDS),
                seconds: STEP_SECONDS,
                price_usd_mwh: Decimal::from_f64(price).context("a price")?.round_dp(2),
            })
        })
        .collect::<anyhow::Result<_>>()?;
    let fleet: Vec<FleetGroup> = MODELS
        .iter()
        .map(|(ths, watt)| FleetGroup {
            model: format!("{ths} TH/s, {watt} W"),
            hashrate_ths: Decimal::from(*ths),
            power_w: Decimal::from(*watt),
            miners: random.u32(1..=500),
        })
        .collect();
    let all_kw: Decimal =
        fleet.iter().map(|group| group.power_w * Decimal::from(group.miners)).sum::<Decimal>()
            / Decimal::ONE_THOUSAND;
    Ok(Basis {
        market: None,
        step_seconds: STEP_SECONDS,
        terms: SiteTerms {
            cap_kw: Some(all_kw * Decimal::from(cap_percent) / Decimal::ONE_HUNDRED),
            ramp_kw: None,
            min_online_share: Decimal::ZERO,
            start_cost_usd: Decimal::new(5, 2),
            min_up_steps: 3,
            min_down_steps: 3,
            pool_fee: Decimal::new(2, 2),
            delivery_usd_mwh: Decimal::ZERO,
            pue: Decimal::ONE,
        },
        from,
        to: from + chrono::TimeDelta::days(1),
        fleet,
        network: Some(Snapshot {
            id: uuid::Uuid::nil(),
            observed_at: from,
            network: Network {
                btc_price_usd: Decimal::from(90_000),
                difficulty: Decimal::from(150_000_000_000_000_u64),
                block_height: 900_000,
                fees_btc_per_block: Decimal::new(5, 2),
            },
        }),
        prices: Prices { intervals, as_of: None },
    })
}
