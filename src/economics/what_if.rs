//! Owns what-ifs: the portfolio's figures with price, difficulty, tariff or uptime moved by some percent.
//! Promises that moving nothing gives the portfolio itself, and that uptime never exceeds the whole day.
//! May be called by every module; needs nothing but its arguments.

use super::exact::{self, add, product};
use super::miner::MinerLine;
use super::mining::Network;
use super::portfolio::{Portfolio, portfolio};
use super::{Assumptions, EconomicsError};
use rust_decimal::Decimal;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Relative changes, each above -1: 0.1 is +10 %, 0 leaves the input as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct WhatIf {
    /// Change of the BTC price.
    pub btc_price: Decimal,
    /// Change of the difficulty.
    pub difficulty: Decimal,
    /// Change of every tariff, the default's included.
    pub tariff: Decimal,
    /// Change of the uptime; the result is capped at 1.
    pub uptime: Decimal,
}

/// The portfolio of the same miners under changed conditions.
///
/// # Errors
/// [`EconomicsError::OutOfRange`] for a change of -1 or less or a difficulty that leaves its range, otherwise as
/// [`portfolio`].
pub fn what_if(
    lines: &[MinerLine],
    network: Option<&Network>,
    assumptions: &Assumptions,
    change: &WhatIf,
) -> Result<Portfolio, EconomicsError> {
    let network = network
        .map(|network| {
            Ok(Network {
                btc_price_usd: moved(network.btc_price_usd, change.btc_price, "btc_price_usd")?,
                difficulty: moved(network.difficulty, change.difficulty, "difficulty")?,
                ..network.clone()
            })
        })
        .transpose()?;
    let tariff = |tariff| moved(tariff, change.tariff, "tariff_usd_kwh");
    let assumptions = Assumptions {
        default_tariff_usd_kwh: tariff(assumptions.default_tariff_usd_kwh)?,
        uptime: moved(assumptions.uptime, change.uptime, "uptime")?.min(Decimal::ONE),
        ..assumptions.clone()
    };
    let lines = lines
        .iter()
        .map(|line| {
            Ok(MinerLine { tariff_usd_kwh: line.tariff_usd_kwh.map(tariff).transpose()?, ..line.clone() })
        })
        .collect::<Result<Vec<_>, _>>()?;
    portfolio(&lines, network.as_ref(), &assumptions)
}

/// Lines that differ in nothing that totals tell are one line: cheaper to move about, the same totals. Model and location
/// of the result say nothing.
#[must_use]
pub fn merged(lines: Vec<MinerLine>) -> Vec<MinerLine> {
    let mut equal: BTreeMap<_, u64> = BTreeMap::new();
    for line in lines {
        let key =
            (line.hashrate_ths, line.power_w, line.purchase_price_usd, line.tariff_usd_kwh, line.status);
        let quantity = equal.entry(key).or_default();
        *quantity = quantity.saturating_add(line.quantity);
    }
    let line = |((hashrate_ths, power_w, purchase_price_usd, tariff_usd_kwh, status), quantity)| MinerLine {
        model: String::new(),
        hashrate_ths,
        power_w,
        quantity,
        purchase_price_usd,
        tariff_usd_kwh,
        status,
        location: None,
    };
    equal.into_iter().map(line).collect()
}

fn moved(value: Decimal, change: Decimal, field: &'static str) -> Result<Decimal, EconomicsError> {
    exact::drift(change, field)?;
    product([value, add(Decimal::ONE, change, field)?], field)
}

#[cfg(test)]
mod tests {
    use super::super::miner::MinerStatus;
    use super::super::testing::{d, near};
    use super::*;

    fn fleet() -> Vec<MinerLine> {
        let line = MinerLine {
            model: "Antminer S21".to_owned(),
            hashrate_ths: d("200"),
            power_w: d("3500"),
            quantity: 3,
            purchase_price_usd: Some(d("3000")),
            tariff_usd_kwh: Some(d("0.05")),
            status: MinerStatus::Online,
            location: None,
        };
        let default_tariff = MinerLine { tariff_usd_kwh: None, ..line.clone() };
        vec![line, default_tariff]
    }

    fn network() -> Network {
        Network {
            btc_price_usd: d("90000"),
            difficulty: d("150e12"),
            block_height: 900_000,
            fees_btc_per_block: d("0.05"),
        }
    }

    fn run(change: &WhatIf) -> Portfolio {
        what_if(&fleet(), Some(&network()), &Assumptions::default(), change).expect("in range")
    }

    fn scaled(actual: Option<Decimal>, base: Option<Decimal>, factor: Decimal) {
        let base = base.expect("a snapshot");
        near(actual.expect("a snapshot"), base * factor, d("1e-18"));
    }

    #[test]
    fn moving_nothing_changes_nothing() {
        let base = portfolio(&fleet(), Some(&network()), &Assumptions::default());
        assert_eq!(Ok(run(&WhatIf::default())), base);
    }

    #[test]
    fn each_change_moves_its_own_figures() {
        let base = run(&WhatIf::default());
        let price = run(&WhatIf { btc_price: d("0.1"), ..WhatIf::default() });
        scaled(price.revenue_usd_day, base.revenue_usd_day, d("1.1"));
        assert_eq!(price.net_btc_day, base.net_btc_day);
        assert_eq!(price.power_cost_usd_day, base.power_cost_usd_day);
        let difficulty = run(&WhatIf { difficulty: d("0.25"), ..WhatIf::default() });
        scaled(difficulty.gross_btc_day, base.gross_btc_day, d("0.8"));
        let tariff = run(&WhatIf { tariff: d("-0.2"), ..WhatIf::default() });
        assert_eq!(tariff.power_cost_usd_day, base.power_cost_usd_day * d("0.8"));
        assert_eq!(tariff.revenue_usd_day, base.revenue_usd_day);
        let uptime = run(&WhatIf { uptime: d("-0.05"), ..WhatIf::default() });
        scaled(uptime.profit_usd_day, base.profit_usd_day, d("0.95"));
        let capped = run(&WhatIf { uptime: d("0.1"), ..WhatIf::default() });
        assert_eq!(capped, base);
    }

    #[test]
    fn merged_lines_have_the_same_totals() {
        let mut lines: Vec<MinerLine> = fleet().into_iter().cycle().take(40).collect();
        lines.extend(
            lines.clone().into_iter().map(|line| MinerLine { quantity: u32::MAX.into(), ..line }).take(2),
        );
        for (at, line) in lines.iter_mut().enumerate() {
            line.location = Some(format!("hall {}", at % 3));
            line.status = if at % 5 == 0 { MinerStatus::Offline } else { MinerStatus::Online };
        }
        let few = merged(lines.clone());
        assert!(few.len() < 10, "{}", few.len());
        let totals = |lines: &[MinerLine]| {
            let figures = what_if(lines, Some(&network()), &Assumptions::default(), &WhatIf::default());
            let Portfolio { miners_total, miners_online, capex_usd, profit_usd_day, payback_days, .. } =
                figures.expect("in range");
            (miners_total, miners_online, capex_usd, profit_usd_day, payback_days)
        };
        assert_eq!(totals(&few), totals(&lines));
        assert!(merged(Vec::new()).is_empty());
    }

    #[test]
    fn a_change_that_leaves_nothing_is_refused() {
        let change = WhatIf { difficulty: d("-1"), ..WhatIf::default() };
        let result = what_if(&fleet(), Some(&network()), &Assumptions::default(), &change);
        let field = "difficulty";
        assert_eq!(result, Err(EconomicsError::OutOfRange { field }));
    }
}
