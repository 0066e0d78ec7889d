//! Owns the price series of a horizon: intervals of different lengths become steps of one length.
//! Promises that where intervals overlap the one received last counts, and that no price is made up where none is known.
//! May be called by every module; needs nothing but its arguments.

use super::super::EconomicsError;
use super::super::exact::{add, div};
use rust_decimal::Decimal;

/// Seconds of the shortest interval. Every length is a multiple, and every start a multiple of its length.
pub const SLOT_SECONDS: u32 = 300;
/// The lengths of intervals and steps, in seconds.
pub const LENGTHS: [u32; 2] = [SLOT_SECONDS, 3_600];
/// Decimals of a mean price.
const MEAN_DECIMALS: u32 = 6;

/// The price of an interval.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PriceInterval {
    /// Its start in Unix seconds.
    pub start: i64,
    /// Its length in seconds, one of [`LENGTHS`].
    pub seconds: u32,
    /// Price of energy, $/MWh.
    pub price_usd_mwh: Decimal,
}

/// The prices of steps that follow each other without a gap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PriceSeries {
    /// Start of the first step in Unix seconds.
    pub start: i64,
    /// Length of every step in seconds.
    pub step_seconds: u32,
    /// $/MWh, step by step.
    pub prices: Vec<Decimal>,
    /// Whether these are all steps that were asked for.
    pub complete: bool,
}

/// The first unbroken run of priced steps between `from` and `to` (Unix seconds). `intervals` stand in the order in which
/// they were received: a later one counts where it overlaps an earlier one. A step has a price when all of it has; it is
/// the mean over its time, to six decimals where prices differ.
///
/// # Errors
/// [`EconomicsError::Overflow`] for a sum of prices beyond 7.9e28.
pub fn price_series(
    intervals: &[PriceInterval],
    from: i64,
    to: i64,
    step_seconds: u32,
) -> Result<PriceSeries, EconomicsError> {
    let step = i64::from(step_seconds.max(SLOT_SECONDS));
    let slot = i64::from(SLOT_SECONDS);
    let from = from.div_euclid(step) * step;
    let steps = usize::try_from((to - from).max(0) / step).unwrap_or_default();
    let per_step = usize::try_from(step / slot).unwrap_or(1);
    let mut slots: Vec<Option<Decimal>> = vec![None; steps * per_step];
    for interval in intervals {
        let first = (interval.start - from).div_euclid(slot);
        for n in first..first + i64::from(interval.seconds) / slot {
            if let Some(known) = usize::try_from(n).ok().and_then(|n| slots.get_mut(n)) {
                *known = Some(interval.price_usd_mwh);
            }
        }
    }
    let mut priced = Vec::with_capacity(steps);
    for step in slots.chunks(per_step) {
        let known: Option<Vec<Decimal>> = step.iter().copied().collect();
        priced.push(known.map(|prices| mean(&prices)).transpose()?);
    }
    let skipped = priced.iter().take_while(|price| price.is_none()).count();
    let prices: Vec<Decimal> = priced.into_iter().skip(skipped).map_while(|price| price).collect();
    Ok(PriceSeries {
        start: from + step * i64::try_from(skipped).unwrap_or_default(),
        step_seconds: step_seconds.max(SLOT_SECONDS),
        complete: prices.len() == steps,
        prices,
    })
}

fn mean(prices: &[Decimal]) -> Result<Decimal, EconomicsError> {
    const FIGURE: &str = "price_usd_mwh";
    let (Some(first), false) = (prices.first(), prices.windows(2).any(|pair| pair[0] != pair[1])) else {
        let sum = prices.iter().try_fold(Decimal::ZERO, |sum, price| add(sum, *price, FIGURE))?;
        let mean = div(sum, Decimal::from(prices.len()), FIGURE)?;
        return Ok(mean.round_dp(MEAN_DECIMALS).normalize());
    };
    Ok(*first)
}

#[cfg(test)]
mod tests {
    use super::super::super::testing::{Dice, d};
    use super::*;

    fn interval(start: i64, seconds: u32, price: i64) -> PriceInterval {
        PriceInterval { start, seconds, price_usd_mwh: Decimal::from(price) }
    }

    fn prices(series: &PriceSeries) -> Vec<String> {
        series.prices.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_interval_received_last_counts() {
        let day_ahead = interval(0, 3_600, 50);
        let real_time = interval(600, 300, 80);
        let series = price_series(&[day_ahead.clone(), real_time.clone()], 0, 3_600, 300).expect("in range");
        assert_eq!(prices(&series), ["50", "50", "80", "50", "50", "50", "50", "50", "50", "50", "50", "50"]);
        let corrected = price_series(&[real_time, day_ahead], 0, 3_600, 300).expect("in range");
        assert_eq!(corrected.prices, vec![d("50"); 12]);
    }

    #[test]
    fn an_hour_of_slots_has_their_mean() {
        let slots: Vec<_> = (0..12).map(|n| interval(n * 300, 300, n)).collect();
        let series = price_series(&slots, 0, 3_600, 3_600).expect("in range");
        assert_eq!((prices(&series), series.complete), (vec!["5.5".to_owned()], true));
        let third = [interval(0, 3_600, 1), interval(0, 300, 0), interval(300, 300, 0)];
        assert_eq!(prices(&price_series(&third, 0, 3_600, 3_600).expect("in range")), ["0.833333"]);
        let missing = price_series(&slots[1..], 0, 3_600, 3_600).expect("in range");
        assert_eq!((missing.prices, missing.complete), (vec![], false));
    }

    #[test]
    fn the_horizon_is_the_first_unbroken_run() {
        let known = [interval(3_600, 3_600, 1), interval(7_200, 3_600, 2), interval(14_400, 3_600, 3)];
        let series = price_series(&known, 0, 18_000, 3_600).expect("in range");
        assert_eq!(
            (series.start, prices(&series), series.complete),
            (3_600, vec!["1".into(), "2".into()], false)
        );
        // From the middle of a step: the whole step.
        let inside = price_series(&known, 4_000, 10_800, 3_600).expect("in range");
        assert_eq!((inside.start, inside.prices.len(), inside.complete), (3_600, 2, true));
        let nothing = price_series(&[], 0, 18_000, 3_600).expect("in range");
        assert!(nothing.prices.is_empty() && !nothing.complete);
        assert!(price_series(&known, 18_000, 0, 300).expect("in range").prices.is_empty());
    }

    #[test]
    fn every_step_lies_between_the_prices_inside_it() {
        let mut dice = Dice(7);
        for _ in 0..200 {
            let known: Vec<_> = (0..60)
                .map(|_| {
                    let seconds = LENGTHS[dice.roll(2) as usize];
                    let start = dice.roll(24) as i64 * i64::from(seconds);
                    interval(start, seconds, dice.roll(900) as i64 - 200)
                })
                .collect();
            let fine = price_series(&known, 0, 86_400, 300).expect("in range");
            let coarse = price_series(&known, 0, 86_400, 3_600).expect("in range");
            let slot = |n: usize| {
                let at = i64::try_from(n).expect("small") * 300 + coarse.start - fine.start;
                fine.prices.get(usize::try_from(at / 300).ok()?).copied()
            };
            for (n, price) in coarse.prices.iter().enumerate().filter(|_| fine.start <= coarse.start) {
                let inside: Vec<_> = (n * 12..n * 12 + 12).filter_map(slot).collect();
                let least = inside.iter().min().copied().unwrap_or(*price);
                let most = inside.iter().max().copied().unwrap_or(*price);
                assert!((least..=most).contains(price), "{price} of {inside:?}");
            }
        }
    }
}
