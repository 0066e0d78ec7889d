//! Owns the site that a fleet is: its miners in classes, each with the price up to which it earns, and its prices.
//! Promises one class per model and rating, whatever the spelling, and power and strike both at the meter.
//! May be called by every module; needs nothing but its arguments.

use super::super::EconomicsError;
use super::super::catalogue::normalise;
use super::super::exact::{add, product};
use super::super::mining::{Network, efficiency_j_th, strike_usd_mwh};
use super::series::PriceSeries;
use super::site::{MinerClass, Site, Step};
use rust_decimal::Decimal;
use std::collections::BTreeMap;

/// Equal machines that run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FleetGroup {
    /// Name of the model, in any spelling.
    pub model: String,
    /// Rated hashrate of one machine, TH/s, >= 0.
    pub hashrate_ths: Decimal,
    /// Nameplate power of one machine, W, >= 0.
    pub power_w: Decimal,
    /// How many.
    pub miners: u32,
}

/// What a site allows and costs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SiteTerms {
    /// Most power, kW; `None` without a cap.
    pub cap_kw: Option<Decimal>,
    /// Most change of power from one step to the next, kW; `None` without a limit.
    pub ramp_kw: Option<Decimal>,
    /// Share of the miners that must be on, 0..=1.
    pub min_online_share: Decimal,
    /// What one start of one machine costs, USD.
    pub start_cost_usd: Decimal,
    /// Steps a machine stays on once started.
    pub min_up_steps: u32,
    /// Steps a machine stays off once stopped.
    pub min_down_steps: u32,
    /// Share of the reward kept by the pool, 0..=1.
    pub pool_fee: Decimal,
    /// What delivery adds to every price, $/MWh.
    pub delivery_usd_mwh: Decimal,
    /// Energy at the meter per energy at the machine, >= 1.
    pub pue: Decimal,
}

/// The same machines under one name, in the order of their names: what was spelt in different ways is one group.
#[must_use]
pub fn merged(groups: Vec<FleetGroup>) -> Vec<FleetGroup> {
    let mut by_rating: BTreeMap<(String, Decimal, Decimal), FleetGroup> = BTreeMap::new();
    for group in groups {
        let rating = (normalise(&group.model), group.hashrate_ths, group.power_w);
        match by_rating.get_mut(&rating) {
            Some(known) => known.miners = known.miners.saturating_add(group.miners),
            None => {
                by_rating.insert(rating, group);
            }
        }
    }
    by_rating.into_values().collect()
}

/// The site of a fleet over a price series; class by class in the order of `groups`. All machines run before the first
/// step, their minimum times served.
///
/// # Errors
/// [`EconomicsError::OutOfRange`] naming a field outside its range, [`EconomicsError::Overflow`] beyond 7.9e28.
pub fn fleet_site(
    groups: &[FleetGroup],
    network: &Network,
    terms: &SiteTerms,
    series: &PriceSeries,
) -> Result<Site, EconomicsError> {
    let hashprice = network.hashprice_usd_ph_day()?;
    let class = |group: &FleetGroup| {
        let power_w = product([group.power_w, terms.pue], "power_w")?.normalize();
        let efficiency = efficiency_j_th(power_w, group.hashrate_ths)?;
        // Without hashrate nothing is earned at any price.
        let strike = if group.hashrate_ths.is_zero() {
            Some(Decimal::ZERO)
        } else {
            strike_usd_mwh(hashprice, efficiency, terms.pool_fee)
        };
        Ok(MinerClass {
            name: group.model.clone(),
            miners: group.miners,
            power_w,
            strike_usd_mwh: strike.ok_or(EconomicsError::OutOfRange { field: "power_w" })?,
            start_cost_usd: terms.start_cost_usd,
            min_up_steps: terms.min_up_steps,
            min_down_steps: terms.min_down_steps,
            on: true,
            held_steps: None,
        })
    };
    let step = |price: &Decimal| {
        Ok(Step {
            seconds: series.step_seconds,
            price_usd_mwh: add(*price, terms.delivery_usd_mwh, "price_usd_mwh")?,
            cap_kw: terms.cap_kw,
            min_online_share: terms.min_online_share,
        })
    };
    let site = Site {
        steps: series.prices.iter().map(step).collect::<Result<_, EconomicsError>>()?,
        classes: groups.iter().map(class).collect::<Result<_, EconomicsError>>()?,
        ramp_kw: terms.ramp_kw,
    };
    site.check()?;
    Ok(site)
}

#[cfg(test)]
mod tests {
    use super::super::super::testing::{close, d};
    use super::super::plan::curtailment_plan;
    use super::*;

    fn terms() -> SiteTerms {
        SiteTerms {
            cap_kw: None,
            ramp_kw: None,
            min_online_share: d("0"),
            start_cost_usd: d("0.05"),
            min_up_steps: 2,
            min_down_steps: 2,
            pool_fee: d("0.02"),
            delivery_usd_mwh: d("0"),
            pue: d("1"),
        }
    }

    fn network() -> Network {
        Network {
            btc_price_usd: d("90000"),
            difficulty: d("150e12"),
            block_height: 925_000,
            fees_btc_per_block: d("0.05"),
        }
    }

    fn s21(model: &str, miners: u32) -> FleetGroup {
        FleetGroup { model: model.to_owned(), hashrate_ths: d("200"), power_w: d("3500"), miners }
    }

    fn series(prices: &[i64]) -> PriceSeries {
        let prices = prices.iter().map(|price| Decimal::from(*price)).collect();
        PriceSeries { start: 0, step_seconds: 3_600, prices, complete: true }
    }

    #[test]
    fn the_day_of_the_specification() {
        let day = series(&[50, 50, 100, 60, 120, 300, 300, 100, 50, 95, 50, 50]);
        let site = fleet_site(&[s21("S21", 1)], &network(), &terms(), &day).expect("a site");
        close(site.classes[0].strike_usd_mwh, "89.4181");
        let plan = curtailment_plan(&site).expect("a plan");
        assert!((plan.value_usd - d("0.686208")).abs() < d("0.00001"), "{}", plan.value_usd);
    }

    #[test]
    fn spellings_are_one_class_and_ratings_are_several() {
        let tuned = FleetGroup { power_w: d("3000"), ..s21("S21", 1) };
        let groups =
            merged(vec![s21("S21", 2), s21("Antminer S21", 3), tuned, s21("antminer s21", u32::MAX)]);
        let counts: Vec<_> = groups.iter().map(|group| (group.power_w, group.miners)).collect();
        assert_eq!(counts, [(d("3000"), 1), (d("3500"), u32::MAX)]);
    }

    #[test]
    fn overhead_and_delivery_lower_what_running_is_worth() {
        let day = series(&[50]);
        let dear = SiteTerms { pue: d("1.1"), delivery_usd_mwh: d("7"), ..terms() };
        let site = fleet_site(&[s21("S21", 1)], &network(), &dear, &day).expect("a site");
        assert_eq!((site.classes[0].power_w, site.steps[0].price_usd_mwh), (d("3850"), d("57")));
        close(site.classes[0].strike_usd_mwh, "81.28922");
    }

    #[test]
    fn what_earns_nothing_is_off_and_what_draws_nothing_is_refused() {
        let dead = FleetGroup { hashrate_ths: d("0"), ..s21("S21", 1) };
        let site = fleet_site(&[dead], &network(), &terms(), &series(&[1])).expect("a site");
        assert_eq!(site.classes[0].strike_usd_mwh, d("0"));
        let free = FleetGroup { power_w: d("0"), ..s21("S21", 1) };
        let refused = fleet_site(&[free], &network(), &terms(), &series(&[1]));
        assert_eq!(refused, Err(EconomicsError::OutOfRange { field: "power_w" }));
    }
}
