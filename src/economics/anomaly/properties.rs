//! Owns the property tests of the scores, over readings from a fixed seed with every kind of extreme among them.
//! Promises that no input gives a NaN or an infinite score and that scores do not depend on unit or order.
//! May be called by the test runner only.

use super::super::testing::Dice;
use super::ewma::Ewma;
use super::peers::{PeerReading, peer_scores};
use super::robust::Scale;

const EXTREMES: [f64; 12] = [
    0.0,
    -0.0,
    1.0,
    -1.0,
    f64::MIN_POSITIVE,
    5e-324,
    f64::MAX,
    f64::MIN,
    f64::INFINITY,
    f64::NEG_INFINITY,
    f64::NAN,
    200.0,
];

/// Mostly hashrates around 200, one in `oddness` an extreme.
fn sample(dice: &mut Dice, length: u64, oddness: u64) -> Vec<f64> {
    (0..length)
        .map(|_| {
            if dice.roll(oddness) == 0 {
                EXTREMES[dice.roll(12) as usize]
            } else {
                190.0 + dice.roll(2_000) as f64 / 100.0
            }
        })
        .collect()
}

#[test]
fn scores_are_finite_whatever_is_measured() {
    let mut dice = Dice(11);
    for round in 0..2_000 {
        let length = dice.roll(20);
        let values = sample(&mut dice, length, 1 + round % 5);
        let finite = |z: Option<f64>| z.is_none_or(f64::is_finite);
        if let Some(scale) = Scale::of(&values) {
            assert!(scale.median.is_finite() && scale.mad.is_finite() && scale.mad >= 0.0, "{values:?}");
            assert!(EXTREMES.iter().chain(&values).all(|x| finite(scale.robust_z(*x))), "{values:?}");
        }
        let readings: Vec<_> =
            values.iter().map(|x| PeerReading { site: Some("a"), model: "b", value: *x }).collect();
        let scores = peer_scores(&readings);
        assert_eq!(scores.len(), readings.len());
        assert!(scores.into_iter().all(finite), "{values:?}");
        let mut state = Ewma::warm_up(&values).unwrap_or(Ewma { mean: 0.0, variance: 0.0 });
        for x in values.iter().chain(&EXTREMES) {
            let (next, z) = state.step(*x);
            assert!(finite(z) && next.mean.is_finite() && next.variance.is_finite(), "{values:?}");
            assert!(next.variance >= 0.0);
            state = next;
        }
    }
}

#[test]
fn a_state_that_no_step_produces_gives_no_nan_either() {
    for mean in EXTREMES {
        for variance in EXTREMES {
            for x in EXTREMES {
                let (_, z) = Ewma { mean, variance }.step(x);
                assert!(z.is_none_or(f64::is_finite), "mean {mean}, variance {variance}, x {x}");
            }
        }
    }
}

#[test]
fn scores_depend_neither_on_the_unit_nor_on_the_order() {
    let mut dice = Dice(12);
    for _ in 0..300 {
        let values = sample(&mut dice, 15, u64::MAX);
        // A power of two moves the exponent and no digit.
        let scaled: Vec<f64> = values.iter().map(|x| x * 1024.0).collect();
        let reversed: Vec<f64> = values.iter().rev().copied().collect();
        let of = |sample: &[f64]| Scale::of(sample).expect("a sample");
        for x in &values {
            assert_eq!(of(&values).robust_z(*x), of(&scaled).robust_z(x * 1024.0));
            assert_eq!(of(&values).robust_z(*x), of(&reversed).robust_z(*x));
        }
    }
}
