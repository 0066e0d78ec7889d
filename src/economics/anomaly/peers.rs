//! Owns the comparison of a miner with its peers, the machines of the same model at the same site.
//! Promises a score only in groups of at least eight; a machine without a site has no peers.
//! May be called by every module; needs nothing but its arguments.

use super::super::catalogue::normalise;
use super::robust::Scale;
use std::collections::BTreeMap;

/// Smallest group in which a median says what is usual, the machine itself counted.
pub const MIN_PEERS: usize = 8;

/// A figure of one machine that is comparable among equal machines: hashrate over rating, power, temperature.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PeerReading<'a> {
    /// Site; `None` when unassigned.
    pub site: Option<&'a str>,
    /// Name of the model in any spelling of the catalogue.
    pub model: &'a str,
    /// The figure, in the same unit for every reading; one that is not finite counts as absent.
    pub value: f64,
}

/// Robust z of every reading within its group, in the order given. `None` where a group has fewer than eight finite
/// values, where the reading itself has none, or where [`Scale::robust_z`] is `None`.
#[must_use]
pub fn peer_scores(readings: &[PeerReading<'_>]) -> Vec<Option<f64>> {
    let mut groups: BTreeMap<(&str, String), Vec<usize>> = BTreeMap::new();
    for (index, reading) in readings.iter().enumerate() {
        if let Some(site) = reading.site.filter(|_| reading.value.is_finite()) {
            groups.entry((site, normalise(reading.model))).or_default().push(index);
        }
    }
    let mut scores = vec![None; readings.len()];
    for members in groups.into_values().filter(|members| members.len() >= MIN_PEERS) {
        let values: Vec<f64> = members.iter().map(|index| readings[*index].value).collect();
        let Some(scale) = Scale::of(&values) else { continue };
        for (index, value) in members.into_iter().zip(values) {
            scores[index] = scale.robust_z(value);
        }
    }
    scores
}

#[cfg(test)]
mod tests {
    use super::super::robust::is_outlier;
    use super::*;

    fn reading<'a>(site: &'a str, model: &'a str, value: f64) -> PeerReading<'a> {
        PeerReading { site: Some(site), model, value }
    }

    fn group(count: usize) -> Vec<PeerReading<'static>> {
        (0..count).map(|i| reading("north", "S21", if i == 0 { 120.0 } else { 200.0 })).collect()
    }

    fn outliers(readings: &[PeerReading<'_>]) -> Vec<usize> {
        let scores = peer_scores(readings);
        (0..scores.len()).filter(|i| scores[*i].is_some_and(is_outlier)).collect()
    }

    #[test]
    fn eight_are_enough_and_seven_are_not() {
        assert_eq!(outliers(&group(8)), [0]);
        assert!(peer_scores(&group(7)).iter().all(Option::is_none));
    }

    #[test]
    fn a_value_that_is_no_number_makes_no_peer() {
        let mut readings = group(8);
        readings[7].value = f64::NAN;
        assert!(peer_scores(&readings).iter().all(Option::is_none));
    }

    #[test]
    fn sites_and_models_are_groups_of_their_own() {
        let mut readings = group(7);
        readings.push(reading("south", "S21", 200.0));
        readings.push(reading("north", "S19", 90.0));
        readings.push(PeerReading { site: None, model: "S21", value: 200.0 });
        assert!(peer_scores(&readings).iter().all(Option::is_none));
        // What is usual for one model does not judge another.
        readings = group(9);
        readings.extend((0..8).map(|_| reading("north", "S19j Pro", 104.0)));
        assert_eq!(outliers(&readings), [0]);
    }

    #[test]
    fn spellings_of_a_model_are_one_group() {
        let mut readings = group(4);
        readings.extend((0..4).map(|_| reading("north", "Bitmain Antminer  s21", 200.0)));
        assert_eq!(outliers(&readings), [0]);
    }

    #[test]
    fn nobody_has_no_peers() {
        assert!(peer_scores(&[]).is_empty());
    }
}
