//! Owns the unit tests of a machine's checks taken together.
//! Promises one story for each rule: opened, resolved, late, off on purpose, a hole, a new rating.
//! May be called by the test runner only.

use super::super::super::testing::d;
use super::*;

fn s21() -> Nameplate {
    Nameplate { hashrate_ths: d("200"), power_w: d("3500"), air_cooled: true }
}

fn minute(minutes: i64) -> DateTime<Utc> {
    DateTime::UNIX_EPOCH + TimeDelta::minutes(minutes)
}

fn reading(minutes: i64, ths: f64) -> Reading {
    Reading {
        end: minute(minutes),
        hashrate_ths: ths,
        hour_mean_ths: ths,
        power: None,
        temperature_c: None,
        peer_z: None,
    }
}

/// The changes that readings lead to, each as kind and what happened.
fn changes(detector: &mut Detector, readings: &[Reading], duty: Duty) -> Vec<(AnomalyKind, Change)> {
    let steps = readings.iter().flat_map(|reading| detector.step(&s21(), reading, duty));
    steps.filter_map(|finding| Some((finding.kind, finding.change?))).collect()
}

fn hashing(detector: &mut Detector, readings: &[(i64, f64)]) -> Vec<(AnomalyKind, Change)> {
    let readings: Vec<Reading> = readings.iter().map(|(at, ths)| reading(*at, *ths)).collect();
    changes(detector, &readings, Duty::Hashing)
}

const OPENED: (AnomalyKind, Change) = (AnomalyKind::Hashrate, Change::Opened);
const RESOLVED: (AnomalyKind, Change) = (AnomalyKind::Hashrate, Change::Resolved);

#[test]
fn two_bad_windows_open_and_three_good_ones_resolve() {
    let mut detector = Detector::default();
    assert_eq!(hashing(&mut detector, &[(5, 200.0), (10, 150.0)]), []);
    assert_eq!(hashing(&mut detector, &[(15, 150.0)]), [OPENED]);
    assert_eq!(hashing(&mut detector, &[(20, 150.0), (25, 200.0), (30, 200.0)]), []);
    assert_eq!(hashing(&mut detector, &[(35, 200.0)]), [RESOLVED]);
}

#[test]
fn a_window_counts_once_and_never_late() {
    let mut detector = Detector::default();
    assert_eq!(hashing(&mut detector, &[(5, 150.0), (5, 150.0), (5, 10.0)]), []);
    assert_eq!(hashing(&mut detector, &[(10, 150.0)]), [OPENED]);
    let before = detector.clone();
    assert_eq!(hashing(&mut detector, &[(10, 200.0), (5, 200.0), (0, 200.0), (-5, 0.0)]), []);
    assert_eq!(detector, before);
}

#[test]
fn off_on_purpose_opens_nothing_and_forgets() {
    for duty in [Duty::Curtailed, Duty::Maintenance, Duty::Starting, Duty::OutOfService] {
        let mut detector = Detector::default();
        let dead: Vec<Reading> = (1..20).map(|n| reading(n * 5, 0.0)).collect();
        assert_eq!(changes(&mut detector, &dead, duty), []);
        // One bad window before the time off and one after it are not two of three.
        let mut detector = Detector::default();
        assert_eq!(hashing(&mut detector, &[(5, 150.0)]), []);
        assert_eq!(changes(&mut detector, &[reading(10, 0.0)], duty), []);
        assert_eq!(hashing(&mut detector, &[(15, 150.0)]), []);
        assert_eq!(hashing(&mut detector, &[(20, 150.0)]), [OPENED]);
    }
}

#[test]
fn a_hole_breaks_what_was_observed() {
    let mut detector = Detector::default();
    assert_eq!(hashing(&mut detector, &[(5, 150.0), (20, 150.0)]), []);
    assert_eq!(hashing(&mut detector, &[(30, 150.0)]), [OPENED], "ten minutes are none");
    assert_eq!(hashing(&mut detector, &[(35, 200.0), (40, 200.0), (60, 200.0), (65, 200.0)]), []);
    assert_eq!(hashing(&mut detector, &[(70, 200.0)]), [RESOLVED]);
}

/// The findings of one kind on a steady machine that is warm.
fn after_warm_up(kind: AnomalyKind, later: impl Fn(i64) -> Reading) -> Vec<Finding> {
    let mut detector = Detector::default();
    let warm: Vec<(i64, f64)> = (1..=8).map(|n| (n * 5, 200.0)).collect();
    assert_eq!(hashing(&mut detector, &warm), []);
    let steps = (9..=18).flat_map(|n| detector.step(&s21(), &later(n * 5), Duty::Hashing));
    steps.filter(|finding| finding.kind == kind).collect()
}

#[test]
fn a_drop_is_drift_as_soon_as_there_is_a_past() {
    let findings =
        after_warm_up(AnomalyKind::Drift, |at| Reading { hashrate_ths: 190.0, ..reading(at, 200.0) });
    assert_eq!(findings[1].change, Some(Change::Opened));
    // The floor of the spread is 0.5 % of the mean.
    assert_eq!((findings[1].score, findings[1].expected), (Some(-10.0), Some(d("200"))));
    assert!(findings.iter().all(|finding| finding.bad), "a lasting fault does not become usual");
    let mut young = Detector::default();
    let short: Vec<(i64, f64)> = (1..=7).map(|n| (n * 5, 200.0)).chain([(40, 1.0)]).collect();
    assert!(!hashing(&mut young, &short).iter().any(|(kind, _)| *kind == AnomalyKind::Drift));
}

#[test]
fn what_is_usual_is_learnt_anew_under_another_rating_and_after_maintenance() {
    for (duty, rated) in [(Duty::Hashing, "180"), (Duty::Maintenance, "200")] {
        let mut detector = Detector::default();
        let warm: Vec<(i64, f64)> = (1..=9).map(|n| (n * 5, 200.0)).collect();
        assert_eq!(hashing(&mut detector, &warm), []);
        let nameplate = Nameplate { hashrate_ths: d(rated), ..s21() };
        detector.step(&nameplate, &reading(50, 180.0), duty);
        let judged = detector.step(&nameplate, &reading(55, 180.0), Duty::Hashing);
        assert!(judged.iter().all(|finding| finding.kind != AnomalyKind::Drift), "{duty:?}: {judged:?}");
    }
}

#[test]
fn power_opens_after_half_an_hour_and_two_windows() {
    let findings = after_warm_up(AnomalyKind::Power, |at| Reading {
        power: Some((minute(at - 1), 3000.0)),
        ..reading(at, 200.0)
    });
    let bad: Vec<bool> = findings.iter().map(|finding| finding.bad).collect();
    assert_eq!(bad, [false, false, false, false, false, false, false, true, true, true]);
    assert_eq!(findings[8].change, Some(Change::Opened));
    assert_eq!((findings[8].measured, findings[8].expected), (d("3000"), Some(d("3500"))));
}

#[test]
fn heat_is_for_air_and_has_levels() {
    let hot = |celsius| move |at| Reading { temperature_c: Some(celsius), ..reading(at, 200.0) };
    let level = |celsius| after_warm_up(AnomalyKind::Heat, hot(celsius))[1].level;
    assert_eq!((level(74.9), level(75.0), level(85.0)), (None, Some("warn"), Some("critical")));
    let immersed = Nameplate { air_cooled: false, ..s21() };
    let findings = Detector::default().step(&immersed, &hot(90.0)(5), Duty::Hashing);
    assert!(findings.iter().all(|finding| finding.kind != AnomalyKind::Heat));
}

#[test]
fn peers_are_judged_by_their_score() {
    let alike = after_warm_up(AnomalyKind::Peers, |at| Reading { peer_z: Some(-3.5), ..reading(at, 200.0) });
    assert!(alike.iter().all(|finding| !finding.bad));
    let apart = after_warm_up(AnomalyKind::Peers, |at| Reading { peer_z: Some(-3.6), ..reading(at, 200.0) });
    assert_eq!((apart[1].change, apart[1].score), (Some(Change::Opened), Some(-3.6)));
    assert!(after_warm_up(AnomalyKind::Peers, |at| reading(at, 200.0)).is_empty());
}

#[test]
fn what_others_closed_is_closed_and_what_is_recorded_open_is_open() {
    let mut detector = Detector::default();
    assert_eq!(hashing(&mut detector, &[(5, 0.0), (10, 0.0)]), [OPENED]);
    detector.reconcile(|_| false);
    assert_eq!(hashing(&mut detector, &[(15, 0.0)]), []);
    assert_eq!(hashing(&mut detector, &[(20, 0.0)]), [OPENED]);
    let mut forgetful = Detector::default();
    forgetful.reconcile(|kind| kind == AnomalyKind::Hashrate);
    assert_eq!(hashing(&mut forgetful, &[(5, 200.0), (10, 200.0)]), []);
    assert_eq!(hashing(&mut forgetful, &[(15, 200.0)]), [RESOLVED]);
}

#[test]
fn its_memory_survives_its_table() {
    let mut detector = Detector::default();
    let story = |n: i64| Reading {
        power: Some((minute(n * 5 - 1), 3000.5)),
        temperature_c: Some(88.0),
        peer_z: Some(-9.0),
        ..reading(n * 5, if n > 9 { 120.25 } else { 200.125 })
    };
    for n in 1..=30 {
        let stored = serde_json::to_string(&detector).expect("serialisable");
        let mut restored: Detector = serde_json::from_str(&stored).expect("readable");
        assert_eq!(restored, detector);
        let (mut kept, reading) = (detector.clone(), story(n));
        assert_eq!(
            restored.step(&s21(), &reading, Duty::Hashing),
            kept.step(&s21(), &reading, Duty::Hashing)
        );
        detector = kept;
    }
    // What an older release left out is as if never seen.
    assert_eq!(serde_json::from_str::<Detector>("{}").expect("readable"), Detector::default());
}

#[test]
fn windows_end_at_multiples_of_five_minutes() {
    let at = |text: &str| text.parse::<DateTime<Utc>>().expect("a time");
    let cases = [
        ("2026-01-02T03:05:00Z", "2026-01-02T03:05:00Z"),
        ("2026-01-02T03:09:59.999999Z", "2026-01-02T03:05:00Z"),
        ("2026-01-02T03:04:59Z", "2026-01-02T03:00:00Z"),
    ];
    for (given, expected) in cases {
        assert_eq!(window_end(at(given)), at(expected));
    }
}
