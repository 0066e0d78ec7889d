//! What many rounds say together: medians with their extremes, ratios within a round, and whose turn it is.

use hdrhistogram::Histogram;
use serde::Serialize;

/// The median of several rounds with the least and the most.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Spread {
    pub median: f64,
    pub min: f64,
    pub max: f64,
}

impl Spread {
    /// Of the rounds that count; none, if none does.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().filter(|value| value.is_finite()).collect();
        values.sort_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let middle = values.len() / 2;
        let median =
            if values.len() % 2 == 1 { values[middle] } else { (values[middle - 1] + values[middle]) / 2.0 };
        Some(Self { median, min, max })
    }
}

/// The ratios of two sources, each taken within one round: what disturbed a round disturbed both. A round that lacks
/// one of them does not count.
pub fn pair_ratios(ours: &[Option<f64>], theirs: &[Option<f64>]) -> Option<Spread> {
    Spread::of(ours.iter().zip(theirs).filter_map(|(ours, theirs)| Some(ours.as_ref()? / theirs.as_ref()?)))
}

/// The order of a round: everybody comes first, second, ... equally often.
pub fn rotated<T: Copy>(items: &[T], round: usize) -> Vec<T> {
    let mut order = items.to_vec();
    if !order.is_empty() {
        order.rotate_left(round % items.len());
    }
    order
}

/// What is reported of a distribution, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Quantiles {
    pub p50: f64,
    pub p90: f64,
    pub p95: f64,
    pub p99: f64,
    pub p99_9: f64,
    pub max: f64,
}

impl Quantiles {
    /// Of durations in microseconds.
    pub fn of(micros: &Histogram<u64>) -> Self {
        let ms = |quantile| micros.value_at_quantile(quantile) as f64 / 1e3;
        Self {
            p50: ms(0.5),
            p90: ms(0.9),
            p95: ms(0.95),
            p99: ms(0.99),
            p99_9: ms(0.999),
            max: micros.max() as f64 / 1e3,
        }
    }
}

/// Each quantile over the rounds.
#[derive(Debug, Serialize)]
pub struct QuantileSpreads {
    pub p50: Spread,
    pub p90: Spread,
    pub p95: Spread,
    pub p99: Spread,
    pub p99_9: Spread,
    pub max: Spread,
}

impl QuantileSpreads {
    /// Of the rounds that count; none, if none does.
    pub fn of<'a>(rounds: impl Iterator<Item = &'a Quantiles> + Clone) -> Option<Self> {
        let spread = |of: fn(&Quantiles) -> f64| Spread::of(rounds.clone().map(of));
        Some(Self {
            p50: spread(|q| q.p50)?,
            p90: spread(|q| q.p90)?,
            p95: spread(|q| q.p95)?,
            p99: spread(|q| q.p99)?,
            p99_9: spread(|q| q.p99_9)?,
            max: spread(|q| q.max)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_stands_between_its_extremes() {
        assert_eq!(Spread::of([3.0, 1.0, 2.0]), Some(Spread { median: 2.0, min: 1.0, max: 3.0 }));
        assert_eq!(Spread::of([4.0, 1.0, 2.0, 3.0]).map(|s| s.median), Some(2.5));
        assert_eq!(Spread::of([]), None);
    }

    #[test]
    fn a_ratio_is_taken_within_its_round() {
        // The second round was slow for both: the ratio of the medians would be 3, no pair shows that.
        let (ours, theirs) = ([Some(60.0), Some(10.0), Some(30.0)], [Some(30.0), Some(5.0), Some(10.0)]);
        assert_eq!(pair_ratios(&ours, &theirs), Some(Spread { median: 2.0, min: 2.0, max: 3.0 }));
    }

    #[test]
    fn a_round_that_lacks_one_of_the_two_does_not_count() {
        let (ours, theirs) = ([Some(60.0), None, Some(30.0)], [None, Some(5.0), Some(10.0)]);
        assert_eq!(pair_ratios(&ours, &theirs), Some(Spread { median: 3.0, min: 3.0, max: 3.0 }));
        assert_eq!(pair_ratios(&ours, &[None, None, None]), None);
    }

    #[test]
    fn everybody_comes_first_once() {
        let orders: Vec<Vec<char>> = (0..3).map(|round| rotated(&['A', 'B', 'C'], round)).collect();
        assert_eq!(orders, [['A', 'B', 'C'], ['B', 'C', 'A'], ['C', 'A', 'B']]);
        assert!(rotated::<char>(&[], 4).is_empty());
    }
}
