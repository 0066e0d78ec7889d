//! Owns the comparison of the two price models on the past, by a rolling origin.
//! Promises that a model sees nothing after the day it forecasts from, and that only days with a value of their own count.
//! May be called by the files of this folder only.

use super::NOMINAL_COVERAGE;
use super::exponential::{MIN_FIT_DAYS, damped_trend};
use super::log_forecast::LogForecast;
use super::random_walk::random_walk;
use super::series::LogRun;
use rust_decimal::Decimal;
use serde::{Deserialize, Serialize};

/// Days a model is fitted to.
pub(super) const TRAINING_DAYS: usize = 365;
/// Origins below which a comparison would be chance.
const MIN_ORIGINS: usize = 10;
/// Origins of a comparison, spread over the history; more would overlap and cost time without saying more.
const MAX_ORIGINS: usize = 20;

/// How the two models did. Errors are mean absolute errors of the logarithm over all origins and horizons: 0.05 is
/// about 5 % of the price.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Comparison {
    /// Days of the past that were forecast from.
    pub origins: u32,
    /// Error of the yardstick.
    pub random_walk_error: Decimal,
    /// Error of damped-trend exponential smoothing; `None` if it could not be fitted at every origin, in which case it
    /// is not used.
    pub damped_trend_error: Option<Decimal>,
}

/// How one model did.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Score {
    /// Mean absolute error of the logarithm.
    pub(super) error: f64,
    /// Per day ahead: intervals that contained the truth.
    hits: Vec<u32>,
    /// Per day ahead: intervals that could be checked.
    trials: Vec<u32>,
}

impl Score {
    /// Confidence per day ahead: `(hits + 1) / (trials + 2)` (rule of succession), at most the nominal coverage, never
    /// rising. Where origins lie closer together than the horizon, their errors overlap and the share is rougher than
    /// the number of trials suggests.
    pub(super) fn confidence(&self) -> Vec<Decimal> {
        let mut least = NOMINAL_COVERAGE;
        let measured = self.hits.iter().zip(&self.trials).map(|(hits, trials)| {
            let share = Decimal::from(u64::from(*hits) + 1) / Decimal::from(u64::from(*trials) + 2);
            least = least.min(share.round_dp(4));
            least
        });
        measured.collect()
    }
}

/// The outcome of a back-test.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct BackTest {
    pub(super) origins: u32,
    pub(super) random_walk: Score,
    pub(super) damped_trend: Option<Score>,
}

/// Days of history that a comparison over `days` ahead needs: origins over at least two horizons, and ten of them.
pub(super) fn needed_days(days: usize) -> usize {
    MIN_FIT_DAYS + (3 * days).max(days + MIN_ORIGINS - 1)
}

/// Forecasts `days` ahead from up to twenty days of the past with both models; `None` with too little history.
pub(super) fn back_test(run: &LogRun, days: usize) -> Option<BackTest> {
    if run.logs.len() < needed_days(days) {
        return None;
    }
    let origins = origins(run.logs.len(), days);
    Some(BackTest {
        origins: u32::try_from(origins.len()).unwrap_or(u32::MAX),
        random_walk: score(run, &origins, days, random_walk)?,
        damped_trend: score(run, &origins, days, damped_trend),
    })
}

/// Numbers of days known at each origin, newest first: every forecast can be checked to its end, every model fitted.
fn origins(history: usize, days: usize) -> Vec<usize> {
    let possible = history - days - MIN_FIT_DAYS + 1;
    let count = possible.min(MAX_ORIGINS);
    let apart = (possible - 1) / (count - 1);
    (0..count).map(|i| history - days - i * apart).collect()
}

/// `None` if the model fails at any origin: a model that sometimes has no answer cannot be chosen.
fn score(
    run: &LogRun,
    origins: &[usize],
    days: usize,
    model: impl Fn(&[f64], usize) -> Option<LogForecast>,
) -> Option<Score> {
    let mut score = Score { error: 0.0, hits: vec![0; days], trials: vec![0; days] };
    let mut checked = 0_u32;
    for origin in origins {
        let known = &run.logs[origin.saturating_sub(TRAINING_DAYS)..*origin];
        let forecast = model(known, days)?;
        for ahead in (0..days).filter(|ahead| run.observed[origin + ahead]) {
            let miss = (run.logs[origin + ahead] - forecast.centre[ahead]).abs();
            score.error += miss;
            score.hits[ahead] += u32::from(miss <= forecast.half_width[ahead]);
            score.trials[ahead] += 1;
            checked += 1;
        }
    }
    score.error /= f64::from(checked);
    score.error.is_finite().then_some(score)
}

#[cfg(test)]
mod tests {
    use super::super::super::testing::d;
    use super::*;

    fn run(logs: Vec<f64>) -> LogRun {
        LogRun { observed: vec![true; logs.len()], logs, age_days: 0 }
    }

    fn line(days: usize) -> LogRun {
        run((0..days).map(|i| i as f64).collect())
    }

    #[test]
    fn origins_leave_room_to_fit_and_to_check() {
        for (history, days) in [(needed_days(30), 30), (needed_days(1), 1), (150, 30), (400, 7), (730, 30)] {
            let origins = origins(history, days);
            assert!((MIN_ORIGINS..=MAX_ORIGINS).contains(&origins.len()), "{history} {days}");
            assert_eq!(origins[0], history - days);
            assert!(origins.iter().all(|o| (MIN_FIT_DAYS..=history - days).contains(o)), "{origins:?}");
            assert!(origins.is_sorted_by(|a, b| a > b), "{origins:?}");
        }
        // A long history is used in full: its origins do not overlap.
        let long = origins(730, 30);
        assert!(long.windows(2).all(|pair| pair[0] - pair[1] >= 30));
    }

    #[test]
    fn a_model_sees_only_what_was_known() {
        let days = 5;
        let history = line(200);
        let from = origins(200, days);
        let seen = std::cell::RefCell::new(Vec::new());
        let score = score(&history, &from, days, |known, days| {
            let last = *known.last()?;
            seen.borrow_mut().push(last as usize + 1);
            LogForecast::checked(vec![last; days], vec![2.5; days])
        });
        assert_eq!(*seen.borrow(), from);
        // Day h of a line is missed by h: the mean of 1..=5 is 3, and a half-width of 2.5 catches the first two.
        let score = score.expect("every fit succeeds");
        assert_eq!(score.error, 3.0);
        let count = from.len() as u32;
        assert_eq!((score.hits, score.trials), (vec![count, count, 0, 0, 0], vec![count; 5]));
    }

    #[test]
    fn bridged_days_are_not_checked() {
        let mut history = line(200);
        let from = [195];
        history.observed[196] = false;
        let perfect = |known: &[f64], days: usize| {
            let last = known.last().copied()?;
            LogForecast::checked((1..=days).map(|h| last + h as f64).collect(), vec![0.0; days])
        };
        let score = score(&history, &from, 5, perfect).expect("every fit succeeds");
        assert_eq!((score.error, score.trials), (0.0, vec![1, 0, 1, 1, 1]));
    }

    #[test]
    fn one_failed_fit_disqualifies() {
        let from = [150, 120];
        let fails = |known: &[f64], days: usize| {
            (known.len() > 130).then_some(())?;
            LogForecast::checked(vec![0.0; days], vec![0.0; days])
        };
        assert_eq!(score(&line(200), &from, 3, fails), None);
    }

    #[test]
    fn confidence_is_the_share_that_was_right_and_never_rises() {
        let score = Score { error: 0.1, hits: vec![20, 15, 9, 18, 0], trials: vec![20, 20, 20, 20, 0] };
        let expected = ["0.8", "0.7273", "0.4545", "0.4545", "0.4545"];
        assert_eq!(score.confidence(), expected.map(d));
    }

    #[test]
    fn too_little_history_is_not_compared() {
        assert_eq!((needed_days(1), needed_days(30)), (70, 150));
        assert_eq!(back_test(&line(149), 30), None);
        assert!(back_test(&line(150), 30).is_some());
    }
}
