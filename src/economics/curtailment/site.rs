//! Owns what a curtailment plan is made from: the steps of the horizon with their limits, and the classes of miners.
//! Promises that a site that passes `check` is inside the ranges the optimiser is defined for.
//! May be called by every module; needs nothing but its arguments.

use super::super::{EconomicsError, exact};
use rust_decimal::Decimal;
use serde::{Deserialize, Serialize};

/// One step of the horizon. Steps follow each other without a gap and may differ in length.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// Length in seconds, > 0: 300 for five minutes, 3600 for an hour.
    pub seconds: u32,
    /// Price of energy in $/MWh, of any sign.
    pub price_usd_mwh: Decimal,
    /// Most power the site may draw, kW, >= 0; `None` without a cap.
    #[serde(default)]
    pub cap_kw: Option<Decimal>,
    /// Share of all the site's miners that must be on, 0..=1.
    #[serde(default)]
    pub min_online_share: Decimal,
}

/// Equal miners that may be switched one by one. Miners that stand differently before the horizon (some on, some off)
/// are different classes. A minimum longer than the horizon is as good as the horizon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MinerClass {
    /// Name of the class, for the reader.
    pub name: String,
    /// How many miners.
    pub miners: u32,
    /// Power of one miner at the meter in W, >= 0: what is paid for, cooling included.
    pub power_w: Decimal,
    /// Energy price above which running loses money, $/MWh at the meter, >= 0 ([`strike_usd_mwh`]).
    ///
    /// [`strike_usd_mwh`]: super::super::mining::strike_usd_mwh
    pub strike_usd_mwh: Decimal,
    /// What one start of one miner costs, USD, >= 0.
    #[serde(default)]
    pub start_cost_usd: Decimal,
    /// Steps a miner stays on once started.
    #[serde(default)]
    pub min_up_steps: u32,
    /// Steps a miner stays off once stopped.
    #[serde(default)]
    pub min_down_steps: u32,
    /// Whether the miners are on before the first step.
    pub on: bool,
    /// Steps for which they have been so; `None` when the minimum is served.
    #[serde(default)]
    pub held_steps: Option<u32>,
}

impl MinerClass {
    /// Steps at the start of the horizon in which the state before it cannot be left.
    pub(super) fn locked_steps(&self) -> u32 {
        let minimum = if self.on { self.min_up_steps } else { self.min_down_steps };
        minimum.saturating_sub(self.held_steps.unwrap_or(minimum))
    }

    fn check(&self) -> Result<(), EconomicsError> {
        exact::not_negative(self.power_w, "power_w")?;
        exact::not_negative(self.strike_usd_mwh, "strike_usd_mwh")?;
        exact::not_negative(self.start_cost_usd, "start_cost_usd")
    }
}

/// A site over a horizon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Site {
    /// The horizon, in order.
    pub steps: Vec<Step>,
    /// Every class of miners behind the meter.
    pub classes: Vec<MinerClass>,
    /// Most the site's power may change from one step to the next, kW, >= 0; into the first step it counts from the
    /// power before the horizon, unless that is above the first cap: then it cannot have been drawn. `None` without a
    /// limit.
    #[serde(default)]
    pub ramp_kw: Option<Decimal>,
}

impl Site {
    /// Checks every field against the range given at its definition.
    ///
    /// # Errors
    /// [`EconomicsError::OutOfRange`] naming the first field that is outside.
    pub fn check(&self) -> Result<(), EconomicsError> {
        for step in &self.steps {
            exact::within(step.seconds > 0, "seconds")?;
            exact::not_negative(step.cap_kw.unwrap_or_default(), "cap_kw")?;
            exact::share(step.min_online_share, "min_online_share")?;
        }
        exact::not_negative(self.ramp_kw.unwrap_or_default(), "ramp_kw")?;
        self.classes.iter().try_for_each(MinerClass::check)
    }
}
